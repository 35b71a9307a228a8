"""Waiting for a condition instead of sleeping."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from redis_agent.lab.zookeeper import LabError

T = TypeVar("T")

PAUSE_S = 0.005


def wait_for(
    condition: Callable[[], T | None],
    limit_s: float,
    what: str | Callable[[], str],
    *,
    pause_s: float = PAUSE_S,
) -> T:
    """Ask ``condition`` until its answer is true, and return that answer.

    Args:
        condition: asked again and again.
        limit_s: how long at most.
        what: the claim, for the message ("n1 serves"), or a function that makes the message when it is needed.
        pause_s: between two questions.

    Raises:
        LabError: it did not come true in time.
    """
    deadline = time.monotonic() + limit_s
    while True:
        answer = condition()
        if answer:
            return answer
        if time.monotonic() > deadline:
            text = what if isinstance(what, str) else what()
            raise LabError(f"not within {limit_s:g} s: {text}")
        time.sleep(pause_s)
