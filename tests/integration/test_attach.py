"""The agent comes and goes, its Redis stays: leaving, attaching, and a guard that is dead, stopped or another's."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis

from redis_agent.guard_link import SOCKET_NAME, GuardLink
from redis_agent.lab.waiting import wait_for
from redis_agent.messages import (
    ArmGuard,
    DisarmGuard,
    Follow,
    Freeze,
    GuardDone,
    GuardFailed,
    KillRedis,
    LeaveRedis,
    LiftFence,
    Probe,
    ProbeError,
    Promote,
    RedisAwaited,
    RedisDied,
    RedisLeft,
    RedisRefused,
    RedisUp,
    RoleFailed,
    StopRedis,
)
from redis_agent.process_host import is_alive, start_time_s
from redis_agent.redis_conf import FENCED, LaunchRefused
from redis_agent.replication import NOWHERE
from tests.support.redis import QUICK_SYNC, LocalRedis, MakeRedis, clock, follow, make_redis

__all__ = ["make_redis"]


def next_life(local: LocalRedis, conf: str = "", **settings: Any) -> LocalRedis:
    """Another agent of the same directory and port; the one before has let go, or is dead."""
    return LocalRedis(local.directory, conf, port=local.address.port, **settings)


def leave(local: LocalRedis) -> None:
    """LeaveRedis, and what the agent does when it exits."""
    local.adapter.execute(LeaveRedis(local.incarnation))
    local.expect(RedisLeft)
    local.alive = False
    local.adapter.close()


def guard_of(up: RedisUp) -> psutil.Process:
    guard = psutil.Process(up.pid).parent()
    assert guard is not None
    return guard


def is_gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def own_connections(local: LocalRedis) -> dict[str, str]:
    """Ids and names of the agent's and the guard's connections."""
    found = {row["id"]: row["name"] for row in local.client().client_list()}
    return {number: name for number, name in found.items() if name.startswith("redis-agent-")}


# --- leaving and attaching ------------------------------------------------------------------------------------------


def test_redis_is_left_to_the_next_life(make_redis: MakeRedis) -> None:
    """The same process, with its role and its data, fenced; nothing of the earlier life is connected to it any more."""
    primary, first = make_redis(QUICK_SYNC), make_redis()
    primary.lead()
    primary.client().set("a", 1)
    follow(first, primary)
    before = first.up
    assert before is not None
    connections = own_connections(first)
    leave(first)
    assert first.events.empty()
    with next_life(first) as second:
        assert second.adapter.find_old() == (before.pid, before.create_time)
        second.adapter.check()
        up = second.start()
        assert up.attached
        assert (up.pid, up.create_time, up.info.run_id) == (before.pid, before.create_time, before.info.run_id)
        assert up.info.primary == primary.address, "it goes on following whom it followed"
        assert second.ask(Probe).drift == (("min-replicas-to-write", str(FENCED)),)
        now = own_connections(second)
        assert sorted(now.values()) == sorted(connections.values())
        guards = {number for number, name in connections.items() if name == "redis-agent-guard"}
        assert set(now) & set(connections) == guards
        assert second.done(Follow, primary=primary.address).keys == 1
        # Only the first start of a life attaches.
        os.kill(up.pid, signal.SIGKILL)
        assert second.expect(RedisDied).status == -signal.SIGKILL
        fresh = second.start()
        assert not fresh.attached
        assert fresh.info.primary == NOWHERE


def test_a_redis_that_was_left_open_is_found_fenced(make_redis: MakeRedis) -> None:
    """Its agent went while it led, and no guard was armed: once the next life knows it, nobody writes to it."""
    first = make_redis()
    first.lead()
    first.client().set("a", 1)
    leave(first)
    with next_life(first) as second:
        assert second.start().attached
        assert second.ask(Probe).drift == (("min-replicas-to-write", str(FENCED)),)
        with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
            second.client().set("a", 2)
        assert second.client().get("a") == "1"


ORPHAN = """
    import sys, time
    from pathlib import Path
    sys.path[:0] = sys.argv[1].split(":")
    from redis_agent.messages import ArmGuard, GuardDone
    from tests.support.redis import LocalRedis, clock
    local = LocalRedis(Path(sys.argv[2]))
    up = local.start()
    if sys.argv[3] == "leads":
        assert isinstance(local.ask(ArmGuard, until=clock() + 60), GuardDone)
        local.lead()
    print(up.pid, local.address.port, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("role", ["leads", "follows"])
def test_an_agent_that_is_killed(tmp_path: Path, role: str) -> None:
    """One that led leaves a fenced Redis within 100 ms; one that did not leaves it as it is. The next life attaches.

    # case C3
    """
    command = [sys.executable, "-c", textwrap.dedent(ORPHAN), ":".join(sys.path), str(tmp_path), role]
    agent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert agent.stdout is not None
    pid, port = map(int, agent.stdout.readline().split())
    started_s = start_time_s(pid)
    assert started_s is not None
    with LocalRedis(tmp_path, port=port) as second:
        client = second.client()
        client.ping()

        def fenced() -> bool:
            value: str = client.config_get("min-replicas-to-write")["min-replicas-to-write"]
            return value == str(FENCED)

        assert fenced() == (role == "follows")
        agent.kill()
        killed_at = time.monotonic()
        wait_for(fenced, 1.0, "Redis is fenced", pause_s=0.001)
        assert time.monotonic() - killed_at < 0.1
        agent.wait()
        agent.stdout.close()
        assert is_alive(pid, started_s)
        up = second.start()
        assert (up.attached, up.pid) == (True, pid)
        assert up.info.is_primary == (role == "leads")
        told = [line for line in second.output if line.startswith("guard: fenced redis-server")]
        assert len(told) == (1 if role == "leads" else 0)


def test_settings_that_changed_meanwhile(make_redis: MakeRedis) -> None:
    """Redis is attached to by the password that it was started with, and that it has other settings is said."""
    first = make_redis("requirepass old")
    before = first.up
    assert before is not None
    leave(first)
    with next_life(first, "requirepass new\nmaxclients 500") as second:
        up = second.start()
        assert (up.attached, up.pid) == (True, before.pid)
        assert any("takes effect at the next start" in line for line in second.output)
        assert second.info().run_id == before.info.run_id
        second.adapter.execute(StopRedis(second.incarnation, 5.0))
        second.expect(RedisDied)
        assert not second.start().attached
        assert second.client(password="new").ping()


def let_go(local: LocalRedis) -> None:
    """What the core orders when it has heard RedisRefused."""
    local.adapter.execute(LeaveRedis(local.incarnation))
    local.expect(RedisLeft)
    local.alive = False
    local.adapter.close()


def test_a_redis_whose_password_was_changed_is_left_alone(make_redis: MakeRedis) -> None:
    """Neither password opens it: it lives on with its data, and one line says why. With the right one it is taken."""
    first = make_redis("requirepass old")
    before = first.up
    assert before is not None
    first.lead()
    client = first.client(password="old")
    client.set("kept", "yes")
    client.config_set("requirepass", "rotated")
    leave(first)
    with next_life(first, "requirepass new") as second:
        second.launch()
        refused = second.expect(RedisRefused)
        assert refused.reason.startswith(f"redis-server {before.pid} is left running, fenced: ")
        assert "does not accept the password that was given for user default" in refused.reason
        assert str(second.conf) in refused.reason
        assert "\n" not in refused.reason
        assert not {"old", "new", "rotated"} & set(refused.reason.replace(",", " ").split())
        let_go(second)
    assert is_alive(before.pid, before.create_time)
    assert client.get("kept") == "yes"
    with next_life(first, "requirepass rotated") as third:
        up = third.start()
        assert (up.attached, up.pid) == (True, before.pid)
        assert up.info.keys == 1


def test_a_redis_that_took_our_rights_away_is_left_alone(make_redis: MakeRedis) -> None:
    """The user may do nothing with CONFIG any more: Redis lives on, nothing of us is connected, and what is missing is
    said. An administrator who gives the right back has all as it was.
    """
    first = make_redis()
    before = first.up
    assert before is not None
    first.client().acl_setuser("boss", enabled=True, passwords=["+boss"], keys=["*"], categories=["+@all"])
    client = first.client(username="boss", password="boss")
    client.execute_command("ACL", "SETUSER", "default", "-config")
    leave(first)
    with next_life(first) as second:
        second.launch()
        refused = second.expect(RedisRefused)
        assert "refuses CONFIG SET to the agent" in refused.reason
        assert "or allow them to user default" in refused.reason
        names = {row["name"] for row in client.client_list()}
        assert not [name for name in names if name in ("redis-agent-role", "redis-agent-monitor")]
        let_go(second)
    assert is_alive(before.pid, before.create_time)
    client.execute_command("ACL", "SETUSER", "default", "+config")
    with next_life(first) as third:
        assert third.start().pid == before.pid


def test_a_redis_that_was_launched_for_nothing_is_ended(make_redis: MakeRedis, tmp_path: Path) -> None:
    """It has nothing but what is on its disk: there is no reason to leave it."""
    with LocalRedis(tmp_path / "new", "rename-command REPLICAOF ''") as local:
        local.launch()
        died = local.expect(RedisDied)
        assert died.status == -signal.SIGKILL
        assert "refuses REPLICAOF" in died.last_words


def test_a_redis_that_died_meanwhile_is_told_of(make_redis: MakeRedis) -> None:
    """Its status and its last words are in the next life's log, and another one is launched."""
    first = make_redis()
    assert first.up is not None
    guard = guard_of(first.up)
    leave(first)
    os.kill(first.up.pid, signal.SIGTERM)
    wait_for(lambda: is_gone(psutil.Process(first.up.pid)) if first.up else False, 5.0, "Redis is dead")
    with next_life(first) as second:
        assert second.adapter.find_old() is None
        assert any("bye bye" in line for line in second.output)
        assert "redis-server has died while it had no agent (status 0)" in second.output
        wait_for(lambda: is_gone(guard), 1.0, "its guard has ended")
        assert not second.start().attached


def test_a_hung_redis_is_attached_to_when_it_answers(make_redis: MakeRedis) -> None:
    """Nothing is told as long as it hangs; it can be killed meanwhile, and counts as one that was up."""
    first = make_redis()
    assert first.up is not None
    leave(first)
    os.kill(first.up.pid, signal.SIGSTOP)
    with next_life(first) as second:
        second.launch()
        wait_for(lambda: second.adapter._current.process, 1.0, "it tries")
        os.kill(first.up.pid, signal.SIGCONT)
        up = second.expect(RedisUp)
        assert up.attached
        leave(second)
    os.kill(first.up.pid, signal.SIGSTOP)
    with next_life(first) as third:
        third.launch()
        third.adapter.execute(KillRedis(third.incarnation, "it hangs"))
        died = third.expect(RedisDied, 1.0)
        assert (died.status, died.was_up) == (-signal.SIGKILL, True)


def test_a_paused_redis_shows_that_it_lives(make_redis: MakeRedis) -> None:
    """An operator's CLIENT PAUSE of all commands lets nobody attach, and is told again and again, as no hang is."""
    first = make_redis()
    assert first.up is not None
    leave(first)
    first.client().execute_command("CLIENT", "PAUSE", 2000, "ALL")
    with next_life(first, busy_after_s=0.2) as second:
        second.launch()
        for _ in range(3):
            assert second.expect(RedisAwaited).error is ProbeError.PAUSED
        assert second.expect(RedisUp).pid == first.up.pid


def test_a_full_redis_shows_that_it_lives(make_redis: MakeRedis) -> None:
    """Clients take all slots while the agent is away: Redis says so, which no hung one does.

    # case D3
    """
    first = make_redis("maxclients 10")
    assert first.up is not None
    leave(first)
    clients: list[Any] = []
    with suppress(redis.ConnectionError):
        while len(clients) < 20:
            clients.append(first.client())
            clients[-1].ping()
    assert len(clients) < 20
    with next_life(first) as second:
        second.launch()
        for _ in range(3):
            assert second.expect(RedisAwaited).error is ProbeError.REFUSED
        for client in clients:
            client.close()
        assert second.expect(RedisUp).pid == first.up.pid


def test_a_busy_redis_shows_that_it_lives(make_redis: MakeRedis) -> None:
    """A long script lets nobody attach either; when somebody has ended it the agent attaches."""
    first = make_redis(busy_after_s=0.05)
    assert first.up is not None
    leave(first)
    other, killer = first.client(socket_timeout=0.2), first.client()
    killer.ping()
    with pytest.raises(redis.TimeoutError):
        other.eval("while true do end", 0)
    with next_life(first) as second:
        second.launch()
        for _ in range(3):
            assert second.expect(RedisAwaited).error is ProbeError.BUSY
        killer.script_kill()
        assert second.expect(RedisUp).pid == first.up.pid


def test_another_agents_redis_is_refused(make_redis: MakeRedis, tmp_path: Path) -> None:
    """Two agents with one run directory: the second one is told whose it is, and nothing is done to Redis."""
    first = make_redis()
    with next_life(first) as second:
        with pytest.raises(LaunchRefused, match=f"process {os.getpid()} is the agent of this redis-server; stop that"):
            second.adapter.check()
        second.launch()
        assert "stop that agent first" in second.expect(RedisDied).last_words
    assert first.info().primary == NOWHERE


# --- the guard's own troubles ---------------------------------------------------------------------------------------


def test_arming_and_disarming_are_answered(make_redis: MakeRedis) -> None:
    """By GuardDone while the guard lives; by GuardFailed, once, when Redis is dead or of another incarnation."""
    local = make_redis()
    assert isinstance(local.ask(ArmGuard, until=clock() + 60), GuardDone)
    assert isinstance(local.ask(DisarmGuard), GuardDone)
    assert isinstance(local.ask(DisarmGuard, incarnation=7), GuardFailed)
    assert local.up is not None
    guard = guard_of(local.up)
    guard.suspend()
    local.adapter.execute(ArmGuard(local.incarnation, 1000, clock() + 60))
    local.adapter.execute(KillRedis(local.incarnation, "no acknowledgement"))
    assert local.expect(GuardFailed).request == 1000
    local.expect(RedisDied)
    assert isinstance(local.ask(ArmGuard, until=clock() + 60), GuardFailed)


def test_a_guard_that_can_not_be_told_over_which_connection(make_redis: MakeRedis) -> None:
    """The fence is not lifted: the guard, if it went on and had to fence, would not know which connection to close.

    # case C8
    """
    local = make_redis()
    frozen = local.done(Freeze, kill_clients=True)
    local.done(Promote, run_id=frozen.run_id)
    assert local.up is not None
    guard = guard_of(local.up)
    guard.suspend()
    # Until its socket takes no more.
    for request in range(1000, 100_000):
        local.adapter.execute(ArmGuard(local.incarnation, request, clock() + 60))
        if not local.events.empty():
            break
    assert "reads nothing" in local.expect(GuardFailed).reason
    refused = local.ask(LiftFence, at_least=0)
    assert isinstance(refused, RoleFailed)
    assert (refused.reason, refused.unknown) == ("not sent: the guard can't be told over which connection", False)
    assert local.client().config_get("min-replicas-to-write")["min-replicas-to-write"] == str(FENCED)
    guard.resume()
    local.done(LiftFence, at_least=0)


def test_redis_is_killed_though_its_guard_is_stopped(make_redis: MakeRedis) -> None:
    """At once, by the agent itself; then the guard is killed, and the next start has another one.

    # case C8
    """
    local = make_redis()
    assert local.up is not None
    guard = guard_of(local.up)
    guard.suspend()
    killed_at = time.monotonic()
    local.adapter.execute(KillRedis(local.incarnation, "no acknowledgement"))
    died = local.expect(RedisDied)
    assert time.monotonic() - killed_at < 0.1
    assert (died.status, died.was_up) == (-signal.SIGKILL, True)
    assert guard_of(local.start()).pid != guard.pid
    wait_for(lambda: is_gone(guard), 1.0, "the stopped guard is killed")


def test_a_guard_that_dies_is_a_redis_that_dies(make_redis: MakeRedis) -> None:
    """Redis is dead by the kernel's doing, is reported so with the reason, and can be launched again.

    # case C8
    """
    local = make_redis()
    assert local.up is not None
    guard = guard_of(local.up)
    guard.kill()
    died = local.expect(RedisDied, 1.0)
    assert (died.status, died.was_up) == (-signal.SIGKILL, True)
    wait_for(lambda: f"guard {guard.pid} has ended" in local.output, 1.0, "the reason is told")
    assert not is_alive(local.up.pid, local.up.create_time)
    assert not local.start().attached


def test_a_stopped_guard_is_not_attached_to(make_redis: MakeRedis) -> None:
    """One that does not answer is killed with its Redis: it may be armed, and nobody would know for how long."""
    first = make_redis()
    assert first.up is not None
    guard = guard_of(first.up)
    leave(first)
    guard.suspend()
    with next_life(first) as second:
        assert second.adapter.find_old() is None
        assert any(f"guard {guard.pid} does not answer" in line for line in second.output)
        assert is_gone(guard)
        up = first.up
        wait_for(lambda: not is_alive(up.pid, up.create_time), 1.0, "Redis is dead")
        assert not second.start().attached


def test_nothing_is_left_behind(tmp_path: Path) -> None:
    """After an orderly stop neither guard nor socket is there when the agent exits; a stale socket disturbs nobody."""
    with LocalRedis(tmp_path) as local:
        up = local.start()
        guard = guard_of(up)
        local.adapter.execute(StopRedis(local.incarnation, 5.0))
        local.expect(RedisDied)
        local.adapter.close()
        assert is_gone(guard)
        assert not psutil.pid_exists(guard.pid), "it is reaped"
        path = tmp_path / "run" / SOCKET_NAME
        assert not path.exists()
    with LocalRedis(tmp_path) as other:
        os.kill(guard_of(other.start()).pid, signal.SIGKILL)
        other.expect(RedisDied)
        assert path.exists()
        assert GuardLink.find(path) is None
        assert not other.start().attached
