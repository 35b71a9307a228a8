"""Processes of this host by id, and what stands in the way of a launch of redis-server."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shutil
import signal
import socket
from pathlib import Path

import psutil

from redis_agent.redis_conf import LaunchPlan, LaunchRefused

_SERVERS = ("redis-server", "valkey-server", "keydb-server")

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


def exit_status(pid: int, create_time: float) -> int | None:
    """How a dead process ended that its parent has not reaped (negative: a signal); None if there is none such."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    if fields[0] != "Z" or int(fields[19]) / os.sysconf("SC_CLK_TCK") != create_time:
        return None
    return os.waitstatus_to_exitcode(int(fields[49]))


def is_alive(pid: int, create_time: float) -> bool:
    """The very process that was recorded still runs (a zombie does not)."""
    return pid > 0 and start_time_s(pid) == create_time


def end_process(pid: int, create_time: float, limit_s: float) -> bool:
    """Kill the recorded process with its group and wait until it is gone; True if it is.

    For a redis-server that nobody looks after: its agent and its guard are gone. A large one takes a while to die, and
    holds its port as long.
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


def end_lost_guards(path: Path, limit_s: float = 5.0) -> bool:
    """Kill the guards of this socket that cannot be reached by it any more, and with them their Redis.

    Args:
        path: of the socket that their arguments name. Whoever calls holds the lock of the agent whose it is.
        limit_s: how long to wait for them to be gone.

    Returns:
        Whether there were any.
    """
    found: list[psutil.Process] = []
    for process in psutil.process_iter(["cmdline"]):
        arguments = process.info["cmdline"] or []
        if str(path) in arguments and any(argument.endswith("guard.py") for argument in arguments):
            with contextlib.suppress(psutil.Error):
                found += [process, *process.children()]
                process.kill()
    psutil.wait_procs(found, timeout=limit_s)
    return bool(found)
