"""What the Redis contract needs of an implementation: one member's Redis with its adapter, real or simulated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from redis_agent.messages import Event, Follow, RedisDied, RedisUp
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

    def begin_wait(self, replicas: int) -> str:
        """WAIT for the last write, 30 s at most, as ``write`` answers; WAITED if that many have it."""

    def closed(self) -> bool:
        """The server has hung up, and nothing is left to be read."""


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

    def pause_all(self, for_s: float) -> None:
        """An operator's CLIENT PAUSE of all commands."""

    def fill_disk(self) -> None:
        """A save fails: from now on it can't save."""

    def free_disk(self) -> None:
        """There is room again, and a save succeeds."""

    def tails(self) -> set[str]:
        """Names of what SaveTail has put aside."""

    def hang(self) -> None:
        """SIGSTOP to redis-server."""

    def resume(self) -> None:
        """SIGCONT."""

    def bgsave(self, *, for_s: float) -> None:
        """Begin a save that takes about so long."""

    def set_max_lag(self, seconds: int) -> None:
        """min-replicas-max-lag."""

    def ping_replicas_every(self, seconds: int) -> None:
        """repl-ping-replica-period."""

    def fail_to_load(self) -> None:
        """It is told to follow somebody whose data set it can't load; returns when it has failed."""

    def continue_without_data(self) -> str:
        """Whom it follows grants a partial resync under a new replid, which is returned, and sends nothing yet."""

    def next_event(self, limit_s: float = LIMIT_S) -> Event: ...


class RedisDriver(Protocol):
    """Makes servers that can reach one another."""

    def server(self, *, saves: bool = False, aof: bool = False) -> Server:
        """A started one. ``saves``: to an RDB file, when it is stopped in order. ``aof``: all the time, to an AOF."""

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for a condition."""


def follow(driver: RedisDriver, follower: Server, primary: Server) -> None:
    """Point it there and wait until it has everything, and until the primary counts it."""
    follower.done(Follow, primary=primary.address)

    def caught_up() -> bool:
        info, seen = follower.info(), primary.info()
        online = any(link.online and link.address == follower.address for link in seen.replicas)
        return info.link_up and not info.syncing and online and info.offset_bytes >= seen.offset_bytes

    driver.until(caught_up, "the follower is in sync")
