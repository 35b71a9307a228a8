"""The local Redis as a whole agent looks after it: crashes, hangs, scripts, lost data, wrong settings, secrets."""

from __future__ import annotations

import json
import signal
import socket
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from redis_agent.cli.main import main
from redis_agent.guard_link import SOCKET_NAME
from redis_agent.lab.agent_process import AgentProcess
from redis_agent.lab.load import Load
from redis_agent.lab.zookeeper import Ensemble
from tests.support.cluster import (
    NodeWriter,
    clock,
    keys,
    lab,
    observer_of,
    refusal,
    repointings,
    steps,
    told,
    unstarted,
    wait_told,
    write,
)

RISING = {f"n{number}": {"member": {"priority": number * 100}} for number in (1, 2, 3)}
"""Of equals, n3 leads, then n2."""


def has_come_up(member: AgentProcess, since: float, times: int) -> bool:
    """Whether its Redis has come up this often."""
    return len(told(member, "redis_up", since)) >= times


# --- crashes and lost data ------------------------------------------------------------------------------------------


def test_a_followers_redis_crashes(zookeeper: Ensemble, tmp_path: Path) -> None:
    """It is restarted and in sync again, without a word to anybody else; the pauses before restarts grow.

    # case D1
    """
    with lab(zookeeper, tmp_path) as cluster:
        leader, epoch = cluster.wait_settled(), cluster.epoch()
        follower, since = next(member for member in cluster if member is not leader), clock()
        write(leader, 100)
        for count in range(3):
            follower.kill_redis()
            cluster.wait_for(partial(has_come_up, follower, since, count + 1), f"it is up again ({count + 1})")
        cluster.wait_settled()
        assert keys(follower) == 100
        pauses_s = [event["in_s"] for event in told(follower, "redis_restart", since)]
        assert pauses_s == sorted(set(pauses_s))
        assert len(pauses_s) == 3
        assert (cluster.serving(), cluster.epoch()) == (leader, epoch)
        assert not [member.name for member in cluster if any("candidate" in step for step in steps(member, since))]


def test_an_empty_redis_does_not_lead(zookeeper: Ensemble, tmp_path: Path) -> None:
    """Two of three restart empty: the third, which has the data, leads against its priority, and the two are copied.

    # case D5
    """
    with lab(zookeeper, tmp_path, overrides=RISING) as cluster:
        n1, n2, n3 = (cluster[name] for name in ("n1", "n2", "n3"))
        assert cluster.wait_settled() is n3
        write(n3, 100)
        cluster.wait_for(lambda: keys(n1) == keys(n2) == 100, "everybody has the keys")
        n2.kill_redis()
        n3.kill_redis()
        assert cluster.wait_serving(after_epoch=1) is n1
        cluster.wait_settled()
        assert [keys(member) for member in cluster] == [100, 100, 100]


# --- hangs and scripts ----------------------------------------------------------------------------------------------


def test_the_leaders_redis_hangs(zookeeper: Ensemble, tmp_path: Path) -> None:
    """It is killed after the limit, and another leads; nothing confirmed is lost.

    # case D2
    """
    settings = {"timing": {"probe_s": 0.1, "hang_s": 0.6}}
    with lab(zookeeper, tmp_path, settings=settings) as cluster, observer_of(cluster) as observer:
        old = cluster.wait_settled()
        with Load(observer, rate_per_s=100, reply_limit_s=1.0) as load:
            cluster.wait_for(lambda: load.acknowledged > 50, "writes are acknowledged")
            since, at_ns = clock(), old.signal_redis(signal.SIGSTOP)
            new = cluster.wait_serving(after_epoch=1)
            cluster.wait_for(lambda: load.first_ack(at_ns, after_epoch=1, confirmed=True), "writes go on")
        assert new is not old
        assert told(old, "redis_killed", since)
        cluster.wait_settled()
        with new.redis() as client:
            assert load.verify(client, everything=True).sound


def test_a_script_that_does_not_end(zookeeper: Ensemble, tmp_path: Path) -> None:
    """A leader that is BUSY is no hung one: the script is killed after the limit, and the leader goes on.

    # case D2
    """
    settings = {"timing": {"probe_s": 0.1, "hang_s": 0.6, "busy_s": 0.5}}
    with lab(zookeeper, tmp_path, 1, settings=settings) as cluster:
        only, since = cluster["n1"], clock()
        pid = only.redis_pid
        outcome: list[str] = []

        def run_script() -> None:
            with only.redis(timeout_s=15) as client:
                try:
                    client.eval("while true do end", 0)
                except redis.ResponseError as error:
                    outcome.append(str(error))

        thread = threading.Thread(target=run_script, daemon=True)
        thread.start()
        thread.join(15)
        assert len(outcome) == 1
        assert "killed" in outcome[0]
        assert told(only, "script_kill", since)
        assert (only.redis_pid, cluster.epoch(), refusal(only)) == (pid, 1, "")
        assert steps(only, since) == []


# --- people who change things ---------------------------------------------------------------------------------------


