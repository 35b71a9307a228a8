"""Who was able to fence a Redis, and since when: what the design does not promise is counted, not condemned.

A host whose guard *and* agent are stopped has nobody left to fence its Redis. Once either of them runs again it is to
be fenced within `GRACE_S`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tests.sim.world import World

if TYPE_CHECKING:
    from tests.sim.agent import Member

GRACE_S = 0.2
"""The agent's soft fence, its hard fence, and what the threads and the local pipes take."""


class Excuses:
    """Looks at the processes of the members that `member_of` knows."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.member_of: Callable[[str], Member | None] = lambda _name: None

    def excused(self, name: str) -> bool:
        """For some time up to now neither the guard nor the agent of this member could do anything."""
        member = self.member_of(name)
        if member is None:
            return False
        before = self.world.now - GRACE_S
        guard = member.site.guard
        if guard is None or (not guard.process.stopped and guard.process.running_since <= before):
            return False
        agent = member.agent
        if agent is None or agent.process.stopped or not agent.redis.is_up:
            return True
        return max(agent.process.running_since, agent.redis.up_since or 0.0) > before
