"""Who leads, and who must not: elections between real agents with real Redis and real ZooKeeper."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
import redis

from redis_agent.lab.agent_process import AgentProcess
from redis_agent.lab.cluster import LocalCluster
from redis_agent.lab.load import Load
from redis_agent.lab.settings import Settings
from redis_agent.lab.zookeeper import Ensemble
from redis_agent.znodes import LeaderPhase
from tests.support.cluster import (
    UNCORRECTED,
    NodeWriter,
    clock,
    keys,
    lab,
    observer_of,
    offsets,
    refusal,
    steps,
    told,
    unstarted,
    wait_told,
    write,
)

RISING = {f"n{number}": {"member": {"priority": number * 100}} for number in (1, 2, 3)}
"""Of equals, n3 leads, then n2."""


def cut_replication(cluster: LocalCluster, *names: str) -> None:
    """Cut these replicas from their primary behind their agents' backs, so that they lag."""
    for name in names:
        with cluster[name].redis() as client:
            client.replicaof("127.0.0.1", 1)


def demand_no_replicas(member: AgentProcess) -> None:
    """A hand opens what the agent had raised because voters were attached."""
    with member.redis() as client:
        client.config_set("min-replicas-to-write", 0)


def level(cluster: LocalCluster, *names: str) -> None:
    """Wait until these have the same offset."""
    cluster.wait_for(lambda: len(set(offsets(cluster, *names))) == 1, f"{names} have the same offset")


# --- the order of things --------------------------------------------------------------------------------------------


def test_nothing_is_writable_before_an_election_was_won(zookeeper: Ensemble, tmp_path: Path) -> None:
    """From the first start on, no node acknowledges a write before its agent has claimed, promoted and served.

    # case B1
    """
    with unstarted(lab(zookeeper, tmp_path)) as cluster, ExitStack() as stack:
        writers = {member.name: stack.enter_context(NodeWriter(member)) for member in cluster}
        cluster.start()
        leader = cluster.wait_started()
        cluster.wait_for(lambda: writers[leader.name].acks, "the leader acknowledges")
        order = [event for name in ("claimed", "promoted", "served", "fence_lifted") for event in told(leader, name)]
        clocks = [event["clock"] for event in order]
        assert clocks == sorted(clocks)
        assert [event["event"] for event in order] == ["claimed", "promoted", "served", "fence_lifted"]
        assert writers[leader.name].acks[0] > told(leader, "served")[0]["clock"]
        assert [name for name, writer in writers.items() if writer.acks] == [leader.name]
        for member in cluster:
            if member is not leader:
                assert not [event for name in ("claimed", "promoted", "served") for event in told(member, name)]


def test_the_leaders_redis_is_killed(zookeeper: Ensemble, tmp_path: Path) -> None:
    """Another serves, nothing confirmed is lost, the old one comes back as a follower, the third resyncs partially.

    # case B2, B11, D5
    """
    with lab(zookeeper, tmp_path) as cluster, observer_of(cluster) as observer:
        old, epoch = cluster.wait_settled(), cluster.epoch()
        with Load(observer, rate_per_s=200) as load:
            cluster.wait_for(lambda: load.acknowledged > 100, "writes are acknowledged")
            at_ns = old.kill_redis()
            new = cluster.wait_serving(after_epoch=epoch)
            cluster.wait_for(lambda: load.first_ack(at_ns, after_epoch=epoch, confirmed=True), "writes go on")
            cluster.wait_settled()
        assert new is not old
        with new.redis() as client:
            assert load.verify(client, everything=True).sound
        assert load.surprises == []
        info = new.info()
        # The third only continues; the old one, which restarted empty, is copied.
        assert (info["sync_partial_ok"], info["sync_full"]) == (1, 1)
        assert keys(old, "load") == keys(new, "load") > 100
        assert not told(old, "claimed", told(new, "claimed")[-1]["clock"])


# --- who wins -------------------------------------------------------------------------------------------------------


