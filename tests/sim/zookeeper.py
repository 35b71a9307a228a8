"""A simulated ZooKeeper ensemble, as far as its clients can tell it from the real one.

One log decides (`Ensemble.submit`); each server (`zk_server`) applies it later. The ensemble's leader ends sessions on
tick boundaries, never early, by what the servers have told it. A request binds to the connection that it came by: once
the session has moved to another connection, or is over, the request is dropped.

The client's half is in `zk_client`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from redis_agent.messages import Check, Create, Delete, Op, Put, ZkError, Znode
from tests.sim.world import Network, World
from tests.sim.zk_server import Change, Connection, Outcome, Server, Session, Tree, Txn, parent_of

MISSING = Znode(b"", -1, 0, 0, 0)


class Ensemble:
    """The log and the sessions: what the ensemble's leader knows. Server 0 stands for that leader."""

    def __init__(self, world: World, net: Network, *, tick_s: float = 2.0, servers: int = 3) -> None:
        self.world = world
        self.net = net
        self.tick_s = tick_s
        self.up = True
        self.tree = Tree()
        self.zxid = 0
        self.sessions: dict[int, Session] = {}
        self.on_commit: list[Callable[[Txn], None]] = []
        self._next_session = 0x1000
        self.servers = [Server(self, f"zk{number + 1}") for number in range(servers)]
        self._phase = world.uniform(0.0, tick_s)
        world.at(world.now + self._phase, self._expire_due)
        self._commit_at = 0.0
        for server in self.servers[1:]:
            world.after(world.uniform(0.0, tick_s / 2), self._relay, server)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(server.name for server in self.servers)

    def hop(self) -> float:
        """Between two servers."""
        return self.net.delay("zk1", "zk2")

    def commit_s(self) -> float:
        """A quorum has it on disk; now and then a disk is slow."""
        dice = self.world.rng.random()
        return 0.0008 + 0.0012 * dice if dice < 0.995 else self.world.uniform(0.02, 0.3)

    # -- sessions ---------------------------------------------------------------------------------------------------

    def attach(self, conn: Connection, session_id: int, timeout_s: float) -> Session | None:
        """A new session (0), or this one moves to the connection; None if it has expired."""
        if session_id == 0:
            self._next_session += 1
            session = Session(self._next_session, min(max(timeout_s, 2 * self.tick_s), 20 * self.tick_s))
            self.sessions[session.id] = session
        else:
            found = self.sessions.get(session_id)
            if found is None:
                return None
            session = found
            if session.conn is not None:
                session.conn.server.drop(session.conn, False)
        session.conn = conn
        self.touch(session)
        return session

    def touch(self, session: Session) -> None:
        """Push the expiry out. It falls on the tick boundary after the timeout: never early."""
        until = self.world.now + session.timeout_s - self._phase
        session.expires_at = max(session.expires_at, (until // self.tick_s + 1) * self.tick_s + self._phase)

    def _relay(self, server: Server) -> None:
        self.world.after(self.tick_s / 2, self._relay, server)
        server.relay()

    def _expire_due(self) -> None:
        self.world.after(self.tick_s, self._expire_due)
        if not self.up:
            return
        for session in list(self.sessions.values()):
            if session.expires_at <= self.world.now + 1e-9:
                self.end_session(session.id, "expired")

    def end_session(self, session_id: int, why: str) -> None:
        """The session is over, by expiry or because its client closed it: its ephemerals go in one transaction."""
        session = self.sessions.pop(session_id, None)
        if session is None:
            return
        if self.world.tracing:
            self.world.log("zk", f"session {session_id:#x} {why}")
        changes = tuple(Change(path, self.tree.nodes[path], None) for path in session.ephemerals)
        self._commit(0, changes, f"session {session_id:#x} {why}")
        if session.conn is not None:
            session.conn.server.drop(session.conn)

    # -- transactions -----------------------------------------------------------------------------------------------

    def submit(self, conn: Connection, ops: tuple[Op, ...], label: str) -> Outcome:
        """Decide a transaction of a client, now."""
        session = self.sessions.get(conn.session_id)
        if session is None:
            return Outcome(expired=True)
        if session.conn is not conn:
            return Outcome(moved=True)
        return self.decide(session, ops, label)

    def decide(self, session: Session | None, ops: tuple[Op, ...], label: str) -> Outcome:
        """All or nothing. Without a session: an operator's own hand."""
        zxid = self.zxid + 1
        view: dict[str, Znode | None] = {}
        versions: list[int] = []
        for index, op in enumerate(ops):
            error = self._try(op, view, zxid, session, versions)
            if error is not None:
                if self.world.tracing:
                    self.world.log("zk", f"refused [{label}]: op {index} {type(op).__name__} {op.path}: {error.value}")
                return Outcome(index=index, error=error)
        changes = tuple(Change(path, self.tree.nodes.get(path), new) for path, new in view.items())
        self._commit(session.id if session else 0, tuple(c for c in changes if c.old is not c.new), label)
        return Outcome(zxid=self.zxid, versions=tuple(versions))

    def _try(
        self, op: Op, view: dict[str, Znode | None], zxid: int, session: Session | None, versions: list[int]
    ) -> ZkError | None:
        node = view[op.path] if op.path in view else self.tree.nodes.get(op.path)
        if isinstance(op, Create):
            if node is not None:
                return ZkError.NODE_EXISTS
            parent = parent_of(op.path)
            above = view[parent] if parent in view else self.tree.nodes.get(parent)
            if above is None:
                return ZkError.NO_NODE
            if above.ephemeral_owner or (op.ephemeral and session is None):
                return ZkError.OTHER
            owner = session.id if op.ephemeral and session is not None else 0
            view[op.path] = Znode(op.data, 0, zxid, zxid, owner)
            versions.append(0)
            return None
        if node is None:
            return ZkError.NO_NODE
        if op.version not in (-1, node.version):
            return ZkError.BAD_VERSION
        if isinstance(op, Put):
            view[op.path] = Znode(op.data, node.version + 1, node.czxid, zxid, node.ephemeral_owner)
            versions.append(node.version + 1)
            return None
        if isinstance(op, Delete):
            if any(True for _ in self._children_in(op.path, view)):
                return ZkError.OTHER
            view[op.path] = None
        else:
            assert isinstance(op, Check)
        versions.append(-1)
        return None

    def _children_in(self, path: str, view: dict[str, Znode | None]) -> Iterator[str]:
        prefix = path.rstrip("/") + "/"
        for name in self.tree.children.get(path, ()):
            if view.get(prefix + name, MISSING) is not None:
                yield name
        for other, node in view.items():
            if node is not None and parent_of(other) == path and other not in self.tree.nodes:
                yield other.rpartition("/")[2]

    def _commit(self, session_id: int, changes: tuple[Change, ...], label: str) -> None:
        self.zxid += 1
        txn = Txn(self.zxid, session_id, changes, label)
        for change in changes:
            if change.old is not None and change.old.ephemeral_owner:
                owner = self.sessions.get(change.old.ephemeral_owner)
                if owner is not None:
                    owner.ephemerals.pop(change.path, None)
            if change.new is not None and change.new.ephemeral_owner:
                self.sessions[change.new.ephemeral_owner].ephemerals[change.path] = None
            self.tree.set(change.path, change.new)
        for hook in self.on_commit:
            hook(txn)
        self._commit_at = max(self._commit_at, self.world.now + self.commit_s())
        for server in self.servers:
            if server.up:
                server.learn(txn, self._commit_at)

    # -- failures ---------------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """No quorum: every connection breaks, no session ends."""
        self.up = False
        for server in self.servers:
            server.crash()

    def start(self) -> None:
        """A new leader among the servers gives every session a fresh timeout."""
        self.up = True
        for server in self.servers:
            server.restart()
        for session in self.sessions.values():
            self.touch(session)
