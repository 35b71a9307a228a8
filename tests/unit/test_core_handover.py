"""Handing over, from either side: every step may be lost, late, or answered by somebody else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from redis_agent import machine
from redis_agent.core.following import KICK_AFTER_S
from redis_agent.messages import (
    CatchUp,
    CaughtUp,
    Check,
    ClockSet,
    CloseSession,
    Commit,
    CommitDone,
    Create,
    Delete,
    Follow,
    Freeze,
    KickClients,
    LeaveRedis,
    LiftFence,
    PauseWrites,
    Probe,
    ProbeRemote,
    Promote,
    Put,
    RedisDied,
    SessionClosed,
    StopRedis,
    StopRequested,
    Unpause,
    UpgradeRequested,
    ZkError,
)
from redis_agent.replication import LedgerEntry, Position, ReplicaLink
from redis_agent.znodes import LeaderPhase, Member, Order, OrderState, decode_ballot, decode_ledger, decode_order
from tests.support.core import ADDRESSES, PATHS, Driver, follower, leader, ledger, presence, replid, serving

ORDER = PATHS.order("switchover-1")


def leading(**settings: Any) -> Driver:
    """m1 serves epoch 3; m2 and m3 follow it, are intact and in sync."""
    driver = serving(**settings)
    for name in ("m2", "m3"):
        driver.put(PATHS.presence(name), presence(name, intact=True, role="replica"), owner=900)
    links = tuple(ReplicaLink(ADDRESSES[name], True, driver.info.offset_bytes) for name in ("m2", "m3"))
    driver.info = replace(driver.info, replicas=links)
    driver.read_again()
    for _ in range(4):  # Until nobody is just attaching any more.
        driver.wait(0.5)
        driver.settle()
    return driver


def ordered(driver: Driver, **order: Any) -> None:
    """An operator asks for a switchover."""
    driver.put(ORDER, Order(**{"kind": "switchover", "at": driver.core.wall_now, "by": "ann", **order}))
    driver.fire_watches()


def answered(driver: Driver) -> Order:
    """What the order's znode says."""
    return decode_order(driver.tree[ORDER].data)


def offered(driver: Driver, to: str = "m3") -> Driver:
    """Up to the designation: everything went well, and the successor has not been heard of."""
    driver.settle_but(CatchUp, Probe)
    driver.step(CaughtUp(driver.take(CatchUp).request, to))
    driver.settle_but(Probe)
    assert driver.state == machine.HANDING_OVER, driver.transitions()
    return driver


def swapped(driver: Driver, name: str = "m3", phase: str = LeaderPhase.TAKING_OVER, epoch: int = 4) -> None:
    """The successor takes the epoch."""
    earlier = decode_ledger(driver.tree[PATHS.epoch].data)
    entry = LedgerEntry(
        epoch=epoch,
        member=name,
        guid=f"guid-{name}",
        start=Position(epoch - 1, driver.info.offset_bytes),
        replid=replid(epoch) if phase == LeaderPhase.SERVING else "",
        served=phase == LeaderPhase.SERVING,
        handover=True,
    )
    entries = tuple(old for old in earlier.entries if old.epoch < epoch)
    driver.put(PATHS.epoch, replace(earlier, epoch=epoch, entries=(*entries, entry)))
    driver.remove(PATHS.leader)
    driver.put(PATHS.leader, replace(leader(name, epoch, phase), by_handover=True), owner=901)
    driver.fire_watches()


# --- the old leader -------------------------------------------------------------------------------------------------


