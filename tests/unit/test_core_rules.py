"""Single rules of the core that hardly any run of the simulator depends on, because another one stands before them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from redis_agent import machine
from redis_agent.lease import RELAY_SHARE
from redis_agent.messages import ArmGuard, Commit, CommitDone, Fence, GuardDone, LiftFence, Probe, Promote, Put
from redis_agent.replication import ReplicaLink
from tests.support.core import ADDRESSES, PATHS, Driver, claimant, serving


def test_the_lease_counts_from_when_a_heartbeat_was_sent() -> None:
    """However late it is answered. Half a tick and two more acknowledged heartbeats later the lease rests on it."""
    driver = serving()
    settings = driver.core.settings
    driver.settle_but("heartbeat", Probe)
    sent_at: list[float] = []
    answered_at: list[float] = []
    for held_s in (0.6, 0.6, 0.6, 0.6, 0.6):
        driver.wait(settings.heartbeat_s)
        heartbeat = driver.take(Commit, "heartbeat")
        sent_at.append(driver._sent[heartbeat.request])
        driver.wait(held_s)
        driver.answer(heartbeat)
        answered_at.append(driver.now)
    base = driver.core.lease.until - driver.timeout_s + settings.fence_budget_s
    assert sent_at[3] >= answered_at[0] + settings.tick_s * RELAY_SHARE > sent_at[2], "the fourth tells about the first"
    assert sent_at[4] >= answered_at[3]
    assert base == pytest.approx(sent_at[0], abs=1e-6)


def test_looking_for_znodes_that_are_there_proves_nothing() -> None:
    """It is answered after reads alone, which a server answers by itself that was cut off from all the others."""
    driver = serving()
    driver.settle_but("heartbeat", Probe)
    until = driver.core.lease.until
    for at in (0.5, 1.0, 1.5, 2.0, 2.5):
        driver.core.step(CommitDone(driver.core.session.number, 999, driver.now + at, ()), driver.now + at)
    assert driver.core.lease.until == until


def test_what_is_heard_after_the_end_of_the_lease_lifts_nothing() -> None:
    """The guard's word comes when the lease is over, before the timer ran: no lift is ordered, but the fence."""
    driver = claimant()
    driver.settle_but(ArmGuard)
    assert driver.state == machine.SERVING
    arming = driver.take(ArmGuard)
    driver.core.guard_due = driver.core.lease.until + 10.0
    driver.now = driver.core.lease.until + 0.01
    commands = driver.step(GuardDone(arming.incarnation, arming.request))
    assert not [command for command in commands if isinstance(command, LiftFence)]
    assert [command for command in commands if isinstance(command, Fence)]


def test_serving_insists_on_the_ledger() -> None:
    """It replaces the ledger as it was after our own claim, and no other one."""
    driver = claimant()
    driver.settle_but("serve")
    serve = driver.take(Commit, "serve")
    versions = [op.version for op in serve.ops if isinstance(op, Put) and op.path == PATHS.epoch]
    assert versions == [driver.tree[PATHS.epoch].version]


def test_only_the_process_that_voted_is_promoted() -> None:
    """Redis was replaced between ballot and claim, and nobody has said so yet."""
    driver = claimant()
    evidence = driver.core.round.evidence
    assert evidence is not None
    driver.core.round.evidence = replace(evidence, run_id="another")
    driver.answer(driver.take(Commit, "claim"))
    assert not driver.find(Promote)
    assert driver.state == machine.FREEZING


def test_a_resumed_leader_lifts_its_fence_behind_the_guards_word_whatever_is_heard_before() -> None:
    """It had lost its followers when its lease ended, and a heartbeat is committed before the guard has answered:
    nothing is lifted for that, and the real lift is not skipped. Cases A2, C5.
    """
    driver = serving()
    driver.info = replace(driver.info, replicas=(ReplicaLink(ADDRESSES["m3"], True, driver.info.offset_bytes),))
    driver.wait(driver.core.settings.probe_s)
    driver.settle()
    assert driver.core.redis.min_replicas == 1
    driver.info = replace(driver.info, replicas=())
    driver.wait(driver.core.settings.probe_s)
    driver.settle_but("heartbeat", ArmGuard)
    assert driver.core._replicas_lost_at is not None
    driver.session_down()
    driver.wait(driver.core.lease.until - driver.now)
    assert driver.state == machine.CONNECTING
    driver.settle_but(ArmGuard)
    driver.session_back()
    driver.settle_but(ArmGuard, LiftFence)
    while driver.state == machine.CONNECTING:
        driver.wait(driver.core.settings.heartbeat_s / 2)
        driver.settle_but(ArmGuard, LiftFence)
    assert driver.state == machine.SERVING
    beaten = driver.core.session.heartbeat_sent_at
    while driver.core.session.heartbeat_sent_at == beaten:
        driver.wait(driver.core.settings.heartbeat_s / 2)
        driver.settle_but(ArmGuard, LiftFence)
    assert not driver.find(LiftFence)
    assert not driver.core.redis.lifted
    served_at = driver.core.served_at
    driver.answer(driver.take(ArmGuard))
    lift = driver.take(LiftFence)
    assert lift.not_after > driver.now
    driver.answer(lift)
    driver.settle_but(Probe)
    assert driver.core.snapshot().fence_lifted
    assert driver.core.served_at > served_at


def test_a_session_timeout_that_leaves_too_little_lease_is_refused() -> None:
    """Asked for 6 s, granted 3: the leader would fence again and again. The agent ends, with the sum in the message.
    Case A1.
    """
    driver = Driver(tick_s=0.5, heartbeat_s=0.9)
    driver.timeout_s = 3.0
    driver.start()
    driver.session_up()
    refused = [dict(line.fields) for line in driver.log if line.event == "giving_up"]
    assert "grants 3 s of the 6 s asked for" in str(refused)
    assert "session_timeout_s 3 - fence_budget_s 0.25 - 0.625 x tick_s 0.5 - 3 x heartbeat_s 0.9 = -0.26" in str(
        refused
    )
    assert driver.core.exit_code == 2


def test_a_session_timeout_that_leaves_enough_is_accepted() -> None:
    """Less than asked for is no reason to refuse."""
    driver = Driver(tick_s=0.5, heartbeat_s=0.5)
    driver.timeout_s = 3.0
    driver.start()
    driver.session_up()
    assert not [line for line in driver.log if line.event == "giving_up"]
