"""Rules of the core in depth: another one stands behind each, so no run of the simulator depends on it alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from redis_agent import machine
from redis_agent.messages import (
    CatchUp,
    Commit,
    Fence,
    Follow,
    Freeze,
    LiftFence,
    Probe,
    Probed,
    ProbeRemote,
    Put,
    Read,
    RemoteProbed,
    RoleDone,
    StopRedis,
    StopRequested,
)
from redis_agent.replication import Address
from redis_agent.znodes import LeaderPhase, decode_ballot, decode_ledger
from tests.support.core import (
    ADDRESSES,
    PATHS,
    Driver,
    ballot,
    candidate,
    follower,
    info,
    leader,
    ledger,
    replid,
    serving,
)


def own_ballot(driver: Driver, round_: int = 3):
    """What m1 testified."""
    return decode_ballot(driver.tree[PATHS.ballot(round_, "m1")].data)


def proved(driver: Driver, *held: type) -> None:
    """Heartbeats are answered until the session is proved again, while some commands are held back."""
    for _ in range(6):
        driver.settle_but(*held)
        driver.wait(0.5)
    driver.settle_but(*held)
    assert driver.core.lease.valid(driver.now)


def freezing() -> tuple[Driver, Freeze]:
    """m2 is gone, and m1's freeze for round 3 has no answer yet."""
    driver = follower()
    driver.remove(PATHS.leader)
    driver.remove(PATHS.presence("m2"))
    driver.fire_watches()
    driver.settle_but(Freeze, Probe)
    assert driver.state == machine.FREEZING
    return driver, driver.take(Freeze)


# --- reading --------------------------------------------------------------------------------------------------------


def test_a_claim_between_two_reads_is_no_vacancy() -> None:
    """Znodes are read one after the other, and m3 claims in between: it is followed, and nobody votes against it."""
    driver = follower()
    driver.remove(PATHS.leader)
    driver.fire_watches()
    read = driver.take(Read)
    before = driver._read(read, driver.now).paths
    driver.put(PATHS.leader, leader("m3", 3), owner=901)
    driver.put(PATHS.epoch, ledger("m1", "m2", "m3"))
    done = driver._read(read, driver.now)
    first = next(path for path in read.paths if path in (PATHS.leader, PATHS.epoch))
    driver.step(replace(done, paths={**done.paths, first: before[first]}))
    driver.settle_but(Probe)
    driver.fire_watches()
    driver.settle_but(Probe)
    assert not [path for path in driver.tree if path.startswith(f"{PATHS.ballots}/4-")], "a vote against it"
    assert driver.state == machine.FOLLOWER
    assert driver.core.epoch == 3


def test_reads_prove_no_session() -> None:
    """A server that was cut off from all the others answers them by itself: the lease stands where it stood."""
    driver = serving()
    driver.settle_but("heartbeat", "presence", Probe)
    until = driver.core.lease.until
    for _ in range(5):
        driver.wait(0.7)
        node = driver.tree[PATHS.config]
        driver.put(PATHS.config, node.data)
        driver.fire_watches()
        assert driver.find(Read)
        driver.settle_but("heartbeat", "presence", Probe)
    assert driver.core.lease.until == until


def test_a_leader_of_our_name_is_not_ours() -> None:
    """Another session's, whoever made it: it is not led for, and not deleted either."""
    driver = follower()
    driver.put(PATHS.leader, leader("m1", 3, guid="guid-of-somebody-else"), owner=901)
    driver.put(PATHS.epoch, ledger("m1", "m2", "m1"))
    driver.fire_watches()
    driver.settle_but(Probe)
    driver.step(StopRequested())
    driver.settle_but(Probe, StopRedis)
    assert driver.state not in machine.OWNING
    standing = driver.the_leader()
    assert standing is not None
    assert standing.guid == "guid-of-somebody-else"


def test_a_leader_whose_redis_was_exchanged_does_not_resume() -> None:
    """The lease had ended, and a hand made its Redis a replica meanwhile: `leader` is still ours, and is given up."""
    driver = serving()
    driver.session_down()
    driver.wait(driver.core.lease.until - driver.now)
    driver.settle_but(Probe)
    driver.wait(0.5)
    driver.info = replace(driver.info, is_primary=False, primary=Address("10.9.9.9", 6379), replid="e" * 40)
    driver.settle_but(Freeze, Follow)
    driver.session_back()
    proved(driver, LiftFence)
    assert driver.transitions()[-3:] == ["lease_ended", "unfit", "frozen"]
    assert not driver.find(LiftFence)
    assert driver.the_leader() is None


# --- the ballot -----------------------------------------------------------------------------------------------------


def test_a_claim_starts_where_our_own_redis_is() -> None:
    """Whatever is read under our name: it may be a ballot that was replaced, or one of an earlier process."""
    driver = candidate()
    own = own_ballot(driver)
    driver.put(PATHS.ballot(3, "m1"), replace(own, offset_bytes=own.offset_bytes + 1000))
    driver.put(PATHS.ballot(3, "m3"), ballot("m3", 3, 190))
    driver.fire_watches()
    driver.settle_but("claim", Probe)
    claim = driver.take(Commit, "claim")
    claimed = next(decode_ledger(op.data) for op in claim.ops if isinstance(op, Put) and op.path == PATHS.epoch)
    assert claimed.entries[-1].start.offset_bytes == own.offset_bytes


