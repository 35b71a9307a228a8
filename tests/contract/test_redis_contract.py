"""What the core relies on in a Redis and its adapter. The same tests run on the real ones and on the simulated."""

from __future__ import annotations

from dataclasses import replace

import pytest

from redis_agent.messages import (
    Fence,
    Follow,
    Freeze,
    KickClients,
    LiftFence,
    PauseWrites,
    Probe,
    Probed,
    ProbeError,
    ProbeFailed,
    Promote,
    RedisDied,
    RoleFailed,
    SaveTail,
    TailSaved,
    Unpause,
)
from redis_agent.redis_conf import FENCED
from redis_agent.replication import NOWHERE, Address, RedisInfo
from tests.contract.redis_driver import RedisDriver, Server, follow


def ageless(info: RedisInfo) -> RedisInfo:
    """But for what grows by itself."""
    return replace(info, replicas=tuple(replace(link, lag_s=0) for link in info.replicas))


def test_it_boots_as_a_fenced_replica_of_nowhere(alone: Server) -> None:
    """An empty one: no backlog, and its applied offset is not that of its (missing) data."""
    info = alone.info()
    assert not info.is_primary
    assert info.primary == NOWHERE
    assert info.empty
    assert not info.backlog
    assert (info.offset_bytes, info.replica_offset_bytes) == (0, 1)
    assert alone.app().write() == "READONLY"


def test_frozen_and_promoted_it_is_fenced_until_lifted(alone: Server) -> None:
    """Promote makes a backlog and tells the replid that stays; only LiftFence opens it, and Fence closes it again."""
    before = alone.done(Freeze, kill_clients=True)
    promoted = alone.done(Promote, run_id=before.run_id)
    assert promoted.is_primary
    assert promoted.backlog
    assert promoted.replid != before.replid
    assert promoted.replica_offset_bytes is None
    app = alone.app()
    assert app.write() == "NOREPLICAS"
    alone.done(LiftFence, at_least=0)
    assert app.write() == "OK"
    assert alone.info().replid == promoted.replid
    assert alone.info().offset_bytes > promoted.offset_bytes
    alone.done(Fence)
    assert app.write() == "NOREPLICAS"


def test_a_follower_has_the_primarys_replid_and_offset(redis_driver: RedisDriver, pair: tuple[Server, Server]) -> None:
    """Both sides tell of the link; the replica's two offsets agree."""
    primary, replica = pair
    info = replica.info()
    assert info.link_up
    assert info.primary == primary.address
    assert info.replid == primary.info().replid
    assert info.offset_bytes == info.replica_offset_bytes
    assert info.keys == primary.info().keys == 1
    assert [link.address for link in primary.info().replicas] == [replica.address]


def test_a_frozen_replica_keeps_its_position(redis_driver: RedisDriver, pair: tuple[Server, Server]) -> None:
    """It gets nothing any more, and later goes on from there without a full resync."""
    primary, replica = pair
    frozen = replica.done(Freeze, kill_clients=True)
    assert primary.app().write() == "OK"
    info = replica.info()
    assert (info.replid, info.offset_bytes, info.replica_offset_bytes, info.keys) == (
        primary.info().replid,
        frozen.offset_bytes,
        frozen.offset_bytes,
        1,
    )
    assert info.primary == NOWHERE
    assert replica.done(Freeze, kill_clients=True) == frozen, "freezing twice changes nothing"
    follow(redis_driver, replica, primary)
    assert replica.info().keys == 2


def test_a_frozen_primary_is_a_replica_at_its_own_position(
    redis_driver: RedisDriver, pair: tuple[Server, Server]
) -> None:
    """Its offset stands, it feeds nobody who asks, and it takes no writes."""
    primary, replica = pair
    app = primary.app()
    before = primary.info()
    frozen = primary.done(Freeze, kill_clients=False)
    assert not frozen.is_primary
    assert (frozen.replid, frozen.offset_bytes) == (before.replid, before.offset_bytes)
    assert frozen.replica_offset_bytes == frozen.offset_bytes
    assert app.write() == "READONLY"
    replica.done(Freeze, kill_clients=True)
    replica.done(Follow, primary=primary.address)
    assert not replica.info().link_up


