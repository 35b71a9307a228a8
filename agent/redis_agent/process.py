"""The redis-server process: launch, last words, death, and what stands in the way of a launch.

The process is a child in a session of its own. It dies with the thread that launched it (PR_SET_PDEATHSIG), so it must
be launched on the agent's main thread. A thread of its own waits for it and tells of its death within half a
millisecond. Signals are sent under a lock that the reaping takes, too: never to a process id that may be another's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

import psutil

from redis_agent.redis_conf import LaunchPlan, LaunchRefused

LAST_WORDS_LINES = 30
LAST_WORDS_UP_LINES = 5
LINE_MAX_CHARS = 500
LOG_TAIL_BYTES = 16_384
PIPE_BYTES = 1 << 20
"""Redis blocks when its log isn't read: this lets a stopped agent be continued before that happens."""

DRAIN_UP_S = 0.02
DRAIN_START_S = 1.0
"""How long a death may wait for the rest of the output: it matters where Redis never came up."""

_NOT_FOR_REDIS = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES")
"""Between init and the agent only: ``supervised auto`` would make Redis answer init in the agent's place."""

_SECRET_LINE = re.compile(r"(>>> ['\"]?\s*(?:requirepass|masterauth|user|tls-\S*pass)\b).*", re.IGNORECASE)

_SERVERS = ("redis-server", "valkey-server", "keydb-server")


