"""Cleans up behind a process that may be killed: ``python -m redis_agent.demo.janitor DIRECTORY [--keep]``.

It waits until the other end of its standard input is closed, by whatever: then it kills every process that works below
the directory, and removes the directory unless it is to be kept. Nothing but the standard library, so it starts fast.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_LIMIT_S = 5.0


def workers(directory: Path) -> Iterator[int]:
    """Processes whose working directory is below this one. A zombie has none."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if (entry / "cwd").readlink().is_relative_to(directory):
                    yield int(entry.name)


def clean(directory: Path, *, keep: bool) -> None:
    """Kill who works there, again until nobody does, then remove it."""
    deadline = time.monotonic() + _LIMIT_S
    while (pids := list(workers(directory))) and time.monotonic() < deadline:
        for pid in pids:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    if not keep:
        shutil.rmtree(directory, ignore_errors=True)


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    directory = Path(sys.argv[1]).resolve()
    os.chdir("/")
    while os.read(0, 4096):
        pass
    clean(directory, keep="--keep" in sys.argv[2:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
