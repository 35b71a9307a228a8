"""What directed scenarios are told with."""

from __future__ import annotations

from collections.abc import Callable

from redis_agent.znodes import decode_ballot, decode_ledger, decode_presence
from tests.sim.agent import Member
from tests.sim.cluster import Cluster
from tests.sim.redis import SimRedis
from tests.sim.redis_data import RedisConn

Begin = Callable[..., Cluster]


class App:
    """An application under the test's control, with one connection."""

    def __init__(self, cluster: Cluster, member: Member, host: str = "app") -> None:
        self.cluster = cluster
        self.name = host
        self.redis = server(member)
        self.conn = RedisConn(cluster.net, host, self.redis, self)
        self.replies: list[tuple[object, ...]] = []
        self.closed = False
        self.redis.accept(self.conn)

    def on_reply(self, conn: RedisConn, reply: tuple[object, ...]) -> None:
        del conn
        self.replies.append(reply)

    def on_closed(self, conn: RedisConn) -> None:
        del conn
        self.closed = True

    def write(self) -> int:
        """Write, and have the answer OK."""
        number = self.send()
        self.cluster.until("the write is answered", lambda: bool(self.replies), 1.0)
        assert self.replies.pop() == ("OK", number)
        return number

    def send(self) -> int:
        number = self.cluster.new_write()
        self.redis.process.run(self.redis.write, self.conn, number)
        return number

    def confirm(self) -> int:
        """Write, and have it confirmed by WAIT."""
        number = self.write()
        self.redis.wait(self.conn, self.cluster.wait, 1.0)
        self.cluster.until("WAIT is answered", lambda: bool(self.replies), 2.0)
        kind, count, *_ = self.replies.pop()
        assert kind == "WAITED"
        assert isinstance(count, int)
        assert count >= self.cluster.wait
        self.cluster.checker.confirm(number)
        return number


def server(member: Member) -> SimRedis:
    assert member.site.redis is not None
    return member.site.redis


def roles(cluster: Cluster) -> tuple[Member, Member, Member]:
    """The serving leader and the two others of three."""
    leader = cluster.serving()
    assert leader is not None
    one, other = cluster.others(leader)
    return leader, one, other


def epoch(cluster: Cluster) -> int:
    return decode_ledger(cluster.ensemble.tree.nodes[cluster.paths.epoch].data).epoch


def has_ballot(cluster: Cluster, member: Member, round_: int) -> bool:
    node = cluster.ensemble.tree.nodes.get(cluster.paths.ballot(round_, member.name))
    return node is not None and decode_ballot(node.data).up


def reason(cluster: Cluster, member: Member) -> str:
    """What the member's presence says about why it is not serving."""
    node = cluster.ensemble.tree.nodes.get(cluster.paths.presence(member.name))
    return decode_presence(node.data).reason if node is not None else ""


def another_serves(cluster: Cluster, than: Member) -> Callable[[], bool]:
    return lambda: cluster.serving() not in (None, than)


def with_init(cluster: Cluster, *, after_s: float = 0.3) -> list[int]:
    """Init starts every agent again that ends. Returns the exit codes, as they come."""
    codes: list[int] = []

    def ended(member: Member, code: int) -> None:
        codes.append(code)
        cluster.world.after(after_s, member.start)

    for member in cluster.members.values():
        member.on_exit.append(ended)
    return codes