def test_a_leader_hands_over_in_order() -> None:
    """Pause, catch up, freeze without kicking, designate, and wait; follow, then kick; stop Redis, exit 0. Case E1."""
    driver = leading()
    driver.step(StopRequested())
    driver.settle_but(PauseWrites, Probe)
    driver.answer(driver.take(PauseWrites))
    ask = driver.take(CatchUp)
    assert {name for name, _ in ask.successors} == {"m2", "m3"}
    assert (ask.replid, ask.offset) == (driver.info.replid, driver.info.offset_bytes)
    driver.step(CaughtUp(ask.request, "m3"))
    freeze = driver.take(Freeze)
    assert not freeze.kill_clients
    assert not driver.find(Commit, "designate"), "the pause alone is no fence"
    driver.answer(freeze)
    designation = driver.take(Commit, "designate")
    assert [type(op) for op in designation.ops] == [Check, Put]
    driver.answer(designation)
    named = driver.the_leader()
    assert named is not None
    assert (named.phase, named.successor) == (LeaderPhase.HANDING_OVER, "m3")
    assert (named.replid, named.offset_bytes) == (driver.info.replid, driver.info.offset_bytes)
    swapped(driver)
    driver.settle_but(Probe)
    assert driver.state == machine.HANDED_OVER
    assert not driver.find(Unpause)
    swapped(driver, phase=LeaderPhase.SERVING)
    driver.settle_but(Follow, KickClients, Probe)
    assert driver.take(Follow).primary == ADDRESSES["m3"]


def test_a_leader_that_leaves_goes_when_the_waiting_writes_were_answered() -> None:
    """Follow (which ends the pause), kick whoever is left, stop Redis, close the session, exit 0. Case E1."""
    driver = leading()
    driver.step(StopRequested())
    offered(driver)
    swapped(driver)
    swapped(driver, phase=LeaderPhase.SERVING)
    driver.settle_but(Follow, KickClients, Probe)
    assert driver.state == machine.FOLLOWER
    assert not driver.find(StopRedis)
    driver.answer(driver.take(Follow))
    assert not driver.find(StopRedis)
    assert not driver.find(KickClients), "those that watch the leader go by themselves, without a broken connection"
    driver.wait(KICK_AFTER_S)
    assert not driver.find(StopRedis)
    driver.answer(driver.take(KickClients))
    driver.settle_but(StopRedis, Probe)
    assert driver.find(StopRedis)
    driver.step(RedisDied(1, 0, "", was_up=True, ordered=True))
    assert driver.find(CloseSession)
    driver.step(SessionClosed(1, clean=True))
    assert driver.exit is not None
    assert (driver.exit.code, driver.exit.again) == (0, False)


def test_an_order_is_accepted_before_anything_is_paused() -> None:
    """So that it is carried out once: whoever withdrew it at the same moment finds it withdrawn. Case E2."""
    driver = leading()
    ordered(driver, to="m3")
    driver.settle_but("order", Probe)
    accepting = driver.take(Commit, "order")
    assert isinstance(accepting.ops[0], Check)
    assert not driver.find(PauseWrites)
    driver.answer(accepting)
    assert answered(driver).state == OrderState.ACCEPTED
    assert driver.find(PauseWrites)


def test_a_withdrawn_order_is_not_carried_out() -> None:
    """Its znode went while it was being accepted."""
    driver = leading()
    ordered(driver, to="m3")
    driver.settle_but("order", Probe)
    accepting = driver.take(Commit, "order")
    driver.remove(ORDER)
    driver.refuse(accepting, ZkError.NO_NODE)
    driver.fire_watches()
    driver.settle_but(Probe)
    driver.wait(2)
    driver.settle()
    assert driver.state == machine.SERVING
    assert machine.PAUSING not in [dict(line.fields).get("to") for line in driver.log]


def test_the_successor_answers_the_order() -> None:
    """It leads by the handover that the order asked for: done. Case E2."""
    driver = follower()
    driver.put(ORDER, Order(kind="switchover", to="m1", state=OrderState.ACCEPTED, epoch=2, at=driver.core.wall_now))
    appointed(driver, 200)
    driver.settle()
    assert driver.state == machine.SERVING
    assert answered(driver).state == OrderState.DONE
    assert "m1 leads since epoch 3" in answered(driver).detail


def test_an_accepted_order_whose_leader_was_lost_has_failed() -> None:
    """Somebody else leads, and not by handover."""
    driver = leading()
    driver.put(ORDER, Order(kind="switchover", to="m3", state=OrderState.ACCEPTED, epoch=2, at=driver.core.wall_now))
    driver.fire_watches()
    driver.settle_but(Probe)
    assert answered(driver).state == OrderState.FAILED


