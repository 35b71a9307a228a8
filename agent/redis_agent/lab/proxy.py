"""A TCP proxy on loopback that can go silent: a network partition for one client, without root.

Cut, it is a black hole: nothing is forwarded, nothing is closed, nobody is told. What was sent meanwhile is delivered
when it is restored, as TCP would after a partition. New connections succeed (the kernel completes them) and then hear
nothing, as from a host that hangs.
"""

from __future__ import annotations

import os
import selectors
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from enum import Enum
from types import TracebackType
from typing import Any, Self

_CHUNK_BYTES = 65_536
_LENGTH = struct.Struct(">i")
_NOTIFICATION = struct.pack(">i", -1)
"""The first word of a ZooKeeper frame that a watch fired for; those that answer a request have its number there."""
_MAX_HELD_BYTES = 1 << 20
_JOIN_LIMIT_S = 5.0


class Cut(Enum):
    """What is swallowed: both directions, what clients send, or what the server answers."""

    BOTH = "both"
    REQUESTS = "requests"
    REPLIES = "replies"


class _WatchFilter:
    """Removes the notifications from what a ZooKeeper server sends, frame by frame."""

    def __init__(self) -> None:
        self.swallowed = 0
        self._partial = bytearray()

    def passed(self, chunk: bytes) -> bytes:
        """The whole frames so far that are no notifications."""
        self._partial += chunk
        kept = bytearray()
        while len(self._partial) >= _LENGTH.size:
            end = _LENGTH.size + int(_LENGTH.unpack_from(self._partial)[0])
            if len(self._partial) < end:
                break
            frame = bytes(self._partial[:end])
            del self._partial[:end]
            if frame[_LENGTH.size :].startswith(_NOTIFICATION):
                self.swallowed += 1
            else:
                kept += frame
        return bytes(kept)


class _Pipe:
    """One direction of one connection: bytes read from ``source`` and not yet written to ``sink``."""

    def __init__(
        self, source: socket.socket, sink: socket.socket, direction: Cut, watch_filter: _WatchFilter | None = None
    ) -> None:
        self.source = source
        self.sink = sink
        self.direction = direction
        self.watch_filter = watch_filter
        self.held = bytearray()
        self.ended = False
        """The source has sent its last byte."""

    def finished(self) -> bool:
        return self.ended and not self.held