class RedisProcess:
    """One redis-server, from its launch to its reaping.

    Args:
        plan: what to launch; the generated file is written already.
        binary: resolved path of redis-server.
        on_output: told each line that Redis prints, without secrets, on a thread of this object.
        on_death: told this object and the status (negative: a signal) once it is dead and reaped, on a thread of it.

    Raises:
        OSError: it could not be launched.
    """

    def __init__(
        self,
        plan: LaunchPlan,
        binary: str,
        *,
        on_output: Callable[[str], None],
        on_death: Callable[[RedisProcess, int], None],
    ) -> None:
        self._plan = plan
        self._on_output = on_output
        self._on_death = on_death
        self._lines: deque[str] = deque(maxlen=LAST_WORDS_LINES)
        self._verdict = ""
        self._signals = threading.Lock()
        self._reaped = False
        self._ordered = False
        self._answered = False
        self.dead = threading.Event()
        self._log_start_bytes = _size_bytes(plan.log_path)
        self._child = subprocess.Popen(
            [*_die_with_parent(), binary, str(plan.conf_path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # Redis tries a relative ``logfile`` where it was started, before it goes to its data directory.
            cwd=plan.data_dir,
            env={name: value for name, value in os.environ.items() if name not in _NOT_FOR_REDIS},
        )
        self.pid = self._child.pid
        self.create_time = start_time_s(self.pid) or 0.0
        self._reader = threading.Thread(target=self._read_output, name=f"redis-output-{self.pid}", daemon=True)
        self._reader.start()
        threading.Thread(target=self._wait, name=f"redis-reaper-{self.pid}", daemon=True).start()

    @property
    def ordered(self) -> bool:
        """We asked it to stop."""
        return self._ordered

    def answered(self) -> None:
        """It came up: its death must not wait for the rest of its output."""
        self._answered = True

    def terminate(self, limit_s: float) -> None:
        """SIGTERM: Redis saves what its configuration says and exits. SIGKILL after ``limit_s``. Does not block."""
        self._ordered = True
        self._signal(signal.SIGTERM, group=False)
        name = f"redis-stop-{self.pid}"
        threading.Thread(target=self._kill_late, args=(limit_s,), name=name, daemon=True).start()

    def _kill_late(self, limit_s: float) -> None:
        if not self.dead.wait(limit_s):
            self._signal(signal.SIGKILL, group=True)

    def kill(self) -> None:
        """SIGKILL to the whole process group, at once: a child that saves holds the clients' sockets open."""
        self._signal(signal.SIGKILL, group=True)

    def refuse(self, verdict: str) -> None:
        """Kill a Redis that the agent can't work with; ``verdict`` takes the place of its last words."""
        self._verdict = verdict
        self._signal(signal.SIGKILL, group=True)

    def _signal(self, number: signal.Signals, *, group: bool) -> None:
        with self._signals:
            if self._reaped:
                return
            if group:
                os.killpg(self.pid, number)
            else:
                os.kill(self.pid, number)

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
        for secret in self._plan.secrets:
            line = line.replace(secret, "***")
        return line[:LINE_MAX_CHARS]

    def _read_output(self) -> None:
        stream = self._child.stdout
        assert stream is not None
        _widen(stream.fileno())
        for raw in stream:
            line = self._clean(raw.decode("utf-8", "replace"))
            if line:
                self._lines.append(line)
                self._on_output(line)
        stream.close()

    def _wait(self) -> None:
        # WNOWAIT leaves the dead process in place, so that its id and its group's are still its own for the kill.
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        with self._signals:
            # A child that was saving would keep the clients' sockets open, and write its dump over a newer one.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            self._reaped = True
            status = self._child.wait()
        self.dead.set()
        # Killed like this it has said nothing about it.
        if not (self._answered and status == -signal.SIGKILL):
            self._reader.join(DRAIN_UP_S if self._answered else DRAIN_START_S)
        self._on_death(self, status)


def _die_with_parent() -> list[str]:
    """Command that ties Redis's life to the agent's; empty where it does not exist."""
    setpriv = shutil.which("setpriv")
    # Busybox has a setpriv that lacks the option.
    if setpriv is None or Path(setpriv).resolve().name == "busybox":
        return []
    return [setpriv, "--pdeathsig", "KILL", "--"]


def dies_with_agent() -> bool:
    """Redis is killed by the kernel when the agent dies. If not, say so in the log: the lease can't be kept then."""
    return bool(_die_with_parent())


def _widen(descriptor: int) -> None:
    import fcntl  # noqa: PLC0415 - Linux only, as the option is

    try:
        fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except OSError:
        return  # Above the user's limit: the default of 64 KiB stays.


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


# --- processes by id -----------------------------------------------------------------------------------------------


def start_time_s(pid: int) -> float | None:
    """When a process was started, in seconds after boot: with its id it names one process. None if it is gone.

    Not psutil's ``create_time``, which is wall clock and moves when the clock is set.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name in parentheses may contain anything; behind it the state is field 3, the start field 22.
    fields = text.rpartition(")")[2].split()
    if fields[0] in ("Z", "X"):
        return None
    return int(fields[19]) / os.sysconf("SC_CLK_TCK")


def is_alive(pid: int, create_time: float) -> bool:
    """The very process that was recorded still runs (a zombie does not)."""
    return pid > 0 and start_time_s(pid) == create_time


def end_process(pid: int, create_time: float, limit_s: float) -> bool:
    """Kill the recorded process with its group and wait until it is gone; True if it is.

    For the redis-server of an agent that was killed: the kernel kills it too, but a large one takes a while to die,
    and holds its port as long.
    """
    try:
        descriptor = os.pidfd_open(pid) if pid > 0 else -1
    except OSError:
        return True
    if descriptor < 0:
        return True
    try:
        # With the descriptor open the id can't be taken by another process behind our back.
        if not is_alive(pid, create_time):
            return True
        if os.getpgid(pid) == pid:
            os.killpg(pid, signal.SIGKILL)
        else:
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        # Readable once the process is dead.
        select.select([descriptor], [], [], limit_s)
    except ProcessLookupError:
        return True
    finally:
        os.close(descriptor)
    return not is_alive(pid, create_time)


# --- before the launch ---------------------------------------------------------------------------------------------


def find_binary(binary: str) -> str:
    """Resolve the server's binary. Raises LaunchRefused."""
    found = shutil.which(binary)
    if found is None:
        raise LaunchRefused(
            f"{binary}: no such program; install redis-server (Debian: apt install redis-server) or set its path"
        )
    return str(Path(found).absolute())


def check_launch(plan: LaunchPlan, binary: str) -> None:
    """Look at what would stand in the way of a launch.

    Raises:
        LaunchRefused: one line that names the matter, who holds it, and a remedy.
    """
    find_binary(binary)
    _check_data_dir(plan.data_dir)
    if plan.port:
        _check_port(plan)


def _check_data_dir(data_dir: Path) -> None:
    if not data_dir.is_dir():
        raise LaunchRefused(f"data directory {data_dir}: does not exist; create it for the user that runs the agent")
    if not os.access(data_dir, os.R_OK | os.W_OK | os.X_OK):
        user = psutil.Process().username()
        raise LaunchRefused(f"data directory {data_dir}: not writable for {user}; give it to that user")
    for process in psutil.process_iter(["name"]):
        if not str(process.info["name"]).startswith(_SERVERS):
            continue
        try:
            same = data_dir.samefile(process.cwd())
        except (psutil.Error, OSError):
            continue
        if same:
            raise LaunchRefused(f"data directory {data_dir}: in use by {_describe(process)}{_debian_hint(process)}")


def _check_port(plan: LaunchPlan) -> None:
    for bind in plan.binds or ("0.0.0.0",):  # noqa: S104 - what Redis does without 'bind'
        host = {"*": "0.0.0.0", "-::*": "::", "::*": "::"}.get(bind, bind.lstrip("-"))  # noqa: S104
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind((host, plan.port))
        except OSError as error:
            # Whatever else is wrong with the address, Redis says in its own words (and skips those marked with '-').
            if error.errno == errno.EADDRINUSE:
                raise LaunchRefused(f"port {plan.port} ({host}): in use by {_port_holder(plan.port)}") from error


def _port_holder(port: int) -> str:
    try:
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status == psutil.CONN_LISTEN and connection.laddr[1:2] == (port,) and connection.pid:
                process = psutil.Process(connection.pid)
                return _describe(process) + _debian_hint(process)
    except psutil.Error:
        pass
    return "a process of another user; 'ss -ltnp' as root names it"


def _describe(process: psutil.Process) -> str:
    try:
        command = " ".join(process.cmdline()) or process.name()
    except psutil.Error:
        command = "?"
    return f"process {process.pid} ({command.strip()[:120]})"


def _debian_hint(process: psutil.Process) -> str:
    try:
        is_server, parent = process.name().startswith(_SERVERS), process.ppid()
    except psutil.Error:
        return ""
    if not is_server:
        return "; end it or choose another"
    if parent == 1:
        return "; if it is the packaged service: systemctl disable --now redis-server"
    return "; end it or choose another"
