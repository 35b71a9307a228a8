"""A leader that is cut off: from ZooKeeper, or from those who follow it; clients write on both sides all the time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from redis_agent.lab.cluster import LocalCluster
from redis_agent.lab.proxy import Cut, TcpProxy
from redis_agent.lab.zookeeper import Ensemble
from tests.support.cluster import clock, lab, refusal, steps, told, unstarted, wait_told
from tests.support.node_load import NodeLoad, on_every_node

FENCE_BUDGET_S = 0.25


def served(cluster: LocalCluster) -> list[str]:
    """Who served, one after the other."""
    return [entry.member for entry in cluster.ledger().entries if entry.served]


def wait_for_writes(cluster: LocalCluster, load: NodeLoad, node: str, since: float) -> None:
    """Wait until this node has acknowledged plain and confirmed writes."""
    cluster.wait_for(
        lambda: len(load.acks(node, since=since)) > 20 and len(load.acks(node, since=since, confirmed=True)) > 5,
        f"{node} acknowledges and confirms writes",
    )


def sound(cluster: LocalCluster, load: NodeLoad, *who: str) -> None:
    """Those acknowledged writes one after the other, never two at once, and everybody has what was confirmed."""
    leader = cluster.wait_settled()
    assert load.turns() == served(cluster) == list(who)
    cluster.wait_for(lambda: not load.lost(leader), "the leader has what was confirmed", 1.0)
    cluster.wait_for(lambda: not any(load.lost(member) for member in cluster), "everybody has it, too")


# --- from ZooKeeper -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", [Cut.BOTH, Cut.REQUESTS])
def test_the_leader_is_cut_off_from_zookeeper(zookeeper: Ensemble, tmp_path: Path, what: Cut) -> None:
    """Its followers still reach it, and so do its clients: it acknowledges nothing any more before another one does.

    The same if only what it sends is lost.

    # case C5, A4
    """
    with lab(zookeeper, tmp_path, proxied=True) as cluster:
        old = cluster.wait_settled()
        with on_every_node(cluster) as load:
            wait_for_writes(cluster, load, old.name, 0.0)
            since = clock()
            old.cut_zookeeper(what)
            new = cluster.wait_serving(after_epoch=1)
            wait_for_writes(cluster, load, new.name, since)
            old.restore_zookeeper()
            cluster.wait_settled()
            wait_for_writes(cluster, load, new.name, clock())
        assert "lease_ended>connecting" in steps(old, since)
        sound(cluster, load, old.name, new.name)


def test_the_leader_hears_nothing_of_zookeeper(zookeeper: Ensemble, tmp_path: Path) -> None:
    """ZooKeeper hears the leader, which hears no answer: the session stands, and is no proof. It fences, and resumes.

    # case C5, A4
    """
    with lab(zookeeper, tmp_path, proxied=True) as cluster:
        leader = cluster.wait_settled()
        with on_every_node(cluster) as load:
            wait_for_writes(cluster, load, leader.name, 0.0)
            since = clock()
            leader.cut_zookeeper(Cut.REPLIES)
            ended = wait_told(cluster, leader, "lease_ended", since)["clock"]
            cluster.wait_for(lambda: refusal(leader) == "NOREPLICAS", "its Redis is fenced")
            assert load.acks()[-1].at < ended + FENCE_BUDGET_S
            leader.restore_zookeeper()
            again = cluster.wait_serving()
            cluster.wait_settled()
            wait_for_writes(cluster, load, again.name, clock())
        assert load.turns() == list(dict.fromkeys(served(cluster)))
        assert not load.lost(again)


# --- from its followers ---------------------------------------------------------------------------------------------


@contextmanager
def announced_by_proxies(cluster: LocalCluster) -> Iterator[dict[str, TcpProxy]]:
    """Members announce a proxy before their Redis: what others send them can be cut, what a test sends cannot."""
    with ExitStack() as stack:
        proxies = {
            member.name: stack.enter_context(TcpProxy((member.address.host, member.address.port))) for member in cluster
        }
        for member in cluster:
            member.configure({"redis": {"announce_port": proxies[member.name].address[1]}})
        yield proxies


@pytest.mark.parametrize("how", ["broken", "silent"])
def test_a_leader_that_nobody_follows(zookeeper: Ensemble, tmp_path: Path, how: str) -> None:
    """It reaches ZooKeeper, but its followers do not reach it: it resigns, and those that reach each other go on.

    Broken: the links end with a reset. Silent: everything that is sent to it vanishes.

    # case C5
    """
    settings = {"timing": {"unfollowed_s": 0.5, "probe_s": 0.1}}
    conf = "repl-timeout 2\nrepl-ping-replica-period 1"
    with (
        unstarted(lab(zookeeper, tmp_path, settings=settings, redis_conf=conf)) as cluster,
        announced_by_proxies(cluster) as proxies,
    ):
        cluster.start()
        old = cluster.wait_started()
        with on_every_node(cluster) as load:
            wait_for_writes(cluster, load, old.name, 0.0)
            since = clock()
            if how == "broken":
                proxies[old.name].reset()
            proxies[old.name].cut()
            new = cluster.wait_serving(after_epoch=1)
            wait_for_writes(cluster, load, new.name, since)
            assert new is not old
            assert told(old, "nobody_follows", since)
            proxies[old.name].restore()
            cluster.wait_settled()
            wait_for_writes(cluster, load, new.name, clock())
        sound(cluster, load, old.name, new.name)


def test_a_leader_that_some_follow(zookeeper: Ensemble, tmp_path: Path) -> None:
    """One of two followers loses its link for good: the leader stays, and what one confirms is enough.

    # case C5
    """
    settings = {"timing": {"unfollowed_s": 0.3, "probe_s": 0.1}}
    with lab(zookeeper, tmp_path, settings=settings) as cluster:
        leader = cluster.wait_settled()
        follower = next(member for member in cluster if member is not leader)
        with on_every_node(cluster) as load:
            wait_for_writes(cluster, load, leader.name, 0.0)
            since = clock()
            follower.kill()
            with follower.redis() as client:
                client.replicaof("127.0.0.1", 1)
            cluster.wait_for(lambda: cluster.presence(follower.name) is None, "its session ends")
            wait_for_writes(cluster, load, leader.name, clock())
            follower.start()
            cluster.wait_settled()
        assert steps(leader, since) == []
        sound(cluster, load, leader.name)