def test_promotion_shifts_the_replid_and_others_join_partially(
    redis_driver: RedisDriver, pair: tuple[Server, Server]
) -> None:
    """The old replid is valid up to the promotion: another replica and the old primary go on with their data."""
    primary, replica = pair
    third = redis_driver.server()
    follow(redis_driver, third, primary)
    for each in (primary, replica, third):
        each.done(Freeze, kill_clients=True)
    old = replica.info()
    promoted = replica.lead()
    assert promoted.replid != old.replid
    assert (promoted.replid2, promoted.second_offset_bytes) == (old.replid, old.offset_bytes + 1)
    for each in (primary, third):
        follow(redis_driver, each, replica)
        info = each.info()
        assert (info.replid, info.replid2) == (promoted.replid, old.replid), "a full resync would forget replid2"


def test_a_diverged_primary_is_resynced_in_full(redis_driver: RedisDriver, pair: tuple[Server, Server]) -> None:
    """It wrote on after the other was promoted: its tail is gone, and it forgets its replid2."""
    primary, replica = pair
    replica.done(Freeze, kill_clients=True)
    replica.lead()
    app = primary.app()
    assert [app.write() for _ in range(3)] == ["OK"] * 3
    follow(redis_driver, primary, replica)
    info = primary.info()
    assert (info.keys, info.replid2) == (1, "")


def test_a_follower_that_led_is_fenced(redis_driver: RedisDriver, pair: tuple[Server, Server]) -> None:
    """A hand that promotes it lets nobody in."""
    primary, replica = pair
    assert primary.app().write() == "OK"
    replica.done(Freeze, kill_clients=True)
    replica.lead()
    follow(redis_driver, primary, replica)
    probed = primary.ask(Probe)
    assert isinstance(probed, Probed)
    assert dict(probed.drift)["min-replicas-to-write"] == str(FENCED)


def test_a_primary_without_enough_replicas_refuses_writes(
    redis_driver: RedisDriver, pair: tuple[Server, Server]
) -> None:
    """min-replicas-to-write: with one attached a write goes through; once that one has frozen it doesn't."""
    primary, replica = pair
    app = primary.app()
    primary.done(LiftFence, at_least=1)
    assert app.write() == "OK"
    primary.done(LiftFence, at_least=2)
    assert app.write() == "NOREPLICAS"
    primary.done(LiftFence, at_least=1)
    replica.done(Freeze, kill_clients=True)
    redis_driver.until(lambda: not primary.info().replicas, "the primary sees it leave")
    assert app.write() == "NOREPLICAS"


def test_wait_counts_who_has_the_write(pair: tuple[Server, Server]) -> None:
    """One replica has it; frozen, it acknowledges no more."""
    primary, replica = pair
    app = primary.app()
    assert app.write() == "OK"
    assert app.wait(1) == 1
    replica.done(Freeze, kill_clients=True)
    assert app.write() == "OK"
    assert app.wait(1) == 0


def test_a_freeze_closes_what_waits_and_kills_clients_if_told(pair: tuple[Server, Server]) -> None:
    """A client's connection does not survive a freeze with kill_clients."""
    primary, _ = pair
    kept, killed = primary.app(), primary.app()
    assert kept.write() == killed.write() == "OK"
    frozen = primary.done(Freeze, kill_clients=False)
    assert kept.write() == "READONLY"
    primary.done(Freeze, kill_clients=True)
    primary.done(Promote, run_id=frozen.run_id)
    assert killed.wait(0) == -1


def test_paused_writes_wait_and_are_executed_or_refused_afterwards(pair: tuple[Server, Server]) -> None:
    """Unpaused, they run; demoted meanwhile, they are refused with READONLY and were not executed."""
    primary, replica = pair
    app = primary.app()
    primary.done(PauseWrites, for_s=30.0)
    assert app.write() == ""
    primary.done(Unpause)
    assert app.answer() == "OK"
    keys = primary.info().keys
    primary.done(PauseWrites, for_s=30.0)
    assert app.write() == ""
    primary.done(Freeze, kill_clients=False)
    assert app.answer() == ""
    assert primary.app().write() == "READONLY", "what comes later is refused at once"
    # INFO of the same round trip: a moment later a resync may have replaced the data.
    followed = primary.done(Follow, primary=replica.address)
    assert app.answer() == "READONLY"
    assert followed.keys == keys


def test_a_promotion_is_bound_to_the_process(alone: Server) -> None:
    """Another run id: refused, not executed."""
    failed = alone.ask(Promote, run_id="f" * 40)
    assert isinstance(failed, RoleFailed)
    assert (failed.unknown, failed.late) == (False, False)
    assert not alone.info().is_primary


