"""One connection to a Redis, with nothing hidden: no retries, no silent reconnection, every wait bounded.

redis-py's client objects reconnect and replay behind the caller's back, which is wrong for commands that decide who
is the primary. Its connection object does not, and speaks the protocol, the handshake and the errors.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import redis
from redis.backoff import NoBackoff
from redis.connection import Connection, UnixDomainSocketConnection
from redis.exceptions import AuthenticationError, BusyLoadingError
from redis.retry import Retry

from redis_agent.replication import Address

Part = str | int
Request = tuple[Part, ...]


class WireError(Exception):
    """The connection is of no more use. ``sent``: what was asked may have reached Redis."""

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(reason)
        self.sent = sent


class WireTimeout(WireError):
    """No answer in time."""


class WireClosed(WireError):
    """Refused, reset or closed by the other side; also how Redis answers when ``maxclients`` is reached."""


class WireDenied(WireError):
    """User or password refused."""


@dataclass(frozen=True, slots=True)
class ErrorReply:
    """An error that Redis answered: ``code`` is its first word (ERR, LOADING, BUSY, NOPERM ...)."""

    code: str
    text: str

    def __str__(self) -> str:
        return self.text if self.text.startswith(self.code) else f"{self.code} {self.text}"


Reply = bytes | int | list[object] | None | ErrorReply


class _RawConnection(Protocol):
    """The part of redis-py's connection that is used here (redis-py leaves most of it untyped)."""

    def connect(self) -> None: ...
    def disconnect(self) -> None: ...
    def pack_commands(self, commands: Sequence[Request]) -> list[bytes]: ...
    def send_packed_command(self, command: list[bytes], *, check_health: bool) -> None: ...
    def read_response(self, *, timeout: float, disconnect_on_error: bool) -> Reply: ...
    def can_read(self, timeout: float = ...) -> bool: ...


_UNIX = cast(Callable[..., _RawConnection], UnixDomainSocketConnection)
_TCP = cast(Callable[..., _RawConnection], Connection)


class Wire:
    """An open, authenticated connection. Not thread-safe: it belongs to one worker."""

    def __init__(self, raw: _RawConnection) -> None:
        self._raw = raw

    @classmethod
    def open_unix(cls, path: str, username: str, password: str, limit_s: float) -> Wire:
        """Connect to the local Redis. Raises WireError."""
        return cls(_connected(_UNIX(path=path, **_options(username, password, limit_s))))

    @classmethod
    def open_tcp(cls, address: Address, username: str, password: str, limit_s: float) -> Wire:
        """Connect to another member's Redis. Raises WireError."""
        return cls(_connected(_TCP(host=address.host, port=address.port, **_options(username, password, limit_s))))

    def ask(self, requests: Sequence[Request], deadline: float) -> list[Reply]:
        """Send all requests in one write and read all replies; error replies are values.

        Args:
            requests: the commands.
            deadline: on ``time.monotonic()``, in seconds.

        Raises:
            WireError: the connection is closed then; whether anything was executed is unknown.
        """
        self.send(requests)
        return [self.read(deadline) for _ in requests]

    def send(self, requests: Sequence[Request]) -> None:
        """Send without waiting for replies. Raises WireError."""
        try:
            self._raw.send_packed_command(self._raw.pack_commands(requests), check_health=False)
        except redis.RedisError as error:
            self.close()
            raise _wire_error(error, sent=True) from error

    def read(self, deadline: float) -> Reply:
        """Read one reply. Raises WireError; the connection is closed then."""
        try:
            return self._read(deadline)
        except redis.RedisError as error:
            self.close()
            raise _wire_error(error, sent=True) from error

    def _read(self, deadline: float) -> Reply:
        # A timeout of zero would mean "don't block" to the socket: give it a last look instead.
        timeout_s = max(deadline - time.monotonic(), 0.001)
        try:
            return self._raw.read_response(timeout=timeout_s, disconnect_on_error=False)
        except (redis.ResponseError, BusyLoadingError, AuthenticationError) as error:
            # These are replies, though redis-py counts the last two among the connection's own errors.
            return _error_reply(error)

    def wait(self, deadline: float) -> bool:
        """A reply can be read, or the other side has hung up. Unlike ``read`` it leaves the connection as it is."""
        try:
            return self._raw.can_read(max(deadline - time.monotonic(), 0.001))
        except redis.RedisError:
            return True

    def usable(self) -> bool:
        """Neither closed by the other side nor with unexpected data on it. Nothing is sent."""
        try:
            return not self._raw.can_read(0)
        except redis.RedisError:
            return False

    def close(self) -> None:
        self._raw.disconnect()


