"""The agent's own, shorter belief in its ZooKeeper session."""

from __future__ import annotations

from bisect import bisect_right, insort
from math import inf

_BASES_PER_TICK = 16


class Lease:
    """When our proof of the session ends.

    An acknowledged write proves that the ensemble heard us, but it does not itself push out the session's expiry: the
    ZooKeeper server that we are connected to may relay touched sessions to its leader up to a tick later. What has
    certainly arrived is the newest acknowledged write that was sent a whole tick before another acknowledged one.
    Hence ``until = when that was sent + negotiated timeout - fence budget``. Stamps are of sending, not of answering.

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
        self._tick_s = tick_s
        self._fence_budget_s = fence_budget_s
        self._worth_s = 0.0
        self._base = -inf
        self._newest = -inf
        self._later: list[float] = []
        """Acknowledged stamps after the base, sorted: the bases to come."""

    def opened(self, *, timeout_s: float, sent_at: float) -> None:
        """A new session: its creation, sent at ``sent_at``, is the first proof. ``timeout_s`` is the negotiated one."""
        self._worth_s = timeout_s - self._fence_budget_s
        self._base = self._newest = sent_at
        self._later.clear()

    def acknowledged(self, sent_at: float) -> None:
        """A committed write, sent at ``sent_at``, was acknowledged. Stamps arrive in any order."""
        if self._base == -inf or sent_at <= self._base:
            return
        self._newest = max(self._newest, sent_at)
        self._remember(sent_at)
        proved = bisect_right(self._later, self._newest - self._tick_s)
        if proved:
            self._base = self._later[proved - 1]
            del self._later[:proved]

    def _remember(self, sent_at: float) -> None:
        """Keep a stamp, unless another one is so near that it would gain nothing: that bounds how many there are."""
        near_s = self._tick_s / _BASES_PER_TICK
        place = bisect_right(self._later, sent_at)
        if place and sent_at - self._later[place - 1] < near_s:
            return
        if place < len(self._later) and self._later[place] - sent_at < near_s:
            return
        insort(self._later, sent_at)

    def closed(self) -> None:
        """No session: nothing is proved."""
        self._base = self._newest = -inf
        self._later.clear()

    @property
    def until(self) -> float:
        """End of the lease; -inf without a session."""
        return self._base + self._worth_s

    def valid(self, now: float) -> bool:
        """Whether the session is still proved at ``now``."""
        return now < self.until
