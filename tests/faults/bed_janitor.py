"""Ends a bed when its owner has ended: ``python -m tests.faults.bed_janitor DIRECTORY CGROUP [--keep]``.

As redis_agent.lab.janitor, for everything that works below the directory; and before that whoever is in the control
groups of the bed, frozen or not, wherever it works.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

from redis_agent.lab import janitor

_LIMIT_S = 5.0


def end_groups(root: Path) -> None:
    """Kill who is in there, and remove the groups."""
    deadline = time.monotonic() + _LIMIT_S
    while root.exists() and time.monotonic() < deadline:
        with suppress(OSError):
            (root / "cgroup.kill").write_text("1", encoding="ascii")
        for group in (*root.iterdir(), root):
            with suppress(OSError):
                group.rmdir()
        time.sleep(0.01)


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    directory, groups = sys.argv[1:3]
    os.chdir("/")
    while os.read(0, 4096):
        pass
    if groups:
        end_groups(Path(groups))
    janitor.clean(Path(directory), keep="--keep" in sys.argv[3:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
