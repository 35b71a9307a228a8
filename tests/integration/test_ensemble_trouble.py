"""Servers of the ensemble die or fall silent while agents run and clients write: nobody's role changes for that."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redis_agent.client import LeaderObserver
from redis_agent.lab.cluster import LocalCluster
from redis_agent.lab.load import Load
from redis_agent.lab.settings import Settings
from redis_agent.lab.zookeeper import Ensemble
from tests.support.cluster import clock, lab, steps, told
from tests.support.hangs import NOTHING, missing

TICK_MS = 500
LONG: Settings = {"zookeeper": {"session_timeout_s": 10.0}}
"""The longest that there is at this tick: far longer than servers need to elect a leader, also on a busy machine."""


@contextmanager
def written_to(cluster: LocalCluster) -> Iterator[Load]:
    """Clients write all the time, in all ways, and are refused nothing; afterwards nothing is missing."""
    observer = LeaderObserver(
        cluster.ensemble.hosts, cluster=cluster.cluster, root=cluster.root, session_timeout_s=10.0
    )
    with observer:
        observer.wait_for_leader(10)
        with Load(observer, plain=2, confirmed=2, counters=2, rate_per_s=300) as load:
            cluster.wait_for(lambda: load.acknowledged > 100, "writes are acknowledged")
            yield load
            leader = cluster.wait_settled()
        assert missing(load, leader) == NOTHING
        assert (load.unknown, load.surprises) == (0, [])


def guids(cluster: LocalCluster) -> dict[str, str]:
    """Each agent's session."""
    return {name: presence.guid for name, presence in cluster.presences().items()}


def all_have_written(cluster: LocalCluster) -> None:
    """Every agent's session gets a write committed now: each rewrites its presence, to say how far its data reaches."""
    offset = cluster.wait_settled().info()["master_repl_offset"]

    def reached() -> bool:
        found = cluster.presences()
        return len(found) == len(cluster.members) and all(each.offset_bytes >= offset for each in found.values())

    cluster.wait_for(reached, "every agent's presence is written again", 40.0)


def go_on(cluster: LocalCluster, load: Load) -> None:
    count = load.acknowledged
    cluster.wait_for(lambda: load.acknowledged > count + 100, "writes go on")


def test_the_ensembles_leader_is_killed(tmp_path: Path) -> None:
    """SIGKILL to the server that leads, and to the one that leads next: the same Redis leads in the same epoch, every
    agent keeps its session, nothing is fenced, writes go on and none is lost.

    # case A11
    """
    with Ensemble(tmp_path / "zk", 3, tick_ms=TICK_MS) as ensemble, lab(ensemble, tmp_path, settings=LONG) as cluster:
        leader, epoch, sessions = cluster.wait_settled(), cluster.epoch(), guids(cluster)
        since = clock()
        with written_to(cluster) as load:
            for _ in range(2):
                killed = ensemble.leader()
                ensemble.kill(killed)
                assert ensemble.leader() != killed
                all_have_written(cluster)
                go_on(cluster, load)
                ensemble.restart(killed)
                ensemble.wait_serving(3)
        assert cluster.wait_settled() is leader
        assert (cluster.epoch(), guids(cluster)) == (epoch, sessions)
        assert [steps(member, since) for member in cluster] == [[], [], []]
        assert not told(leader, "fenced", since)


def test_one_server_is_dead_and_one_is_silent(tmp_path: Path) -> None:
    """Of three, the agents reach one. Their sessions go on there, and so does the cluster; a failover works as ever.

    # case A11
    """
    with (
        Ensemble(tmp_path / "zk", 3, tick_ms=TICK_MS) as ensemble,
        lab(ensemble, tmp_path, settings=LONG, proxied=True) as cluster,
    ):
        leader, epoch, sessions = cluster.wait_settled(), cluster.epoch(), guids(cluster)
        since, left = clock(), ensemble.leader()
        dead, silent = (left + 1) % 3, (left + 2) % 3
        with written_to(cluster):
            ensemble.kill(dead)
            for member in cluster:
                member.proxies[silent].cut()
            all_have_written(cluster)
            assert all(member.proxies[left].connections for member in cluster)
            assert (cluster.serving(), cluster.epoch(), guids(cluster)) == (leader, epoch, sessions)
            assert [steps(member, since) for member in cluster] == [[], [], []]
        leader.kill_redis()
        assert cluster.wait_serving(after_epoch=epoch) is not leader
        cluster.wait_settled()
        assert guids(cluster) == sessions
