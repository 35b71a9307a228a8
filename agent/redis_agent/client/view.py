"""What an observer knows, as values."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import Enum

from redis_agent.replication import Address
from redis_agent.znodes import Leader


def boottime_s() -> float:
    """Seconds on CLOCK_BOOTTIME, which goes on while the machine sleeps: a view must age then, too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class ObserverState(Enum):
    """Whether there is a leader that may be written to."""

    SERVING = "serving"
    SAFE_MODE = "safe-mode"


@dataclass(frozen=True, slots=True, kw_only=True)
class LeaderView:
    """A serving leader, as its agent published it."""

    name: str
    address: Address
    epoch: int
    """Number of the leadership. It only grows."""
    replid: str
    """Of the primary: who answers at ``address`` with another one is not this leader."""
    wait: int
    """A write that ``WAIT wait`` confirmed is never lost."""
    voters: tuple[str, ...]

    @classmethod
    def of(cls, leader: Leader) -> LeaderView:
        """The part of the znode that clients need."""
        return cls(
            name=leader.name,
            address=leader.address,
            epoch=leader.epoch,
            replid=leader.replid,
            wait=leader.wait,
            voters=leader.voters,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ObserverStatus:
    """The observer's whole view at one moment."""

    state: ObserverState
    since_s: float
    """When this state began, on CLOCK_BOOTTIME."""
    reason: str
    """Why it is so, in one sentence."""
    leader: LeaderView | None
    """Set if and only if the state is SERVING."""
    last_leader: LeaderView | None
    """The latest leader that was seen serving, if any."""

    @property
    def for_s(self) -> float:
        """How long this state has lasted."""
        return max(0.0, boottime_s() - self.since_s)
