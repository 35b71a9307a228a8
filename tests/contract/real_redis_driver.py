"""The Redis contract's driver for real servers and the real adapter."""

from __future__ import annotations

import itertools
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Self

import redis

from redis_agent.lab.waiting import wait_for
from redis_agent.messages import Follow, KillRedis, RedisDied, StopRedis
from redis_agent.replication import Address
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
        return self._word() if self._connection.can_read(timeout=QUIET_S) else ""

    def _word(self) -> str:
        try:
            reply = self._connection.read_response()
            return "WAITED" if isinstance(reply, int) else str(reply.decode())
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

    def begin_wait(self, replicas: int) -> str:
        self._connection.send_command("WAIT", replicas, 30_000)
        if not self._connection.can_read(timeout=QUIET_S):
            return ""
        return self._word()

    def closed(self) -> bool:
        try:
            return bool(self._connection.can_read(timeout=QUIET_S)) and self._connection.read_response() is None
        except redis.exceptions.ConnectionError:
            return True

    def close(self) -> None:
        self._connection.disconnect()


class RealServer(LocalRedis):
    """A member's Redis, with what the contract asks beyond."""

    def __init__(self, directory: Path, conf: str) -> None:
        super().__init__(directory, conf)
        self._apps: list[RealApp] = []
        self._stack = ExitStack()

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

    def pause_all(self, for_s: float) -> None:
        self.client().execute_command("CLIENT", "PAUSE", round(for_s * 1000), "ALL")

    def fill_disk(self) -> None:
        self._limit_files(0)
        self._save("err")

    def free_disk(self) -> None:
        self._limit_files(resource.RLIM_INFINITY)
        self._save("ok")

    def _limit_files(self, size_bytes: int) -> None:
        assert self.up is not None
        resource.prlimit(self.up.pid, resource.RLIMIT_FSIZE, (size_bytes, resource.RLIM_INFINITY))

    def _save(self, status: str) -> None:
        client = self.client()

        def ended(name: str, value: object) -> bool:
            return bool(client.info("persistence")[name] == value)

        # The agent's own PSYNC may have started one.
        wait_for(lambda: ended("rdb_bgsave_in_progress", 0), LIMIT_S, "nothing else is saved")
        client.bgsave()
        wait_for(lambda: ended("rdb_last_bgsave_status", status), LIMIT_S, f"the save ends: {status}")

    def hang(self) -> None:
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self.up is not None
        os.kill(self.up.pid, number)

    def bgsave(self, *, for_s: float) -> None:
        client = self.client()
        wait_for(lambda: client.info("persistence")["rdb_bgsave_in_progress"] == 0, LIMIT_S, "nothing else is saved")
        client.config_set("rdb-key-save-delay", round(for_s * 1e6 / client.dbsize()))
        client.bgsave()
        wait_for(lambda: client.info("persistence")["rdb_bgsave_in_progress"] == 1, LIMIT_S, "it saves")

    def set_max_lag(self, seconds: int) -> None:
        self.client().config_set("min-replicas-max-lag", seconds)

    def ping_replicas_every(self, seconds: int) -> None:
        self.client().config_set("repl-ping-replica-period", seconds)

    def fail_to_load(self) -> None:
        file = b"REDIS9999" + b"\xff" * 9
        with FakePrimary(b"+FULLRESYNC %s 1000\r\n$%d\r\n%s" % (b"f" * 40, len(file), file)) as primary:
            self.done(Follow, primary=primary.address)
            wait_for(lambda: primary.sent, LIMIT_S, "the file is sent")
        wait_for(lambda: self.info().keys == 0, LIMIT_S, "the old data are gone")
        wait_for(lambda: not self.info().loading, LIMIT_S, "it has given up")

    def continue_without_data(self) -> str:
        primary = FakePrimary(b"+CONTINUE %s\r\n" % (b"f" * 40))
        self._stack.enter_context(primary)
        self.done(Follow, primary=primary.address)
        wait_for(lambda: self.info().link_up, LIMIT_S, "it goes on")
        return "f" * 40

    def tails(self) -> set[str]:
        return {path.stem for path in (self.data_dir / "diverged").iterdir()}

    def __exit__(self, *exception: object) -> None:
        for app in self._apps:
            app.close()
        super().__exit__(*exception)
        self._stack.close()


def _command(stream: BinaryIO) -> bytes:
    """Read a command; returns its name."""
    words = []
    for _ in range(int(stream.readline()[1:])):
        size_bytes = int(stream.readline()[1:])
        words.append(stream.read(size_bytes + 2).strip())
    return words[0].upper()


class FakePrimary:
    """A server that answers one replica's PSYNC with this, and sends nothing more."""

    def __init__(self, answer: bytes) -> None:
        self._answer = answer
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = Address(*self._socket.getsockname())
        self.sent = False
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._socket.close()
        self._thread.join(LIMIT_S)

    def _serve(self) -> None:
        connection, _ = self._socket.accept()
        connection.settimeout(LIMIT_S)
        with connection, connection.makefile("rb") as commands:
            while (name := _command(commands)) != b"PSYNC":
                connection.sendall(b"+PONG\r\n" if name == b"PING" else b"+OK\r\n")
            connection.sendall(self._answer)
            self.sent = True
            commands.read()  # until it hangs up


class RealRedisDriver:
    """Servers below a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._stack = ExitStack()
        self._count = itertools.count(1)

    def server(self, *, saves: bool = False, aof: bool = False) -> RealServer:
        conf = f"{QUICK_SYNC}\n" + ("save 3600 100000\n" if saves else "") + ("appendonly yes\n" if aof else "")
        server = self._stack.enter_context(RealServer(self._directory / f"r{next(self._count)}", conf))
        server.start()
        return server

    def until(self, condition: Callable[[], bool], what: str) -> None:
        wait_for(condition, LIMIT_S, what)

    def close(self) -> None:
        self._stack.close()
