"""Who was able to fence a Redis, and since when: what the design does not promise is counted, not condemned.

Two cases, kept apart:

* **a host that goes on**: Redis itself was stopped, and so was all that could have fenced it. What lies in its sockets
  is executed until its guard or its agent has run, which is to happen within `GRACE_S` of their continuation.
* **nobody can fence**: Redis runs on while its guard is stopped *and* its agent is stopped or dead. That is more than
  one process that hangs: it is beyond the promise for as long as it lasts, and no longer.

In neither case may anything be confirmed that was executed behind the claim of a later epoch: `Checker.confirm`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.sim.world import World

if TYPE_CHECKING:
    from tests.sim.agent import Member
    from tests.sim.redis_data import Site

GRACE_S = 0.2
"""The agent's soft fence, its hard fence, and what the threads and the local pipes take."""

CONTINUED = "a host that goes on"
NOBODY = "nobody can fence"


class Excuses:
    """Looks at the processes of the members that `member_of` knows."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.member_of: Callable[[str], Member | None] = lambda _name: None

    def excused(self, name: str) -> bool:
        """For some time up to now neither the guard nor the agent of this member could do anything."""
        return bool(self.excuse(name))

    def excuse(self, name: str) -> str:
        """Which of the two cases it is; empty: none."""
        member = self.member_of(name)
        if member is None or not self._helpless(member):
            return ""
        redis = member.site.redis
        if redis is None:
            return ""
        continued = redis.process.stopped or redis.process.running_since > self.world.now - GRACE_S
        return CONTINUED if continued and redis.process.was_stopped else NOBODY

    def _helpless(self, member: Member) -> bool:
        if not self.guard_stands_still(member.site):
            return False
        agent = member.agent
        if agent is None or agent.process.stopped or not agent.redis.is_up:
            return True
        return max(agent.process.running_since, agent.redis.up_since or 0.0) > self.world.now - GRACE_S

    def guard_stands_still(self, site: Site) -> bool:
        """It is stopped, or has only just been continued: it hears and does nothing."""
        guard = site.guard
        if guard is None or not guard.process.was_stopped:
            return False  # One that is new has run since it began.
        return guard.process.stopped or guard.process.running_since > self.world.now - GRACE_S
