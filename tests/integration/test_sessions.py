"""The agent's ZooKeeper session: cut off, expired, absent, taken by somebody else. Real Redis, real ZooKeeper."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from redis_agent.lab.agent_process import AgentProcess
from redis_agent.lab.cluster import LocalCluster
from redis_agent.lab.ports import free_port
from redis_agent.lab.waiting import wait_for
from redis_agent.lab.zookeeper import Ensemble
from tests.support.cluster import (
    UNCORRECTED,
    NodeWriter,
    clock,
    keys,
    lab,
    refusal,
    repointings,
    steps,
    told,
    unstarted,
    wait_told,
    write,
)
from tests.support.hangs import let_in

FENCE_BUDGET_S = 0.25


def owners(cluster: LocalCluster) -> dict[str, int]:
    """By presence, the session that holds it."""
    names = cluster.zk.get_children(cluster.paths.presences)
    found = {name: cluster.zk.exists(cluster.paths.presence(name)) for name in names}
    return {name: stat.ephemeralOwner for name, stat in found.items() if stat is not None}


def is_absent(cluster: LocalCluster, member: AgentProcess) -> bool:
    """Whether its presence is gone."""
    return member.name not in owners(cluster)


def wait_for_heartbeat(cluster: LocalCluster, member: AgentProcess) -> None:
    """Wait until it has proved its session once more."""
    path = cluster.paths.presence(member.name)
    before = cluster.zk.exists(path).version
    cluster.wait_for(lambda: cluster.zk.exists(path).version > before, f"{member.name} proves its session again")


# --- cut off --------------------------------------------------------------------------------------------------------


def test_cut_off_for_less_than_the_timeout(zookeeper: Ensemble, tmp_path: Path) -> None:
    """A leader and a follower that are cut off briefly keep session and role, and no REPLICAOF is sent.

    # case A2
    """
    settings = {"zookeeper": {"session_timeout_s": 3.0}}
    with lab(zookeeper, tmp_path, settings=settings, proxied=True) as cluster:
        epoch, held = cluster.epoch(), owners(cluster)
        leader = cluster.wait_settled()
        cut = [leader, next(member for member in cluster if member is not leader)]
        before, since = [repointings(member) for member in cut], clock()
        for member in cut:
            member.cut_zookeeper()
        for member in cut:
            wait_told(cluster, member, "session_down", since)
        for member in cut:
            member.restore_zookeeper()
        for member in cut:
            assert not wait_told(cluster, member, "session_up", since)["new"]
            wait_for_heartbeat(cluster, member)
        assert [steps(member, since) for member in cut] == [[], []]
        assert [repointings(member) for member in cut] == before
        assert (cluster.epoch(), owners(cluster)) == (epoch, held)
        assert refusal(leader) == ""


def test_a_leader_change_while_cut_off_is_seen(zookeeper: Ensemble, tmp_path: Path) -> None:
    """A follower is cut off while the leader changes: in the same session it follows the new one.

    # case A2
    """
    settings = {"zookeeper": {"session_timeout_s": 3.0}}
    with lab(zookeeper, tmp_path, settings=settings, proxied=True) as cluster:
        leader = cluster.wait_settled()
        follower = next(member for member in cluster if member is not leader)
        epoch, held, since = cluster.epoch(), owners(cluster), clock()
        follower.cut_zookeeper()
        assert leader.stop() == 0
        cluster.wait_serving(after_epoch=epoch)
        follower.restore_zookeeper()
        cluster.wait_settled()
        assert owners(cluster)[follower.name] == held[follower.name]
        assert not told(follower, "session_up", since, new=True)


def test_the_leader_alone_is_cut_off(zookeeper: Ensemble, tmp_path: Path) -> None:
    """The old leader stops to acknowledge before another claims; when it is back it follows, having touched nothing.

    # case A4
    """
    with lab(zookeeper, tmp_path, settings=UNCORRECTED, proxied=True) as cluster, ExitStack() as stack:
        old, epoch = cluster.wait_settled(), cluster.epoch()
        writers = {member.name: stack.enter_context(NodeWriter(member)) for member in cluster}
        cluster.wait_for(lambda: len(writers[old.name].acks) > 20, "writes are acknowledged")
        since = clock()
        old.cut_zookeeper()
        new = cluster.wait_serving(after_epoch=epoch)
        cluster.wait_for(lambda: len(writers[new.name].acks) > 20, "the new leader acknowledges writes")
        touched = cluster.zk.exists(cluster.paths.presences).cversion
        assert refusal(old) == "NOREPLICAS"
        old.restore_zookeeper()
        cluster.wait_settled()
        last_ack = writers[old.name].acks[-1]
        # As soon as its lease has ended, within the budget for it.
        assert last_ack < told(old, "lease_ended", since)[0]["clock"] + FENCE_BUDGET_S
        assert last_ack < told(new, "claimed", since)[0]["clock"]
        assert last_ack < writers[new.name].acks[0]
        assert steps(old, since) == [
            "lease_ended>connecting",
            "session_expired>expired",
            "session_up>connecting",
            "leader_serves>follower",
        ]
        # One more presence: its new one.
        assert cluster.zk.exists(cluster.paths.presences).cversion == touched + 1
        assert cluster.epoch() == epoch + 1


def test_expired_three_times(zookeeper: Ensemble, tmp_path: Path) -> None:
    """Each expiry ends in a new session, one presence, watches that work, and no REPLICAOF where it already follows.

    # case A3, B11
    """
    with lab(zookeeper, tmp_path, proxied=True) as cluster:
        for _ in range(3):
            leader = cluster.wait_settled()
            member = next(member for member in cluster if member is not leader)
            before, held, since = repointings(member), owners(cluster)[member.name], clock()
            member.cut_zookeeper()
            cluster.wait_for(partial(is_absent, cluster, member), "its session expires")
            member.restore_zookeeper()
            cluster.wait_settled()
            assert steps(member, since) == [
                "lease_ended>connecting",
                "session_expired>expired",
                "session_up>connecting",
                "leader_serves>follower",
            ]
            assert repointings(member) == before
            now = owners(cluster)
            assert len(now) == len(set(now.values())) == 3
            assert now[member.name] != held
            # Only a watch can tell it of this in time.
            since, epoch = clock(), cluster.epoch()
            cluster.zk.delete(cluster.paths.leader)
            cluster.wait_serving(after_epoch=epoch)
            assert wait_told(cluster, member, "transition", since, trigger="no_leader")


# --- absent ---------------------------------------------------------------------------------------------------------


def test_zookeeper_is_down_at_start(tmp_path: Path) -> None:
    """Without ZooKeeper the agent stays in connecting, Redis up and fenced, and says so; it joins when ZooKeeper comes.

    # case A10
    """
    with Ensemble(tmp_path / "zk", 1, tick_ms=200) as ensemble:
        ensemble.kill(0)
        with unstarted(lab(ensemble, tmp_path, 1)) as cluster:
            cluster.start()
            only = cluster["n1"]
            only.wait_redis()
            wait_for(lambda: told(only, "redis_up"), 10, "the agent rules its Redis")
            assert refusal(only) in ("READONLY", "NOREPLICAS")
            wait_for(lambda: told(only, "no_zookeeper", state="connecting"), 10, "the agent says what is missing")
            assert steps(only) == []
            ensemble.restart(0)
            assert cluster.wait_settled() is only
            assert refusal(only) == ""


# --- names ----------------------------------------------------------------------------------------------------------


def test_a_quick_restart_after_sigkill(zookeeper: Ensemble, tmp_path: Path) -> None:
    """A killed leading agent that is started again replaces its own leftovers; nobody waits for its old session.

    Its Redis was fenced meanwhile, and is the same process all the time.

    # case A13, C3
    """
    session_s = 4.0
    with lab(zookeeper, tmp_path, settings={"zookeeper": {"session_timeout_s": session_s}}) as cluster:
        leader, epoch, held = cluster.wait_settled(), cluster.epoch(), owners(cluster)
        write(leader, 100)
        cluster.wait_settled()
        pid, killed_at = leader.redis_pid, clock()
        leader.kill()
        assert refusal(leader) == "NOREPLICAS"
        leader.start()
        cluster.wait_serving(after_epoch=epoch)
        assert clock() - killed_at < session_s - 0.5
        cluster.wait_settled()
        now = owners(cluster)
        assert {name for name in held if now[name] != held[name]} == {leader.name}
        assert [keys(member) for member in cluster] == [100, 100, 100]
        assert leader.redis_pid == pid


def test_a_replacement_with_a_dead_hosts_name(zookeeper: Ensemble, tmp_path: Path) -> None:
    """The leader's host is lost with its disk, and another one with its name starts while the dead one's presence and
    leadership still stand. It knows nothing of them, so it deletes neither: it waits for the end of the old session,
    as the others do, and then follows with everything.

    # case A13
    """
    session_s = 4.0
    with lab(zookeeper, tmp_path, settings={"zookeeper": {"session_timeout_s": session_s}}) as cluster:
        lost, epoch, held = cluster.wait_settled(), cluster.epoch(), owners(cluster)
        write(lost, 100)
        cluster.wait_settled()
        owner = cluster.zk.exists(cluster.paths.leader).ephemeralOwner
        killed_at = clock()
        lost.kill()
        lost.kill_guard()
        cluster.wait_for(lambda: lost.redis_pid is None, "its Redis is dead")
        for part in (lost.state_dir, lost.data_dir, lost.run_dir):
            shutil.rmtree(part)
            part.mkdir()
        lost.start()
        wait_told(cluster, lost, "session_up", killed_at)
        leader = cluster.leader()
        assert leader is not None
        assert (leader.name, leader.epoch) == (lost.name, epoch)
        assert cluster.zk.exists(cluster.paths.leader).ephemeralOwner == owner
        assert owners(cluster) == held
        new = cluster.wait_serving(after_epoch=epoch)
        # ZooKeeper ends a session no sooner than its timeout after it last heard from it: then, not before, and by
        # nobody else, was the way free.
        assert let_in(cluster, new, killed_at) - killed_at > session_s - 0.5
        assert new is not lost
        cluster.wait_settled()
        now = owners(cluster)
        assert {name for name in held if now[name] != held[name]} == {lost.name}
        assert [keys(member) for member in cluster] == [100, 100, 100]


def test_a_name_that_is_in_use(zookeeper: Ensemble, tmp_path: Path) -> None:
    """An agent whose name a live agent elsewhere holds ends with exit 2 and says so; the other one is not disturbed.

    # case A13
    """
    with lab(zookeeper, tmp_path, 1) as cluster:
        first, epoch, held = cluster["n1"], cluster.epoch(), owners(cluster)
        second = AgentProcess("n1", tmp_path / "other", first.settings, port=free_port(), redis_conf=first.redis_conf)
        try:
            second.start()
            assert second.wait(20) == 2
            assert 'the name \\"n1\\" is in use by a live agent' in second.last_words()
        finally:
            second.destroy()
        assert (cluster.epoch(), owners(cluster)) == (epoch, held)
        assert refusal(first) == ""
