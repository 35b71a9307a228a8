"""Role commands on a real Redis: freeze, promote, follow, fence, pause."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest
import redis

from redis_agent.lab.waiting import wait_for
from redis_agent.messages import (
    Fence,
    Follow,
    Freeze,
    KickClients,
    KillRedis,
    LiftFence,
    PauseWrites,
    Probe,
    Promote,
    RedisDied,
    RoleFailed,
    Unpause,
)
from redis_agent.redis_conf import FENCED, GUARD_CLIENT_NAME, MONITOR_CLIENT_NAME, ROLE_CLIENT_NAME
from redis_agent.replication import NOWHERE
from tests.support.redis import QUICK_SYNC, MakeRedis, clock, follow, make_redis

__all__ = ["make_redis"]


def closed(connection: socket.socket, limit_s: float = 2.0) -> bool:
    """The server hung up."""
    connection.settimeout(limit_s)
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False


# --- freeze, promote, follow -----------------------------------------------------------------------------------------


def test_a_freeze_keeps_the_position_and_kills_the_clients(make_redis: MakeRedis) -> None:
    """Case B15 (adapter's part): replid and offset stay, every normal and pubsub client is gone, the agent's stay.

    A client that was kept could have a write of an older epoch confirmed by a later WAIT.
    """
    primary, follower = make_redis(QUICK_SYNC), make_redis()
    primary.lead()
    primary.client().set("a", 1)
    follow(follower, primary)
    before = follower.info()
    subscriber = follower.client().pubsub()
    subscriber.subscribe("news")
    with socket.create_connection(("127.0.0.1", follower.address.port)) as idle:
        frozen = follower.done(Freeze, kill_clients=True)
        assert (frozen.replid, frozen.offset_bytes) == (before.replid, before.offset_bytes)
        assert frozen.primary == NOWHERE
        assert closed(idle)
    subscriber.close()
    assert follower.info().run_id == before.run_id


def test_a_frozen_replica_acknowledges_nothing_more(make_redis: MakeRedis) -> None:
    """Once the freeze is answered, the old primary gets no acknowledgement from it: WAIT counts nobody."""
    primary, follower = make_redis(QUICK_SYNC), make_redis()
    primary.lead()
    follow(follower, primary)
    follower.done(Freeze, kill_clients=False)
    client = primary.client()
    client.set("late", 1)
    assert client.wait(1, 50) == 0


def test_a_freeze_without_kill_leaves_clients_alone(make_redis: MakeRedis) -> None:
    """Only where it is asked for are clients disconnected."""
    local = make_redis()
    with socket.create_connection(("127.0.0.1", local.address.port)) as idle:
        local.done(Freeze, kill_clients=False)
        assert not closed(idle, 0.05)


def test_a_primary_is_frozen_too(make_redis: MakeRedis) -> None:
    """A primary that may claim again freezes like a replica: its history keeps its name and its length."""
    local = make_redis()
    promoted = local.lead()
    local.client().set("a", 1)
    frozen = local.done(Freeze, kill_clients=True)
    assert not frozen.is_primary
    assert frozen.replid == promoted.replid
    again = local.done(Promote, run_id=frozen.run_id)
    assert again.replid != promoted.replid
    assert again.replid2 == promoted.replid


def test_another_process_is_not_promoted(make_redis: MakeRedis) -> None:
    """The promotion is bound to the process that cast the ballot: with another run id nothing is sent."""
    local = make_redis()
    failed = local.ask(Promote, run_id="0" * 40)
    assert isinstance(failed, RoleFailed)
    assert not failed.unknown
    assert not local.info().is_primary


def test_promotion_makes_a_backlog_so_that_the_replid_stays(make_redis: MakeRedis) -> None:
    """Case B13 (part): the replid told at the promotion is the one that the first replica finds."""
    primary, follower = make_redis(QUICK_SYNC), make_redis()
    promoted = primary.lead()
    assert promoted.backlog
    assert promoted.is_primary
    client = primary.client()
    client.set("a", 1)
    assert primary.info().offset_bytes > promoted.offset_bytes
    follow(follower, primary)
    assert primary.info().replid == promoted.replid == follower.info().replid


def test_the_backlog_is_made_without_forking(make_redis: MakeRedis) -> None:
    """With diskless transfer (default since Redis 7) the agent's own PSYNC starts no dump: no stall of a large one."""
    local = make_redis("repl-diskless-sync yes")
    local.lead()
    assert local.client().info("stats")["total_forks"] == 0


def test_repointing_is_a_partial_resync(make_redis: MakeRedis) -> None:
    """Case B11 (part): frozen at the same position, one is promoted and the other continues with it."""
    old, winner, other = make_redis(QUICK_SYNC), make_redis(), make_redis()
    old.lead()
    old.client().set("a", 1)
    follow(winner, old)
    follow(other, old)
    old.adapter.execute(KillRedis(old.incarnation, "the old leader dies"))
    old.expect(RedisDied)
    other.done(Freeze, kill_clients=True)
    winner.lead()
    winner.client().set("b", 2)
    follow(other, winner)
    stats = winner.client().info("stats")
    assert (stats["sync_full"], stats["sync_partial_ok"]) == (0, 1)
    assert other.client().get("b") == "2"


def test_following_twice_changes_nothing(make_redis: MakeRedis) -> None:
    """Case B11 (part): told again whose replica it is, a replica keeps its link."""
    primary, follower = make_redis(QUICK_SYNC), make_redis()
    primary.lead()
    follow(follower, primary)
    syncs = primary.client().info("stats")["sync_full"]
    assert follower.done(Follow, primary=primary.address).link_up
    assert primary.client().info("stats")["sync_full"] == syncs


# --- connections -----------------------------------------------------------------------------------------------------


def names(client: Any) -> dict[str, str]:
    """Name by id, of the connections that have a name."""
    return {row["id"]: row["name"] for row in client.client_list() if row["name"]}


def test_connections_that_are_opened_again_have_their_names(make_redis: MakeRedis) -> None:
    """Whoever must end or spare the agent's connections finds them by name, also after they were lost."""
    local = make_redis()
    admin = local.client()
    for row in admin.client_list():
        if "U" in row["flags"]:
            admin.client_kill_filter(_id=row["id"])
    local.done(Fence)
    local.info()
    found = sorted(name for name in names(admin).values() if name != GUARD_CLIENT_NAME)
    assert found == [MONITOR_CLIENT_NAME, ROLE_CLIENT_NAME]
    local.done(Freeze, kill_clients=True)
    wait_for(lambda: MONITOR_CLIENT_NAME in names(local.client()).values(), 5.0, "the monitor is back")


def test_a_kick_spares_the_guard_and_the_agents(make_redis: MakeRedis) -> None:
    """Normal, subscribed and watching clients go; guard, monitor, role connection and the replica's link stay.

    Redis may have both of one client's kinds, and clients whose names are almost ours.
    """
    primary, follower = make_redis(QUICK_SYNC), make_redis()
    primary.lead()
    follow(follower, primary)
    guard, odd = primary.client(), primary.client()
    guard.client_setname(GUARD_CLIENT_NAME)
    odd.client_setname(f"{GUARD_CLIENT_NAME}-2")
    primary.info()
    before = names(guard)
    with primary.client().pubsub() as subscriber, socket.create_connection(("127.0.0.1", primary.address.port)) as idle:
        subscriber.subscribe("news")
        subscriber.get_message(timeout=2.0)
        kicked = primary.done(KickClients)
        assert closed(idle)
        with pytest.raises(redis.ConnectionError):
            subscriber.get_message(timeout=2.0)
    assert len(kicked.replicas) == 1
    primary.info()
    left = {number: name for number, name in before.items() if name != f"{GUARD_CLIENT_NAME}-2"}
    assert names(guard).items() >= left.items()
    assert {GUARD_CLIENT_NAME, MONITOR_CLIENT_NAME, ROLE_CLIENT_NAME} <= set(left.values())
    with pytest.raises(redis.ConnectionError):
        odd.ping()


# --- the fence -------------------------------------------------------------------------------------------------------


def refuses_writes(client: Any) -> bool:
    """Every kind of write is refused, by the fence."""
    attempts: tuple[tuple[str, ...], ...] = (
        ("SET", "a", "1"),
        ("EVAL", "return redis.call('SET', 'a', 1)", "0"),
        ("FLUSHALL",),
    )
    for attempt in attempts:
        with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
            client.execute_command(*attempt)
    with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
        client.pipeline(transaction=True).set("a", 1).execute()
    return True


def test_the_fence_refuses_every_write_and_is_undone(make_redis: MakeRedis) -> None:
    """Case C2 (soft fence): promoted but not lifted, and fenced again, a primary refuses SET, EVAL, MULTI, FLUSHALL."""
    local = make_redis()
    frozen = local.done(Freeze, kill_clients=True)
    local.done(Promote, run_id=frozen.run_id)
    client = local.client()
    assert refuses_writes(client)
    local.done(LiftFence, at_least=0)
    assert client.set("a", 1)
    local.done(Fence)
    assert refuses_writes(client)
    assert client.get("a") == "1"


def test_a_follower_promoted_by_hand_refuses_writes(make_redis: MakeRedis) -> None:
    """Case C1 (part): it boots fenced and stays fenced while it follows; the hand-made primary can be put back."""
    primary, follower = make_redis(QUICK_SYNC), make_redis()
    primary.lead()
    follow(follower, primary)
    client = follower.client()
    client.replicaof("NO", "ONE")
    assert refuses_writes(client)
    assert follower.info().is_primary
    follow(follower, primary)


def test_the_fence_holds_against_a_disabled_lag_check(make_redis: MakeRedis) -> None:
    """With min-replicas-max-lag 0 Redis ignores min-replicas-to-write, so the fence sets both."""
    local = make_redis()
    local.lead()
    client = local.client()
    client.config_set("min-replicas-max-lag", 0)
    local.done(Fence)
    assert refuses_writes(client)


def test_lifting_restores_the_operators_own_requirement(make_redis: MakeRedis) -> None:
    """min-replicas-to-write becomes the operator's value, or the cluster's if that is more."""
    local = make_redis("min-replicas-to-write 2")
    local.lead(at_least=1)
    client = local.client()
    assert client.config_get("min-replicas-to-write")["min-replicas-to-write"] == "2"
    local.done(LiftFence, at_least=3)
    assert client.config_get("min-replicas-to-write")["min-replicas-to-write"] == "3"


def test_late_commands_are_not_sent(make_redis: MakeRedis) -> None:
    """Promotion and lifting are bound to the lease: past their time they are refused, and nothing has changed."""
    local = make_redis()
    run_id = local.info().run_id
    for kind, arguments in ((Promote, {"run_id": run_id}), (LiftFence, {"at_least": 0})):
        failed = local.ask(kind, not_after=clock(), **arguments)
        assert isinstance(failed, RoleFailed)
        assert (failed.late, failed.unknown) == (True, False)
    probed = local.ask(Probe)
    assert not probed.info.is_primary
    assert ("min-replicas-to-write", str(FENCED)) in probed.drift


def test_drift_is_told_and_put_back(make_redis: MakeRedis) -> None:
    """Case C7 (part): a changed pinned setting is reported by the next probe and restored with the next fence."""
    local = make_redis()
    client = local.client()
    client.config_set("replica-read-only", "no")
    client.config_set("repl-backlog-size", 1 << 30)
    assert local.ask(Probe).drift == (("replica-read-only", "no"), ("min-replicas-to-write", str(FENCED)))
    local.done(Fence)
    assert local.ask(Probe).drift == (("min-replicas-to-write", str(FENCED)),)


def test_a_pause_holds_writes_back_and_reads_not(make_redis: MakeRedis) -> None:
    """During the pause a write waits without an error, and goes through when it ends."""
    local = make_redis()
    local.lead()
    writer, reader = local.client(), local.client()
    writer.ping()
    local.done(PauseWrites, for_s=20.0)
    answered = threading.Event()

    def write() -> None:
        writer.set("a", 1)
        answered.set()

    thread = threading.Thread(target=write)
    thread.start()
    wait_for(lambda: reader.info("clients")["blocked_clients"] == 1, 5.0, "the write waits")
    assert reader.get("a") is None
    assert not answered.is_set()
    local.done(Unpause)
    assert answered.wait(2.0)
    thread.join()
