"""A Redis that is not up yet: left by our last life, or launched; silent, busy, paused, or not to be worked with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from redis_agent import machine
from redis_agent.core.local_redis import START_LIMIT_S
from redis_agent.messages import (
    LeaveRedis,
    ProbeError,
    RedisAwaited,
    RedisDied,
    RedisRefused,
    RedisUp,
    Started,
    StartRedis,
    StopRedis,
    StopRequested,
)
from tests.support.core import PATHS, RECORD, Driver, cluster, follower, leader, ledger, presence


def attaching(*, led: bool = True, **settings: Any) -> Driver:
    """Our last life left a Redis, which has not answered yet. ``led``: m2 serves epoch 2 with m3; else nobody leads."""
    driver = cluster(Driver(**settings), "m2", "m3", epochs=ledger("m1", "m2"))
    if led:
        driver.put(PATHS.leader, leader("m2", 2), owner=900)
    driver.step(Started(RECORD, lock_held=True, old_redis_alive=True))
    driver.take(StartRedis)
    driver.session_up()
    driver.settle()
    return driver


def pass_time(driver: Driver, seconds: float, life: ProbeError | None = None) -> None:
    """Time goes by in a live session; ``life`` is what Redis shows meanwhile."""
    until = driver.now + seconds
    while driver.now < until:
        driver.wait(0.2)
        driver.settle_but(StartRedis, StopRedis, LeaveRedis)
        if life is not None:
            driver.step(RedisAwaited(driver.core.redis.incarnation, life))


def said(driver: Driver, event: str) -> int:
    return [line.event for line in driver.log].count(event)


def test_one_that_hangs_is_killed_while_somebody_leads() -> None:
    """As any hung follower: hang_s after the attempt to attach began; then it is launched anew. Case A11."""
    driver = attaching()
    assert driver.state == machine.FOLLOWER
    pass_time(driver, driver.core.settings.hang_s - 0.3)
    assert driver.killed == []
    pass_time(driver, 0.6)
    assert [kill.incarnation for kill in driver.killed] == [1]
    assert said(driver, "redis_silent") == 1
    driver.step(RedisDied(1, -9, "", was_up=True))
    pass_time(driver, 0.2)
    assert driver.take(StartRedis).incarnation == 2
    assert driver.exit is None


def test_one_that_hangs_is_left_while_nobody_leads() -> None:
    """Its memory may be what the election rests on; as soon as somebody leads without it, it is killed."""
    driver = attaching(led=False)
    pass_time(driver, 10 * driver.core.settings.hang_s)
    assert driver.killed == []
    assert said(driver, "redis_silent") == 1
    driver.put(PATHS.epoch, ledger("m1", "m2", "m2"))
    driver.put(PATHS.leader, leader("m2", 3), owner=900)
    driver.read_again()
    pass_time(driver, 1.0)
    assert len(driver.killed) == 1


def test_one_that_is_paused_lives() -> None:
    """Somebody's CLIENT PAUSE, however long: it is not taken for a hang, and told of once."""
    driver = attaching()
    pass_time(driver, 10 * driver.core.settings.hang_s, ProbeError.PAUSED)
    assert driver.killed == []
    assert said(driver, "redis_paused") == 1
    driver.step(RedisUp(1, 4711, 1.0, replace(driver.info, run_id="run-1"), attached=True))
    assert driver.core.redis.up
    assert not driver.core.redis.stalled


def test_one_that_has_no_slot_for_us_lives() -> None:
    """Its clients have taken all connections while we were away: that is no hang. Case D3."""
    driver = attaching()
    pass_time(driver, 5 * driver.core.settings.hang_s, ProbeError.REFUSED)
    assert driver.killed == []
    assert said(driver, "redis_full") == 1


def test_one_that_is_busy_lives_up_to_a_limit() -> None:
    """A script runs: alive for busy_s, and hung hang_s later."""
    driver = attaching()
    settings = driver.core.settings
    pass_time(driver, settings.busy_s + settings.hang_s - 0.5, ProbeError.BUSY)
    assert driver.killed == []
    pass_time(driver, 1.0, ProbeError.BUSY)
    assert len(driver.killed) == 1


def test_one_that_was_launched_has_long() -> None:
    """It may be reading what it has on disk; if it never answers it is ended, and the next one has twice as long."""
    driver = follower()
    driver.step(RedisDied(1, -11, "", was_up=True))
    for incarnation, limit_s in ((2, START_LIMIT_S * 2), (3, START_LIMIT_S * 4)):
        pass_time(driver, 1.0)
        assert driver.take(StartRedis).incarnation == incarnation
        pass_time(driver, limit_s - 2)
        assert len(driver.killed) == incarnation - 2
        pass_time(driver, 3)
        assert len(driver.killed) == incarnation - 1
        driver.step(RedisDied(incarnation, -9, "", was_up=False))
    assert driver.exit is None


def test_a_first_launch_that_never_answers_is_repeated() -> None:
    """That we killed it says nothing about its configuration: no exit 2."""
    driver = Driver()
    driver.start()
    driver.take(StartRedis)
    pass_time(driver, START_LIMIT_S + 1)
    assert len(driver.killed) == 1
    driver.step(RedisDied(1, -9, "", was_up=False))
    pass_time(driver, 1.0)
    assert driver.take(StartRedis).incarnation == 2


def test_one_that_does_not_let_us_in_is_left_alone() -> None:
    """A changed password ends the agent, with exit 2 and the reason; Redis, whose data may be needed, runs on."""
    driver = attaching()
    driver.step(RedisRefused(1, "redis-server 7 is left running: no password fits"))
    assert driver.take(LeaveRedis).incarnation == 1
    driver.answer(LeaveRedis(1))
    driver.settle()
    driver.wait(3 * driver.core.settings.close_session_s)
    assert driver.exit is not None
    assert (driver.exit.code, driver.exit.reason) == (2, "redis-server 7 is left running: no password fits")
    assert driver.killed == []
    assert driver.find(StopRedis) == []
    assert PATHS.presence("m1") not in driver.tree


def test_who_is_told_to_stop_stops_it_all_the_same() -> None:
    """It was being stopped already: what it does not let us do matters no more."""
    driver = attaching()
    driver.step(StopRequested())
    driver.take(StopRedis)
    driver.step(RedisRefused(1, "no password fits"))
    driver.step(RedisDied(1, 0, "", was_up=True, ordered=True))
    driver.settle()
    driver.wait(3 * driver.core.settings.close_session_s)
    assert driver.exit is not None
    assert driver.exit.code == 0


def test_news_of_one_that_is_up_already_changes_nothing() -> None:
    """What was told of before is late."""
    driver = follower()
    driver.put(PATHS.presence("m2"), presence("m2"), owner=900)
    driver.step(RedisAwaited(1, ProbeError.PAUSED))
    assert not driver.core.redis.stalled
