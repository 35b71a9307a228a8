"""What a simulated Redis holds: its data set, the stream that it replicates, what is on its disk, its connections."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

from redis_agent.replication import Address
from tests.sim.clock import Clock
from tests.sim.world import Network, Pipe

if TYPE_CHECKING:
    from tests.sim.guard import Guard
    from tests.sim.redis import SimRedis

PING = 0
GETACK = -1
"""Entries of the stream that are not writes. A write is a positive number, unique in a run."""

WRITE_BYTES = 40
PING_BYTES = 14
GETACK_BYTES = 37

FENCE = 1_000_000
"""min-replicas-to-write of a fenced server."""

MAX_LAG_S = 10.0
"""min-replicas-max-lag."""

PING_PERIOD_S = 10
"""repl-ping-replica-period."""

REPL_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """An RDB file. ``replid`` is empty where Redis did not save one."""

    data: list[int]
    replid: str
    offset: int


@dataclass(slots=True)
class Disk:
    """A data directory. ``mode``: none (no saves, but a full resync leaves its file), rdb, or aof."""

    mode: str = "none"
    dump: Snapshot | None = None
    aof: list[int] = field(default_factory=list)
    diverged: dict[str, Snapshot] = field(default_factory=dict)
    """What SaveTail put aside, by name."""
    slow_s: float = 0.0
    """How much longer than usual it takes, at most."""

    def describe(self) -> str:
        dump = f"dump of {len(self.dump.data)} at {self.dump.replid[:6]}@{self.dump.offset}" if self.dump else "no dump"
        return f"{self.mode}, {dump}, AOF of {len(self.aof)}"

    def wipe(self) -> None:
        self.dump = None
        self.aof = []
        self.diverged = {}

    def lose_tail(self, rng: Random) -> None:
        """What a crash takes from the end of the AOF: mostly nothing."""
        if self.aof and rng.random() < 0.3:
            self.aof = self.aof[: len(self.aof) - rng.randrange(0, min(len(self.aof), 4) + 1)]


class Stream:
    """The replication backlog: entries with their end offsets, from ``start`` (exclusive) on.

    Beside each entry stands how many writes the data set held after it, so that a place in the stream can be compared
    with a replica's data set.
    """

    __slots__ = ("ends", "ids", "limit", "sizes", "start", "start_size")

    def __init__(self, start: int, size: int, limit: int) -> None:
        self.start = start
        self.start_size = size
        self.limit = limit
        self.ends: list[int] = []
        self.ids: list[int] = []
        self.sizes: list[int] = []

    def append(self, end: int, entry: int, size: int) -> None:
        self.ends.append(end)
        self.ids.append(entry)
        self.sizes.append(size)

    @property
    def over_long(self) -> bool:
        return len(self.ends) > 2 * self.limit

    def trim(self, needed: int) -> None:
        """Forget the oldest entries beyond the limit, but none behind the offset ``needed``."""
        cut = min(len(self.ends) - self.limit, bisect_right(self.ends, needed))
        if cut > 0:
            self.start, self.start_size = self.ends[cut - 1], self.sizes[cut - 1]
            del self.ends[:cut], self.ids[:cut], self.sizes[:cut]

    def after(self, offset: int) -> tuple[list[int], list[int]]:
        assert offset >= self.start, "what a replica still needs was forgotten"
        first = bisect_right(self.ends, offset)
        return self.ends[first:], self.ids[first:]

    def size_at(self, offset: int) -> int | None:
        """How many writes the data set held at this offset; None if it falls within an entry."""
        if offset == self.start:
            return self.start_size
        index = bisect_left(self.ends, offset)
        return self.sizes[index] if index < len(self.ends) and self.ends[index] == offset else None


class ReplLink:
    """One replication connection, as both ends see it."""

    __slots__ = (
        "ack_time",
        "acked",
        "down",
        "heard_at",
        "online",
        "primary",
        "primary_open",
        "replica",
        "replica_open",
        "sent",
        "streaming",
        "up",
    )

    def __init__(self, net: Network, replica: SimRedis, primary: SimRedis) -> None:
        self.replica = replica
        self.primary = primary
        self.up = Pipe(net, replica.host, primary.host)
        self.down = Pipe(net, primary.host, replica.host)
        self.primary_open = False  # accepted by the primary, and not closed since
        self.replica_open = True
        self.online = False
        self.streaming = False
        self.sent = 0
        self.acked = 0
        self.ack_time = 0.0
        self.heard_at = 0.0


class RedisConn:
    """A client's connection. ``client`` has on_reply(conn, reply) and on_closed(conn)."""

    __slots__ = ("client", "down", "open", "redis", "up", "woff", "wrote_in")

    def __init__(self, net: Network, host: str, redis: SimRedis, client: Any) -> None:
        self.client = client
        self.redis = redis
        self.up = Pipe(net, host, redis.host)
        self.down = Pipe(net, redis.host, host)
        self.open = True  # the server's end
        self.woff = 0
        self.wrote_in = ""  # the replid that its last write was executed under


@dataclass(slots=True)
class Site:
    """Where a Redis lives: its host, address, disk and clock, and the process that runs there now, with its guard."""

    name: str
    address: Address
    disk: Disk
    clock: Clock
    redis: SimRedis | None = None
    guard: Guard | None = None


Sites = dict[Address, Site]
