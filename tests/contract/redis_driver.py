"""What the Redis contract needs of an implementation: one member's Redis with its adapter, real or simulated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from redis_agent.messages import Event, RedisDied, RedisUp
from redis_agent.replication import Address, RedisInfo

LIMIT_S = 10.0


class App(Protocol):
    """A client of one Redis, with one connection that is kept."""

    def write(self) -> str:
        """Write a new key: OK, or the first word of the error; empty without an answer for a while."""

    def answer(self) -> str:
        """The answer to a write that had none yet."""

    def wait(self, replicas: int) -> int:
        """WAIT for the last write, 1.5 s at most; -1 if it is refused or the connection is closed."""


class Server(Protocol):
    """A Redis and its adapter."""

    address: Address

    def start(self) -> RedisUp: ...
    def ask(self, kind: Callable[..., Any], **arguments: Any) -> Any:
        """Give a command, filling in incarnation, request and limits; returns the event that answers it."""

    def done(self, kind: Callable[..., Any], **arguments: Any) -> RedisInfo:
        """Give a role command that must succeed; returns the INFO behind it."""

    def info(self) -> RedisInfo: ...
    def lead(self, at_least: int = 0) -> RedisInfo:
        """Freeze, promote, lift the fence."""

    def app(self) -> App: ...
    def kill(self) -> RedisDied: ...
    def stop(self) -> RedisDied:
        """StopRedis."""

    def next_event(self, limit_s: float = LIMIT_S) -> Event: ...


class RedisDriver(Protocol):
    """Makes servers that can reach one another."""

    def server(self, *, saves: bool = False) -> Server:
        """A started one. ``saves``: to an RDB file, when it is stopped in order."""

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition."""
