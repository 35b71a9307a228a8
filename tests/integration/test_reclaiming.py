"""The old leader's agent stands still while it takes its epoch back from a successor that did not come."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from redis_agent.lab.cluster import LocalCluster
from redis_agent.lab.proxy import Cut
from redis_agent.lab.settings import Settings
from redis_agent.lab.zookeeper import Ensemble
from redis_agent.znodes import LeaderPhase, OrderState
from tests.support.cluster import clock, lab, observer_of, told, wait_told
from tests.support.hangs import accepting, measured, wait_fit
from tests.support.node_load import on_every_node

LOOKS: Settings = {"timing": {"probe_s": 0.1, "presence_s": 0.1, "designation_s": 0.4}}


@pytest.mark.parametrize("lost", [Cut.REQUESTS, Cut.REPLIES], ids=["not-claimed", "claimed"])
def test_it_goes_on_after_its_lease(zookeeper: Ensemble, tmp_path: Path, lost: Cut) -> None:
    """Neither side takes the epoch, or the old leader has it and does not know: its agent stands still past its lease,
    and its session ends. Whoever is elected has all that was acknowledged, nobody else accepts writes, and the one that
    stood still follows when it goes on.

    # case E7
    """
    with lab(zookeeper, tmp_path, settings=LOOKS, proxied=True) as cluster, observer_of(cluster) as observer:
        old, epoch, since = cluster.wait_settled(), cluster.epoch(), clock()
        new = next(member for member in cluster if member is not old)
        observer.wait_for_leader(10)
        with on_every_node(cluster) as load, ThreadPoolExecutor(1) as pool:
            cluster.wait_for(lambda: len(load.acks(old.name, confirmed=True)) > 20, "writes are confirmed")
            wait_fit(cluster, old, new)
            new.pause()
            answer = pool.submit(cluster.switchover, new.name)
            wait_told(cluster, old, "designated", since)
            old.cut_zookeeper(lost)
            wait_told(cluster, old, "transition", since, to="leader.reclaiming")
            if lost is Cut.REPLIES:
                cluster.wait_for(lambda: taking_over(cluster, epoch + 1), "its claim is committed")
            old.pause()
            stood = told(old, "transition", since)[-1]["to"]
            assert stood == "leader.reclaiming"
            new.resume()
            leader = cluster.wait_serving(after_epoch=epoch)
            assert leader is not old
            old.restore_zookeeper()
            if old.running:
                old.resume()
            else:
                assert old.returncode == -signal.SIGKILL
                old.start()
            measured("the agent that stood still", "went on" if old.starts == 1 else "was killed by its guard")
            cluster.wait_settled()
            assert answer.result(30)[1].state in OrderState.FINAL
            leader = cluster.wait_settled()
            cluster.wait_for(lambda: accepting(cluster) == [leader.name], f"{leader.name} alone accepts writes")
            at = clock()
            cluster.wait_for(lambda: len(load.acks(leader.name, since=at, confirmed=True)) > 20, "writes are confirmed")
        # One after the other, and none comes back: no two accepted writes at once.
        assert load.turns() == [old.name, leader.name]
        cluster.wait_settled()
        kept = {ack.key for ack in load.acks()}
        for member in cluster:
            with member.redis(timeout_s=5.0) as client:
                found = client.mget(sorted(kept))
            assert found == sorted(kept), f"{member.name} lacks some of what was acknowledged"


def taking_over(cluster: LocalCluster, epoch: int) -> bool:
    leader = cluster.leader()
    return leader is not None and (leader.epoch, leader.phase) == (epoch, LeaderPhase.TAKING_OVER)