def test_the_furthest_leads(zookeeper: Ensemble, tmp_path: Path) -> None:
    """Equal: the highest priority. One that lags: not it, whatever its priority. A non-voter: never.

    # case B3
    """
    overrides = {**RISING, "n4": {"member": {"nofailover": True, "priority": 900}}}
    settings: Settings = {**UNCORRECTED, "cluster": {"bootstrap_expect": 3}}
    with lab(zookeeper, tmp_path, 4, settings=settings, overrides=overrides) as cluster:
        n1, n2, n3 = (cluster[name] for name in ("n1", "n2", "n3"))
        assert cluster.wait_settled() is n3
        write(n3, 50)
        level(cluster, "n1", "n2", "n3", "n4")
        n3.kill_redis()
        assert cluster.wait_serving(after_epoch=1) is n2
        assert cluster.wait_settled() is n2
        level(cluster, "n1", "n2", "n3", "n4")
        cut_replication(cluster, "n3")
        write(n2, 50, "later")
        level(cluster, "n1", "n2", "n4")
        n2.kill_redis()
        assert cluster.wait_serving(after_epoch=2) is n1
        cluster.wait_settled()
        assert [keys(member, "later") for member in cluster] == [50] * 4
        assert [entry.member for entry in cluster.ledger().entries] == ["n3", "n2", "n1"]
        assert [keys(member) for member in cluster] == [50] * 4


def test_a_diverged_leader_does_not_win(zookeeper: Ensemble, tmp_path: Path) -> None:
    """An old leader with the largest offset, of an older epoch, votes in the next round and loses; it is overwritten.

    What only it had is saved first, as an RDB that a Redis can be started from.

    # case B4, B12
    """
    with lab(zookeeper, tmp_path, settings=UNCORRECTED, overrides=RISING, proxied=True) as cluster:
        n1, n2, n3 = (cluster[name] for name in ("n1", "n2", "n3"))
        assert cluster.wait_settled() is n3
        write(n3, 10)
        level(cluster, "n1", "n2", "n3")
        cut_replication(cluster, "n1", "n2")
        demand_no_replicas(n3)
        write(n3, 500, "diverged", size_bytes=1000)
        n3.cut_zookeeper()
        assert cluster.wait_serving(after_epoch=1) is n2
        cluster.wait_settled(members=["n1", "n2"])
        write(n2, 10, "later")
        level(cluster, "n1", "n2")
        assert offsets(cluster, "n3")[0] > 2 * offsets(cluster, "n2")[0]
        since = clock()
        n2.kill_redis()
        cluster.wait_for(lambda: cluster.leader() is None, "n2 has resigned")
        n3.restore_zookeeper()
        assert cluster.wait_serving(after_epoch=2) is n1
        assert wait_told(cluster, n3, "ballot_cast", since)["clock"] < told(n1, "claimed", since)[0]["clock"]
        cluster.wait_settled()
        assert [keys(member, "diverged") for member in cluster] == [0, 0, 0]
        assert [keys(member, "later") for member in cluster] == [10, 10, 10]
        assert [keys(member) for member in cluster] == [10, 10, 10]
        [tail] = (n3.data_dir / "diverged").glob("*.rdb")
        assert tail.name == f"{told(n3, 'diverged_tail')[0]['name']}.rdb"
        assert b"diverged:499" in tail.read_bytes()


# --- rounds that go wrong -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("victim", ["redis", "agent"])
def test_the_winner_dies_before_it_serves(zookeeper: Ensemble, tmp_path: Path, victim: str) -> None:
    """A claimant whose Redis or agent dies while it takes over is followed by another leader in the next round.

    # case B8
    """
    settings = {"zookeeper": {"session_timeout_s": 3.0}, "timing": {"grace_s": 0.5}}
    with lab(zookeeper, tmp_path, settings=settings, overrides=RISING) as cluster:
        n1, n2, n3 = (cluster[name] for name in ("n1", "n2", "n3"))
        assert cluster.wait_settled() is n3
        write(n3, 10)
        level(cluster, "n1", "n2", "n3")
        since = clock()
        # A voter that is missing makes the round wait, so that there is time to stop the winner's Redis after its vote.
        n1.pause()
        cluster.zk.delete(cluster.paths.leader)
        wait_told(cluster, n3, "ballot_cast", since)
        n3.signal_redis(signal.SIGSTOP)
        n1.resume()
        cluster.wait_for(
            lambda: (leader := cluster.leader()) is not None and leader.phase == LeaderPhase.TAKING_OVER,
            "n3 takes over",
        )
        assert refusal(n1)
        assert refusal(n2)
        if victim == "redis":
            n3.kill_redis()
        else:
            n3.kill()
        assert cluster.wait_serving(after_epoch=2) is n2
        if victim == "agent":
            n3.start()
        cluster.wait_settled(members=["n1", "n2", "n3"])
        entries = cluster.ledger().entries
        assert [(entry.member, entry.served) for entry in entries] == [("n3", True), ("n3", False), ("n2", True)]
        assert [keys(member) for member in cluster] == [10, 10, 10]


