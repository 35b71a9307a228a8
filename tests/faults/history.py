"""What clients note: one JSON line for each attempt, in files that any tool reads."""

from __future__ import annotations

import gzip
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import msgspec

Contents = Mapping[str, str | list[str]]
"""Of one node: each key and its value."""

OK = "ok"
REFUSED = "refused"
"""Certainly not executed."""
UNKNOWN = "unknown"
"""Sent, and the answer never came."""

COUNTER_BASE, COUNTER_STEPS = 4, 31
"""Each increment of a counter adds a power of this base of its own; so many fit into one counter."""


def boottime_ns() -> int:
    """CLOCK_BOOTTIME, which every process of a machine shares and nobody sets."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


class Entry(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One attempt of one client. Times are nanoseconds of CLOCK_BOOTTIME."""

    t0: int
    """Before it was sent."""
    t1: int
    """When the outcome of the write itself was known."""
    client: str
    op: str
    """set, incr, rpush or get."""
    key: str
    value: str = ""
    """Of SET and RPUSH: unique. Of INCRBY: what it adds, which no other attempt adds to this counter."""
    node: str = ""
    """Where it was sent: address:port."""
    outcome: str
    result: int | str | None = None
    """Of INCRBY: the sum; of RPUSH: the length; of GET: the value."""
    replid: str = ""
    """Of the Redis that executed it, read in the same round trip: two leaderships of one node differ in it.
    Empty: it was no primary any more, or the connection was lost."""
    need: int | None = None
    """How many voters besides the primary had to have it; None: the client did not ask."""
    acked_by: int | None = None
    """What WAIT answered; None: nothing."""
    voters: int | None = None
    """Distinct registered voters at or past the write's offset, by the ROLE behind the WAIT."""
    tw: int | None = None
    """When that was known."""
    error: str = ""
    stubborn: bool = False
    """Sent to this node whoever leads."""

    @property
    def ok(self) -> bool:
        return self.outcome == OK

    @property
    def is_write(self) -> bool:
        return self.op != "get"

    @property
    def waited(self) -> bool:
        """WAIT alone counted enough: any links, also of those that are no voters."""
        return self.ok and self.need is not None and self.acked_by is not None and self.acked_by >= self.need

    @property
    def confirmed(self) -> bool:
        """By the rule that the project publishes: WAIT, and so many distinct voters."""
        return self.waited and self.voters is not None and self.need is not None and self.voters >= self.need


class Fault(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a nemesis did, from when to when."""

    t0: int
    t1: int = 0
    """When it was over; 0: not yet."""
    held_from: int = 0
    """From here on it certainly was in effect; 0: from ``t0`` on. It began somewhere between the two."""
    held_until: int = 0
    """Up to here, too; 0: up to ``t1``."""
    kind: str
    target: str
    detail: str = ""


class Sight(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What one node looked like, for the plot only: agent's state, Redis' role, whether it takes writes."""

    t: int
    node: str
    role: str
    """primary, replica or down."""
    leads: bool = False
    """ZooKeeper says that it serves."""
    epoch: int = 0


encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Entry).decode


def read(paths: Iterable[Path]) -> Iterator[Entry]:
    """All entries of these files. A last line that its writer could not finish is skipped."""
    for path in paths:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as lines:
            for line in lines:
                if line.endswith(b"\n"):
                    yield _decode(line)
