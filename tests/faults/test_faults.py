"""The short form of ``make faults``, and that it sees what it is there for: on real processes, from end to end."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from redis_agent.lab.agent_process import AgentProcess
from tests.faults import bed as beds
from tests.faults import history
from tests.faults.analysis import analyse
from tests.faults.bed import Bed
from tests.faults.cluster import BedCluster, BedEnsemble, redis_conf
from tests.faults.history import Contents
from tests.faults.nemesis import BY_NAME, Heal, Kind, Plan, Planned, nothing
from tests.faults.program import main
from tests.faults.round import Clients, Rounds, agent_finder, everywhere
from tests.support.lacking import lacks

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(300)]
MINUTES = float(os.environ.get("FAULTS_MINUTES", "0.6"))
LOAD = 0.5
HELD_OPEN_S = 0.02
MANY = 50

Bedded = tuple[BedCluster, list[Clients]]


@pytest.fixture(scope="module")
def bedded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bedded]:
    """A cluster in a bed, with its clients."""
    if reason := beds.missing():
        lacks(reason)
    with (
        Bed(tmp_path_factory.mktemp("f")) as bed,
        BedEnsemble(bed) as ensemble,
        BedCluster(bed, ensemble) as cluster,
    ):
        clients = everywhere(cluster, agent_finder(cluster), load=LOAD)
        yield cluster, clients
        for each in clients:
            each.close()


@pytest.fixture
def rounds(bedded: Bedded, tmp_path: Path) -> Iterator[Rounds]:
    made = Rounds(*bedded, tmp_path)
    yield made
    made.close()


def test_nothing_confirmed_is_lost(tmp_path: Path) -> None:
    """Random faults for a while, with each kind of persistence: cases B4 to B9, C5, C6, H4 as far as the seed has them;
    and it is told in full.
    """
    # cases B4 B5 B6 B8 B9 C5 C6 H4
    if reason := beds.missing():
        lacks(reason)
    assert main(["--minutes", str(MINUTES), "--seed", "4", "--load", str(LOAD), "--directory", str(tmp_path)]) == 0
    told = json.loads((tmp_path / "report.json").read_text())
    assert told["all_writes"]["confirmed"] > 0
    assert (told["all_writes"]["confirmed_lost"], told["dual_primary_ms"]) == (0, 0)
    assert set(told["persistence"]) == {"aof", "rdb", "none"}
    assert (tmp_path / "timeline.svg").stat().st_size > 0
    assert len(list(tmp_path.glob("r*.jsonl.gz"))) == told["rounds"]


def test_an_empty_primary_wipes_nobody(bedded: Bedded, rounds: Rounds) -> None:
    """The leader's host loses power and disk, and is back at once, before anybody else was elected."""
    # case H1
    cluster, _ = bedded
    leader = cluster.wait_settled().name
    planned = Plan(victim=leader, faults=[Planned(BY_NAME["disk-loss"], leader, 0.0, 0.0)])
    outcome = rounds.run(10, planned, random.Random(1))
    assert (outcome.report.violations, outcome.not_done) == ([], [])
    assert outcome.report.total.confirmed > 0


def test_a_continued_host_is_reported_apart(bedded: Bedded, rounds: Rounds) -> None:
    """The leader's host stands still past its lease, and its sockets fill. Whatever it makes of that when it goes on is
    over at once, and nothing of it is confirmed.

    # case C6
    """
    cluster, _ = bedded
    leader = cluster.nodes[cluster.wait_settled().name]
    planned = Plan(victim=leader.name, faults=[Planned(BY_NAME["host-freeze"], leader.name, 0.0, 6.0)])
    outcome = rounds.run(11, planned, random.Random(1))
    (fault,) = outcome.faults
    assert outcome.history is not None
    waiting = [
        entry
        for entry in history.read([outcome.history])
        if entry.node == leader.node and fault.held_from < entry.t0 < fault.held_until
    ]
    assert len(waiting) > MANY
    assert (outcome.report.violations, outcome.report.dual_ms, outcome.report.residue_confirmed) == ([], 0, 0)


def test_everybody_loses_power(bedded: Bedded, tmp_path: Path) -> None:
    """At once, and back in any order: everything that was written is there, on every node (AOF)."""
    # cases B10 H4
    cluster, clients = bedded
    chance = random.Random(1)
    for number in (20, 21):
        paths = written(cluster, clients, f"r{number:04}", tmp_path)
        report = analyse(history.read(paths), everybody_off_and_on(cluster, chance))
        assert report.violations == []
        assert (report.total.lost, report.total.confirmed_lost) == (0, 0)
        assert report.total.confirmed > 0
        cluster.remove(f"r{number:04}")


def written(cluster: BedCluster, clients: list[Clients], prefix: str, directory: Path) -> list[Path]:
    """Some writes of each client, which everybody has in the end."""
    paths = [each.begin(prefix, directory) for each in clients]
    threading.Event().wait(1.5)
    for each in clients:
        each.end()
    for each in clients:
        each.wait_ended()
    assert cluster.barrier()
    return paths


def everybody_off_and_on(cluster: BedCluster, chance: random.Random) -> dict[str, Contents]:
    """Power for nobody, and again in any order. What everybody has when all are in sync."""
    for member in cluster.nodes.values():
        member.power_cut()
    for member in chance.sample(list(cluster.nodes.values()), len(cluster.nodes)):
        member.power_on()
        threading.Event().wait(chance.uniform(0.0, 0.5))
    cluster.wait_settled(60.0, members=cluster.nodes)
    assert cluster.barrier()
    return {member.name: member.contents() for member in cluster.nodes.values()}


