"""The guard, and what outlives the agent: arming, silence, re-attachment, the state file."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from redis_agent import machine
from redis_agent.messages import (
    ArmGuard,
    CloseSession,
    Commit,
    Delete,
    DisarmGuard,
    Fence,
    Follow,
    Freeze,
    GuardDone,
    GuardFailed,
    LeaveRedis,
    LiftFence,
    Probe,
    Promote,
    RedisDied,
    RedisUp,
    RoleDone,
    SaveState,
    SessionFailed,
    StartRedis,
    StopRedis,
    UpgradeRequested,
)
from redis_agent.replication import NOWHERE
from redis_agent.state_record import StateRecord
from redis_agent.znodes import decode_ballot
from tests.support.core import (
    ADDRESSES,
    PATHS,
    RECORD,
    Driver,
    ballot,
    candidate,
    claimant,
    cluster,
    follower,
    leader,
    ledger,
    presence,
    replid,
    serving,
)

# --- arming ---------------------------------------------------------------------------------------------------------


def test_the_fence_is_lifted_behind_the_guards_word_only() -> None:
    """Armed with the promotion, and the first write is let in when it has acknowledged. Case C2."""
    driver = claimant()
    driver.settle_but("claim", "serve", Promote, ArmGuard)
    driver.answer(driver.take(Commit, "claim"))
    arming = driver.take(ArmGuard)
    assert driver.core.lease.until < arming.until < driver.core.lease.until + driver.core.settings.fence_budget_s
    driver.settle_but(ArmGuard, Probe)
    assert driver.state == machine.SERVING
    assert not driver.find(LiftFence)
    assert not driver.core.redis.lifted
    driver.step(GuardDone(arming.incarnation, arming.request))
    lift = driver.take(LiftFence)
    assert lift.not_after < arming.until


def test_a_follower_is_not_armed() -> None:
    """Its memory is evidence: nobody kills it because its agent died. Case C3."""
    driver = follower()
    driver.wait(5)
    driver.settle()
    assert driver.core.redis.guard_asked < 0


def test_each_renewal_of_the_lease_is_told() -> None:
    """A later end replaces the earlier one, one message at a time."""
    driver = serving()
    first = driver.core.redis.guard_until
    for _ in range(12):
        driver.wait(0.5)
        driver.settle_but(ArmGuard)
        arming = driver.find(ArmGuard)
        assert len(arming) <= 1
        for command in arming:
            driver.pending.remove(command)
            driver.answer(command)
    assert driver.core.redis.guard_until > first + 3


def renewal(driver: Driver) -> ArmGuard:
    """The next arming, not answered."""
    for _ in range(8):
        driver.wait(0.5)
        driver.settle_but(ArmGuard)
        if driver.find(ArmGuard):
            break
    return driver.take(ArmGuard)


@pytest.mark.parametrize("how", ["silent", "gone"])
def test_a_leader_without_a_guard_gives_way(how: str) -> None:
    """No acknowledgement in time, or nobody to tell: freeze, vote as evidence only, resign. Case C8."""
    driver = serving()
    arming = renewal(driver)
    if how == "gone":
        driver.step(GuardFailed(arming.incarnation, arming.request, "connection closed"))
    else:
        while driver.state == machine.SERVING:
            driver.wait(0.05)
            driver.settle_but(ArmGuard, "ballot", Freeze)
    assert driver.state == machine.FREEZING
    driver.answer(driver.take(Freeze))
    resign = driver.take(Commit, "ballot")
    assert Delete(PATHS.leader) in resign.ops
    driver.answer(resign)
    assert decode_ballot(driver.tree[PATHS.ballot(4, "m1")].data).abstains


def test_a_lost_guard_is_replaced_once_somebody_else_serves() -> None:
    """Redis is its child, so both are started again, in order. Case C8."""
    driver = serving()
    driver.step(GuardFailed(1, renewal(driver).request, "connection closed"))
    driver.settle_but("ballot", DisarmGuard)
    driver.settle_but(DisarmGuard)
    driver.put(PATHS.epoch, ledger("m1", "m2", "m1", "m3"))
    driver.put(PATHS.leader, leader("m3", 4), owner=901)
    driver.fire_watches()
    for _ in range(4):
        driver.settle_but(StopRedis, Probe, DisarmGuard)
        driver.wait(0.5)
    assert driver.state == machine.FOLLOWER
    assert driver.find(StopRedis)
    driver.step(RedisDied(1, 0, "", was_up=True, ordered=True))
    driver.wait(1)
    assert driver.find(StartRedis)


def test_a_guard_that_comes_back_is_good_again() -> None:
    """It was only stopped: a member with the only evidence must not stand back for ever."""
    driver = serving()
    driver.remove(PATHS.presence("m3"))
    driver.fire_watches()
    driver.settle()
    driver.step(GuardFailed(1, renewal(driver).request, "stopped"))
    driver.settle_but(DisarmGuard)
    driver.wait(0.3)
    driver.settle_but(DisarmGuard)
    assert decode_ballot(driver.tree[PATHS.ballot(4, "m1")].data).abstains
    driver.answer(driver.take(DisarmGuard))
    driver.wait(0.3)
    driver.settle_but("claim")
    assert not decode_ballot(driver.tree[PATHS.ballot(4, "m1")].data).abstains
    assert not driver.find(StopRedis)


def test_the_guard_is_disarmed_behind_the_fence() -> None:
    """And not while a lift may still be executed."""
    driver = serving()
    driver.session_down()
    driver.wait(driver.core.lease.until - driver.now)
    assert driver.state == machine.CONNECTING
    assert not driver.find(DisarmGuard)
    fence = driver.take(Fence)
    driver.step(RoleDone(fence.incarnation, fence.request, driver.info))
    assert driver.find(DisarmGuard)


def test_an_agent_that_lost_its_session_only_is_not_late_for_its_guard() -> None:
    """It fences and disarms before the guard would act: an outage of ZooKeeper must not kill agents."""
    driver = serving()
    told_until = driver.core.redis.guard_until + driver.core.settings.fence_budget_s / 2
    driver.session_down()
    driver.wait(driver.core.lease.until - driver.now)
    assert driver.now + driver.core.settings.fence_timeout_s < told_until


# --- attaching ------------------------------------------------------------------------------------------------------


def attached(record: StateRecord, **changes: Any) -> Driver:
    """m1's second life: its Redis was left running under its guard. m2 leads epoch 2."""
    driver = cluster(Driver(), "m2", "m3", epochs=ledger("m1", "m2"))
    driver.put(PATHS.leader, leader("m2", 2), owner=900)
    driver.start(record)
    driver.pending = [command for command in driver.pending if not isinstance(command, StartRedis)]
    driver.info = replace(
        driver.info,
        **{
            "run_id": "run-7",
            "keys": 5,
            "replid": replid(2),
            "offset_bytes": 200,
            "replica_offset_bytes": 200,
            "primary": ADDRESSES["m2"],
            "link_up": True,
            **changes,
        },
    )
    driver.core.old_redis_alive = True
    driver.step(RedisUp(1, 4711, 1.0, driver.info, attached=True))
    return driver


