"""The Redis contract's driver for real servers and the real adapter."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import redis

from redis_agent.lab.waiting import wait_for
from redis_agent.messages import KillRedis, RedisDied, StopRedis
from tests.contract.redis_driver import LIMIT_S
from tests.support.redis import QUICK_SYNC, LocalRedis

QUIET_S = 0.2


class RealApp:
    """One plain connection of redis-py."""

    def __init__(self, server: LocalRedis) -> None:
        self._numbers = itertools.count(1)
        self._name = f"key-{id(self)}"
        self._connection = redis.Connection(host=server.address.host, port=server.address.port, protocol=2)
        self._connection.connect()

    def write(self) -> str:
        self._connection.send_command("SET", f"{self._name}-{next(self._numbers)}", "x" * 10)
        return self.answer()

    def answer(self) -> str:
        if not self._connection.can_read(timeout=QUIET_S):
            return ""
        try:
            return str(self._connection.read_response().decode())
        except redis.exceptions.ReadOnlyError:
            return "READONLY"
        except redis.exceptions.ResponseError as error:
            return str(error).split()[0]

    def wait(self, replicas: int) -> int:
        try:
            self._connection.send_command("WAIT", replicas, 1500)
            return int(self._connection.read_response())
        except (redis.exceptions.ResponseError, redis.exceptions.ConnectionError):
            return -1

    def close(self) -> None:
        self._connection.disconnect()


class RealServer(LocalRedis):
    """A member's Redis, with what the contract asks beyond."""

    def __init__(self, directory: Path, conf: str) -> None:
        super().__init__(directory, conf)
        self._apps: list[RealApp] = []

    def app(self) -> RealApp:
        app = RealApp(self)
        self._apps.append(app)
        return app

    def kill(self) -> RedisDied:
        self.adapter.execute(KillRedis(self.incarnation, "test"))
        return self.expect(RedisDied)

    def stop(self) -> RedisDied:
        self.adapter.execute(StopRedis(self.incarnation, 5.0))
        return self.expect(RedisDied)

    def __exit__(self, *exception: object) -> None:
        for app in self._apps:
            app.close()
        super().__exit__(*exception)


class RealRedisDriver:
    """Servers below a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stack = ExitStack()
        self._count = itertools.count(1)

    def server(self, *, saves: bool = False) -> RealServer:
        conf = f"{QUICK_SYNC}\n" + ("save 3600 100000" if saves else "")
        server = self._stack.enter_context(RealServer(self._directory / f"r{next(self._count)}", conf))
        server.start()
        return server

    def until(self, condition: Callable[[], bool], what: str) -> None:
        wait_for(condition, LIMIT_S, what)

    def close(self) -> None:
        self._stack.close()
