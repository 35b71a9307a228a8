"""One client that writes all the time, and notes every acknowledgement."""

from __future__ import annotations

import os
import threading
import time
from array import array
from collections.abc import Sequence
from enum import Enum
from typing import Any, NamedTuple, Protocol, overload

import redis

from redis_agent.client import LeaderObserver, LeaderView, SafeModeError
from redis_agent.lab.wire import LabConnection, Part, ReplyError, pack

_FIRST_PAUSE_S = 0.0005
_LONGEST_PAUSE_S = 0.02
_BATCH = 1000
_NOT_LEADING = ("READONLY", "LOADING", "MASTERDOWN", "ERR max number of clients")
_NOT_EXECUTED = (*_NOT_LEADING, "NOREPLICAS", "UNBLOCKED", "MISCONF", "BUSY")


class Kind(Enum):
    """What a writer does: SET; SET and WAIT; INCR."""

    PLAIN = "plain"
    CONFIRMED = "confirmed"
    COUNTER = "counter"


class Ack(NamedTuple):
    """An acknowledged write. Times are nanoseconds of time.monotonic_ns()."""

    begun_ns: int
    """Before the first attempt."""
    at_ns: int
    epoch: int
    """Of the leader that acknowledged it."""
    seq: int
    confirmed: bool
    """WAIT counted enough replicas."""


class Orders(Protocol):
    """What a writer must know of the load that it is part of."""

    observer: LeaderObserver
    prefix: str
    interval_s: float
    """Between two writes of one writer."""
    wait_limit_ms: int
    stopping: threading.Event
    surprises: list[str]
    nice: int

    def connection(self, view: LeaderView) -> LabConnection:
        """A connection to this leader. Raises OSError."""


class Acks(Sequence[Ack]):
    """One thread appends, any may read. Numbers in an array: a million of them are no work for the garbage collector,
    whose pauses would be mistaken for gaps.
    """

    _FIELDS = len(Ack._fields)

    def __init__(self) -> None:
        self._numbers = array("q")

    def append(self, ack: Ack) -> None:
        self._numbers.extend(ack)

    def __len__(self) -> int:
        # One that is just being appended does not count yet.
        return len(self._numbers) // self._FIELDS

    @overload
    def __getitem__(self, index: int) -> Ack: ...
    @overload
    def __getitem__(self, index: slice) -> list[Ack]: ...
    def __getitem__(self, index: int | slice) -> Ack | list[Ack]:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        start = index * self._FIELDS
        begun_ns, at_ns, epoch, seq, confirmed = self._numbers[start : start + self._FIELDS]
        return Ack(begun_ns, at_ns, epoch, seq, bool(confirmed))


class _NotExecuted(Exception):
    """The write certainly was not executed: try again."""


class _Unknown(Exception):
    """The write may have been executed."""