@pytest.mark.parametrize(
    ("change", "to", "reason"),
    [
        ("", "m9", "there is no member m9; the members are m1, m2, m3"),
        ("", "m1", "m1 leads already"),
        ("nofailover", "m3", "does not vote"),
        ("absent", "m3", "agent of m3 is not there"),
        ("down", "m3", "Redis of m3 is down"),
        ("sick", "m3", "disk full"),
        ("not intact", "m3", "not in sync"),
        ("no link", "m3", "not in sync"),
        ("lag", "m3", "3000000 bytes behind"),
    ],
)
def test_orders_are_refused_with_the_reason(change: str, to: str, reason: str) -> None:
    """To an unknown, non-voting, dead, sick or lagging member. Case E4."""
    driver = leading()
    changed = {
        "down": presence("m3", redis_up=False, intact=True),
        "sick": presence("m3", intact=True, sick="disk full"),
        "not intact": presence("m3", intact=False),
    }
    if change in changed:
        driver.put(PATHS.presence("m3"), changed[change], owner=900)
        driver.core.look_at_all()
        driver.wait(0.01)
    elif change == "nofailover":
        driver.put(PATHS.member("m3"), Member(name="m3", redis=ADDRESSES["m3"], voter=False))
        driver.core.look_at_all()
        driver.wait(0.01)
    elif change == "absent":
        driver.remove(PATHS.presence("m3"))
    elif change in ("no link", "lag"):
        links = (ReplicaLink(ADDRESSES["m3"], True, driver.info.offset_bytes - 3_000_000),)
        driver.info = replace(driver.info, replicas=links if change == "lag" else ())
        driver.wait(0.6)
    driver.fire_watches()
    driver.settle()
    ordered(driver, to=to)
    driver.settle_but(Probe)
    assert answered(driver).state == OrderState.REFUSED
    assert reason in answered(driver).detail
    assert driver.state == machine.SERVING
    assert not driver.core.redis.paused


def test_an_old_order_is_refused() -> None:
    """One that lay there for long would be a surprise."""
    driver = leading()
    ordered(driver, to="m3", at=driver.core.wall_now - 600)
    driver.settle_but(Probe)
    assert answered(driver).state == OrderState.REFUSED
    assert "old" in answered(driver).detail


def test_an_agent_that_started_with_a_wrong_clock_takes_orders_once_it_is_right() -> None:
    """A machine without a battery boots in 1970 and asks the time of others a moment later."""
    driver = leading()
    driver.step(ClockSet(driver.core.wall_offset_s + 1e9))
    ordered(driver, to="m9")
    driver.settle_but(Probe)
    assert "there is no member m9" in answered(driver).detail


def test_an_order_to_an_earlier_leader_is_refused() -> None:
    """Another member leads since: whoever asked for that has it, and a second change would be a surprise."""
    driver = leading()
    ordered(driver, to="m3", epoch=driver.core.epoch - 1)
    driver.settle_but(Probe)
    assert answered(driver).state == OrderState.REFUSED
    assert "the leader has changed meanwhile" in answered(driver).detail


def test_an_order_that_cannot_be_read_is_removed() -> None:
    """Nobody could carry it out or answer it: it would be complained of for ever. The others are carried out."""
    driver = leading()
    garbage = PATHS.order("switchover-0")
    driver.put(garbage, b'{"v": 1, "kind": "switchover", "expires_s": null}')
    ordered(driver, to="m9")
    driver.settle_but(Probe)
    assert garbage not in driver.tree
    assert answered(driver).state == OrderState.REFUSED


def test_giving_up_is_free_while_writes_only_wait() -> None:
    """Nobody catches up: unpaused, still the leader, and the order says why. Case E3."""
    driver = leading()
    ordered(driver, to="m3")
    driver.settle_but(CatchUp, Probe)
    driver.step(CaughtUp(driver.take(CatchUp).request, None))
    assert driver.state == machine.SERVING
    assert driver.find(Unpause)
    assert not driver.find(Freeze)
    driver.settle_but(Probe)
    assert answered(driver).state == OrderState.FAILED
    assert "m3 did not have everything" in answered(driver).detail


