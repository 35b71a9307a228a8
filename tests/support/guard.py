"""A directory with a guard and a Redis of its own, and this process or another one as the agent."""

from __future__ import annotations

import os
import select
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import redis

from redis_agent.guard_link import SOCKET_NAME, Greeting, GuardLink
from redis_agent.lab.ports import free_port
from redis_agent.lab.waiting import wait_for
from redis_agent.process_host import is_alive
from redis_agent.redis_conf import GUARD_CLIENT_NAME
from tests.support.redis import LIMIT_S, server_binary

FENCED = "1000000"


class Host:
    """A directory with a guard, and a Redis that anybody may write to: what is fenced here, the guard has fenced.

    Args:
        directory: for everything.
        conf: further lines of redis.conf.
    """

    def __init__(self, directory: Path, conf: str = "") -> None:
        self.directory = directory
        self.conf = directory / "redis.conf"
        self.unix_socket = str(directory / "redis.sock")
        lines = f"port {free_port()}\nbind 127.0.0.1\nunixsocket {self.unix_socket}\nsave ''\n{conf}\n"
        self.conf.write_text(lines, encoding="utf-8")
        self.path = directory / SOCKET_NAME
        self.messages: list[dict[str, Any]] = []
        self.greeting: Greeting | None = None
        self._links: list[GuardLink] = []
        self._clients: list[redis.Redis] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for client in self._clients:
            client.close()
        if self.greeting is not None:
            for pid in (self.greeting.redis_pid, self.greeting.guard_pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for link in self._links:
            link.end(1.0)

    def launch(self, binary: str | None = None) -> GuardLink:
        """With this process as the agent."""
        link = GuardLink.launch(self.path, binary or server_binary(), self.conf, self.directory)
        self._links.append(link)
        self.greeting = link.greeting(LIMIT_S)
        return link

    def connect(self) -> GuardLink:
        """With this process as the next agent."""
        link = GuardLink.find(self.path)
        assert link is not None
        self._links.append(link)
        self.greeting = link.greeting(LIMIT_S)
        return link

    @property
    def pid(self) -> int:
        """Of Redis."""
        assert self.greeting is not None
        return self.greeting.redis_pid

    @property
    def guard_pid(self) -> int:
        assert self.greeting is not None
        return self.greeting.guard_pid

    def credentials(self, password: str = "") -> dict[str, object]:
        """The message that tells the guard how to reach Redis."""
        return {"do": "keep", "note": "a note", "socket": self.unix_socket, "user": "", "password": password}

    def introduce(self, link: GuardLink, *, tells: bool = True) -> None:
        """Wait for Redis, tell the guard of it, and wait until it is connected."""
        wait_for(self.answers, LIMIT_S, "Redis answers")
        assert link.send({**self.credentials(), "tells": tells})
        wait_for(lambda: self.named(GUARD_CLIENT_NAME), LIMIT_S, "the guard is connected")

    def client(self) -> Any:
        """One connection for the whole test."""
        if not self._clients:
            client = redis.Redis(
                unix_socket_path=self.unix_socket,
                decode_responses=True,
                socket_timeout=5.0,
                single_connection_client=False,
                max_connections=1,
            )
            self._clients.append(client)
        return self._clients[0]

    def answers(self) -> bool:
        with suppress(redis.RedisError):
            return bool(self.client().ping())
        return False

    def named(self, name: str) -> list[str]:
        """Ids of the connections with that name."""
        return [row["id"] for row in self.client().client_list() if row["name"] == name]

    def fence(self) -> str:
        value: str = self.client().config_get("min-replicas-to-write")["min-replicas-to-write"]
        return value

    def alive(self) -> bool:
        assert self.greeting is not None
        return is_alive(self.pid, self.greeting.create_time)

    def hear(self, link: GuardLink, kind: str, limit_s: float = LIMIT_S) -> dict[str, Any]:
        """The next message of that kind; all are kept in ``messages``."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            select.select([link.fileno()], [], [], 0.05)
            for message in link.receive():
                self.messages.append(message)
                if message["is"] == kind:
                    return message
        raise AssertionError(f"the guard has not said {kind}: {self.messages}")

    def asked(self, link: GuardLink, number: int, **message: object) -> None:
        """Ask and wait for the acknowledgement."""
        assert link.send({"id": number, **message})
        assert self.hear(link, "done")["id"] == number