class Writer:
    """One thread, one connection at a time."""

    def __init__(self, load: Orders, kind: Kind, number: int) -> None:
        self.kind = kind
        self.name = f"{load.prefix}:{kind.value}{number}"
        self.acks = Acks()
        self.unknown = 0
        self.counters_lost = 0
        self.counters_doubled = 0
        self.looked_up = 0
        """How many of ``acks`` have been looked up."""
        self.confirmed = 0
        """How many of those were confirmed."""
        self.lost: dict[int, bool] = {}
        """Of those, what was not found, and whether it was confirmed."""
        self._load = load
        self._connection: LabConnection | None = None
        self._view: LeaderView | None = None
        self._value = 0
        self._maybe = 0
        """Increments of unknown outcome that have not shown up."""
        self.thread = threading.Thread(target=self._run, name=self.name, daemon=True)

    def key(self, seq: int) -> str:
        return f"{self.name}:{seq}"

    def look_up(self, client: redis.Redis) -> None:
        """Read back what was acknowledged since the last look."""
        end = len(self.acks)
        while self.looked_up < end:
            batch = self.acks[self.looked_up : min(self.looked_up + _BATCH, end)]
            values: Any = client.mget([self.key(ack.seq) for ack in batch])
            for ack, value in zip(batch, values, strict=True):
                self.confirmed += ack.confirmed
                if value not in (str(ack.seq), str(ack.seq).encode()):
                    self.lost[ack.seq] = ack.confirmed
            self.looked_up += len(batch)

    def _run(self) -> None:
        # To the kernel a thread has a priority of its own.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), self._load.nice)
        seq = 0
        next_at = time.monotonic()
        while not self._load.stopping.is_set():
            seq += 1
            self._write(seq)
            # After an outage there is no catching up: the rate stays what it is.
            next_at = max(next_at + self._load.interval_s, time.monotonic() - self._load.interval_s)
            self._load.stopping.wait(max(0.0, next_at - time.monotonic()))
        self._disconnect()

    def _write(self, seq: int) -> None:
        begun_ns = time.monotonic_ns()
        pause_s = _FIRST_PAUSE_S
        while not self._load.stopping.is_set():
            try:
                self._attempt(seq, begun_ns)
                return
            except _Unknown:
                self.unknown += 1
                self._maybe += 1
                self._disconnect()
                return
            except _NotExecuted:
                # Somebody else may lead by now, or this one may not have lifted its fence yet.
                epoch = self._view.epoch if self._view is not None else None
                try:
                    self._load.observer.wait_for_leader(pause_s, not_epoch=epoch)
                    pause_s = _FIRST_PAUSE_S
                except SafeModeError:
                    pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)

    def _attempt(self, seq: int, begun_ns: int) -> None:
        connection, view = self._connect()
        commands = self._commands(seq, view)
        try:
            connection.send(pack(*commands))
            reply = connection.reply(self._still_leads)
        except OSError as error:
            raise _Unknown from error
        if isinstance(reply, ReplyError):
            self._refused(str(reply), len(commands) - 1)
            raise _NotExecuted(str(reply))
        confirmed = False
        if self.kind is Kind.CONFIRMED:
            confirmed = self._waited(connection, view)
        self.acks.append(Ack(begun_ns, time.monotonic_ns(), view.epoch, seq, confirmed))
        if self.kind is Kind.COUNTER:
            assert isinstance(reply, int)
            self._count(reply)

    def _commands(self, seq: int, view: LeaderView) -> list[tuple[Part, ...]]:
        if self.kind is Kind.COUNTER:
            return [("INCR", self.name)]
        write: tuple[Part, ...] = ("SET", self.key(seq), seq)
        if self.kind is Kind.PLAIN:
            return [write]
        return [write, ("WAIT", view.wait, self._load.wait_limit_ms)]

    def _refused(self, error: str, replies_left: int) -> None:
        """Keep the connection if it is in step and worth keeping; say if the error is not one of those we know."""
        if not error.startswith(_NOT_EXECUTED):
            self._load.surprises.append(f"{self.name}: {error}")
        if replies_left or error.startswith(_NOT_LEADING):
            self._disconnect()

    def _waited(self, connection: LabConnection, view: LeaderView) -> bool:
        try:
            reply = connection.reply(self._still_leads)
        except OSError:
            # The write itself was acknowledged.
            self._disconnect()
            return False
        return isinstance(reply, int) and reply >= view.wait

    def _count(self, value: int) -> None:
        ahead = value - (self._value + 1)
        # A write of unknown outcome may have been executed, at any time since.
        explained = min(max(ahead, 0), self._maybe)
        self._maybe -= explained
        self.counters_doubled += max(ahead, 0) - explained
        self.counters_lost += max(-ahead, 0)
        self._value = value

    def _connect(self) -> tuple[LabConnection, LeaderView]:
        view = self._load.observer.leader
        if view is None or view != self._view:
            self._disconnect()
        self._view = view
        if view is None:
            raise _NotExecuted
        if self._connection is not None:
            # One that was closed while it was idle has executed nothing.
            if self._connection.usable():
                return self._connection, view
            self._disconnect()
        try:
            self._connection = self._load.connection(view)
        except OSError as error:
            raise _NotExecuted from error
        return self._connection, view

    def _still_leads(self) -> bool:
        """Nobody of a later epoch serves, as far as we know. What another one answers is not to be believed, and a host
        that stands still answers nothing; in a handover the old leader answers as soon as the new one serves.
        """
        leader = self._load.observer.leader
        return leader is None or self._view is None or leader.epoch <= self._view.epoch

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
