"""Hands that change what the fence rests on, at run time and in redis.conf: it is put back, and never was open."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import redis

from redis_agent.lab.agent_process import AgentProcess
from redis_agent.lab.cluster import LocalCluster
from redis_agent.lab.waiting import wait_for
from redis_agent.lab.zookeeper import Ensemble
from redis_agent.redis_conf import FENCED, MAX_LAG_S
from tests.support.cluster import (
    STILL,
    UNCORRECTED,
    clock,
    keys,
    lab,
    refusal,
    steps,
    told,
    unstarted,
    wait_told,
    write,
)

ATTENTIVE = {"timing": {"probe_s": 0.1}}
HOSTILE = """
min-replicas-to-write 0
min-replicas-max-lag 0
replica-read-only no
replicaof no one
slave-read-only no
min-slaves-to-write 0
min-slaves-max-lag 0
"""
"""As far as Redis takes it in a file."""


def setting(member: AgentProcess, name: str) -> str:
    """A setting of its Redis."""
    with member.redis() as client:
        return str(client.config_get(name)[name])


def change(member: AgentProcess, name: str, value: str) -> None:
    """Change a setting behind the agent's back."""
    with member.redis() as client:
        client.config_set(name, value)


def put_back(cluster: LocalCluster, member: AgentProcess, name: str, value: str, since: float) -> None:
    """Wait until the agent has noticed and mended it, and has said so."""
    found = cluster.wait_for(
        lambda: [event for event in told(member, "drift", since) if name in event["settings"].split(",")],
        f"{member.name} notices that {name} was changed",
    )
    assert found[0]["level"] == "warning"
    cluster.wait_for(lambda: setting(member, name) == value, f"{name} is {value} again")


# --- at run time ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        ("min-replicas-to-write", "0", str(FENCED)),
        ("min-replicas-max-lag", "0", str(MAX_LAG_S)),
        ("replica-read-only", "no", "yes"),
    ],
)
def test_a_followers_fence_is_lifted_by_hand(
    zookeeper: Ensemble, tmp_path: Path, name: str, value: str, right: str
) -> None:
    """It is set again and logged; nobody else notices.

    # case C7
    """
    with lab(zookeeper, tmp_path, 2, settings=ATTENTIVE) as cluster:
        leader, epoch = cluster.wait_settled(), cluster.epoch()
        follower = next(member for member in cluster if member is not leader)
        since = clock()
        change(follower, name, value)
        put_back(cluster, follower, name, right, since)
        assert setting(follower, "min-replicas-to-write") == str(FENCED)
        assert refusal(follower) == "READONLY"
        assert [steps(member, since) for member in cluster] == [[], []]
        assert (cluster.wait_settled(), cluster.epoch()) == (leader, epoch)


def test_what_a_leader_needs_is_changed_by_hand(zookeeper: Ensemble, tmp_path: Path) -> None:
    """A leader with followers has its writes wait for one, whatever somebody sets; it is put back and leads on.

    # case C7
    """
    with lab(zookeeper, tmp_path, settings=ATTENTIVE) as cluster:
        leader, epoch = cluster.wait_settled(), cluster.epoch()
        cluster.wait_for(lambda: setting(leader, "min-replicas-to-write") == "1", "its writes need a follower")
        since = clock()
        for name, value, right in (
            ("min-replicas-to-write", "0", "1"),
            ("min-replicas-max-lag", "0", str(MAX_LAG_S)),
            ("replica-read-only", "no", "yes"),
        ):
            change(leader, name, value)
            put_back(cluster, leader, name, right, since)
        assert refusal(leader) == ""
        assert steps(leader, since) == []
        assert (cluster.wait_settled(), cluster.epoch()) == (leader, epoch)


def test_a_follower_that_somebody_points_elsewhere(zookeeper: Ensemble, tmp_path: Path) -> None:
    """It is pointed back at the leader, which it goes on from where it was, and logged.

    # case C7, B11
    """
    with lab(zookeeper, tmp_path, settings=ATTENTIVE) as cluster:
        leader, epoch = cluster.wait_settled(), cluster.epoch()
        write(leader, 10)
        follower, since = next(member for member in cluster if member is not leader), clock()
        copies = leader.info()["sync_full"]
        with follower.redis() as client:
            client.replicaof("127.0.0.1", 1)
        assert wait_told(cluster, follower, "drift", since, settings="replicaof")["found"] == "127.0.0.1:1"
        assert (cluster.wait_settled(), cluster.epoch()) == (leader, epoch)
        assert leader.info()["sync_full"] == copies
        assert steps(follower, since) == []


