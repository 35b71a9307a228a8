"""The simulated Redis behaves as the real one was measured to (7.0)."""

from __future__ import annotations

from typing import Any

import pytest

from redis_agent.replication import NOWHERE, Address
from tests.sim.clock import Clock
from tests.sim.redis import Refused, SimRedis, Watcher
from tests.sim.redis_data import FENCE, PING_BYTES, WRITE_BYTES, Disk, RedisConn, Site, Sites
from tests.sim.world import Network, World


class Servers:
    """Some simulated redis-servers without any agent."""

    def __init__(self, *disks: str) -> None:
        self.world = World(1)
        self.net = Network(self.world)
        self.watcher = Watcher()
        self.sites: Sites = {}
        for name, disk in zip("abcde", disks, strict=False):
            address = Address(name, 6379)
            self.sites[address] = Site(name, address, Disk(disk), Clock(self.world))
        self.replies: list[tuple[Any, ...]] = []
        self.closed = 0

    def start(self, name: str) -> SimRedis:
        redis = SimRedis(self.net, self.sites, self.sites[Address(name, 6379)], self.watcher, 1)
        self.run(0.1)
        return redis

    def pair(self) -> tuple[SimRedis, SimRedis]:
        """A primary with a backlog, open to writes, and its replica."""
        primary, replica = self.start("a"), self.start("b")
        self.promote(primary)
        replica.replicaof(primary.site.address)
        self.run(2.0)
        assert replica.link_up
        return primary, replica

    def promote(self, redis: SimRedis) -> None:
        redis.replicaof_no_one()
        redis.make_backlog()
        redis.lift_fence(0)

    def run(self, for_s: float) -> None:
        self.world.run(self.world.now + for_s)

    def client(self, redis: SimRedis) -> RedisConn:
        conn = RedisConn(self.net, "client", redis, self)
        redis.accept(conn)
        return conn

    def on_reply(self, conn: RedisConn, reply: tuple[Any, ...]) -> None:
        del conn
        self.replies.append(reply)

    def on_closed(self, conn: RedisConn) -> None:
        del conn
        self.closed += 1


@pytest.fixture
def servers() -> Servers:
    return Servers("none", "none", "none")


def test_redis_boots_fenced_as_a_replica_of_nowhere(servers: Servers) -> None:
    """It is no primary, and by hand made one it refuses writes."""
    redis = servers.start("a")
    assert redis.info().primary == NOWHERE
    redis.replicaof_no_one()
    assert redis.is_primary
    assert not redis.writable
    assert redis.min_replicas == FENCE


def test_a_frozen_replica_keeps_its_position_and_joins_again_by_a_partial_resync(servers: Servers) -> None:
    """Frozen, replid and offset stay while the primary goes on; back again the rest comes by the stream."""
    primary, replica = servers.pair()
    primary.append(1, WRITE_BYTES)
    servers.run(1.0)
    frozen_at, replid = replica.offset, replica.replid
    replica.replicaof(NOWHERE)
    primary.append(2, WRITE_BYTES)
    servers.run(1.0)
    info = replica.info()
    assert (info.replid, info.offset_bytes, info.replica_offset_bytes) == (replid, frozen_at, frozen_at)
    assert replica.data == [1]
    replica.replicaof(primary.site.address)
    servers.run(1.5)
    assert replica.data == [1, 2]
    assert (replica.replid, replica.offset) == (primary.replid, primary.offset)


def test_a_promoted_replica_makes_a_replid_and_remembers_the_old_one(servers: Servers) -> None:
    """The others join it by a partial resync up to where it was promoted, and take its replid before its data."""
    primary, replica = servers.pair()
    third = servers.start("c")
    third.replicaof(primary.site.address)
    servers.run(2.0)
    primary.append(1, WRITE_BYTES)
    servers.run(1.0)
    for redis in (replica, third):
        redis.replicaof(NOWHERE)
    old = replica.replid
    servers.promote(replica)
    assert replica.replid != old
    assert (replica.info().replid2, replica.info().second_offset_bytes) == (old, replica.offset + 1)
    for number in range(2, 500):
        replica.append(number, WRITE_BYTES)
    third.replicaof(replica.site.address)
    assert servers.world.run(servers.world.now + 5, lambda: third.replid == replica.replid)
    assert third.data == [1], "the replid is there, the data are not"
    servers.run(1.0)
    assert third.data == replica.data


