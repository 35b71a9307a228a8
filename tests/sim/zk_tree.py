"""What simulated ZooKeeper servers agree on: znodes and sessions, and the transactions that change them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from redis_agent.messages import Check, Create, Delete, Op, Put, ZkError, Znode

MISSING = Znode(b"", -1, 0, 0, 0)


def parent_of(path: str) -> str:
    return path.rpartition("/")[0] or "/"


@dataclass(frozen=True, slots=True)
class Change:
    """One znode before and after a transaction; None: it did not, or does not, exist."""

    path: str
    old: Znode | None
    new: Znode | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of a request: the versions if it was committed, else which operation failed and why.

    ``expired``: the session is gone. ``moved``: it lives on another server, nobody hears the answer.
    """

    versions: tuple[int, ...] = ()
    index: int = -1
    error: ZkError | None = None
    expired: bool = False
    moved: bool = False


@dataclass(frozen=True, slots=True)
class Txn:
    """A transaction, as it is proposed and logged. One that was refused is logged too, without changes.

    ``session`` is 0 for the ensemble's own and for an operator's. ``opens`` and ``ends`` name a session, or are 0.
    The server ``origin`` answers its ``request`` when it applies this.
    """

    zxid: int
    session: int = 0
    changes: tuple[Change, ...] = ()
    label: str = ""
    opens: int = 0
    timeout_s: float = 0.0
    ends: int = 0
    origin: object = None
    request: int = 0
    outcome: Outcome = Outcome()


class Tree:
    """Znodes by path, and sessions with their ephemerals. Paths are absolute; the root always exists."""

    __slots__ = ("children", "ephemerals", "nodes", "sessions")

    def __init__(self) -> None:
        self.nodes: dict[str, Znode] = {"/": Znode(b"", 0, 0, 0, 0)}
        self.children: dict[str, dict[str, None]] = {"/": {}}
        self.sessions: dict[int, float] = {}
        self.ephemerals: dict[int, dict[str, None]] = {}

    def copy(self) -> Tree:
        other = Tree()
        other.nodes = dict(self.nodes)
        other.children = {path: dict(names) for path, names in self.children.items()}
        other.sessions = dict(self.sessions)
        other.ephemerals = {session: dict(paths) for session, paths in self.ephemerals.items()}
        return other

    def apply(self, txn: Txn) -> None:
        if txn.opens:
            self.sessions[txn.opens] = txn.timeout_s
        for change in txn.changes:
            self._set(change.path, change.old, change.new)
        if txn.ends:
            del self.sessions[txn.ends]
            self.ephemerals.pop(txn.ends, None)

    def _set(self, path: str, old: Znode | None, node: Znode | None) -> None:
        parent, _, name = path.rpartition("/")
        if old is not None and old.ephemeral_owner:
            self.ephemerals[old.ephemeral_owner].pop(path, None)
        if node is None:
            del self.nodes[path]
            del self.children[path]
            del self.children[parent or "/"][name]
            return
        if node.ephemeral_owner:
            self.ephemerals.setdefault(node.ephemeral_owner, {})[path] = None
        if path not in self.nodes:
            self.children[path] = {}
            self.children[parent or "/"][name] = None
        self.nodes[path] = node

    def end(self, session: int) -> tuple[Change, ...]:
        """What the end of a session changes."""
        return tuple(Change(path, self.nodes[path], None) for path in self.ephemerals.get(session, ()))

    def decide(self, ops: tuple[Op, ...], zxid: int, session: int) -> tuple[Outcome, tuple[Change, ...]]:
        """All or nothing."""
        view: dict[str, Znode | None] = {}
        versions: list[int] = []
        for index, op in enumerate(ops):
            error = self._try(op, view, zxid, session, versions)
            if error is not None:
                return Outcome(index=index, error=error), ()
        changes = (Change(path, self.nodes.get(path), new) for path, new in view.items())
        return Outcome(versions=tuple(versions)), tuple(each for each in changes if each.old is not each.new)

    def _try(
        self, op: Op, view: dict[str, Znode | None], zxid: int, session: int, versions: list[int]
    ) -> ZkError | None:
        node = view[op.path] if op.path in view else self.nodes.get(op.path)
        if isinstance(op, Create):
            if node is not None:
                return ZkError.NODE_EXISTS
            parent = parent_of(op.path)
            above = view[parent] if parent in view else self.nodes.get(parent)
            if above is None:
                return ZkError.NO_NODE
            if above.ephemeral_owner or (op.ephemeral and not session):
                return ZkError.OTHER
            view[op.path] = Znode(op.data, 0, zxid, zxid, session if op.ephemeral else 0)
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
        for name in self.children.get(path, ()):
            if view.get(prefix + name, MISSING) is not None:
                yield name
        for other, node in view.items():
            if node is not None and parent_of(other) == path and other not in self.nodes:
                yield other.rpartition("/")[2]
