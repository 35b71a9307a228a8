"""How many may be lost, what is there afterwards, and who must not lead: clusters of every size."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from redis_agent.cli.main import main
from redis_agent.election import quorum
from redis_agent.lab.agent_process import AgentProcess
from redis_agent.lab.cluster import LocalCluster
from redis_agent.lab.load import Load
from redis_agent.lab.settings import Settings
from redis_agent.lab.zookeeper import Ensemble
from tests.support.cluster import UNCORRECTED, clock, keys, lab, observer_of, offsets, refusal, told, wait_told, write

RISING = {f"n{number}": {"member": {"priority": number * 100}} for number in (1, 2, 3)}
"""Of equals, n3 leads, then n2."""

Capture = pytest.CaptureFixture[str]


def level(cluster: LocalCluster, *names: str) -> None:
    """Wait until these have the same offset."""
    cluster.wait_for(lambda: len(set(offsets(cluster, *names))) == 1, f"{names} have the same offset")


def lag_behind(cluster: LocalCluster, follower: AgentProcess, leader: AgentProcess) -> None:
    """From now on this follower gets nothing any more, behind its agent's back; the leader takes writes anyway."""
    with follower.redis() as client:
        client.replicaof("127.0.0.1", 1)
    with leader.redis() as client:
        client.config_set("min-replicas-to-write", 0)
    cluster.wait_for(lambda: leader.info().get("connected_slaves") == 1, "the leader has one follower less")


def reasons(cluster: LocalCluster, capsys: Capture) -> str:
    """All that `redis-agent status` says of why the cluster is not well."""
    capsys.readouterr()
    if main(["status", "--config", str(cluster["n1"].config_path), "--json"]) != 1:
        return ""
    said = json.loads(capsys.readouterr().out)
    return "; ".join([*said["reasons"], *(member["reason"] or "" for member in said["members"])])


# --- how many may be lost -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_a_minority_of_the_hosts_is_lost(zookeeper: Ensemble, tmp_path: Path, size: int) -> None:
    """As many hosts as the table allows vanish at once, the leader's among them: what WAIT had confirmed is there.

    # case B7
    """
    w, ballots = quorum(size)
    with lab(zookeeper, tmp_path, size) as cluster, observer_of(cluster) as observer:
        leader = cluster.wait_settled()
        found = cluster.leader()
        assert found is not None
        assert (found.wait, len(found.voters)) == (w, size)
        with Load(observer, plain=1, confirmed=3, counters=1, rate_per_s=300) as load:
            cluster.wait_for(lambda: len(load.acks(0, confirmed=True)) > 100, "writes are confirmed")
            others = [member for member in cluster if member is not leader]
            lost = [leader, *others][: size - ballots]
            for member in lost:
                member.destroy()
            left = [member.name for member in cluster if member not in lost]
            new = cluster.wait_serving(after_epoch=1 if lost else 0)
            assert cluster.wait_settled(members=left) is new
            since_epoch = 1 if lost else 0
            cluster.wait_for(lambda: load.first_ack(0, after_epoch=since_epoch), "writes go on")
            if len(left) > w:
                cluster.wait_for(
                    lambda: load.first_ack(0, after_epoch=since_epoch, confirmed=True), "and are confirmed again"
                )
        assert new not in lost
        with new.redis() as client:
            losses = load.verify(client, everything=True)
        assert losses.sound
        assert losses.confirmed > 100


