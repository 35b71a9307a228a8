"""The simulated guard: what it promises to the agent, and to those who count on Redis being fenced."""

from __future__ import annotations

from typing import Any

import pytest

from redis_agent.messages import (
    ArmGuard,
    DisarmGuard,
    Event,
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
from redis_agent.replication import Address
from tests.sim.clock import Clock
from tests.sim.guard import Guard
from tests.sim.process import Process
from tests.sim.redis import SimRedis, Watcher
from tests.sim.redis_adapter import RedisAdapter
from tests.sim.redis_data import Disk, Site
from tests.sim.world import Network, World


class Host:
    """One site, and the agent's lives on it."""

    def __init__(self, seed: int = 1) -> None:
        self.world = World(seed)
        self.net = Network(self.world)
        self.site = Site("a", Address("a", 6379), Disk(), Clock(self.world))
        self.begin()

    def begin(self) -> RedisUp:
        """A new life of the agent."""
        self.process = Process(self.world, "a", "a")
        self.heard: list[Event] = []
        self.adapter = RedisAdapter(
            self.net, {self.site.address: self.site}, self.site, Watcher(), self.process, self.heard.append
        )
        self.adapter.execute(StartRedis(1))
        self.until(RedisUp)
        up = self.heard[-1]
        assert isinstance(up, RedisUp)
        return up

    def until(self, kind: type[Any], limit_s: float = 5.0) -> None:
        self.heard.clear()
        found = self.world.run(self.world.now + limit_s, lambda: any(isinstance(event, kind) for event in self.heard))
        assert found, f"no {kind.__name__}"

    def run(self, for_s: float) -> None:
        self.world.run(self.world.now + for_s)

    def lead(self, lease_s: float) -> None:
        """Armed, promoted, fence lifted."""
        redis = self.redis
        self.adapter.execute(ArmGuard(1, 101, self.world.now + lease_s))
        self.until(GuardDone)
        self.adapter.execute(Freeze(1, 102, True, 1.0))
        self.adapter.execute(Promote(1, 103, redis.run_id, self.world.now + 1.0, 1.0))
        self.adapter.execute(LiftFence(1, 104, 0, self.world.now + 1.0, 1.0))
        self.world.run(self.world.now + 0.5, lambda: redis.writable)
        assert redis.writable

    def die(self) -> None:
        """SIGKILL to the agent."""
        self.process.kill()
        self.adapter.close()

    def writable(self) -> bool:
        return self.redis.writable

    @property
    def redis(self) -> SimRedis:
        assert self.site.redis is not None
        return self.site.redis

    @property
    def guard(self) -> Guard:
        assert self.site.guard is not None
        return self.site.guard


@pytest.mark.parametrize("seed", range(10))
def test_the_deadline_passes(seed: int) -> None:
    """Fenced, disarmed, the agent killed; Redis and what it holds live on."""
    host = Host(seed)
    host.lead(1.0)
    host.process.stop()
    host.run(0.9)
    assert host.writable()
    host.run(0.15)
    assert not host.writable()
    assert host.redis.process.alive
    assert not host.process.alive
    assert not host.guard.watches


@pytest.mark.parametrize("seed", range(10))
def test_renewals_and_a_disarming(seed: int) -> None:
    """The newest deadline counts, and none after a disarming."""
    host = Host(seed)
    host.lead(1.0)
    for number in range(5):
        host.run(0.8)
        host.adapter.execute(ArmGuard(1, 200 + number, host.world.now + 1.0))
    host.run(0.5)
    assert host.writable()
    host.redis.fence()
    host.adapter.execute(DisarmGuard(1, 300))
    host.until(GuardDone)
    host.run(5.0)
    assert host.process.alive
    assert host.redis.process.alive


def test_what_waits_in_its_queue_comes_before_the_deadline() -> None:
    """A guard that was stopped past the old deadline finds the renewal first, and does nothing."""
    host = Host()
    host.lead(1.0)
    host.guard.process.stop()
    host.run(0.5)
    host.adapter.execute(ArmGuard(1, 200, host.world.now + 10.0))
    host.run(3.0)
    host.guard.process.cont()
    host.run(1.0)
    assert host.writable()
    assert host.process.alive


def test_stopped_it_acts_when_it_is_continued() -> None:
    """Without a renewal in its queue."""
    host = Host()
    host.lead(1.0)
    host.guard.process.stop()
    host.run(3.0)
    assert host.writable()
    host.guard.process.cont()
    host.run(0.05)
    assert not host.writable()


@pytest.mark.parametrize("seed", range(10))
def test_the_agent_dies_while_it_is_armed(seed: int) -> None:
    """Fenced at once, not at the deadline."""
    host = Host(seed)
    host.lead(10.0)
    host.die()
    host.run(0.05)
    assert not host.writable()
    assert host.redis.process.alive


def test_the_agent_dies_while_it_is_not_armed() -> None:
    """Nothing happens to Redis, and the next life finds the same process, fenced."""
    host = Host()
    before = host.redis
    host.die()
    host.run(10.0)
    up = host.begin()
    assert up.attached
    assert host.redis is before
    assert up.info.run_id == before.run_id
    assert not before.open


@pytest.mark.parametrize("dead", [True, False])
def test_a_redis_that_hangs_is_killed(dead: bool) -> None:
    """No answer to the fence: at the deadline, or when the agent dies."""
    host = Host()
    host.lead(1.0)
    redis = host.redis
    redis.process.stop()
    host.die() if dead else host.process.stop()
    host.run(0.08 if dead else 1.1)
    assert not redis.process.alive


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
