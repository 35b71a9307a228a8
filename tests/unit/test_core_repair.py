"""Repair: the replicas that writes wait for, sickness, pauses, nobody following, the diverged tail."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from redis_agent import machine
from redis_agent.core.following import branch_bytes
from redis_agent.messages import (
    CatchUp,
    Commit,
    Delete,
    Follow,
    LiftFence,
    PauseWrites,
    Probe,
    Probed,
    ProbeError,
    ProbeFailed,
    SaveTail,
    TailSaved,
)
from redis_agent.replication import Address, Ledger, LedgerEntry, Position, ReplicaLink
from redis_agent.znodes import ClusterConfig, decode_ballot
from tests.support.core import ADDRESSES, NAMES, PATHS, Driver, follower, leader, ledger, presence, replid, serving
from tests.unit.test_core_handover import leading

STRANGER = Address("10.0.0.99", 6379)


def linked(driver: Driver, *addresses: Address, online: bool = True) -> None:
    """These replicas are attached from now on; the agent looks at them."""
    links = tuple(ReplicaLink(address, online, driver.info.offset_bytes) for address in addresses)
    driver.info = replace(driver.info, replicas=links)


def probed(driver: Driver, **told: Any) -> None:
    """The next look at Redis."""
    driver.wait(driver.core.settings.probe_s)
    driver.settle_but(Probe, LiftFence, "heartbeat")
    probe = driver.take(Probe)
    driver.step(Probed(1, probe.request, driver.now, driver.info, **told))


# --- min-replicas-to-write ------------------------------------------------------------------------------------------


def test_writes_need_the_voters_once_they_are_attached() -> None:
    """w of them: when they freeze, their links close, and the old primary refuses by itself. Case C5."""
    driver = serving()
    linked(driver, ADDRESSES["m3"])
    probed(driver)
    lift = driver.take(LiftFence)
    assert lift.at_least == 1


def test_links_of_others_are_counted_on_top() -> None:
    """Redis counts every link, so a stray replica must not stand for a voter. Case F10."""
    driver = serving()
    linked(driver, ADDRESSES["m3"], STRANGER)
    probed(driver)
    assert driver.take(LiftFence).at_least == 2


@pytest.mark.parametrize("links", [(), (STRANGER,)])
def test_without_enough_voters_nothing_is_raised(links: tuple[Address, ...]) -> None:
    """It would refuse everybody's writes."""
    driver = serving()
    linked(driver, *links)
    probed(driver)
    assert not driver.find(LiftFence)


def test_a_replica_that_is_still_loading_does_not_count() -> None:
    """Its link is not online."""
    driver = serving()
    linked(driver, ADDRESSES["m3"], online=False)
    probed(driver)
    assert not driver.find(LiftFence)


def test_a_link_that_acknowledges_no_more_does_not_count() -> None:
    """A cut without a reset: the link looks online until repl-timeout; Redis counts it no more after ten seconds."""
    driver = serving()
    linked(driver, ADDRESSES["m3"])
    probed(driver)
    driver.settle_but("heartbeat")
    driver.info = replace(driver.info, replicas=(ReplicaLink(ADDRESSES["m3"], True, 100, lag_s=11),))
    probed(driver)
    assert "replicas_lost" in [line.event for line in driver.log]


def test_it_is_lowered_behind_a_heartbeat_that_was_sent_after_the_loss() -> None:
    """The ensemble heard us after it: nobody else was elected so far, the followers are gone for another reason."""
    driver = serving()
    linked(driver, ADDRESSES["m3"])
    probed(driver)
    driver.settle_but("heartbeat")
    linked(driver)
    for earlier in driver.find(Commit, "heartbeat"):
        driver.pending.remove(earlier)
        driver.answer(earlier)
    driver.wait(0.1)
    driver.settle_but(Probe, "heartbeat")
    probed(driver)
    assert not driver.find(LiftFence)
    # Sent before the loss was seen: proves nothing about it.
    driver.answer(driver.take(Commit, "heartbeat"))
    assert not driver.find(LiftFence)
    driver.wait(0.5)
    driver.answer(driver.take(Commit, "heartbeat"))
    assert driver.take(LiftFence).at_least == 0


