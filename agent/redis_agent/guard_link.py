"""The agent's side of the guard: launch one, find the one that our last life left, talk to it, see it end.

The messages are those of guard.py, JSON over a unix socket that keeps them apart. Nothing here blocks but what says so.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis_agent.redis_conf import SOCKET_PATH_MAX_BYTES, LaunchRefused

SOCKET_NAME = "guard.sock"
SCRIPT = Path(__file__).with_name("guard.py")
GREETING_LIMIT_S = 2.0
LAUNCH_LIMIT_S = 20.0
RECEIVE_BYTES = 1 << 18

NOT_FOR_REDIS = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
"""Between init and the agent only: ``supervised auto`` would make Redis answer init in the agent's place."""

_POLLED = select.POLLIN
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Greeting:
    """What a guard says of itself and its Redis. ``status`` is None while Redis lives.

    The last four are what the agent told it: of the configuration that Redis was started with, and how to reach it.
    """

    guard_pid: int
    redis_pid: int
    create_time: float
    status: int | None
    note: str = ""
    socket_path: str = ""
    username: str = ""
    password: str = field(default="", repr=False)


class GuardGone(Exception):
    """It has ended, or does not answer; the message says what is known."""


class GuardLink:
    """One guard and the connection to it.

    ``send`` belongs to any thread, ``receive`` to one.

    Args:
        sock: connected to it.
        pid: of the guard.
    """

    def __init__(self, sock: socket.socket, pid: int) -> None:
        self._sock = sock
        self.pid = pid
        try:
            self._pidfd = os.pidfd_open(pid)
        except OSError:
            self._pidfd = -1  # Gone already: its socket says so.

    @classmethod
    def launch(cls, path: Path, binary: str, conf_path: Path, data_dir: Path) -> GuardLink:
        """Start a guard, which starts Redis. Takes some milliseconds; ``greeting`` tells how it went.

        Raises:
            LaunchRefused: the path is too long for a socket.
            OSError: it could not be started.
        """
        check_path(path)
        path.unlink(missing_ok=True)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(str(path))
            # Nobody can connect before the guard listens.
            path.chmod(0o600)
            command = [sys.executable, "-I", "-S", str(SCRIPT), str(path), str(data_dir), binary, str(conf_path)]
            pid = os.posix_spawn(
                sys.executable,
                command,
                {name: value for name, value in os.environ.items() if name not in NOT_FOR_REDIS},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, theirs.fileno(), 0),
                    (os.POSIX_SPAWN_DUP2, listener.fileno(), 1),
                ],
                setsid=True,
                setsigmask=[],
                setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
            )
        return cls(ours, pid)

    @classmethod
    def find(cls, path: Path) -> GuardLink | None:
        """Connect to the guard that listens there; None if there is none.

        Raises:
            LaunchRefused: there is something, and it can't be connected to.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.settimeout(GREETING_LIMIT_S)
        try:
            sock.connect(str(path))
            pid, _, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            sock.settimeout(None)
        except (FileNotFoundError, ConnectionRefusedError):
            sock.close()
            return None
        except OSError as error:
            sock.close()
            raise LaunchRefused(f"{path}: {error.strerror or error}; end the guard that listens there") from error
        return cls(sock, pid)

    def greeting(self, limit_s: float) -> Greeting:
        """The first message. Blocks for as long.

        Raises:
            LaunchRefused: it has another agent that lives.
            GuardGone: it has ended, or says nothing.
        """
        deadline = time.monotonic() + limit_s
        if not _readable(self._sock.fileno(), deadline):
            raise GuardGone(f"guard {self.pid} does not answer")
        message = next(self.receive(), None)
        if message is None:
            raise GuardGone(f"guard {self.pid} has ended")
        if message["is"] == "refused":
            raise LaunchRefused(f"guard {self.pid}: {message['why']}; stop that agent first")
        told = {"note": "note", "socket": "socket_path", "user": "username", "password": "password"}
        return Greeting(
            guard_pid=message["guard"],
            redis_pid=message["pid"],
            create_time=message["started"] / _TICKS_PER_S,
            status=message["status"],
            **{ours: message[theirs] for theirs, ours in told.items() if theirs in message},
        )

    def fileno(self) -> int:
        return self._sock.fileno()

    def send(self, message: Mapping[str, object]) -> bool:
        """False: it is gone, or reads nothing."""
        try:
            self._sock.send(json.dumps(message).encode(), socket.MSG_DONTWAIT)
        except OSError:
            return False
        return True

    def receive(self) -> Iterator[dict[str, Any]]:
        """The messages that are here, at most one if it is asked for one. Raises GuardGone behind the last one."""
        while True:
            try:
                data = self._sock.recv(RECEIVE_BYTES, socket.MSG_DONTWAIT)
            except ConnectionResetError:
                continue  # It ended without having read all of ours; what it had said before still comes.
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                raise GuardGone(f"guard {self.pid} has ended")
            message: dict[str, Any] = json.loads(data)
            yield message

    def waiting_lines(self, limit_s: float) -> list[str]:
        """What a Redis that is dead printed while there was no agent. Blocks as long, if there is nothing."""
        lines: list[str] = []
        with contextlib.suppress(GuardGone):
            if _readable(self._sock.fileno(), time.monotonic() + limit_s):
                for message in self.receive():
                    if message["is"] == "out":
                        lines += message["lines"]
        return lines

    def hang_up(self) -> None:
        """Let go of it: it reads this as our end, and whoever waits for its messages finds that it is gone."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)

    def kill(self) -> None:
        """SIGKILL: the kernel kills its Redis then."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def end(self, limit_s: float) -> None:
        """Hang up on a guard that has nothing left to do, and see it end; killed after ``limit_s``. Blocks as long."""
        self.hang_up()
        if self._pidfd >= 0 and not _readable(self._pidfd, time.monotonic() + limit_s):
            self.kill()
            _readable(self._pidfd, time.monotonic() + limit_s)
        # It is our child, also if we have executed ourselves again since; or it is another's.
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)
        self.close()

    def close(self) -> None:
        """Forget it. Not while another thread uses it."""
        self._sock.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1


def check_path(path: Path) -> None:
    """Raises LaunchRefused if no socket can be there."""
    if len(os.fsencode(path)) > SOCKET_PATH_MAX_BYTES:
        raise LaunchRefused(
            f"{path}: longer than the {SOCKET_PATH_MAX_BYTES} bytes of a socket's name; shorten run_dir"
        )


def _readable(descriptor: int, deadline: float) -> bool:
    poller = select.poll()
    poller.register(descriptor, _POLLED)
    return bool(poller.poll(max(0.0, deadline - time.monotonic()) * 1000))