MEMORY = replace(RECORD, run_id="run-7", intact_replid=replid(2), loaded=("f" * 40, 0), followed=True)


def test_a_follower_goes_on_as_it_was() -> None:
    """Re-attached: still in sync, still intact, no command that changes its role. Cases C3, B11."""
    driver = attached(MEMORY)
    assert driver.core.redis.intact
    driver.session_up()
    driver.wait(0.6)
    driver.settle_but(Follow, Freeze)
    assert driver.state == machine.FOLLOWER
    assert not driver.find(Follow)
    assert not driver.find(Freeze)


@pytest.mark.parametrize(
    ("record", "changes"),
    [
        (replace(MEMORY, run_id="run-6"), {}),
        (RECORD, {}),
        (replace(MEMORY, intact_replid=""), {}),
        (MEMORY, {"replid": replid(9)}),
        (MEMORY, {"loading": True}),
        (MEMORY, {"syncing": True}),
    ],
    ids=["another process", "state file lost", "was not intact", "full resync since", "loading", "syncing"],
)
def test_what_the_state_file_cannot_vouch_for_is_not_intact(record: StateRecord, changes: dict[str, Any]) -> None:
    """Only the very process that it speaks of, and only under the replid that it was intact with. Case B6."""
    driver = attached(record, **changes)
    assert not driver.core.redis.intact


