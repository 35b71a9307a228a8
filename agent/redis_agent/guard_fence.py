"""How the guard (guard.py) makes Redis refuse writes: its own connection, and the little of RESP that this takes."""

from __future__ import annotations

import select
import socket
import time

TYPE_CHECKING = False  # ``typing`` takes 3 ms to load, and 1 MB.
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    Request = tuple[str, ...]

FENCE = (
    ("CONFIG", "SET", "min-replicas-max-lag", "10"),
    ("CONFIG", "SET", "min-replicas-to-write", "1000000"),
)
ROLE_NAME = b" name=redis-agent-role "
OWN_NAME = "redis-agent-guard"
CONFIRMED = (b"+OK", b"+PONG")
LIFTERS_KEPT = 8
"""Of these connections at most two can be open: one whose command had no answer, and the one that closes it."""
ROLES_LIMIT_S = 1.0
"""For the other role connections: with ten thousand clients the list of them takes a tenth of it."""
KEEP_ALIVE_S = 10.0
"""Redis's ``timeout`` closes idle connections."""


def boottime_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Link:
    """The guard's own connection to Redis. Whatever goes wrong is an OSError, and the connection is closed."""

    def __init__(self) -> None:
        self.sock: socket.socket | None = None
        self.credentials: dict[str, str] = {}
        """``socket``, ``user``, ``password``; empty until the agent has told them."""
        self.lifters: list[str] | None = None
        """Ids of the connections over which the agent may have lifted the fence. None: it is of an older version, which
        does not tell."""
        self._buffer = bytearray()
        self._owed = 0
        self._used_s = 0.0

    def keep(self) -> None:
        """Have it open; nothing is waited for."""
        try:
            if self.sock is None:
                self._open()
            elif boottime_s() - self._used_s > KEEP_ALIVE_S:
                self._send([("PING",)])
        except OSError:
            self.close()

    def _open(self) -> None:
        if not self.credentials:
            raise ConnectionError("no credentials")
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.sock.connect(self.credentials["socket"])
        user, password = self.credentials["user"], self.credentials["password"]
        login = [("AUTH", *([user] if user else []), password)] if password else []
        self._send([*login, ("CLIENT", "SETNAME", OWN_NAME)])

    def close(self) -> None:
        if self.sock is not None:
            self.sock.close()
        self.sock, self._owed = None, 0
        self._buffer.clear()

    def _send(self, requests: Sequence[Request]) -> None:
        assert self.sock is not None
        out = bytearray()
        for request in requests:
            out += b"*%d\r\n" % len(request)
            for part in request:
                raw = part.encode("utf-8", "surrogateescape")
                out += b"$%d\r\n%b\r\n" % (len(raw), raw)
        if self.sock.send(out) != len(out):
            raise TimeoutError("Redis reads nothing")
        self._owed += len(requests)
        self._used_s = boottime_s()

    def _reply(self) -> bytes | None:
        """The next whole reply in the buffer: a line, or the content of a bulk string."""
        end = self._buffer.find(b"\r\n")
        if end < 0:
            return None
        start, reply = end + 2, bytes(self._buffer[:end])
        if reply[:1] == b"$":
            start, end = end + 4 + int(reply[1:]), end + 2
            if len(self._buffer) < start:
                return None
            reply = bytes(self._buffer[end : start - 2])
        del self._buffer[:start]
        self._owed -= 1
        return reply

    def _receive(self) -> None:
        assert self.sock is not None
        data = self.sock.recv(1 << 18)
        if not data:
            raise ConnectionResetError("Redis hung up")
        self._buffer += data

    def drain(self) -> None:
        """Take replies that nobody waits for; an end of the connection is noticed here."""
        try:
            self._receive()
            while (reply := self._reply()) is not None:
                if reply not in CONFIRMED:
                    raise PermissionError(reply.decode("utf-8", "replace"))
        except BlockingIOError:
            return
        except OSError:
            self.close()

    def ask(self, requests: Sequence[Request], deadline: float) -> list[bytes]:
        """Send and wait for all replies."""
        if self.sock is None:
            raise ConnectionError("not connected")
        earlier = self._owed
        self._send(requests)
        replies: list[bytes] = []
        poller = select.poll()
        poller.register(self.sock, select.POLLIN)
        while self._owed:
            reply = self._reply()
            if reply is not None:
                replies.append(reply)
            elif boottime_s() >= deadline:
                raise TimeoutError("no answer in time")
            elif poller.poll(max(1.0, (deadline - boottime_s()) * 1000)):
                self._receive()
        return replies[earlier:]

    def fence(self, deadline: float) -> None:
        """Raises OSError if Redis has not confirmed that it refuses writes."""
        for attempt in (1, 2):
            try:
                if self.sock is None:
                    self._open()
                return self._fence(deadline)
            except ConnectionError:
                # A CLIENT KILL ended it, and that was not noticed yet.
                self.close()
                if attempt == 2:
                    raise
            except OSError:
                self.close()
                raise
        return None

    def _fence(self, deadline: float) -> None:
        lifters = self.lifters
        if lifters is None:
            self._confirm(FENCE, deadline)
            lifters = self._roles(deadline)
        # What Redis has not read of them is never executed. Behind that nothing is left that could undo the fence.
        self._confirm([*_kills(lifters), *FENCE], deadline)

    def _confirm(self, requests: Sequence[Request], deadline: float) -> None:
        """Raises OSError if Redis has not confirmed the fence at their end."""
        *_, lag, fence = self.ask(requests, deadline)
        if lag not in CONFIRMED or fence not in CONFIRMED:
            raise PermissionError(fence.decode("utf-8", "replace"))

    def _roles(self, deadline: float) -> list[str]:
        """Ids of the agent's role connections. How long this takes depends on the number of clients."""
        (clients,) = self.ask([("CLIENT", "LIST")], deadline)
        if clients[:1] == b"-":
            raise PermissionError(clients.decode("utf-8", "replace"))
        return [line.split(b" ", 1)[0][3:].decode() for line in clients.split(b"\n") if ROLE_NAME in line]

    def close_roles(self) -> None:
        """Behind the fence: what else a dead agent has sent can't open Redis, but is not to be executed either.

        If this is not done in time, the agent's next life does it before anything else.
        """
        deadline = boottime_s() + ROLES_LIMIT_S
        try:
            self.ask(_kills(self._roles(deadline)), deadline)
        except OSError:
            self.close()


def _kills(numbers: Iterable[str]) -> list[Request]:
    return [("CLIENT", "KILL", "ID", number) for number in numbers]