def test_async_mode_needs_nobody() -> None:
    """Who chose availability over confirmation is not stopped by a lost follower."""
    driver = serving()
    config = replace(driver.core.view.config, mode=type(driver.core.view.config.mode).ASYNC)
    driver.put(PATHS.config, config)
    driver.read_again()
    linked(driver, ADDRESSES["m3"])
    probed(driver)
    assert not driver.find(LiftFence)


def test_a_hand_that_lowers_it_is_corrected() -> None:
    """Drift of the fence of a leader. Case C7."""
    driver = serving()
    linked(driver, ADDRESSES["m3"])
    probed(driver)
    driver.settle()
    probed(driver, drift=(("min-replicas-to-write", "0"),))
    assert driver.take(LiftFence).at_least == 1
    assert "drift" in [line.event for line in driver.log]


# --- nobody follows -------------------------------------------------------------------------------------------------


def unfollowed(driver: Driver, seconds: float) -> None:
    """Time passes, and no replica attaches."""
    until = driver.now + seconds
    while driver.now < until and driver.state == machine.SERVING:
        driver.wait(0.5)
        driver.settle()


def test_a_leader_that_nobody_follows_resigns() -> None:
    """A majority of others is alive: they reach each other, and should lead. Evidence only, for a while."""
    driver = leading()
    linked(driver)
    unfollowed(driver, driver.core.settings.unfollowed_s + 2)
    driver.settle_but("ballot")
    assert driver.state in machine.IN_ROUND
    testimony = decode_ballot(driver.tree[PATHS.ballot(4, "m1")].data)
    assert testimony.abstains
    assert testimony.intact
    assert PATHS.leader not in driver.tree
    # Nobody else could: stand again.
    for _ in range(30):
        driver.wait(0.5)
        driver.settle_but("claim")
    assert not decode_ballot(driver.tree[PATHS.ballot(4, "m1")].data).abstains


@pytest.mark.parametrize("why", ["one follows", "one syncs", "the others are down", "the others are away"])
def test_a_leader_stays_while_it_is_no_worse_than_others(why: str) -> None:
    """Somebody follows, or nobody else could lead."""
    driver = leading()
    linked(driver)
    if why == "one follows":
        linked(driver, ADDRESSES["m2"])
    elif why == "one syncs":
        linked(driver, ADDRESSES["m2"], online=False)
    for name in ("m2", "m3"):
        if why == "the others are down":
            driver.put(PATHS.presence(name), presence(name, redis_up=False), owner=900)
        elif why == "the others are away":
            driver.remove(PATHS.presence(name))
    driver.core.look_at_all()
    driver.fire_watches()
    driver.settle()
    unfollowed(driver, driver.core.settings.unfollowed_s + 3)
    assert driver.state == machine.SERVING


def test_two_members_do_not_resign_on_each_other() -> None:
    """The other one alone could do no better."""
    driver = leading()
    driver.put(PATHS.config, ClusterConfig(cluster_id="c", voters=NAMES[:2]))
    driver.read_again()
    linked(driver)
    unfollowed(driver, driver.core.settings.unfollowed_s + 3)
    assert driver.state == machine.SERVING


# --- sickness and pauses --------------------------------------------------------------------------------------------


def test_a_sick_leader_hands_over_to_a_healthy_member() -> None:
    """MISCONF, seen twice: writes are refused here and would not be there. Case D4."""
    driver = leading()
    probed(driver, sick="MISCONF: the disk is full")
    assert driver.state == machine.SERVING
    probed(driver, sick="MISCONF: the disk is full")
    driver.settle_but(PauseWrites, Probe, LiftFence)
    assert driver.state == machine.PAUSING
    driver.settle_but(CatchUp, Probe)
    assert {name for name, _ in driver.take(CatchUp).successors} == {"m2", "m3"}


def test_all_sick_stays_and_says_so() -> None:
    """Nobody would do better. Case D4."""
    driver = leading()
    for name in ("m2", "m3"):
        driver.put(PATHS.presence(name), presence(name, intact=True, sick="MISCONF: full"), owner=900)
    driver.core.look_at_all()
    driver.fire_watches()
    driver.settle()
    for _ in range(4):
        probed(driver, sick="MISCONF: the disk is full")
        driver.settle_but(Probe)
    assert driver.state == machine.SERVING
    assert "nobody is fit" in driver.core.reason