def test_intact_survives_a_partial_resync_while_nobody_looked() -> None:
    """The old replid is the second one now."""
    driver = attached(MEMORY, replid=replid(3), replid2=replid(2), second_offset_bytes=201)
    assert driver.core.redis.intact


def test_a_process_of_unknown_history_is_not_taken_for_freshly_loaded() -> None:
    """Else a state file's position would order it."""
    driver = attached(RECORD)
    assert driver.core.redis.loaded != (driver.info.replid, driver.info.offset_bytes)


def test_our_last_lifes_leadership_is_given_up_behind_the_attachment() -> None:
    """The Redis that it was for runs on: it must be fenced before ``leader`` may go. Case C3."""
    driver = cluster(Driver(), "m2", "m3", epochs=ledger("m2", "m1"))
    driver.put(PATHS.leader, replace(leader("m1", 2), guid="guid-m1-earlier"), owner=899)
    driver.put(PATHS.presence("m1"), presence("m1", guid="guid-m1-earlier"), owner=899)
    driver.start(RECORD)
    driver.core.old_redis_alive = True
    driver.session_up()
    driver.settle_but(StartRedis, "join")
    assert not driver.find(Commit, "join")
    driver.pending = [command for command in driver.pending if not isinstance(command, StartRedis)]
    driver.info = replace(
        driver.info, run_id="run-7", keys=5, is_primary=True, primary=None, replid=replid(2), offset_bytes=200
    )
    driver.step(RedisUp(1, 4711, 1.0, driver.info, attached=True))
    driver.settle_but("join", Probe)
    join = driver.take(Commit, "join")
    assert Delete(PATHS.leader) in join.ops
    driver.answer(join)
    driver.settle_but(Freeze, Probe)
    assert driver.state == machine.FREEZING
    assert driver.find(Freeze)
    assert not driver.find(LiftFence)


def test_an_attached_primary_is_left_alone_until_it_is_known_who_leads() -> None:
    """It is fenced; a freeze now would only cost its replicas their link."""
    driver = attached(MEMORY, is_primary=True, primary=None, replica_offset_bytes=None, link_up=False)
    driver.wait(1)
    driver.settle_but(Freeze, Follow)
    assert not driver.find(Freeze)
    assert not driver.find(Follow)


def test_a_frozen_replica_stays_frozen() -> None:
    """It cast its ballot in its last life."""
    driver = attached(MEMORY, primary=NOWHERE, link_up=False)
    driver.wait(1)
    driver.settle_but(Freeze, Follow)
    assert not driver.find(Follow)


# --- failing --------------------------------------------------------------------------------------------------------


def test_an_agent_that_must_give_up_leaves_a_redis_that_has_a_role() -> None:
    """One bad setting that ends every agent must not end every Redis."""
    driver = follower()
    driver.step(SessionFailed(driver.core.session.number, "authentication failed"))
    driver.settle_but(CloseSession, Probe, LeaveRedis)
    assert driver.find(LeaveRedis)
    assert not driver.find(StopRedis)


def test_an_agent_that_never_joined_leaves_nothing_behind() -> None:
    """Its Redis was started for nothing."""
    driver = Driver()
    driver.start()
    driver.redis_up()
    driver.step(SessionFailed(driver.core.session.number, "authentication failed"))
    assert driver.find(StopRedis)
    assert not driver.find(LeaveRedis)


def test_a_vote_of_the_re_attached_counts() -> None:
    """All agents died, no Redis did: the round has R intact ballots. Case B10."""
    driver = candidate()
    driver.put(PATHS.ballot(3, "m3"), ballot("m3", 3, 190))
    driver.fire_watches()
    driver.settle_but("claim")
    assert driver.find(Commit, "claim")


