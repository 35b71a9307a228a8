"""A stubborn client that does not wait for answers: some writes are always on their way to its Redis.

When a host is stopped, its sockets fill. What Redis executes of that when it goes on is what the project does not
promise to hold back: one read (16 KiB) of each connection. Clients with one write at a time would never show it.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from queue import SimpleQueue

from redis_agent.lab.wire import LabConnection, ReplyError, pack
from tests.faults.history import OK, REFUSED, UNKNOWN, Entry, boottime_ns
from tests.faults.talk import ABOUT, NOT_EXECUTED, Round, connect, replid_of

BATCH = 5
WINDOW = 512
"""So many writes may be on their way: some 60 KiB."""
_PADDING = "-" * 40
_AGAIN_S = 0.1
_LOOK_S = 0.1


@dataclass(slots=True)
class _Life:
    """What the two threads of one connection share."""

    connection: LabConnection
    sent: SimpleQueue[list[Entry]]
    over: threading.Event
    under_way: int = 0
    """Changed by the sender; ``answered`` by the receiver."""
    answered: int = 0
    refused: bool = False


class Pipeliner:
    """Two threads: one sends, one reads the answers.

    Args:
        name: unique in a run.
        node: address:port, for ever.
        rate_per_s: of writes, as long as they are accepted.
        round_: where they are noted.
    """

    def __init__(self, name: str, node: str, rate_per_s: float, round_: Round) -> None:
        self.name = name
        self._node = node
        self._pause_s = BATCH / rate_per_s
        self._round = round_
        self._numbers = itertools.count(1)
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)

    def _run(self) -> None:
        while not self._round.stopping.is_set():
            try:
                connection = connect(self._node)
            except OSError:
                self._round.stopping.wait(_AGAIN_S)
                continue
            self._live(_Life(connection, SimpleQueue(), threading.Event()))
            self._round.stopping.wait(_AGAIN_S)

    def _live(self, life: _Life) -> None:
        receiver = threading.Thread(target=self._receive, args=(life,), name=f"{self.name} answers", daemon=True)
        receiver.start()
        try:
            while not (self._round.stopping.wait(self._pause_s) or life.over.is_set()):
                if life.under_way - life.answered + BATCH <= WINDOW:
                    self._send(life)
        except OSError:
            # What of it arrived is unknown; the receiver may still get some answers.
            pass
        finally:
            life.over.set()
            receiver.join()
            life.connection.close()
        for entry in _rest(life.sent):
            self._note(entry)

    def _send(self, life: _Life) -> None:
        # One at a time is enough to notice that it is accepted again.
        batch = [self._entry() for _ in range(1 if life.refused else BATCH)]
        # First, so that the receiver never gets an answer to what it does not know of.
        life.sent.put(batch)
        life.under_way += len(batch)
        life.connection.send(pack(ABOUT, *(("SET", entry.key, entry.value) for entry in batch)))

    def _entry(self) -> Entry:
        value = f"{self.name}.{next(self._numbers)}{_PADDING}"
        key = f"{self._round.prefix}:s:{value}"
        return Entry(
            t0=boottime_ns(),
            t1=0,
            client=self.name,
            op="set",
            key=key,
            value=value,
            node=self._node,
            outcome=UNKNOWN,
            stubborn=True,
        )

    def _receive(self, life: _Life) -> None:
        def worth_waiting() -> bool:
            return not life.over.is_set()

        while True:
            try:
                batch = life.sent.get(timeout=_LOOK_S)
            except queue.Empty:
                if life.over.is_set():
                    return
                continue
            try:
                replid = replid_of(life.connection.reply(worth_waiting))
                for entry in batch:
                    self._take(entry, life.connection.reply(worth_waiting), replid)
                    self._note(entry)
            except OSError as error:
                for entry in [each for each in batch if not each.t1]:
                    entry.error = f"{type(error).__name__}: {error}"[:80]
                    self._note(entry)
                life.over.set()
                return
            life.answered += len(batch)
            life.refused = batch[-1].outcome == REFUSED

    @staticmethod
    def _take(entry: Entry, reply: object, replid: str) -> None:
        entry.t1 = boottime_ns()
        if not isinstance(reply, ReplyError):
            entry.outcome, entry.replid = OK, replid
            return
        entry.error = str(reply)[:80]
        if entry.error.startswith(NOT_EXECUTED):
            entry.outcome = REFUSED

    def _note(self, entry: Entry) -> None:
        entry.t1 = entry.t1 or boottime_ns()
        self._round.note(entry)


def _rest(sent: SimpleQueue[list[Entry]]) -> Iterator[Entry]:
    while True:
        try:
            yield from sent.get_nowait()
        except queue.Empty:
            return
