"""kazoo, tamed: one client object for one ZooKeeper session. Only ``coordination`` uses it.

Stock kazoo (2.11) does a number of things that a system which fences by leases can't live with. What is changed here:

* After an expiry kazoo goes on by itself with a new session in the same client. Here the client retires instead.
* Requests made while disconnected are queued without limit and may run later. Here they fail at once, and everything in
  flight is failed when the connection drops, by one gate that leaves no gap between "is it up?" and "queue it".
* The negotiated session timeout isn't kept. It is taken from ZooKeeper's answer to the connect request.
* The TCP connect may take the whole session timeout, so that one dead server in the list costs the session.
* A steady flow of requests switches its dead-peer detection off. Here a request that has waited for a third of the
  session timeout drops the connection, which leaves time to reach another server within the same session.
* Completions and watches hop through two worker threads. Here they run on the connection's thread, so they may only do
  what takes microseconds and never blocks; a session is one thread.
* Each request is a write, and each answer four polls and two reads. Here what is queued is written in one go, and what
  has arrived is read in one go: an election is some hundred requests, and their cost is what its time consists of.
* Debug logs contain credentials. Here they don't, and nothing below an unexpected error is louder than debug.
"""

from __future__ import annotations

import logging
import math
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from kazoo.client import KazooClient  # type: ignore[import-untyped]
from kazoo.exceptions import (  # type: ignore[import-untyped]
    AuthFailedError,
    ConnectionDropped,
    ConnectionLoss,
    SASLException,
    SessionExpiredError,
)
from kazoo.handlers.threading import AsyncResult, SequentialThreadingHandler  # type: ignore[import-untyped]
from kazoo.protocol.connection import CLOSE_RESPONSE, STOP_CONNECTING, ConnectionHandler  # type: ignore[import-untyped]
from kazoo.protocol.serialization import SASL, Auth, CloseInstance, Connect  # type: ignore[import-untyped]
from kazoo.protocol.states import Callback, KeeperState  # type: ignore[import-untyped]
from kazoo.retry import ForceRetryError  # type: ignore[import-untyped]
from kazoo.security import CREATOR_ALL_ACL, READ_ACL_UNSAFE  # type: ignore[import-untyped]

CONNECT_LIMIT_S = 0.25
"""For the TCP (and TLS) connect to one server; then the next one is tried."""

REQUEST_LIMIT_SHARE = 1 / 3
"""Part of the session timeout after which an unanswered request drops the connection."""

HANDSHAKE_LIMIT_SHARE = 1 / 6
"""Part of the session timeout that one server gets to answer the connect request, at least HANDSHAKE_LIMIT_MIN_S."""

HANDSHAKE_LIMIT_MIN_S = 0.5

MAX_IN_FLIGHT = 128
"""Requests waiting for an answer; more fail at once."""

RECEIVE_BYTES = 65_536

_RETRY = {"max_tries": -1, "delay": 0.02, "backoff": 1.5, "max_delay": 0.25}


class SessionState(Enum):
    """What a client tells its owner, on the connection's thread."""

    UP = "up"
    DOWN = "down"
    EXPIRED = "expired"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSettings:
    """How to reach ZooKeeper. ``auth`` has (scheme, credential) pairs, ``protected`` gives what is created an ACL by
    which only the creator may change it and everyone may read it.
    """

    hosts: str
    session_timeout_s: float
    clock: Callable[[], float]
    auth: tuple[tuple[str, str], ...] = ()
    protected: bool = False
    logger: logging.Logger = field(default_factory=lambda: logging.getLogger("redis_agent.zookeeper"))


class _QuietLogger(logging.LoggerAdapter[logging.Logger]):
    """Everything below an error is debug, and nothing that carries a credential is logged at all."""

    def log(self, level: int, msg: object, *args: object, **kwargs: Any) -> None:
        shown = level if level >= logging.ERROR else logging.DEBUG
        if level < logging.DEBUG or not self.isEnabledFor(shown):
            return
        if not any(isinstance(arg, (Auth, SASL)) for arg in args):
            super().log(shown, msg, *args, **kwargs)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        return msg, kwargs


class _Result(AsyncResult):  # type: ignore[misc]
    """An answer that runs its callbacks where it arrives, and that its handler stops waiting for."""

    def set(self, value: object = None) -> None:
        self._handler.waiting.pop(self, None)
        super().set(value)

    def set_exception(self, exception: BaseException) -> None:
        self._handler.waiting.pop(self, None)
        super().set_exception(exception)

    def _do_callbacks(self) -> None:
        # Taken out first, so that an answer that comes a second time has nobody to call.
        callbacks = list(self._callbacks)
        self._callbacks.clear()
        for callback in callbacks:
            callback(self)