def test_a_diverged_primary_needs_a_full_resync_and_loses_its_tail(servers: Servers) -> None:
    """It wrote on after its replica was promoted: nothing of that survives."""
    primary, replica = servers.pair()
    primary.append(1, WRITE_BYTES)
    servers.run(1.0)
    replica.replicaof(NOWHERE)
    servers.promote(replica)
    primary.append(2, WRITE_BYTES)
    replica.append(3, WRITE_BYTES)
    primary.replicaof(replica.site.address)
    servers.run(3.0)
    assert primary.link_up
    assert primary.data == [1, 3]
    assert not primary.info().replid2


def test_a_full_resync_that_fails_to_load_leaves_nothing_but_the_old_position(servers: Servers) -> None:
    """Empty, with its old replid and offset, and slave_repl_offset tells that something is wrong."""
    primary, replica = servers.pair()
    primary.append(1, WRITE_BYTES)
    servers.run(1.0)
    replica.replicaof(NOWHERE)
    servers.promote(replica)
    primary.append(2, WRITE_BYTES)
    replica.append(3, WRITE_BYTES)
    before = primary.info()
    primary.load_fails = True
    primary.replicaof(replica.site.address)
    assert servers.world.run(servers.world.now + 5, lambda: primary.loading)
    assert servers.world.run(servers.world.now + 5, lambda: not primary.loading)
    info = primary.info()
    assert info.empty
    assert (info.replid, info.offset_bytes) == (before.replid, before.offset_bytes)
    assert info.replica_offset_bytes == 1
    servers.run(3.0)
    assert primary.data == replica.data


def test_a_loading_redis_refuses_role_commands(servers: Servers) -> None:
    """REPLICAOF answers LOADING; fencing works."""
    primary, replica = servers.start("a"), servers.start("b")
    servers.promote(primary)
    primary.append(1, WRITE_BYTES)
    replica.replicaof(primary.site.address)
    assert servers.world.run(servers.world.now + 5, lambda: replica.loading)
    with pytest.raises(Refused, match="LOADING"):
        replica.replicaof(NOWHERE)
    replica.fence()


def test_the_fence_counts_replicas_and_bites_when_they_leave(servers: Servers) -> None:
    """min-replicas-to-write 1: writes go through with one replica attached, and are refused once it has frozen."""
    primary, replica = servers.pair()
    primary.lift_fence(1)
    states = [primary.writable]
    replica.replicaof(NOWHERE)
    servers.run(0.1)
    states.append(primary.writable)
    assert states == [True, False]
    conn = servers.client(primary)
    primary.write(conn, 1)
    servers.run(0.1)
    assert servers.replies == [("NOREPLICAS", 1)]


def test_a_primary_pings_its_replicas_also_while_paused(servers: Servers) -> None:
    """The offset moves by itself every ten seconds, also during CLIENT PAUSE."""
    primary, replica = servers.pair()
    primary.pause_writes(60.0)
    before = primary.offset
    servers.run(30.0)
    assert primary.offset - before == 3 * PING_BYTES
    assert replica.offset == primary.offset


def test_a_paused_write_waits_and_a_demotion_refuses_it(servers: Servers) -> None:
    """CLIENT PAUSE WRITE: the write is neither done nor refused, until the role has changed and the pause is over."""
    primary, replica = servers.pair()
    conn = servers.client(primary)
    primary.pause_writes(60.0)
    primary.write(conn, 1)
    servers.run(1.0)
    assert servers.replies == []
    primary.replicaof(replica.site.address)
    primary.unpause()
    servers.run(1.0)
    assert servers.replies == [("READONLY", 1)]
    assert primary.data == []


