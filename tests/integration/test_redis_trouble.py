"""A Redis that hangs, is busy, loads, is full or dead; drift; and questions to other members."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

from redis_agent.lab.waiting import wait_for
from redis_agent.messages import (
    CatchUp,
    CaughtUp,
    Fence,
    Follow,
    Freeze,
    KickClients,
    KillRedis,
    LiftFence,
    PauseWrites,
    Probe,
    Probed,
    ProbeError,
    ProbeFailed,
    ProbeRemote,
    Promote,
    RedisDied,
    RedisUp,
    RemoteProbed,
    RoleDone,
    RoleFailed,
    ScriptKill,
    Unpause,
)
from redis_agent.redis_conf import ROLE_CLIENT_NAME
from redis_agent.redis_wire import Wire, WireTimeout
from redis_agent.replication import NOWHERE, Address
from tests.support.redis import QUICK_SYNC, LocalRedis, MakeRedis, clock, follow, make_redis

__all__ = ["make_redis"]


# --- unknown outcomes, hangs and scripts -----------------------------------------------------------------------------


def test_a_hung_redis(make_redis: MakeRedis) -> None:
    """A stopped Redis: the probe times out, a role command is of unknown outcome and bounded, and can't act later.

    When it is continued, what it had not read of the killed connection does not undo the freeze behind it.
    """
    local, elsewhere = make_redis(), Address("127.0.0.1", 2)
    assert local.up is not None
    os.kill(local.up.pid, signal.SIGSTOP)
    probe = local.ask(Probe, limit_s=0.1)
    assert isinstance(probe, ProbeFailed)
    assert probe.error is ProbeError.TIMEOUT
    asked_at = time.monotonic()
    failed = local.ask(Follow, primary=elsewhere, limit_s=0.1)
    assert time.monotonic() - asked_at < 1.0
    assert isinstance(failed, RoleFailed)
    assert failed.unknown
    assert "may yet be executed" in failed.reason
    blocked = local.ask(Fence, limit_s=0.1)
    assert isinstance(blocked, RoleFailed)
    assert not blocked.unknown, "it was not sent, because the connection before it could not be killed"
    os.kill(local.up.pid, signal.SIGCONT)
    assert local.done(Freeze, kill_clients=True).primary == NOWHERE
    for _ in range(20):
        assert local.info().primary == NOWHERE


def test_a_socket_that_accepts_nobody_is_a_timeout(tmp_path: Path) -> None:
    """A Redis that hangs for long has a full backlog: that is silence like any other, not a refusal."""
    with socket.socket(socket.AF_UNIX) as listener, ExitStack() as stack:
        path = str(tmp_path / "s")
        listener.bind(path)
        listener.listen(0)
        for _ in range(2):
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            waiting.connect_ex(path)
        with pytest.raises(WireTimeout):
            Wire.open_unix(path, "", "", 0.05)


def test_a_connection_of_unknown_outcome_is_replaced(make_redis: MakeRedis) -> None:
    """After a timeout the next role command goes over a new connection, and the old one is gone."""
    local = make_redis()
    assert local.up is not None
    watcher = local.client()

    def of_role() -> list[str]:
        return [row["id"] for row in watcher.client_list() if row["name"] == ROLE_CLIENT_NAME]

    old = of_role()
    os.kill(local.up.pid, signal.SIGSTOP)
    failed = local.ask(Fence, limit_s=0.05)
    os.kill(local.up.pid, signal.SIGCONT)
    assert isinstance(failed, RoleFailed)
    assert failed.unknown
    local.done(Fence)
    assert len(of_role()) == len(old) == 1
    assert of_role() != old


def test_a_long_script_is_busy_and_can_be_killed(make_redis: MakeRedis) -> None:
    """Case D2 (part): BUSY is told from a hang; role commands fail for certain; SCRIPT KILL ends it."""
    local = make_redis(busy_after_s=0.05)
    local.lead()
    idle = local.ask(ScriptKill)
    assert isinstance(idle, RoleFailed)
    client = local.client()

    def run_script() -> None:
        with pytest.raises(redis.ResponseError, match="killed"):
            client.eval("while true do end", 0)

    script = threading.Thread(target=run_script)
    script.start()

    def busy() -> bool:
        event = local.ask(Probe, limit_s=0.5)
        return isinstance(event, ProbeFailed) and event.error is ProbeError.BUSY

    wait_for(busy, 5.0, "Redis is busy")
    failed = local.ask(Fence)
    assert isinstance(failed, RoleFailed)
    assert not failed.unknown
    assert isinstance(local.ask(ScriptKill), RoleDone)
    script.join()
    assert isinstance(local.ask(Probe), Probed)


# --- an operator's pause ---------------------------------------------------------------------------------------------


def pause_all(local: LocalRedis, for_s: float) -> None:
    """CLIENT PAUSE of all commands."""
    local.client().execute_command("CLIENT", "PAUSE", round(for_s * 1000), "ALL")


@pytest.mark.parametrize("password", ["", "secret"])
def test_a_pause_is_told_from_a_hang_in_time(make_redis: MakeRedis, password: str) -> None:
    """PAUSED within the probe's own limit, with and without a monitor connection that is open and logged in.

    Stopped during the pause, it is a hang; continued, the monitor's connection is still the same one.
    """
    local = make_redis(password=password)
    assert local.up is not None
    admin = local.client()
    for lost in (False, True):
        if lost:
            for row in admin.client_list():
                if "U" in row["flags"]:
                    admin.client_kill_filter(_id=row["id"])
        else:
            local.info()
        pause_all(local, 1.5)
        for _ in range(2):
            asked_at = time.monotonic()
            failed = local.ask(Probe, limit_s=0.3)
            assert time.monotonic() - asked_at < 0.5
            assert failed.error is ProbeError.PAUSED
        if not lost:
            os.kill(local.up.pid, signal.SIGSTOP)
            assert local.ask(Probe, limit_s=0.3).error is ProbeError.TIMEOUT
            os.kill(local.up.pid, signal.SIGCONT)
        assert isinstance(local.ask(Probe, limit_s=5.0), Probed)


def test_a_probe_after_a_pause_is_fresh(make_redis: MakeRedis) -> None:
    """What was asked during the pause and answered at its end is not taken for the answer to a later probe."""
    local = make_redis()
    local.lead()
    pause_all(local, 0.4)
    assert local.ask(Probe, limit_s=0.15).error is ProbeError.PAUSED
    local.client().set("a", 1)
    assert local.info().keys == 1


def test_a_pause_of_a_full_house_is_no_hang(make_redis: MakeRedis) -> None:
    """With all slots taken Redis says so at once: it is awake, and the monitor keeps its slot through the pause."""
    local = make_redis("maxclients 10")
    local.info()
    admin = local.client()
    with ExitStack() as stack:
        fill(stack, local, admin)
        admin.execute_command("CLIENT", "PAUSE", 700, "ALL")
        for _ in range(2):
            assert local.ask(Probe, limit_s=0.2).error is ProbeError.PAUSED
        assert isinstance(local.ask(Probe, limit_s=5.0), Probed)
        assert isinstance(local.ask(Fence), RoleDone)


def test_a_paused_role_command_never_comes_late(make_redis: MakeRedis) -> None:
    """A command that a pause held back is not executed at its end, once its connection was given up."""
    local = make_redis()
    pause_all(local, 0.5)
    failed = local.ask(LiftFence, at_least=7, limit_s=0.1)
    assert isinstance(failed, RoleFailed)
    assert failed.unknown
    local.done(Fence, limit_s=5.0)
    for _ in range(20):
        assert ("min-replicas-to-write", "1000000") in local.ask(Probe).drift


# --- loading, full houses, death -------------------------------------------------------------------------------------


def test_a_loading_redis_is_up(make_redis: MakeRedis) -> None:
    """Case D2 (part): while it loads its dump it counts as up and answers probes; a freeze fails for certain."""
    local = make_redis("save 3600 1\nrepl-diskless-sync yes\nrdbcompression no\nkey-load-delay 1500")
    local.lead()
    # Redis looks up from loading every 2 MiB.
    local.client().mset({f"key{number}": "x" * 20_000 for number in range(1000)})
    local.client().save()
    assert local.up is not None
    os.kill(local.up.pid, signal.SIGKILL)
    local.expect(RedisDied)
    up = local.start()
    assert up.info.loading
    assert local.info().loading
    failed = local.ask(Freeze, kill_clients=True)
    assert isinstance(failed, RoleFailed)
    assert not failed.unknown
    assert "LOADING" in failed.reason
    wait_for(lambda: not local.info().loading, 20.0, "it is loaded")
    frozen = local.done(Freeze, kill_clients=True)
    assert frozen.keys == 1000
    assert local.done(Promote, run_id=frozen.run_id).backlog


def test_taken_slots_do_not_lock_the_agent_out(make_redis: MakeRedis) -> None:
    """Case D3 (part): with maxclients reached, fence, probe and promotion still work, also without the monitor."""
    local = make_redis("maxclients 10")
    local.lead()
    local.info()
    admin = local.client()
    monitor = next(row for row in admin.client_list() if row["cmd"].startswith("config"))
    with ExitStack() as stack:

        def fill() -> bool:
            for _ in range(12):
                stack.enter_context(socket.create_connection(("127.0.0.1", local.address.port)))
            return admin.info("clients")["connected_clients"] >= 10

        wait_for(fill, 5.0, "all slots are taken")
        local.done(Fence)
        assert local.info().is_primary
        admin.client_kill_filter(_id=monitor["id"])
        wait_for(fill, 5.0, "the monitor's slot is taken")
        assert local.info().is_primary
        local.done(LiftFence, at_least=0)
        frozen = local.done(Freeze, kill_clients=True)
        wait_for(lambda: isinstance(local.ask(Promote, run_id=frozen.run_id), RoleDone), 5.0, "it is promoted")


def fill(stack: ExitStack, local: LocalRedis, admin: Any) -> None:
    """Take all slots and keep them."""

    def full() -> bool:
        for _ in range(12):
            stack.enter_context(socket.create_connection(("127.0.0.1", local.address.port)))
        return bool(admin.info("clients")["connected_clients"] >= 10)

    wait_for(full, 5.0, "all slots are taken")


def test_a_full_house_is_ruled_like_any_other(make_redis: MakeRedis) -> None:
    """Case D3: with every slot taken by clients the whole life of a leader goes on over the connection that is open."""
    primary, local = make_redis(QUICK_SYNC), make_redis(f"maxclients 10\n{QUICK_SYNC}")
    primary.lead()
    follow(local, primary)
    admin = local.client()
    with ExitStack() as stack:
        fill(stack, local, admin)
        frozen = local.done(Freeze, kill_clients=False)
        assert local.done(Promote, run_id=frozen.run_id).backlog
        admin = local.client()
        fill(stack, local, admin)
        local.done(LiftFence, at_least=0)
        assert local.done(PauseWrites, for_s=5.0).is_primary
        local.done(Unpause)
        local.done(Fence)
        assert local.info().is_primary
        local.done(Follow, primary=primary.address)
        local.done(Freeze, kill_clients=False)
        local.done(KickClients)
        assert admin.connection is not None
        with pytest.raises(redis.ConnectionError):
            admin.ping()


def test_a_lost_role_connection_is_replaced_in_silence(make_redis: MakeRedis) -> None:
    """Closed by the other side while nothing was under way, it is opened again: no outcome is unknown."""
    local = make_redis()
    client = local.client()
    for row in client.client_list():
        if "U" in row["flags"]:
            client.client_kill_filter(_id=row["id"])
    local.done(Fence)
    assert isinstance(local.ask(Probe), Probed)


def test_commands_for_a_dead_redis_are_answered(make_redis: MakeRedis) -> None:
    """Each is answered once, as not executed; those of an older incarnation never reach the newer process."""
    local = make_redis()
    assert local.up is not None
    os.kill(local.up.pid, signal.SIGKILL)
    local.expect(RedisDied)
    for kind, arguments in ((Fence, {}), (Freeze, {"kill_clients": True}), (ScriptKill, {})):
        failed = local.ask(kind, **arguments)
        assert isinstance(failed, RoleFailed)
        assert not failed.unknown
    assert local.ask(Probe).error is ProbeError.REFUSED
    local.start()
    assert isinstance(local.ask(Freeze, incarnation=1, kill_clients=True), RoleFailed)
    local.adapter.execute(KillRedis(1, "meant for the one before"))
    assert isinstance(local.ask(Probe), Probed)


def test_commands_under_way_at_the_death_are_answered(make_redis: MakeRedis) -> None:
    """Whatever was queued when Redis died gets exactly one answer each."""
    local = make_redis()
    assert local.up is not None
    os.kill(local.up.pid, signal.SIGSTOP)
    for request in range(1000, 1003):
        local.adapter.execute(Fence(local.incarnation, request, 5.0))
        local.adapter.execute(Probe(local.incarnation, request + 100, 5.0))
    local.adapter.execute(KillRedis(local.incarnation, "test"))
    events = [local.next_event() for _ in range(7)]
    answered = sorted(event.request for event in events if isinstance(event, RoleFailed | ProbeFailed))
    assert answered == [1000, 1001, 1002, 1100, 1101, 1102]
    assert any(isinstance(event, RedisDied) for event in events)
    assert local.events.empty()


# --- other members ---------------------------------------------------------------------------------------------------


def test_catching_up(make_redis: MakeRedis) -> None:
    """The successor that has the position is named; a position that nobody has ends at the deadline, with None."""
    primary, follower = make_redis(QUICK_SYNC), make_redis()
    primary.lead()
    follow(follower, primary)
    client = primary.client()
    for number in range(1000):
        client.set("a", number)
    info = primary.info()
    successors = (("dead", Address("127.0.0.1", 1)), ("follower", follower.address))
    position = {"successors": successors, "replid": info.replid, "offset": info.offset_bytes}
    caught_up = primary.ask(CatchUp, **position)
    assert isinstance(caught_up, CaughtUp)
    assert caught_up.member == "follower"
    ahead = position | {"offset": info.offset_bytes + (1 << 40), "not_after": clock() + 0.1}
    assert primary.ask(CatchUp, **ahead).member is None
    foreign = position | {"replid": "0" * 40, "not_after": clock() + 0.1}
    assert primary.ask(CatchUp, **foreign).member is None


def test_other_members_are_asked_and_a_silent_one_holds_nobody_up(make_redis: MakeRedis) -> None:
    """INFO over TCP; None for a dead port, a wrong password and a host that accepts and says nothing."""
    local, other = make_redis(), make_redis(password="other")
    assert other.ask(ProbeRemote, address=other.address).info.run_id == other.info().run_id
    assert local.ask(ProbeRemote, address=Address("127.0.0.1", 1)).info is None
    assert local.ask(ProbeRemote, address=other.address).info is None
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = Address("127.0.0.1", silent.getsockname()[1])
        local.adapter.execute(ProbeRemote(1000, address, 0.5))
        assert local.ask(ProbeRemote, address=local.address).info is not None
        assert local.expect(RemoteProbed, 2.0) == RemoteProbed(1000, address, None)


def test_a_redis_that_is_up_says_so_once(make_redis: MakeRedis) -> None:
    """Nothing but the answers to commands comes from an adapter whose Redis is well."""
    local = make_redis()
    assert isinstance(local.up, RedisUp)
    local.info()
    assert local.events.empty()