class _Handler(SequentialThreadingHandler):  # type: ignore[misc]
    """kazoo's port to threads and sockets. ``waiting`` maps each unanswered request to when it was handed over."""

    def __init__(self, clock: Callable[[], float], thread_name: str) -> None:
        super().__init__()
        self.waiting: dict[_Result, float] = {}
        self.request_limit_s = math.inf
        self._clock = clock
        self._thread_name = thread_name

    def start(self) -> None:
        self._running = True  # No worker threads.

    def stop(self) -> None:
        self._running = False

    def async_result(self) -> _Result:
        return _Result(self)

    def spawn(self, func: Callable[..., object], *args: object, **kwargs: object) -> threading.Thread:
        thread = threading.Thread(target=func, args=args, kwargs=kwargs, name=self._thread_name, daemon=True)
        thread.start()
        return thread

    def dispatch_callback(self, callback: Callback) -> None:
        callback.func(*callback.args)

    def create_connection(self, *args: object, **kwargs: Any) -> socket.socket:
        kwargs["timeout"] = min(kwargs.get("timeout") or CONNECT_LIMIT_S, CONNECT_LIMIT_S)
        return super().create_connection(*args, **kwargs)  # type: ignore[no-any-return]

    def select(
        self,
        rlist: Iterable[Any],
        wlist: Iterable[Any],
        xlist: Iterable[Any],  # noqa: ARG002  (kazoo passes it by position and leaves it empty)
        timeout: float | None = None,
    ) -> tuple[list[Any], list[Any], list[Any]]:
        """As ``select.select``, but gives up on the connection when a request has waited for too long.

        poll() on a throw-away object costs a third of what kazoo's throw-away epoll does, thrice per answer.
        """
        poller = select.poll()
        by_fd: dict[int, Any] = {}
        for each in rlist:
            by_fd[each.fileno()] = each
            poller.register(each, select.POLLIN)
        for each in wlist:
            by_fd[each.fileno()] = each
            poller.register(each, select.POLLOUT)
        wait_s = min(math.inf if timeout is None else timeout, max(self._patience_s(), 0.0))
        ready = poller.poll(None if wait_s == math.inf else wait_s * 1000)
        if not ready and self._patience_s() < 0.001:  # poll() counts milliseconds.
            raise ConnectionDropped(f"a request was not answered within {self.request_limit_s:.3f} s")
        readable = [by_fd[fd] for fd, mask in ready if mask & ~select.POLLOUT]
        writable = [by_fd[fd] for fd, mask in ready if mask & ~select.POLLIN]
        return readable, writable, []

    def _patience_s(self) -> float:
        # Answers come in the order of the requests, so the first one that waits is the oldest.
        oldest = next(iter(self.waiting.copy().values()), None)
        return math.inf if oldest is None else oldest + self.request_limit_s - self._clock()


