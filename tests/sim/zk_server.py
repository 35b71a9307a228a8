"""One simulated ZooKeeper server: its copy of the tree, its connections and its watches.

It applies the ensemble's log with a delay of its own and in order, and answers reads and fires watches from what it has
applied. It answers pings by itself and tells the leader every half tick whom it has heard from.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis_agent.messages import ZkError, Znode
from tests.sim.world import Network, Pipe

if TYPE_CHECKING:
    from tests.sim.zookeeper import Ensemble


def parent_of(path: str) -> str:
    return path.rpartition("/")[0] or "/"


class Tree:
    """Znodes by path. Paths are absolute; the root always exists."""

    __slots__ = ("children", "nodes")

    def __init__(self) -> None:
        self.nodes: dict[str, Znode] = {"/": Znode(b"", 0, 0, 0, 0)}
        self.children: dict[str, dict[str, None]] = {"/": {}}

    def copy(self) -> Tree:
        other = Tree()
        other.nodes = dict(self.nodes)
        other.children = {path: dict(names) for path, names in self.children.items()}
        return other

    def set(self, path: str, node: Znode | None) -> None:
        parent, _, name = path.rpartition("/")
        if node is None:
            del self.nodes[path]
            del self.children[path]
            del self.children[parent or "/"][name]
            return
        if path not in self.nodes:
            self.children[path] = {}
            self.children[parent or "/"][name] = None
        self.nodes[path] = node


@dataclass(frozen=True, slots=True)
class Change:
    """One znode before and after a transaction; None: it did not, or does not, exist."""

    path: str
    old: Znode | None
    new: Znode | None


@dataclass(frozen=True, slots=True)
class Txn:
    """A committed transaction. ``session`` is 0 for the ensemble's own and for an operator's."""

    zxid: int
    session: int
    changes: tuple[Change, ...]
    label: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of a submitted transaction: versions if it was committed, else which operation failed and why.

    ``expired``: the session is gone. ``moved``: it lives on another connection, nobody hears the answer.
    """

    zxid: int = 0
    versions: tuple[int, ...] = ()
    index: int = -1
    error: ZkError | None = None
    expired: bool = False
    moved: bool = False