def test_a_stuck_handover_ends_by_itself() -> None:
    """Not even the question for the offsets is answered. Case E3."""
    driver = leading(handover_s=2.0)
    ordered(driver, to="m3")
    driver.settle_but(CatchUp, Probe)
    for _ in range(5):
        driver.wait(0.5)
        driver.settle_but(CatchUp)
    assert driver.state == machine.SERVING
    assert answered(driver).state == OrderState.FAILED


def test_a_successor_that_cannot_be_asked_is_known_by_its_acknowledgement() -> None:
    """Clients hold every slot of its Redis: ours is told once a second how far it is. Case D3."""
    driver = leading(handover_s=5.0)
    full = driver.info.replicas
    driver.info = replace(driver.info, replicas=tuple(replace(link, offset_bytes=1) for link in full))
    ordered(driver, to="m3")
    driver.settle_but(CatchUp)
    assert driver.state == machine.PAUSING
    driver.info = replace(driver.info, replicas=full)
    driver.wait(driver.core.settings.probe_s)
    driver.settle_but(CatchUp, Freeze)
    assert driver.state == machine.SEALING
    freeze = driver.take(Freeze)
    # The answer to the question comes too late to matter.
    driver.step(CaughtUp(driver.take(CatchUp).request, None))
    driver.answer(freeze)
    driver.settle_but(CatchUp)
    named = driver.the_leader()
    assert named is not None
    assert named.successor == "m3"


def test_the_epoch_is_taken_back_if_the_successor_does_not_come() -> None:
    """By the same swap: whichever is committed makes the other impossible; then promote, serve, lift, unpause. E3."""
    driver = leading()
    ordered(driver, to="m3")
    offered(driver)
    driver.wait(driver.core.settings.designation_s)
    assert driver.state == machine.RECLAIMING
    swap = driver.take(Commit, "swap")
    assert [type(op) for op in swap.ops] == [Check, Put, Put]
    assert all(op.version >= 0 for op in swap.ops if isinstance(op, Put | Check))
    assert not driver.find(LiftFence)
    driver.answer(swap)
    promote = driver.take(Promote)
    assert promote.run_id == "run-1"
    driver.answer(promote)
    driver.settle_but(Probe)
    assert driver.state == machine.SERVING
    assert not driver.core.redis.paused
    standing = driver.the_leader()
    assert standing is not None
    assert (standing.epoch, standing.phase, standing.name) == (4, LeaderPhase.SERVING, "m1")
    assert answered(driver).state == OrderState.FAILED
    assert "m3 did not take over" in answered(driver).detail


@pytest.mark.parametrize("committed", [True, False])
def test_a_lost_reply_to_taking_back_is_looked_up_first(committed: bool) -> None:
    """Nothing is promoted or lifted on the strength of an unknown outcome. Case E3."""
    driver = offered(leading_ordered())
    driver.wait(driver.core.settings.designation_s)
    swap = driver.take(Commit, "swap")
    if committed:
        driver.commit(swap)
    driver.lose(swap)
    assert not driver.find(Promote)
    driver.settle_but(Probe, Promote, "swap")
    if committed:
        assert driver.state == machine.TAKING_OVER
        assert driver.find(Promote)
    else:
        assert driver.state == machine.RECLAIMING
        assert driver.find(Commit, "swap")


@pytest.mark.parametrize("outcome", ["committed", "lost", "committed, reply lost", "too late"])
def test_a_second_sigterm_while_taking_back(outcome: str) -> None:
    """Our swap is on its way. Whatever becomes of it, `leader` goes in one transaction with the final position, and
    nothing is promoted or lifted. Cases E3, E5.
    """
    driver = offered(leading_ordered())
    driver.wait(driver.core.settings.designation_s)
    assert driver.state == machine.RECLAIMING
    swap = driver.take(Commit, "swap")
    if outcome.startswith("committed"):
        driver.commit(swap)
    driver.step(StopRequested())
    driver.step(StopRequested())
    assert driver.state == machine.RESIGNING
    if outcome == "committed":
        driver.step(CommitDone(swap.session, swap.request, driver.now, (0, driver.tree[PATHS.epoch].version, 1)))
    elif outcome in ("lost", "committed, reply lost"):
        driver.lose(swap)
    for _ in range(3):
        driver.settle_but(Probe, "leave")
        driver.wait(0.2)
    if outcome == "too late":
        driver.answer(swap)
        driver.settle_but(Probe, "leave")
    assert driver.the_leader() is None
    ledger_ = decode_ledger(driver.tree[PATHS.epoch].data)
    assert ledger_.epoch == (4 if outcome.startswith("committed") else 3)
    mine = decode_ballot(driver.tree[PATHS.ballot(ledger_.epoch + 1, "m1")].data)
    assert mine.abstains
    assert mine.up
    assert not driver.find(Promote)
    assert "resigned" in driver.transitions()


