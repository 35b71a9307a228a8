"""One simulated ZooKeeper server: its log, its copy of the tree, its connections and its watches.

It leads (`reign`), follows (`link`), or looks for a leader, and serves clients only in the first two. It applies what
is committed in order and a little late, answers reads and pings and fires watches by itself, and tells the leader every
half tick whom it has heard from. Without its leader it goes on like that until syncLimit is over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from redis_agent.messages import Op
from tests.sim.process import Process
from tests.sim.world import Network, Pipe
from tests.sim.zk_leader import SYNC_LIMIT_TICKS, Link, Reign
from tests.sim.zk_tree import Outcome, Tree, Txn, parent_of

if TYPE_CHECKING:
    from tests.sim.zookeeper import Ensemble

Request = Callable[["Server", "Connection", Callable[[], None]], None]
"""Runs at the server, for a connection; must call its third argument once the next request may start."""


class Connection:
    """One TCP connection of a client to a server. The pipes keep each direction in order."""

    __slots__ = ("busy", "client", "down", "open", "queue", "server", "session_id", "up")

    def __init__(self, net: Network, host: str, server: Server, client: Listener) -> None:
        self.client = client
        self.server = server
        self.session_id = 0
        self.open = True  # the server's end; the client's end is open while it is the client's current connection
        self.up = Pipe(net, host, server.name)
        self.down = Pipe(net, server.name, host)
        self.queue: deque[Request] = deque()
        self.busy = False


class Listener:
    """What a server sends to a client: see `zk_client.ZkClient`."""

    def on_connected(self, conn: Connection, session_id: int, timeout_s: float, is_new: bool) -> None:
        raise NotImplementedError

    def on_expired(self, conn: Connection) -> None:
        raise NotImplementedError

    def on_closed(self, conn: Connection) -> None:
        raise NotImplementedError

    def on_pong(self, conn: Connection) -> None:
        raise NotImplementedError

    def on_watch(self, conn: Connection, path: str) -> None:
        raise NotImplementedError


Watches = dict[str, dict[Connection, None]]


class Server:
    """One ZooKeeper server. ``epoch`` is that of the newest leader that it has followed, or was."""

    def __init__(self, ensemble: Ensemble, name: str) -> None:
        self.ensemble = ensemble
        self.world = ensemble.world
        self.name = name
        self.process = Process(self.world, name, name)
        self.reign: Reign | None = None
        self.link: Link | None = None
        self.leader_heard_at = 0.0
        self.epoch = 0
        self.blank = False
        self.tree = Tree()
        self.applied = 0
        self.last_logged = 0
        self.tail: deque[Txn] = deque()
        self.touched: dict[int, None] = {}
        self.conns: dict[Connection, None] = {}
        self.data_watches: Watches = {}
        self.child_watches: Watches = {}
        self._disk_at = 0.0
        self._late: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._request = 0
        self._calls: dict[int, Callable[[Outcome], None]] = {}

    @property
    def up(self) -> bool:
        """Clients get answers."""
        return self.process.alive and not self.process.stopped and (self.reign is not None or self.link is not None)

    @property
    def looking(self) -> bool:
        return self.process.alive and self.reign is None and self.link is None

    # -- the log ----------------------------------------------------------------------------------------------------

    def fsync(self, then: Callable[..., None], *args: Any) -> None:
        """``then(*args)`` once it is on disk, in order; now and then a disk is slow."""
        dice = self.world.rng.random()
        needs_s = 0.0005 + 0.0009 * dice if dice < 0.997 else self.world.uniform(0.02, 0.3)
        self._disk_at = max(self._disk_at, self.world.now + needs_s)
        self.world.at(self._disk_at, self.process.run, then, *args)

    def stall_disk(self, for_s: float) -> None:
        """Nothing gets to the disk for this long."""
        self._disk_at = max(self._disk_at, self.world.now + for_s)

    def log(self, txn: Txn) -> None:
        if txn.zxid > self.last_logged:
            self.last_logged = txn.zxid
            self.tail.append(txn)

    def log_late(self, epoch: int, txn: Txn) -> None:
        """Its reign, or this server's part in it, ended on the way to the disk."""
        if self.looking and self.epoch == epoch:
            self.log(txn)

    def apply(self, txn: Txn) -> None:
        """It is committed."""
        self.applied = txn.zxid
        self.last_logged = max(self.last_logged, txn.zxid)
        while self.tail and self.tail[0].zxid <= txn.zxid:
            self.tail.popleft()
        self.tree.apply(txn)
        for change in txn.changes:
            self._fire(self.data_watches, change.path)
            if change.old is None or change.new is None or change.old.czxid != change.new.czxid:
                self._fire(self.child_watches, parent_of(change.path))
                if change.old is not None:
                    self._fire(self.child_watches, change.path)
        if txn.origin is self:
            then = self._calls.pop(txn.request, None)
            if then is not None:
                then(txn.outcome)
        if txn.ends:
            for conn in [conn for conn in self.conns if conn.session_id == txn.ends]:
                self.drop(conn)

    def _fire(self, watches: Watches, path: str) -> None:
        for conn in watches.pop(path, ()):
            if conn.open:
                conn.down.send(conn.client.on_watch, conn, path)

    # -- leading, following, looking --------------------------------------------------------------------------------

    def lead(self, epoch: int) -> Reign:
        """Elected: whatever it has logged is committed now."""
        for txn in list(self.tail):
            self.ensemble.commit(txn)
            self.apply(txn)
        self.epoch = epoch
        self.reign = Reign(self.ensemble, self, epoch)
        return self.reign

    def follow(self, link: Link) -> None:
        """In step with this leader from now on; what only this server had logged is gone."""
        leader = link.leader
        self.link = link
        self.epoch = link.reign.epoch
        self.blank = False
        self.tree = leader.tree.copy()
        self.applied = self.last_logged = leader.applied
        self.tail.clear()
        self.leader_heard_at = self.world.now
        self.process.after(self._sync_limit_s, self._check_leader, link)

    @property
    def _sync_limit_s(self) -> float:
        return SYNC_LIMIT_TICKS * self.ensemble.tick_s

    def _check_leader(self, link: Link) -> None:
        if link is self.link:
            left_s = self.leader_heard_at + self._sync_limit_s - self.world.now
            if left_s > 1e-9:
                self.process.after(left_s, self._check_leader, link)
            else:
                self.look_for_leader("its leader is silent")

    def on_leader_gone(self) -> None:
        self.look_for_leader("its leader closed the connection")

    def look_for_leader(self, why: str) -> None:
        """Clients are dropped, and what they asked for is forgotten here."""
        if self.looking:
            return
        if self.world.tracing:
            self.world.log("zk", f"{self.name} looks for a leader: {why}")
        self._leave()
        self.ensemble.look(self)

    def _leave(self) -> None:
        reign, self.reign = self.reign, None
        link, self.link = self.link, None
        if reign is not None:
            reign.end_reign()
        if link is not None:
            link.to_leader(link.reign.on_gone, self)
        self._calls.clear()
        self._late.clear()
        self.touched.clear()
        self.data_watches.clear()
        self.child_watches.clear()
        for conn in list(self.conns):
            self.drop(conn)

    def on_proposal(self, link: Link, txn: Txn) -> None:
        self.fsync(self._on_logged, link, txn)

    def _on_logged(self, link: Link, txn: Txn) -> None:
        if self.link is link:
            self.log(txn)
            link.to_leader(link.reign.on_ack, link, txn.zxid)
        else:
            self.log_late(link.reign.epoch, txn)

    def on_commit(self, txn: Txn) -> None:
        self.in_order(self.apply, txn)

    def in_order(self, fn: Callable[..., None], *args: Any) -> None:
        """What the leader sends is done in its order, now and then a little late."""
        if self._late:
            self._late.append((fn, args))
        elif self.world.chance(0.01):
            self._late.append((fn, args))
            self.process.after(self.world.uniform(0.01, 0.15), self._catch_up)
        else:
            fn(*args)

    def _catch_up(self) -> None:
        late = self._late
        while late:
            fn, args = late.popleft()
            fn(*args)

    def on_leader_ping(self, link: Link) -> None:
        touched, self.touched = self.touched, {}
        link.to_leader(link.reign.on_relay, touched)

    # -- what needs the leader --------------------------------------------------------------------------------------

    def submit(self, conn: Connection, ops: tuple[Op, ...], label: str, then: Callable[[Outcome], None]) -> None:
        """A transaction; ``then`` is called when this server has applied it, or its refusal."""
        number = self._number(then)
        reign = self.reign
        if reign is not None:
            reign.request(self, number, conn.session_id, ops, label)
        elif self.link is not None:
            link = self.link
            link.to_leader(link.reign.request, self, number, conn.session_id, ops, label)

    def end_session(self, conn: Connection, then: Callable[[Outcome], None]) -> None:
        """The client closes its session."""
        number = self._number(then)
        reign = self.reign
        if reign is not None:
            reign.end(self, number, conn.session_id, "closed")
        elif self.link is not None:
            self.link.to_leader(self.link.reign.end, self, number, conn.session_id, "closed")

    def _number(self, then: Callable[[Outcome], None]) -> int:
        self._request += 1
        self._calls[self._request] = then
        return self._request

    def sync(self, then: Callable[[], None]) -> None:
        """``then`` is called when this server is as far as its leader was when that heard of it."""
        if self.reign is not None:
            self.reign.sync(then)
        elif self.link is not None:
            link = self.link
            link.to_leader(link.reign.sync, lambda: link.to_follower(self.in_order, then))

    # -- connections ------------------------------------------------------------------------------------------------

    def accept(self, conn: Connection, session_id: int, timeout_s: float, last_zxid: int) -> None:
        if self.process.alive:
            self.process.run(self._on_connect, conn, session_id, timeout_s, last_zxid)
        else:
            conn.down.send(conn.client.on_closed, conn)

    def _on_connect(self, conn: Connection, session_id: int, timeout_s: float, last_zxid: int) -> None:
        if not conn.open:
            return
        if self.looking or self.applied < last_zxid:
            conn.open = False
            conn.down.send(conn.client.on_closed, conn)
            return
        self.conns[conn] = None
        if session_id == 0:
            self._open_session(conn, timeout_s)
            return
        for older in [each for each in self.conns if each.session_id == session_id]:
            self.drop(older, False)

        def answer(negotiated_s: float) -> None:
            self._connected(conn, session_id, negotiated_s, False)

        link = self.link
        if self.reign is not None:
            self.reign.revalidate(self, session_id, answer)
        elif link is not None:
            link.to_leader(link.reign.revalidate, self, session_id, lambda told_s: link.to_follower(answer, told_s))

    def _open_session(self, conn: Connection, timeout_s: float) -> None:
        session_id = self.ensemble.new_session_id()

        def opened(_outcome: Outcome) -> None:
            self._connected(conn, session_id, self.tree.sessions[session_id], True)

        number = self._number(opened)
        if self.reign is not None:
            self.reign.open(self, number, session_id, timeout_s)
        elif self.link is not None:
            self.link.to_leader(self.link.reign.open, self, number, session_id, timeout_s)

    def _connected(self, conn: Connection, session_id: int, timeout_s: float, is_new: bool) -> None:
        if not conn.open:
            return
        if timeout_s <= 0.0:
            conn.down.send(conn.client.on_expired, conn)
            self.drop(conn, False)
            return
        conn.session_id = session_id
        self._touch(conn)
        conn.down.send(conn.client.on_connected, conn, session_id, timeout_s, is_new)

    def _touch(self, conn: Connection) -> None:
        if self.reign is not None:  # the leader's own clients need no relay
            self.reign.touch(conn.session_id)
        else:
            self.touched[conn.session_id] = None

    def on_ping(self, conn: Connection) -> None:
        self.process.run(self._on_ping, conn)

    def _on_ping(self, conn: Connection) -> None:
        if conn in self.conns:
            self._touch(conn)
            conn.down.send(conn.client.on_pong, conn)

    def on_request(self, conn: Connection, request: Request) -> None:
        """Requests of one connection run one after the other."""
        self.process.run(self._on_request, conn, request)

    def _on_request(self, conn: Connection, request: Request) -> None:
        if conn not in self.conns:
            return
        self._touch(conn)
        conn.queue.append(request)
        if not conn.busy:
            self._next(conn)

    def _next(self, conn: Connection) -> None:
        conn.busy = bool(conn.queue) and conn.open
        if conn.busy:
            conn.queue.popleft()(self, conn, lambda: self._next(conn))

    def on_client_closed(self, conn: Connection) -> None:
        """The client's end of the connection is closed; its session lives on. What was received is still done."""
        self.process.after(0.002, self.drop, conn, False)

    def drop(self, conn: Connection, tell: bool = True) -> None:
        if not conn.open:
            return
        conn.open = False
        conn.queue.clear()
        self.conns.pop(conn, None)
        if tell:
            conn.down.send(conn.client.on_closed, conn)

    # -- failures ---------------------------------------------------------------------------------------------------

    def crash(self) -> None:
        """The process dies. What is on disk stays; its neighbours' connections break."""
        if self.process.alive:
            self.process.kill()
            self._leave()

    def restart(self, *, blank: bool = False) -> None:
        """``blank``: its disk is empty. It has no vote until some leader has brought it up to date."""
        if self.process.alive:
            return
        self.process = Process(self.world, self.name, self.name)
        if blank:
            self.blank = True
            self.tree = Tree()
            self.tail.clear()
            self.epoch = self.applied = self.last_logged = 0
        self.ensemble.look(self)

    def pause(self) -> None:
        """A long garbage collection, or SIGSTOP."""
        self.process.stop()

    def resume(self) -> None:
        """Continue; the thread that ends sessions may be the first to run, before what has come in meanwhile."""
        if self.process.stopped:
            if self.reign is not None and self.world.chance(0.5):
                self.reign.expire_due()
            self.process.cont()