def test_wait_counts_replicas_that_have_the_clients_last_write(servers: Servers) -> None:
    """WAIT 1 is answered at once by GETACK, not by the acknowledgement of the next second."""
    primary, replica = servers.pair()
    conn = servers.client(primary)
    primary.write(conn, 1)
    primary.wait(conn, 1, 5.0)
    servers.run(0.1)
    assert servers.replies == [("OK", 1), ("WAITED", 1, (replica.site.address,))]
    servers.net.cut([("b", "a")])
    primary.write(conn, 2)
    primary.wait(conn, 1, 5.0)
    servers.run(6.0)
    assert servers.replies[2:] == [("OK", 2), ("WAITED", 0, ())]


def test_a_demoted_primary_closes_the_connections_that_wait(servers: Servers) -> None:
    """A client in WAIT gets no confirmation from a server that was frozen meanwhile, but -UNBLOCKED."""
    primary, _ = servers.pair()
    conn = servers.client(primary)
    servers.net.cut([("b", "a")])
    primary.write(conn, 1)
    primary.wait(conn, 1, 5.0)
    primary.replicaof(NOWHERE)
    servers.run(1.0)
    assert servers.closed == 1
    assert servers.replies == [("OK", 1), ("UNBLOCKED", 0)]


def test_a_primary_without_a_backlog_takes_a_new_replid_with_its_first_replica(servers: Servers) -> None:
    """Until then its offset stands still."""
    primary, replica = servers.start("a"), servers.start("b")
    primary.replicaof_no_one()
    primary.append(1, WRITE_BYTES)
    before = primary.replid
    assert primary.offset == 0
    replica.replicaof(primary.site.address)
    servers.run(2.0)
    assert primary.replid != before
    assert replica.data == [1]


@pytest.mark.parametrize("mode", ["rdb", "aof"])
def test_a_restart_from_disk(mode: str) -> None:
    """RDB: replid and offset of the dump, a partial resync is possible. AOF: the data, a new replid, offset 0."""
    servers = Servers(mode, mode)
    primary, replica = servers.pair()
    for number in range(1, 20):
        primary.append(number, WRITE_BYTES)
    servers.run(1.0)
    if mode == "rdb":
        replica.save()
    replica.kill()
    primary.append(20, WRITE_BYTES)
    again = servers.start("b")
    info = again.info()
    assert info.keys == 19 or mode == "aof"
    assert (info.replid == primary.replid) == (mode == "rdb")
    assert (info.offset_bytes > 0) == (mode == "rdb")
    again.replicaof(primary.site.address)
    servers.run(3.0)
    assert again.data == primary.data


def test_a_hung_redis_does_it_all_when_it_is_continued(servers: Servers) -> None:
    """What waits in the sockets of a stopped server is executed, in order."""
    primary, replica = servers.pair()
    replica.process.stop()
    primary.append(1, WRITE_BYTES)
    servers.run(2.0)
    assert replica.data == []
    replica.process.cont()
    servers.run(0.1)
    assert replica.data == [1]


def test_a_killed_redis_that_ends_late(servers: Servers) -> None:
    """It executes nothing behind SIGKILL, and nobody is told: its connections and its port stay taken until it ends."""
    primary, replica = servers.pair()
    primary.dies_late_s = 5.0
    ends: list[object] = []
    primary.on_exit.append(ends.append)
    primary.kill()
    primary.process.run(primary.append, 1, WRITE_BYTES)
    servers.run(4.0)
    assert not primary.ended
    assert not ends
    assert (replica.link_up, replica.data) == (True, [])
    primary.kill()
    servers.run(1.1)
    assert primary.site.redis is None
    assert (replica.link_up, ends) == (False, [primary])
