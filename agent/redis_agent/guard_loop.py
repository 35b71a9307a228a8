"""What the guard does once Redis is launched: one thread, one loop. The contract is in guard.py."""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import struct
import time
from collections import deque
from contextlib import suppress

from redis_agent.guard_fence import LIFTERS_KEPT, Link, boottime_s

TYPE_CHECKING = False  # ``typing`` takes 3 ms to load, and 1 MB.
if TYPE_CHECKING:
    from typing import Any, NoReturn

    Message = dict[str, Any]

FENCE_LIMIT_S = 0.05
AGENT_END_S = 0.02
"""How long a killed agent may take to be dead."""
LINGER_S = 5.0
TAKE_LIMIT_S = 60.0

LINES_QUEUED = 1000
LINES_KEPT = 30
LINE_MAX_BYTES = 2000
BATCH_MAX_CHARS = 16_000
"""JSON may need six bytes for one, and a message must fit into the socket's buffer."""

_LIBC = ctypes.CDLL(None)
_TFD_TIMER_ABSTIME = 1


def start_ticks(pid: int) -> int:
    """Field 22 of its stat file: with the process id it names one process."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - without pathlib
        return int(file.read().rpartition(")")[2].split()[19])


class Agent:
    """The connection to the one agent, and what is waiting to be sent over it."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(0.0)
        self.pid, self.uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        try:
            self.pidfd = os.pidfd_open(self.pid)
        except OSError:
            self.pidfd = -1  # Gone already, which the socket tells; or in a namespace where we can't reach it.
        self.waiting: deque[Message] = deque()

    def send(self, message: Message) -> bool:
        """False if it can't be taken now. To a dead one everything can be sent."""
        try:
            self.sock.send(json.dumps(message, ensure_ascii=False).encode("utf-8", "replace"))
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def receive(self) -> Message | None:
        """The next message; None if it is gone. Raises BlockingIOError if there is none."""
        while True:
            try:
                data = self.sock.recv(1 << 16)
            except ConnectionResetError:
                continue  # It left without having read all of ours; what it had sent before still comes.
            message: Message | None = json.loads(data) if data else None
            return message

    def kill(self) -> None:
        """Returns when it does nothing any more, in all likelihood."""
        if self.pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            poller = select.poll()
            poller.register(self.pidfd, select.POLLIN)
            poller.poll(AGENT_END_S * 1000)

    def close(self) -> None:
        self.sock.close()
        if self.pidfd >= 0:
            os.close(self.pidfd)


