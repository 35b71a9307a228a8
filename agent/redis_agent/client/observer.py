"""Who leads, kept up to date by ZooKeeper's watches, and safe mode whenever that can't be said."""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from redis_agent.client.errors import ObserverForked, SafeModeError
from redis_agent.client.link import (
    BorrowedLink,
    Changed,
    Found,
    Link,
    LinkEvent,
    ReadAnswered,
    SessionLink,
    StateChanged,
)
from redis_agent.client.view import LeaderView, ObserverState, ObserverStatus, boottime_s
from redis_agent.coordination_client import SessionState
from redis_agent.znodes import Corrupt, Leader, LeaderPhase, Paths, decode_leader

LEASE_SHARE = 0.75
"""Part of the session timeout for which a view holds after the last proven contact."""

HEARTBEAT_SHARE = 1 / 6
"""Part of the session timeout between two proofs of contact. With the third of it after which an unanswered request
drops the connection, a hanging ZooKeeper server costs half a session timeout: less than the lease."""

MAX_UNDELIVERED = 1000
"""Changes that wait for a slow callback; the oldest ones go first, the newest is always delivered."""

_log = logging.getLogger("redis_agent.client")


class LeaderObserver:
    """Knows the leader of one cluster, without asking ZooKeeper when it is asked.

    It is in *safe mode* when no leader serves, and when its own view has become older than its lease: a time since the
    last proven contact with ZooKeeper that is shorter than the session timeout, measured by CLOCK_BOOTTIME. It can be
    started before any leader exists and before ZooKeeper is up, and carries on after an expired session by itself.

    Args:
        hosts: ZooKeeper's servers, ``host:port,host:port``, with an optional ``/chroot``.
        cluster: name of the cluster.
        root: znode below which all clusters live.
        session_timeout_s: ZooKeeper session timeout to ask for.
        auth: (scheme, credential) pairs for ZooKeeper, for example ``("digest", "user:password")``.
        client: a started kazoo client of the application's to use instead of a session of our own; it is never stopped
            here, and ``hosts`` and ``auth`` are ignored. Give its session timeout as ``session_timeout_s``.
    """

    def __init__(
        self,
        hosts: str = "",
        *,
        cluster: str,
        root: str = "redis-agent",
        session_timeout_s: float = 6.0,
        auth: tuple[tuple[str, str], ...] = (),
        client: Any = None,
    ) -> None:
        if not hosts and client is None:
            raise ValueError("hosts: name at least one ZooKeeper server, or give a client")
        self._pid = os.getpid()
        self._hosts = hosts
        self._auth = auth
        self._session_timeout_s = session_timeout_s
        self._path = Paths(root, cluster).leader
        self._borrowed = client
        self._events: queue.SimpleQueue[LinkEvent | None] = queue.SimpleQueue()
        self._changed = threading.Condition()
        self._callbacks: list[Callable[[ObserverStatus], None]] = []
        self._undelivered: deque[ObserverStatus] = deque(maxlen=MAX_UNDELIVERED)
        self._deliver = threading.Semaphore(0)
        self._closing = False
        self._ended = False
        self._threads: list[threading.Thread] = []
        # Written by the owner thread only; read by any, each in one step.
        self._status = ObserverStatus(
            state=ObserverState.SAFE_MODE,
            since_s=boottime_s(),
            reason="not connected to ZooKeeper yet",
            leader=None,
            last_leader=None,
        )
        self._lease_until = 0.0
        # The owner thread's own.
        self._link: Link | None = None
        self._up = False
        self._reading = False
        self._want_read = False
        self._heartbeat_at = float("inf")
        self._found: Found | None = None
        self._czxid = 0

    # --- for the application ------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Begin to observe. Returns at once, whether ZooKeeper is there or not.

        Raises:
            RuntimeError: it was started before.
        """
        self._check_process()
        if self._threads or self._closing:
            raise RuntimeError("a LeaderObserver is started once; make a new one")
        self._threads = [
            threading.Thread(target=self._run, name="redis-agent-observer", daemon=True),
            threading.Thread(target=self._run_callbacks, name="redis-agent-callbacks", daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        return self

    def close(self, limit_s: float = 2.0) -> None:
        """End the session and the threads, within about ``limit_s``. May be called from a callback, and twice."""
        if os.getpid() != self._pid:
            return
        self._closing = True
        self._events.put(None)
        deadline = boottime_s() + limit_s
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - boottime_s()))

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def status(self) -> ObserverStatus:
        """The whole view, as of now.

        Raises:
            ObserverForked: this is another process than the one that made the observer.
        """
        self._check_process()
        status = self._status
        until = self._lease_until
        if status.leader is not None and boottime_s() > until:
            # Our timer has not run yet, for example because the process was stopped. The view is over all the same.
            return _aged(status, until)
        return status

    @property
    def state(self) -> ObserverState:
        """SERVING or SAFE_MODE."""
        return self.status.state

    @property
    def leader(self) -> LeaderView | None:
        """The serving leader; None in safe mode."""
        return self.status.leader

    def require_leader(self) -> LeaderView:
        """The serving leader.

        Raises:
            SafeModeError: there is none that we know of.
        """
        status = self.status
        if status.leader is None:
            raise SafeModeError(status)
        return status.leader

    def wait_for_leader(self, timeout_s: float, *, not_epoch: int | None = None) -> LeaderView:
        """Wait for a serving leader, if need be.

        Args:
            timeout_s: how long at most.
            not_epoch: the leader of this epoch is not good enough (it has just failed).

        Raises:
            SafeModeError: there was none in time. Its ``state`` is SERVING if only the leader of ``not_epoch`` was.
        """
        deadline = boottime_s() + timeout_s
        with self._changed:
            while True:
                status = self.status
                if status.leader is not None and status.leader.epoch != not_epoch:
                    return status.leader
                left = deadline - boottime_s()
                if left <= 0:
                    raise SafeModeError(status)
                self._changed.wait(left)

    def on_change(self, callback: Callable[[ObserverStatus], None]) -> Callable[[], None]:
        """Call ``callback`` for each change of the state or of the leader, one after the other, on one thread of ours.

        A slow callback delays the next ones, nothing else. One that raises is logged. A ``leader`` znode that is
        rewritten with the same content is no change.

        Returns:
            A function that ends the subscription.
        """
        self._callbacks.append(callback)

        def unsubscribe() -> None:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

        return unsubscribe

    # --- the owner thread ---------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._open()
        while not self._closing:
            deadline = self._next_deadline()
            try:
                event = self._events.get(timeout=max(0.0, deadline - boottime_s()) if deadline < float("inf") else None)
            except queue.Empty:
                event = None
            self._age()
            if event is not None and event.link is self._link:
                self._take(event)
            if self._up and not self._reading and boottime_s() >= self._heartbeat_at:
                self._read(sync=True)
        self._publish(ObserverState.SAFE_MODE, "the observer is closed", None)
        self._ended = True
        self._deliver.release()
        if self._link is not None:
            self._link.finish(1.0)

    def _next_deadline(self) -> float:
        lease = self._lease_until if self._status.leader is not None else float("inf")
        # At most one read is in flight; its answer is an event.
        return lease if self._reading else min(lease, self._heartbeat_at)

    def _age(self) -> None:
        """Before any event is taken: whoever asked in between was told that the view is over, so it must be."""
        if self._status.leader is not None and boottime_s() > self._lease_until:
            self._set(_aged(self._status, self._lease_until))

    def _open(self) -> None:
        self._up = self._reading = self._want_read = False
        self._heartbeat_at = float("inf")
        link: Link
        if self._borrowed is not None:
            link = BorrowedLink(self._borrowed, self._path, self._session_timeout_s, self._events.put)
        else:
            link = SessionLink(self._hosts, self._path, self._session_timeout_s, self._auth, self._events.put)
        self._link = link
        link.start()

    def _take(self, event: LinkEvent) -> None:
        match event:
            case StateChanged(state=SessionState.UP):
                self._up = True
                self._read(sync=True)
            case StateChanged(state=SessionState.DOWN):
                # Not an expiry: what we know stays true until the lease ends.
                self._up = False
                self._heartbeat_at = float("inf")
            case StateChanged():
                self._lost(event)
            case Changed():
                self._want_read = True
                if not self._reading:
                    self._read(sync=False)
            case ReadAnswered():
                self._answered(event)

    def _lost(self, event: StateChanged) -> None:
        """The session is over: forget what was learnt through it."""
        expired = event.state is SessionState.EXPIRED
        reason = "our ZooKeeper session has expired" if expired else event.reason
        self._lease_until = 0.0
        self._publish(ObserverState.SAFE_MODE, reason, None)
        if expired:
            self._open()
        else:
            _log.error("no leader can be observed any more: %s", reason)
            self._up = False
            self._heartbeat_at = float("inf")

    def _read(self, *, sync: bool) -> None:
        assert self._link is not None
        self._want_read = False
        self._reading = True
        if sync:
            self._heartbeat_at = boottime_s() + self._link.timeout_s * HEARTBEAT_SHARE
        self._link.read(sync=sync)

    def _answered(self, event: ReadAnswered) -> None:
        self._reading = False
        if event.found is not None:
            if event.proves_contact:
                # Of the time it was sent, not answered. The negotiated timeout may be less than what we asked for.
                limit_s = min(event.link.timeout_s, self._session_timeout_s) * LEASE_SHARE
                self._lease_until = max(self._lease_until, event.sent_at + limit_s)
            self._found = event.found
            self._evaluate(event.found)
        if self._want_read and self._up:
            self._read(sync=False)

    def _evaluate(self, found: Found) -> None:
        if boottime_s() > self._lease_until:
            return  # A late answer. The next heartbeat tells more.
        leader: Leader | None = None
        reason = "no member leads"
        if found.data is not None:
            try:
                leader = decode_leader(found.data)
            except Corrupt as error:
                reason = f"{self._path} cannot be read: {error}"
        self._compare(found.czxid, leader, reason)

    def _compare(self, czxid: int, leader: Leader | None, reason: str) -> None:
        if leader is None:
            self._publish(ObserverState.SAFE_MODE, reason, None)
        elif leader.phase == LeaderPhase.SERVING:
            view = LeaderView.of(leader)
            # The same leader, in the same znode, rewritten: no change.
            if self._status.leader != view or self._czxid != czxid:
                self._publish(ObserverState.SERVING, f"{leader.name} serves", view)
        else:
            self._publish(ObserverState.SAFE_MODE, f"{leader.name} is {leader.phase} (epoch {leader.epoch})", None)
        self._czxid = czxid

    def _publish(self, state: ObserverState, reason: str, leader: LeaderView | None) -> None:
        old = self._status
        self._set(
            ObserverStatus(
                state=state,
                since_s=old.since_s if state is old.state and leader is None else boottime_s(),
                reason=reason,
                leader=leader,
                last_leader=leader or old.last_leader,
            )
        )

    def _set(self, status: ObserverStatus) -> None:
        old = self._status
        with self._changed:
            self._status = status
            self._changed.notify_all()
        # A new reason for the same safe mode is not worth a call.
        if status.state is not old.state or status.leader is not None:
            self._undelivered.append(status)
            self._deliver.release()

    # --- the callbacks' thread ----------------------------------------------------------------------------------------

    def _run_callbacks(self) -> None:
        while True:
            self._deliver.acquire()
            if not self._undelivered:
                if self._ended:
                    return
                continue
            status = self._undelivered.popleft()
            for callback in tuple(self._callbacks):
                try:
                    callback(status)
                except Exception:  # noqa: BLE001  (the application's own code)
                    _log.exception("a callback of the leader observer failed")

    def _check_process(self) -> None:
        if os.getpid() != self._pid:
            raise ObserverForked(self._pid)


def _aged(status: ObserverStatus, until: float) -> ObserverStatus:
    """What is left of a serving view when its lease has ended."""
    return ObserverStatus(
        state=ObserverState.SAFE_MODE,
        since_s=until,
        reason="ZooKeeper could not be reached for longer than our view of the leader holds",
        leader=None,
        last_leader=status.last_leader,
    )
