from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from redis_agent.lab import janitor
from redis_agent.lab.waiting import wait_for

DEMO = [sys.executable, "-m", "redis_agent.cli.main", "demo"]
LIMIT_S = 60.0


@pytest.fixture
def tmp(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A TMPDIR of its own, which the demo must leave empty."""
    with tempfile.TemporaryDirectory(prefix="demo-") as directory:
        monkeypatch.setenv("TMPDIR", directory)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        yield Path(directory)


def nothing_left(tmp: Path) -> bool:
    return not list(tmp.iterdir()) and not list(janitor.workers(tmp.resolve()))


@contextmanager
def on_a_terminal(*options: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The demo in the foreground of a terminal of its own."""
    ours, theirs = pty.openpty()
    os.set_inheritable(theirs, True)
    # setsid --ctty: the terminal's Ctrl-C goes to the demo.
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *DEMO, *options],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"},
    )
    os.close(theirs)
    try:
        yield process, ours
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def read_until(fd: int, words: str, limit_s: float = LIMIT_S) -> str:
    """What the terminal shows, up to and with these words."""
    shown = ""
    deadline = time.monotonic() + limit_s
    while words not in shown:
        assert time.monotonic() < deadline, f"{words!r} was not shown:\n{shown}"
        if select.select([fd], [], [], 0.1)[0]:
            try:
                shown += os.read(fd, 65536).decode(errors="replace")
            except OSError:  # The other side has ended.
                pytest.fail(f"{words!r} was not shown:\n{shown}")
    return shown


def test_five_steps_lose_nothing_confirmed_and_leave_nothing_behind(tmp: Path) -> None:
    """The demo ends by itself with status 0, tells of each step how long writes stopped, and cleans up.

    case B2, C3, C6, E1, E2
    """
    done = subprocess.run(
        [*DEMO, "--plain", "--duration", "0.5"], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"writes stopped for [\d.]+ m?s", done.stdout)) == 5, done.stdout
    assert len(re.findall(r"all [\d,]+ confirmed writes are there", done.stdout)) == 5, done.stdout
    assert done.stdout.rstrip().endswith("nothing confirmed was lost")
    assert re.search(r"n\d leader epoch \d.* writes/s", done.stdout), done.stdout
    assert not done.stderr
    assert nothing_left(tmp)


def test_a_live_table_and_ctrl_c(tmp: Path) -> None:
    """On a terminal a table is drawn; Ctrl-C ends everything within seconds, with status 130."""
    with on_a_terminal() as (process, terminal):
        shown = read_until(terminal, "follower")
        assert "MEMBER" in shown
        assert "WRITES/S" in shown
        os.write(terminal, b"\x03")
        read_until(terminal, "stopped by SIGINT")
        assert process.wait(LIMIT_S) == 130
    assert nothing_left(tmp)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_killed_it_leaves_nothing_behind(tmp: Path, number: signal.Signals) -> None:
    """Neither SIGTERM nor SIGKILL in the middle of it leaves a process or a file."""
    with subprocess.Popen([*DEMO, "--plain"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "clients write" in line:
                break
        process.send_signal(number)
        rest = process.stdout.read()
        status = process.wait(LIMIT_S)
    if number == signal.SIGTERM:
        assert status == 128 + number, rest
        assert nothing_left(tmp)
    else:
        wait_for(lambda: nothing_left(tmp), 15.0, "nothing is left")


@pytest.mark.parametrize("lacking", ["redis-server", "java"])
def test_a_missing_tool_is_named_with_its_remedy(tmp: Path, lacking: str) -> None:
    """Without a server or a Java runtime: one line on standard error, status 2."""
    tools = tmp / "bin"
    tools.mkdir()
    for tool in {"redis-server", "java"} - {lacking}:
        (tools / tool).write_text("#!/bin/sh\necho v=7.0.15\n")
        (tools / tool).chmod(0o755)
    # A copy of the interpreter's link: what set-up put beside the real one must not be found.
    (tools / "python").symlink_to(sys.executable)
    script = "import sys; sys.executable = sys.argv[1]; from redis_agent.demo import main; sys.exit(main(['--plain']))"
    done = subprocess.run(
        [sys.executable, "-c", script, str(tools / "python")],
        env=os.environ | {"PATH": str(tools)},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"no {lacking} in PATH" in done.stderr
    assert "apt install" in done.stderr
    assert not done.stdout