class Guard:
    """Everything that happens, in one thread.

    Args:
        path: of the listening socket.
        listener: bound to it.
        control: to the agent that launched us.
        pid: of Redis.
        output: what Redis prints.
    """

    def __init__(self, path: str, listener: socket.socket, control: socket.socket, pid: int, output: int) -> None:
        self.path = path
        self.mark = _mark(path)
        self.listener = listener
        self.agent: Agent | None = None
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.started = start_ticks(pid)
        self.output = output
        self.status: int | None = None
        self.until: float | None = None
        self.note = ""
        self.link = Link()
        self.timer = _LIBC.timerfd_create(time.CLOCK_BOOTTIME, os.O_NONBLOCK | os.O_CLOEXEC)
        self.partial = b""
        self.kept: deque[str] = deque(maxlen=LINES_KEPT)
        self.lines: deque[str] = deque()
        self.lost = 0
        self.ends_at: float | None = None
        self.welcome(Agent(control))

    def run(self) -> None:
        while self.ends_at is None or boottime_s() < self.ends_at:
            ready = self.wait()
            # The order counts: what the agent has said, and that it is gone, before everything else.
            if self.agent is not None:
                self.hear(self.agent)
            if self.output in ready:
                self.read_output()
            if self.pidfd in ready:
                self.bury()
            if self.link.sock is not None and self.link.sock.fileno() in ready:
                self.link.drain()
                self.revive()
            if self.listener.fileno() in ready:
                self.accept()
            if self.until is not None and boottime_s() >= self.until:
                self.deadline()
            self.flush()
        self.unlist()

    def wait(self) -> set[int]:
        poller = select.poll()
        for descriptor in (self.listener.fileno(), self.output, self.timer):
            if descriptor >= 0:
                poller.register(descriptor, select.POLLIN)
        if self.status is None:
            poller.register(self.pidfd, select.POLLIN)
        if self.link.sock is not None:
            poller.register(self.link.sock, select.POLLIN)
        if self.agent is not None:
            wanted = select.POLLOUT if self.agent.waiting or self.lines else 0
            poller.register(self.agent.sock, select.POLLIN | wanted)
        timeout_ms = None if self.ends_at is None else max(1.0, (self.ends_at - boottime_s()) * 1000)
        return {descriptor for descriptor, _ in poller.poll(timeout_ms)}

    def say(self, text: str) -> None:
        """A line of the guard's own among those of Redis."""
        self.kept.append(text)
        self.lines.append(text)

    # --- the agent ---

    def welcome(self, agent: Agent) -> None:
        self.agent = agent
        if self.status is not None:
            self.unlist()
            self.ends_at = boottime_s() + TAKE_LIMIT_S
        redis = {"pid": self.pid, "started": self.started, "status": self.status, "note": self.note}
        agent.waiting.append({"is": "hello", "guard": os.getpid(), **redis, **self.link.credentials})

    def accept(self) -> None:
        try:
            newcomer = Agent(self.listener.accept()[0])
        except OSError:
            return  # It has gone again.
        # What the newcomer is told is to be true now.
        self.bury()
        if self.agent is not None:
            self.hear(self.agent)
        if newcomer.uid in (0, os.geteuid()) and self.agent is None:
            self.welcome(newcomer)
            return
        if self.agent is not None:
            newcomer.send({"is": "refused", "why": f"process {self.agent.pid} is the agent of this redis-server"})
        newcomer.close()

    def hear(self, agent: Agent) -> None:
        try:
            while (message := agent.receive()) is not None:
                self.obey(agent, message)
        except BlockingIOError:
            return
        agent.close()
        self.agent = None
        if self.status is not None:
            self.ends_at = 0.0
        elif self.until is not None:
            self.fire("the agent is gone")

    def obey(self, agent: Agent, message: Message) -> None:
        if message["do"] == "keep":
            self.note = message["note"]
            self.link.credentials = {name: message[name] for name in ("socket", "user", "password")}
            self.link.lifters = [] if message.get("tells") else None
            self.link.keep()
        elif message["do"] == "lift":
            self.link.lifters = [*(self.link.lifters or ()), str(message["over"])][-LIFTERS_KEPT:]
        elif self.status is None and message["do"] in ("arm", "disarm"):
            arming = message["do"] == "arm"
            self.set_deadline(float(message["until"]) if arming else None)
            agent.waiting.append({"is": "done", "id": message["id"]})
            if arming:
                self.link.keep()

    def flush(self) -> None:
        """Send what can be sent now."""
        while len(self.lines) > LINES_QUEUED:
            self.lines.popleft()
            self.lost += 1
        agent = self.agent
        if agent is None:
            return
        while agent.waiting:
            if not agent.send(agent.waiting[0]):
                return
            agent.waiting.popleft()
        while self.lines:
            batch = _first(list(self.lines))
            if not agent.send({"is": "out", "lines": batch, "lost": self.lost}):
                return
            self.lost = 0
            for _ in batch:
                self.lines.popleft()

    def revive(self) -> None:
        """Somebody closed all clients' connections, ours with them: now there is room."""
        if self.link.sock is None and self.status is None:
            self.link.keep()

    # --- the deadline ---

    def set_deadline(self, until: float | None) -> None:
        self.until = until
        whole = 0 if until is None else max(0, int(until))
        part = 0 if until is None else max(1, int((until - whole) * 1e9))
        # The kernel's timer goes on while the machine sleeps, which poll's does not.
        spec = (ctypes.c_long * 4)(0, 0, whole, part)
        _LIBC.timerfd_settime(self.timer, _TFD_TIMER_ABSTIME, spec, None)

    def deadline(self) -> None:
        if self.agent is not None:
            self.hear(self.agent)
        if self.until is None or boottime_s() < self.until:
            return
        if self.agent is not None:
            # First: what it does from now on would not be seen by the fence.
            self.agent.kill()
            # Its last words: over which connection it may have lifted the fence since.
            with suppress(BlockingIOError):
                while (message := self.agent.receive()) is not None:
                    self.obey(self.agent, message)
            self.agent.close()
            self.agent = None
        self.fire("the deadline has passed")

    def fire(self, why: str) -> None:
        self.set_deadline(None)
        begun = boottime_s()
        try:
            self.link.fence(begun + FENCE_LIMIT_S)
            outcome = "fenced redis-server"
        except OSError as error:
            self.kill_group()
            outcome = f"killed redis-server, which could not be fenced ({error})"
        self.say(f"guard: {outcome} in {(boottime_s() - begun) * 1000:.1f} ms: {why}")
        self.link.close_roles()

    # --- Redis ---

    def kill_group(self) -> None:
        # The id is Redis's own as long as we have not reaped it.
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            os.kill(self.pid, signal.SIGKILL)  # It has no group of its own yet.

    def read_output(self) -> bool:
        """False if there is nothing to read now."""
        try:
            data = os.read(self.output, 1 << 16)
        except BlockingIOError:
            return False
        *whole, self.partial = (self.partial + data).split(b"\n")
        if self.partial and (not data or len(self.partial) > LINE_MAX_BYTES):
            whole, self.partial = [*whole, self.partial], b""
        for line in whole:
            self.say(line[:LINE_MAX_BYTES].decode("utf-8", "replace"))
        if not data:
            os.close(self.output)
            self.output = -1
        return bool(data)

    def bury(self) -> None:
        result = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG)
        if result is None or result.si_pid == 0 or self.status is not None:
            return
        self.status = result.si_status if result.si_code == os.CLD_EXITED else -result.si_status
        # A child that was saving would keep the clients' sockets open, and write its dump over a newer one.
        self.kill_group()
        self.set_deadline(None)
        self.link.close()
        while self.output >= 0 and self.read_output():
            pass
        self.ends_at = boottime_s() + (LINGER_S if self.agent is None else TAKE_LIMIT_S)
        if self.agent is None:
            return
        self.unlist()
        last = list(reversed(_first(list(reversed(self.kept)))))
        self.agent.waiting.append({"is": "dead", "status": self.status, "lines": last})

    def unlist(self) -> None:
        """Before the agent hears of the death: the next guard has the same path, and may be there already."""
        if self.listener.fileno() < 0:
            return
        self.listener.close()
        with suppress(FileNotFoundError):
            if _mark(self.path) == self.mark:
                os.unlink(self.path)  # noqa: PTH108 - pathlib takes 5 ms to load