def leading_ordered() -> Driver:
    """The same, with an order to hand over to m3."""
    driver = leading()
    ordered(driver, to="m3")
    return driver


def test_the_successor_was_faster_than_taking_back() -> None:
    """The swap is refused, and what is read says that m3 has the epoch: give way. Case E3."""
    driver = offered(leading_ordered())
    driver.wait(driver.core.settings.designation_s)
    swap = driver.take(Commit, "swap")
    swapped(driver)
    driver.answer(swap)
    driver.settle_but(Probe)
    assert driver.state == machine.HANDED_OVER
    assert not driver.find(Promote)


@pytest.mark.parametrize("committed", [True, False])
def test_a_lost_reply_to_the_designation_is_looked_up(committed: bool) -> None:
    """It is made again only if it was not made."""
    driver = leading_ordered()
    driver.settle_but(CatchUp, Probe)
    driver.step(CaughtUp(driver.take(CatchUp).request, "m3"))
    driver.settle_but("designate", Probe)
    designation = driver.take(Commit, "designate")
    if committed:
        driver.commit(designation)
    driver.lose(designation)
    driver.settle_but("designate", Probe)
    if committed:
        assert driver.state == machine.HANDING_OVER
    else:
        driver.answer(driver.take(Commit, "designate"))
        assert driver.state == machine.HANDING_OVER


def test_a_heartbeat_that_the_swap_overtook_does_not_depose() -> None:
    """The ledger moved on because we let it: the writes go on waiting for the successor. Case E1."""
    driver = offered(leading_ordered())
    driver.wait(driver.core.settings.heartbeat_s)
    driver.settle_but("heartbeat", Probe)
    beat = driver.take(Commit, "heartbeat")
    swapped_quietly = driver.tree[PATHS.epoch]
    assert swapped_quietly.version >= 0
    driver.refuse(beat, ZkError.BAD_VERSION)
    assert driver.state == machine.HANDING_OVER


def test_a_leader_that_dies_while_handing_over_leaves_it_to_a_round() -> None:
    """Its Redis is dead: an empty ballot that takes ``leader`` away. Case E7."""
    driver = offered(leading_ordered())
    driver.step(RedisDied(1, -9, "", was_up=True))
    ballot = driver.take(Commit, "ballot")
    assert Delete(PATHS.leader) in ballot.ops
    assert driver.state == machine.FREEZING


@pytest.mark.parametrize("when", ["pausing", "offered"])
def test_the_lease_ends_during_a_handover(when: str) -> None:
    """Fenced, whatever step it was; nothing is lifted any more. Case E7."""
    driver = leading_ordered()
    driver.settle_but(CatchUp, Probe)
    if when == "offered":
        offered(driver)
    driver.session_down()
    driver.wait(driver.core.lease.until - driver.now)
    assert driver.state == machine.CONNECTING
    assert not driver.find(LiftFence)


def test_an_order_whose_handover_ended_with_the_lease_has_failed() -> None:
    """The same session is proved again, and the same epoch serves on: the order is not left as accepted for ever."""
    driver = leading_ordered()
    driver.settle_but(CatchUp, Probe)
    assert driver.state == machine.PAUSING
    driver.session_down()
    driver.wait(driver.core.lease.until - driver.now)
    driver.session_back()
    driver.settle()
    for _ in range(2):  # heartbeats: the one of the return alone proves none
        driver.wait(0.5)
        driver.settle()
    assert driver.state == machine.SERVING
    assert answered(driver).state == OrderState.FAILED
    assert "broken off when the lease ended" in answered(driver).detail


