"""What the agent remembers over its own death: one small file, written atomically and durably, and a lock beside it.

The file is JSON with a version and a checksum. One that is torn, damaged or of an unknown version counts as missing:
an agent that remembers nothing is careful, one that believes nonsense is not.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import threading
import zlib
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from redis_agent.messages import Event, SaveState, StateSaved
from redis_agent.state_record import StateRecord
from redis_agent.workers import Worker

VERSION = 1


class LockHeld(Exception):
    """Another agent runs on this state file; the message names it."""


class StateLock:
    """An exclusive lock, held until ``release`` or the end of the process (also by SIGKILL), whichever comes first.

    Args:
        path: of the lock file; its content is the holder's process id, for people.

    Raises:
        LockHeld: another process has it.
        OSError: the file can't be opened.
    """

    def __init__(self, path: Path) -> None:
        # Not inherited by Redis, which would keep the lock after the agent's death.
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # flock belongs to the open file: unlike lockf it is not lost when any other descriptor of it is closed.
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(self._descriptor, 32).decode("ascii", "replace").strip()
            os.close(self._descriptor)
            if not isinstance(error, BlockingIOError):
                raise
            raise LockHeld(f"{path}: held by another agent, process {holder or '?'}; stop it first") from error
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Let go. The file stays: deleting it would let two agents lock two different files."""
        os.close(self._descriptor)


def acquire_lock(path: Path) -> StateLock:
    """Lock the state file ``path`` by a file beside it (suffix ``.lock``); see StateLock for what is raised."""
    return StateLock(path.with_name(f"{path.name}.lock"))


def load(path: Path) -> tuple[StateRecord, str]:
    """Read the state file.

    Returns:
        The record and what is wrong, as one line. A file that is missing, torn or damaged gives an empty record;
        the problem is empty only if the record is to be believed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return StateRecord(), f"state file {path}: there is none yet"
    except (OSError, UnicodeDecodeError) as error:
        return StateRecord(), f"state file {path}: unreadable ({error}), so nothing is remembered"
    try:
        return _decode(text), ""
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return StateRecord(), f"state file {path}: damaged ({error}), so nothing is remembered"


def save(path: Path, record: StateRecord) -> None:
    """Write the state file so that after a power cut it is the old one or the new one, and on disk on return.

    Raises:
        OSError: the disk refused; the old file stands.
    """
    draft = path.with_name(f"{path.name}.tmp")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123 - a descriptor, not a path
        file.write(_encode(record))
        file.flush()
        os.fsync(descriptor)
    draft.replace(path)
    # The renaming is durable only once the directory is.
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _encode(record: StateRecord) -> str:
    body = asdict(record)
    return json.dumps({"version": VERSION, "checksum": _checksum(body), "record": body}, indent=1) + "\n"


def _decode(text: str) -> StateRecord:
    outer = json.loads(text)
    if outer["version"] != VERSION:
        raise ValueError(f"version {outer['version']} is unknown")
    body: dict[str, Any] = outer["record"]
    if outer["checksum"] != _checksum(body):
        raise ValueError("the checksum is wrong")
    # A newer agent may have written more; what an older one left out has its default.
    known = {field.name for field in fields(StateRecord)}
    values = {name: _frozen(value) for name, value in body.items() if name in known}
    return StateRecord(**values)


def _frozen(value: Any) -> Any:
    """JSON's lists as the tuples that they were."""
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def _checksum(body: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())


class StateFile:
    """Executes SaveState on a thread of its own; each request is answered by one StateSaved.

    Requests that queue up while the disk is busy are served by one write, of the newest record.

    Args:
        path: of the state file.
        post: takes the events, on any thread.
    """

    def __init__(self, path: Path, post: Callable[[Event], None]) -> None:
        self._path = path
        self._post = post
        self._worker = Worker("state-file")
        self._lock = threading.Lock()
        self._waiting: list[SaveState] = []

    def execute(self, command: SaveState) -> None:
        """Queue a write; never blocks."""
        with self._lock:
            self._waiting.append(command)
            if not self._worker.submit(self._write):
                self._waiting.remove(command)
                self._post(StateSaved(command.request, "the agent is stopping"))

    def close(self) -> None:
        """Take no more; what is queued is still written."""
        self._worker.close()

    def _write(self) -> None:
        with self._lock:
            batch, self._waiting = self._waiting, []
        if not batch:
            return  # Written together with an earlier one.
        problem = ""
        try:
            save(self._path, batch[-1].record)
        except OSError as error:
            problem = f"state file {self._path}: {error.strerror or error}"
            with contextlib.suppress(OSError):
                self._path.with_name(f"{self._path.name}.tmp").unlink()
        for command in batch:
            self._post(StateSaved(command.request, problem))
