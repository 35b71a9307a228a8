"""SIGTERM: whoever leaves does so in order, within a limit, and loses nothing."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest

from redis_agent.lab.cluster import LocalCluster
from redis_agent.lab.load import Load
from redis_agent.lab.waiting import wait_for
from redis_agent.lab.zookeeper import Ensemble
from tests.support.cluster import (
    SESSION_S,
    UNCORRECTED,
    clock,
    keys,
    lab,
    observer_of,
    refusal,
    told,
    unstarted,
    wait_told,
    write,
)

BOUND_S = 4.5
"""For an end that waits for nobody: closing the session may take 2 s, waiting for a successor would take 5 s."""


def gone_in_order(cluster: LocalCluster, name: str) -> bool:
    """Redis and agent have ended, Redis by its own hand, and nothing of them is left in ZooKeeper."""
    member = cluster[name]
    ordered = told(member, "redis_died")[-1]["status"] == 0
    return ordered and member.redis_pid is None and cluster.presence(name) is None


# --- a leader -------------------------------------------------------------------------------------------------------


def test_sigterm_of_the_leader_under_load(zookeeper: Ensemble, tmp_path: Path) -> None:
    """Nothing acknowledged is lost, no client sees an error that it can't hide, exit 0, before the session timeout.

    # case E1
    """
    with lab(zookeeper, tmp_path) as cluster, observer_of(cluster) as observer:
        old, epoch = cluster.wait_settled(), cluster.epoch()
        with Load(observer, rate_per_s=300) as load:
            cluster.wait_for(lambda: load.acknowledged > 100, "writes are acknowledged")
            at_ns = time.monotonic_ns()
            assert old.stop() == 0
            new = cluster.wait_serving(after_epoch=epoch)
            cluster.wait_for(lambda: load.first_ack(at_ns, after_epoch=epoch, confirmed=True), "writes go on")
            gap_s = load.gap(at_ns).seconds
        assert new is not old
        with new.redis() as client:
            losses = load.verify(client, everything=True)
        assert (losses.confirmed_lost, losses.plain_lost, losses.counters_lost, losses.counters_doubled) == (0, 0, 0, 0)
        assert losses.plain > 50
        assert (load.unknown, load.surprises) == (0, [])
        assert gap_s < SESSION_S
        assert gone_in_order(cluster, old.name)


def test_a_leaving_leader_waits_for_a_successor(zookeeper: Ensemble, tmp_path: Path) -> None:
    """Followers that lag by what was acknowledged a moment ago get all of it before one of them leads.

    # case E1
    """
    with lab(zookeeper, tmp_path, settings=UNCORRECTED) as cluster:
        old, epoch, since = cluster.wait_settled(), cluster.epoch(), clock()
        followers = [member for member in cluster if member is not old]
        for member in followers:
            member.signal_redis(signal.SIGSTOP)
        write(old, 5000, size_bytes=1000)
        old.terminate()
        wait_told(cluster, old, "transition", since, to="leader.pausing")
        for member in followers:
            member.signal_redis(signal.SIGCONT)
        assert old.wait(10) == 0
        new = cluster.wait_serving(after_epoch=epoch)
        assert keys(new) == 5000
        assert told(old, "caught_up", since)[0]["successor"] in (followers[0].name, followers[1].name)


def test_everybody_leaves(zookeeper: Ensemble, tmp_path: Path) -> None:
    """A follower leaves, then the leader, then the one that is left over: each with exit 0, within the bound.

    With one of three voters nobody leads, so what the last one has is not served to anybody, and it leaves all the
    same.

    # case E5
    """
    with lab(zookeeper, tmp_path) as cluster:
        leader = cluster.wait_settled()
        followers = [member for member in cluster if member is not leader]
        write(leader, 10)
        cluster.wait_for(lambda: [keys(member) for member in cluster] == [10, 10, 10], "everybody has the keys")
        epoch = cluster.epoch()
        assert followers[0].stop(BOUND_S) == 0
        assert gone_in_order(cluster, followers[0].name)
        assert (cluster.serving(), cluster.epoch(), refusal(leader)) == (leader, epoch, "")
        assert leader.stop(10) == 0
        assert gone_in_order(cluster, leader.name)
        assert keys(followers[1]) == 10
        assert followers[1].stop(10) == 0
        assert gone_in_order(cluster, followers[1].name)
        assert cluster.leader() is None


def test_sigterm_of_the_only_member(zookeeper: Ensemble, tmp_path: Path) -> None:
    """Alone it waits for no successor; started again it leads at once, with what Redis saved.

    # case E5
    """
    with lab(zookeeper, tmp_path, 1, redis_conf="save 3600 1") as cluster:
        only = cluster["n1"]
        write(only, 10)
        assert only.stop(BOUND_S) == 0
        assert gone_in_order(cluster, "n1")
        assert cluster.leader() is None
        only.start()
        cluster.wait_settled()
        assert keys(only) == 10


# --- without ZooKeeper ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("served", [False, True])
def test_sigterm_while_zookeeper_is_down(tmp_path: Path, *, served: bool) -> None:
    """While it connects for the first time, or has just lost ZooKeeper as leader: stopped in order, with exit 0.

    # case E5
    """
    with Ensemble(tmp_path / "zk", 1, tick_ms=200) as ensemble, unstarted(lab(ensemble, tmp_path, 1)) as cluster:
        only = cluster["n1"]
        if not served:
            ensemble.kill(0)
        cluster.start()
        if served:
            cluster.wait_started()
            ensemble.kill(0)
        wait_for(lambda: told(only, "redis_up"), 10, "the agent rules its Redis")
        # Its lease may hold for a second or two yet, or it never had one.
        assert only.stop(BOUND_S + SESSION_S) == 0
        assert told(only, "redis_died")[-1]["status"] == 0
        assert only.redis_pid is None


def test_sigterm_after_the_lease_ended(tmp_path: Path) -> None:
    """A leader that has fenced because it lost ZooKeeper leaves like one that never led.

    # case E5
    """
    with Ensemble(tmp_path / "zk", 1, tick_ms=200) as ensemble, lab(ensemble, tmp_path, 1) as cluster:
        only, since = cluster["n1"], clock()
        ensemble.kill(0)
        wait_for(lambda: told(only, "transition", since, trigger="lease_ended"), 10, "the lease ends")
        assert only.stop(BOUND_S) == 0
        assert told(only, "redis_died")[-1]["status"] == 0


# --- twice ----------------------------------------------------------------------------------------------------------


def test_no_sigterm_is_swallowed(zookeeper: Ensemble, tmp_path: Path) -> None:
    """A leader whose followers' Redis hang has long to wait; each further SIGTERM skips a wait, and none the fence.

    # case E5
    """
    settings = {"timing": {"handover_s": 30.0, "hang_s": 60.0, "busy_s": 30.0}}
    with lab(zookeeper, tmp_path, settings=settings) as cluster:
        leader = cluster.wait_settled()
        followers = [member for member in cluster if member is not leader]
        for member in followers:
            member.signal_redis(signal.SIGSTOP)
        write(leader, 10)
        since = clock()
        # For a successor to catch up; for it to serve; for Redis, which waits for its replicas; then it is killed.
        for state in ("leader.pausing", "stopping.yielding", "stopping.redis", ""):
            leader.terminate()
            if state:
                wait_told(cluster, leader, "transition", since, to=state)
        assert leader.wait(BOUND_S) == 0
        assert told(leader, "frozen", since)[0]["clock"] < told(leader, "ballot_cast", since)[0]["clock"]
        assert (leader.redis_pid, cluster.presence(leader.name), cluster.leader()) == (None, None, None)
        for member in followers:
            member.signal_redis(signal.SIGCONT)