def test_one_more_than_a_minority_is_lost(zookeeper: Ensemble, tmp_path: Path, capsys: Capture) -> None:
    """One of three is left: nobody leads, and status says why, until the others are back, with whatever they have.

    # case B5, B6, B10
    """
    with lab(zookeeper, tmp_path) as cluster:
        leader = cluster.wait_settled()
        last, other = (member for member in cluster if member is not leader)
        write(leader, 10)
        cluster.wait_for(lambda: {keys(member) for member in cluster} == {10}, "everybody has the keys")
        leader.destroy()
        other.destroy()
        cluster.wait_for(lambda: list(cluster.presences()) == [last.name], "their sessions end")
        because = reasons(cluster, capsys)
        assert "nobody leads" in because
        assert "only 1 of 3 voters are here: nobody can be elected" in because
        said = wait_told(cluster, last, "verdict", outcome="blocked")["reason"]
        assert said.startswith(f"2 of 3 voters must show intact data, 1 did ({last.name}); no ballot: ")
        cluster.wait_for(lambda: said in reasons(cluster, capsys), "status says what the agent says")
        # One that comes back empty is no evidence: it must not tip the scales.
        other.start()
        wait_told(cluster, other, "verdict", outcome="blocked")
        assert cluster.leader() is None
        assert refusal(last) in ("READONLY", "NOREPLICAS")
        leader.start()
        assert cluster.wait_settled() is last
        assert [keys(member) for member in cluster] == [10, 10, 10]


def test_one_that_is_ahead_is_not_outwaited(zookeeper: Ensemble, tmp_path: Path, capsys: Capture) -> None:
    """The better candidate votes and its agent dies: the other does not take its place, and status says so.

    Redis of the better one lives on, so when its agent is back it leads, with everything.

    # case B5
    """
    settings = {**UNCORRECTED, "zookeeper": {"session_timeout_s": 3.0}}
    with lab(zookeeper, tmp_path, settings=settings, overrides=RISING) as cluster:
        n1, n2, n3 = (cluster[name] for name in ("n1", "n2", "n3"))
        assert cluster.wait_settled() is n3
        write(n3, 10)
        level(cluster, "n1", "n2", "n3")
        lag_behind(cluster, n1, n3)
        write(n3, 50, "later")
        level(cluster, "n2", "n3")
        # Its ballot is missing, so n2 waits for it after its own.
        n1.pause()
        since = clock()
        n3.kill_redis()
        wait_told(cluster, n2, "ballot_cast", since)
        n2.kill()
        n1.resume()
        wait_told(cluster, n1, "ballot_cast", since)
        cluster.wait_for(lambda: cluster.presence("n2") is None, "its session ends")
        said = wait_told(cluster, n1, "verdict", since, outcome="blocked")["reason"]
        assert said == "n2 could lead, but its agent is gone"
        cluster.wait_for(lambda: said in reasons(cluster, capsys), "status says that n2 could lead")
        assert "nobody leads" in reasons(cluster, capsys)
        assert not told(n1, "claimed", since)
        n2.start()
        assert cluster.wait_settled() is n2
        assert [entry.member for entry in cluster.ledger().entries] == ["n3", "n2"]
        assert [keys(member, "later") for member in cluster] == [50, 50, 50]


# --- empty ones -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quick", [True, False])
def test_an_empty_primary_wipes_nobody(zookeeper: Ensemble, tmp_path: Path, *, quick: bool) -> None:
    """The leader's host restarts, memory and disk empty: nobody copies from it, it follows and gets everything back.

    Quick: its agent is back before its old session has ended, so that `leader` still names it.

    # case H1, D5
    """
    session: Settings = {"zookeeper": {"session_timeout_s": 4.0 if quick else 2.0}}
    with lab(zookeeper, tmp_path, settings=session, overrides=RISING) as cluster:
        n1, n2, n3 = (cluster[name] for name in ("n1", "n2", "n3"))
        assert cluster.wait_settled() is n3
        write(n3, 100)
        cluster.wait_for(lambda: keys(n1) == keys(n2) == 100, "everybody has the keys")
        since = clock()
        n3.destroy()
        shutil.rmtree(n3.data_dir)
        n3.data_dir.mkdir()
        if not quick:
            assert cluster.wait_serving(after_epoch=1) is n2
        else:
            assert cluster.serving() is n3
        n3.start()
        assert cluster.wait_settled() is n2
        assert [keys(member) for member in cluster] == [100, 100, 100]
        assert not told(n3, "claimed", since)
        # None of the others was emptied and filled again meanwhile.
        assert [member.info()["sync_full"] for member in (n1, n2)] == [0, 1]
        assert n1.info()["master_sync_in_progress"] == 0
        assert not told(n1, "not_intact", since)
