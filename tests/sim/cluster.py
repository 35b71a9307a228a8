"""One simulated run: a cluster, its clients, a time of faults, a time of healing, and what must hold at the end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from redis_agent.core.settings import CoreSettings
from redis_agent.messages import Create, Delete
from redis_agent.replication import Address
from redis_agent.znodes import Leader, LeaderPhase, Order, OrderState, Paths, decode_leader, decode_order, encode
from tests.sim import transcript
from tests.sim.agent import Member
from tests.sim.checker import Checker
from tests.sim.clients import Client, Counter, Reader, Stubborn, Witness, Writer
from tests.sim.clock import ASSUMED_RATE, ORDINARY_RATE, WALL_OFFSET_S, Clock
from tests.sim.redis_data import Disk, Site, Sites
from tests.sim.world import Link, Network, Violation, World, both
from tests.sim.zookeeper import Ensemble

PORT = 6379
NAMES = "abcdefghi"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a cluster looks like. ``disks``: the persistence of every member, or of each one. ``clock_rate``: how far
    from 1 the rates of its clocks are, at most; by itself ordinary ones, and now and then as far as is assumed.
    """

    members: int = 3
    disks: tuple[str, ...] = ("none",)
    writers: int = 2
    pace_s: float = 0.12
    clock_rate: float | None = None
    settings: tuple[tuple[str, object], ...] = ()