def test_the_successor_fails_before_it_serves() -> None:
    """``leader`` is gone again: an ordinary round, and we are in it. Case E3."""
    driver = offered(leading_ordered())
    swapped(driver)
    driver.settle_but(Probe)
    driver.remove(PATHS.leader)
    driver.fire_watches()
    driver.settle_but("ballot", Probe)
    assert driver.state in (machine.FREEZING, machine.VOTING)
    assert driver.find(Commit, "ballot")


# --- the successor --------------------------------------------------------------------------------------------------


def appointed(driver: Driver, offset_bytes: int, to: str = "m1") -> None:
    """m2, which leads epoch 2, is frozen and names its successor."""
    handing = replace(
        leader("m2", 2), phase=LeaderPhase.HANDING_OVER, successor=to, replid=replid(2), offset_bytes=offset_bytes
    )
    driver.put(PATHS.leader, handing, owner=900)
    driver.fire_watches()


def test_the_successor_takes_the_epoch_in_one_transaction() -> None:
    """Config and ledger checked, their leader deleted at its version, ours created; no round, no freeze. Case E1."""
    driver = follower()
    version = driver.tree[PATHS.leader].version
    appointed(driver, 200)
    driver.settle_but("swap")
    swap = driver.take(Commit, "swap")
    assert [type(op) for op in swap.ops] == [Check, Put, Delete, Create]
    assert swap.ops[2] == Delete(PATHS.leader, version + 1)
    assert not driver.find(Promote)
    driver.answer(swap)
    promote = driver.take(Promote)
    assert promote.run_id == "run-1"
    assert Freeze not in [type(command) for command in driver.pending]
    entry = decode_ledger(driver.tree[PATHS.epoch].data).entries[-1]
    assert (entry.epoch, entry.start, entry.handover) == (3, Position(2, 200), True)
    driver.answer(promote)
    driver.settle_but(Probe)
    assert driver.state == machine.SERVING
    standing = driver.the_leader()
    assert standing is not None
    assert standing.by_handover


def test_the_successor_waits_for_the_last_bytes() -> None:
    """Received is not enough, and less than everything is not enough. Case E3."""
    driver = follower()
    appointed(driver, 300)
    driver.settle_but(Probe, "swap")
    for offsets in ((250, 250), (300, 299)):
        driver.info = replace(driver.info, offset_bytes=offsets[0], replica_offset_bytes=offsets[1])
        driver.answer(driver.take(Probe))
        driver.wait(0.01)
        driver.settle_but(Probe, "swap")
        assert driver.state == machine.FOLLOWER
    driver.info = replace(driver.info, offset_bytes=300, replica_offset_bytes=300)
    driver.answer(driver.take(Probe))
    assert driver.state == machine.SUCCEEDING


def test_a_successor_that_is_not_intact_does_not_take_over() -> None:
    """Its Redis was restarted after the designation: whatever offset it shows, it does not lead. Case E7."""
    driver = follower()
    driver.core.redis.intact, driver.core.redis.proof = False, None
    appointed(driver, 200)
    # What is asked of its own Redis is answered, and well; but the proof is not there yet.
    driver.settle_but(ProbeRemote, "swap")
    driver.wait(0.5)
    driver.settle_but(ProbeRemote, "swap")
    assert driver.core.redis.info is not None
    assert driver.core.redis.info.offset_bytes >= 200
    assert not driver.core.redis.intact
    assert driver.state == machine.FOLLOWER
    assert not driver.find(Commit, "swap")


@pytest.mark.parametrize("what", ["handing over to another", "another takes over"])
def test_followers_sit_a_handover_out(what: str) -> None:
    """The old leader is frozen, and the new one has everything: nobody freezes, and there is no round. Case E1."""
    driver = follower()
    appointed(driver, 200, to="m3")
    if what == "another takes over":
        driver.settle_but(Probe)
        swapped(driver, epoch=3)
    driver.settle_but(Probe)
    assert driver.state == machine.FOLLOWER
    assert not driver.find(Freeze)
    swapped(driver, phase=LeaderPhase.SERVING, epoch=3)
    driver.settle_but(Follow, Probe)
    assert driver.take(Follow).primary == ADDRESSES["m3"]


