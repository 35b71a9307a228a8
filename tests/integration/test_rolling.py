"""All agents are restarted, or upgraded, one after the other while clients write: what an operator does every week."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from redis_agent.lab.agent_process import AgentProcess
from redis_agent.lab.cluster import LocalCluster
from redis_agent.lab.load import Load
from redis_agent.lab.zookeeper import Ensemble
from tests.support.cluster import SESSION_S, clock, lab, observer_of, told, wait_told
from tests.support.hangs import NOTHING, identity, measured, missing

PAUSE_S = SESSION_S / 2
"""Far above what it takes, and far below what a failover by the session's end would take."""


@contextmanager
def written_to(cluster: LocalCluster) -> Iterator[Load]:
    """Eight clients write all the time, in all ways. Afterwards nothing is missing, and none was left in doubt."""
    with observer_of(cluster) as observer:
        observer.wait_for_leader(10)
        with Load(observer, plain=3, confirmed=3, counters=2, rate_per_s=400) as load:
            cluster.wait_for(lambda: load.acknowledged > 100, "writes are acknowledged")
            yield load
            leader = cluster.wait_settled()
        assert missing(load, leader) == NOTHING
        # All that they were refused with is what says that nothing was executed.
        assert (load.unknown, load.surprises) == (0, [])


def next_one(cluster: LocalCluster, done: list[AgentProcess]) -> AgentProcess:
    """The leader, if it is not done yet: so each one hands over."""
    leader = cluster.wait_settled()
    return leader if leader not in done else next(member for member in cluster if member not in done)


def longest_pause(cluster: LocalCluster, load: Load, since_ns: int) -> float:
    """How long nobody could write since then, until they can again."""
    cluster.wait_for(lambda: load.acks(time.monotonic_ns() - 100_000_000, confirmed=True), "confirmed writes go on")
    return load.gap(since_ns, load.acks(since_ns)[-1].at_ns).seconds


def test_the_leader_is_told_to_stop_again_and_again(zookeeper: Ensemble, tmp_path: Path) -> None:
    """SIGTERM of whoever leads, five times in a row under eight writers: exit 0, nothing is lost, nothing is doubled,
    no outcome is unknown, and writes pause for far less than the session timeout.

    # case E1
    """
    with lab(zookeeper, tmp_path) as cluster, written_to(cluster) as load:
        pauses = []
        for _ in range(5):
            old, epoch, at_ns = cluster.wait_settled(), cluster.epoch(), time.monotonic_ns()
            assert old.stop() == 0
            new = cluster.wait_serving(after_epoch=epoch)
            assert new is not old
            assert cluster.epoch() == epoch + 1
            assert cluster.ledger().entries[-1].handover
            pauses.append(longest_pause(cluster, load, at_ns))
            old.start()
        assert max(pauses) < PAUSE_S
        measured("writes paused for", ", ".join(f"{pause * 1000:.0f} ms" for pause in pauses))


def test_all_agents_are_restarted(zookeeper: Ensemble, tmp_path: Path) -> None:
    """SIGTERM and start, one after the other, the leader of the moment first: three short pauses, nothing is lost.

    # case E6
    """
    with lab(zookeeper, tmp_path) as cluster, written_to(cluster) as load:
        done: list[AgentProcess] = []
        pauses = []
        for _ in cluster:
            member, at_ns = next_one(cluster, done), time.monotonic_ns()
            assert member.stop() == 0
            member.start()
            cluster.wait_settled()
            pauses.append(longest_pause(cluster, load, at_ns))
            done.append(member)
        assert max(pauses) < PAUSE_S
        measured("writes paused for", ", ".join(f"{pause * 1000:.0f} ms" for pause in pauses))


def test_all_agents_are_upgraded(zookeeper: Ensemble, tmp_path: Path) -> None:
    """SIGUSR2 to one after the other: each agent is the same process with a new program, no Redis is restarted, each
    attaches to its own as intact as it was, and nothing is lost.

    # case E6
    """
    with lab(zookeeper, tmp_path) as cluster, written_to(cluster) as load:
        before = [(member.pid, member.guard_pid, identity(member)) for member in cluster]
        done: list[AgentProcess] = []
        pauses = []
        for _ in cluster:
            member, since, at_ns = next_one(cluster, done), clock(), time.monotonic_ns()
            member.upgrade()
            attached = wait_told(cluster, member, "redis_attached", since)
            assert attached["intact"]
            cluster.wait_settled()
            pauses.append(longest_pause(cluster, load, at_ns))
            assert not told(member, "redis_died", since)
            done.append(member)
        assert [(member.pid, member.guard_pid, identity(member)) for member in cluster] == before
        assert max(pauses) < PAUSE_S
        measured("writes paused for", ", ".join(f"{pause * 1000:.0f} ms" for pause in pauses))
