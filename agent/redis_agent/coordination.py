"""The ZooKeeper adapter: carries out the core's ZooKeeper commands and posts what comes of them.

It decides nothing and repeats nothing. Commands are handed to the connection's thread without waiting; answers are
posted from there. The only thread of its own is the one that closes a session, because closing may have to wait.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

from kazoo.exceptions import SessionExpiredError  # type: ignore[import-untyped]
from kazoo.hosts import collect_hosts  # type: ignore[import-untyped]

from redis_agent.coordination_client import ClientSettings, SessionClient, SessionState
from redis_agent.coordination_requests import CONSEQUENCES, REFUSALS, Ensuring, Reading, reason_of
from redis_agent.messages import (
    Check,
    CloseSession,
    Commit,
    CommitDone,
    CommitRefused,
    CommitUnknown,
    Create,
    Delete,
    Ensure,
    OpenSession,
    Put,
    Read,
    ReadFailed,
    SessionClosed,
    SessionDown,
    SessionExpired,
    SessionFailed,
    SessionUp,
    WatchFired,
    ZkCommand,
    ZkError,
    ZkEvent,
)


class Coordination:
    """ZooKeeper for the core. All methods are called from one thread and never block.

    :param hosts: ``host:port,host:port`` with an optional ``/chroot`` at the end.
    :param session_timeout_s: the timeout to ask for; SessionUp tells the negotiated one.
    :param post: takes each event; called on several threads, must not block.
    :param clock: seconds on CLOCK_BOOTTIME.
    :param auth: (scheme, credential) pairs, for example ``("digest", "user:password")``.
    :param protected: only we may change what we create, everyone may read it.
    :param logger: gets kazoo's own log, at debug.
    :raises ValueError: if ``hosts`` can't be understood.
    """

    def __init__(
        self,
        *,
        hosts: str,
        session_timeout_s: float,
        post: Callable[[ZkEvent], None],
        clock: Callable[[], float],
        auth: tuple[tuple[str, str], ...] = (),
        protected: bool = False,
        logger: logging.Logger | None = None,
    ) -> None:
        collect_hosts(hosts)
        self._settings = ClientSettings(
            hosts=hosts,
            session_timeout_s=session_timeout_s,
            clock=clock,
            auth=auth,
            protected=protected,
            logger=logger or logging.getLogger("redis_agent.zookeeper"),
        )
        self._post = post
        self._sessions: dict[int, _Session] = {}

    def execute(self, command: ZkCommand) -> None:
        """Carry out a command. Its answer is posted, possibly before this returns."""
        match command:
            case OpenSession():
                for older in self._sessions.values():
                    older.retire()
                session = _Session(command.session, self._settings, self._post)
                # Before it can say anything: whoever hears of it may order something of it.
                self._sessions = {command.session: session}
                session.start()
            case CloseSession():
                self._close(command)
            case _:
                found = self._sessions.get(command.session)
                if found is None:
                    self._post(_failed(command, "no such session"))
                else:
                    found.execute(command)

    def _close(self, command: CloseSession) -> None:
        session = self._sessions.pop(command.session, None)
        if session is None:
            self._post(SessionClosed(command.session, clean=False))
            return
        name = f"zk-close-{command.session}"
        threading.Thread(target=session.close, args=(command.limit_s,), name=name, daemon=True).start()


class _Session:
    """One ZooKeeper session: its client, and its number in every event."""

    def __init__(self, number: int, settings: ClientSettings, post: Callable[[ZkEvent], None]) -> None:
        self.number = number
        self.post = post
        self.clock = settings.clock
        self._guid = uuid.uuid4().hex
        self._known = False
        self.client = SessionClient(settings, f"zk-session-{number}", self._on_state)
        # kazoo keeps a set of callbacks per path: one and the same object keeps that set at one entry.
        self.watch: Callable[[Any], None] = self._on_watch

    def start(self) -> None:
        self.client.start_async()

    def execute(self, command: Read | Ensure | Commit) -> None:
        match command:
            case Read():
                Reading(self, command)
            case Ensure():
                Ensuring(self, command)
            case Commit():
                self._commit(command)

    def close(self, limit_s: float) -> None:
        self.post(SessionClosed(self.number, clean=self.client.finish(limit_s)))

    def retire(self) -> None:
        self.client.retire()

    def failure(self, command: Read | Ensure | Commit, exc: BaseException) -> None:
        """A request of this command failed in a way that says nothing about the command's outcome."""
        if isinstance(exc, SessionExpiredError):
            # The same path as an expiry that is learnt at a reconnect.
            self.client.session_expired()
        self.post(_failed(command, reason_of(exc)))

    def _on_state(self, state: SessionState, reason: str) -> None:
        match state:
            case SessionState.UP:
                is_new, self._known = not self._known, True
                client = self.client
                self.post(
                    SessionUp(
                        session=self.number,
                        is_new=is_new,
                        zk_session_id=client.zk_session_id,
                        timeout_s=client.timeout_s,
                        sent_at=client.attempted_at,
                        guid=self._guid,
                    )
                )
            case SessionState.DOWN:
                self.post(SessionDown(self.number))
            case SessionState.EXPIRED:
                self.post(SessionExpired(self.number))
            case SessionState.FAILED:
                self.post(SessionFailed(self.number, reason))

    def _on_watch(self, event: Any) -> None:
        # At a disconnection every watch fires without a path; SessionDown and SessionUp tell that already.
        if event.path is not None:
            self.post(WatchFired(self.number, event.path))

    def _commit(self, command: Commit) -> None:
        sent_at = self.clock()
        if command.not_after is not None and sent_at > command.not_after:
            self.post(CommitRefused(self.number, command.request, index=-1, error=ZkError.OTHER, detail="late"))
            return
        transaction = self.client.transaction()
        for op in command.ops:
            match op:
                case Create():
                    transaction.create(op.path, op.data, ephemeral=op.ephemeral)
                case Put():
                    transaction.set_data(op.path, op.data, op.version)
                case Delete():
                    transaction.delete(op.path, op.version)
                case Check():
                    transaction.check(op.path, op.version)
        transaction.commit_async().rawlink(partial(self._on_committed, command, sent_at))

    def _on_committed(self, command: Commit, sent_at: float, result: Any) -> None:
        if result.exception is not None:
            self._commit_failed(command, -1, result.exception)
            return
        errors = [(index, each) for index, each in enumerate(result.value) if isinstance(each, BaseException)]
        if errors:
            causes = (each for each in errors if not isinstance(each[1], CONSEQUENCES))
            index, error = next(causes, errors[0])
            # A transaction whose operations were refused one by one was not done, whatever the error is.
            kind = REFUSALS.get(type(error), ZkError.OTHER)
            self.post(CommitRefused(self.number, command.request, index, kind, reason_of(error)))
            return
        versions = tuple(_version(op, each) for op, each in zip(command.ops, result.value, strict=True))
        self.post(CommitDone(self.number, command.request, sent_at, versions))

    def _commit_failed(self, command: Commit, index: int, exc: BaseException) -> None:
        kind = REFUSALS.get(type(exc))
        if kind is None:
            self.failure(command, exc)
        else:
            self.post(CommitRefused(self.number, command.request, index, kind, reason_of(exc)))


def _version(op: Create | Put | Delete | Check, result: Any) -> int:
    match op:
        case Create():
            return 0
        case Put():
            return int(result.version)
        case _:
            return -1


def _failed(command: Read | Ensure | Commit, reason: str) -> ReadFailed | CommitUnknown:
    if isinstance(command, Read):
        return ReadFailed(command.session, command.request, reason)
    return CommitUnknown(command.session, command.request, reason)