class _Connection(ConnectionHandler):  # type: ignore[misc]
    """kazoo's connection loop. Its thread ends with the session and frees what it holds."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._xid = 0
        self._received = bytearray()
        """What has arrived and was not taken yet."""

    def wake(self) -> None:
        """Have the loop look at the queue. On any thread."""
        write_sock = self._write_sock
        if write_sock is not None:
            # A closed pair means that the loop has ended (it fails what waits), a full one that it will look anyway.
            with suppress(OSError):
                write_sock.send(b"\0", socket.MSG_DONTWAIT)

    def forget_wakes(self) -> None:
        """On the loop's thread: the queue is looked at now, or was emptied."""
        read_sock = self._read_sock
        if read_sock is not None:
            with suppress(OSError):
                read_sock.recv(65_536, socket.MSG_DONTWAIT)

    def drop(self) -> None:
        """Break the connection, so that the loop notices at once. On any thread."""
        sock = self._socket
        if sock is not None:
            # Shut down, not closed: the loop may be polling it, and it is the one to close it.
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self.wake()

    def ended(self, limit_s: float) -> bool:
        """Wait for the loop's thread to end; whether it did."""
        thread: threading.Thread | None = self._connection_routine
        if thread is not None:
            thread.join(limit_s)
        return thread is None or not thread.is_alive()

    def zk_loop(self) -> None:
        try:
            super().zk_loop()
        finally:
            self.close()

    def _connect_loop(self, retry: object) -> object:
        try:
            return super()._connect_loop(retry)
        except ForceRetryError:
            raise
        except SASLException as exc:
            self.client.session_failed(f"ZooKeeper authentication (SASL) failed: {exc}")
            return STOP_CONNECTING
        except Exception as exc:
            # kazoo has logged it and would let its thread die, and with it all news of the session. An answer that
            # can't be understood is a broken connection: drop it, connect again.
            self.client.connection_lost()
            raise ForceRetryError(str(exc)) from exc

    def _connect(self, host: str, hostip: str, port: int) -> object:
        self._received.clear()
        self.client.attempted_at = self.client.clock()
        return super()._connect(host, hostip, port)

    def _read(self, length: int, timeout: float) -> bytes:
        with self._socket_error_handling():
            while len(self._received) < length:
                if not self._undecrypted() and not self.handler.select([self._socket], [], [], timeout)[0]:
                    raise self.handler.timeout_exception("socket time-out during read")
                with suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    chunk = self._socket.recv(RECEIVE_BYTES)
                    if not chunk:
                        raise ConnectionDropped("socket connection broken")
                    self._received += chunk
        taken = bytes(self._received[:length])
        del self._received[:length]
        return taken

    def _undecrypted(self) -> bool:
        """TLS holds something that poll() does not see."""
        return isinstance(self._socket, ssl.SSLSocket) and self._socket.pending() > 0

    def _read_socket(self, read_timeout: float) -> object:
        # What has arrived already is not announced by poll() any more.
        answer: object = super()._read_socket(read_timeout)
        while answer != CLOSE_RESPONSE and (self._received or self._undecrypted()):
            answer = super()._read_socket(read_timeout)
        return answer

    def _send_request(self, read_timeout: float, connect_timeout: float) -> None:  # noqa: ARG002  (kazoo's signature)
        # In this order: whatever is queued from here on wakes the loop again.
        self.forget_wakes()
        message = bytearray()
        for xid, request in self.client.take_queued(self._xid):
            body = struct.pack("!ii", xid, request.type) + request.serialize()
            message += struct.pack("!i", len(body)) + body
            self._xid = xid
        if message:
            self._write(message, connect_timeout)

    def _invoke(self, timeout: float, request: object, xid: int | None = None) -> Any:
        if not isinstance(request, Connect):
            return super()._invoke(timeout, request, xid)
        asked_s = request.time_out / 1000
        limit_s = max(asked_s * HANDSHAKE_LIMIT_SHARE, HANDSHAKE_LIMIT_MIN_S)
        answer = super()._invoke(min(timeout, limit_s), request, xid)
        self.client.negotiated(answer[0].time_out / 1000)
        return answer