class Cluster:
    """Members ``a``, ``b``, ...; call `start`, let ``world`` run, break things through `members` and ``net``."""

    def __init__(self, seed: int, shape: Shape | None = None, *, trace: bool = False) -> None:
        self.shape = shape = shape or Shape()
        self.world = World(seed, trace=trace)
        self.net = Network(self.world)
        base = CoreSettings(
            root="redis-agent",
            cluster="sim",
            name="",
            redis=Address("", PORT),
            bootstrap_expect=shape.members,
            restart_max_s=4.0,
        )
        self.base = replace(base, **dict(shape.settings))  # type: ignore[arg-type]
        self.paths = Paths(self.base.root, self.base.cluster)
        self.leader_path = self.paths.leader
        self.ensemble = Ensemble(self.world, self.net, tick_s=self.base.tick_s)
        self.checker = Checker(self.world, self.paths, shape.members)
        self.ensemble.on_commit.append(self.checker.committed)
        self.clock_rate = shape.clock_rate
        if self.clock_rate is None:
            self.clock_rate = ASSUMED_RATE if self.world.chance(0.3) else ORDINARY_RATE
        self.sites: Sites = {}
        self.members: dict[str, Member] = {}
        for number in range(shape.members):
            self._add(NAMES[number], shape.disks[number % len(shape.disks)])
        self.checker.redis_of = lambda name: self.members[name].site.redis
        self.checker.excuses.member_of = self.members.get
        self.checker.voters = tuple(self.members)
        self.voter_addresses = frozenset(site.address for site in self.sites.values())
        self.wait = shape.members // 2
        self.clients: list[Client] = []
        self._last_write = 0
        self._last_order = 0

    def _add(self, name: str, disk: str) -> None:
        clock = Clock(self.world)
        clock.draw(self.world.rng, self.clock_rate or 0.0)
        site = Site(name, Address(name, PORT), Disk(disk), clock)
        self.sites[site.address] = site
        settings = replace(self.base, name=name, host=name, redis=site.address)
        self.members[name] = Member(self.net, self.ensemble, self.sites, site, self.checker, settings)

    def new_write(self, by: str = "") -> int:
        """A number for a client's next write: of one client, later ones are larger."""
        self._last_write += 1
        self.checker.authors[self._last_write] = by
        return self._last_write

    # -- driving ----------------------------------------------------------------------------------------------------

    def start(self, *, within_s: float = 0.5) -> None:
        """Start every agent, at moments of its own."""
        for member in self.members.values():
            self.world.after(self.world.uniform(0.0, within_s), member.start)

    def start_clients(self) -> None:
        for number in range(self.shape.writers):
            self.add_writer(durable=number % 2 == 0)
        pace_s = self.shape.pace_s
        site = self.world.rng.choice(list(self.sites.values()))
        self.clients += [
            Counter(self, "counter", 2 * pace_s),
            Stubborn(self, "stubborn", 3 * pace_s, site),
            Reader(self, "reader", 4 * pace_s),
            Witness(self, "witness", 4 * pace_s),
        ]

    def add_writer(self, *, durable: bool, pace_s: float | None = None) -> Writer:
        name = f"client{len(self.clients)}"
        writer = Writer(self, name, self.shape.pace_s if pace_s is None else pace_s, durable=durable)
        self.clients.append(writer)
        return writer

    def stop_clients(self) -> None:
        for client in self.clients:
            client.stop()

    def run(self, for_s: float) -> None:
        self.world.run(self.world.now + for_s)

    def until(self, what: str, condition: Callable[[], bool], within_s: float = 60.0) -> None:
        """Run until ``condition()`` holds; a violation if it does not within the limit."""
        if not condition() and not self.world.run(self.world.now + within_s, condition):
            raise Violation("progress", f"not within {within_s:g} s: {what}\n{self.describe()}")

    # -- looking ----------------------------------------------------------------------------------------------------

    def leader(self) -> Leader | None:
        """The znode as it is at this moment."""
        node = self.ensemble.tree.nodes.get(self.leader_path)
        return decode_leader(node.data) if node is not None and node.data else None

    def serving(self) -> Member | None:
        """The member that serves: published, and its Redis accepts writes."""
        leader = self.leader()
        if leader is None or leader.phase != LeaderPhase.SERVING:
            return None
        member = self.members[leader.name]
        redis = member.site.redis
        return member if redis is not None and redis.writable else None

    def all_follow(self) -> bool:
        """One leader serves, and every other member's Redis follows it."""
        leader = self.serving()
        if leader is None:
            return False
        for member in self.others(leader):
            redis = member.site.redis
            link = redis.uplink if redis is not None and redis.link_up else None
            if link is None or link.primary is not leader.site.redis:
                return False
        return True

    def in_sync(self) -> bool:
        """One leader serves, and every other member's Redis follows it and has the same data."""
        if not self.all_follow():
            return False
        servers = [member.site.redis for member in self.members.values()]
        first = servers[0]
        return all(
            redis is not None and first is not None and redis.offset == first.offset and redis.data == first.data
            for redis in servers
        )

    def settled(self) -> bool:
        """All follow, and every agent knows that its own Redis is intact."""
        agents = [member.agent for member in self.members.values()]
        return self.all_follow() and all(agent is not None and agent.core.snapshot().intact for agent in agents)

    def others(self, member: Member) -> list[Member]:
        return [other for other in self.members.values() if other is not member]

    def describe(self) -> str:
        """Every member in a line, for a failure's report."""
        lines = [f"leader: {self.leader()}"]
        for member in self.members.values():
            redis = member.site.redis
            snapshot = member.agent.core.snapshot() if member.agent is not None else None
            state = "agent down" if snapshot is None else f"{snapshot.state} ({snapshot.reason})"
            lines.append(f"{member.name}: {state}; redis {'down' if redis is None else transcript.info(redis.info())}")
            lines.append(f"   state file: {transcript.record(member.record)}; disk: {member.site.disk.describe()}")
        return "\n".join(lines)

    def losses(self) -> dict[str, int]:
        """Counted, not forbidden: what vanished that nobody was promised."""
        leader = self.serving()
        redis = leader.site.redis if leader is not None else None
        return self.checker.losses(redis.data if redis is not None else [])

    # -- faults, for directed scenarios -----------------------------------------------------------------------------

    def cut_redis(self, *names: str) -> tuple[Link, ...]:
        """The servers of these members can't reach those of the others. Returns what to give to ``net.heal``."""
        return self.net.cut(both(names, [name for name in self.members if name not in names]))

    def cut_zookeeper(self, *names: str) -> tuple[Link, ...]:
        return self.net.cut(both(names, self.ensemble.names))

    # -- an operator's hand -----------------------------------------------------------------------------------------

    def delete_leader(self) -> None:
        """Somebody deletes ``leader`` with a ZooKeeper shell."""
        self.ensemble.decide((Delete(self.paths.leader),), "deleted by hand")

    def order_switchover(self, to: str = "", *, expires_s: float = 30.0) -> str:
        """``redis-agent switchover``: returns the order's path."""
        self._last_order += 1
        path = self.paths.order(f"switchover-{self._last_order:03}")
        order = Order(
            kind="switchover", to=to, by="an operator", at=self.world.now + WALL_OFFSET_S, expires_s=expires_s
        )
        ops = (Create(path, encode(order)),)
        if self.paths.orders not in self.ensemble.tree.nodes:
            return path  # there is no cluster to order anything of yet
        self.ensemble.decide(ops, "an operator's order")
        return path

    def order_of(self, path: str) -> Order:
        return decode_order(self.ensemble.tree.nodes[path].data)

    def orders_answered(self) -> bool:
        """Nobody waits for an answer any more."""
        return all(order.state in OrderState.FINAL for order in self.checker.orders.values())
