"""Commands of the core that take several requests to ZooKeeper: Read and Ensure. Only ``coordination`` uses this."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from kazoo.exceptions import (  # type: ignore[import-untyped]
    BadArgumentsError,
    BadVersionError,
    InvalidACLError,
    MarshallingError,
    NoAuthError,
    NoChildrenForEphemeralsError,
    NodeExistsError,
    NoNodeError,
    NotEmptyError,
    RolledBackError,
    RuntimeInconsistency,
    UnimplementedError,
)

from redis_agent.coordination_client import SessionClient
from redis_agent.messages import (
    CommitDone,
    CommitRefused,
    Ensure,
    Read,
    ReadDone,
    WatchFired,
    ZkError,
    ZkEvent,
    Znode,
)

REFUSALS = {
    NoNodeError: ZkError.NO_NODE,
    NodeExistsError: ZkError.NODE_EXISTS,
    BadVersionError: ZkError.BAD_VERSION,
    NoAuthError: ZkError.NO_AUTH,
    NotEmptyError: ZkError.OTHER,
    NoChildrenForEphemeralsError: ZkError.OTHER,
    BadArgumentsError: ZkError.OTHER,
    InvalidACLError: ZkError.OTHER,
    MarshallingError: ZkError.OTHER,
    UnimplementedError: ZkError.OTHER,
}
"""Answers that prove that nothing was done. After any other error the outcome is unknown."""

CONSEQUENCES = (RolledBackError, RuntimeInconsistency)
"""What ZooKeeper reports for the operations before and after the one that failed."""

_WINDOW = 64
"""Requests of one command in flight at a time."""


class Session(Protocol):
    """What a command needs of the session that it runs in."""

    number: int
    client: SessionClient
    clock: Callable[[], float]
    post: Callable[[ZkEvent], None]
    watch: Callable[[Any], None]

    def failure(self, command: Read | Ensure, exc: BaseException) -> None:
        """Answer a command whose outcome is not known."""


_Request = tuple[Callable[[], Any], Callable[[Any], None]]
"""What sends a request, and what takes its answered result."""


class _Pipeline:
    """The requests of one command: sent in order, up to _WINDOW of them without waiting for one another.

    Answers come on the connection's thread, or on the caller's when a request fails at once. So one lock guards the
    counting, and it is never held while anything else is called. Either ``done`` or ``fail`` is called, once.
    """

    def __init__(
        self,
        client: SessionClient,
        requests: Sequence[_Request],
        done: Callable[[], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        self._client = client
        self._requests = requests
        self._done = done
        self._fail = fail
        self._lock = threading.Lock()
        self._outstanding = 0
        self._failed = False
        self._send_window()

    def _send_window(self) -> None:
        window, self._requests = self._requests[:_WINDOW], self._requests[_WINDOW:]
        self._outstanding = len(window)
        if not window:
            self._done()
        with self._client.together():
            for send, take in window:
                send().rawlink(partial(self._on_answer, take))

    def _on_answer(self, take: Callable[[Any], None], result: Any) -> None:
        error: BaseException | None = None
        try:
            take(result)
        except Exception as exc:  # noqa: BLE001  (whatever it is: each command is answered)
            error = exc
        with self._lock:
            first_failure = error is not None and not self._failed
            self._failed = self._failed or first_failure
            self._outstanding -= 1
            window_done = self._outstanding == 0 and not self._failed
        if error is not None and first_failure:
            self._fail(error)
        elif window_done:
            self._send_window()


class Reading:
    """A Read under way: ``sync``, paths, lists and trees in one wave, the data of the trees' children in a second.

    ZooKeeper answers a session's requests in their order, so what is sent in order is read in order. A path's watch is
    armed by ``exists``, which arms it whether the znode is there or not (``get`` doesn't on a missing one), *before*
    the data is read: a change between the two fires the watch and is in the data too.
    """

    def __init__(self, session: Session, command: Read) -> None:
        self._session = session
        self._command = command
        self._sent_at = session.clock()
        self._paths: dict[str, Znode | None] = {}
        self._lists: dict[str, frozenset[str]] = {}
        self._children: dict[str, list[str]] = {}
        self._missing: list[str] = []
        self._trees: dict[str, dict[str, Znode]] = {}
        client, watch = session.client, session.watch
        wave: list[_Request] = []
        if command.sync:
            wave.append((partial(client.sync_async, "/"), _must_succeed))
        for path in command.paths:
            wave.append((partial(client.exists_async, path, watch), _must_succeed))
            wave.append((partial(client.get_async, path), partial(self._take_path, path)))
        takers = [(path, self._take_list) for path in command.lists]
        takers += [(path, self._take_tree) for path in command.trees]
        wave.extend((partial(client.get_children_async, path, watch), partial(take, path)) for path, take in takers)
        _Pipeline(client, wave, self._read_children, self._fail)

    def _take_path(self, path: str, result: Any) -> None:
        found = _unless_missing(result)
        self._paths[path] = None if found is None else _znode(found)

    def _take_list(self, path: str, result: Any) -> None:
        self._lists[path] = frozenset(self._names(path, result))

    def _take_tree(self, path: str, result: Any) -> None:
        self._trees[path] = {}
        self._children[path] = self._names(path, result)

    def _names(self, path: str, result: Any) -> list[str]:
        names: list[str] | None = _unless_missing(result)
        if names is None:
            # The child watch was not armed, so the second wave watches for its creation.
            self._missing.append(path)
        return names or []

    def _take_creation(self, path: str, result: Any) -> None:
        if result.get() is not None:
            # Created since it was listed, before the watch was armed: tell what the watch would have told.
            self._session.post(WatchFired(self._session.number, path))

    def _take_child(self, path: str, child: str, result: Any) -> None:
        # One that vanished since the list was read is left out; the list's watch has fired.
        found = _unless_missing(result)
        if found is not None:
            self._trees[path][child] = _znode(found)

    def _read_children(self) -> None:
        client, watch = self._session.client, self._session.watch
        wave: list[_Request] = [
            (partial(client.get_async, f"{path.rstrip('/')}/{child}"), partial(self._take_child, path, child))
            for path, children in self._children.items()
            for child in children
        ]
        wave += [
            (partial(client.exists_async, path, watch), partial(self._take_creation, path)) for path in self._missing
        ]
        _Pipeline(client, wave, self._finish, self._fail)

    def _finish(self) -> None:
        self._session.post(
            ReadDone(
                session=self._command.session,
                request=self._command.request,
                sent_at=self._sent_at,
                paths=self._paths,
                lists=self._lists,
                trees=self._trees,
            )
        )

    def _fail(self, exc: BaseException) -> None:
        self._session.failure(self._command, exc)


class Ensuring:
    """An Ensure under way: looks first, because a create that is refused costs ZooKeeper as much as one that isn't."""

    def __init__(self, session: Session, command: Ensure) -> None:
        self._session = session
        self._command = command
        self._sent_at = session.clock()
        self._missing: list[int] = []
        self._refused: tuple[int, BaseException] | None = None
        wave: list[_Request] = [
            (partial(session.client.exists_async, path), partial(self._take_existence, index))
            for index, (path, _) in enumerate(command.nodes)
        ]
        _Pipeline(session.client, wave, self._create, self._fail)

    def _take_existence(self, index: int, result: Any) -> None:
        if result.get() is None:
            self._missing.append(index)

    def _create(self) -> None:
        wave: list[_Request] = []
        for index in self._missing:
            path, data = self._command.nodes[index]
            wave.append((partial(self._session.client.create_async, path, data), partial(self._take_creation, index)))
        _Pipeline(self._session.client, wave, self._finish, self._fail)

    def _take_creation(self, index: int, result: Any) -> None:
        exc = result.exception
        if exc is None or isinstance(exc, NodeExistsError):
            return
        if type(exc) not in REFUSALS:
            raise exc
        # The rest is answered all the same; what failed first is the cause.
        self._refused = self._refused or (index, exc)

    def _finish(self) -> None:
        session, command = self._session, self._command
        if self._refused is None:
            session.post(CommitDone(command.session, command.request, self._sent_at, versions=()))
            return
        index, exc = self._refused
        path = command.nodes[index][0]
        chroot = session.client.chroot
        if isinstance(exc, NoNodeError) and path.count("/") == 1 and chroot:
            session.client.session_failed(f"the chroot {chroot} does not exist in ZooKeeper: create it first")
        detail = f"{path}: {reason_of(exc)}"
        session.post(CommitRefused(command.session, command.request, index, REFUSALS[type(exc)], detail))

    def _fail(self, exc: BaseException) -> None:
        self._session.failure(self._command, exc)


def _must_succeed(result: Any) -> None:
    result.get()


def _unless_missing(result: Any) -> Any:
    try:
        return result.get()
    except NoNodeError:
        return None


def _znode(found: tuple[bytes | None, Any]) -> Znode:
    data, stat = found
    return Znode(
        data=data or b"",
        version=stat.version,
        czxid=stat.czxid,
        mzxid=stat.mzxid,
        ephemeral_owner=stat.ephemeralOwner,
    )


def reason_of(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
