"""A Redis that was sent SIGKILL is fenced, and may be there for long: nobody waits for its end, in any state."""

from __future__ import annotations

import pytest

from redis_agent import machine
from redis_agent.messages import (
    CatchUp,
    CaughtUp,
    Commit,
    Delete,
    DisarmGuard,
    Fence,
    Freeze,
    KillRedis,
    Probe,
    ProbeError,
    ProbeFailed,
    RedisDied,
    StartRedis,
    StopRedis,
    StopRequested,
)
from redis_agent.znodes import LeaderPhase, decode_ballot, decode_presence
from tests.support.core import PATHS, Driver, follower, leader, ledger, serving
from tests.unit.test_core_handover import leading, offered

MUTE = (Probe, Fence, Freeze, StopRedis)


def hang(driver: Driver, for_s: float) -> None:
    """Redis answers nothing for so long; everything else goes well."""
    until = driver.now + for_s
    while driver.now < until:
        driver.wait(0.1)
        for probe in driver.find(Probe):
            driver.pending.remove(probe)
            driver.step(ProbeFailed(1, probe.request, ProbeError.TIMEOUT))
        driver.settle_but(*MUTE)


def kill(driver: Driver) -> None:
    """A fence was not confirmed in time."""
    driver.core.fence_due = driver.now
    driver.wait(0)
    assert driver.killed


def voted_empty(driver: Driver, round_: int = 4) -> bool:
    """The ballot says that there is no Redis here."""
    return not decode_ballot(driver.tree[PATHS.ballot(round_, "m1")].data).up


def test_a_serving_leader_resigns_with_the_kill() -> None:
    """`leader` goes with the SIGKILL, not with the death, of which nothing is heard. Case C2."""
    driver = serving()
    hang(driver, driver.core.settings.hang_s + 2)
    assert [type(kill) for kill in driver.killed] == [KillRedis]
    assert PATHS.leader not in driver.tree
    assert voted_empty(driver)
    assert not driver.core.leading
    hang(driver, 30)
    assert driver.transitions().count("redis_lost") == 1
    assert not driver.find(Probe), "a killed Redis is not asked"
    assert not decode_presence(driver.tree[PATHS.presence("m1")].data).redis_up


def test_the_resignation_is_ordered_behind_the_kill() -> None:
    """In the same step: first SIGKILL, then its guard is disarmed, then `leader` goes. Case C2."""
    driver = serving()
    driver.session_down()
    driver.session_back()
    driver.settle_but(*MUTE, DisarmGuard, "ballot")
    assert driver.state == machine.SERVING
    driver.pending.clear()
    kill(driver)
    orders = [type(command) for command in driver.pending if isinstance(command, DisarmGuard | Commit)]
    assert driver.killed
    assert orders == [DisarmGuard, Commit]
    assert Delete(PATHS.leader) in driver.take(Commit, "ballot").ops


def test_the_death_that_follows_changes_nothing_more() -> None:
    """The ballot stands; Redis is started again, a moment later, for whoever takes over needs the processor more."""
    driver = serving()
    hang(driver, driver.core.settings.hang_s + 2)
    cast = driver.tree[PATHS.ballot(4, "m1")]
    driver.step(RedisDied(1, -9, "", was_up=True, ordered=False))
    assert not driver.find(StartRedis)
    driver.settle_but(*MUTE)
    assert driver.tree[PATHS.ballot(4, "m1")] == cast
    driver.wait(0.3)
    assert driver.find(StartRedis)


def test_a_killed_redis_whose_leader_could_not_be_given_up_yet() -> None:
    """The first attempt is lost: it is made again, although nothing was heard of the death. Case C2."""
    driver = serving()
    kill(driver)
    ballot = driver.take(Commit, "ballot")
    driver.lose(ballot)
    for _ in range(4):
        driver.wait(0.2)
        driver.settle_but(*MUTE)
    assert driver.state == machine.FREEZING
    assert PATHS.leader not in driver.tree
    assert voted_empty(driver)


def test_back_from_an_outage_with_a_killed_redis() -> None:
    """Its fence was not confirmed while ZooKeeper was away, and never will be: `leader` is given up. Cases A4, C2."""
    driver = serving()
    driver.session_down()
    driver.wait(driver.core.lease.until - driver.now + driver.core.settings.fence_timeout_s)
    assert driver.state == machine.CONNECTING
    assert driver.killed
    driver.session_back()
    driver.settle_but(*MUTE)
    hang(driver, 4)
    assert driver.find(Fence), "nobody has answered it"
    assert PATHS.leader not in driver.tree
    assert voted_empty(driver)


