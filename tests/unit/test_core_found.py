"""Faults that were found in the core and mended, where no other test would see them again.

docs/guarantees.md, "What the proofs found", names each.
"""

from __future__ import annotations

from dataclasses import replace

from redis_agent import machine
from redis_agent.messages import (
    Commit,
    Follow,
    Freeze,
    Probe,
    Promote,
    RoleDone,
    SaveState,
    StateSaved,
    StopRedis,
    StopRequested,
)
from redis_agent.replication import NOWHERE
from redis_agent.state_record import StateRecord
from redis_agent.znodes import decode_ballot
from tests.support.core import PATHS, RECORD, Driver, claimant, cluster, follower, leader, ledger, serving


def test_a_promise_of_another_cluster_does_not_bind() -> None:
    """The state file comes from a cluster that was at round 9; here a leader of epoch 2 serves, and is followed."""
    driver = cluster(Driver(), "m2", "m3", epochs=ledger("m1", "m2"))
    driver.put(PATHS.leader, leader("m2", 2), owner=900)
    driver.start(replace(RECORD, cluster_id="another", promised_round=9))
    driver.redis_up(keys=0)
    driver.session_up()
    driver.settle()
    assert driver.state == machine.FOLLOWER


def test_a_full_resync_that_has_begun_has_replaced_nothing() -> None:
    """Its leader dies while it sends the file: link and data are of two histories, and its keys are there."""
    driver = follower()
    driver.remove(PATHS.leader)
    driver.remove(PATHS.presence("m2"))
    driver.fire_watches()
    driver.settle_but(Freeze, Probe)
    driver.info = replace(driver.info, offset_bytes=200, replica_offset_bytes=-1, primary=NOWHERE, link_up=False)
    freeze = driver.take(Freeze)
    driver.step(RoleDone(freeze.incarnation, freeze.request, driver.info))
    driver.settle_but(Probe)
    cast = decode_ballot(driver.tree[PATHS.ballot(3, "m1")].data)
    assert (cast.intact, cast.abstains, cast.keys, cast.offset_bytes) == (True, False, 5, 200)


def test_a_resignation_whose_reply_was_lost_is_sent_again() -> None:
    """And it was not committed: `leader` must not stand while nobody serves."""
    driver = serving()
    driver.remove(PATHS.presence("m3"))
    driver.read_again()
    driver.step(StopRequested())
    driver.settle_but("ballot", StopRedis, Probe)
    driver.lose(driver.take(Commit, "ballot"))
    for _ in range(4):
        driver.settle_but(StopRedis, Probe)
        driver.wait(0.3)
    driver.settle_but(StopRedis, Probe)
    assert driver.the_leader() is None


def test_the_takeovers_deadline_ends_with_it() -> None:
    """The promotion failed, and it was resigned: the deadline of the takeover says nothing about what comes then."""
    driver = claimant()
    driver.settle_but(Promote)
    driver.fail(driver.take(Promote), unknown=False)
    driver.settle_but(Probe)
    before = driver.transitions()
    for _ in range(10):
        driver.wait(driver.core.settings.takeover_s / 8)
        driver.settle_but(Probe, "claim")
    assert "unfit" not in driver.transitions()[len(before) :]


def test_the_clusters_id_is_on_disk_before_the_data_are() -> None:
    """From the first REPLICAOF on our data are this cluster's: after a power loss nothing else could prove it."""
    driver = cluster(Driver(), "m2", "m3", epochs=ledger("m1", "m2"))
    driver.put(PATHS.leader, leader("m2", 2), owner=900)
    driver.start(StateRecord())
    driver.redis_up(keys=0)
    driver.session_up()
    held: list[SaveState] = []
    for _ in range(20):
        driver.settle_but(SaveState, Follow, Probe)
        saves = driver.find(SaveState)
        if not saves:
            break
        driver.pending.remove(saves[0])
        if saves[0].record.cluster_id:
            held.append(saves[0])
            break
        driver.step(StateSaved(saves[0].request))
    assert held
    assert not driver.find(Follow)
    driver.step(StateSaved(held[0].request))
    driver.settle_but(Follow, Probe)
    assert driver.find(Follow)
