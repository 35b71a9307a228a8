"""Breaks things, and mends them. Which kinds of fault occur, and how often, differs from seed to seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from redis_agent.replication import Address
from tests.sim.world import Link, both

if TYPE_CHECKING:
    from tests.sim.agent import Member
    from tests.sim.cluster import Cluster

FENCE_TIME_S = 0.3
"""How long before the end of its lease a stopped agent is continued: it has to fence its Redis by itself."""


class Nemesis:
    """``long_pauses``: stop agents past their lease, too (needs a guard process, or promise 1 is broken)."""

    def __init__(self, cluster: Cluster, *, long_pauses: bool = False) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.net = cluster.net
        self.long_pauses = long_pauses
        self.over = False
        self.busy: set[str] = set()  # agents that are stopped, or on their way out
        rng = self.world.rng
        kinds: dict[str, Callable[[], None]] = {
            "crash redis": self.crash_redis,
            "crash leader's redis": self.crash_leader_redis,
            "crash agent": self.crash_agent,
            "power loss": self.power_loss,
            "cut zookeeper": self.cut_zookeeper,
            "cut zookeeper's replies": self.cut_replies,
            "isolate host": self.isolate_host,
            "partition": self.partition,
            "hang redis": self.hang_redis,
            "pause agent": self.pause_agent,
            "slow": self.slow,
            "stop agent": self.stop_agent,
            "rolling restart": self.rolling_restart,
            "delete leader": self.delete_leader,
            "zookeeper server dies": self.crash_server,
            "zookeeper server cut off": self.cut_server,
            "zookeeper down": self.zookeeper_down,
            "load fails": self.load_fails,
            "hand": self.meddle,
        }
        self.kinds = {name: fn for name, fn in kinds.items() if rng.random() < 0.5} or kinds
        self.weights = [rng.choice((1, 1, 2, 4)) for _ in self.kinds]
        self.mean_s = rng.choice((0.5, 1.5, 3.0, 6.0))
        for member in cluster.members.values():
            member.on_exit.append(self._exited)

    def start(self) -> None:
        self.world.after(self.world.rng.expovariate(1 / self.mean_s), self._strike)

    def _strike(self) -> None:
        if self.over:
            return
        name = self.world.rng.choices(list(self.kinds), self.weights)[0]
        self.kinds[name]()
        self.start()

    def _log(self, text: str) -> None:
        if self.world.tracing:
            self.world.log("nemesis", f"*** {text}")

    def heal(self) -> None:
        """Stop, and mend everything."""
        self.over = True
        self._log("heals everything")
        self.net.heal_all()
        ensemble = self.cluster.ensemble
        ensemble.start()
        for server in ensemble.servers:
            server.rejoin()
        for member in self.cluster.members.values():
            if member.agent is not None:
                member.agent.process.cont()
            redis = member.site.redis
            if redis is not None:
                redis.load_fails = False
                redis.process.cont()
            member.start()

    def _exited(self, member: Member, code: int) -> None:
        """Init starts an agent again that ended by itself, or that was stopped."""
        self._log(f"{member.name} exited with {code}")
        self.busy.discard(member.name)
        self.world.after(self.world.uniform(0.1, 3.0), self._restart, member)

    def _restart(self, member: Member) -> None:
        if member.agent is None:
            self._log(f"starts {member.name} again")
            member.start()

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
        member = member or self._member()
        if member.agent is None or member.name in self.busy:
            return
        self._log(f"kills the agent of {member.name}")
        member.kill()
        if self.world.chance(0.1):
            member.site.disk.wipe()
        down = self._time((0.05, 1.0), (1.0, 10.0)) if down_s is None else down_s
        self.world.after(down, self._restart, member)

    def power_loss(self) -> None:
        """Everybody at once, most of the time."""
        if self.world.chance(0.5):
            return
        for member in self.cluster.members.values():
            self.crash_agent(member, self._time((0.1, 8.0)))

    def hang_redis(self) -> None:
        redis = self._member().site.redis
        if redis is not None:
            for_s = self._time((0.01, 0.3), (0.3, 5.0))
            self._log(f"stops the Redis of {redis.site.name} for {for_s:.3f} s")
            redis.process.stop()
            self.world.after(for_s, redis.process.cont)

    def pause_agent(self) -> None:
        """SIGSTOP. One that may have to fence is continued before its lease ends, as long as there is no guard."""
        member = self._member()
        agent = member.agent
        if agent is None or member.name in self.busy:
            return
        for_s = self._time((0.01, 0.5), (0.5, 12.0))
        if self._may_serve(member) and not self.long_pauses:
            for_s = min(for_s, agent.core.snapshot().lease_until - self.world.now - FENCE_TIME_S)
            if for_s <= 0.0:
                return
        self._log(f"stops the agent of {member.name} for {for_s:.3f} s")
        self.busy.add(member.name)
        agent.process.stop()

        def resume() -> None:
            self._log(f"continues the agent of {member.name}")
            self.busy.discard(member.name)
            agent.process.cont()

        self.world.after(for_s, resume)

    def _may_serve(self, member: Member) -> bool:
        """Its Redis is a primary, or is about to be one."""
        leader, redis = self.cluster.leader(), member.site.redis
        return (leader is not None and leader.name == member.name) or (redis is not None and redis.is_primary)

    def stop_agent(self, member: Member | None = None) -> None:
        member = member or self._member()
        if member.agent is not None and member.name not in self.busy:
            self._log(f"SIGTERM to the agent of {member.name}")
            member.stop()
            if self.world.chance(0.1):
                self.world.after(self.world.uniform(0.0, 0.5), member.stop)

    def rolling_restart(self) -> None:
        for number, member in enumerate(self.cluster.members.values()):
            self.world.after(4.0 * number, self._roll, member)

    def _roll(self, member: Member) -> None:
        if not self.over:
            self.stop_agent(member)

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

    def cut_zookeeper(self) -> None:
        name = self._member().name
        links = both([name], self.cluster.ensemble.names)
        self._cut(links, self._time((0.01, 3.0), (3.0, 15.0)), f"cuts {name} off from ZooKeeper")

    def cut_replies(self) -> None:
        name = self._member().name
        links = [(server, name) for server in self.cluster.ensemble.names]
        self._cut(links, self._time((0.01, 3.0), (3.0, 15.0)), f"ZooKeeper's replies do not reach {name}")

    def _hosts(self) -> list[str]:
        return [*self.cluster.members, *(client.name for client in self.cluster.clients)]

    def isolate_host(self) -> None:
        name = self._member().name
        rest = [host for host in (*self._hosts(), *self.cluster.ensemble.names) if host != name]
        self._cut(both([name], rest), self._time((0.05, 3.0), (3.0, 15.0)), f"isolates {name}")

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

    def crash_server(self) -> None:
        server = self.world.rng.choice(self.cluster.ensemble.servers[1:])
        if server.up:
            self._log(f"kills {server.name}")
            server.crash()
            self.world.after(self._time((0.1, 5.0)), server.restart)

    def cut_server(self) -> None:
        server = self.world.rng.choice(self.cluster.ensemble.servers[1:])
        self._log(f"cuts {server.name} off from ZooKeeper's leader")
        server.cut_off()
        self.world.after(self._time((0.1, 2.0), (2.0, 8.0)), server.rejoin)

    def zookeeper_down(self) -> None:
        ensemble = self.cluster.ensemble
        if ensemble.up:
            for_s = self._time((0.1, 0.5), (0.5, 12.0))
            self._log(f"ZooKeeper has no quorum for {for_s:.3f} s")
            ensemble.stop()
            self.world.after(for_s, ensemble.start)