@pytest.mark.parametrize("committed", [True, False])
def test_a_lost_reply_to_the_swap_is_looked_up(committed: bool) -> None:
    """Promoted only if it was committed."""
    driver = follower()
    appointed(driver, 200)
    driver.settle_but("swap")
    swap = driver.take(Commit, "swap")
    if committed:
        driver.commit(swap)
    driver.lose(swap)
    assert not driver.find(Promote)
    driver.settle_but(Probe, Promote, "swap")
    assert driver.state == (machine.TAKING_OVER if committed else machine.SUCCEEDING)
    assert bool(driver.find(Promote)) == committed


def test_the_swap_is_refused_because_the_old_leader_took_it_back() -> None:
    """It serves again, under the next epoch: follow it. Case E3."""
    driver = follower()
    appointed(driver, 200)
    driver.settle_but("swap")
    swap = driver.take(Commit, "swap")
    driver.put(PATHS.epoch, ledger("m1", "m2", "m2"))
    driver.put(PATHS.leader, leader("m2", 3), owner=900)
    driver.answer(swap)
    driver.fire_watches()
    driver.settle_but(Probe)
    assert driver.state == machine.FOLLOWER
    assert driver.core.epoch == 3


def test_the_old_leader_vanishes_before_the_swap() -> None:
    """Its session is gone: freeze and vote, like everybody. Case E7."""
    driver = follower()
    appointed(driver, 200)
    driver.settle_but("swap")
    swap = driver.take(Commit, "swap")
    driver.remove(PATHS.leader)
    driver.remove(PATHS.presence("m2"))
    driver.refuse(swap, ZkError.NO_NODE)
    driver.fire_watches()
    driver.settle_but("ballot", Probe)
    assert driver.state in machine.IN_ROUND
    assert driver.find(Commit, "ballot")


# --- upgrades -------------------------------------------------------------------------------------------------------


def test_an_upgrade_hands_over_and_leaves_redis_running() -> None:
    """SIGUSR2 of a leader: the same handover; then Redis stays with its guard, and the program is executed again."""
    driver = leading()
    driver.step(UpgradeRequested())
    offered(driver)
    swapped(driver, phase=LeaderPhase.SERVING)
    driver.settle_but(Probe)
    driver.wait(KICK_AFTER_S)
    driver.settle_but(LeaveRedis, Probe, CloseSession)
    assert driver.state == machine.STOPPING_REDIS
    driver.answer(driver.take(LeaveRedis))
    driver.settle_but(Probe, CloseSession)
    driver.step(SessionClosed(1, clean=True))
    assert driver.exit is not None
    assert (driver.exit.code, driver.exit.again) == (0, True)
    assert not driver.find(StopRedis)


def test_an_upgrade_of_a_follower_just_leaves() -> None:
    """Its Redis goes on replicating."""
    driver = follower()
    driver.step(UpgradeRequested())
    assert driver.find(LeaveRedis)
    assert not driver.find(StopRedis)
    assert not driver.find(Freeze)


def test_told_to_stop_after_redis_was_left_to_the_next_life() -> None:
    """It cannot be taken back: the next life is told, so that nothing is left running."""
    driver = follower()
    driver.step(UpgradeRequested())
    driver.answer(driver.take(LeaveRedis))
    driver.settle_but(Probe, CloseSession)
    driver.step(StopRequested())
    driver.step(SessionClosed(1, clean=True))
    assert driver.exit is not None
    assert (driver.exit.again, driver.exit.stop) == (True, True)


def test_an_order_that_cannot_be_written_is_left_alone() -> None:
    """Somebody created it so that agents may not write it: the others are carried out all the same."""
    driver = leading()
    ordered(driver, to="m9")
    driver.settle_but("order", Probe)
    driver.refuse(driver.take(Commit, "order"), ZkError.NO_AUTH)
    for _ in range(6):
        driver.wait(0.5)
        driver.settle_but("order", Probe)
    assert not driver.find(Commit, "order")


def test_a_lost_reply_about_an_order_is_looked_up_with_patience() -> None:
    """It was committed: nothing is written again, and not once per round trip."""
    driver = leading()
    ordered(driver, to="m9")
    driver.settle_but("order", Probe)
    refusal = driver.take(Commit, "order")
    driver.commit(refusal)
    driver.lose(refusal)
    driver.settle_but("order", Probe)
    assert not driver.find(Commit, "order")
    driver.wait(1.1)
    driver.settle_but("order", Probe)
    assert not driver.find(Commit, "order")
    assert answered(driver).state == OrderState.REFUSED