def test_a_follower_that_somebody_promotes(zookeeper: Ensemble, tmp_path: Path) -> None:
    """Redis boots fenced and stays so: promoted by hand it refuses writes, and is put back.

    # case C1
    """
    with lab(zookeeper, tmp_path) as cluster:
        leader, epoch = cluster.wait_settled(), cluster.epoch()
        follower = next(member for member in cluster if member is not leader)
        before = repointings(follower)
        with follower.redis() as client:
            client.replicaof("NO", "ONE")
            with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
                client.set("key", "value")
        cluster.wait_for(lambda: repointings(follower) == before + 2, "it is put back")
        cluster.wait_settled()
        assert told(follower, "drift", settings="replicaof")
        assert (cluster.serving(), cluster.epoch()) == (leader, epoch)


# --- agents that come and go ----------------------------------------------------------------------------------------


def test_the_leaders_agent_is_killed(zookeeper: Ensemble, tmp_path: Path) -> None:
    """Its Redis acknowledges nothing later than 100 ms after the kill, and lives on; its next life attaches to it.

    # case C3
    """
    with lab(zookeeper, tmp_path) as cluster:
        leader, since = cluster.wait_settled(), clock()
        redis_pid, guard_pid = leader.redis_pid, leader.guard_pid
        with NodeWriter(leader) as writer:
            cluster.wait_for(lambda: len(writer.acks) > 10, "writes are acknowledged")
            killed_at = clock()
            leader.kill()
            cluster.wait_for(lambda: refusal(leader), "it refuses writes")
            leader.start()
            wait_told(cluster, leader, "redis_attached", since)
            late = [at for at in writer.acks if at > killed_at + 0.1]
        assert (leader.redis_pid, leader.guard_pid) == (redis_pid, guard_pid)
        wait_told(cluster, cluster.wait_serving(after_epoch=1), "transition", since, to="leader.serving")
        served = [
            each["clock"] for member in cluster for each in told(member, "transition", since, to="leader.serving")
        ]
        served_at = min(served)
        assert not [at for at in late if at < served_at]
        cluster.wait_settled()


def test_an_upgrade_of_the_agent_alone(zookeeper: Ensemble, tmp_path: Path) -> None:
    """SIGUSR2 to a leader, then to a follower: the same process runs the program anew, on the same Redis and guard.

    # case E6
    """
    with lab(zookeeper, tmp_path) as cluster:
        leader = cluster.wait_settled()
        write(leader, 100)
        cluster.wait_settled()
        before = (leader.pid, leader.redis_pid, leader.guard_pid)
        # The second time it is a follower.
        for _ in range(2):
            since = clock()
            leader.upgrade()
            wait_told(cluster, leader, "redis_attached", since)
            new = cluster.wait_settled()
            assert (leader.pid, leader.redis_pid, leader.guard_pid) == before
            assert new is not leader, "it has handed over, and is a follower now"
        cluster.wait_for(lambda: [keys(member) for member in cluster] == [100, 100, 100], "everybody has the keys")


def test_told_to_stop_while_the_program_begins_anew(zookeeper: Ensemble, tmp_path: Path) -> None:
    """SIGTERM right behind SIGUSR2, at whatever moment it comes: an orderly end, and nothing is left running.

    # case E5
    """
    with lab(zookeeper, tmp_path) as cluster:
        leader = cluster.wait_settled()
        follower = next(member for member in cluster if member is not leader)
        since = clock()
        follower.upgrade()
        # Behind this line comes the new program: there nobody handles signals yet.
        wait_told(cluster, follower, "stopped", since, reason="upgrade")
        follower.terminate()
        assert follower.wait(15) == 0
        assert (follower.redis_pid, follower.guard_pid) == (None, None)


def test_a_guard_whose_socket_was_removed_is_replaced(zookeeper: Ensemble, tmp_path: Path) -> None:
    """Nothing but its arguments tells whose it is: the agent's next life ends it, and Redis with it, and starts anew.

    # case C8
    """
    with lab(zookeeper, tmp_path) as cluster:
        leader = cluster.wait_settled()
        follower = next(member for member in cluster if member is not leader)
        redis_pid = follower.redis_pid
        follower.kill()
        (follower.run_dir / SOCKET_NAME).unlink()
        for left in follower.state_dir.iterdir():
            left.unlink()
        since = clock()
        follower.start()
        wait_told(cluster, follower, "redis_up", since)
        cluster.wait_settled()
        assert follower.redis_pid not in (None, redis_pid)


def test_a_wrong_setting_ends_the_agent_and_not_its_redis(zookeeper: Ensemble, tmp_path: Path) -> None:
    """An agent that refuses its settings leaves Redis alone; with the settings mended it attaches.

    # case D6
    """
    with lab(zookeeper, tmp_path) as cluster:
        leader = cluster.wait_settled()
        write(leader, 10)
        follower = next(member for member in cluster if member is not leader)
        cluster.wait_for(lambda: keys(follower) == 10, "it has the keys")
        since, redis_pid = clock(), follower.redis_pid
        follower.kill()
        follower.configure({"timing": {"heartbeat_s": 100.0}})
        follower.start()
        assert follower.wait(10) == 2
        assert follower.redis_pid == redis_pid
        assert keys(follower) == 10
        follower.configure({"timing": {"heartbeat_s": 0.1}})
        follower.start()
        wait_told(cluster, follower, "redis_attached", since)
        cluster.wait_settled()
        assert follower.redis_pid == redis_pid


