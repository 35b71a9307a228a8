"""P1 and its lemma: who accepts writes, that only the one that serves does, and that it gives way in time.

A part of the checker, which it asks for everything else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.sim.excuses import GRACE_S
from tests.sim.guard import FENCE_ANSWER_S
from tests.sim.world import Violation

if TYPE_CHECKING:
    from tests.sim.checker import Checker, Serving
    from tests.sim.redis import SimRedis

OVERDUE_S = FENCE_ANSWER_S + 0.03
"""How long behind its guard's deadline a Redis may accept writes: the alarm, two local messages, the wait for an answer
and the SIGKILL.
"""

BY_HAND = "deleted by hand"
"""The label of an operator's transaction."""


class OneWriter:
    """``writable``: the servers that accept writes at this moment, by member."""

    def __init__(self, checker: Checker) -> None:
        self.checker = checker
        self.world = checker.world
        self.excuses = checker.excuses
        self.writable: dict[str, SimRedis] = {}
        self.trusts_clocks = True
        """False where clocks are beyond what is assumed: frozen followers alone are to end the old one's writes, which
        may be later than the session's end.
        """
        self._looking_again = False
        self._deadlines: dict[str, float] = {}
        """By run id of a Redis: the latest deadline of its guard, which will be looked at."""

    def changed(self, redis: SimRedis) -> None:
        """Something that decides whether it accepts writes has changed."""
        name = redis.site.name
        was = self.writable.get(name) is redis
        if redis.writable == was:
            return
        if was:
            del self.writable[name]
            if self.world.tracing:
                self.world.log(f"{name}.redis", "no longer accepts writes")
            return
        self.writable[name] = redis
        if self.world.tracing:
            self.world.log(f"{name}.redis", f"ACCEPTS WRITES replid={redis.replid[:6]} offset={redis.offset}")
        self._begins(name, redis)

    def _begins(self, name: str, redis: SimRedis) -> None:
        self.world.count("invariant", "one writer")
        if len(self.writable) > 1:
            self._several()
        self.world.count("invariant", "process")
        serving = self.checker.serving
        if serving is None or serving.redis is not redis or serving.leader.replid != redis.replid:
            if not self.excuses.excused(name):
                raise Violation(
                    "process", f"{name} accepts writes in a process or with a replid that was never published"
                )
            self.checker.has_confirmed_of_its_time(redis)
            return
        self.world.count("invariant", "guard")
        guard = redis.site.guard
        if guard is None or not guard.watches:
            raise Violation("guard", f"{name} accepts writes, and its guard is not armed")
        self.checker.has_confirmed(redis, "accepts writes")

    def _several(self) -> None:
        """All but the one that serves must be excused; that excuse ends soon."""
        self.world.count("invariant", "one writer (several, all but one excused)")
        serving = self.checker.serving.redis if self.checker.serving is not None else None
        blamed = [
            name for name, redis in self.writable.items() if redis is not serving and not self.excuses.excused(name)
        ]
        if len(blamed) > (0 if serving in self.writable.values() else 1):
            raise Violation("one writer", f"{sorted(self.writable)} accept writes at the same moment")
        if not self._looking_again:
            self._looking_again = True
            self.world.after(0.01, self._look_again)

    def _look_again(self) -> None:
        self._looking_again = False
        if len(self.writable) > 1:
            self._several()

    # -- the lemma --------------------------------------------------------------------------------------------------

    def leader_goes(self, serving: Serving, label: str) -> None:
        """The znode of the serving epoch goes, or a later epoch is claimed."""
        redis = serving.redis
        if redis is None or label == BY_HAND or not self.trusts_clocks:
            return
        self.world.count("invariant", "gives way")
        name = serving.leader.name
        if self.writable.get(name) is not redis:
            return
        if self.excuses.excused(name):
            self.world.count("invariant", f"gives way ({self.excuses.excuse(name)})")
            return
        raise Violation("gives way", f"[{label}] ends epoch {serving.leader.epoch}, and {name} still accepts writes")

    def armed(self, redis: SimRedis, until: float) -> None:
        """Its guard is to fence it then, by its host's clock."""
        watched = redis.run_id in self._deadlines
        self._deadlines[redis.run_id] = until
        if not watched:
            self.world.at(redis.process.clock.true(until) + OVERDUE_S, self._overdue, redis, until)

    def _overdue(self, redis: SimRedis, until: float) -> None:
        latest = self._deadlines.pop(redis.run_id)
        if not redis.process.alive:
            return
        if latest > until:
            self.armed(redis, latest)
            return
        if self.excuses.guard_stands_still(redis.site):
            # It cannot even hear that the lease is longer by now. Until then the agent alone is held to the lease.
            self._deadlines[redis.run_id] = until
            self.world.after(GRACE_S, self._overdue, redis, until)
            return
        self.world.count("invariant", "guard (its deadline)")
        if redis.writable and not self.excuses.excused(redis.site.name):
            raise Violation("guard", f"{redis.site.name} accepts writes {OVERDUE_S:g} s past its guard's deadline")
