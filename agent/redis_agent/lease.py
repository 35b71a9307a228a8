"""The agent's own, shorter belief in its ZooKeeper session."""

from __future__ import annotations

from collections import deque
from math import inf

RELAY_SHARE = 5 / 8
"""ZooKeeper's leader asks its followers for touched sessions every half tick; it may be a little late."""

PROOF_HEARTBEATS = 3

_BASES_PER_TICK = 16
_MAX_ANSWERED = 64


class Lease:
    """When our proof of the session ends.

    An acknowledged write proves that the ensemble heard us, but it does not itself push out the session's expiry: the
    ZooKeeper server that we are connected to tells its leader of touched sessions only when that asks, every half tick.
    So three acknowledged writes prove one of them, the first, to have counted:

    * the second was sent half a tick or more after the first one was *answered*, so when it was decided the leader had
      asked since; and its answer came behind that question, so our server has replied by then;
    * the third was sent after the second one was answered, so it got to the leader behind that reply.

    Hence ``until = when the first was sent + negotiated timeout - fence budget``. That writes were *sent* a tick apart
    would not do: one that was long on its way arrives behind the leader's last question before the next one.

    The creation of a session is carried out by ZooKeeper's leader itself: it is the first base.

    Args:
        tick_s: ZooKeeper's tickTime.
        fence_budget_s: what is kept back for fencing.

    Raises:
        ValueError: one of them is negative.
    """

    def __init__(self, *, tick_s: float, fence_budget_s: float) -> None:
        if not (tick_s >= 0.0 and fence_budget_s >= 0.0):
            raise ValueError(f"lease: tick {tick_s} s and fence budget {fence_budget_s} s must not be negative")
        self._relay_s = tick_s * RELAY_SHARE
        self._near_s = tick_s / _BASES_PER_TICK
        self._fence_budget_s = fence_budget_s
        self._worth_s = 0.0
        self._base = -inf
        self._second = -inf
        """When the newest write was sent that was answered before another acknowledged one was sent."""
        self._answered: deque[tuple[float, float]] = deque(maxlen=_MAX_ANSWERED)
        """(sent, answered) of acknowledged writes sent after the base, in the order of the answers."""

    def opened(self, *, timeout_s: float, sent_at: float) -> None:
        """A new session: its creation, sent at ``sent_at``, is the first proof. ``timeout_s`` is the negotiated one."""
        self.closed()
        self._worth_s = timeout_s - self._fence_budget_s
        self._base = sent_at

    def acknowledged(self, sent_at: float, answered_at: float) -> None:
        """A committed write, sent at ``sent_at``, was acknowledged, which we saw at ``answered_at``."""
        if self._base == -inf or sent_at <= self._base:
            return
        seconds = (sent for sent, answered in self._answered if answered <= sent_at)
        self._second = max(self._second, max(seconds, default=-inf))
        latest = self._second - self._relay_s
        self._base = max(
            self._base, max((sent for sent, answered in self._answered if answered <= latest), default=-inf)
        )
        while self._answered and self._answered[0][0] <= self._base:
            self._answered.popleft()
        # One that is near the last one would gain nothing.
        if not self._answered or abs(sent_at - self._answered[-1][0]) >= self._near_s:
            self._answered.append((sent_at, answered_at))

    def closed(self) -> None:
        """No session: nothing is proved."""
        self._base = self._second = -inf
        self._answered.clear()

    @property
    def until(self) -> float:
        """End of the lease; -inf without a session."""
        return self._base + self._worth_s

    def valid(self, now: float) -> bool:
        """Whether the session is still proved at ``now``."""
        return now < self.until


def steady_lease(*, timeout_s: float, tick_s: float, heartbeat_s: float, fence_budget_s: float) -> tuple[float, str]:
    """The steady lease: what a leader still has, at the shortest, when its next heartbeat is due to be acknowledged.

    A heartbeat proves the session only once two later ones are acknowledged, see `Lease`: servers tell each other of
    live sessions once in half a tick. The newest proof is as old as that and two heartbeats when it becomes one, and
    serves until the next heartbeat. Zero or less: even a leader for whom all goes well would have to fence.

    Args:
        timeout_s: the session's, as asked for or, which may be less, as granted.
        tick_s: ZooKeeper's tickTime.
        heartbeat_s: how often the leader writes.
        fence_budget_s: what is kept back for fencing.

    Returns:
        Its seconds, and the arithmetic for people.
    """
    left_s = timeout_s - fence_budget_s - RELAY_SHARE * tick_s - PROOF_HEARTBEATS * heartbeat_s
    arithmetic = (
        f"session_timeout_s {timeout_s:g} - fence_budget_s {fence_budget_s:g} - {RELAY_SHARE:g} x tick_s {tick_s:g} "
        f"- {PROOF_HEARTBEATS} x heartbeat_s {heartbeat_s:g} = {left_s:.3g} s"
    )
    return left_s, arithmetic
