"""What the agent tells init: nothing while its owner hangs, whatever its other threads do."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import pytest

from redis_agent.lab.agent_process import AgentProcess
from redis_agent.lab.ports import free_port
from redis_agent.lab.settings import Settings
from redis_agent.lab.waiting import wait_for

ALLOWED_S = 0.9
BEAT = b"WATCHDOG=1"
LIMIT_S = 20.0


class Watched(AgentProcess):
    """An agent that init watches, without a ZooKeeper: it has a Redis, and leads nothing.

    Args:
        directory: for everything.
        watched: process id that init names, if it does.
    """

    def __init__(self, directory: Path, watched: str = "") -> None:
        hosts = f"127.0.0.1:{free_port()}"
        settings: Settings = {"cluster": {"name": "cache", "bootstrap_expect": 1}, "zookeeper": {"hosts": hosts}}
        super().__init__("n1", directory, settings, port=free_port())
        self.path = directory / "notify.sock"
        self.watched = watched
        self.said: list[bytes] = []
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self.path))

    def popen(self, argv: Sequence[str], env: dict[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        asked = {"NOTIFY_SOCKET": str(self.path), "WATCHDOG_USEC": str(int(ALLOWED_S * 1e6))}
        if self.watched:
            asked["WATCHDOG_PID"] = self.watched
        return super().popen(argv, env | asked, log)

    def hear(self, limit_s: float = LIMIT_S) -> bytes:
        """The next message. Raises TimeoutError."""
        self.socket.settimeout(limit_s)
        message = self.socket.recv(4096)
        self.said.append(message)
        return message

    def forget(self) -> None:
        """Whatever was said up to here."""
        self.socket.settimeout(0.0)
        with suppress(BlockingIOError):
            while self.socket.recv(4096):
                pass


@contextmanager
def watched(directory: Path, pid: str = "") -> Iterator[Watched]:
    agent = Watched(directory, pid)
    try:
        agent.start()
        yield agent
    finally:
        agent.destroy()
        agent.socket.close()


@contextmanager
def stopped(agent: Watched) -> Iterator[None]:
    """All of it stands still."""
    agent.pause()
    wait_for(lambda: agent.frozen, LIMIT_S, "it stands still")
    yield
    agent.resume()


@contextmanager
def blocked(agent: Watched) -> Iterator[None]:
    """The owner alone hangs: it was told to read its settings again, and their file is a pipe that nobody writes to."""
    text = agent.config_path.read_bytes()
    agent.config_path.unlink()
    os.mkfifo(agent.config_path)
    agent.send_signal(signal.SIGHUP)

    def writer() -> int:
        try:
            return os.open(agent.config_path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError as error:
            assert error.errno == errno.ENXIO  # noqa: PT017 - nobody reads yet
            return 0

    descriptor = wait_for(writer, LIMIT_S, "the owner reads")
    yield
    os.write(descriptor, text)
    os.close(descriptor)


@pytest.mark.parametrize("how", [stopped, blocked])
def test_an_owner_that_hangs_tells_nothing(tmp_path: Path, how: object) -> None:
    """It shows that it lives often enough, though nothing happens; hangs it, there is silence; and then it goes on.

    # case A6
    """
    assert callable(how)
    with watched(tmp_path) as agent:
        for _ in range(5):
            assert agent.hear() == BEAT
        wait_for(lambda: agent.redis_pid, LIMIT_S, "Redis runs")
        with how(agent):
            agent.forget()
            with pytest.raises(TimeoutError):
                agent.hear(2 * ALLOWED_S)
        for _ in range(3):
            assert agent.hear() == BEAT
        assert agent.running


def test_who_is_not_watched_tells_nothing(tmp_path: Path) -> None:
    """Init watches another process of the unit, and says so."""
    with watched(tmp_path, pid="1") as agent:
        wait_for(lambda: agent.redis_pid, LIMIT_S, "Redis runs")
        with pytest.raises(TimeoutError):
            agent.hear(2 * ALLOWED_S)
