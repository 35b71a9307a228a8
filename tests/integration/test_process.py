"""The local redis-server: how it boots, dies and is stopped, and what is refused before it is launched."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import redis

from redis_agent.lab.ports import free_port
from redis_agent.lab.waiting import wait_for
from redis_agent.messages import Probe, Promote, RedisDied, RedisUp, StartRedis, StopRedis
from redis_agent.process_host import end_process, is_alive, start_time_s
from redis_agent.redis_conf import FENCED, LaunchRefused
from redis_agent.replication import NOWHERE
from tests.support.redis import LocalRedis, server_binary

SECRET = 'open "sesame" \\ 1'

HOSTILE = """
replicaof 127.0.0.1 2
min-replicas-to-write 0
min-replicas-max-lag 0
replica-read-only no
repl-diskless-load swapdb
repl-backlog-ttl 1
daemonize yes
supervised systemd
slaveof 127.0.0.1 3
min-slaves-to-write 0
"""


def test_it_boots_fenced_whatever_the_operators_file_says(tmp_path: Path) -> None:
    """Case C7 (part): a hostile redis.conf does not lift the fence, and neither does CONFIG REWRITE.

    Booted, it is a replica of nowhere; promoted by hand it refuses writes; what the protocol needs is pinned.
    """
    with LocalRedis(tmp_path, HOSTILE) as local:
        for _ in range(2):
            up = local.start()
            assert up.info.primary == NOWHERE
            probed = local.ask(Probe)
            assert probed.drift == (("min-replicas-to-write", str(FENCED)),)
            client = local.client()
            client.replicaof("NO", "ONE")
            with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
                client.set("a", 1)
            # Now somebody lifts the fence for good, or so they think.
            client.config_set("min-replicas-to-write", 0)
            client.config_rewrite()
            client.set("a", 1)
            local.adapter.execute(StopRedis(local.incarnation, 5.0))
            local.expect(RedisDied)


def test_the_generated_file_is_private(tmp_path: Path) -> None:
    """It may hold a password, so nobody else can read it, nor reach the unix socket."""
    with LocalRedis(tmp_path, password=SECRET) as local:
        local.start()
        assert (local.directory / "run").stat().st_mode & 0o077 == 0
        assert (local.directory / "run" / "redis.conf").stat().st_mode & 0o077 == 0
        assert (local.directory / "run" / "redis.sock").stat().st_mode & 0o077 == 0


def test_death_is_noticed_at_once(tmp_path: Path) -> None:
    """Killed from outside, it is reported within a blink, with the signal, as not ordered."""
    with LocalRedis(tmp_path) as local:
        up = local.start()
        killed_at = time.monotonic()
        os.kill(up.pid, signal.SIGKILL)
        died = local.expect(RedisDied)
        # Half a millisecond when the machine is idle.
        assert time.monotonic() - killed_at < 0.1
        assert (died.status, died.was_up, died.ordered) == (-signal.SIGKILL, True, False)


def test_each_start_is_a_process_of_its_own(tmp_path: Path) -> None:
    """After a death the next incarnation starts in the same place, and is told apart from the one before."""
    with LocalRedis(tmp_path) as local:
        first = local.start()
        os.kill(first.pid, signal.SIGKILL)
        local.expect(RedisDied)
        second = local.start()
        assert second.incarnation == first.incarnation + 1
        assert second.info.run_id != first.info.run_id
        assert is_alive(second.pid, second.create_time)
        assert not is_alive(first.pid, first.create_time)


# --- what Redis itself refuses ---------------------------------------------------------------------------------------


def test_a_wrong_redis_conf_is_reported_in_redis_own_words(tmp_path: Path) -> None:
    """Case D6 (part): the message names the file, the line, the directive and what is wrong with it."""
    with LocalRedis(tmp_path, "maxmemory lots") as local:
        local.launch()
        died = local.expect(RedisDied)
        assert not died.was_up
        assert died.status == 1
        for part in (str(local.conf), "FATAL CONFIG FILE ERROR", "at line 3", "maxmemory lots", "memory value"):
            assert part in died.last_words
        assert "\n" not in died.last_words


def test_the_last_words_of_a_redis_with_its_own_log_file_are_found_there(tmp_path: Path) -> None:
    """With ``logfile`` set Redis says nothing to the agent, so the agent reads what was added to the file."""
    with LocalRedis(tmp_path, "logfile redis.log\nappendonly no") as local:
        log = local.data_dir / "redis.log"
        log.write_text("old news\n", encoding="utf-8")
        (local.data_dir / "dump.rdb").write_bytes(b"REDIS0010 and then nonsense")
        local.launch()
        died = local.expect(RedisDied)
        assert not died.was_up
        assert "RDB" in died.last_words
        assert "old news" not in died.last_words
        assert not Path("redis.log").exists(), "nor is another one left where the agent was started"


@pytest.mark.parametrize(
    ("conf", "settings", "words"),
    [
        ('rename-command CONFIG ""', {}, ("CONFIG SET", "unknown command", "rename-command")),
        ("rename-command REPLICAOF hidden", {}, ("REPLICAOF", "rename-command")),
        ("user agent on >pw ~* +@all -client", {"username": "agent", "password": "pw"}, ("CLIENT", "user agent")),
        ("user agent on >pw ~* +@all", {"username": "agent", "password": "wrong"}, ("WRONGPASS", "user agent")),
        ("user default on >pw ~* +@all", {}, ("NOAUTH", "no password")),
    ],
)
def test_a_redis_that_does_not_obey_is_refused(
    tmp_path: Path, conf: str, settings: dict[str, str], words: tuple[str, ...]
) -> None:
    """Commands that are renamed or denied, and wrong credentials, end the start with one line that names the remedy."""
    with LocalRedis(tmp_path, conf, **settings) as local:
        local.launch()
        died = local.expect(RedisDied)
        assert not died.was_up
        for word in words:
            assert word in died.last_words
        assert "\n" not in died.last_words


# --- what is refused before the launch -------------------------------------------------------------------------------


def refusal(local: LocalRedis) -> str:
    with pytest.raises(LaunchRefused) as caught:
        local.adapter.check()
    text = str(caught.value)
    assert "\n" not in text
    return text


def test_a_free_host_is_not_refused(tmp_path: Path) -> None:
    """Nothing stands in the way: the check passes, and leaves nothing behind."""
    with LocalRedis(tmp_path) as local:
        local.adapter.check()
        assert not (local.directory / "run").exists()


def test_a_port_in_use_names_its_holder(tmp_path: Path) -> None:
    """Case D6 (part): process id and command of whoever has the port."""
    with socket.create_server(("127.0.0.1", 0)) as holder, LocalRedis(tmp_path, port=holder.getsockname()[1]) as local:
        text = refusal(local)
        assert f"port {local.address.port}" in text
        assert f"process {os.getpid()}" in text


def test_a_data_directory_in_use_names_its_holder(tmp_path: Path) -> None:
    """Case D6 (part): another redis-server works there."""
    with LocalRedis(tmp_path / "a") as first:
        up = first.start()
        with LocalRedis(tmp_path / "b", data_dir=first.data_dir) as second:
            text = refusal(second)
            assert str(first.data_dir) in text
            assert f"process {up.pid}" in text


def test_missing_pieces_are_named(tmp_path: Path) -> None:
    """Case D6 (part): binary, redis.conf, data directory; and cluster mode, which is not supported."""
    with LocalRedis(tmp_path / "a", binary="no-such-server") as local:
        assert "no-such-server" in refusal(local)
        local.launch()
        died = local.expect(RedisDied)
        assert not died.was_up
        assert "no-such-server" in died.last_words
    with LocalRedis(tmp_path / "b", conf="") as local:
        local.conf.unlink()
        assert str(local.conf) in refusal(local)
    with LocalRedis(tmp_path / "c") as local:
        shutil.rmtree(local.data_dir)
        assert str(local.data_dir) in refusal(local)
    with LocalRedis(tmp_path / "d", "cluster-enabled yes") as local:
        assert "cluster-enabled" in refusal(local)
    with LocalRedis(tmp_path / ("e" * 100)) as local:
        assert "socket" in refusal(local)


# --- secrets ---------------------------------------------------------------------------------------------------------


def test_password_and_unix_socket(tmp_path: Path) -> None:
    """Case D7 (part): the password protects Redis, the agent uses it, and it is neither in argv nor environment."""
    with LocalRedis(tmp_path, password=SECRET) as local:
        up = local.start()
        with pytest.raises(redis.AuthenticationError):
            local.client(password=None).ping()
        assert local.client().config_get("masterauth") == {"masterauth": SECRET}
        process = psutil.Process(up.pid)
        assert not any(SECRET in word for word in process.cmdline())
        assert SECRET not in Path(f"/proc/{up.pid}/environ").read_text(encoding="utf-8")
        assert not any(SECRET in line for line in local.output)


def test_the_operators_own_password_is_used(tmp_path: Path) -> None:
    """Case D7 (part): without a password of its own the agent takes requirepass, also towards the primary."""
    with LocalRedis(tmp_path, "requirepass from-the-file") as local:
        local.start()
        assert local.client(password="from-the-file").config_get("masterauth") == {"masterauth": "from-the-file"}


def test_an_acl_user_is_enough(tmp_path: Path) -> None:
    """Case D7 (part): agent and replication use an ACL user while the default user is off."""
    conf = "user default off\nuser agent on >pw ~* &* +@all"
    with LocalRedis(tmp_path, conf, username="agent", password="pw") as local:
        up = local.start()
        assert isinstance(local.ask(Promote, run_id=up.info.run_id).info.backlog, bool)
        assert local.client().config_get("masteruser") == {"masteruser": "agent"}


def test_last_words_hold_no_secret(tmp_path: Path) -> None:
    """Case D7 (part): Redis quotes the offending line, the agent takes the password out of it."""
    with LocalRedis(tmp_path, "requirepass swordfish and more") as local:
        local.launch()
        died = local.expect(RedisDied)
        assert "requirepass ***" in died.last_words
        assert "swordfish" not in died.last_words
        assert not any("swordfish" in line for line in local.output)


# --- the end ---------------------------------------------------------------------------------------------------------


def test_an_orderly_stop_saves_what_the_configuration_says(tmp_path: Path) -> None:
    """Stopped in order it writes its dump, exits 0 and has the data again afterwards."""
    with LocalRedis(tmp_path, "save 3600 1") as local:
        local.start()
        local.lead()
        local.client().set("kept", "yes")
        local.adapter.execute(StopRedis(local.incarnation, 5.0))
        died = local.expect(RedisDied)
        assert (died.status, died.was_up, died.ordered) == (0, True, True)
        assert local.start().info.keys == 1


def test_a_redis_that_does_not_stop_is_killed(tmp_path: Path) -> None:
    """Stopped by SIGSTOP it can't obey SIGTERM: the limit ends it."""
    with LocalRedis(tmp_path) as local:
        up = local.start()
        os.kill(up.pid, signal.SIGSTOP)
        local.adapter.execute(StopRedis(local.incarnation, 0.2))
        died = local.expect(RedisDied, 2.0)
        assert (died.status, died.ordered) == (-signal.SIGKILL, True)


