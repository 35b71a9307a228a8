"""Who works on a member's host: its agent, the guard, Redis and what Redis forks."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil

GUARD = "guard.py"
HOST = ("agent", "guard", "redis")
"""The order in which they are stopped, and continued, unless somebody wants another one."""

_SERVERS = ("redis-server", "redis-check-rdb", "valkey-server")


def redis_of(data_dir: Path, candidates: Iterable[psutil.Process]) -> psutil.Process | None:
    """The redis-server that works in this directory; None if there is none."""
    found = [process for process in candidates if _is_redis(process, data_dir.resolve())]
    # A child that writes a dump looks like its parent, which is older.
    return min(found, key=_created, default=None)


def guard_of(directory: Path, redis: psutil.Process | None) -> psutil.Process | None:
    """The guard of the member that owns this directory; None if there is none.

    Args:
        directory: the member's.
        redis: its Redis, whose parent the guard is.
    """
    try:
        if redis is not None and (parent := redis.parent()) is not None and _is_guard(parent):
            return parent
    except psutil.Error:
        pass
    return next((process for process in psutil.process_iter() if _guards(process, directory.resolve())), None)


def workers(directory: Path) -> list[psutil.Process]:
    """Processes, not zombies, that work below this directory: Redis, a guard, whatever they have forked."""
    below = directory.resolve()
    return [process for process in psutil.process_iter() if _works_below(process, below) or _guards(process, below)]


def family(process: psutil.Process | None) -> Sequence[psutil.Process]:
    """A process and all that it has forked; nothing if there is none."""
    if process is None:
        return ()
    try:
        return (process, *process.children(recursive=True))
    except psutil.Error:
        return (process,)


def _is_redis(process: psutil.Process, data_dir: Path) -> bool:
    try:
        return (
            process.name().startswith(_SERVERS)
            and process.status() != psutil.STATUS_ZOMBIE
            and Path(process.cwd()) == data_dir
        )
    except psutil.Error:
        return False


def _is_guard(process: psutil.Process) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and any(Path(word).name == GUARD for word in process.cmdline())
    except psutil.Error:
        return False


def _guards(process: psutil.Process, directory: Path) -> bool:
    """A guard whose command line names a place below this directory."""
    try:
        return _is_guard(process) and any(Path(word).is_relative_to(directory) for word in process.cmdline())
    except psutil.Error:
        return False


def _works_below(process: psutil.Process, directory: Path) -> bool:
    try:
        return process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(directory)
    except psutil.Error:
        return False


def _created(process: psutil.Process) -> float:
    try:
        return process.create_time()
    except psutil.Error:
        return float("inf")
