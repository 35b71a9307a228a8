"""A local Redis ruled by the real adapter, as the runtime uses it, with its events in a queue."""

from __future__ import annotations

import itertools
import queue
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from redis_agent.lab.ports import free_port
from redis_agent.lab.waiting import wait_for
from redis_agent.messages import (
    Event,
    Follow,
    Freeze,
    KillRedis,
    LiftFence,
    Probe,
    Probed,
    Promote,
    RedisAwaited,
    RedisDied,
    RedisUp,
    RoleDone,
    StartRedis,
)
from redis_agent.redis_adapter import RedisAdapter
from redis_agent.redis_conf import RedisSettings
from redis_agent.replication import Address, RedisInfo

T = TypeVar("T")

BASE_CONF = 'bind 127.0.0.1\nsave ""\n'

QUICK_SYNC = "repl-diskless-sync-delay 0"
"""By default a primary waits 5 s for further replicas before it starts a full resync."""

LIMIT_S = 10.0
"""No answer within this time: the test has failed. Far above anything that should happen."""


def clock() -> float:
    """The agent's clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def server_binary() -> str:
    """The redis-server of this machine; set-up puts one into the virtual environment if there is no other."""
    found = shutil.which("redis-server")
    assert found is not None, "no redis-server in PATH"
    return found


class LocalRedis:
    """One member's Redis in a directory of its own.

    Args:
        directory: made if it is missing; holds redis.conf, data and run directory.
        conf: the operator's redis.conf.
        settings: more of RedisSettings.
    """

    def __init__(self, directory: Path, conf: str = "", **settings: Any) -> None:
        self.directory = directory
        self.data_dir = directory / "data"
        self.data_dir.mkdir(parents=True, exist_ok=True)
        self.conf = directory / "operator.conf"
        self.conf.write_text(f"{BASE_CONF}{conf}\n", encoding="utf-8")
        self.address = Address("127.0.0.1", settings.pop("port", 0) or free_port())
        self.settings = RedisSettings(
            **{
                "announce": self.address,
                "run_dir": directory / "run",
                "data_dir": self.data_dir,
                "conf": self.conf,
                "binary": server_binary(),
                "port": self.address.port,
                **settings,
            }
        )
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.output: list[str] = []
        self.adapter = RedisAdapter(self.settings, post=self.events.put, clock=clock, on_output=self.output.append)
        self.incarnation = 0
        self.alive = False
        self.up: RedisUp | None = None
        self._requests = itertools.count(1)
        self._clients: list[redis.Redis] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        for client in self._clients:
            client.close()
        if self.alive:
            self.adapter.execute(KillRedis(self.incarnation, "end of the test"))
            self.expect(RedisDied)
        self.adapter.close()

    def launch(self) -> None:
        """StartRedis, without waiting."""
        self.incarnation += 1
        self.alive = True
        self.adapter.execute(StartRedis(self.incarnation))

    def start(self) -> RedisUp:
        """Launch it and wait until it is up."""
        self.launch()
        event = self.next_event()
        while isinstance(event, RedisAwaited):  # A slow machine: it lives, and is not up yet.
            event = self.next_event()
        assert isinstance(event, RedisUp), event
        self.up = event
        return event

    def next_event(self, limit_s: float = LIMIT_S) -> Event:
        event = self.events.get(timeout=limit_s)
        if isinstance(event, RedisDied):
            self.alive = False
        return event

    def expect(self, kind: type[T], limit_s: float = LIMIT_S) -> T:
        """The next event of that kind; others are dropped."""
        deadline = time.monotonic() + limit_s
        while True:
            event = self.next_event(max(deadline - time.monotonic(), 0.001))
            if isinstance(event, kind):
                return event

    def ask(self, kind: Callable[..., Any], **arguments: Any) -> Any:
        """Give a command, filling in incarnation, request and limits; returns the event that answers it."""
        request = next(self._requests)
        given = {"incarnation": self.incarnation, "request": request, "limit_s": 2.0, "not_after": clock() + 5.0}
        names = {field.name for field in fields(kind)}  # type: ignore[arg-type]
        self.adapter.execute(kind(**{name: given[name] for name in given if name in names} | arguments))
        deadline = time.monotonic() + LIMIT_S
        while True:
            event = self.next_event(max(deadline - time.monotonic(), 0.001))
            if getattr(event, "request", None) == request:
                return event

    def done(self, kind: Callable[..., Any], **arguments: Any) -> RedisInfo:
        """Give a role command that must succeed; returns the INFO behind it."""
        event = self.ask(kind, **arguments)
        assert isinstance(event, RoleDone), event
        assert event.info is not None
        return event.info

    def info(self) -> RedisInfo:
        event = self.ask(Probe)
        assert isinstance(event, Probed), event
        return event.info

    def lead(self, at_least: int = 0) -> RedisInfo:
        """Freeze, promote, lift the fence."""
        frozen = self.done(Freeze, kill_clients=True)
        promoted = self.done(Promote, run_id=frozen.run_id)
        self.done(LiftFence, at_least=at_least)
        return promoted

    def client(self, **options: Any) -> Any:
        """An application's client: no retries, one connection, replies as text.

        Untyped, because redis-py's types say of each reply that it may also be an awaitable.
        """
        defaults: dict[str, Any] = {
            "host": self.address.host,
            "port": self.address.port,
            "password": self.settings.password or None,
            "username": self.settings.username or None,
            "retry": Retry(NoBackoff(), 0),
            "single_connection_client": True,
            "decode_responses": True,
            "protocol": 2,
            "driver_info": None,
        }
        client = redis.Redis(**defaults | options)
        self._clients.append(client)
        return client


class MakeRedis(Protocol):
    """Starts one more member's Redis; all end with the test."""

    def __call__(self, conf: str = "", **settings: Any) -> LocalRedis: ...


@pytest.fixture
def make_redis(tmp_path: Path) -> Iterator[MakeRedis]:
    """Members' Redis that are up, each in a directory of its own."""
    with ExitStack() as stack:
        count = itertools.count(1)

        def make(conf: str = "", **settings: Any) -> LocalRedis:
            local = stack.enter_context(LocalRedis(tmp_path / f"r{next(count)}", conf, **settings))
            local.start()
            return local

        yield make


def follow(follower: LocalRedis, primary: LocalRedis) -> None:
    """Point it there and wait until it has everything."""
    follower.done(Follow, primary=primary.address)

    def caught_up() -> bool:
        info = follower.info()
        return info.link_up and not info.syncing and info.offset_bytes >= primary.info().offset_bytes

    wait_for(caught_up, LIMIT_S, "the follower is in sync")
