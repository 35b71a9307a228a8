"""The simulated guard: what tests/contract/test_guard_contract.py does not say of it."""

from __future__ import annotations

import pytest

from redis_agent.messages import (
    ArmGuard,
    Freeze,
    GuardDone,
    GuardFailed,
    KillRedis,
    LeaveRedis,
    LiftFence,
    Promote,
    RedisDied,
    RedisLeft,
    RedisUp,
    RoleDone,
    StartRedis,
)
from tests.contract.sim_guard_driver import Host


@pytest.mark.parametrize("seed", range(20))
def test_what_a_dead_agent_left_in_its_socket_is_never_executed(seed: int) -> None:
    """The lift that Redis had not read yet: its connection is killed by the next life before anything else."""
    host = Host(seed)
    host.adapter.execute(Freeze(1, 102, True, 1.0))
    host.adapter.execute(Promote(1, 103, host.redis.run_id, host.world.now + 1.0, 1.0))
    host.until(RoleDone)
    host.until(RoleDone)
    redis = host.redis
    redis.process.stop()
    host.adapter.execute(LiftFence(1, 104, 0, host.world.now + 1.0, 1.0))
    if host.world.chance(0.5):
        host.run(0.02)  # it is in Redis's socket; else it may still be on its way
    host.die()
    host.world.after(0.3, redis.process.cont)
    host.begin()
    host.run(1.0)
    assert host.redis is redis
    assert not redis.open


def test_its_death_is_that_of_redis() -> None:
    """And the agent hears of it, also where it waits for an acknowledgement."""
    host = Host()
    host.guard.process.stop()
    host.adapter.execute(ArmGuard(1, 200, host.world.now + 10.0))
    host.run(0.1)
    assert not any(isinstance(event, GuardDone) for event in host.heard)
    host.guard.kill()
    host.until(RedisDied)
    host.run(0.1)
    assert any(isinstance(event, GuardFailed) for event in host.heard)


def test_a_stopped_guard_does_not_keep_redis_from_being_killed() -> None:
    """The agent kills Redis by itself, and the guard that does not tell of it."""
    host = Host()
    redis, guard = host.redis, host.guard
    guard.process.stop()
    host.adapter.execute(KillRedis(1, "test"))
    assert not redis.process.alive
    host.until(RedisDied, 0.2)
    assert not guard.process.alive
    host.adapter.execute(StartRedis(2))
    host.until(RedisUp)
    assert host.guard is not guard


def test_left_and_found_again() -> None:
    """LeaveRedis: nothing more is heard of it; the next life attaches."""
    host = Host()
    redis = host.redis
    host.adapter.execute(LeaveRedis(1))
    host.until(RedisLeft)
    host.die()
    host.run(1.0)
    assert redis.process.alive
    assert host.begin().attached
    assert host.redis is redis


def test_a_guard_that_does_not_answer_the_next_life_is_replaced() -> None:
    """With its Redis: better a restart than two agents' hands on one."""
    host = Host()
    redis = host.redis
    host.guard.process.stop()
    host.die()
    host.run(1.0)
    assert not host.begin().attached
    assert host.redis is not redis
    assert not redis.process.alive
