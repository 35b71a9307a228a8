"""Loading modules in less time."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Without the garbage collector: what is loaded stays, and looking for garbage in it takes a tenth of the time.

    The start of the agent is part of every failover in which init has to start it again.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