def test_an_operators_pause_is_no_hang() -> None:
    """CLIENT PAUSE for all commands, ten times as long as a hang may last: alive, left alone, said once."""
    driver = serving()
    for _ in range(40):
        driver.wait(0.5)
        driver.settle_but(Probe)
        for probe in driver.find(Probe):
            driver.pending.remove(probe)
            driver.step(ProbeFailed(1, probe.request, ProbeError.PAUSED))
    assert driver.state == machine.SERVING
    assert not driver.killed
    assert [line.event for line in driver.log].count("redis_paused") == 1


# --- the diverged tail ----------------------------------------------------------------------------------------------


def diverged(**settings: Any) -> Driver:
    """m1 led epoch 2 and wrote up to 350; m3 leads epoch 3, which starts at 300."""
    driver = follower(**settings)
    entries = (
        LedgerEntry(epoch=1, member="m1", guid="g", start=Position(0, 0), replid=replid(1), served=True),
        LedgerEntry(epoch=2, member="m1", guid="g", start=Position(1, 100), replid=replid(2), served=True),
        LedgerEntry(epoch=3, member="m3", guid="g", start=Position(2, 300), replid=replid(3), served=True),
    )
    driver.info = replace(driver.info, offset_bytes=350, replica_offset_bytes=350, replid=replid(2), keys=5)
    driver.wait(1)
    driver.settle()
    driver.put(PATHS.epoch, Ledger(epoch=3, entries=entries))
    driver.put(PATHS.leader, leader("m3", 3), owner=901)
    driver.fire_watches()
    driver.settle_but(SaveTail, Follow, Probe)
    return driver


def test_the_tail_is_saved_before_the_resync_discards_it() -> None:
    """Named by epoch and offset; only then REPLICAOF. Case B12."""
    driver = diverged()
    tail = driver.take(SaveTail)
    assert (tail.name, tail.keep) == ("epoch-2-offset-350", 3)
    assert not driver.find(Follow)
    driver.wait(3)
    driver.settle_but(SaveTail, Follow)
    assert not driver.find(Follow)
    driver.step(TailSaved(1, tail.request, path="diverged/x.rdb"))
    assert driver.find(Follow)


def test_a_tail_that_cannot_be_saved_is_said_and_given_up() -> None:
    """A full disk must not keep a member out of the cluster. Case B12."""
    driver = diverged()
    tail = driver.take(SaveTail)
    driver.step(TailSaved(1, tail.request, error="no space left"))
    assert driver.find(Follow)
    assert "tail_not_saved" in [line.event for line in driver.log]


def test_saving_tails_can_be_switched_off() -> None:
    """keep_diverged = 0."""
    driver = diverged(keep_diverged=0)
    assert not driver.find(SaveTail)
    assert driver.find(Follow)


@pytest.mark.parametrize(
    ("position", "epoch", "branch"),
    [
        (Position(2, 350), 3, 300),
        (Position(1, 150), 3, 100),
        (Position(3, 350), 3, None),
        (Position(2, 350), 9, None),
        (Position(3, 700), 4, 300),
    ],
    ids=["parent", "grandparent", "the same", "unknown", "passed over"],
)
def test_where_two_histories_part(position: Position, epoch: int, branch: int | None) -> None:
    """The start of the first epoch that is not in the position's history."""
    chain = ledger("m1", "m2")
    third = LedgerEntry(epoch=3, member="m3", guid="g", start=Position(2, 300), replid=replid(3), served=True)
    fourth = LedgerEntry(epoch=4, member="m1", guid="g", start=Position(2, 290), replid=replid(4), served=True)
    entries = Ledger(epoch=4, entries=(*chain.entries, third, fourth))
    assert branch_bytes(entries, epoch, position) == branch


def test_a_deposed_leader_freezes_with_its_own_ballot_gone() -> None:
    """What is deleted in resigning is ours only."""
    driver = serving()
    driver.remove(PATHS.leader)
    driver.fire_watches()
    driver.settle_but("ballot")
    testimony = driver.take(Commit, "ballot")
    assert Delete(PATHS.leader) not in testimony.ops
