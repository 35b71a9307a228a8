"""A real guard with a real Redis, and agents that are processes of their own."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import redis

from redis_agent.guard_link import Greeting
from redis_agent.lab.waiting import wait_for
from redis_agent.lab.zookeeper import LabError
from redis_agent.redis_conf import GUARD_CLIENT_NAME
from tests.support.guard import Host
from tests.support.redis import LIMIT_S, clock


class _Agent:
    """One life."""

    def __init__(self, directory: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.contract.guard_agent", str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.heard: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.reader = threading.Thread(target=self._read, args=(self.process.stdout,), daemon=True)
        self.reader.start()
        self.ready = self.hear("ready")

    def _read(self, lines: IO[str]) -> None:
        for line in lines:
            self.heard.put(json.loads(line))

    def hear(self, kind: str, limit_s: float = LIMIT_S) -> dict[str, Any]:
        """The next message of that kind. Raises queue.Empty."""
        while (message := self.heard.get(timeout=limit_s))["is"] != kind:
            pass
        return message

    def send(self, **message: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.reader.join()
        for end in (self.process.stdin, self.process.stdout):
            assert end is not None
            end.close()


class RealGuardDriver:
    """A GuardDriver."""

    def __init__(self, directory: Path) -> None:
        self._host = Host(directory)
        self._agent = _Agent(directory)
        ready = self._agent.ready
        self._host.greeting = Greeting(ready["guard_pid"], ready["redis_pid"], ready["create_time"], None)
        wait_for(self._host.answers, LIMIT_S, "Redis answers")
        self._agent.send(**self._host.credentials())
        wait_for(lambda: self._host.named(GUARD_CLIENT_NAME), LIMIT_S, "the guard is connected")
        self._number = 0

    def _ask(self, **message: object) -> int:
        self._number += 1
        self._agent.send(id=self._number, **message)
        return self._number

    def lead(self, lease_s: float) -> None:
        number = self._ask(do="arm", until=clock() + lease_s)
        assert self._agent.hear("done")["id"] == number
        self._host.client().config_set("min-replicas-to-write", 0)

    def renew(self, lease_s: float) -> None:
        self._ask(do="arm", until=clock() + lease_s)

    def disarm(self) -> None:
        number = self._ask(do="disarm")
        while self._agent.hear("done")["id"] != number:
            pass

    def die(self) -> None:
        self._agent.process.kill()

    def stop_agent(self) -> None:
        self._agent.process.send_signal(signal.SIGSTOP)

    def stop_guard(self) -> None:
        os.kill(self._host.guard_pid, signal.SIGSTOP)

    def continue_guard(self) -> None:
        os.kill(self._host.guard_pid, signal.SIGCONT)

    def kill_guard(self) -> None:
        os.kill(self._host.guard_pid, signal.SIGKILL)

    def stop_redis(self) -> None:
        os.kill(self._host.pid, signal.SIGSTOP)

    def writable(self) -> bool:
        try:
            return bool(self._host.client().set("a", 1))
        except redis.ResponseError:
            return False

    def redis_alive(self) -> bool:
        return self._host.alive()

    def agent_alive(self) -> bool:
        return self._agent.process.poll() is None

    def told_of_death(self) -> bool:
        while not self._agent.heard.empty():
            if self._agent.heard.get()["is"] in {"dead", "gone"}:
                return True
        return False

    def attached(self) -> bool:
        self._agent.close()
        self._agent = _Agent(self._host.directory)
        return bool(self._agent.ready["attached"] and self._agent.ready["redis_pid"] == self._host.pid)

    def run(self, for_s: float) -> None:
        end = clock() + for_s
        wait_for(lambda: clock() > end, for_s + LIMIT_S, "time passes")

    def within(self, limit_s: float, condition: Callable[[], bool]) -> bool:
        try:
            wait_for(condition, limit_s, "it comes true", pause_s=0.002)
        except LabError:
            return False
        return True

    def close(self) -> None:
        self._agent.close()
        self._host.__exit__()
