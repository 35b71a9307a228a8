"""One mistake that ends every agent ends no Redis: what they remember is all that a memory-only cluster has."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from kazoo.security import OPEN_ACL_UNSAFE, make_acl  # type: ignore[import-untyped]

from redis_agent.lab.cluster import LocalCluster
from redis_agent.lab.zookeeper import Ensemble
from tests.support.cluster import clock, keys, lab, refusal, told, wait_told, write

WRITTEN = 100


def identities(cluster: LocalCluster) -> dict[str, tuple[int | None, str]]:
    """Of each redis-server its process id and its run id."""
    return {member.name: (member.redis_pid, str(member.wait_redis()["run_id"])) for member in cluster}


@contextmanager
def memory_only(
    zookeeper: Ensemble, directory: Path, *, proxied: bool = False, password: str = ""
) -> Iterator[LocalCluster]:
    """Three members whose keys are on no disk; afterwards each is still the process that it was."""
    with lab(zookeeper, directory, proxied=proxied, password=password) as cluster:
        leader = cluster.wait_settled()
        write(leader, WRITTEN)
        cluster.wait_for(lambda: {keys(member) for member in cluster} == {WRITTEN}, "everybody has the keys")
        before, since = identities(cluster), clock()
        yield cluster
        assert identities(cluster) == before
        assert not [member.name for member in cluster if told(member, "redis_died", since)]
        # What a leader sent when they were copied is from before.
        assert not [file for member in cluster for file in member.data_dir.rglob("*") if b"key:" in file.read_bytes()]


def all_are_there(cluster: LocalCluster, epoch: int) -> None:
    """Somebody leads again, with everything; nobody copied anything, for all had it."""
    leader = cluster.wait_serving(after_epoch=epoch)
    assert cluster.wait_settled() is leader
    assert {keys(member) for member in cluster} == {WRITTEN}
    assert refusal(leader) == ""
    write(leader, WRITTEN, "later")
    cluster.wait_for(lambda: {keys(member, "later") for member in cluster} == {WRITTEN}, "writes reach everybody")


def test_all_agents_are_killed(zookeeper: Ensemble, tmp_path: Path) -> None:
    """SIGKILL to every agent: the leader's Redis is fenced by its guard, and all live on as the processes they were.

    # case C3, B10
    """
    with memory_only(zookeeper, tmp_path) as cluster:
        before, epoch = identities(cluster), cluster.epoch()
        for member in cluster:
            member.send_signal(signal.SIGKILL)
        for member in cluster:
            member.wait(10)
        assert identities(cluster) == before
        assert {refusal(member) for member in cluster} <= {"READONLY", "NOREPLICAS"}
        assert {keys(member) for member in cluster} == {WRITTEN}
        cluster.start()
        all_are_there(cluster, epoch)


def test_all_agents_are_killed_for_long(zookeeper: Ensemble, tmp_path: Path) -> None:
    """The same, but their sessions end before they are started again, one after the other.

    # case B10
    """
    with memory_only(zookeeper, tmp_path) as cluster:
        epoch = cluster.epoch()
        for member in cluster:
            member.send_signal(signal.SIGKILL)
        for member in cluster:
            member.wait(10)
        cluster.wait_for(lambda: not cluster.presences() and cluster.leader() is None, "their sessions end")
        for member in cluster:
            member.start()
            cluster.wait_for(partial(cluster.presence, member.name), f"{member.name} is there")
        all_are_there(cluster, epoch)


def test_a_wrong_setting_for_all_agents(zookeeper: Ensemble, tmp_path: Path) -> None:
    """Everybody gets the same bad configuration, and is told to take it: all agents end with exit 2, Redis lives on."""
    with memory_only(zookeeper, tmp_path) as cluster:
        before, epoch = identities(cluster), cluster.epoch()
        good = {member.name: str(member.settings["zookeeper"]["hosts"]) for member in cluster}
        for member in cluster:
            member.configure({"zookeeper": {"hosts": "no server"}})
        for member in cluster:
            member.upgrade()
        assert [member.wait(20) for member in cluster] == [2, 2, 2]
        assert all('"no server" is not a server' in member.log_text() for member in cluster)
        assert identities(cluster) == before
        assert {refusal(member) for member in cluster} <= {"READONLY", "NOREPLICAS"}
        for member in cluster:
            member.configure({"zookeeper": {"hosts": good[member.name]}})
        cluster.start()
        all_are_there(cluster, epoch)


def test_a_password_that_was_changed_behind_all_agents(zookeeper: Ensemble, tmp_path: Path) -> None:
    """Somebody changes the password of every running Redis: the agents go on. Then all are restarted, and none gets in:
    every agent ends with exit 2 and says why, and every Redis lives on with its data, fenced. When the setting is
    corrected they attach, and one leads.
    """
    with memory_only(zookeeper, tmp_path, password="old") as cluster:
        before, epoch = identities(cluster), cluster.epoch()
        for member in cluster:
            with member.redis() as client:
                client.config_set("masterauth", "rotated")
                client.config_set("requirepass", "rotated")
            member.password = "rotated"
        leader = cluster.wait_settled()
        write(leader, WRITTEN, "rotated")
        for member in cluster:
            member.send_signal(signal.SIGKILL)
        for member in cluster:
            member.wait(10)
        cluster.start()
        assert [member.wait(20) for member in cluster] == [2, 2, 2]
        for member in cluster:
            (said,) = told(member, "giving_up")
            assert f"redis-server {before[member.name][0]} is left running, fenced" in str(said["reason"])
            assert "does not accept the password that was given" in str(said["reason"])
        assert identities(cluster) == before
        assert {refusal(member) for member in cluster} <= {"READONLY", "NOREPLICAS"}
        assert {keys(member, "rotated") for member in cluster} == {WRITTEN}
        for member in cluster:
            member.configure()
        cluster.start()
        all_are_there(cluster, epoch)


def test_zookeeper_refuses_all_agents(zookeeper: Ensemble, tmp_path: Path) -> None:
    """Their sessions end, and then nobody may register any more: all agents end with exit 2, Redis lives on."""
    with memory_only(zookeeper, tmp_path, proxied=True) as cluster:
        before, epoch, path = identities(cluster), cluster.epoch(), cluster.paths.presences
        for member in cluster:
            member.cut_zookeeper()
        cluster.wait_for(lambda: not cluster.presences() and cluster.leader() is None, "their sessions end")
        cluster.zk.set_acls(path, [make_acl("world", "anyone", read=True, admin=True)])
        for member in cluster:
            member.restore_zookeeper()
        assert [member.wait(20) for member in cluster] == [2, 2, 2]
        for member in cluster:
            assert "ZooKeeper refuses writes below" in member.log_text()
        assert identities(cluster) == before
        assert {refusal(member) for member in cluster} <= {"READONLY", "NOREPLICAS"}
        # Somebody mends it, and init starts them again.
        cluster.zk.set_acls(path, OPEN_ACL_UNSAFE)
        cluster.start()
        all_are_there(cluster, epoch)


def test_the_settings_that_all_share_cannot_be_read(zookeeper: Ensemble, tmp_path: Path) -> None:
    """Somebody writes garbage into `config`: the leader serves on, agents that restart wait, and no Redis ends."""
    with memory_only(zookeeper, tmp_path) as cluster:
        leader, epoch, path = cluster.wait_settled(), cluster.epoch(), cluster.paths.config
        good, _ = cluster.zk.get(path)
        since = clock()
        cluster.zk.set(path, b"not json")
        for member in cluster:
            wait_told(cluster, member, "unreadable_znode", since)
        followers = [member for member in cluster if member is not leader]
        for member in followers:
            member.kill()
            member.start()
        again = clock()
        for member in followers:
            wait_told(cluster, member, "unreadable_znode", again)
        assert refusal(leader) == ""
        assert [member.running for member in cluster] == [True, True, True]
        cluster.zk.set(path, good)
        assert cluster.wait_settled() is leader
        assert cluster.epoch() == epoch
