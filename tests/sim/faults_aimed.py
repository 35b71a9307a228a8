"""Faults of clocks and disks, one-way cuts, several faults at once, and ones that strike at a command of a core."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.sim.faults import Faults

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis_agent.messages import Command
    from tests.sim.agent import Agent, Member
    from tests.sim.redis import SimRedis

TRAP_LIFE_S = 20.0
"""A trap that nobody has stepped on is taken away."""


class AimedFaults(Faults):
    """On top of `Faults`: what needs to know who does what."""

    # -- clocks -----------------------------------------------------------------------------------------------------

    def jump_clock(self, member: Member | None = None) -> None:
        """The wall clock of a host is set, by a second or by hours, to the past or to the future."""
        member = member or self._member()
        by_s = self._time((0.5, 3.0), (3.0, 90.0), (90.0, 20_000.0)) * self.world.rng.choice((-1.0, 1.0))
        self._log(f"sets the wall clock of {member.name} by {by_s:+.1f} s")
        member.site.clock.wall_offset_s += by_s
        redis = member.site.redis
        if redis is not None:
            redis.process.run(redis.clock_set)
        if member.agent is not None:
            member.agent.clock_set()

    # -- disks ------------------------------------------------------------------------------------------------------

    def slow_disk(self, member: Member | None = None) -> None:
        """State files and dumps take seconds; a server that waits for its AOF's fsync answers nobody meanwhile."""
        member = member or self._member()
        if member.site.disk.slow_s:
            return
        for_s = self._time((0.5, 3.0), (3.0, 15.0))
        member.site.disk.slow_s = slow_s = self._time((0.02, 0.3), (0.3, 4.0))
        self._log(f"the disk of {member.name} takes up to {slow_s:.3f} s, for {for_s:.3f} s")
        self.world.after(for_s, self.mend_disk, member)
        self._stall(member)

    def mend_disk(self, member: Member) -> None:
        member.site.disk.slow_s = 0.0

    def _stall(self, member: Member) -> None:
        disk, redis = member.site.disk, member.site.redis
        if not disk.slow_s or self.over:
            return
        if redis is not None and disk.mode == "aof" and not redis.process.stopped:
            redis.process.stop()
            self.world.after(self.world.uniform(0.0, disk.slow_s), self._stalled, redis)
        self.world.after(self.world.uniform(0.5, 1.5) + disk.slow_s, self._stall, member)

    def _stalled(self, redis: SimRedis) -> None:
        redis.process.cont()

    # -- network ----------------------------------------------------------------------------------------------------

    def _parties(self) -> list[str]:
        return [*self._hosts(), *self.cluster.ensemble.names]

    def cut_one_way(self, for_s: float | None = None) -> None:
        """What one party sends does not reach another one, or nobody."""
        source = self._member().name if self.world.chance(0.5) else self.world.rng.choice(self._parties())
        others = [name for name in self._parties() if name != source]
        targets = others if self.world.chance(0.2) else [self.world.rng.choice(others)]
        if self.world.chance(0.5):
            links = [(source, target) for target in targets]
        else:
            links = [(target, source) for target in targets]
        shown = "everybody" if len(targets) > 1 else targets[0]
        way = f"from {source} to {shown}" if links[0][0] == source else f"from {shown} to {source}"
        self._cut(links, self._cut_s(for_s), f"cuts the way {way}")

    def hold_messages(self) -> None:
        """One way is so slow that all that is sent arrives together, when the session is long over."""
        timeout_s = self.cluster.base.session_timeout_s
        self.cut_one_way(self.world.uniform(timeout_s, 2.5 * timeout_s))

    # -- strikes ----------------------------------------------------------------------------------------------------

    def strike(self, member: Member) -> None:
        """Any of the faults that need no preparation."""
        short_s = self._time((0.005, 0.5), (0.5, 12.0))
        strikes: tuple[Callable[[], None], ...] = (
            lambda: self.crash_agent(member),
            lambda: self.pause_agent(member, short_s),
            lambda: self.crash_redis(member),
            lambda: self.hang_redis(member, short_s),
            lambda: self.kill_guard(member),
            lambda: self.stop_guard(member, short_s),
            lambda: self.cut_replies(member, short_s),
            lambda: self.cut_zookeeper(member, short_s),
            lambda: self.isolate_host(member, short_s),
            lambda: self.crash_host(member),
            lambda: self.stop_agent(member),
            lambda: self.jump_clock(member),
            lambda: self.slow_disk(member),
            self.delete_leader,
        )
        self.world.rng.choice(strikes)()

    def _front(self) -> list[Member]:
        """The leader, and whoever is nearest to succeed it."""
        members = list(self.cluster.members.values())
        leader = self.cluster.leader()
        if leader is None:
            return members

        def rank(member: Member) -> tuple[bool, int]:
            redis = member.site.redis
            return member.name != leader.name, -redis.offset if redis is not None else 1

        first = sorted(members, key=rank)[:2]
        if leader.successor:
            first[-1] = self.cluster.members[leader.successor]
        return first

    def several(self) -> None:
        """Two to four faults within a moment, at the leader and its successor."""
        front = self._front()
        for _ in range(self.world.rng.choice((2, 2, 3, 4))):
            member = self.world.rng.choice(front)
            self.world.after(self.world.uniform(0.0, self.world.rng.choice((0.01, 0.5))), self._strike_soon, member)

    def _strike_soon(self, member: Member) -> None:
        if not self.over:
            self.strike(member)

    def strike_at_command(self) -> None:
        """At a boundary of one of the next commands of the leader, or of whoever is nearest to succeed it."""
        member = self.world.rng.choice(self._front())
        if member.trap is not None:
            return
        left = self.world.rng.choice((1, 2, 3, 5, 8, 12, 20))
        before = self.world.chance(0.5)

        def trap(agent: Agent, command: Command, is_before: bool) -> None:
            nonlocal left
            if self.over:
                member.trap = None
                return
            left -= is_before
            if left > 0 or is_before != before:
                return
            member.trap = None
            side = "before" if before else "behind"
            self.world.count("fault", "(at a boundary of a command)")
            self._log(f"strikes {agent.name} {side} its {type(command).__name__}")
            self._strike_here(member)

        def forget() -> None:
            if member.trap is trap:
                member.trap = None

        member.trap = trap
        self.world.after(TRAP_LIFE_S, forget)
        stir = self.world.rng.choice((self.crash_leader_redis, self.order_switchover, self.stop_agent, None, None))
        if stir is not None:
            stir()

    def _strike_here(self, member: Member) -> None:
        """Mostly at the one that was about to act."""
        dice = self.world.rng.random()
        if dice < 0.25:
            self.crash_agent(member)
        elif dice < 0.5:
            self.pause_agent(member, self._time((0.005, 0.5), (0.5, 6.0), (6.0, 14.0)))
        elif dice < 0.6:
            self.crash_host(member)
        elif dice < 0.7:
            self.crash_redis(member)
        else:
            self.strike(self.world.rng.choice(self._front()) if self.world.chance(0.3) else member)
