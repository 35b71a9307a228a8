"""Watches are hints: lost, too many, or about nothing that has changed. Real agents, real Redis, real ZooKeeper."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from kazoo.exceptions import NodeExistsError, NoNodeError  # type: ignore[import-untyped]

from redis_agent import znodes
from redis_agent.client.view import ObserverStatus
from redis_agent.lab.cluster import LocalCluster
from redis_agent.lab.zookeeper import Ensemble
from redis_agent.replication import NOWHERE
from redis_agent.znodes import Leader, LeaderPhase
from tests.support.cluster import clock, keys, lab, observer_of, refusal, repointings, steps, told, unstarted, write

CYCLES = 1000


def swallowed(cluster: LocalCluster) -> int:
    """How many notifications the agents did not get."""
    return sum(proxy.watches_swallowed for member in cluster for proxy in member.proxies)


def wait_for_heartbeats(cluster: LocalCluster) -> None:
    """Wait until every agent has written its presence twice more: what was read before that has been acted on."""
    paths = [cluster.paths.presence(member.name) for member in cluster]
    before = {path: cluster.zk.exists(path).version for path in paths}
    cluster.wait_for(
        lambda: all(cluster.zk.exists(path).version > before[path] + 1 for path in paths), "everybody's heartbeats"
    )


def test_all_watches_are_lost(zookeeper: Ensemble, tmp_path: Path) -> None:
    """No agent ever hears of a watch: by reading again once in a while they start, fail over, and hand over.

    # case A7
    """
    settings = {"timing": {"reread_s": 0.3}}
    with unstarted(lab(zookeeper, tmp_path, settings=settings, proxied=True)) as cluster:
        for member in cluster:
            for proxy in member.proxies:
                proxy.swallow_watches()
        cluster.start()
        old = cluster.wait_started()
        write(old, 10)
        cluster.wait_for(lambda: {keys(member) for member in cluster} == {10}, "everybody has the keys")
        epoch, before = cluster.epoch(), swallowed(cluster)
        assert before > 0
        old.kill_redis()
        new = cluster.wait_serving(after_epoch=epoch)
        assert new is not old
        cluster.wait_settled()
        _, order = cluster.switchover(old.name)
        assert (order.state, cluster.wait_settled()) == (znodes.OrderState.DONE, old)
        assert {keys(member) for member in cluster} == {10}
        assert swallowed(cluster) > before


def test_a_thousand_leaders_come_and_go(zookeeper: Ensemble, tmp_path: Path) -> None:
    """`leader` is deleted and created a thousand times as fast as ZooKeeper can; then agents and observer agree again.

    What the agents see meanwhile is a leader of another name, sometimes taking over and sometimes serving, which
    answers nowhere; some may claim between a deletion and a creation.

    # case A12
    """
    with lab(zookeeper, tmp_path) as cluster, observer_of(cluster) as observer:
        leader, path = cluster.wait_settled(), cluster.paths.leader
        write(leader, 10)
        cluster.wait_for(lambda: {keys(member) for member in cluster} == {10}, "everybody has the keys")
        phases = (LeaderPhase.TAKING_OVER, LeaderPhase.SERVING)
        fakes = [znodes.encode(Leader(name="n9", address=NOWHERE, epoch=1, phase=each, guid="fake")) for each in phases]
        created = 0
        for cycle in range(CYCLES):
            with suppress(NodeExistsError):
                cluster.zk.create(path, fakes[cycle % 2], ephemeral=True)
                created += 1
            with suppress(NoNodeError):
                cluster.zk.delete(path)
        assert created > CYCLES / 2
        leader = cluster.wait_settled()
        cluster.wait_for(
            lambda: (view := observer.leader) is not None and (view.name, view.epoch) == (leader.name, cluster.epoch()),
            "the observer sees the same leader",
        )
        assert refusal(leader) == ""
        assert {keys(member) for member in cluster} == {10}
        # Nobody is still at work on what it saw on the way.
        write(leader, 20)
        cluster.wait_for(lambda: {keys(member) for member in cluster} == {20}, "everybody has the new keys, too")
        assert cluster.wait_settled() is leader


def test_a_leader_that_is_written_again(zookeeper: Ensemble, tmp_path: Path) -> None:
    """`leader` is rewritten with what it says already: nobody reconnects, no client is kicked, no role changes.

    # case A12
    """
    with lab(zookeeper, tmp_path) as cluster, observer_of(cluster) as observer:
        leader, path = cluster.wait_settled(), cluster.paths.leader
        cluster.wait_for(lambda: observer.leader, "the observer sees the leader")
        before, epoch, since = [repointings(member) for member in cluster], cluster.epoch(), clock()
        seen: list[ObserverStatus] = []
        observer.on_change(seen.append)
        with leader.redis() as client:
            client.set("key", "before")
            data, stat = cluster.zk.get(path)
            for _ in range(20):
                cluster.zk.set(path, data)
            wait_for_heartbeats(cluster)
            assert client.get("key") == "before"
        assert cluster.zk.exists(path).version == stat.version + 20
        assert [repointings(member) for member in cluster] == before
        assert [steps(member, since) for member in cluster] == [[], [], []]
        assert not any(told(member, "redis_command_failed", since) for member in cluster)
        assert (cluster.wait_settled(), cluster.epoch()) == (leader, epoch)
        assert [status.leader for status in seen] == [observer.leader] * len(seen)
