"""Cleans up behind a process that may be killed: ``python -m redis_agent.lab.janitor DIRECTORY [--keep]``.

It waits until the other end of its standard input is closed, by whatever: then it kills every process that works below
the directory, and every guard of a Redis there (which outlive the agents on purpose), and removes the directory unless
it is to be kept. Nothing but the standard library, so it starts fast.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LIMIT_S = 5.0
_GUARD = b"guard.py"
_SOURCES = str(Path(__file__).resolve().parents[2])


@contextmanager
def cleaning(directory: Path, *, keep: bool = False) -> Iterator[None]:
    """A small process beside us cleans the directory up at the end, also if we are killed.

    Args:
        directory: where everything is that is to be ended.
        keep: leave the files.
    """
    janitor = subprocess.Popen(
        [sys.executable, "-m", "redis_agent.lab.janitor", str(directory), *(["--keep"] if keep else [])],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        cwd="/",
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [_SOURCES, os.environ.get("PYTHONPATH", "")]))},
        # Out of reach of Ctrl-C and of a closed terminal.
        start_new_session=True,
    )
    try:
        yield
    finally:
        assert janitor.stdin is not None
        janitor.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            janitor.wait(2 * _LIMIT_S)


def workers(directory: Path) -> Iterator[int]:
    """Processes whose working directory is below this one, and guards that are told of a place there.

    A zombie has neither.
    """
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if _works_below(entry, directory) or _guards(entry, directory):
                    yield int(entry.name)


def _works_below(entry: Path, directory: Path) -> bool:
    return (entry / "cwd").readlink().is_relative_to(directory)


def _guards(entry: Path, directory: Path) -> bool:
    words = (entry / "cmdline").read_bytes().split(b"\0")
    if not any(word.endswith(_GUARD) for word in words):
        return False
    return any(Path(os.fsdecode(word)).is_relative_to(directory) for word in words)


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
