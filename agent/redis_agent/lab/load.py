"""Clients that write all the time, note every acknowledgement, and can say afterwards what was lost.

They are plain clients: no pool, no Sentinel, only the observer's address and a loop that repeats what certainly was not
executed. A write whose connection broke after it was sent counts as unknown and is never repeated.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Self

import redis

from redis_agent.client import LeaderObserver, LeaderView
from redis_agent.lab.wire import LabConnection
from redis_agent.lab.writer import Ack, Kind, Writer

CONNECT_LIMIT_S = 0.25
_EXAMPLES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """The longest time without an acknowledged write."""

    from_ns: int
    to_ns: int

    @property
    def seconds(self) -> float:
        return (self.to_ns - self.from_ns) / 1e9


@dataclass(slots=True, kw_only=True)
class Losses:
    """What became of the acknowledged writes."""

    confirmed: int = 0
    """Confirmed writes that were looked up."""
    confirmed_lost: int = 0
    plain: int = 0
    """Acknowledged without a confirmation, and looked up."""
    plain_lost: int = 0
    unknown: int = 0
    """Writes of unknown outcome, by the clients' count."""
    counters_lost: int = 0
    """Increments that were acknowledged and are gone. They are not confirmed."""
    counters_doubled: int = 0
    """Increments that were executed more often than they can have been sent. Always wrong."""
    examples: list[str] = field(default_factory=list)
    """Some keys of confirmed writes that are gone."""

    @property
    def sound(self) -> bool:
        """Whether the promise was kept."""
        return not self.confirmed_lost and not self.counters_doubled


