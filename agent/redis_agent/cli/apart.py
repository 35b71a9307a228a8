"""Work that Ctrl-C must not break off in the middle of a library's code."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def apart(job: Callable[[], T]) -> T:
    """Do this on a thread of its own, and wait for it.

    Signals reach the main thread alone. There KeyboardInterrupt ends the waiting; raised inside kazoo it could leave a
    lock held, for which the client's end would wait for ever. What is abandoned ends with the process.

    Raises:
        KeyboardInterrupt: by Ctrl-C; the work may still go on.
        BaseException: whatever the work raises.
    """
    done: queue.SimpleQueue[Future[T]] = queue.SimpleQueue()
    threading.Thread(target=_do, args=(job, done), name="command", daemon=True).start()
    return done.get().result()


def _do(job: Callable[[], T], done: queue.SimpleQueue[Future[T]]) -> None:
    future: Future[T] = Future()
    try:
        future.set_result(job())
    except BaseException as error:  # noqa: BLE001 - raised again by whoever waits
        future.set_exception(error)
    done.put(future)