class SessionClient(KazooClient):  # type: ignore[misc]
    """A kazoo client for one session, never for a second one.

    ``on_state`` is called on the connection's thread with a SessionState and a reason, and must not block. EXPIRED and
    FAILED come at most once and are the last.
    """

    def __init__(self, settings: ClientSettings, name: str, on_state: Callable[[SessionState, str], None]) -> None:
        self.clock = settings.clock
        self.attempted_at = settings.clock()
        self.timeout_s = settings.session_timeout_s
        self.zk_session_id = 0
        self.gone = False
        """ZooKeeper said that the session is gone: closed as we asked, or expired."""
        self._gate = threading.Lock()
        self._over = False
        self._holding = 0
        """How many are putting requests together."""
        self._on_state = on_state
        super().__init__(
            hosts=settings.hosts,
            timeout=settings.session_timeout_s,
            handler=_Handler(settings.clock, name),
            auth_data=list(settings.auth),
            default_acl=[*CREATOR_ALL_ACL, *READ_ACL_UNSAFE] if settings.protected else None,
            connection_retry=_RETRY,
            logger=_QuietLogger(settings.logger, {}),
        )
        self._connection = _Connection(self, self._conn_retry.copy(), logger=self.logger)

    # --- from the owner's threads -------------------------------------------------------------------------------------

    def finish(self, limit_s: float) -> bool:
        """Close the session if ZooKeeper can be reached, else drop it. Blocks for ``limit_s`` and a little.

        :returns: whether ZooKeeper confirmed that the session is gone.
        """
        with self._gate:
            was_over, self._over = self._over, True
            self._stopped.set()
            reachable = self._live.is_set() and not was_over
            if reachable:
                self._queue.append((CloseInstance, None))
                self._connection.wake()
        if not reachable:
            self._connection.drop()
        if not self._connection.ended(limit_s):
            self._connection.drop()
            # What is left to wait for: one TCP connect, or one nap between two attempts.
            self._connection.ended(CONNECT_LIMIT_S + 0.15)
        self._fail_waiting(ConnectionLoss("the session was closed"))
        return self.gone

    def retire(self) -> bool:
        """No further session and no further news from this client; its thread ends by itself. False if it was over."""
        with self._gate:
            was_over, self._over = self._over, True
            self._stopped.set()
        if not was_over:
            self._connection.drop()
        return not was_over

    @contextmanager
    def together(self) -> Iterator[None]:
        """The requests that are made within are handed to the connection's loop in one go. On any thread."""
        with self._gate:
            self._holding += 1
        try:
            yield
        finally:
            with self._gate:
                self._holding -= 1
                if self._queue:
                    self._connection.wake()

    # --- from the connection's thread ---------------------------------------------------------------------------------

    def negotiated(self, timeout_s: float) -> None:
        """ZooKeeper answered the connect request (0: the session has expired)."""
        if timeout_s > 0:
            self.timeout_s = timeout_s
            self.handler.request_limit_s = timeout_s * REQUEST_LIMIT_SHARE

    def take_queued(self, xid: int) -> Iterator[tuple[int, Any]]:
        """Each queued request with its number, which counts on from ``xid``; from then on it waits for its answer."""
        with self._gate:
            # At once, so that whoever queues the next request finds the queue empty and wakes the loop.
            batch = list(self._queue)
            self._queue.clear()
        for request, result in batch:
            xid = xid % (2**31 - 1) + 1
            self._pending.append((request, result, xid))
            yield xid, request

    def connection_lost(self) -> None:
        """The connection is broken in a way that kazoo doesn't handle."""
        self._session_callback(KeeperState.CONNECTING)

    def session_failed(self, reason: str) -> None:
        """ZooKeeper refuses us for good."""
        if self.retire():
            self._on_state(SessionState.FAILED, reason)

    def session_expired(self) -> None:
        """ZooKeeper said that the session is gone: at a reconnect, or as the error of an operation."""
        self.gone = True
        if self.retire():
            self._on_state(SessionState.EXPIRED, "")

    # --- kazoo's own methods, changed ---------------------------------------------------------------------------------

    def _call(self, request: object, async_object: _Result) -> object:
        with self._gate:
            usable = self._live.is_set() and not self._over and len(self.handler.waiting) < MAX_IN_FLIGHT
            if usable:
                self.handler.waiting[async_object] = self.clock()
                # The loop takes all that is queued, so one byte is enough to wake it.
                wake = not self._holding and not self._queue
                self._queue.append((request, async_object))
                if wake:
                    self._connection.wake()
        if not usable:
            async_object.set_exception(ConnectionLoss("not sent: not connected, or too much is in flight"))
            return False
        return None

    def _notify_pending(self, state: str) -> None:
        with self._gate:
            self._live.clear()
            self._pending.clear()
            self._queue.clear()
            self._connection.forget_wakes()
        if state == KeeperState.EXPIRED_SESSION:
            self._fail_waiting(SessionExpiredError())
        elif state == KeeperState.AUTH_FAILED:
            self._fail_waiting(AuthFailedError())
        else:
            self._fail_waiting(ConnectionLoss("the connection to ZooKeeper was lost"))

    def _session_callback(self, state: str) -> None:
        before = self._state
        if state == before:
            return
        was_up = before == KeeperState.CONNECTED
        if state == KeeperState.CLOSED:
            # From CONNECTED it comes by ZooKeeper's answer to the close request only.
            self.gone = self.gone or was_up
        elif state == KeeperState.EXPIRED_SESSION:
            self.session_expired()
        elif state == KeeperState.AUTH_FAILED:
            self.session_failed("ZooKeeper refused our credentials")
        elif state == KeeperState.CONNECTING and was_up and not self._over:
            self._on_state(SessionState.DOWN, "")
        super()._session_callback(state)
        if state == KeeperState.CONNECTED and not self._over:
            self.zk_session_id = self._session_id
            self._on_state(SessionState.UP, "")

    def _fail_waiting(self, exc: Exception) -> None:
        while waiting := list(self.handler.waiting):
            for result in waiting:
                result.set_exception(exc)
