"""The redis-server process as its agent sees it: a child of its guard, from the launch or the attaching to the end.

A thread of its own hears what the guard tells and watches the process itself, so that a death is told within a
millisecond whatever the guard does. Signals go by a descriptor of the process: never to an id that may be another's.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import select
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from redis_agent.guard_link import LAUNCH_LIMIT_S, Greeting, GuardGone, GuardLink
from redis_agent.process_host import exit_status, start_time_s
from redis_agent.redis_conf import LaunchPlan, LaunchRefused

LAST_WORDS_LINES = 30
LAST_WORDS_UP_LINES = 5
LINE_MAX_CHARS = 500
LOG_TAIL_BYTES = 16_384

REPORT_UP_S = 0.02
REPORT_S = 1.0
"""How long a death may wait for what the guard says of it; nobody waits for the death of a Redis that never came up, or
that was told to stop."""
GUARD_END_S = 0.1
GUARD_END_PAUSE_S = 0.02
STATUS_UNKNOWN = 255

_SECRET_LINE = re.compile(r"(>>> ['\"]?\s*(?:requirepass|masterauth|user|tls-\S*pass)\b).*", re.IGNORECASE)


class RedisProcess:
    """One redis-server and its guard. The callbacks run on a thread of this object.

    Args:
        plan: what was launched, or would be.
        link: to its guard.
        greeting: of a guard that is there already; None if it was just launched.
        on_output: told each line that Redis prints, without secrets; must not block.
        on_known: told this object once ``pid`` and ``create_time`` are known.
        on_guard: told the number of a request that the guard has acknowledged, or why it never will.
        on_death: told this object and the status (negative: a signal) once Redis is dead.
    """

    def __init__(
        self,
        plan: LaunchPlan,
        link: GuardLink,
        greeting: Greeting | None,
        *,
        on_output: Callable[[str], None],
        on_known: Callable[[RedisProcess], None],
        on_guard: Callable[[int, str], None],
        on_death: Callable[[RedisProcess, int], None],
    ) -> None:
        self._plan = plan
        self._link = link
        self._greeting = greeting
        self._on_output = on_output
        self._on_known = on_known
        self._on_guard = on_guard
        self._on_death = on_death
        self.attached = greeting is not None
        self.pid = 0
        self.create_time = 0.0
        self.dead = threading.Event()
        self.over = threading.Event()
        """Dead, or left."""
        self._secrets = {*plan.secrets, greeting.password if greeting else ""} - {""}
        self._lines: deque[str] = deque(maxlen=LAST_WORDS_LINES)
        self._verdict = ""
        self._status: int | None = None
        self._log_start_bytes = _size_bytes(plan.log_path)
        # Guards what follows, and that no signal is sent once the descriptor is closed.
        self._lock = threading.Lock()
        self._pidfd = -1
        self._early: signal.Signals | None = None
        self._over = False
        self._left = False
        self._killed = False
        self._ordered = False
        self._answered = False
        self._requests: set[int] = set()
        self._thread = threading.Thread(target=self._watch, name=f"redis-guard-{link.pid}", daemon=True)
        self._thread.start()

    @property
    def ordered(self) -> bool:
        """We asked it to stop."""
        return self._ordered

    def answered(self) -> None:
        """It came up: its death must not wait for the rest of its output."""
        self._answered = True

    # --- its end ----------------------------------------------------------------------------------------------------

    def terminate(self, limit_s: float) -> None:
        """SIGTERM: Redis saves what its configuration says and exits. SIGKILL after ``limit_s``. Does not block."""
        self._ordered = True
        self._signal(signal.SIGTERM)
        name = f"redis-stop-{self.pid}"
        threading.Thread(target=self._kill_late, args=(limit_s,), name=name, daemon=True).start()

    def _kill_late(self, limit_s: float) -> None:
        if not self.dead.wait(limit_s):
            self.kill()

    def kill(self) -> None:
        """SIGKILL to the whole process group, at once, whatever the guard does: a child that saves holds the clients'
        sockets open.
        """
        self._signal(signal.SIGKILL)

    def refuse(self, verdict: str) -> None:
        """Kill a Redis that the agent can't work with; ``verdict`` takes the place of its last words."""
        self._verdict = verdict
        self.kill()

    def _signal(self, number: signal.Signals) -> None:
        with self._lock:
            if self._over or self._left:
                return
            if self._pidfd < 0:
                # Not known yet. A guard that dies takes Redis along.
                self._early = number
                if number == signal.SIGKILL:
                    self._killed = True
                    self._link.kill()
                return
            try:
                signal.pidfd_send_signal(self._pidfd, number)
            except ProcessLookupError:
                return
            if number == signal.SIGKILL:
                self._killed = True
                # Redis was there a moment ago, so its group's id is its own.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pid, signal.SIGKILL)

    def leave(self) -> None:
        """Let go: Redis and guard run on, and nothing more is heard of them here."""
        self.over.set()
        with self._lock:
            self._left = True
            waiting, self._requests = self._requests, set()
        self._link.hang_up()
        for request in waiting:
            self._on_guard(request, "let go of")

    def join(self, limit_s: float) -> None:
        """Wait until nothing is left to be done here: after the end of Redis its guard has ended, too."""
        self._thread.join(limit_s)

    # --- the guard --------------------------------------------------------------------------------------------------

    def introduce(self, plan: LaunchPlan) -> None:
        """Tell the guard how to reach Redis, and what our next life should know."""
        self._link.send(
            {
                "do": "keep",
                "tells": True,
                "note": self._greeting.note if self._greeting else digest(self._plan),
                "socket": plan.socket_path,
                "user": plan.username,
                "password": plan.password,
            }
        )

    def tell_lift(self, client_id: int) -> bool:
        """The fence may be lifted over this connection. False: the guard can't be told."""
        return self._link.send({"do": "lift", "over": client_id})

    def arm(self, request: int, until: float) -> None:
        """Answered by ``on_guard``, as ``disarm`` is."""
        self._ask({"do": "arm", "id": request, "until": until}, request)

    def disarm(self, request: int) -> None:
        self._ask({"do": "disarm", "id": request}, request)

    def _ask(self, message: dict[str, object], request: int) -> None:
        with self._lock:
            problem = "redis-server is dead" if self._over else "let go of" if self._left else ""
            if not problem:
                self._requests.add(request)
        if not problem and not self._link.send(message) and self._settled(request):
            problem = f"guard {self._link.pid} is gone, or reads nothing"
        if problem:
            self._on_guard(request, problem)

    def _settled(self, request: int) -> bool:
        """True for whoever answers it: each request is answered once."""
        with self._lock:
            if request not in self._requests:
                return False
            self._requests.remove(request)
            return True

    # --- what is heard ----------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        try:
            self._know(self._greeting or self._link.greeting(LAUNCH_LIMIT_S))
            self._listen()
        except (GuardGone, LaunchRefused) as gone:
            self._lost_guard(str(gone))
        if self._left:
            self._forget()
            self._link.close()
            return
        status = self._settle_status()
        self._forget()
        for request in sorted(self._requests):
            if self._settled(request):
                self._on_guard(request, "redis-server is dead")
        self.dead.set()
        self.over.set()
        self._on_death(self, status)
        # The end of the guard, whose priority is higher, must not hold up what follows from the death.
        time.sleep(GUARD_END_PAUSE_S)
        # It has to know that Redis is dead before it hears that we are gone.
        self._read_report(GUARD_END_S)
        self._link.end(GUARD_END_S)

    def _know(self, greeting: Greeting) -> None:
        with self._lock:
            self.pid, self.create_time = greeting.redis_pid, greeting.create_time
            # The guard does not reap it, so while the guard is there the id is Redis's.
            with contextlib.suppress(ProcessLookupError):
                self._pidfd = os.pidfd_open(self.pid)
            early = self._early
        if self._pidfd < 0:
            raise GuardGone(f"redis-server {self.pid} and guard {self._link.pid} are gone")
        if early is not None:
            self._signal(early)
        self._on_known(self)

    def _listen(self) -> None:
        """Until Redis is dead or we have left. Raises GuardGone."""
        poller = select.poll()
        poller.register(self._link.fileno(), select.POLLIN)
        poller.register(self._pidfd, select.POLLIN)
        while self._status is None and not self._left:
            ready = {descriptor for descriptor, _ in poller.poll()}
            if self._pidfd in ready:
                return
            for message in self._link.receive():
                self._take(message)

    def _take(self, message: dict[str, Any]) -> None:
        kind = message["is"]
        if kind == "out":
            if message["lost"]:
                self._on_output(f"guard: {message['lost']} lines were lost")
            for line in self._cleaned(message["lines"]):
                self._lines.append(line)
                self._on_output(line)
        elif kind == "done":
            if self._settled(message["id"]):
                self._on_guard(message["id"], "")
        elif kind == "dead":
            self._status = message["status"]
            self._lines = deque(self._cleaned(message["lines"]), maxlen=LAST_WORDS_LINES)
        elif kind == "broken":
            self._on_output(f"guard: broken: {message['why']}")

    def _lost_guard(self, problem: str) -> None:
        """Redis dies with its guard; if it does not, we kill it."""
        if self._left:
            return
        self._note(problem)
        self._link.kill()
        if self._pidfd >= 0:
            if start_time_s(self.pid) == self.create_time:
                self._signal(signal.SIGKILL)
            self._killed = True
            poller = select.poll()
            poller.register(self._pidfd, select.POLLIN)
            poller.poll()

    def _settle_status(self) -> int:
        """How it ended, by its own account or the guard's; waits for what it said last, where that matters."""
        status = exit_status(self.pid, self.create_time) if self.pid else None
        if status is not None:
            # The guard does the same: a child that was saving would keep the clients' sockets open, and write its dump
            # over a newer one. Redis is not reaped, so its group's id is its own.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        # Killed like this it has said nothing about it.
        if not (self._answered and status == -signal.SIGKILL):
            self._read_report(REPORT_UP_S if self._answered and not self._ordered else REPORT_S)
        if self._status is not None:
            return self._status
        self._kill_orphans()
        return status if status is not None else -signal.SIGKILL if self._killed else STATUS_UNKNOWN

    def _read_report(self, limit_s: float) -> None:
        """The guard's death notice, if it comes in time."""
        deadline = time.monotonic() + limit_s
        poller = select.poll()
        poller.register(self._link.fileno(), select.POLLIN)
        try:
            while self._status is None and (left_s := deadline - time.monotonic()) > 0:
                if poller.poll(left_s * 1000):
                    for message in self._link.receive():
                        self._take(message)
        except GuardGone as gone:
            if self._status is None:
                self._note(str(gone))

    def _note(self, problem: str) -> None:
        if problem not in self._lines:
            self._lines.append(problem)
            self._on_output(problem)

    def _kill_orphans(self) -> None:
        """Maybe no guard has killed the group: a child that was saving may still be there."""
        if self.pid and start_time_s(self.pid) is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)

    def _forget(self) -> None:
        with self._lock:
            self._over = True
            if self._pidfd >= 0:
                os.close(self._pidfd)
                self._pidfd = -1

    # --- last words -------------------------------------------------------------------------------------------------

    def last_words(self) -> str:
        """What Redis said last: the error of its configuration in one line, or else its last lines."""
        if self._verdict:
            return self._verdict
        lines = [*self._lines, *self._log_tail()]
        # The log has them already: of one that ran, only the end is of interest.
        kept = LAST_WORDS_UP_LINES if self._answered else LAST_WORDS_LINES
        return _config_error(lines, self._plan) or "\n".join(lines[-kept:])

    def _log_tail(self) -> list[str]:
        """The end of what was written to Redis's own log file since the launch."""
        if self._plan.log_path is None:
            return []
        try:
            with self._plan.log_path.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                # A log that shrank was rotated: then all of it is new.
                start = self._log_start_bytes if end >= self._log_start_bytes else 0
                file.seek(max(start, end - LOG_TAIL_BYTES))
                text = file.read(LOG_TAIL_BYTES).decode("utf-8", "replace")
        except OSError:
            return []
        return [self._clean(line) for line in text.splitlines() if line.strip()]

    def _clean(self, line: str) -> str:
        line = _SECRET_LINE.sub(r"\1 ***", line.rstrip())
        for secret in self._secrets:
            line = line.replace(secret, "***")
        return line[:LINE_MAX_CHARS]

    def _cleaned(self, lines: list[str]) -> list[str]:
        return [clean for line in lines if (clean := self._clean(line))]


def digest(plan: LaunchPlan) -> str:
    """Tells two generated configurations apart, without saying what is in them."""
    return hashlib.sha256(plan.text.encode("utf-8", "surrogateescape")).hexdigest()


def _size_bytes(path: Path | None) -> int:
    try:
        return path.stat().st_size if path is not None else 0
    except OSError:
        return 0


def _config_error(lines: list[str], plan: LaunchPlan) -> str:
    """Redis's complaint about its configuration in one line, with the file that it leaves out; empty if none."""
    for number, line in enumerate(lines):
        if "FATAL CONFIG FILE ERROR" not in line:
            continue
        complaint = [part.strip() for part in lines[number + 1 :]]
        culprit = next((part[3:].strip().strip("'") for part in complaint if part.startswith(">>>")), "")
        ours = culprit != "" and culprit in plan.text.splitlines()
        where = f"{plan.conf_path} (generated)" if ours or plan.operator_path is None else str(plan.operator_path)
        return f"{where}: {line.strip(' *')}: {' '.join(complaint)}"
    return ""
