"""Faults that are aimed: at the steps of an election, at what a rule protects. Random ones seldom meet those moments.

Each kind sets the scene that some rule was made for, and leaves what happens then to chance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from redis_agent.znodes import LeaderPhase, decode_leader
from tests.sim.faults import Faults
from tests.sim.world import both

if TYPE_CHECKING:
    from tests.sim.agent import Member
    from tests.sim.cluster import Cluster
    from tests.sim.zk_tree import Txn

NEAR_S = (0.0005, 0.003, 0.02, 0.3)
"""How soon behind a step an ambush strikes, at most."""


class Aimed(Faults):
    """Further kinds of fault."""

    def __init__(self, cluster: Cluster, *, long_pauses: bool) -> None:
        super().__init__(cluster, long_pauses=long_pauses)
        self.snares = 0
        self.cradles = 0
        self._grown_up_at = 0.0
        self._watched = (cluster.leader_path, cluster.paths.epoch, cluster.paths.ballots + "/")
        cluster.ensemble.on_commit.append(self._step)
        cluster.ensemble.on_commit.append(self._born)

    def aimed(self) -> dict[str, Callable[[], None]]:
        return {
            "ambush": self.ambush,
            "cut redis": self.cut_redis,
            "cut zookeeper's requests": self.cut_requests,
            "broken connection": self.break_connection,
            "broken redis connections": self.break_redis_connections,
            "straggler": self.straggler,
            "lone leader": self.lone_leader,
            "leader out of reach": self.leader_out_of_reach,
            "late replies": self.late_replies,
            "young leader": self.young_leader,
        }

    def _leader(self) -> Member | None:
        leader = self.cluster.leader()
        return self.cluster.members[leader.name] if leader is not None else None

    # -- links ------------------------------------------------------------------------------------------------------

    def cut_redis(self, member: Member | None = None, for_s: float | None = None) -> None:
        """Its Redis and those of the others don't reach each other; ZooKeeper and the clients reach them all."""
        name = (member or self._member()).name
        others = [other for other in self.cluster.members if other != name]
        self._cut(both([name], others), self._cut_s(for_s), f"cuts the Redis of {name} off from the others")

    def cut_requests(self, member: Member | None = None, for_s: float | None = None) -> None:
        """What it sends to ZooKeeper arrives late; it hears everything."""
        name = (member or self._member()).name
        links = [(name, server) for server in self.cluster.ensemble.names]
        self._cut(links, self._cut_s(for_s), f"the requests of {name} do not reach ZooKeeper")

    def break_connection(self, member: Member | None = None) -> None:
        """Its connection to ZooKeeper is reset: replies are lost, the session lives on."""
        agent = (member or self._member(prefer_leader=0.7)).agent
        if agent is not None:
            self._log(f"resets the ZooKeeper connection of {agent.name}")
            for session in agent._sessions.values():
                session.reset()

    def break_redis_connections(self, member: Member | None = None) -> None:
        """Connections of its Redis are reset, replicas' and clients': what was on its way in either direction is lost,
        whoever was connected comes back.
        """
        redis = (member or self._member(prefer_leader=0.7)).site.redis
        if redis is None:
            return
        self._log(f"resets connections of the Redis of {redis.site.name}")
        links = [*redis.links, *filter(None, (redis.uplink,))]
        for link in links:
            if self.world.chance(0.7):
                link.primary.process.run(link.primary._on_replica_gone, link)
                link.replica.process.run(link.replica._lose_uplink, link)
        for conn in list(redis.clients):
            if self.world.chance(0.7):
                redis.process.run(redis.client_gone, conn)
                conn.client.on_closed(conn)

    # -- scenes -----------------------------------------------------------------------------------------------------

    def straggler(self) -> None:
        """A follower is left behind, and then the leader is lost: positions differ, and only one has everything."""
        leader = self._leader()
        if leader is None or len(self.cluster.members) < 3:
            return
        behind = self.world.rng.choice(self.cluster.others(leader))
        for_s = self.world.uniform(1.0, 14.0)
        self.cut_redis(behind, for_s)
        if self.world.chance(0.3):
            self.crash_redis(behind)
        self.world.after(self.world.uniform(0.3, for_s), self._only_straggler, leader, behind)

    def _only_straggler(self, leader: Member, behind: Member) -> None:
        """Whoever has everything is out of the way for a while, too: the straggler is asked alone, or first."""
        if self.over:
            return
        for holder in self.cluster.others(leader):
            if holder is not behind:
                self.world.after(self.world.uniform(0.0, 0.02), self._hinder, holder)
        self._lose_leader()

    def _hinder(self, member: Member) -> None:
        if self.over:
            return
        for_s = self._time((0.2, 1.0), (1.0, 6.0))
        ways: tuple[Callable[[], None], ...] = (
            lambda: self.pause_agent(member, for_s),
            lambda: self.hang_redis(member, for_s),
            lambda: self.cut_zookeeper(member, for_s),
            lambda: self.crash_agent(member, for_s),
            lambda: self.crash_host(member, for_s),
            lambda: None,
        )
        self.world.rng.choice(ways)()

    def lone_leader(self) -> None:
        """Nobody follows the leader, which writes on alone: its history goes further than anybody's, in vain."""
        leader = self._leader()
        if leader is None:
            return
        self.cut_redis(leader, self.world.uniform(4.0, 20.0))
        if self.world.chance(0.5):
            self.world.after(self.world.uniform(6.0, 18.0), self._lose_leader)

    def leader_out_of_reach(self) -> None:
        """For longer than its session, from one moment to the other; mostly together with its ZooKeeper server, which
        then has not told the ensemble's leader whom it has heard last.
        """
        leader = self._leader()
        if leader is None or leader.agent is None:
            return
        for_s = self.world.uniform(6.0, 12.0)
        conns = [session.conn for session in leader.agent._sessions.values() if session.conn is not None]
        if conns and self.world.chance(0.8):
            self.cut_server(conns[0].server, for_s)
        self.cut_zookeeper(leader, for_s)

    def young_leader(self) -> None:
        """Every agent is started again, and whoever leads then is out of reach within the first tick of its session.

        Its creation is the only proof that the lease has, and the last that the ensemble's leader has heard of it.
        """
        if self.world.now < self._grown_up_at:
            return  # the last one shall not be spared its end
        self._grown_up_at = self.world.now + 12.0
        self.cradles = 1
        for member in self.cluster.members.values():
            self.crash_agent(member, self.world.uniform(0.05, 0.4))

    def _born(self, txn: Txn) -> None:
        for change in txn.changes if self.cradles and not self.over else ():
            if change.path == self.cluster.leader_path and change.new is not None:
                leader = decode_leader(change.new.data)
                if leader.phase == LeaderPhase.SERVING:
                    self.cradles -= 1
                    self.world.after(
                        self.world.uniform(0.0, 0.05), self._out_of_reach, self.cluster.members[leader.name]
                    )

    def _out_of_reach(self, member: Member) -> None:
        """Mostly nobody but the guard is left to fence it, or nobody but the agent."""
        agent = member.agent
        if self.over or agent is None:
            return
        conns = [session.conn for session in agent._sessions.values() if session.conn is not None]
        for conn in conns:
            self.cut_server(conn.server, 10.0)
        self.cut_zookeeper(member, 10.0)
        dice = self.world.rng.random()
        if dice < 0.6:
            self.pause_agent(member, 10.0)
        elif dice < 0.8:
            self.stop_guard(member, 10.0)
        if self.world.chance(0.3):
            self.hang_redis(member, 10.0)

    def late_replies(self) -> None:
        """What the leader hears of ZooKeeper is late, and then it hears nothing any more."""
        leader = self._leader()
        if leader is None:
            return
        late_s = self.world.uniform(0.5, 1.95)
        self.cut_replies(leader, late_s)
        self.world.after(late_s + self.world.uniform(0.0, 0.01), self._silence, leader)

    def _silence(self, member: Member) -> None:
        if not self.over:
            self.cut_zookeeper(member, 10.0)

    def _lose_leader(self) -> None:
        leader = self._leader()
        if leader is None or self.over:
            return
        self.snares = max(self.snares, self.world.rng.choice((0, 1, 2)))
        ways: tuple[Callable[[Member], None], ...] = (
            self.crash_redis,
            self.crash_redis,
            self.crash_agent,
            self.crash_host,
            self.isolate_host,
            self.cut_zookeeper,
            self.stop_agent,
            lambda _member: self.delete_leader(),
        )
        self.world.rng.choice(ways)(leader)

    # -- ambush -----------------------------------------------------------------------------------------------------

    def ambush(self) -> None:
        """Bring about an election, and strike at some of its steps."""
        self.snares = self.world.rng.choice((1, 2, 3, 5))
        self._lose_leader()

    def _step(self, txn: Txn) -> None:
        """The steps of an election are transactions about the ledger, ``leader`` and the ballots."""
        if not self.snares or self.over:
            return
        if any(change.path.startswith(self._watched) for change in txn.changes) and self.world.chance(0.4):
            self.snares -= 1
            after_s = self.world.uniform(0.0, self.world.rng.choice(NEAR_S))
            self.world.after(after_s, self._strike_at, txn.label)

    def _strike_at(self, what: str) -> None:
        if self.over:
            return
        self._log(f"strikes behind [{what}]")
        member = self._member(prefer_leader=0.6)
        for_s = self._time((0.002, 0.05), (0.05, 2.5), (2.5, 9.0))
        strikes: tuple[Callable[[], None], ...] = (
            lambda: self.crash_redis(member),
            lambda: self.crash_agent(member),
            lambda: self.crash_host(member),
            lambda: self.pause_agent(member, for_s),
            lambda: self.hang_redis(member, for_s),
            lambda: self.cut_redis(member, for_s),
            lambda: self.cut_zookeeper(member, for_s),
            lambda: self.cut_replies(member, for_s),
            lambda: self.cut_requests(member, for_s),
            lambda: self.isolate_host(member, for_s),
            lambda: self.break_connection(member),
            self.delete_leader,
            self.crash_server,
        )
        self.world.rng.choice(strikes)()
