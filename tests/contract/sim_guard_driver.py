"""The guard of the simulation, with its Redis and the agent's lives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from redis_agent.messages import (
    ArmGuard,
    DisarmGuard,
    Event,
    Freeze,
    GuardDone,
    LiftFence,
    Promote,
    RedisDied,
    RedisUp,
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
    """One site, and the agent's lives on it. A GuardDriver."""

    def __init__(self, seed: int = 1) -> None:
        self.world = World(seed)
        self.net = Network(self.world)
        self.site = Site("a", Address("a", 6379), Disk(), Clock(self.world))
        self._number = 1000
        self.begin()
        self._led = self.redis

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

    # --- what the contract asks for ---

    def renew(self, lease_s: float) -> None:
        self._number += 1
        self.adapter.execute(ArmGuard(1, self._number, self.world.now + lease_s))

    def disarm(self) -> None:
        self.redis.fence()
        self.adapter.execute(DisarmGuard(1, 300))
        self.until(GuardDone)

    def stop_agent(self) -> None:
        self.process.stop()

    def stop_guard(self) -> None:
        self.guard.process.stop()

    def continue_guard(self) -> None:
        self.guard.process.cont()

    def kill_guard(self) -> None:
        self.guard.kill()

    def stop_redis(self) -> None:
        self.redis.process.stop()

    def agent_alive(self) -> bool:
        return self.process.alive

    def redis_alive(self) -> bool:
        return self._led.process.alive

    def told_of_death(self) -> bool:
        return any(isinstance(event, RedisDied) for event in self.heard)

    def attached(self) -> bool:
        return self.begin().attached and self.redis is self._led

    def within(self, limit_s: float, condition: Callable[[], bool]) -> bool:
        self.world.run(self.world.now + limit_s, condition)
        return condition()

    def close(self) -> None:
        """There is nothing to end."""