@pytest.mark.parametrize("kind", [Promote, LiftFence])
def test_what_is_too_late_is_not_sent(alone: Server, kind: type) -> None:
    """Past ``not_after`` nothing is done, and the answer says so."""
    given: dict[str, object] = {"run_id": alone.info().run_id} if kind is Promote else {"at_least": 0}
    failed = alone.ask(kind, not_after=0.0, **given)
    assert isinstance(failed, RoleFailed)
    assert (failed.unknown, failed.late) == (False, True)
    assert not alone.info().is_primary


def test_death_is_told_and_nothing_is_sent_to_the_dead(alone: Server) -> None:
    """RedisDied with the signal; a role command after it was certainly not executed."""
    died = alone.kill()
    assert (died.status, died.was_up, died.ordered) == (-9, True, False)
    failed = alone.ask(Fence)
    assert isinstance(failed, RoleFailed)
    assert not failed.unknown


def test_a_restart_without_saved_data_is_empty(pair: tuple[Server, Server]) -> None:
    """The primary of a cluster that saves nothing comes back empty, with another replid, at offset 0."""
    primary, _ = pair
    before = primary.info()
    primary.kill()
    up = primary.start()
    assert up.info.run_id != before.run_id
    assert up.info.empty
    assert up.info.replid != before.replid
    assert up.info.offset_bytes == 0


def test_a_restart_from_an_rdb_keeps_the_position(redis_driver: RedisDriver) -> None:
    """Stopped in order it saves; it comes back as a replica at its old replid and offset, but without a backlog."""
    primary, replica = redis_driver.server(saves=True), redis_driver.server(saves=True)
    primary.lead()
    assert primary.app().write() == "OK"
    follow(redis_driver, replica, primary)
    before = replica.info()
    died = replica.stop()
    assert (died.status, died.ordered) == (0, True)
    assert primary.app().write() == "OK"
    replica.start()
    redis_driver.until(lambda: not replica.info().loading, "it has loaded")
    info = replica.info()
    assert (info.replid, info.offset_bytes, info.replica_offset_bytes) == (
        before.replid,
        before.offset_bytes,
        before.offset_bytes,
    )
    assert (info.keys, info.backlog) == (1, False)
    follow(redis_driver, replica, primary)
    assert replica.info().keys == 2


def test_a_replica_of_a_replica(redis_driver: RedisDriver, pair: tuple[Server, Server]) -> None:
    """It has the same replid and gets the same data; the primary knows nothing of it."""
    primary, replica = pair
    third = redis_driver.server()
    follow(redis_driver, third, replica)
    assert primary.app().write() == "OK"
    redis_driver.until(lambda: third.info().keys == 2, "the write arrives by way of the replica")
    assert third.info().replid == primary.info().replid
    assert [link.address for link in primary.info().replicas] == [replica.address]


def test_death_during_a_role_command_answers_it_too(alone: Server) -> None:
    """Each request has its answer, whatever happens; here the process dies at once."""
    alone.done(Freeze, kill_clients=True)
    died = alone.stop()
    assert isinstance(died, RedisDied)
    assert died.ordered


def test_kicked_clients_are_closed_and_nobody_else(pair: tuple[Server, Server]) -> None:
    """Every client's connection is closed; the replica's link and the agent's own connections stay."""
    primary, replica = pair
    apps = [primary.app() for _ in range(3)]
    assert [app.write() for app in apps] == ["OK"] * 3
    kicked = primary.done(KickClients)
    assert all(app.closed() for app in apps)
    assert [link.address for link in kicked.replicas if link.online] == [replica.address]
    assert primary.app().write() == "OK"
    assert primary.done(KickClients).run_id == primary.info().run_id


def test_a_kick_comes_behind_the_answers_to_waiting_writes(pair: tuple[Server, Server]) -> None:
    """Case E1 (part): a write that waited for the end of a handover is refused, and its client can read that."""
    primary, replica = pair
    app = primary.app()
    primary.done(PauseWrites, for_s=30.0)
    assert app.write() == ""
    primary.done(Freeze, kill_clients=False)
    primary.done(Follow, primary=replica.address)
    primary.done(KickClients)
    assert app.answer() == "READONLY"
    assert app.closed()


