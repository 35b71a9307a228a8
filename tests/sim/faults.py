"""Single faults: of processes, the network, ZooKeeper, disks, and by people's hands."""

from __future__ import annotations

from typing import TYPE_CHECKING

from redis_agent.replication import Address
from tests.sim.world import Link, both
from tests.sim.zk_faults import ZooKeeperFaults

if TYPE_CHECKING:
    from tests.sim.agent import Agent, Member
    from tests.sim.cluster import Cluster
    from tests.sim.process import Process
    from tests.sim.redis import SimRedis

FENCE_TIME_S = 0.3
"""With short pauses only: how long before the end of its lease a stopped agent is continued, to fence by itself."""


class Faults(ZooKeeperFaults):
    """Each method breaks one thing and sees to it that it is mended. ``long_pauses``: stop agents past their lease."""

    def __init__(self, cluster: Cluster, *, long_pauses: bool) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.net = cluster.net
        self.long_pauses = long_pauses
        self.over = False
        self.busy: dict[str, Agent | None] = {}  # members whose agent is stopped, or that are frozen

    def _log(self, text: str) -> None:
        if self.world.tracing:
            self.world.log("nemesis", f"*** {text}")

    # -- choices ----------------------------------------------------------------------------------------------------

    def _member(self, *, prefer_leader: float = 0.4) -> Member:
        members = list(self.cluster.members.values())
        leader = self.cluster.leader()
        if leader is not None and self.world.chance(prefer_leader):
            return self.cluster.members[leader.name]
        return self.world.rng.choice(members)

    def _time(self, *choices: tuple[float, float]) -> float:
        low, high = self.world.rng.choice(choices)
        return self.world.uniform(low, high)

    # -- processes --------------------------------------------------------------------------------------------------

    def _restart(self, member: Member) -> None:
        if member.agent is None:
            self._log(f"starts {member.name} again")
            member.start()

    def crash_redis(self, member: Member | None = None) -> None:
        member = member or self._member()
        redis = member.site.redis
        if redis is not None:
            self._log(f"kills the Redis of {member.name}")
            redis.kill()
            if self.world.chance(0.15):
                member.site.disk.wipe()

    def crash_leader_redis(self) -> None:
        self.crash_redis(self._member(prefer_leader=1.0))

    def crash_agent(self, member: Member | None = None, down_s: float | None = None) -> None:
        """SIGKILL to the agent alone."""
        member = member or self._member()
        if member.agent is None:
            return
        self._log(f"kills the agent of {member.name}")
        member.kill_agent()
        down = self._time((0.05, 1.0), (1.0, 10.0)) if down_s is None else down_s
        self.world.after(down, self._restart, member)

    def crash_host(self, member: Member | None = None, down_s: float | None = None) -> None:
        member = member or self._member()
        if member.agent is None:
            return
        self._log(f"the host of {member.name} loses its power")
        member.crash()
        if self.world.chance(0.1):
            member.site.disk.wipe()
        down = self._time((0.05, 1.0), (1.0, 10.0)) if down_s is None else down_s
        self.world.after(down, self._restart, member)

    def power_loss(self) -> None:
        """Everybody at once, most of the time."""
        if self.world.chance(0.5):
            return
        for member in self.cluster.members.values():
            self.crash_host(member, self._time((0.1, 8.0)))

    def crash_all_agents(self) -> None:
        """One bad setting, and every agent ends: no Redis may."""
        for member in self.cluster.members.values():
            self.crash_agent(member, self._time((0.1, 8.0)))

    def hang_redis(self, member: Member | None = None, for_s: float | None = None) -> None:
        redis = (member or self._member()).site.redis
        if redis is not None:
            for_s = self._time((0.01, 0.3), (0.3, 5.0)) if for_s is None else for_s
            self._log(f"stops the Redis of {redis.site.name} for {for_s:.3f} s")
            redis.process.stop()
            self.world.after(for_s, redis.process.cont)

    def hang_in_kernel(self, member: Member | None = None, for_s: float | None = None) -> None:
        """On a disk that hangs, or giving back its memory: no answer, and SIGKILL ends it only when that is over."""
        redis = (member or self._member()).site.redis
        if redis is not None and redis.process.alive:
            for_s = self._time((0.1, 3.0), (3.0, 30.0)) if for_s is None else for_s
            self._log(f"the Redis of {redis.site.name} hangs in the kernel for {for_s:.3f} s")
            redis.dies_late_s = for_s
            redis.process.stop()
            self.world.after(for_s, self._leaves_kernel, redis)

    def _leaves_kernel(self, redis: SimRedis) -> None:
        redis.dies_late_s = 0.0
        if redis.process.alive:
            redis.process.cont()
        else:
            redis.kill(at_once=True)

    def pause_agent(self, member: Member | None = None, for_s: float | None = None) -> None:
        """SIGSTOP."""
        member = member or self._member()
        agent = member.agent
        if agent is None or member.name in self.busy:
            return
        for_s = self._time((0.01, 0.5), (0.5, 12.0)) if for_s is None else for_s
        if not self.long_pauses and self._may_serve(member):
            for_s = min(for_s, agent.core.snapshot().lease_until - agent.process.now - FENCE_TIME_S)
            if for_s <= 0.0:
                return
        self._log(f"stops the agent of {member.name} for {for_s:.3f} s")
        self.busy[member.name] = agent
        agent.process.stop()

        def resume() -> None:
            if self.busy.get(member.name) is agent:
                del self.busy[member.name]
            if agent.process.stopped:
                self._log(f"continues the agent of {member.name}")
                agent.process.cont()

        self.world.after(for_s, resume)

    def _may_serve(self, member: Member) -> bool:
        """Its Redis is a primary, or is about to be one."""
        leader, redis = self.cluster.leader(), member.site.redis
        return (leader is not None and leader.name == member.name) or (redis is not None and redis.is_primary)

    def kill_guard(self, member: Member | None = None) -> None:
        member = member or self._member()
        if member.site.guard is not None:
            self._log(f"kills the guard of {member.name}")
            member.site.guard.kill()

    def stop_guard(self, member: Member | None = None, for_s: float | None = None) -> None:
        guard = (member or self._member()).site.guard
        if guard is not None:
            for_s = self._time((0.01, 0.3), (0.3, 12.0)) if for_s is None else for_s
            self._log(f"stops the {guard.process.name} for {for_s:.3f} s")
            guard.process.stop()
            self.world.after(for_s, guard.process.cont)

    def freeze_host(self) -> None:
        """Agent, guard and Redis are stopped at once, and continued in any order, a moment apart."""
        member = self._member(prefer_leader=0.7)
        if member.name in self.busy:
            return
        for_s = self._time((0.01, 0.5), (0.5, 15.0))
        self._log(f"freezes the host of {member.name} for {for_s:.3f} s")
        self.busy[member.name] = member.agent
        member.freeze()
        self.world.after(for_s, self._thaw, member, member.processes())

    def freeze_some(self) -> None:
        """Some of the three processes of a host hang together, or the agent is killed while others hang."""
        member = self._member(prefer_leader=0.7)
        agent = member.agent
        if agent is None or member.name in self.busy:
            return
        for_s = self._time((0.01, 0.5), (0.5, 15.0))
        chosen = [process for process in member.processes() if self.world.chance(0.6)]
        names = ", ".join(process.name for process in chosen)
        self._log(f"stops of {member.name} for {for_s:.3f} s: {names or 'nothing'}")
        self.busy[member.name] = agent
        for process in chosen:
            process.stop()
        if self.world.chance(0.3):
            self.world.after(self.world.uniform(0.0, 0.02), self._kill_this, agent)
        self.world.after(for_s, self._thaw, member, chosen)

    def _kill_this(self, agent: Agent) -> None:
        if agent.member.agent is agent:
            self.crash_agent(agent.member)

    def _thaw(self, member: Member, frozen: list[Process]) -> None:
        self._log(f"continues what was stopped of {member.name}")
        self.busy.pop(member.name, None)
        self.world.rng.shuffle(frozen)
        delay_s = 0.0
        for process in frozen:
            self.world.after(delay_s, process.cont)
            delay_s += self.world.uniform(0.0, 0.004)

    def stop_agent(self, member: Member | None = None) -> None:
        member = member or self._member()
        if member.agent is not None:
            self._log(f"SIGTERM to the agent of {member.name}")
            member.stop()
            if self.world.chance(0.1):
                self.world.after(self.world.uniform(0.0, 0.5), member.stop)

    def upgrade_agent(self, member: Member | None = None) -> None:
        member = member or self._member()
        if member.agent is not None:
            self._log(f"SIGUSR2 to the agent of {member.name}")
            member.upgrade()

    def rolling_restart(self) -> None:
        for number, member in enumerate(self.cluster.members.values()):
            self.world.after(4.0 * number, self._roll, member)

    def _roll(self, member: Member) -> None:
        if not self.over:
            self.stop_agent(member)

    # -- disks ------------------------------------------------------------------------------------------------------

    def lose_state(self) -> None:
        """A state file is lost, or is an old one, when an agent is started again; Redis mostly lives on."""
        member = self._member(prefer_leader=0.3)
        if self.world.chance(0.2):
            self.crash_host(member)
        else:
            self.crash_agent(member)
        if self.world.chance(0.5):
            self._log(f"the state file of {member.name} is lost")
            member.lose_state()
        else:
            self._log(f"the state file of {member.name} is an old one")
            member.age_state()

    def disk_full(self) -> None:
        redis = self._member(prefer_leader=0.7).site.redis
        if redis is not None and not redis.sick:
            for_s = self._time((0.1, 3.0), (3.0, 15.0))
            self._log(f"the disk of {redis.site.name} is full for {for_s:.3f} s")
            redis.fall_ill("MISCONF Errors writing to the AOF file: No space left on device")
            self.world.after(for_s, redis.fall_ill, "")

    # -- people's hands ---------------------------------------------------------------------------------------------

    def order_switchover(self) -> None:
        to = "" if self.world.chance(0.4) else self._member(prefer_leader=0.1).name
        self._log(f"orders a switchover to {to or 'anybody'}")
        self.cluster.order_switchover(to, expires_s=self.world.rng.choice((5.0, 30.0)))

    def load_fails(self) -> None:
        """The next full resync of somebody can't be loaded."""
        redis = self._member(prefer_leader=0.0).site.redis
        if redis is not None and not redis.is_primary:
            self._log(f"the next full resync of {redis.site.name} will fail to load")
            redis.load_fails = True

    def meddle(self) -> None:
        """Somebody promotes a follower by hand, or points it at a host that is not there.

        Not at another member: that one's data may be older, and a hand that replaces data is beyond any promise.
        """
        member = self._member(prefer_leader=0.0)
        leader, redis = self.cluster.leader(), member.site.redis
        if leader is None or leader.name == member.name or redis is None or redis.is_primary or redis.loading:
            return
        if self.world.chance(0.5):
            self._log(f"somebody promotes the Redis of {member.name}")
            self.cluster.checker.tampered(redis)
            redis.replicaof_no_one()
        else:
            self._log(f"somebody points the Redis of {member.name} elsewhere")
            redis.replicaof(Address("elsewhere", 6379))

    # -- network ----------------------------------------------------------------------------------------------------

    def _cut(self, links: list[Link], for_s: float, what: str) -> None:
        self._log(f"{what} for {for_s:.3f} s")
        cut = self.net.cut(links)
        self.world.after(for_s, self._mend, cut, what)

    def _mend(self, links: tuple[Link, ...], what: str) -> None:
        if not self.over:
            self._log(f"healed: {what}")
            self.net.heal(links)

    def _cut_s(self, given_s: float | None) -> float:
        return self._time((0.01, 3.0), (3.0, 15.0)) if given_s is None else given_s

    def cut_zookeeper(self, member: Member | None = None, for_s: float | None = None) -> None:
        name = (member or self._member()).name
        links = both([name], self.cluster.ensemble.names)
        self._cut(links, self._cut_s(for_s), f"cuts {name} off from ZooKeeper")

    def cut_replies(self, member: Member | None = None, for_s: float | None = None) -> None:
        name = (member or self._member()).name
        links = [(server, name) for server in self.cluster.ensemble.names]
        self._cut(links, self._cut_s(for_s), f"ZooKeeper's replies do not reach {name}")

    def _hosts(self) -> list[str]:
        return [*self.cluster.members, *(client.name for client in self.cluster.clients)]

    def isolate_host(self, member: Member | None = None, for_s: float | None = None) -> None:
        name = (member or self._member()).name
        rest = [host for host in (*self._hosts(), *self.cluster.ensemble.names) if host != name]
        self._cut(both([name], rest), self._cut_s(for_s), f"isolates {name}")

    def partition(self) -> None:
        """Members and clients fall in two parts; ZooKeeper still reaches them all, or one side only."""
        hosts = self._hosts()
        side = [host for host in hosts if self.world.chance(0.5)]
        rest = [host for host in hosts if host not in side]
        links = both(side, rest)
        without_zookeeper = self.world.chance(0.4)
        if without_zookeeper:
            links += both(side, list(self.cluster.ensemble.names))
        more = " and from ZooKeeper" if without_zookeeper else ""
        self._cut(links, self._time((0.05, 3.0), (3.0, 15.0)), f"cuts {side} off from {rest}{more}")

    def slow(self) -> None:
        name = self.world.rng.choice([*self._hosts(), *self.cluster.ensemble.names])
        factor = self.world.rng.choice((10.0, 50.0, 300.0))
        self._log(f"messages of {name} take {factor:g} times as long")
        self.net.slow[name] = factor
        self.world.after(self._time((0.1, 2.0), (2.0, 8.0)), self.net.slow.pop, name, None)

    # -- ZooKeeper --------------------------------------------------------------------------------------------------

    def delete_leader(self) -> None:
        if self.cluster.leader() is not None:
            self._log("deletes leader by hand")
            self.cluster.delete_leader()