def _mark(path: str) -> tuple[int, int]:
    """Tells one file from the next one of that name."""
    found = os.stat(path)  # noqa: PTH116 - pathlib takes 5 ms to load
    return found.st_ino, found.st_ctime_ns


def _first(lines: list[str]) -> list[str]:
    """As many of the lines as fit into a message."""
    room = BATCH_MAX_CHARS
    for number, line in enumerate(lines):
        room -= len(line) + 4
        if room < 0:
            return lines[:number]
    return lines


def serve(path: str, pid: int, output: int) -> NoReturn:
    """Watch over Redis, process ``pid``, until it is dead and that was told."""
    control, listener = socket.socket(fileno=os.dup(0)), socket.socket(fileno=os.dup(1))
    os.chdir(os.path.dirname(path))  # noqa: PTH120 - without pathlib
    listener.settimeout(0.0)
    # Here, not where it is bound: whoever listens is whom an agent finds as the other side of its connection.
    listener.listen(8)
    guard = Guard(path, listener, control, pid, output)
    # Our own complaints went to the agent's log up to here; nothing of us may keep that open once the agent is gone.
    for descriptor in (0, 1, 2):
        os.dup2(os.open(os.devnull, os.O_RDWR), descriptor, inheritable=False)
    try:
        guard.run()
    except Exception as error:  # noqa: BLE001 - whatever it is, Redis must not outlive it
        if guard.agent is not None:
            guard.agent.send({"is": "broken", "why": f"{type(error).__name__}: {error}"})
        os._exit(70)
    os._exit(0)