# --- what is refused at the start -----------------------------------------------------------------------------------


@pytest.fixture
def alone(zookeeper: Ensemble, tmp_path: Path) -> Iterator[AgentProcess]:
    """An agent that was not started yet."""
    with unstarted(lab(zookeeper, tmp_path, 1)) as cluster:
        yield cluster["n1"]


def ends_with(member: AgentProcess, *words: str) -> None:
    """The agent ends at once with exit 2 and says this."""
    member.start()
    assert member.wait(10) == 2
    said = member.log_text()
    for word in words:
        assert word in said, said
    assert member.redis_pid is None


def test_a_wrong_redis_conf(alone: AgentProcess) -> None:
    """Redis's own words and the file, not a crash loop.

    # case D6
    """
    alone.configure(redis_conf="maxmemory plenty")
    ends_with(alone, "FATAL CONFIG FILE ERROR", "argument must be a memory value", str(alone.directory / "redis.conf"))
    assert len(told(alone, "redis_died")) == 1


def test_a_missing_binary(alone: AgentProcess) -> None:
    """The name and what to do.

    # case D6
    """
    alone.configure({"redis": {"binary": "redis-server-of-nowhere"}})
    ends_with(alone, "[redis] binary: redis-server-of-nowhere is not an executable in PATH; install it")


def test_a_port_in_use(alone: AgentProcess) -> None:
    """The port and its holder: this very process.

    # case D6
    """
    with socket.create_server(("127.0.0.1", alone.address.port)):
        ends_with(alone, f"port {alone.address.port}", "in use by", str(psutil.Process().pid))


def test_a_data_directory_in_use(zookeeper: Ensemble, tmp_path: Path) -> None:
    """The directory and the Redis that works in it, which is not disturbed.

    # case D6
    """
    with lab(zookeeper, tmp_path, 2, settings={"cluster": {"bootstrap_expect": 1}}) as cluster:
        leader = cluster.wait_settled()
        other = next(member for member in cluster if member is not leader)
        assert other.stop() == 0
        other.configure({"redis": {"data_dir": str(leader.data_dir)}})
        ends_with_pid = leader.redis_pid
        other.start()
        assert other.wait(10) == 2
        said = other.log_text()
        assert f"data directory {leader.data_dir}: in use by" in said
        assert str(ends_with_pid) in said
        assert leader.redis_pid == ends_with_pid


# --- secrets --------------------------------------------------------------------------------------------------------


def test_a_cluster_with_a_password(zookeeper: Ensemble, tmp_path: Path) -> None:
    """Replication, fences and failover work with a password; it is neither in a command line nor in a log.

    # case D7
    """
    secret = "correct-horse-battery-staple"
    with (
        lab(zookeeper, tmp_path, password=secret) as cluster,
        observer_of(cluster) as observer,
        Load(observer, rate_per_s=100, password=secret) as load,
    ):
        old = cluster.wait_settled()
        assert all(member.unix_socket is not None for member in cluster)
        at_ns = old.kill_redis()
        new = cluster.wait_serving(after_epoch=1)
        cluster.wait_for(lambda: load.first_ack(at_ns, after_epoch=1, confirmed=True), "writes go on")
        cluster.wait_settled()
        load.stop()
        assert new is not old
        with new.redis() as client:
            assert load.verify(client, everything=True).sound
        for member in cluster:
            assert member.pid
            family = [psutil.Process(member.pid), *psutil.Process(member.pid).children(recursive=True)]
            assert len(family) > 1
            assert secret not in " ".join(word for process in family for word in process.cmdline())
            assert secret not in member.log_text()
            assert (member.run_dir / "redis.conf").stat().st_mode & 0o077 == 0


# --- status ---------------------------------------------------------------------------------------------------------


def test_status_of_a_live_cluster(zookeeper: Ensemble, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`redis-agent status --json` shows each member's role and state; the exit code says whether the cluster is well.

    # case G1
    """
    with lab(zookeeper, tmp_path) as cluster:
        leader = cluster.wait_settled()
        command = ["status", "--config", str(leader.config_path), "--json"]

        def look() -> Any:
            return json.loads(capsys.readouterr().out) if main(command) == 0 else None

        told_ = cluster.wait_for(look, "status says that all is well")
        members = {member["name"]: member for member in told_["members"]}
        assert {name: member["role"] for name, member in members.items()} == {
            member.name: "primary" if member is leader else "replica" for member in cluster
        }
        assert members[leader.name]["state"] == "leader.serving"
        follower = next(member for member in cluster if member is not leader)
        follower.kill()
        cluster.wait_for(lambda: cluster.presence(follower.name) is None, "its session ends")
        capsys.readouterr()
        assert main(command) == 1
        told_ = json.loads(capsys.readouterr().out)
        assert told_["well"] is False
        assert follower.name in " ".join(told_["reasons"])