class TcpProxy:
    """Forwards each connection to ``target``. All methods may be called from any thread and take effect before they
    return; one thread does the work.
    """

    def __init__(self, target: tuple[str, int], *, host: str = "127.0.0.1", port: int = 0) -> None:
        self._target = target
        self._selector = selectors.DefaultSelector()
        self._listener = socket.create_server((host, port))
        self._listener.settimeout(0)
        self.address: tuple[str, int] = self._listener.getsockname()[:2]
        self._cut: Cut | None = None
        self._refusing = False
        self._swallows_watches = False
        self._watch_filters: list[_WatchFilter] = []
        self._connections: list[tuple[_Pipe, _Pipe]] = []
        self._orders: list[tuple[Callable[[], None], threading.Event]] = []
        self._lock = threading.Lock()
        self._closing = False
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name=f"proxy-{self.address[1]}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def connections(self) -> int:
        """How many connections are open through it."""
        return len(self._connections)

    @property
    def watches_swallowed(self) -> int:
        """How many notifications of ZooKeeper were swallowed."""
        return sum(each.swallowed for each in self._watch_filters)

    def swallow_watches(self) -> None:
        """For a ZooKeeper server: connections that are opened from now on hear of no watch that fires."""

        def order() -> None:
            self._swallows_watches = True

        self._order(order)

    def cut(self, what: Cut = Cut.BOTH, *, refusing: bool = False) -> None:
        """Go silent. Both directions also stop accepting; a cut of one direction goes on accepting.

        Refusing: new connections are broken at once, so that nothing of them arrives later.
        """

        def order() -> None:
            self._cut = what
            self._refusing = refusing

        self._order(order)

    def restore(self) -> None:
        """Deliver what was held back, and go on."""

        def order() -> None:
            self._cut = None
            self._refusing = False

        self._order(order)

    def reset(self) -> None:
        """Break all connections (RST, what was held back is lost); new ones are as welcome as before."""
        self._order(self._reset_all)

    def close(self) -> None:
        """Break everything and stop listening."""
        if not self._closing:
            self._order(self._close)
            self._thread.join(_JOIN_LIMIT_S)

    def _order(self, action: Callable[[], None]) -> None:
        done = threading.Event()
        with self._lock:
            self._orders.append((action, done))
        os.write(self._wake_w, b"\0")
        if not done.wait(_JOIN_LIMIT_S):
            raise RuntimeError("the proxy's thread does not answer")

    # --- on the proxy's thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._selector.register(self._wake_r, selectors.EVENT_READ)
        while not self._closing:
            self._register()
            events = self._selector.select()
            ready = {key.fileobj: mask for key, mask in events}
            # Orders first: what is cut now must not be forwarded any more.
            if self._wake_r in ready:
                self._obey()
            elif self._listener in ready:
                self._accept()
            else:
                self._forward(ready)
        self._selector.close()
        os.close(self._wake_r)
        os.close(self._wake_w)

    def _register(self) -> None:
        """Tell the selector what we would do something about now."""
        wanted: dict[socket.socket, int] = {}
        if self._refusing or self._cut is not Cut.BOTH:
            wanted[self._listener] = selectors.EVENT_READ
        for pair in self._connections:
            for pipe in pair:
                if self._silent(pipe):
                    continue
                if not pipe.ended and len(pipe.held) < _MAX_HELD_BYTES:
                    wanted[pipe.source] = wanted.get(pipe.source, 0) | selectors.EVENT_READ
                if pipe.held:
                    wanted[pipe.sink] = wanted.get(pipe.sink, 0) | selectors.EVENT_WRITE
        for key in list(self._selector.get_map().values()):
            if key.fileobj != self._wake_r and key.fileobj not in wanted:
                self._selector.unregister(key.fileobj)
        for sock, mask in wanted.items():
            if sock in self._selector.get_map():
                self._selector.modify(sock, mask)
            else:
                self._selector.register(sock, mask)

    def _silent(self, pipe: _Pipe) -> bool:
        return self._cut is Cut.BOTH or self._cut is pipe.direction

    def _obey(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._wake_r, _CHUNK_BYTES)
        with self._lock:
            orders, self._orders = self._orders, []
        for action, done in orders:
            action()
            done.set()

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        if self._refusing:
            _break(client)
            return
        try:
            server = socket.create_connection(self._target, timeout=1.0)
        except OSError:
            _break(client)
            return
        for sock in (client, server):
            sock.settimeout(0)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        watch_filter = _WatchFilter() if self._swallows_watches else None
        if watch_filter is not None:
            self._watch_filters.append(watch_filter)
        replies = _Pipe(server, client, Cut.REPLIES, watch_filter)
        self._connections.append((_Pipe(client, server, Cut.REQUESTS), replies))

    def _forward(self, ready: Mapping[Any, int]) -> None:
        for pair in list(self._connections):
            try:
                for pipe in pair:
                    readable = ready.get(pipe.source, 0) & selectors.EVENT_READ
                    if not self._silent(pipe) and (pipe.held or readable):
                        _move(pipe, readable=bool(readable))
            except OSError:
                self._end(pair, how=_break)
            else:
                if all(pipe.finished() for pipe in pair):
                    self._end(pair, how=socket.socket.close)

    def _end(self, pair: tuple[_Pipe, _Pipe], how: Callable[[socket.socket], None]) -> None:
        self._connections.remove(pair)
        for pipe in pair:
            if pipe.source in self._selector.get_map():
                self._selector.unregister(pipe.source)
            how(pipe.source)

    def _reset_all(self) -> None:
        for pair in list(self._connections):
            self._end(pair, how=_break)

    def _close(self) -> None:
        self._reset_all()
        self._closing = True
        self._listener.close()


def _move(pipe: _Pipe, *, readable: bool) -> None:
    """Read what is there, write what fits; pass the end on.

    :raises OSError: if either end is broken.
    """
    if readable and not pipe.ended:
        with suppress(BlockingIOError):
            chunk = pipe.source.recv(_CHUNK_BYTES)
            pipe.held += chunk if pipe.watch_filter is None else pipe.watch_filter.passed(chunk)
            pipe.ended = not chunk
    if pipe.held:
        with suppress(BlockingIOError):
            del pipe.held[: pipe.sink.send(pipe.held)]
    if pipe.finished():
        pipe.sink.shutdown(socket.SHUT_WR)


def _break(sock: socket.socket) -> None:
    """Close with a reset: the other side learns at once, and no port lingers."""
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