def test_nothing_is_sealed_while_zookeeper_is_away() -> None:
    """Nobody could be named: giving up is free as long as writes only wait. Case E3."""
    driver = leading()
    ordered(driver, to="m3")
    driver.settle_but(CatchUp, Probe)
    driver.session_down()
    driver.step(CaughtUp(driver.take(CatchUp).request, "m3"))
    assert driver.state == machine.SERVING
    assert not driver.find(Freeze)


def test_successors_that_leave_are_not_waited_for() -> None:
    """Everybody was told to stop at the same time."""
    driver = leading()
    driver.step(StopRequested())
    driver.settle_but(CatchUp, Probe)
    for name in ("m2", "m3"):
        driver.remove(PATHS.presence(name))
    driver.fire_watches()
    driver.settle_but(CatchUp, Probe, StopRedis)
    assert driver.state == machine.STOPPING_REDIS
    assert [dict(line.fields)["trigger"] for line in driver.log if line.event == "transition"].count("yield_over") == 1


# --- versions of Redis ----------------------------------------------------------------------------------------------


def versions(driver: Driver, m2: str, m3: str, **changes: Any) -> None:
    """What the Redis of each is, as its presence says."""
    for name, version in (("m2", m2), ("m3", m3)):
        told = presence(name, intact=True, role="replica", redis_version=version, **changes)
        driver.put(PATHS.presence(name), told, owner=900)
    ordered(driver)
    driver.settle_but(CatchUp, Probe)


def test_a_newer_member_is_not_handed_to_while_an_older_one_follows() -> None:
    """A full resync from the newer would leave the older empty: the older one takes over, and an order that wants the
    newer one is refused with what to do first. Case E6.
    """
    driver = leading()
    versions(driver, "7.2.4", "7.0.15")
    assert [name for name, _ in driver.take(CatchUp).successors] == ["m3"]
    reason = driver.core.unfitness("m2")
    assert reason == "m2 runs Redis 7.2.4, whose RDB m3, with Redis 7.0.15, could not load: upgrade m3 first"


def test_the_leader_is_upgraded_last() -> None:
    """All followers are new, and the leader hands over to one of them, although it could not load its RDB. Case E6."""
    driver = leading()
    versions(driver, "8.0.1", "8.0.1")
    assert driver.core.redis.info is not None
    assert driver.core.redis.info.version == "7.0.15"
    assert {name for name, _ in driver.take(CatchUp).successors} == {"m2", "m3"}


@pytest.mark.parametrize("gone", ["agent", "redis"])
def test_an_older_member_that_is_not_there_is_in_nobodys_way(gone: str) -> None:
    """The newer one is the only one left. Case E6."""
    driver = leading()
    driver.put(PATHS.presence("m2"), presence("m2", intact=True, redis_version="valkey 9.0.0"), owner=900)
    if gone == "agent":
        driver.remove(PATHS.presence("m3"))
    else:
        driver.put(PATHS.presence("m3"), presence("m3", redis_up=False, redis_version="valkey 8.1.0"), owner=900)
    ordered(driver)
    driver.settle_but(CatchUp, Probe)
    assert [name for name, _ in driver.take(CatchUp).successors] == ["m2"]


def test_who_leaves_hands_over_to_whoever_there_is() -> None:
    """The only older follower lags far behind: the newer one is still better than no leader at all. Case E6."""
    driver = leading()
    links = (ReplicaLink(ADDRESSES["m2"], True, driver.info.offset_bytes),)
    driver.info = replace(driver.info, replicas=links)
    driver.put(PATHS.presence("m2"), presence("m2", intact=True, redis_version="7.2.4"), owner=900)
    driver.put(PATHS.presence("m3"), presence("m3", redis_version="7.0.15"), owner=900)
    driver.wait(0.5)
    driver.settle()
    driver.step(StopRequested())
    driver.settle_but(CatchUp, Probe)
    assert "m2" in [name for name, _ in driver.take(CatchUp).successors]
