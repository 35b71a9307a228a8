"""Log lines as data, on standard error: ``transition from=leader.serving to=connecting epoch=9 why="..."``.

Writing a line never blocks its author: a full pipe must not hold up a fence. Lines wait in a bounded queue for one
writer thread; those that find it full are counted, and the count is told when there is room again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import TextIO

from redis_agent import messages

LOGGER = logging.getLogger("redis_agent")
QUEUE_LINES = 10_000
FLUSH_LIMIT_S = 1.0

# Syslog's numbers, which journald reads from the start of a line.
_PRIORITY = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


def emit(command: messages.Log) -> None:
    """Carry out the core's Log command."""
    event(command.level, command.event, **dict(command.fields))


def event(level: str, name: str, /, **fields: object) -> None:
    """Log an event.

    Args:
        level: debug, info, warning or error.
        name: what happened, in one word.
        fields: the facts.
    """
    number = logging.getLevelNamesMapping()[level.upper()]
    if LOGGER.isEnabledFor(number):
        LOGGER.log(number, name, extra={"fields": fields})


def set_level(level: str) -> None:
    """Write from this level on: debug, info, warning or error."""
    LOGGER.setLevel(level.upper())


@contextlib.contextmanager
def hushed(library: str) -> Iterator[None]:
    """A library's logger is silent while the context lasts, and as it was afterwards.

    Args:
        library: its logger's name.
    """
    logger = logging.getLogger(library)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


class PlainFormatter(logging.Formatter):
    """One line of ``key=value``. For journald it starts with the priority instead of the time."""

    def __init__(self, *, journal: bool) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        if self._journal:
            prefix = f"<{_PRIORITY.get(record.levelno, 6)}>"
        else:
            prefix = f"{_iso(record.created)} {record.levelname.lower()} "
        name, fields = _event_and_fields(record, self)
        return prefix + " ".join([name, *(f"{key}={quote(value)}" for key, value in fields.items())])


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``at``, ``level``, ``event``, and the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        name, fields = _event_and_fields(record, self)
        line = {"at": _iso(record.created), "level": record.levelname.lower(), "event": name}
        return json.dumps(line | {key: _plain(value) for key, value in fields.items()}, default=str, ensure_ascii=False)


def _iso(wall_s: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(wall_s)) + f".{int(wall_s % 1 * 1000):03d}Z"


def _event_and_fields(record: logging.LogRecord, formatter: logging.Formatter) -> tuple[str, Mapping[str, object]]:
    fields = getattr(record, "fields", None)
    if fields is not None:
        return record.getMessage(), fields
    # A library's line (kazoo, redis): its text becomes a field.
    library: dict[str, object] = {"logger": record.name, "message": record.getMessage()}
    if record.exc_info:
        library["exception"] = formatter.formatException(record.exc_info)
    return "library", library


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, float):
        return round(value, 6)
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    return str(value)


def quote(value: object) -> str:
    """A value as one word of a plain line; quoted as in JSON where it must be."""
    plain = _plain(value)
    if plain is None or isinstance(plain, bool):
        return json.dumps(plain)
    text = ",".join(str(item) for item in plain) if isinstance(plain, list) else str(plain)
    if text and text.isprintable() and not set(text) & set(' "=\\'):
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())


class _Enqueue(logging.Handler):
    """Puts records into the bounded queue, and counts those that do not fit."""

    def __init__(self, lines: queue.Queue[logging.LogRecord | None]) -> None:
        super().__init__()
        self._lines = lines
        self._dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        try:
            if self._dropped:
                self._lines.put_nowait(_lost(self._dropped))
                self._dropped = 0
            self._lines.put_nowait(record)
        except queue.Full:
            self._dropped += 1

    def finish(self, limit_s: float) -> None:
        """Tell what was lost to the last, and that no more comes; gives up when the queue stays full."""
        with contextlib.suppress(queue.Full):
            if self._dropped:
                self._lines.put(_lost(self._dropped), timeout=limit_s)
            self._lines.put(None, timeout=limit_s)


def _lost(lines: int) -> logging.LogRecord:
    level = logging.WARNING
    return LOGGER.makeRecord(LOGGER.name, level, "", 0, "log_lost", (), None, extra={"fields": {"lines": lines}})


@contextlib.contextmanager
def writing(level: str, style: str, stream: TextIO | None = None) -> Iterator[None]:
    """Write log lines while the context lasts; its end waits a moment for the lines that are still queued.

    Args:
        level: the least level to write.
        style: "plain" or "json".
        stream: default: standard error.
    """
    target = logging.StreamHandler(stream or sys.stderr)
    formatter = JsonFormatter() if style == "json" else PlainFormatter(journal="JOURNAL_STREAM" in os.environ)
    target.setFormatter(formatter)
    lines: queue.Queue[logging.LogRecord | None] = queue.Queue(QUEUE_LINES)
    front = _Enqueue(lines)
    writer = threading.Thread(target=_write, args=(lines, target), name="log-writer", daemon=True)
    root = logging.getLogger()
    before = (root.level, LOGGER.level, root.handlers[:])
    root.handlers[:] = [front]
    # Libraries are heard only when something is wrong: a lost connection is our own event already.
    root.setLevel(logging.ERROR if level != "debug" else logging.INFO)
    LOGGER.setLevel(level.upper())
    writer.start()
    try:
        yield
    finally:
        front.finish(FLUSH_LIMIT_S)
        writer.join(FLUSH_LIMIT_S)
        root.setLevel(before[0])
        LOGGER.setLevel(before[1])
        root.handlers[:] = before[2]


def _write(lines: queue.Queue[logging.LogRecord | None], target: logging.Handler) -> None:
    while (record := lines.get()) is not None:
        target.handle(record)
