"""Replication as Redis 7.0 does it: PSYNC, full resyncs, the stream and its acknowledgements."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from redis_agent.replication import Address
from tests.sim.process import Process
from tests.sim.redis_data import (
    GETACK,
    GETACK_BYTES,
    MAX_LAG_S,
    PING,
    PING_BYTES,
    PING_PERIOD_S,
    REPL_TIMEOUT_S,
    ReplLink,
    Site,
    Sites,
    Snapshot,
    Stream,
)
from tests.sim.world import Network, World

if TYPE_CHECKING:
    from tests.sim.redis import SimRedis, Watcher


class Replication:
    """The half of a redis-server that talks to other servers; `redis.SimRedis` is the whole."""

    world: World
    net: Network
    sites: Sites
    site: Site
    host: str
    process: Process
    watcher: Watcher

    def __init__(self) -> None:
        self.is_primary = False
        self.replid = ""
        self.replid2 = ""
        self.second = -1  # replid2 is valid up to this offset (Redis reports one more)
        self.offset = 0
        self.data: list[int] = []
        self.stream: Stream | None = None
        self.primary_address: Address | None = None
        self.uplink: ReplLink | None = None
        self.link_up = False
        self.cached = False  # there is a position from which a partial resync can be asked for
        self.syncing = False
        self.loading = False
        self.links: dict[ReplLink, None] = {}
        self.good = 0
        self.max_lag_s = MAX_LAG_S
        self.ping_s = PING_PERIOD_S
        self.load_fails = False
        self.dropped: list[int] = []  # the data set that gave way to one which is still being loaded

    # -- the stream -------------------------------------------------------------------------------------------------

    def new_replid(self) -> str:
        return f"{self.world.rng.getrandbits(160):040x}"

    def make_stream(self) -> None:
        self.stream = Stream(self.offset, len(self.data), self.watcher.backlog_entries)

    def append(self, entry: int, size_bytes: int) -> None:
        """A write, PING or GETACK of a primary. Without a backlog the offset stands still."""
        if entry > 0:
            self.data.append(entry)
        if self.stream is not None:
            self.offset += size_bytes
            self.stream.append(self.offset, entry, len(self.data))
            for link in self.links:
                self._pump(link)
            self._trim()

    def _trim(self) -> None:
        """What a replica's connection still has to send is kept, however long that takes."""
        if self.stream is not None and self.stream.over_long:
            self.stream.trim(min((link.sent for link in self.links if link.streaming), default=self.offset))

    def _pump(self, link: ReplLink) -> None:
        """Send what the replica has not got: the kernel has it then, and delivers it also while we are stopped."""
        if not link.streaming or not link.primary_open or self.stream is None or link.sent >= self.offset:
            return
        ends, ids = self.stream.after(link.sent)
        start, link.sent = link.sent, self.offset
        link.down.send(link.replica.process.run, link.replica._receive, link, start, ends, ids)

    def _receive(self, link: ReplLink, start: int, ends: list[int], ids: list[int]) -> None:
        if link is not self.uplink or not self.link_up:
            return
        assert start == self.offset, "the simulated stream has a gap"
        assert self.stream is not None
        link.heard_at = self.process.clock.wall
        for end, entry in zip(ends, ids, strict=True):
            if entry > 0:
                self.data.append(entry)
            elif entry == GETACK:
                link.up.send(link.primary.process.run, link.primary._on_ack, link, self.offset)
            self.offset = end
            self.stream.append(end, entry, len(self.data))
        for other in self.links:
            self._pump(other)
        self._trim()
        self.watcher.advanced(self.whole)

    @property
    def whole(self) -> SimRedis:
        return self  # type: ignore[return-value]

    def send_ack(self) -> None:
        link = self.uplink
        if link is not None and self.link_up:
            link.up.send(link.primary.process.run, link.primary._on_ack, link, self.offset)

    def _on_ack(self, link: ReplLink, offset: int) -> None:
        if link.primary_open:
            link.acked = max(link.acked, offset)
            link.ack_time = self.process.clock.wall
            self.refresh_good()
            self.acknowledged()

    def acknowledged(self) -> None:
        raise NotImplementedError

    def ask_for_acks(self) -> None:
        if self.links:
            self.append(GETACK, GETACK_BYTES)

    def refresh_good(self) -> None:
        """Count the replicas that min-replicas-to-write counts."""
        now = self.process.clock.wall
        good = sum(1 for link in self.links if link.online and now - link.ack_time <= self.max_lag_s)
        if good != self.good:
            self.good = good
            self.watcher.changed(self.whole)

    def replication_cron(self, second: int) -> None:
        now = self.process.clock.wall
        if not self.is_primary:
            self.send_ack()
            link = self.uplink
            if link is not None and self.link_up and now - link.heard_at > REPL_TIMEOUT_S:
                self._lose_uplink(link)
            if link is not None and not (self.link_up or self.syncing or not link.primary.ended):
                self.close_uplink()  # it died before it could answer
            if self.uplink is None:
                self._connect()
        for link in list(self.links):
            if link.online and now - link.ack_time > REPL_TIMEOUT_S:
                self._drop_replica(link)
        if self.is_primary and self.links and second % self.ping_s == 0:
            self.append(PING, PING_BYTES)
        self.refresh_good()

    # -- as a replica -----------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        """Ask the primary for a resync: nothing happens if it isn't there; the next cron tries again."""
        if self.is_primary or self.uplink is not None or self.loading or self.primary_address is None:
            return
        site = self.sites.get(self.primary_address)
        target = site.redis if site is not None else None
        if target is None or target is self or target.ended or not self.net.open(self.host, target.host):
            return
        self.uplink = link = ReplLink(self.net, self.whole, target)
        replid, offset = (self.replid, self.offset) if self.cached else ("?", -1)
        link.up.send(target.process.run, target._on_psync, link, replid, offset)
        self.process.after(REPL_TIMEOUT_S / 6, self._handshake_over, link)

    def _handshake_over(self, link: ReplLink) -> None:
        """A handshake without any answer is given up."""
        if link is self.uplink and not self.link_up and not self.syncing:
            self.close_uplink()

    def close_uplink(self) -> None:
        """Close our end. The position is kept unless a full resync had begun."""
        link, self.uplink = self.uplink, None
        self.link_up = False
        self.syncing = False
        if link is not None:
            link.replica_open = False
            link.up.send(link.primary.process.run, link.primary._on_replica_gone, link)

    def _lose_uplink(self, link: ReplLink) -> None:
        """The primary closed the connection: reconnect at once; if it was refused, with the next cron."""
        if link is self.uplink and not self.loading:
            was_up = self.link_up
            self.close_uplink()
            if was_up:
                self.process.after(self.world.uniform(0.0005, 0.003), self._connect)

    def _on_continue(self, link: ReplLink, replid: str) -> None:
        """+CONTINUE: the new replid is taken before any of its data has come."""
        if link is not self.uplink:
            return
        if replid != self.replid:
            self.replid2, self.second = self.replid, self.offset
            self.replid = replid
            self.drop_replicas()
        self.link_up = True
        link.heard_at = self.process.clock.wall
        if self.stream is None:
            self.make_stream()
        self.watcher.advanced(self.whole)

    def _on_full_resync(self, link: ReplLink) -> None:
        if link is self.uplink:
            self.cached = False
            self.syncing = True

    def _on_rdb(self, link: ReplLink, snapshot: Snapshot) -> None:
        """The file is here: it replaces the one on disk, the old data go, the new are loaded."""
        if link is not self.uplink:
            return
        self.watcher.replaced(self.whole, snapshot)
        self.drop_replicas()
        self.whole.kill_child()
        self.site.disk.dump = snapshot
        self.dropped, self.data = self.data, []
        self.loading = True
        self.watcher.changed(self.whole)
        self.process.after(
            self.watcher.load_s(len(snapshot.data)) + self.site.disk.slow_s, self._loaded, link, snapshot
        )

    def _loaded(self, link: ReplLink, snapshot: Snapshot) -> None:
        self.loading = False
        if self.load_fails:  # for example a file of a newer server: empty, with the old replid and offset
            self.load_fails = False
            self.close_uplink()
            self.watcher.forgot(self.whole)
            return
        self.data, self.dropped = list(snapshot.data), []
        if self.site.disk.mode == "aof":
            self.site.disk.aof = self.data
        self.replid, self.offset = snapshot.replid, snapshot.offset
        self.replid2, self.second = "", -1
        self.make_stream()
        self.cached = True
        self.syncing = False
        self.link_up = True
        link.heard_at = self.process.clock.wall
        link.up.send(link.primary.process.run, link.primary._on_loaded, link, snapshot.offset)
        self.send_ack()
        self.watcher.advanced(self.whole)
        if not link.primary_open:
            self._lose_uplink(link)

    # -- as a primary -----------------------------------------------------------------------------------------------

    def _on_psync(self, link: ReplLink, replid: str, offset: int) -> None:
        replica = link.replica
        may_serve = self.is_primary or self.link_up
        if not link.replica_open or not may_serve or self.loading:
            link.down.send(replica.process.run, replica._lose_uplink, link)
            return
        link.primary_open = True
        link.ack_time = self.process.clock.wall
        self.links[link] = None
        known = replid == self.replid or (replid == self.replid2 and offset <= self.second)
        if known and self.stream is not None and self.stream.start <= offset <= self.offset:
            self.watcher.joined(replica, self.whole, offset)
            link.online = link.streaming = True
            link.sent = offset
            link.down.send(replica.process.run, replica._on_continue, link, self.replid)
            self._pump(link)
            self.refresh_good()
            return
        if self.stream is None:  # the first replica of a server without a backlog: a new history begins
            self.replid, self.replid2, self.second = self.new_replid(), "", -1
            self.make_stream()
        snapshot = Snapshot(list(self.data), self.replid, self.offset)
        link.down.send(replica.process.run, replica._on_full_resync, link)
        self.process.after(self.watcher.transfer_s(len(snapshot.data)), self._send_rdb, link, snapshot)

    def _send_rdb(self, link: ReplLink, snapshot: Snapshot) -> None:
        if link.primary_open:
            link.online = True
            link.ack_time = self.process.clock.wall
            link.down.send(link.replica.process.run, link.replica._on_rdb, link, snapshot)
            self.refresh_good()

    def _on_loaded(self, link: ReplLink, offset: int) -> None:
        """From here on the replica reads what has been buffered for it."""
        if link.primary_open:
            if self.stream is None or offset < self.stream.start:  # more was written than the buffer holds
                self._drop_replica(link)
                return
            link.streaming = True
            link.sent = offset
            self._pump(link)

    def _on_replica_gone(self, link: ReplLink) -> None:
        if link.primary_open:
            link.primary_open = False
            self.links.pop(link, None)
            self.refresh_good()

    def _drop_replica(self, link: ReplLink) -> None:
        if link.primary_open:
            link.primary_open = False
            self.links.pop(link, None)
            link.down.send(link.replica.process.run, link.replica._lose_uplink, link)
            self.refresh_good()

    def drop_replicas(self, links: Iterable[ReplLink] | None = None) -> None:
        for link in list(links or self.links):
            self._drop_replica(link)
