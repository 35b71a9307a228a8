"""One observer's connection to ZooKeeper: a session of its own, or a kazoo client that the application owns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from kazoo.exceptions import NoNodeError, SessionExpiredError  # type: ignore[import-untyped]
from kazoo.protocol.states import KazooState  # type: ignore[import-untyped]

from redis_agent.client.view import boottime_s
from redis_agent.coordination_client import ClientSettings, SessionClient, SessionState


@dataclass(frozen=True, slots=True)
class Found:
    """What a read found; ``data`` is None if the znode does not exist."""

    data: bytes | None
    czxid: int


@dataclass(frozen=True, slots=True)
class StateChanged:
    """The connection is up, down, or its session is over."""

    link: Link
    state: SessionState
    reason: str


@dataclass(frozen=True, slots=True)
class Changed:
    """The watch fired: a hint to read."""

    link: Link


@dataclass(frozen=True, slots=True)
class ReadAnswered:
    """The answer to a read. ``proves_contact``: it went through ZooKeeper's leader (sync)."""

    link: Link
    sent_at: float
    proves_contact: bool
    found: Found | None
    """None: the read failed, nothing is known."""


LinkEvent = StateChanged | Changed | ReadAnswered


class Link(Protocol):
    """A connection. Events are posted from its own thread."""

    @property
    def timeout_s(self) -> float:
        """The session timeout, the negotiated one where it is known."""

    def start(self) -> None: ...

    def read(self, *, sync: bool) -> None:
        """Arm the watch and read. Never blocks; answered by one ReadAnswered, also if it can't be sent."""

    def finish(self, limit_s: float) -> None:
        """End it, within about ``limit_s``."""


class _Read:
    """``sync``, ``exists`` with the watch, ``get``: sent in one go, answered in order.

    ``exists`` arms the watch whether the znode is there or not, before the data is read: a change in between fires the
    watch and is in the data, too.
    """

    def __init__(self, link: Link, client: Any, path: str, watch: Callable[[Any], None], *, sync: bool) -> None:
        self.failure: BaseException | None = None
        self._link = link
        self._sync = sync
        self._sent_at = boottime_s()
        self._results: list[Any] = []
        if sync:
            self._results.append(client.sync_async("/"))
        self._results.append(client.exists_async(path, watch))
        self._results.append(client.get_async(path))

    def then(self, done: Callable[[_Read], None]) -> None:
        # The last answer comes last, or all of them fail together.
        self._results[-1].rawlink(lambda _: done(self))

    def answer(self) -> ReadAnswered:
        found: Found | None = None
        error = next((each.exception for each in self._results[:-1] if each.exception is not None), None)
        last = self._results[-1]
        if error is None and isinstance(last.exception, NoNodeError):
            found = Found(None, 0)
        elif error is None and last.exception is None:
            data, stat = last.value
            found = Found(data, stat.czxid)
        self.failure = error or (last.exception if found is None else None)
        return ReadAnswered(self._link, self._sent_at, self._sync and found is not None, found)


class SessionLink:
    """A ZooKeeper session of our own. When it has expired, the next link is a new object."""

    def __init__(
        self,
        hosts: str,
        path: str,
        session_timeout_s: float,
        auth: tuple[tuple[str, str], ...],
        post: Callable[[LinkEvent], None],
    ) -> None:
        self._path = path
        self._post = post
        settings = ClientSettings(hosts=hosts, session_timeout_s=session_timeout_s, clock=boottime_s, auth=auth)
        self._client = SessionClient(settings, "redis-agent-observer-zk", self._on_state)
        # kazoo keeps a set of callbacks per path: one and the same object keeps that set at one entry.
        self._watch = self._on_watch

    @property
    def timeout_s(self) -> float:
        return self._client.timeout_s

    def start(self) -> None:
        self._client.start_async()

    def read(self, *, sync: bool) -> None:
        _Read(self, self._client, self._path, self._watch, sync=sync).then(self._on_read)

    def finish(self, limit_s: float) -> None:
        self._client.finish(limit_s)

    def _on_state(self, state: SessionState, reason: str) -> None:
        self._post(StateChanged(self, state, reason))

    def _on_watch(self, event: Any) -> None:
        # At a disconnection every watch fires without a path; the state change tells that already.
        if event.path is not None:
            self._post(Changed(self))

    def _on_read(self, read: _Read) -> None:
        answer = read.answer()
        if isinstance(read.failure, SessionExpiredError):
            # An expiry can be learnt from an answer, too.
            self._client.session_expired()
        self._post(answer)


class BorrowedLink:
    """A kazoo client that the application made, started and will stop. After an expiry it goes on by itself."""

    def __init__(self, client: Any, path: str, session_timeout_s: float, post: Callable[[LinkEvent], None]) -> None:
        self._client = client
        self._path = path
        self._post = post
        self._watch = self._on_watch
        self.timeout_s = session_timeout_s

    def start(self) -> None:
        self._client.add_listener(self._on_state)
        if self._client.state == KazooState.CONNECTED:
            self._post(StateChanged(self, SessionState.UP, ""))

    def read(self, *, sync: bool) -> None:
        if self._client.state != KazooState.CONNECTED:
            # Stock kazoo would queue it, without limit.
            self._post(ReadAnswered(self, boottime_s(), proves_contact=False, found=None))
            return
        _Read(self, self._client, self._path, self._watch, sync=sync).then(lambda read: self._post(read.answer()))

    def finish(self, limit_s: float) -> None:  # noqa: ARG002  (nothing to wait for)
        self._client.remove_listener(self._on_state)

    def _on_state(self, state: str) -> None:
        up = state == KazooState.CONNECTED
        self._post(StateChanged(self, SessionState.UP if up else SessionState.DOWN, ""))

    def _on_watch(self, event: Any) -> None:
        if event.path is not None:
            self._post(Changed(self))
