"""What the client raises."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from redis.exceptions import ConnectionError as RedisConnectionError

if TYPE_CHECKING:
    from redis_agent.client.view import LeaderView, ObserverState, ObserverStatus


class SafeModeError(RedisConnectionError):
    """There is no leader that may be written to, or none that we know of. Nothing was sent to any Redis.

    It is a ``redis.exceptions.ConnectionError``, so code that handles those handles this.

    Args:
        status: the observer's view at that moment.
    """

    def __init__(self, status: ObserverStatus) -> None:
        self.state: ObserverState = status.state
        self.since: datetime = datetime.now().astimezone() - timedelta(seconds=status.for_s)
        self.for_s: float = status.for_s
        self.reason: str = status.reason
        self.last_leader: LeaderView | None = status.last_leader
        last = status.last_leader
        known = "" if last is None else f"; last leader: {last.name} ({last.address}), epoch {last.epoch}"
        super().__init__(
            f"{status.state.value} since {self.since:%H:%M:%S} ({self.for_s:.1f} s): {status.reason}{known}"
        )


class ObserverForked(RuntimeError):
    """The observer belongs to another process: neither its threads nor its session survive a fork."""

    def __init__(self, owner_pid: int) -> None:
        super().__init__(
            f"this LeaderObserver was made in process {owner_pid}; make one of its own in each process, after the fork"
        )