def test_a_freeze_that_is_not_confirmed_while_sealing() -> None:
    """The handover is over; a round decides. Case E3."""
    driver = leading()
    driver.put(PATHS.order("switchover-1"), b'{"v":1,"kind":"switchover","to":"m3","at":%d}' % driver.core.wall_now)
    driver.fire_watches()
    driver.settle_but(CatchUp, Probe)
    driver.step(CaughtUp(driver.take(CatchUp).request, "m3"))
    assert driver.state == machine.SEALING
    driver.fail(driver.take(Freeze), unknown=True)
    driver.settle_but(*MUTE)
    assert driver.killed
    assert PATHS.leader not in driver.tree
    assert voted_empty(driver)


def departing() -> Driver:
    """m1 resigns: it is frozen last of all, and the freeze is on its way."""
    driver = leading()
    driver.step(StopRequested())
    driver.settle_but(CatchUp, Probe)
    driver.step(StopRequested())
    assert driver.state == machine.RESIGNING
    return driver


def test_one_that_resigns_gives_up_leader_with_the_kill() -> None:
    """It has no other timer, and its heartbeats would keep `leader` for ever. Case E5."""
    driver = departing()
    driver.fail(driver.take(Freeze), unknown=True)
    driver.settle_but(*MUTE)
    assert driver.killed
    assert driver.state == machine.STOPPING_REDIS
    assert PATHS.leader not in driver.tree


def test_one_that_leaves_does_not_wait_for_the_end_of_what_it_killed() -> None:
    """After a while it takes back its presence and exits; its end is the kernel's affair. Case E5."""
    driver = departing()
    driver.fail(driver.take(Freeze), unknown=True)
    for _ in range(12):
        driver.wait(0.5)
        driver.settle_but(*MUTE)
    assert driver.transitions()[-1] in ("lingers", "session_closed")
    assert PATHS.presence("m1") not in driver.tree
    driver.wait(5)
    assert driver.exit is not None


def test_one_that_does_not_stop_is_killed_and_left() -> None:
    """Stopping is bounded by itself, whatever becomes of what was ordered. Case E5."""
    driver = follower(stop_redis_s=3.0)
    driver.step(StopRequested())
    driver.settle_but(*MUTE)
    assert driver.state == machine.STOPPING_REDIS
    for _ in range(40):
        driver.wait(0.5)
        driver.settle_but(*MUTE)
    assert [kill.reason for kill in driver.killed] == ["it did not stop in time"]
    assert driver.exit is not None


def test_stopping_with_leader_still_ours_gives_it_up_with_the_kill() -> None:
    """The fence was not confirmed: what is killed is fenced, so nobody need wait. Case E5."""
    driver = offered(departing_offered())
    driver.step(StopRequested())
    assert driver.state == machine.RESIGNING
    driver.take(Commit, "ballot")
    driver.step(StopRequested())
    assert driver.state == machine.STOPPING_REDIS
    driver.core.redis.lifted = True
    driver.core.round.ballot_request = 0
    driver.settle_but(*MUTE, "ballot")
    assert not driver.find(Commit, "ballot"), "not before it is fenced"
    driver.step(StopRequested())
    driver.settle_but(*MUTE)
    assert driver.killed
    assert PATHS.leader not in driver.tree


def departing_offered() -> Driver:
    """m1 is told to leave and looks for a successor."""
    driver = leading()
    driver.step(StopRequested())
    return driver


@pytest.mark.parametrize("phase", [LeaderPhase.SERVING, LeaderPhase.TAKING_OVER])
def test_a_followers_redis_that_is_killed_only_costs_it_its_redis(phase: str) -> None:
    """It holds no role, so nothing is given up; it says why it is not there."""
    driver = follower()
    kill(driver)
    hang(driver, 6)
    assert driver.state == machine.FOLLOWER
    assert "does not end" in driver.core.reason
    driver.put(PATHS.epoch, ledger("m1", "m2", "m3", served=phase == LeaderPhase.SERVING))
    driver.put(PATHS.leader, leader("m3", 3, phase), owner=901)
    driver.read_again()
    assert driver.state == (machine.FOLLOWER if phase == LeaderPhase.SERVING else machine.FREEZING)
