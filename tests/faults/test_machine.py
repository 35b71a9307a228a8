"""Clocks that jump and disks that fill up or stall: seen by Redis and by Python, and by nobody else."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import redis

from redis_agent.lab.waiting import wait_for
from tests.faults import bed as beds
from tests.faults.bed import Bed, Host
from tests.faults.machine import Clock, Disk, shim
from tests.support.lacking import lacks

pytestmark = pytest.mark.root
HOUR_S = 3600.0
SLACK_S = 60.0
PORT = 6379
WRITE = 'while sleep 0.01; do head -c 4096 /dev/zero >>"$1/log" || exit 9; echo done; done'


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    if reason := beds.missing():
        lacks(reason)
    with Bed(tmp_path / "bed") as made:
        yield made.host("a")


def wrote(host: Host) -> int:
    """How often so far."""
    return (host.directory / "progress").read_bytes().count(b"\n")


def writing(host: Host) -> subprocess.Popen[bytes]:
    """Somebody who writes to the disk all the time."""
    with (host.directory / "progress").open("wb") as progress:
        argv = ["sh", "-c", WRITE, "sh", str(host.directory / "data")]
        writer = host.popen(argv, stdout=progress, stderr=subprocess.DEVNULL)
    wait_for(lambda: wrote(host), 5.0, "it writes")
    return writer


def test_wall_clocks_jump(host: Host, tmp_path: Path) -> None:
    """Redis and Python see another time, at once and while they run; CLOCK_MONOTONIC and ours stay as they are."""
    library, reason = shim(tmp_path)
    if library is None:
        pytest.skip(reason)
    clock = Clock(host, library)
    env = os.environ | clock.environment
    host.popen(
        ["redis-server", "--port", str(PORT), "--bind", "0.0.0.0", "--protected-mode", "no", "--save", ""],
        env=env,
        stdout=subprocess.DEVNULL,
    )

    def off_s() -> float | None:
        with suppress(redis.RedisError), redis.Redis(host.address, PORT) as client:
            told: tuple[int, int] = client.time()
            return told[0] - time.time() or 1e-9
        return None

    assert abs(wait_for(off_s, 5.0, "Redis answers")) < SLACK_S
    for jump_s in (HOUR_S, -HOUR_S, 0.0):
        clock.jump(jump_s)
        assert abs((off_s() or 0.0) - jump_s) < SLACK_S
        script = "import time; print(time.time(), time.monotonic())"
        asked = host.popen([sys.executable, "-c", script], env=env, stdout=subprocess.PIPE)
        told = asked.communicate()[0]
        wall_s, monotonic_s = map(float, told.split())
        assert abs(wall_s - time.time() - jump_s) < SLACK_S
        assert abs(monotonic_s - time.monotonic()) < SLACK_S


def test_a_disk_is_full_and_empty(host: Host) -> None:
    """Whoever writes is told that there is no room, until there is again."""
    disk = Disk(host, host.directory / "data")
    writer = writing(host)
    disk.fill()
    assert writer.wait(10.0) == 9
    disk.empty()
    writing(host)
    # Nobody else's disk is concerned.
    assert not (host.directory / "data" / "log").exists()
    host.kill()
    disk.wipe()
    assert [entry.name for entry in disk.seen_from_outside.iterdir() if entry.name != "lost+found"] == []


def test_a_disk_stalls_and_goes_on(host: Host) -> None:
    """Whoever writes waits."""
    disk = Disk(host, host.directory / "data")
    if disk.why_no_stall:
        pytest.skip(disk.why_no_stall)
    writer = writing(host)
    disk.stall()
    try:
        before = wrote(host)
        with pytest.raises(subprocess.TimeoutExpired):
            writer.wait(0.3)
        # One may have been under way.
        assert wrote(host) <= before + 1
    finally:
        disk.resume()
    wait_for(lambda: wrote(host) > before + 1, 5.0, "it writes again")