@pytest.mark.parametrize("confirmed", [True, False])
def test_redis_is_left_only_once_it_is_certainly_fenced(confirmed: bool) -> None:
    """Our session keeps others from leading, and it ends behind that: a hung Redis is killed first. Case C2."""
    driver = serving()
    driver.session_down()
    driver.wait(driver.core.lease.until - driver.now)
    driver.step(UpgradeRequested())
    assert driver.state == machine.STOPPING_REDIS
    assert not driver.find(LeaveRedis)
    if confirmed:
        for fence in driver.find(Fence):
            driver.pending.remove(fence)
            driver.answer(fence)
        assert driver.find(LeaveRedis)
    else:
        driver.wait(driver.core.settings.fence_timeout_s)
        assert driver.killed
        assert not driver.find(LeaveRedis)


def test_a_session_that_cannot_be_proved_is_let_go() -> None:
    """ZooKeeper hears a leader that hears nothing: each attempt to connect would keep ``leader`` alive. Case A4."""
    driver = serving()
    driver.session_down()
    driver.wait(driver.core.lease.until - driver.now)
    for fence in driver.find(Fence):
        driver.pending.remove(fence)
        driver.answer(fence)
    number = driver.core.session.number
    driver.wait(driver.timeout_s)
    assert driver.state == machine.CONNECTING
    driver.wait(driver.core.settings.tick_s)
    assert driver.state == machine.EXPIRED
    assert driver.core.session.number == number + 1


def test_a_follower_keeps_its_session_through_any_outage() -> None:
    """Nobody waits for it: a disconnection is not an expiry. Case A2."""
    driver = follower()
    number = driver.core.session.number
    driver.session_down()
    driver.wait(60)
    assert driver.state == machine.CONNECTING
    assert driver.core.session.number == number


def test_a_broken_resync_is_remembered_over_lives() -> None:
    """Emptied by a full resync that could not be loaded: its next life does not take it for intact. Cases B13, D5."""
    emptied = {"keys": 0, "primary": NOWHERE, "link_up": False, "offset_bytes": 200, "replica_offset_bytes": 0}
    driver = attached(replace(MEMORY, followed=False), **emptied)
    assert not driver.core.redis.intact


def test_following_is_on_record_before_it_begins() -> None:
    """A process that led since it started, and follows for the first time."""
    driver = serving()
    driver.core.redis.followed = False
    driver.put(PATHS.epoch, ledger("m1", "m2", "m1", "m3"))
    driver.put(PATHS.leader, leader("m3", 4), owner=901)
    driver.fire_watches()
    driver.settle_but(SaveState, Follow, Probe)
    assert driver.find(Follow)
    assert driver.find(SaveState)[-1].record.followed


def test_a_wrong_setting_does_not_stop_the_redis_that_is_just_being_attached() -> None:
    """The refusal may come before the attachment is complete."""
    driver = Driver()
    driver.start(RECORD)
    driver.core.old_redis_alive = True
    driver.step(SessionFailed(driver.core.session.number, "authentication failed"))
    assert driver.find(LeaveRedis)
    assert not driver.find(StopRedis)


def test_a_lift_that_comes_too_late_for_the_guard_is_made_again() -> None:
    """The guard is told of the lease first; the writes that wait are not forgotten."""
    driver = claimant()
    driver.settle_but(LiftFence, Probe)
    lift = driver.take(LiftFence)
    driver.fail(lift, unknown=False, late=True)
    assert driver.find(ArmGuard)
    driver.settle_but(Probe)
    assert driver.state == machine.SERVING
    assert driver.core.redis.lifted
    assert "fence_lifted" in [line.event for line in driver.log]


def test_the_old_end_stands_while_we_do_not_lead() -> None:
    """Deposed, and the fence not confirmed: no heartbeat moves the guard's deadline any more. Case C2."""
    driver = serving()
    driver.put(PATHS.epoch, ledger("m1", "m2", "m1", "m3"))
    driver.put(PATHS.leader, leader("m3", 4), owner=901)
    driver.wait(0.5)
    driver.settle_but(Fence, Follow, Freeze, Probe, ArmGuard)
    driver.wait(0.05)
    driver.settle_but(Fence, Follow, Freeze, Probe, ArmGuard)
    assert not driver.core.leading
    assert not driver.find(ArmGuard)