def is_awake(socket_path: str, deadline: float) -> bool:
    """Redis reads what it is told, even if it answers nobody (CLIENT PAUSE of all commands). For the local one only.

    A command with the wrong number of arguments is refused before its sender is made to wait, and before it is asked
    for a password. A full house (``maxclients``) is said at once, too.
    """
    try:
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(max(deadline - time.monotonic(), 0.001))
            line.connect(socket_path)
            with contextlib.suppress(BrokenPipeError):
                line.sendall(b"*1\r\n$4\r\nECHO\r\n")
            return line.recv(1) == b"-"
    except OSError:
        return False


def _options(username: str, password: str, limit_s: float) -> dict[str, object]:
    return {
        "username": username or None,
        "password": password or None,
        "socket_timeout": limit_s,
        "socket_connect_timeout": limit_s,
        "retry": Retry(NoBackoff(), 0),
        "protocol": 2,
        "driver_info": None,
    }


def _connected(raw: _RawConnection) -> _RawConnection:
    try:
        raw.connect()
    except (redis.RedisError, OSError) as error:
        raise _wire_error(error, sent=False) from error
    return raw


def _error_reply(error: redis.RedisError) -> ErrorReply:
    text = str(error)
    code = getattr(error, "status_code", None) or text.split(" ", 1)[0]
    return ErrorReply(code, text)


def _wire_error(error: Exception, *, sent: bool) -> WireError:
    text = str(error)
    # A unix socket whose backlog is full says EAGAIN at once: its server has not accepted anybody for long.
    if isinstance(error, redis.TimeoutError) or isinstance(error.__context__, BlockingIOError):
        return WireTimeout(text, sent=sent)
    if isinstance(error, (AuthenticationError, redis.ResponseError)):
        # In a handshake only AUTH is sent, so whatever is answered is about the credentials.
        return WireDenied(str(_error_reply(error)), sent=sent)
    return WireClosed(text, sent=sent)


def settings_of(replies: Sequence[Reply]) -> dict[str, str]:
    """CONFIG GET's flat lists of names and values, all in one; errors among them are left out."""
    found: dict[str, str] = {}
    for reply in replies:
        if isinstance(reply, list):
            words = [
                word.decode("utf-8", "surrogateescape") if isinstance(word, bytes) else str(word) for word in reply
            ]
            found.update(zip(words[::2], words[1::2], strict=True))
    return found


_TEXTS = frozenset({"run_id", "master_replid", "master_replid2", "master_host", "redis_version", "valkey_version"})


def info_fields(raw: bytes) -> dict[str, object]:
    """INFO as a dictionary in redis-py's shape; run ids and replids stay text, even if all of it is digits."""
    fields: dict[str, object] = {}
    for line in raw.decode("utf-8", "replace").split("\r\n"):
        name, colon, text = line.partition(":")
        if not colon or name.startswith("#"):
            continue
        if "=" in text and "," in text:
            pairs = (pair.partition("=") for pair in text.split(","))
            fields[name] = {key: _scalar(value) for key, _, value in pairs}
        else:
            fields[name] = text if name in _TEXTS else _scalar(text)
    return fields


def _scalar(text: str) -> str | int:
    return int(text) if text.lstrip("-").isdigit() else text
