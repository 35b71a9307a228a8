"""A Redis that can't save says so; one that has diverged is saved beside its data. Real servers, full disks."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from redis_agent.lab.waiting import wait_for
from redis_agent.messages import Fence, KillRedis, Probe, Probed, RedisDied, RoleDone, SaveTail, TailSaved
from tests.support.redis import LIMIT_S, LocalRedis, MakeRedis, make_redis

__all__ = ["make_redis"]


def limit_files(local: LocalRedis, size_bytes: int) -> None:
    """Redis can't write files that are larger: a disk that is full, for one process."""
    assert local.up is not None
    resource.prlimit(local.up.pid, resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))


def save(local: LocalRedis, status: str) -> None:
    """BGSAVE that ends like this."""
    client = local.client()
    wait_for(lambda: not client.info("persistence")["rdb_bgsave_in_progress"], LIMIT_S, "nothing is saved")
    client.bgsave()
    wait_for(lambda: client.info("persistence")["rdb_last_bgsave_status"] == status, LIMIT_S, f"the save is {status}")


@pytest.mark.parametrize(
    ("conf", "sick"),
    [
        ("save 3600 1", True),
        ("save 3600 1\nstop-writes-on-bgsave-error no", False),
        ('save ""', False),
    ],
)
def test_a_failed_save_is_trouble_where_redis_says_so(make_redis: MakeRedis, conf: str, sick: bool) -> None:
    """Case D4 (part): told if Redis would refuse writes because of it, and only then; gone with the next good one."""
    local = make_redis(conf)
    local.lead()
    limit_files(local, 0)
    save(local, "err")
    told = local.ask(Probe).sick
    assert told == ("MISCONF: the last RDB save failed (disk full?)" if sick else "")
    client = local.client()
    if sick:
        with pytest.raises(redis.ResponseError, match="MISCONF"):
            client.set("a", 1)
    else:
        client.set("a", 1)
    limit_files(local, resource.RLIM_INFINITY)
    save(local, "ok")
    assert local.ask(Probe).sick == ""


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[None]:
    """A file system of that size; as root."""
    path.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", path], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", path], check=True)


def accepts(client: Any, value: bytes) -> bool:
    """It takes this write."""
    try:
        client.set("a", value)
    except redis.ResponseError:
        return False
    return True


@pytest.mark.root
def test_a_full_disk_under_the_append_only_file(tmp_path: Path) -> None:
    """Case D4 (part): told while writes are refused, and over when there is room again."""
    with small_disk(tmp_path / "r" / "data", "2m"), LocalRedis(tmp_path / "r", "appendonly yes") as local:
        local.start()
        wait_for(lambda: not local.info().loading, LIMIT_S, "it is loaded")
        local.lead()
        client = local.client()
        wait_for(lambda: not accepts(client, os.urandom(8000)), LIMIT_S, "the disk is full")
        assert local.ask(Probe).sick == "MISCONF: the last write to the append-only file failed (disk full?)"
        local.done(Fence)
        subprocess.run(["mount", "-o", "remount,size=64m", local.data_dir], check=True)
        wait_for(lambda: local.ask(Probe).sick == "", LIMIT_S, "Redis tries again")


def test_a_tail_is_saved_behind_a_save_that_runs(make_redis: MakeRedis) -> None:
    """Its own begins after the other one; role commands and probes are answered meanwhile; the file has the data."""
    local = make_redis("rdb-key-save-delay 20000")
    local.lead()
    client = local.client()
    client.mset({f"key{number}": "x" for number in range(10)})
    wait_for(lambda: not client.info("persistence")["rdb_bgsave_in_progress"], LIMIT_S, "nothing is saved")
    client.bgsave()
    client.set("late", 1)
    request, limit_s = 1000, 10.0
    local.adapter.execute(SaveTail(local.incarnation, request, "epoch-3-offset-12", 3, limit_s))
    asked_at = time.monotonic()
    assert isinstance(local.ask(Fence), RoleDone)
    assert isinstance(local.ask(Probe), Probed)
    assert time.monotonic() - asked_at < 0.15, "they did not wait for the save, which takes 0.4 s"
    saved = local.expect(TailSaved)
    assert saved == TailSaved(local.incarnation, request, str(local.data_dir / "diverged" / "epoch-3-offset-12.rdb"))
    other = make_redis()
    other.adapter.execute(KillRedis(other.incarnation, "it shall load the file"))
    other.expect(RedisDied)
    shutil.copy(saved.path, other.data_dir / "dump.rdb")
    other.start()
    wait_for(lambda: other.info().keys == 11, LIMIT_S, "all keys are there, also the one behind the other save")


def test_a_tail_that_is_not_saved_in_time_holds_nobody_up(make_redis: MakeRedis) -> None:
    """The limit counts, also for a Redis that hangs, and for one that dies: each time there is one answer."""
    local = make_redis("rdb-key-save-delay 300000")
    local.lead()
    local.client().mset({f"key{number}": "x" for number in range(10)})
    assert "in time" in local.ask(SaveTail, name="epoch-1-offset-1", keep=3, limit_s=0.2).error
    assert local.up is not None
    os.kill(local.up.pid, signal.SIGSTOP)
    assert local.ask(SaveTail, name="epoch-1-offset-1", keep=3, limit_s=0.1).error
    os.kill(local.up.pid, signal.SIGCONT)
    local.adapter.execute(SaveTail(local.incarnation, 1000, "epoch-1-offset-1", 3, 20.0))
    local.info()
    local.adapter.execute(KillRedis(local.incarnation, "test"))
    events = [local.next_event(), local.next_event()]
    assert sorted(type(event).__name__ for event in events) == ["RedisDied", "TailSaved"]
    assert all(event.error for event in events if isinstance(event, TailSaved))
    assert not list(local.data_dir.glob("diverged/*"))


def test_a_tail_on_another_file_system_is_copied(make_redis: MakeRedis, tmp_path: Path) -> None:
    """``diverged`` may be a link to a larger disk."""
    shared = Path("/dev/shm")
    if not shared.is_dir() or shared.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no other file system here")
    local = make_redis()
    target = shared / f"{tmp_path.parent.parent.name}-{tmp_path.name}"
    target.mkdir()
    try:
        (local.data_dir / "diverged").symlink_to(target)
        saved = local.ask(SaveTail, name="epoch-1-offset-1", keep=3)
        assert not saved.error
        assert [path.name for path in target.iterdir()] == ["epoch-1-offset-1.rdb"]
    finally:
        shutil.rmtree(target)


@pytest.mark.root
def test_a_tail_does_not_fill_the_disk(tmp_path: Path) -> None:
    """With less room than Redis has data nothing is saved: a disk that is full would be worse."""
    with small_disk(tmp_path / "r" / "data", "1m"), LocalRedis(tmp_path / "r") as local:
        local.start()
        local.lead()
        assert "MiB are free" in local.ask(SaveTail, name="epoch-1-offset-1", keep=3).error
        assert not list(local.data_dir.iterdir())