def test_everybody_loses_power_with_snapshots(tmp_path: Path) -> None:
    """RDB: what was in everybody's last snapshot is there afterwards, on every node; later writes may be gone, but then
    they are for all. Without any persistence this loses everything, as promised, and is not tried.

    # cases B10 H4
    """
    if reason := beds.missing():
        lacks(reason)
    # No snapshot but those that are asked for here.
    conf = redis_conf("rdb") + 'save ""\n'
    with (
        Bed(tmp_path / "bed") as bed,
        BedEnsemble(bed) as ensemble,
        BedCluster(bed, ensemble, redis_conf=conf) as cluster,
    ):
        clients = everywhere(cluster, agent_finder(cluster), load=LOAD)
        try:
            kept = written(cluster, clients, "r0040", tmp_path)
            for member in cluster.nodes.values():
                with client(member) as connection:
                    connection.save()
            written(cluster, clients, "r0041", tmp_path)
        finally:
            for each in clients:
                each.close()
        finals = everybody_off_and_on(cluster, random.Random(1))
    saved = {name: {key: each[key] for key in each if key.startswith("r0040")} for name, each in finals.items()}
    report = analyse(history.read(kept), saved)
    assert report.violations == []
    assert (report.total.lost, report.total.confirmed_lost) == (0, 0)
    assert report.total.confirmed > 0
    # Equal in all, too.
    assert analyse([], finals).violations == []


# --- it can fail ------------------------------------------------------------------------------------------------------


def hold_open(cluster: BedCluster, target: str, _chance: random.Random) -> Heal:
    """Take everything from a member that would fence it: agent and guard stand still, and somebody lifts the fence."""
    member = cluster.nodes[target]
    stopped = [member.part("agent"), member.part("guard")]
    for process in stopped:
        assert process is not None
        process.send_signal(signal.SIGSTOP)
    over = threading.Event()

    def lift() -> None:
        with client(member) as connection:
            while not over.wait(HELD_OPEN_S):
                connection.config_set("min-replicas-to-write", 0)

    # Past the partition, which is about the network.
    thread = threading.Thread(target=lambda: member.machine.run_in_namespace(lift))
    thread.start()

    def heal() -> None:
        over.set()
        thread.join()
        for process in stopped:
            assert process is not None
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)

    return heal


def client(member: AgentProcess) -> redis.Redis:
    return member.redis(timeout_s=5.0)


def some_keys(member: AgentProcess, pattern: str) -> list[Any]:
    with client(member) as connection:
        found: Any = connection.keys(pattern)
        return sorted(found)[:MANY]


def delete_some(cluster: BedCluster, _target: str, _chance: random.Random) -> Heal:
    """As a failover that takes the wrong one would: some of what was there is gone, everywhere."""
    leader = cluster.wait_settled()
    keys = some_keys(leader, "r*:s:*")
    with client(leader) as connection:
        connection.delete(*keys)
        connection.lpop("r0030:l", 20)  # About every other one was confirmed.
    return nothing


def double_some(cluster: BedCluster, _target: str, _chance: random.Random) -> Heal:
    """As a client that repeats what was executed."""
    leader = cluster.wait_settled()
    with client(leader) as connection:
        for key in some_keys(leader, "r*:c:*"):
            connection.incr(key)
        last: Any = connection.lrange("r0030:l", -1, -1)
        connection.rpush("r0030:l", *last)
    return nothing


def violated(rounds: Rounds, number: int, *faults: Planned) -> list[str]:
    outcome = rounds.run(number, Plan(victim="", faults=list(faults)), random.Random(1))
    assert outcome.not_done == []
    return outcome.report.violations


def test_two_primaries_are_seen(bedded: Bedded, rounds: Rounds) -> None:
    """A leader that is cut off and that nobody fences: the stubborn clients on its side tell of it."""
    cluster, _ = bedded
    leader = cluster.wait_settled().name
    cut = Planned(BY_NAME["rack-cut"], leader, 0.0, 6.0)
    found = violated(rounds, 31, cut, Planned(Kind("held-open", hold_open, "member", 6.0), leader, 0.1, 5.8))
    assert any("two primaries" in each for each in found), found


def test_lost_and_doubled_writes_are_seen(bedded: Bedded, rounds: Rounds) -> None:
    """Keys that vanish, elements that are gone, elements and increments that are there twice."""
    faults = [Planned(Kind("delete", delete_some, "cluster"), "", 0.5, 0.0)]
    faults.append(Planned(Kind("double", double_some, "cluster"), "", 0.8, 0.0))
    found = violated(rounds, 30, *faults)
    for told in ("confirmed writes are lost", "confirmed r0030:s:", "confirmed element", "twice", "is doubled"):
        assert any(told in each for each in found), (told, found)


def test_nodes_that_differ_are_seen(bedded: Bedded, rounds: Rounds) -> None:
    """A replica that somebody wrote to."""

    def write_there(cluster: BedCluster, _target: str, _chance: random.Random) -> Heal:
        leader = cluster.wait_settled()
        replica = next(member for member in cluster.nodes.values() if member is not leader)
        with client(replica) as connection:
            connection.config_set("replica-read-only", "no")
            connection.config_set("min-replicas-to-write", 0)
            connection.set("r0032:!stray", "1")
        return nothing

    found = violated(rounds, 32, Planned(Kind("stray-write", write_there, "cluster"), "", 0.2, 0.0))
    assert any("differ in" in each and "r0032:!stray" in each for each in found), found
