"""A simulated ZooKeeper ensemble, as far as its clients can tell it from the real one.

Any server may lead (`zk_leader`); whoever has the newest log of a majority that reach each other is elected. What a
majority has logged is committed, once and for ever: `Ensemble.tree` is that, and ``on_commit`` hears of it before any
client can. Servers talk over the network's links between their names, so cuts and slowness apply to them too.

`zk_server` is one server, `zk_tree` what they agree on. The client's half is in `zk_client`.
"""

from __future__ import annotations

from collections.abc import Callable

from redis_agent.messages import Op, ZkError
from tests.sim.world import Network, World
from tests.sim.zk_leader import Reign
from tests.sim.zk_server import Server
from tests.sim.zk_tree import Outcome, Tree, Txn

LONG_ELECTIONS = 0.08
"""Part of the elections that take seconds: lost notifications, ties, a slow snapshot."""


class Ensemble:
    """The servers, and what is committed. It begins with a leader whom all follow."""

    def __init__(self, world: World, net: Network, *, tick_s: float = 2.0, servers: int = 3) -> None:
        self.world = world
        self.net = net
        self.tick_s = tick_s
        self.majority = servers // 2 + 1
        self.tree = Tree()
        self.zxid = 0
        self.epoch = 0
        self.elections = 0
        self.on_commit: list[Callable[[Txn], None]] = []
        self._committed: set[int] = set()
        self._session_id = 0x1000
        self.servers = [Server(self, f"zk{number + 1}") for number in range(servers)]
        self._establish(world.rng.choice(self.servers), self.servers)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(server.name for server in self.servers)

    @property
    def sessions(self) -> dict[int, float]:
        """Those that are committed to exist, and their timeouts."""
        return self.tree.sessions

    def new_session_id(self) -> int:
        self._session_id += 1
        return self._session_id

    def commit(self, txn: Txn) -> None:
        """A majority has it on disk. Several may find that out, each in its time."""
        if txn.zxid <= self.zxid:
            assert txn.zxid in self._committed, f"{txn} was lost, and now is committed"
            return
        self.zxid = txn.zxid
        self._committed.add(txn.zxid)
        self.tree.apply(txn)
        for hook in self.on_commit:
            hook(txn)

    # -- elections --------------------------------------------------------------------------------------------------

    def reign(self) -> Reign | None:
        """The newest leader, if a majority is in step with it in truth."""
        reigns = [server.reign for server in self.servers if server.reign is not None]
        newest = max(reigns, key=lambda reign: reign.epoch, default=None)
        if newest is None:
            return None
        following = sum(link.follower.link is link for link in newest.links.values())
        return newest if 1 + following >= self.majority else None

    def look(self, server: Server) -> None:
        """This server looks for a leader, or for a majority to elect one."""
        long = self.world.chance(LONG_ELECTIONS)
        delay_s = self.world.uniform(0.6, 4.0) if long else self.world.uniform(0.2, 0.6)
        server.process.after(delay_s, self._seek, server)

    def _seek(self, server: Server) -> None:
        if not server.looking:
            return
        if not self._join(server):
            self._elect()
        if server.looking:
            server.process.after(self.world.uniform(0.2, 0.5), self._seek, server)

    def _reach(self, one: Server, other: Server) -> bool:
        able = one.process.alive and other.process.alive and not one.process.stopped and not other.process.stopped
        return able and self.net.open(one.name, other.name)

    def _join(self, server: Server) -> bool:
        """Follow a leader that has a majority as far as it knows, and is not older than the last one."""
        for leader in self.servers:
            reign = leader.reign
            if reign is None or reign.epoch < server.epoch or not self._reach(server, leader):
                continue
            if reign.synced() >= self.majority:
                reign.admit(server)
                return True
        return False

    def _elect(self) -> None:
        """Of the servers that look, one whom a majority reaches, and whose log none of these surpasses."""
        voters = [server for server in self.servers if server.looking and not server.blank]
        for candidate in sorted(voters, key=_rank, reverse=True):
            followers = [server for server in voters if server is candidate or self._reach(candidate, server)]
            if len(followers) >= self.majority and max(followers, key=_rank) is candidate:
                self._establish(candidate, followers)
                return

    def _establish(self, leader: Server, followers: list[Server]) -> None:
        self.epoch += 1
        self.elections += 1
        reign = leader.lead(self.epoch)
        assert leader.applied >= self.zxid, f"{leader.name} leads without what is committed"
        for follower in followers:
            if follower is not leader:
                reign.admit(follower)
        if self.world.tracing:
            names = ", ".join(server.name for server in followers if server is not leader)
            self.world.log("zk", f"{leader.name} leads epoch {self.epoch}, followed by {names}")

    # -- hands ------------------------------------------------------------------------------------------------------

    def decide(self, ops: tuple[Op, ...], label: str) -> Outcome:
        """An operator's transaction, at once; refused without a leader."""
        reign = self.reign()
        return Outcome(error=ZkError.OTHER) if reign is None else reign.by_hand(ops, label)

    def end_session(self, session_id: int, why: str) -> None:
        """Somebody who knows its id closes this session."""
        reign = self.reign()
        assert reign is not None, "no leader"
        reign.end(None, 0, session_id, why)

    def stop(self) -> None:
        """Every server dies; what they have on disk stays."""
        for server in self.servers:
            server.crash()

    def start(self) -> None:
        """Every server that is down or paused runs again."""
        for server in self.servers:
            server.resume()
            server.restart()


def _rank(server: Server) -> tuple[int, int, str]:
    return server.epoch, server.last_logged, server.name