def test_a_freeze_unblocks_who_waits(pair: tuple[Server, Server]) -> None:
    """A client in WAIT is told that it was interrupted, and then its connection is closed."""
    primary, replica = pair
    replica.done(Freeze, kill_clients=True)
    app = primary.app()
    assert app.write() == "OK"
    assert app.begin_wait(1) == ""
    primary.done(Freeze, kill_clients=False)
    assert app.answer() == "UNBLOCKED"
    assert app.closed()


def test_who_cannot_save_says_so_and_still_obeys(redis_driver: RedisDriver) -> None:
    """Case D4 (part): writes are refused with MISCONF, a probe tells it in one line, role commands work."""
    server = redis_driver.server(saves=True)
    server.lead()
    app = server.app()
    assert server.ask(Probe).sick == ""
    server.fill_disk()
    probed = server.ask(Probe)
    assert isinstance(probed, Probed)
    assert probed.sick.startswith("MISCONF: ")
    assert app.write() == "MISCONF"
    assert server.ask(SaveTail, name="epoch-1-offset-1", keep=3).error
    server.done(Fence)
    server.free_disk()
    assert server.ask(Probe).sick == ""
    server.done(LiftFence, at_least=0)
    assert app.write() == "OK"


def test_a_tail_is_saved_of_a_fenced_primary_and_of_a_frozen_one(
    redis_driver: RedisDriver, pair: tuple[Server, Server]
) -> None:
    """Case B12 (part): with ``save ""``, too; role commands and probes do not wait for it; the position stays."""
    primary, _ = pair
    primary.done(Fence)
    saved = primary.ask(SaveTail, name="epoch-1-offset-100", keep=3)
    assert isinstance(saved, TailSaved)
    assert saved.path.endswith("diverged/epoch-1-offset-100.rdb")
    assert not saved.error
    frozen = primary.done(Freeze, kill_clients=True)
    assert not primary.ask(SaveTail, name="epoch-2-offset-20", keep=3).error
    assert ageless(primary.info()) == ageless(frozen)
    assert primary.tails() == {"epoch-1-offset-100", "epoch-2-offset-20"}


def test_only_the_newest_tails_are_kept(alone: Server) -> None:
    """By epoch, then by offset, as numbers; what was just saved stays in any case."""
    for name in ("epoch-9-offset-100", "epoch-10-offset-9", "epoch-10-offset-80"):
        assert not alone.ask(SaveTail, name=name, keep=2).error
    assert alone.tails() == {"epoch-10-offset-9", "epoch-10-offset-80"}
    assert not alone.ask(SaveTail, name="epoch-2-offset-7", keep=2).error
    assert alone.tails() == {"epoch-10-offset-80", "epoch-2-offset-7"}
    assert alone.ask(SaveTail, name="epoch-11-offset-1", keep=0).error
    assert alone.tails() == {"epoch-10-offset-80", "epoch-2-offset-7"}


def test_a_tail_of_the_dead_is_not_saved(alone: Server) -> None:
    """It is answered all the same."""
    alone.kill()
    assert alone.ask(SaveTail, name="epoch-1-offset-1", keep=3).error


def test_an_operators_pause_is_not_a_hang(alone: Server) -> None:
    """Probes tell it apart; afterwards everything works, and probes are fresh."""
    offset = alone.lead().offset_bytes
    alone.pause_all(1.0)
    paused = alone.ask(Probe, limit_s=0.3)
    assert isinstance(paused, ProbeFailed)
    assert paused.error is ProbeError.PAUSED
    assert alone.ask(Probe, limit_s=0.3).error is ProbeError.PAUSED
    assert isinstance(alone.ask(Probe, limit_s=5.0), Probed)
    assert alone.app().write() == "OK"
    assert alone.info().offset_bytes > offset
    alone.done(Fence)


def test_a_role_command_that_a_pause_held_back_undoes_nothing(alone: Server) -> None:
    """Its outcome is unknown; what is ordered after it comes after it, also once the pause is over."""
    alone.pause_all(0.6)
    failed = alone.ask(Follow, primary=Address("127.0.0.1", 2), limit_s=0.1)
    assert isinstance(failed, RoleFailed)
    assert failed.unknown
    waits = alone.ask(Fence, limit_s=0.1)
    assert isinstance(waits, RoleFailed)
    assert alone.done(Freeze, kill_clients=True, limit_s=5.0).primary == NOWHERE
    for _ in range(20):
        assert alone.info().primary == NOWHERE