def test_a_killed_redis_takes_its_saving_child_along(tmp_path: Path) -> None:
    """A child that saves would hold the clients' sockets open, and write its dump."""
    with LocalRedis(tmp_path, "repl-diskless-sync yes\nrdb-key-save-delay 10000000") as local:
        up = local.start()
        local.lead()
        client = local.client()
        client.mset({f"key{number}": "x" for number in range(100)})
        # An older Redis may still be ending the dump that the promotion made it begin.
        wait_for(lambda: not client.info("persistence")["rdb_bgsave_in_progress"], 5.0, "no dump is under way")
        client.bgsave()
        saver = wait_for(lambda: psutil.Process(up.pid).children(), 5.0, "a child saves")[0]
        os.kill(up.pid, signal.SIGKILL)
        local.expect(RedisDied)
        wait_for(lambda: not saver.is_running() or saver.status() == psutil.STATUS_ZOMBIE, 2.0, "the child is dead")
        assert not (local.data_dir / "dump.rdb").exists()


def test_init_is_answered_by_the_agent_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither Redis nor the guard gets the socket by which the agent tells init that it is ready, and lives."""
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    with LocalRedis(tmp_path, "supervised auto") as local:
        up = local.start()
        guard = psutil.Process(up.pid).parent()
        assert guard is not None
        for pid in (up.pid, guard.pid):
            environ = Path(f"/proc/{pid}/environ").read_text(encoding="utf-8")
            assert "NOTIFY_SOCKET" not in environ
            assert "WATCHDOG" not in environ


def test_a_predecessors_redis_is_ended_only_if_it_is_the_recorded_one(tmp_path: Path) -> None:
    """A process id that now is another process's is left alone."""
    server = subprocess.Popen([server_binary(), "--port", str(free_port()), "--dir", str(tmp_path), "--save", ""])
    try:
        started_s = start_time_s(server.pid)
        assert started_s is not None
        assert end_process(server.pid, started_s + 1, 1.0)
        assert server.poll() is None
        # A child of ours stays a zombie until it is waited for, and that counts as gone.
        assert end_process(server.pid, started_s, 2.0)
        assert server.wait(timeout=2.0) == -signal.SIGKILL
        assert end_process(server.pid, started_s, 1.0)
    finally:
        server.kill()
        server.wait()


def test_a_start_that_is_killed_is_reported_once(tmp_path: Path) -> None:
    """Killed right after the launch: one RedisDied, never a RedisUp behind it."""
    with LocalRedis(tmp_path) as local:
        local.launch()
        local.adapter.execute(StopRedis(local.incarnation, 0.0))
        events = [local.next_event()]
        while not isinstance(events[-1], RedisDied):
            events.append(local.next_event())
        assert [type(event) for event in events] in ([RedisDied], [RedisUp, RedisDied])
        assert local.events.empty()


def test_two_starts_at_once_are_a_broken_invariant(tmp_path: Path) -> None:
    """One data directory has one Redis: to order another one while it runs is an error of the program."""
    with LocalRedis(tmp_path) as local:
        local.start()
        with pytest.raises(RuntimeError, match="still runs"):
            local.adapter.execute(StartRedis(local.incarnation + 1))
