"""A Redis that can't save refuses all writes: a healthy member takes over, and if there is none, everybody is told."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import redis

from redis_agent.cli.main import main
from redis_agent.lab.agent_process import AgentProcess
from redis_agent.lab.cluster import LocalCluster
from redis_agent.lab.load import Load
from redis_agent.lab.zookeeper import Ensemble
from tests.support.cluster import STILL, clock, keys, lab, observer_of, refusal, told, unstarted, wait_told, write

SAVES = f"{STILL}\nsave 3600 1000000"
"""Redis is to save, but not while a test runs, unless it is told to."""
ATTENTIVE = {"timing": {"probe_s": 0.1, "presence_s": 0.2}}
RISING = {f"n{number}": {"member": {"priority": number * 100}} for number in (1, 2, 3)}
"""Of equals, n3 leads, then n2."""
DISK_BYTES = 512 << 10

Spoil = Callable[[AgentProcess], None]


def save(member: AgentProcess) -> None:
    """Let Redis save, and wait for the end of it, good or bad."""
    with member.redis() as client:
        # Another save may be under way: for a replica.
        with suppress(redis.ResponseError):
            client.bgsave()
        deadline = time.monotonic() + 10
        while client.info("persistence")["rdb_bgsave_in_progress"]:
            assert time.monotonic() < deadline


def no_place(member: AgentProcess) -> None:
    """What it writes can't be put in place: a directory of that name is there."""
    (member.data_dir / "dump.rdb").unlink(missing_ok=True)  # From the leader, when it was copied.
    (member.data_dir / "dump.rdb").mkdir()
    save(member)


def a_place(member: AgentProcess) -> None:
    (member.data_dir / "dump.rdb").rmdir()
    save(member)


def fill_disk(member: AgentProcess) -> None:
    """Nothing more fits on its disk."""
    with suppress(OSError), (member.data_dir / "ballast").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    save(member)


@contextmanager
def small_disks(cluster: LocalCluster) -> Iterator[None]:
    """Each member's data directory is a file system of its own."""
    with ExitStack() as stack:
        for member in cluster:
            mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(member.data_dir)]
            if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
                pytest.skip("this machine lets nobody mount")
            stack.callback(subprocess.run, ["umount", "--lazy", str(member.data_dir)], check=True)
        # Redis must be gone before.
        stack.callback(cluster.stop)
        yield


@pytest.fixture(params=["place", pytest.param("disk", marks=pytest.mark.root)])
def spoil(request: pytest.FixtureRequest) -> str:
    """What keeps a Redis from saving."""
    return str(request.param)


@contextmanager
def saving_lab(zookeeper: Ensemble, directory: Path, spoil: str) -> Iterator[tuple[LocalCluster, Spoil]]:
    """A cluster whose Redis save, and what makes one of them fail at that."""
    cluster = lab(zookeeper, directory, settings=ATTENTIVE, overrides=RISING, redis_conf=SAVES)
    with unstarted(cluster), ExitStack() as stack:
        if spoil == "disk":
            stack.enter_context(small_disks(cluster))
        cluster.start()
        cluster.wait_started()
        yield cluster, fill_disk if spoil == "disk" else no_place


def test_a_leader_that_cannot_save(zookeeper: Ensemble, tmp_path: Path, spoil: str) -> None:
    """It hands over to a healthy member, whatever its priority: nothing is lost, no client sees an error it can't hide.

    # case D4
    """
    with saving_lab(zookeeper, tmp_path, spoil) as (cluster, spoils), observer_of(cluster) as observer:
        n1, n2, n3 = (cluster[name] for name in ("n1", "n2", "n3"))
        assert cluster.wait_settled() is n3
        spoils(n2)
        cluster.wait_for(lambda: (found := cluster.presence("n2")) and found.sick, "n2 says that it is sick")
        assert cluster.serving() is n3
        with Load(observer, rate_per_s=200) as load:
            cluster.wait_for(lambda: load.acknowledged > 50, "writes are acknowledged")
            since, at_ns = clock(), time.monotonic_ns()
            spoils(n3)
            assert cluster.wait_serving(after_epoch=1) is n1
            cluster.wait_for(lambda: load.resumed(at_ns, after_epoch=1), "everybody writes again")
        assert told(n3, "redis_sick", since)[0]["problem"].startswith("MISCONF")
        assert told(n3, "handover", since)[0]["to"] == "n1"
        [first, second] = cluster.ledger().entries
        assert (first.member, second.member, second.handover) == ("n3", "n1", True)
        with n1.redis() as client:
            losses = load.verify(client, everything=True)
        lost = (losses.confirmed_lost, losses.plain_lost, losses.counters_lost, losses.counters_doubled)
        assert (*lost, load.unknown, load.surprises) == (0, 0, 0, 0, 0, [])
        assert cluster.wait_settled() is n1


def test_nobody_can_save(zookeeper: Ensemble, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All are sick: the leader stays, fenced by Redis itself, and status says so; one that is mended takes over.

    # case D4
    """
    with saving_lab(zookeeper, tmp_path, "place") as (cluster, spoils):
        n1, n2, n3 = (cluster[name] for name in ("n1", "n2", "n3"))
        assert cluster.wait_settled() is n3
        write(n3, 10)
        cluster.wait_for(lambda: {keys(member) for member in cluster} == {10}, "everybody has the keys")
        spoils(n1)
        spoils(n2)
        cluster.wait_for(lambda: {cluster.presences()[name].sick for name in ("n1", "n2")} != {""}, "two are sick")
        spoils(n3)
        wait_told(cluster, n3, "redis_sick")
        assert refusal(n3) == "MISCONF"

        def says(words: str) -> bool:
            capsys.readouterr()
            if main(["status", "--config", str(n1.config_path), "--json"]) != 1:
                return False
            said = json.loads(capsys.readouterr().out)
            return words in "; ".join([*said["reasons"], *(member["reason"] or "" for member in said["members"])])

        for words in (
            "the leader n3: its Redis refuses writes (MISCONF",
            "voter n1: its Redis refuses writes (MISCONF",
            "voter n2: its Redis refuses writes (MISCONF",
            "nobody is fit to take over",
        ):
            cluster.wait_for(partial(says, words), f"status says: {words}")
        assert (cluster.serving(), cluster.epoch()) == (n3, 1)
        a_place(n1)
        assert cluster.wait_serving(after_epoch=1) is n1
        assert cluster.wait_settled() is n1
        assert [keys(member) for member in cluster] == [10, 10, 10]
        assert refusal(n1) == ""
