"""Worker processes: each plays one seed after the other, and hands back what came of it.

A worker that dies, and an exception in one, are errors here and not a hang; a worker never outlives its parent.
"""

from __future__ import annotations

import gc
import multiprocessing
import signal
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess
from typing import Any, TypeVar

Outcome = TypeVar("Outcome")
END_LIMIT_S = 2.0


class WorkerFailed(Exception):
    """A worker died, or the simulator itself raised: nothing is known of this seed."""


@dataclass(frozen=True, slots=True)
class _Raised:
    """Instead of an outcome."""

    text: str


def spread(play: Callable[[int], Outcome], seeds: Iterable[int], jobs: int) -> Generator[Outcome, None, None]:
    """Play each seed once, and give the outcomes as they come: with one job here, in order; else in ``jobs`` processes.

    Whoever stops iterating, or is interrupted, should close the iterator: that ends the workers.

    Raises:
        WorkerFailed: one died, or raised.
    """
    if jobs > 1:
        yield from _Pool(play, jobs).run(iter(seeds))
        return
    with _no_collector():
        for seed in seeds:
            yield play(seed)
            gc.collect()


@contextmanager
def _no_collector() -> Iterator[None]:
    """Garbage is collected between seeds only: in the life of a cluster most is freed without that."""
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


class _Pool:
    """The workers of one run. ``play`` need not be picklable, only what it returns: workers are forked."""

    def __init__(self, play: Callable[[int], Any], jobs: int) -> None:
        self.play = play
        self.jobs = jobs
        self.context = multiprocessing.get_context("fork")
        self.workers: dict[Connection, ForkProcess] = {}
        self.playing: dict[Connection, int] = {}

    def run(self, seeds: Iterator[int]) -> Iterator[Any]:
        try:
            for _ in range(self.jobs):
                self._feed(self._start(), seeds)
            while self.playing:
                for ready in wait(list(self.playing)):
                    assert isinstance(ready, Connection)
                    outcome = self._outcome(ready)
                    self._feed(ready, seeds)  # before the outcome is looked at: it need not wait for that
                    yield outcome
        finally:
            self._end()

    def _start(self) -> Connection:
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=_work, args=(theirs, self.play), daemon=True)
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # Ctrl-C is for the parent alone
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()  # so that its death shows as the end of ours
        self.workers[ours] = process
        return ours

    def _feed(self, worker: Connection, seeds: Iterator[int]) -> None:
        seed = next(seeds, None)
        if seed is None:
            self.playing.pop(worker, None)
        else:
            self.playing[worker] = seed
            worker.send(seed)

    def _outcome(self, worker: Connection) -> object:
        seed = self.playing[worker]
        try:
            outcome = worker.recv()
        except (EOFError, ConnectionError):
            process = self.workers[worker]
            process.join(END_LIMIT_S)
            raise WorkerFailed(f"the worker that played seed {seed} died: exit code {process.exitcode}") from None
        if isinstance(outcome, _Raised):
            raise WorkerFailed(f"seed {seed}: the simulator raised\n{outcome.text}")
        return outcome

    def _end(self) -> None:
        for process in self.workers.values():
            process.terminate()
        for connection, process in self.workers.items():
            process.join(END_LIMIT_S)
            if process.is_alive():
                process.kill()
                process.join()
            connection.close()


def _work(seeds: Connection, play: Callable[[int], object]) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None
    with _no_collector():
        while seeds in wait([seeds, parent.sentinel]):
            try:
                seed = seeds.recv()
            except EOFError:
                return
            try:
                outcome = play(seed)
            except Exception:  # noqa: BLE001 - the parent raises it
                outcome = _Raised(traceback.format_exc())
            seeds.send(outcome)
            del outcome
            gc.collect()