class Load:
    """Writers against whoever leads.

    Args:
        observer: tells who leads; started by the caller.
        plain: writers of SET.
        confirmed: writers of SET and WAIT.
        counters: writers of INCR, each with a counter of its own.
        rate_per_s: of all writers together.
        password: of Redis.
        prefix: of all keys.
        reply_limit_s: for one reply; longer than a handover's pause, or its writes count as unknown.
        wait_limit_s: for WAIT.
        nice: of the writers' threads, against whatever else runs on this machine.
    """

    def __init__(
        self,
        observer: LeaderObserver,
        *,
        plain: int = 2,
        confirmed: int = 2,
        counters: int = 1,
        rate_per_s: float = 1000.0,
        password: str = "",
        prefix: str = "load",
        reply_limit_s: float = 10.0,
        wait_limit_s: float = 1.0,
        nice: int = 0,
    ) -> None:
        self.observer = observer
        self.prefix = prefix
        self.nice = nice
        self.interval_s = (plain + confirmed + counters) / rate_per_s
        self.wait_limit_ms = int(wait_limit_s * 1000)
        self.stopping = threading.Event()
        self.surprises: list[str] = []
        """Answers that a client of a leader should not get."""
        self._password = password
        self._reply_limit_s = reply_limit_s
        kinds = [Kind.PLAIN] * plain + [Kind.CONFIRMED] * confirmed + [Kind.COUNTER] * counters
        self._writers = [Writer(self, kind, number) for number, kind in enumerate(kinds, start=1)]

    def connection(self, view: LeaderView) -> LabConnection:
        """A connection to this leader. Raises OSError."""
        return LabConnection(
            view.address,
            password=self._password,
            connect_limit_s=CONNECT_LIMIT_S,
            reply_limit_s=self._reply_limit_s,
        )

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        for writer in self._writers:
            writer.thread.start()

    def stop(self, limit_s: float = 15.0) -> None:
        """End the writers. What they noted stays."""
        self.stopping.set()
        deadline = time.monotonic() + limit_s
        for writer in self._writers:
            if writer.thread.ident is not None:
                writer.thread.join(max(0.0, deadline - time.monotonic()))

    # --- what was acknowledged ----------------------------------------------------------------------------------------

    @property
    def acknowledged(self) -> int:
        return sum(len(writer.acks) for writer in self._writers)

    @property
    def unknown(self) -> int:
        return sum(writer.unknown for writer in self._writers)

    def acks(self, since_ns: int, until_ns: int | None = None, *, confirmed: bool = False) -> list[Ack]:
        """What was acknowledged in that time, in its order.

        Args:
            since_ns: of time.monotonic_ns().
            until_ns: default: now.
            confirmed: only what WAIT confirmed.
        """
        end_ns = time.monotonic_ns() if until_ns is None else until_ns
        found = [
            ack
            for writer in self._writers
            for ack in _latest_first(writer.acks, since_ns)
            if ack.at_ns <= end_ns and (ack.confirmed or not confirmed)
        ]
        return sorted(found, key=lambda ack: ack.at_ns)

    def gap(self, since_ns: int, until_ns: int | None = None) -> Gap:
        """The longest time without an acknowledgement in that time, its edges included."""
        end_ns = time.monotonic_ns() if until_ns is None else until_ns
        stamps = [since_ns, *(ack.at_ns for ack in self.acks(since_ns, end_ns)), end_ns]
        longest = max(itertools.pairwise(stamps), key=lambda pair: pair[1] - pair[0])
        return Gap(from_ns=longest[0], to_ns=longest[1])

    def first_ack(self, since_ns: int, *, after_epoch: int, confirmed: bool = False) -> Ack | None:
        """The first write that a leader of a later epoch acknowledged."""
        later = (ack for ack in self.acks(since_ns, confirmed=confirmed) if ack.epoch > after_epoch)
        return next(later, None)

    def resumed(self, since_ns: int, *, after_epoch: int) -> bool:
        """Whether a leader of a later epoch has acknowledged a write of every writer since then."""

        def has_resumed(writer: Writer) -> bool:
            return any(ack.epoch > after_epoch for ack in _latest_first(writer.acks, since_ns))

        return all(has_resumed(writer) for writer in self._writers)

    def unconfirmed(self, since_ns: int) -> int:
        """How many writes were acknowledged since then whose WAIT counted too few replicas, or got no answer."""
        waiting = (writer for writer in self._writers if writer.kind is Kind.CONFIRMED)
        return sum(not ack.confirmed for writer in waiting for ack in _latest_first(writer.acks, since_ns))

    def longest_write_s(self, since_ns: int) -> float:
        """The longest that any one write took, its retries included."""
        return max(((ack.at_ns - ack.begun_ns) / 1e9 for ack in self.acks(since_ns)), default=0.0)

    def rate_per_s(self, window_s: float = 1.0) -> float:
        """Acknowledged writes per second, lately."""
        return len(self.acks(time.monotonic_ns() - int(window_s * 1e9))) / window_s

    # --- what was lost ------------------------------------------------------------------------------------------------

    def verify(self, client: redis.Redis, *, everything: bool = False) -> Losses:
        """Read back what was acknowledged since the last look, or everything.

        Args:
            client: of the Redis that leads now.
            everything: also what was there at the last look.

        Returns:
            Counts since the beginning.

        Raises:
            redis.RedisError: the look itself failed.
        """
        losses = Losses(unknown=self.unknown)
        for writer in self._writers:
            losses.counters_lost += writer.counters_lost
            losses.counters_doubled += writer.counters_doubled
            if writer.kind is Kind.COUNTER:
                continue
            if everything:
                writer.looked_up = writer.confirmed = 0
            writer.look_up(client)
            losses.confirmed += writer.confirmed
            losses.plain += writer.looked_up - writer.confirmed
            gone = [writer.key(seq) for seq, confirmed in writer.lost.items() if confirmed]
            losses.confirmed_lost += len(gone)
            losses.plain_lost += len(writer.lost) - len(gone)
            losses.examples = (losses.examples + gone)[:_EXAMPLES]
        return losses


def _latest_first(acks: Sequence[Ack], since_ns: int) -> Iterator[Ack]:
    for index in range(len(acks) - 1, -1, -1):
        if acks[index].at_ns < since_ns:
            return
        yield acks[index]
