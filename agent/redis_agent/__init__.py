"""Automatic failover and clean handover for stock Redis, through an election in ZooKeeper.

What applications import is here; it is loaded when it is first used, so that neither the client pays for the agent nor
the agent for the client::

    from redis_agent import LeaderObserver
"""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # ``typing`` takes 10 ms to load, which the guard need not.
if TYPE_CHECKING:
    from redis_agent.client import LeaderObserver

__version__ = "0.1.0"

__all__ = ["LeaderObserver", "__version__"]

_LAZY = {"LeaderObserver": "redis_agent.client"}


def __getattr__(name: str) -> object:
    if name in _LAZY:
        value: object = getattr(importlib.import_module(_LAZY[name]), name)
        globals()[name] = value
        return value
    message = f"module {__name__!r} has no attribute {name!r}"
    raise AttributeError(message)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
