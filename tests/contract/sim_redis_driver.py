"""The Redis contract's driver for the simulated Redis and its adapter, in virtual time."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from redis_agent.messages import (
    Event,
    Follow,
    Freeze,
    KillRedis,
    LiftFence,
    Probe,
    Probed,
    Promote,
    RedisDied,
    RedisUp,
    RoleDone,
    StartRedis,
    StopRedis,
)
from redis_agent.replication import Address, RedisInfo
from tests.contract.redis_driver import LIMIT_S
from tests.sim.clock import Clock
from tests.sim.process import Process
from tests.sim.redis import SimRedis, Watcher
from tests.sim.redis_adapter import RedisAdapter
from tests.sim.redis_data import Disk, RedisConn, Site, Sites
from tests.sim.world import Network, World

QUIET_S = 0.2


class SimApp:
    """A client of a simulated server."""

    def __init__(self, world: World, net: Network, redis: SimRedis, numbers: itertools.count[int]) -> None:
        self._world = world
        self._redis = redis
        self._numbers = numbers
        self._replies: deque[tuple[Any, ...]] = deque()
        self._closed = False
        self._conn = RedisConn(net, "app", redis, self)
        redis.accept(self._conn)

    def on_reply(self, conn: RedisConn, reply: tuple[Any, ...]) -> None:
        self._replies.append(reply)

    def on_closed(self, conn: RedisConn) -> None:
        self._closed = True

    def _next(self, limit_s: float) -> tuple[Any, ...]:
        self._world.run(self._world.now + limit_s, lambda: bool(self._replies) or self._closed)
        return self._replies.popleft() if self._replies else ("",)

    def write(self) -> str:
        self._conn.up.send(self._redis.process.run, self._redis.write, self._conn, next(self._numbers))
        return self.answer()

    def answer(self) -> str:
        return str(self._next(QUIET_S)[0])

    def wait(self, replicas: int) -> int:
        self._conn.up.send(self._redis.process.run, self._redis.wait, self._conn, replicas, 1.5)
        kind, *rest = self._next(2.0)
        return int(rest[0]) if kind == "WAITED" else -1

    def begin_wait(self, replicas: int) -> str:
        self._conn.up.send(self._redis.process.run, self._redis.wait, self._conn, replicas, 30.0)
        return self.answer()

    def closed(self) -> bool:
        self._world.run(self._world.now + QUIET_S, lambda: self._closed)
        return self._closed and not self._replies


class SimServer:
    """A site with its adapter."""

    def __init__(self, world: World, net: Network, sites: Sites, site: Site, numbers: itertools.count[int]) -> None:
        self.address = site.address
        self._world = world
        self._net = net
        self._sites = sites
        self._site = site
        self._numbers = numbers
        self._events: deque[Event] = deque()
        self._process = Process(world, site.name, site.name)
        self._adapter = RedisAdapter(net, sites, site, Watcher(), self._process, self._events.append)
        self._incarnation = 0
        self._requests = itertools.count(1)

    def start(self) -> RedisUp:
        self._incarnation += 1
        self._adapter.execute(StartRedis(self._incarnation))
        event = self.next_event()
        assert isinstance(event, RedisUp), event
        return event

    def next_event(self, limit_s: float = LIMIT_S) -> Event:
        self._world.run(self._world.now + limit_s, lambda: bool(self._events))
        assert self._events, f"no event within {limit_s} s"
        return self._events.popleft()

    def ask(self, kind: Callable[..., Any], **arguments: Any) -> Any:
        request = next(self._requests)
        given = {"incarnation": self._incarnation, "request": request, "limit_s": 2.0, "not_after": self._world.now + 5}
        names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
        self._adapter.execute(kind(**{name: given[name] for name in given if name in names} | arguments))
        while True:
            event = self.next_event()
            if getattr(event, "request", None) == request:
                return event

    def done(self, kind: Callable[..., Any], **arguments: Any) -> RedisInfo:
        event = self.ask(kind, **arguments)
        assert isinstance(event, RoleDone), event
        assert event.info is not None
        return event.info

    def info(self) -> RedisInfo:
        event = self.ask(Probe)
        assert isinstance(event, Probed), event
        return event.info

    def lead(self, at_least: int = 0) -> RedisInfo:
        frozen = self.done(Freeze, kill_clients=True)
        promoted = self.done(Promote, run_id=frozen.run_id)
        self.done(LiftFence, at_least=at_least)
        return promoted

    def app(self) -> SimApp:
        return SimApp(self._world, self._net, self._redis, self._numbers)

    def kill(self) -> RedisDied:
        self._adapter.execute(KillRedis(self._incarnation, "test"))
        return self._death()

    def stop(self) -> RedisDied:
        self._adapter.execute(StopRedis(self._incarnation, 5.0))
        return self._death()

    @property
    def _redis(self) -> SimRedis:
        assert self._site.redis is not None
        return self._site.redis

    def pause_all(self, for_s: float) -> None:
        self._redis.pause_all(for_s)

    def fill_disk(self) -> None:
        self._redis.fall_ill("MISCONF: the last RDB save failed (disk full?)")

    def free_disk(self) -> None:
        self._redis.fall_ill("")

    def hang(self) -> None:
        self._redis.process.stop()

    def resume(self) -> None:
        self._redis.process.cont()

    def bgsave(self, *, for_s: float) -> None:
        self._redis.save_s = for_s
        self._redis.bgsave()

    def set_max_lag(self, seconds: int) -> None:
        self._redis.max_lag_s = float(seconds)

    def ping_replicas_every(self, seconds: int) -> None:
        self._redis.ping_s = seconds

    def fail_to_load(self) -> None:
        redis = self._redis
        redis.load_fails = True
        self.done(Follow, primary=self._another().site.address)
        self._world.run(self._world.now + LIMIT_S, lambda: redis.loading)
        assert redis.loading
        self._world.run(self._world.now + LIMIT_S, lambda: not redis.loading)

    def continue_without_data(self) -> str:
        redis, other = self._redis, self._another()
        other.offset, other.data = redis.offset, list(redis.data)
        other.replid2, other.second = redis.replid, redis.offset
        other.make_stream()
        self.done(Follow, primary=other.site.address)
        self._world.run(self._world.now + LIMIT_S, lambda: redis.link_up)
        return other.replid

    def _another(self) -> SimRedis:
        """A primary, with a history of its own."""
        address = Address("another", 6379)
        site = Site("another", address, Disk(), Clock(self._world))
        self._sites[address] = site
        other = SimRedis(self._net, self._sites, site, Watcher(), 1)
        other.is_primary = True
        return other

    def tails(self) -> set[str]:
        return set(self._site.disk.diverged)

    def _death(self) -> RedisDied:
        while not isinstance(event := self.next_event(), RedisDied):
            pass
        return event


class SimRedisDriver:
    """Simulated servers."""

    def __init__(self, seed: int = 1) -> None:
        self._world = World(seed)
        self._net = Network(self._world)
        self._sites: Sites = {}
        self._numbers = itertools.count(1)

    def server(self, *, saves: bool = False, aof: bool = False) -> SimServer:
        name = "abcdef"[len(self._sites)]
        site = Site(name, Address(name, 6379), Disk("rdb" if saves else "aof" if aof else "none"), Clock(self._world))
        self._sites[site.address] = site
        server = SimServer(self._world, self._net, self._sites, site, self._numbers)
        server.start()
        return server

    def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = self._world.now + LIMIT_S
        while not condition():
            assert self._world.now < deadline, what
            self._world.run(self._world.now + 0.01)