class Session:
    __slots__ = ("conn", "ephemerals", "expires_at", "id", "timeout_s")

    def __init__(self, session_id: int, timeout_s: float) -> None:
        self.id = session_id
        self.timeout_s = timeout_s
        self.expires_at = 0.0
        self.conn: Connection | None = None
        self.ephemerals: dict[str, None] = {}


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
    """One ZooKeeper server: its connections, its watches, and what it has applied of the log."""

    def __init__(self, ensemble: Ensemble, name: str) -> None:
        self.ensemble = ensemble
        self.world = ensemble.world
        self.name = name
        self.up = True
        self.tree = ensemble.tree.copy()
        self.applied = 0
        self.touched: dict[int, None] = {}
        self.conns: dict[Connection, None] = {}
        self.data_watches: Watches = {}
        self.child_watches: Watches = {}
        self._apply_at = 0.0
        self._life = 0
        self._waiting: list[tuple[int, Callable[[], None]]] = []
        self._cut_off = False
        self._deferred: list[tuple[Callable[..., None], tuple[Any, ...]]] = []

    # -- the log ----------------------------------------------------------------------------------------------------

    def learn(self, txn: Txn, committed_at: float) -> None:
        """A transaction is on its way to this server."""
        if self._cut_off:
            self._deferred.append((self.learn, (txn, committed_at)))
            return
        dice = self.world.rng.random()
        lag_s = 0.0002 + 0.001 * dice if dice < 0.99 else self.world.uniform(0.01, 0.15)
        self._apply_at = max(self._apply_at, committed_at + lag_s, self.world.now)
        self.world.at(self._apply_at, self._apply, txn, self._life)

    def to_leader(self, fn: Callable[..., None], *args: Any) -> None:
        """A message to the ensemble's leader; it waits if this server is cut off from it, and is lost if it dies."""
        if self._cut_off:
            self._deferred.append((fn, args))
        else:
            self.world.after(self.ensemble.hop(), self._at_leader, self._life, fn, args)

    def _at_leader(self, life: int, fn: Callable[..., None], args: tuple[Any, ...]) -> None:
        if life == self._life and self.ensemble.up:
            fn(*args)

    def _apply(self, txn: Txn, life: int) -> None:
        if life != self._life:
            return
        self.applied = txn.zxid
        for change in txn.changes:
            self.tree.set(change.path, change.new)
        for change in txn.changes:
            self._fire(self.data_watches, change.path)
            if change.old is None or change.new is None or change.old.czxid != change.new.czxid:
                self._fire(self.child_watches, parent_of(change.path))
                if change.old is not None:
                    self._fire(self.child_watches, change.path)
        while self._waiting and self._waiting[0][0] <= self.applied:
            self._waiting.pop(0)[1]()

    def _fire(self, watches: Watches, path: str) -> None:
        for conn in watches.pop(path, ()):
            if conn.open:
                conn.down.send(conn.client.on_watch, conn, path)

    def when_applied(self, zxid: int, then: Callable[[], None]) -> None:
        """Call ``then`` once this server has applied ``zxid``."""
        if self.applied >= zxid:
            then()
        else:  # kept in order: two writes of different clients may have gone to the leader at the same time
            at = len(self._waiting)
            while at and self._waiting[at - 1][0] > zxid:
                at -= 1
            self._waiting.insert(at, (zxid, then))

    # -- connections ------------------------------------------------------------------------------------------------

    def on_connect(self, conn: Connection, session_id: int, timeout_s: float, last_zxid: int) -> None:
        if not self.up or not self.ensemble.up or self.applied < last_zxid:
            conn.down.send(conn.client.on_closed, conn)
        else:
            self.to_leader(self._attach, conn, session_id, timeout_s)

    def _attach(self, conn: Connection, session_id: int, timeout_s: float) -> None:
        if not conn.open:
            return
        session = self.ensemble.attach(conn, session_id, timeout_s)
        if session is None:
            conn.down.send(conn.client.on_expired, conn)
            return
        conn.session_id = session.id
        self.conns[conn] = None
        self._touch(conn)
        reply_s = self.ensemble.commit_s() if session_id == 0 else 0.0
        self.world.after(reply_s, self._connected, conn, session, session_id == 0)

    def _connected(self, conn: Connection, session: Session, is_new: bool) -> None:
        if conn.open:
            conn.down.send(conn.client.on_connected, conn, session.id, session.timeout_s, is_new)

    def _touch(self, conn: Connection) -> None:
        if self is self.ensemble.servers[0]:  # the leader's own clients need no relay
            session = self.ensemble.sessions.get(conn.session_id)
            if session is not None:
                self.ensemble.touch(session)
        else:
            self.touched[conn.session_id] = None

    def relay(self) -> None:
        """Tell the leader which sessions were heard from since the last time."""
        if self.up and self.ensemble.up and not self._cut_off:
            for session_id in self.touched:
                session = self.ensemble.sessions.get(session_id)
                if session is not None:
                    self.ensemble.touch(session)
            self.touched.clear()

    def on_ping(self, conn: Connection) -> None:
        if conn.open and conn in self.conns:
            self._touch(conn)
            conn.down.send(conn.client.on_pong, conn)

    def on_request(self, conn: Connection, request: Request) -> None:
        """Requests of one connection run one after the other."""
        if not conn.open or conn not in self.conns:
            return
        self._touch(conn)
        conn.queue.append(request)
        if not conn.busy:
            self._next(conn)

    def _next(self, conn: Connection) -> None:
        conn.busy = bool(conn.queue) and conn.open
        if conn.busy:
            life = self._life

            def done() -> None:
                if life == self._life:
                    self._next(conn)

            conn.queue.popleft()(self, conn, done)

    def on_client_closed(self, conn: Connection) -> None:
        """The client's end of the connection is closed; its session lives on. What was received is still done."""
        self.world.after(0.002, self.drop, conn, False)

    def drop(self, conn: Connection, tell: bool = True) -> None:
        if not conn.open:
            return
        conn.open = False
        conn.queue.clear()
        self.conns.pop(conn, None)
        if tell:
            conn.down.send(conn.client.on_closed, conn)

    # -- failures ---------------------------------------------------------------------------------------------------

    def cut_off(self) -> None:
        """The leader can't be reached: pings and reads are still answered here, writes and syncs wait."""
        self._cut_off = self is not self.ensemble.servers[0]

    def rejoin(self) -> None:
        self._cut_off = False
        deferred, self._deferred = self._deferred, []
        for fn, args in deferred:
            fn(*args) if fn == self.learn else self.to_leader(fn, *args)

    def crash(self) -> None:
        """The process dies: touches that were not yet relayed are lost, and so is what was not yet forwarded."""
        self.up = False
        self._life += 1
        self._cut_off = False
        self._deferred.clear()
        self.touched.clear()
        self._waiting.clear()
        self.data_watches.clear()
        self.child_watches.clear()
        for conn in list(self.conns):
            self.drop(conn)

    def restart(self) -> None:
        if not self.up:
            self.up = True
            self._life += 1
            self.tree = self.ensemble.tree.copy()
            self.applied = self.ensemble.zxid
