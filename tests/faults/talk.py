"""What all clients of a round share: where they note, how they connect, and what answers mean."""

from __future__ import annotations

import os
import threading
from collections import deque
from pathlib import Path

from redis_agent.lab.wire import LabConnection, Part
from redis_agent.replication import Address
from tests.faults.history import Entry, encode

CONNECT_LIMIT_S = 0.3
REPLY_LIMIT_S = 60.0
ABOUT: tuple[Part, ...] = ("INFO", "replication")
"""Asked around each write, for the replication id."""
NOT_EXECUTED = (
    *("READONLY", "LOADING", "MASTERDOWN", "NOREPLICAS", "MISCONF", "BUSY", "OOM", "ERR max number of clients"),
    # Of a write that CLIENT PAUSE held back, when its primary became a replica.
    "UNBLOCKED",
)
_RECENT = 50


class Round:
    """What the clients of one process do from ``begin`` to ``end``."""

    def __init__(self, prefix: str, path: Path) -> None:
        self.prefix = prefix
        self.stopping = threading.Event()
        self.recent: deque[str] = deque(maxlen=_RECENT)
        """Keys that were acknowledged lately, for readers."""
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def note(self, entry: Entry) -> None:
        # One call for a whole line: threads do not mix, and nothing is lost when we are killed.
        os.write(self._file, encode(entry) + b"\n")

    def close(self) -> None:
        os.close(self._file)


def connect(node: str) -> LabConnection:
    """To ``address:port``. Raises OSError: nothing was executed."""
    host, _, port = node.rpartition(":")
    limits = {"connect_limit_s": CONNECT_LIMIT_S, "reply_limit_s": REPLY_LIMIT_S}
    return LabConnection(Address(host, int(port)), password="", **limits)


def replid_of(info: object) -> str:
    """Of a primary; empty: it is none."""
    if not isinstance(info, bytes) or b"role:master" not in info:
        return ""  # What it follows is not what executes the write.
    return info.partition(b"master_replid:")[2][:40].decode("ascii", "replace")
