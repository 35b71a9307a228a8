"""Whoever stands still or dies beside a leader's Redis: agent, guard, Redis, ZooKeeper. It is fenced in time."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from redis_agent.config import Timing
from redis_agent.lab.agent_process import AgentProcess
from redis_agent.lab.cluster import LocalCluster
from redis_agent.lab.settings import Settings
from redis_agent.lab.zookeeper import Ensemble
from tests.support.cluster import (
    SESSION_S,
    NodeWriter,
    clock,
    keys,
    lab,
    refusal,
    repointings,
    steps,
    told,
    wait_told,
    write,
)
from tests.support.hangs import identity, last_ack, let_in, measured

RISING = {f"n{number}": {"member": {"priority": number * 100}} for number in (1, 2, 3)}
"""Of equals, n3 leads, then n2."""
PATIENT: Settings = {"timing": {"hang_s": 90.0, "busy_s": 60.0}}
"""Nobody is killed for being silent: only the fences act."""
TELLING_S = 0.05
"""A reply that was sent in time may be read this much later: client and servers share two cores."""


@contextmanager
def writers(cluster: LocalCluster) -> Iterator[dict[str, NodeWriter]]:
    """A client of each node, which asks nobody who leads."""
    with ExitStack() as stack:
        yield {member.name: stack.enter_context(NodeWriter(member)) for member in cluster}


def writing(cluster: LocalCluster, writer: NodeWriter) -> None:
    """Wait until its node has acknowledged some more."""
    enough = len(writer.acks) + 10
    cluster.wait_for(lambda: len(writer.acks) >= enough, f"{writer.member.name} acknowledges writes")


def gave_way(
    cluster: LocalCluster, found: dict[str, NodeWriter], old: AgentProcess, new: AgentProcess, since: float
) -> float:
    """The old one acknowledged nothing any more when the new one began to.

    Returns:
        How long before, in seconds.
    """
    spare_s = let_in(cluster, new, since) - last_ack(found[old.name])
    assert spare_s > -TELLING_S
    others = [name for name in found if name not in (old.name, new.name)]
    assert not any(ack > since for name in others for ack in found[name].acks)
    return spare_s


# --- the agent stands still -----------------------------------------------------------------------------------------


def test_a_followers_agent_stands_still(zookeeper: Ensemble, tmp_path: Path) -> None:
    """Continued past the session timeout, it is expired before it does anything; then it joins again, and its Redis,
    which went on replicating, is not even repointed.

    # case A6
    """
    with lab(zookeeper, tmp_path) as cluster:
        leader = cluster.wait_settled()
        follower = next(member for member in cluster if member is not leader)
        before, repointed = identity(follower), repointings(follower)
        follower.pause()
        cluster.wait_for(lambda: cluster.presence(follower.name) is None, "its session ends")
        write(leader, 10)
        cluster.wait_for(lambda: keys(follower) == 10, "its Redis replicates all the same")
        since = clock()
        follower.resume()
        wait_told(cluster, follower, "transition", since, to="follower")
        assert cluster.wait_settled() is leader
        path = [event["to"] for event in told(follower, "transition", since)]
        assert path[-3:] == ["expired", "connecting", "follower"]
        # Its own lease had ended before.
        assert path[:-3] in ([], ["connecting"])
        assert identity(follower) == before
        assert repointings(follower) == repointed
        assert cluster.epoch() == 1


def test_a_leaders_agent_stands_still(zookeeper: Ensemble, tmp_path: Path) -> None:
    """At the end of the lease the guard kills the agent and fences Redis, before another one serves. When init has
    started the agent again, it attaches to the same Redis, which follows.

    # case A6, C2
    """
    with lab(zookeeper, tmp_path) as cluster, writers(cluster) as found:
        old = cluster.wait_settled()
        before = identity(old)
        writing(cluster, found[old.name])
        since = clock()
        old.pause()
        assert old.wait(10) == -signal.SIGKILL
        assert refusal(old) == "NOREPLICAS"
        new = cluster.wait_serving(after_epoch=1)
        writing(cluster, found[new.name])
        # Init is late, and whoever stopped the agent continues it.
        old.thaw_host()
        spare_s = gave_way(cluster, found, old, new, since)
        measured("the guard fenced before another served", f"{spare_s * 1000:.0f} ms")
        old.start()
        wait_told(cluster, old, "redis_attached", since, run_id=before.run_id)
        assert cluster.wait_settled() is new
        assert identity(old) == before
        assert "the deadline has passed" in old.log_text()
        assert gave_way(cluster, found, old, new, since) == spare_s


def test_agent_and_redis_of_a_leader_stand_still(zookeeper: Ensemble, tmp_path: Path) -> None:
    """The guard is on its own, and Redis does not answer: it is killed, and never acknowledges what lay in its sockets.

    # case A6, C2
    """
    with lab(zookeeper, tmp_path, settings=PATIENT) as cluster, writers(cluster) as found:
        old = cluster.wait_settled()
        writing(cluster, found[old.name])
        since = clock()
        old.signal_redis(signal.SIGSTOP)
        old.pause()
        assert old.wait(10) == -signal.SIGKILL
        cluster.wait_for(lambda: old.redis_pid is None, "its Redis is killed", 1.0)
        assert cluster.presence(old.name) is not None, "before its session ends"
        new = cluster.wait_serving(after_epoch=1)
        writing(cluster, found[new.name])
        old.start()
        assert cluster.wait_settled() is new
        gave_way(cluster, found, old, new, since)


# --- the agent is cut off -------------------------------------------------------------------------------------------


def test_the_soft_fence(zookeeper: Ensemble, tmp_path: Path) -> None:
    """ZooKeeper is out of reach, Redis is well: at the end of the lease it refuses writes, and keeps data and replicas.

    # case C2
    """
    with lab(zookeeper, tmp_path, settings=PATIENT, proxied=True) as cluster, writers(cluster) as found:
        old = cluster.wait_settled()
        before = identity(old)
        writing(cluster, found[old.name])
        since = clock()
        old.cut_zookeeper()
        ended = wait_told(cluster, old, "lease_ended", since)["clock"]
        cluster.wait_for(lambda: refusal(old) == "NOREPLICAS", "it refuses writes", 1.0)
        new = cluster.wait_serving(after_epoch=1)
        writing(cluster, found[new.name])
        gave_way(cluster, found, old, new, since)
        measured("the last write after the end of the lease", f"{(last_ack(found[old.name]) - ended) * 1000:.1f} ms")
        old.restore_zookeeper()
        assert cluster.wait_settled() is new
        assert identity(old) == before
        assert not told(old, "redis_killed", since)


def test_the_hard_fence(zookeeper: Ensemble, tmp_path: Path) -> None:
    """ZooKeeper is out of reach and Redis does not answer: it is killed, before another one serves.

    # case C2
    """
    with lab(zookeeper, tmp_path, settings=PATIENT, proxied=True) as cluster, writers(cluster) as found:
        old = cluster.wait_settled()
        before = identity(old)
        writing(cluster, found[old.name])
        since = clock()
        old.signal_redis(signal.SIGSTOP)
        old.cut_zookeeper()
        ended = wait_told(cluster, old, "lease_ended", since)["clock"]
        died = wait_told(cluster, old, "redis_died", since, status=-signal.SIGKILL)["clock"]
        new = cluster.wait_serving(after_epoch=1)
        assert died < let_in(cluster, new, since)
        measured("killed after the end of the lease", f"{(died - ended) * 1000:.0f} ms")
        writing(cluster, found[new.name])
        old.restore_zookeeper()
        assert cluster.wait_settled() is new
        assert identity(old) != before
        gave_way(cluster, found, old, new, since)


# --- the agent dies -------------------------------------------------------------------------------------------------


def test_a_leaders_agent_is_killed(zookeeper: Ensemble, tmp_path: Path) -> None:
    """SIGKILL: Redis is fenced at once, and keeps its memory. The agent's next life attaches, gives `leader` up, and
    somebody serves, long before the old session would have ended.

    # case C3
    """
    settings = {"zookeeper": {"session_timeout_s": 2 * SESSION_S}}
    with lab(zookeeper, tmp_path, settings=settings) as cluster, writers(cluster) as found:
        old = cluster.wait_settled()
        write(old, 100)
        before = identity(old)
        writing(cluster, found[old.name])
        killed = clock()
        old.kill()
        # How soon is measured here and by the benchmark; any machine does it before the session could end.
        cluster.wait_for(lambda: refusal(old) == "NOREPLICAS", "it refuses writes", SESSION_S)
        fenced_s = last_ack(found[old.name]) - killed
        assert identity(old) == before
        old.start()
        new = cluster.wait_serving(after_epoch=1)
        served_s = let_in(cluster, new, killed) - killed
        assert served_s < SESSION_S
        measured("the last write after SIGKILL of the agent", f"{fenced_s * 1000:.1f} ms")
        measured("another serves, init's restart included", f"{served_s:.2f} s, by {'it' if new is old else 'another'}")
        assert cluster.wait_settled() is new
        assert identity(old) == before
        assert [keys(member) for member in cluster] == [100, 100, 100]


# --- the agent dies, and its Redis hangs ----------------------------------------------------------------------------


def test_a_followers_redis_hangs_before_its_agent_is_back(zookeeper: Ensemble, tmp_path: Path) -> None:
    """The agent's next life can't attach. Somebody leads, so what hangs is killed as any hung follower.

    # case A11
    """
    with lab(zookeeper, tmp_path) as cluster:
        leader = cluster.wait_settled()
        write(leader, 100)
        follower = next(member for member in cluster if member is not leader)
        before = identity(follower)
        follower.signal_redis(signal.SIGSTOP)
        follower.kill()
        since = clock()
        follower.start()
        killed = wait_told(cluster, follower, "redis_killed", since)
        measured("killed after the agent's start", f"{killed['clock'] - since:.1f} s")
        wait_told(cluster, follower, "redis_up", since)
        assert cluster.wait_settled() is leader
        assert identity(follower) != before
        cluster.wait_for(lambda: keys(follower) == 100, "it has the keys again")


def test_a_redis_hangs_before_its_agent_is_back_and_nobody_leads(zookeeper: Ensemble, tmp_path: Path) -> None:
    """Two of three are stopped: the memory of the third one, which hangs, may be needed. It is attached to when it goes
    on, as the process that it was.

    # case A11
    """
    with lab(zookeeper, tmp_path) as cluster:
        leader = cluster.wait_settled()
        write(leader, 100)
        cluster.wait_for(lambda: {keys(member) for member in cluster} == {100}, "everybody has the keys")
        last = next(member for member in cluster if member is not leader)
        before = identity(last)
        last.signal_redis(signal.SIGSTOP)
        last.kill()
        others = [member for member in cluster if member is not last]
        for member in others:
            member.kill()
        cluster.wait_for(lambda: not cluster.presences() and cluster.leader() is None, "their sessions end")
        since = clock()
        last.start()
        wait_told(cluster, last, "redis_silent", since)
        cluster.wait_for(lambda: clock() > since + 2 * Timing().hang_s, "a hung one would have been killed")
        assert not told(last, "redis_killed", since)
        last.signal_redis(signal.SIGCONT)
        wait_told(cluster, last, "redis_attached", since)
        assert identity(last) == before
        for member in others:
            member.start()
        cluster.wait_settled()
        assert identity(last) == before
        assert [keys(member) for member in cluster] == [100, 100, 100]


# --- the guard ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_a_leaders_guard(zookeeper: Ensemble, tmp_path: Path, how: str) -> None:
    """Redis dies with it, or with the agent's patience: another leads, a new pair is started, and the log says so.

    # case C8
    """
    with lab(zookeeper, tmp_path) as cluster, writers(cluster) as found:
        old = cluster.wait_settled()
        before, guard = identity(old), old.guard_pid
        writing(cluster, found[old.name])
        since = clock()
        if how == "killed":
            old.kill_guard()
        else:
            old.stop_guard()
        new = cluster.wait_serving(after_epoch=1)
        assert new is not old
        writing(cluster, found[new.name])
        gave_way(cluster, found, old, new, since)
        cluster.wait_for(lambda: old.guard_pid not in (None, guard), "it has another guard")
        assert cluster.wait_settled() is new
        assert identity(old) != before
        if how == "killed":
            assert f"guard {guard} has ended" in old.log_text()
        else:
            assert told(old, "guard_lost", since)


def test_a_followers_guard_is_killed(zookeeper: Ensemble, tmp_path: Path) -> None:
    """Its Redis dies with it; a new pair is started and follows, and nobody else takes notice.

    # case C8
    """
    with lab(zookeeper, tmp_path) as cluster, writers(cluster) as found:
        leader = cluster.wait_settled()
        follower = next(member for member in cluster if member is not leader)
        guard, since = follower.guard_pid, clock()
        follower.kill_guard()
        wait_told(cluster, follower, "redis_died", since, status=-signal.SIGKILL)
        wait_told(cluster, follower, "redis_up", since)
        assert cluster.wait_settled() is leader
        assert follower.guard_pid not in (None, guard)
        assert f"guard {guard} has ended" in follower.log_text()
        assert steps(leader, since) == []
        assert not any(writer.acks for name, writer in found.items() if name != leader.name)


def test_a_followers_guard_is_stopped(zookeeper: Ensemble, tmp_path: Path) -> None:
    """Nobody needs it, until that member is elected: without its guard's word no write is let in, and it gives way to
    the next one. Then its guard is replaced.

    # case C8
    """
    with lab(zookeeper, tmp_path, overrides=RISING) as cluster:
        n1, n2, n3 = (cluster[name] for name in ("n1", "n2", "n3"))
        assert cluster.wait_settled() is n3
        write(n3, 100)
        cluster.wait_for(lambda: keys(n1) == keys(n2) == 100, "everybody has the keys")
        guard, since = n2.guard_pid, clock()
        n2.stop_guard()
        with NodeWriter(n2) as writer:
            n3.kill_redis()
            wait_told(cluster, n2, "guard_lost", since)
            new = cluster.wait_serving(after_epoch=2)
            assert new is not n2
            wait_told(cluster, n2, "guard_replaced", since)
            cluster.wait_for(lambda: n2.guard_pid not in (None, guard), "it has another guard")
            assert cluster.wait_settled() is new
            assert writer.acks == []
        assert [keys(member) for member in cluster] == [100, 100, 100]
