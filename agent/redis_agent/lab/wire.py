"""A client's connection to Redis with as little between the two as possible.

The clients of a laboratory share a machine, and often a core, with what they measure. One that costs a millisecond to
connect and a quarter of one to write would measure itself.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from contextlib import suppress

import hiredis

from redis_agent.replication import Address

RECEIVE_BYTES = 65_536
LOOK_S = 0.25
_DOUBTS = 2
Part = str | int | bytes
ReplyError = hiredis.ReplyError


def pack(*commands: tuple[Part, ...]) -> bytes:
    """Commands as Redis reads them."""
    message = bytearray()
    for command in commands:
        message += b"*%d\r\n" % len(command)
        for part in command:
            data = part if isinstance(part, bytes) else str(part).encode()
            message += b"$%d\r\n%b\r\n" % (len(data), data)
    return bytes(message)


def _always() -> bool:
    return True


class LabConnection:
    """An open connection. Repeats nothing. Not thread-safe.

    Args:
        address: of Redis.
        password: if it has one.
        connect_limit_s: for the TCP connect.
        reply_limit_s: for each reply.
        look_s: how often to ask, while a reply is awaited, whether it still is worth waiting for.

    Raises:
        OSError: no connection; nothing was executed.
    """

    def __init__(
        self,
        address: Address,
        *,
        password: str,
        connect_limit_s: float,
        reply_limit_s: float,
        look_s: float = LOOK_S,
    ) -> None:
        self._reader = hiredis.Reader()
        self._looks = max(1, round(reply_limit_s / look_s))
        self._socket = socket.create_connection((address.host, address.port), connect_limit_s)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.settimeout(min(look_s, reply_limit_s))
            self._poll = select.poll()
            self._poll.register(self._socket, select.POLLIN)
            if password:
                self.send(pack(("AUTH", password)))
                if isinstance(refused := self.reply(), ReplyError):
                    raise ConnectionError(str(refused))
        except OSError:
            self.close()
            raise

    def send(self, message: bytes) -> None:
        """Send packed commands. Raises OSError: whether they were executed is unknown."""
        self._socket.sendall(message)

    def reply(self, worth_waiting: Callable[[], bool] = _always) -> object:
        """The next reply; an error that Redis answered is a value, too.

        Args:
            worth_waiting: asked now and then; if it says no twice in a row, the wait is over.

        Raises:
            OSError: there is none.
        """
        looks, doubts = 0, 0
        while (reply := self._reader.gets()) is False:
            try:
                received = self._socket.recv(RECEIVE_BYTES)
            except TimeoutError:
                looks += 1
                doubts = 0 if worth_waiting() else doubts + 1
                if looks >= self._looks or doubts >= _DOUBTS:
                    raise
                continue
            if not received:
                raise ConnectionError("closed by Redis")
            self._reader.feed(received)
        return reply

    def usable(self) -> bool:
        """Neither closed by the other side nor with an unexpected reply on it."""
        return not self._poll.poll(0)

    def close(self) -> None:
        with suppress(OSError):
            self._socket.close()