def test_only_the_latest_freeze_is_evidence() -> None:
    """Frozen, told to follow a new leader, frozen again: the answer to the first freeze says nothing of this round."""
    driver, first = freezing()
    frozen_at = driver.info
    driver.session_down()
    driver.wait(driver.core.lease.until - driver.now)
    driver.put(PATHS.leader, leader("m3", 3), owner=901)
    driver.put(PATHS.epoch, ledger("m1", "m2", "m3"))
    driver.session_back()
    proved(driver, Follow, Fence, Probe)
    follow = driver.take(Follow)
    driver.remove(PATHS.leader)
    driver.fire_watches()
    driver.settle_but(Freeze, Probe)
    second = driver.take(Freeze)
    driver.step(RoleDone(first.incarnation, first.request, frozen_at))
    assert driver.state == machine.FREEZING
    driver.answer(follow)
    driver.info = replace(driver.info, offset_bytes=300, replica_offset_bytes=300)
    driver.answer(second)
    driver.settle_but(Probe)
    assert own_ballot(driver, 4).offset_bytes == 300


@pytest.mark.parametrize("change", [{"loading": True}, {"replid": "e" * 40, "replid2": ""}], ids=["loads", "loaded"])
def test_a_full_resync_ends_being_intact(change: dict[str, object]) -> None:
    """What it held is replaced, seen while it loads or only afterwards: it counts again once it has caught up anew."""
    driver = follower()
    driver.wait(1)
    probe = driver.take(Probe)
    driver.step(Probed(probe.incarnation, probe.request, driver.now, replace(driver.info, **change)))  # type: ignore[arg-type]
    assert not driver.core.redis.intact


def test_what_is_still_being_loaded_at_the_freeze_is_not_intact() -> None:
    """It is waited for, and then its ballot counts for nobody."""
    driver, freeze = freezing()
    driver.step(RoleDone(freeze.incarnation, freeze.request, replace(driver.info, loading=True)))
    assert driver.state == machine.FREEZING
    driver.wait(0.3)
    driver.settle_but(Probe)
    assert driver.state == machine.VOTING
    assert not own_ballot(driver).intact


def test_a_broken_link_needs_another_proof() -> None:
    """What the leader told before is of the time before: it is asked again once the link is up."""
    driver = follower()
    driver.core.redis.intact = False
    driver.wait(1)
    driver.answer(driver.take(Probe))
    asked = driver.take(ProbeRemote)
    told = info(is_primary=True, primary=None, replid=replid(2), offset_bytes=250)
    driver.step(RemoteProbed(asked.request, asked.address, told))
    up = replace(driver.info, offset_bytes=250, replica_offset_bytes=250)
    for found in (replace(up, link_up=False), up):
        driver.wait(0.5)
        driver.info = found
        driver.answer(driver.take(Probe))
    assert not driver.core.redis.intact
    assert driver.take(ProbeRemote).address == ADDRESSES["m2"]


def test_a_frozen_member_that_was_repointed_votes_anew() -> None:
    """A hand pointed it elsewhere after its ballot: it is frozen again, and testifies again."""
    driver = candidate()
    driver.wait(1)
    driver.info = replace(driver.info, primary=Address("10.9.9.9", 6379), offset_bytes=270, replica_offset_bytes=270)
    driver.answer(driver.take(Probe))
    assert driver.state == machine.FREEZING
    driver.settle_but(Probe)
    assert own_ballot(driver).offset_bytes == 270


def test_a_probe_from_before_a_role_command_is_no_drift() -> None:
    """It was asked before Redis was repointed, and is answered behind it: nothing is put back."""
    driver = follower()
    driver.wait(1)
    probe = driver.take(Probe)
    asked_at, before = driver._sent[probe.request], driver.info
    driver.put(PATHS.leader, leader("m3", 3), owner=901)
    driver.put(PATHS.epoch, ledger("m1", "m2", "m3"))
    driver.fire_watches()
    driver.settle_but(Probe)
    assert driver.info.primary == ADDRESSES["m3"]
    driver.step(Probed(probe.incarnation, probe.request, asked_at, before))
    assert not driver.find(Follow)


# --- handing over, and leaving --------------------------------------------------------------------------------------


@pytest.mark.parametrize("why", ["promised", "unguarded"])
def test_a_successor_that_may_not_lead_does_not_take_the_epoch(why: str) -> None:
    """One that has voted for a later round, and one whose guard is lost: the old leader takes its epoch back."""
    driver = follower()
    if why == "promised":
        driver.core.promised_round = 3
    else:
        driver.core.redis.unguarded = True
    handing = replace(
        leader("m2", 2), phase=LeaderPhase.HANDING_OVER, successor="m1", replid=replid(2), offset_bytes=200
    )
    driver.put(PATHS.leader, handing, owner=900)
    driver.fire_watches()
    driver.settle_but("swap")
    driver.wait(0.5)
    driver.settle_but("swap")
    assert not driver.find(Commit, "swap")
    assert driver.state == machine.FOLLOWER


def test_who_stops_gives_up_leader_behind_its_fence() -> None:
    """Told to stop, and the handover is cut short: `leader` stands until Redis has confirmed that it is shut."""
    driver = serving(handover_s=60)
    driver.step(StopRequested())
    driver.settle_but(CatchUp, Probe)
    driver.session_down()
    driver.wait(driver.core.lease.until - driver.now)
    assert driver.state == machine.STOPPING_REDIS
    driver.session_back()
    driver.settle_but(Fence, StopRedis, Probe)
    assert driver.find(Fence)
    assert driver.the_leader() is not None, "its Redis may still be open"
    for fence in driver.find(Fence):
        driver.pending.remove(fence)
        driver.answer(fence)
    driver.settle_but(StopRedis, Probe)
    assert driver.the_leader() is None
