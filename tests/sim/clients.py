"""Applications: writers with and without WAIT, counters, and readers. They see the leader late, and may see an old one;
some do not look for it at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis_agent.znodes import Leader, LeaderPhase, decode_leader
from tests.sim.process import Process
from tests.sim.redis_data import RedisConn, Site
from tests.sim.world import Violation

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster

REPLY_LIMIT_S = 2.0
WAIT_LIMIT_S = 0.3
REPEATS = 5
NEWEST = 3
"""How many values a read sees."""

REFUSALS = frozenset({"READONLY", "NOREPLICAS", "LOADING", "MISCONF"})
"""Answers that say that the write was certainly not executed."""


class Client:
    """One application on a host of its own, with one connection at a time."""

    def __init__(self, cluster: Cluster, name: str, pace_s: float) -> None:
        self.cluster = cluster
        self.world = cluster.world
        self.net = cluster.net
        self.checker = cluster.checker
        self.name = name
        self.pace_s = pace_s
        self.process = Process(self.world, name, name)
        self.view: Leader | None = None
        self.conn: RedisConn | None = None
        self.epoch_view: Leader | None = None
        self.stopped = False
        self._turn = 0
        self.process.after(self.world.uniform(0.0, 1.0), self._observe)
        self.process.after(self.world.uniform(0.0, 1.0), self._next, 0)

    def stop(self) -> None:
        self.stopped = True
        self._hang_up()

    def _observe(self) -> None:
        """Look at the leader through some ZooKeeper server, from time to time: the view may be stale."""
        server = self.world.rng.choice(self.cluster.ensemble.servers)
        if server.up and self.net.open(self.name, server.name):
            node = server.tree.nodes.get(self.cluster.leader_path)
            leader = decode_leader(node.data) if node is not None and node.data else None
            self.view = leader if leader is not None and leader.phase == LeaderPhase.SERVING else None
        self.process.after(self.world.uniform(0.02, 0.3), self._observe)

    def _next(self, turn: int) -> None:
        """One operation, and the next one after a pause."""
        if self.stopped or turn != self._turn:
            return
        if self.conn is None:
            self._connect()
            self.process.after(self.world.uniform(0.01, 0.1), self._next, turn)
        else:
            self.process.after(REPLY_LIMIT_S, self._give_up, turn)
            self.operate(self.conn)

    def _again(self) -> None:
        """The operation is over, in whatever way."""
        self._turn += 1
        if self.pace_s:
            self.process.after(self.world.uniform(0.2, 1.8) * self.pace_s, self._next, self._turn)

    def _give_up(self, turn: int) -> None:
        if turn == self._turn:
            self._hang_up()
            self._again()

    def _choose(self) -> Site | None:
        """Where to connect to: the leader, as far as it is known."""
        return self.cluster.sites.get(self.view.address) if self.view is not None else None

    def _connect(self) -> None:
        leader, site = self.view, self._choose()
        if site is not None and site.redis is not None and self.net.open(self.name, site.name):
            self.epoch_view = leader
            self.conn = conn = RedisConn(self.net, self.name, site.redis, self)
            conn.up.send(site.redis.process.run, site.redis.accept, conn)

    def _hang_up(self) -> None:
        conn, self.conn = self.conn, None
        if conn is not None:
            conn.up.send(conn.redis.process.run, conn.redis.client_gone, conn)

    def on_closed(self, conn: RedisConn) -> None:
        if conn is self.conn:
            self.conn = None
            self._again()

    def on_reply(self, conn: RedisConn, reply: tuple[Any, ...]) -> None:
        if conn is self.conn and not self.stopped:
            self.replied(conn, reply)

    def operate(self, conn: RedisConn) -> None:
        raise NotImplementedError

    def replied(self, conn: RedisConn, reply: tuple[Any, ...]) -> None:
        raise NotImplementedError


class Writer(Client):
    """Writes numbers that are unique in the run. A durable one asks for WAIT behind each write, in the way of the
    project's own client: enough acknowledgements, by enough different voters. It keeps its connection as long as it
    can, and repeats a WAIT on it. What was certainly not executed is tried again.
    """

    def __init__(self, cluster: Cluster, name: str, pace_s: float, *, durable: bool) -> None:
        super().__init__(cluster, name, pace_s)
        self.durable = durable
        self.repeat_s = 0.05
        self.patience = 0.5
        """How likely it stays where it was refused."""
        self._write_id = 0
        self._refused = False
        self._repeats = 0

    def operate(self, conn: RedisConn) -> None:
        """A new write, or once more the one that was refused."""
        if not self._refused:
            self._write_id = self.cluster.new_write(self.name)
        self._refused = False
        conn.up.send(conn.redis.process.run, conn.redis.write, conn, self._write_id)

    def replied(self, conn: RedisConn, reply: tuple[Any, ...]) -> None:
        kind = reply[0]
        if kind == "OK":
            self.checker.writes[self._write_id].acked = True
            if self.durable:
                self._repeats = 0
                self._wait(conn)
            else:
                self._again()
        elif kind == "WAITED":
            self._waited(conn, reply[1], reply[2])
        else:  # refused: try elsewhere, or stay and see
            if kind in REFUSALS and reply[1] == self._write_id:
                self.checker.refused(self._write_id, kind)
                self._refused = True
            if not self.world.chance(self.patience):
                self._hang_up()
            self._again()

    def _wait(self, conn: RedisConn) -> None:
        if conn is self.conn and self.epoch_view is not None:
            conn.up.send(conn.redis.process.run, conn.redis.wait, conn, self.epoch_view.wait, WAIT_LIMIT_S)

    def _waited(self, conn: RedisConn, count: int, holders: tuple[Any, ...]) -> None:
        leader = self.epoch_view
        assert leader is not None
        voters = self.cluster.voter_addresses
        if count >= leader.wait and sum(1 for address in holders if address in voters) >= self.cluster.wait:
            self.checker.confirm(self._write_id)
            self._again()
        elif self._repeats < REPEATS:
            self._repeats += 1
            self.process.after(self.repeat_s, self._wait, conn)
        else:
            self._again()


class Counter(Writer):
    """Each write is an INCR of its own key, confirmed by WAIT. The checker looks at what each one has counted."""

    def __init__(self, cluster: Cluster, name: str, pace_s: float) -> None:
        super().__init__(cluster, name, pace_s, durable=True)
        self.checker.counters[name] = set()


class Stubborn(Writer):
    """Was told one address once, and writes there whatever it is answered: it shows every server that takes writes."""

    def __init__(self, cluster: Cluster, name: str, pace_s: float, site: Site) -> None:
        self._site = site
        super().__init__(cluster, name, pace_s, durable=False)
        self.patience = 1.0

    def _observe(self) -> None:
        """It never looks at ZooKeeper."""

    def _choose(self) -> Site:
        return self._site


class Reader(Client):
    """Reads a confirmed write back from a server that would execute writes: it has to be there."""

    def operate(self, conn: RedisConn) -> None:
        confirmed = self.checker.confirmed
        self._wanted = next(reversed(confirmed)) if confirmed else 0
        conn.up.send(conn.redis.process.run, self._read, conn)

    def _read(self, conn: RedisConn) -> None:
        redis = conn.redis
        blameless = not redis.writable or self.checker.excuses.excused(redis.site.name)
        missing = self._wanted and self._wanted not in redis.data
        if missing and not blameless and self.checker.kept(self._wanted):
            raise Violation("confirmed", f"{self.name} reads from {redis.site.name}: {self._wanted} is missing")
        conn.down.send(self.on_reply, conn, ("VALUE",))

    def replied(self, conn: RedisConn, reply: tuple[Any, ...]) -> None:
        del conn, reply
        if self.world.chance(0.1):
            self._hang_up()
        self._again()


class Witness(Client):
    """Reads the newest values from any server, the replicas too, whatever they are worth: what it saw may vanish."""

    def _observe(self) -> None:
        """It never looks at ZooKeeper."""

    def _choose(self) -> Site:
        return self.world.rng.choice(list(self.cluster.sites.values()))

    def operate(self, conn: RedisConn) -> None:
        conn.up.send(conn.redis.process.run, self._read, conn)

    def _read(self, conn: RedisConn) -> None:
        redis = conn.redis
        newest = () if redis.loading else tuple(redis.data[-NEWEST:])
        conn.down.send(self.on_reply, conn, ("VALUES", newest))

    def replied(self, conn: RedisConn, reply: tuple[Any, ...]) -> None:
        del conn
        for number in reply[1]:
            self.checker.seen.setdefault(number, self.name)
        if self.world.chance(0.3):
            self._hang_up()
        self._again()
