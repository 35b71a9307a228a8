"""What the agent tells init, by systemd's protocol (sd_notify): that it has joined, and that its owner still turns."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from math import inf

from redis_agent import logs

BEATS = 3
"""Per time that init allows between two: one that comes late, or is lost, ends nobody."""


class Init:
    """Init as it shows in our environment; nothing is told to one that did not ask. Belongs to the owner's thread.

    Args:
        environ: NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID count. They are not for children.
        pid: ours.
    """

    def __init__(self, environ: Mapping[str, str], pid: int) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        self._every_s = watchdog_s(environ, pid) / BEATS if path else inf
        self.due = -inf if self._every_s < inf else inf
        """When the next sign of life must be sent; never, if nobody watches."""

    def ready(self, status: str) -> None:
        """The agent has joined."""
        self._tell(f"READY=1\nSTATUS={status}")

    def beat(self, now: float) -> None:
        """A sign of life, if it is time for one. Whoever calls this is what is watched."""
        if now >= self.due:
            self.due = now + self._every_s
            self._tell("WATCHDOG=1")

    def _tell(self, text: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            # A full queue of init's must not hold up a fence.
            sock.settimeout(0.0)
            try:
                sock.sendto(text.encode(), self._address)
            except OSError as error:
                logs.event("warning", "notify_failed", problem=str(error))


def watchdog_s(environ: Mapping[str, str], pid: int) -> float:
    """How long init waits for a sign of life before it ends us; for ever, if it watches nobody, or another process."""
    allowed_us, watched = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not (allowed_us.isascii() and allowed_us.isdigit() and int(allowed_us)) or watched not in ("", str(pid)):
        return inf
    return int(allowed_us) / 1e6