def test_a_hung_voter_delays_a_round_by_the_grace_only(zookeeper: Ensemble, tmp_path: Path) -> None:
    """A voter whose agent, or whose Redis, hangs costs the grace, not its session timeout or its Redis's.

    # case B9
    """
    settings = {"zookeeper": {"session_timeout_s": 4.0}, "timing": {"grace_s": 0.3, "hang_s": 10.0}}
    with lab(zookeeper, tmp_path, settings=settings, overrides=RISING) as cluster:
        n1, n3 = cluster["n1"], cluster["n3"]
        for hang, resume in (
            (n1.pause, n1.resume),
            (lambda: n1.signal_redis(signal.SIGSTOP), lambda: n1.signal_redis(signal.SIGCONT)),
        ):
            assert cluster.wait_settled() is n3
            level(cluster, "n1", "n2", "n3")
            epoch, since = cluster.epoch(), clock()
            hang()
            cluster.zk.delete(cluster.paths.leader)
            assert cluster.wait_serving(after_epoch=epoch) is n3
            resume()
            waited_s = told(n3, "claimed", since)[0]["clock"] - told(n3, "ballot_cast", since)[0]["clock"]
            assert 0.3 <= waited_s < 1.5


# --- changes under a leader -----------------------------------------------------------------------------------------


def test_the_replid_changes_under_the_leader(zookeeper: Ensemble, tmp_path: Path) -> None:
    """A leader whose data set gets another history gives up; another serves what was confirmed.

    # case B13
    """
    conf = "enable-debug-command local"
    with lab(zookeeper, tmp_path, settings={"timing": {"probe_s": 0.1}}, redis_conf=conf) as cluster:
        old, epoch, since = cluster.wait_settled(), cluster.epoch(), clock()
        write(old, 10)
        level(cluster, "n1", "n2", "n3")
        with old.redis() as client:
            client.execute_command("DEBUG", "CHANGE-REPL-ID")
        new = cluster.wait_serving(after_epoch=epoch)
        assert new is not old
        assert told(old, "replid_changed", since)
        assert steps(old, since)[0] == "unfit>candidate.freezing"
        cluster.wait_settled()
        assert [keys(member) for member in cluster] == [10, 10, 10]


def test_leader_is_deleted_by_hand(zookeeper: Ensemble, tmp_path: Path) -> None:
    """A healthy leader whose `leader` is deleted has fenced before anybody claims.

    Its clients are kicked, all of them, and go on in the next epoch.

    # case B15, B16, C4
    """
    with lab(zookeeper, tmp_path) as cluster, observer_of(cluster) as observer:
        old = cluster.wait_settled()
        with Load(observer, rate_per_s=200) as load, old.redis() as idle:
            idle.ping()
            cluster.wait_for(lambda: load.acknowledged > 50, "writes are acknowledged")
            since, at_ns = clock(), time.monotonic_ns()
            cluster.zk.delete(cluster.paths.leader)
            new = cluster.wait_serving(after_epoch=1)
            cluster.wait_for(lambda: load.first_ack(at_ns, after_epoch=1, confirmed=True), "writes go on")
            # A connection that was kept could have a write of the old epoch confirmed in the next one.
            with pytest.raises(redis.ConnectionError):
                idle.ping()
        assert told(old, "frozen", since)[0]["clock"] < told(new, "claimed", since)[0]["clock"]
        cluster.wait_settled()
        with new.redis() as client:
            assert load.verify(client, everything=True).sound
        assert load.surprises == []


def test_clients_find_the_new_leader_after_a_fence(zookeeper: Ensemble, tmp_path: Path) -> None:
    """A leader that cannot reach ZooKeeper is fenced, alive as it is: its clients find the next one, none is stuck.

    # case C4
    """
    with lab(zookeeper, tmp_path, proxied=True) as cluster, observer_of(cluster) as observer:
        old = cluster.wait_settled()
        with Load(observer, rate_per_s=200) as load:
            cluster.wait_for(lambda: load.acknowledged > 50, "writes are acknowledged")
            writers, at_ns = load.rate_per_s(), time.monotonic_ns()
            old.cut_zookeeper()
            new = cluster.wait_serving(after_epoch=1)
            cluster.wait_for(lambda: load.first_ack(at_ns, after_epoch=1, confirmed=True), "confirmed writes go on")
            cluster.wait_for(lambda: load.rate_per_s() > writers / 2, "all of them go on")
        assert new is not old
        old.restore_zookeeper()
        cluster.wait_settled()
        with new.redis() as client:
            assert load.verify(client, everything=True).sound
        assert load.surprises == []
