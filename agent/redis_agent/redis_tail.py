"""What a diverged Redis has and no other member: saved beside its data before a resync discards it.

Redis saves in the background (BGSAVE) and there is no event for the end of that, so it is asked, over a connection and
in a thread of its own: neither role commands nor probes wait for it.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from redis_agent.messages import Event, SaveTail, TailSaved
from redis_agent.redis_role import INFO
from redis_agent.redis_wire import ErrorReply, Reply, Request, Wire, WireError, WireTimeout, info_fields, settings_of

DIRECTORY = "diverged"
SUFFIX = ".rdb"

POLL_FIRST_S = 0.003
POLL_MAX_S = 0.1

_POSITION = re.compile(r"epoch-([0-9]+)-offset-([0-9]+)")


_CHILDREN = ("rdb_bgsave_in_progress", "aof_rewrite_in_progress", "module_fork_in_progress")


class _FailedError(Exception):
    """There is no file; the message says why."""


def surplus(names: Iterable[str], saved: str, keep: int) -> list[str]:
    """Which of these saved tails to delete: all but ``saved`` and the newest others, ``keep`` in all.

    The newest is the one of the highest epoch, and within it of the highest offset. Names of another form are nobody's
    business here.
    """
    found = {name: match for name in names if (match := _POSITION.fullmatch(name)) and name != saved}
    ranked = sorted(found, key=lambda name: (int(found[name][1]), int(found[name][2])), reverse=True)
    return ranked[max(keep - 1, 0) :]


def save_tail(command: SaveTail, open_wire: Callable[[], Wire], deadline: float) -> Event:
    """Carry out the command; blocks until the deadline at most.

    Args:
        command: what to save.
        open_wire: opens a connection to the local Redis that is ours to close; raises WireError.
        deadline: on ``time.monotonic()``, in seconds.
    """
    if command.keep < 1:
        return TailSaved(command.incarnation, command.request, error="none are to be kept")
    try:
        path = _save(command, open_wire(), deadline)
    except WireTimeout as error:
        return TailSaved(command.incarnation, command.request, error=f"not saved in time: {error}")
    except (_FailedError, WireError, OSError, ValueError) as error:
        return TailSaved(command.incarnation, command.request, error=str(error) or type(error).__name__)
    return TailSaved(command.incarnation, command.request, path=str(path))


def _save(command: SaveTail, wire: Wire, deadline: float) -> Path:
    try:
        where, what, raw = wire.ask([("CONFIG", "GET", "dir"), ("CONFIG", "GET", "dbfilename"), INFO], deadline)
        settings, before = settings_of([where, what]), _info(raw)
        directory = Path(settings.get("dir", ""))
        if not settings.get("dbfilename") or not directory.is_absolute():
            raise _FailedError(f"CONFIG GET dir, dbfilename: {where!r}, {what!r}")
        _check_space(directory, before)
        _background_save(wire, deadline)
        target = directory / DIRECTORY / f"{command.name}{SUFFIX}"
        _keep_file(directory / settings["dbfilename"], target)
        # A full resync would have put another file there, or be about to load it.
        after = _info(wire.ask([INFO], deadline)[0])
        if after.get("master_replid") != before.get("master_replid") or _replaces_data(after):
            target.unlink(missing_ok=True)
            raise _FailedError("its data set was replaced meanwhile")
    finally:
        wire.close()
    _prune(target.parent, command)
    return target


def _check_space(directory: Path, info: Mapping[str, object]) -> None:
    """Roughly: a dump is seldom larger than what it is a dump of. A full disk would stop the writes, too (MISCONF)."""
    needed, free = info.get("used_memory"), shutil.disk_usage(directory).free
    if isinstance(needed, int) and free < needed:
        raise _FailedError(f"{directory}: {free >> 20} MiB are free, and up to {needed >> 20} MiB are needed")


def _background_save(wire: Wire, deadline: float) -> None:
    """A save that begins after this call, and ends well."""
    save: Request = ("BGSAVE",)
    while isinstance(reply := wire.ask([save], deadline)[0], ErrorReply):
        # Another child is at work, and there is one at a time. Any other error comes without one.
        if not _child_at_work(_info(wire.ask([INFO], deadline)[0])) and not _in_the_way(reply):
            raise _FailedError(f"BGSAVE: {reply}")
        if time.monotonic() >= deadline:
            raise _FailedError(f"not saved in time: {reply}")
        time.sleep(POLL_FIRST_S)
        _until_no_child(wire, deadline)
    info = _until_no_child(wire, deadline)
    if info.get("rdb_last_bgsave_status") != "ok":
        raise _FailedError("BGSAVE failed, Redis's log says why (disk full?)")


def _in_the_way(reply: ErrorReply) -> bool:
    return "already in progress" in reply.text or "child process" in reply.text


def _child_at_work(info: Mapping[str, object]) -> bool:
    return any(info.get(name) not in (0, None) for name in _CHILDREN)


def _until_no_child(wire: Wire, deadline: float) -> Mapping[str, object]:
    pause_s = POLL_FIRST_S
    while _child_at_work(info := _info(wire.ask([INFO], deadline)[0])):
        if time.monotonic() >= deadline:
            raise _FailedError("not saved in time; the save goes on")
        time.sleep(min(pause_s, max(deadline - time.monotonic(), 0.0)))
        pause_s = min(pause_s * 1.5, POLL_MAX_S)
    return info


def _replaces_data(info: Mapping[str, object]) -> bool:
    return any(info.get(name) not in (0, None) for name in ("loading", "async_loading", "master_sync_in_progress"))


def _info(reply: Reply) -> Mapping[str, object]:
    if not isinstance(reply, bytes):
        raise _FailedError(f"INFO: {reply}")
    return info_fields(reply)


def _keep_file(dump: Path, target: Path) -> None:
    """Link the dump under another name, at once or not at all: Redis never writes into a dump that it has finished."""
    target.parent.mkdir(mode=0o700, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    draft.unlink(missing_ok=True)
    try:
        _link_or_copy(dump, draft)
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)
    _sync(target.parent)


def _link_or_copy(dump: Path, draft: Path) -> None:
    try:
        os.link(dump, draft)
    except FileNotFoundError:
        raise
    except OSError:
        # The directory is a mount point or a link to elsewhere, or the file system knows no hard links.
        shutil.copyfile(dump, draft)
        _sync(draft)


def _prune(directory: Path, command: SaveTail) -> None:
    for draft in directory.glob(f".*{SUFFIX}.*.tmp"):
        draft.unlink(missing_ok=True)  # of an agent that was killed meanwhile
    names = [path.name.removesuffix(SUFFIX) for path in directory.glob(f"*{SUFFIX}")]
    for name in surplus(names, command.name, command.keep):
        (directory / f"{name}{SUFFIX}").unlink(missing_ok=True)
    _sync(directory)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
