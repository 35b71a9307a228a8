"""Threads that do blocking work for the agent, one job after the other."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

Job = Callable[[], None]


class Worker:
    """One thread and a queue. Jobs answer for themselves, also for their errors: one that raises ends the thread.

    The thread starts with the first job and is a daemon: it never keeps the process from exiting.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._started = False
        self._closed = False

    def submit(self, job: Job) -> bool:
        """Queue a job. False: closed, it will not run."""
        with self._lock:
            if self._closed:
                return False
            self._jobs.put(job)
            if not self._started:
                self._started = True
                threading.Thread(target=self._run, name=self._name, daemon=True).start()
            return True

    def close(self, last: Job | None = None) -> None:
        """Take no more jobs; those in the queue still run, then ``last``, then the thread ends."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if last is not None and self._started:
                self._jobs.put(last)
            self._jobs.put(None)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