def test_a_leader_that_somebody_makes_a_replica(zookeeper: Ensemble, tmp_path: Path) -> None:
    """It does not lead any more, for it isn't a primary: a round decides, and nothing that was confirmed is lost.

    # case C7
    """
    with lab(zookeeper, tmp_path, settings=ATTENTIVE) as cluster:
        leader, epoch = cluster.wait_settled(), cluster.epoch()
        write(leader, 10)
        cluster.wait_for(lambda: {keys(member) for member in cluster} == {10}, "everybody has the keys")
        since = clock()
        with leader.redis() as client:
            client.replicaof("127.0.0.1", 1)
        cluster.wait_serving(after_epoch=epoch)
        assert steps(leader, since)[0] == "unfit>candidate.freezing"
        cluster.wait_settled()
        assert [keys(member) for member in cluster] == [10, 10, 10]


# --- in files -------------------------------------------------------------------------------------------------------


def test_config_rewrite_lifts_nothing(zookeeper: Ensemble, tmp_path: Path) -> None:
    """What somebody sets and has written down is gone at the next start, which is fenced; their own file stays theirs.

    # case C7
    """
    with lab(zookeeper, tmp_path, 2, settings=UNCORRECTED) as cluster:
        leader = cluster.wait_settled()
        follower = next(member for member in cluster if member is not leader)
        write(leader, 10)
        operators = follower.directory / "redis.conf"
        before, generated = operators.read_bytes(), follower.run_dir / "redis.conf"
        with follower.redis() as client:
            client.replicaof("NO", "ONE")
            for name in ("min-replicas-to-write", "min-replicas-max-lag"):
                client.config_set(name, "0")
            client.config_set("replica-read-only", "no")
            client.config_rewrite()
        assert "min-replicas-to-write 1000000" not in generated.read_text()
        assert operators.read_bytes() == before
        # Whoever is started now sees no leader: only the file says what it boots as.
        leader.destroy()
        since = clock()
        follower.kill_redis()
        cluster.wait_for(lambda: told(follower, "redis_up", since), "its Redis is up again")
        assert "min-replicas-to-write 1000000" in generated.read_text()
        assert refusal(follower) == "READONLY"
        with follower.redis() as client:
            client.replicaof("NO", "ONE")
            with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
                client.set("key", "value")
        assert operators.read_bytes() == before


@pytest.mark.parametrize("elsewhere", ["no one", "another"])
def test_a_hostile_redis_conf(tmp_path: Path, elsewhere: str) -> None:
    """An operator's file that ends with everything that would open Redis: it boots fenced, and leads only by election.

    # case C7, C1
    """
    with Ensemble(tmp_path / "zk", 1, tick_ms=200) as ensemble:
        ensemble.kill(0)
        conf = STILL + HOSTILE
        with unstarted(lab(ensemble, tmp_path, 2, redis_conf=conf)) as cluster:
            n1, n2 = cluster["n1"], cluster["n2"]
            if elsewhere == "another":
                n1.configure(redis_conf=f"{STILL}{HOSTILE}replicaof {n2.address.host} {n2.address.port}\n")
            cluster.start()
            for member in cluster:
                wait_for(partial(told, member, "redis_up"), 10, "the agent rules its Redis")
                assert refusal(member) == "READONLY"
                with member.redis() as client:
                    client.replicaof("NO", "ONE")
                    with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
                        client.set("key", "value")
            ensemble.restart(0)
            leader = cluster.wait_settled()
            write(leader, 10)
            cluster.wait_for(lambda: keys(n1) == keys(n2) == 10, "both have the keys")
            follower = n2 if leader is n1 else n1
            assert refusal(follower) == "READONLY"
            assert setting(leader, "min-replicas-max-lag") == str(MAX_LAG_S)
