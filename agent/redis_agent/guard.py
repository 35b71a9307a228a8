"""The guard: parent of one redis-server, and the dead man's switch between it and its agent.

A script of the standard library and two neighbours (guard_loop, guard_fence) that import nothing else, one process per
redis-server, in a session of its own: it survives the agent. Redis is launched before anything is loaded.
This is its contract; tests/integration/test_guard.py has a test for each line.

 1. It launches Redis as its child, in a process group of its own, and dies with nothing of Redis left: the kernel kills
    Redis when the guard dies (PR_SET_PDEATHSIG). Redis inherits neither its descriptors nor its priority.
 2. It serves one agent at a time: the one that launched it, later the one that connects to its socket, which it greets.
    Another one is refused while the first lives.
 3. It always reads what Redis prints, so that Redis never blocks on it, and relays it without ever blocking on the
    agent: lines that do not fit are dropped and counted. Acknowledgements and the death notice are never dropped.
 4. ``arm`` sets a deadline (CLOCK_BOOTTIME), ``disarm`` takes it away, and both are acknowledged. A later ``arm``
    replaces an earlier one. Before it acts on a deadline it reads what the agent has sent by then, and before it
    fences for it what the agent has sent until its death.
 5. Deadline passed while armed: the agent is killed, then Redis is fenced. Agent dead while armed: Redis is fenced at
    once. After that it is disarmed.
 6. To fence is: the connections over which the agent may have lifted the fence (it tells of each before it does) are
    closed from Redis's side, so that what is unread in them never is executed, and then CONFIG SET makes Redis refuse
    writes. Without a confirmation within FENCE_LIMIT_S the process group of Redis is killed. Behind the fence the
    agent's other role connections are looked for and closed, which with many clients takes longer, and kills nobody.
 7. The connection for this is opened when the agent has told the credentials, and again at each ``arm`` if it is gone:
    clients that take all slots come too late.
 8. Agent dead while not armed: Redis runs on, and so does the guard.
 9. Redis dead: its process group is killed, the agent is told the status and the last lines, and the guard ends when
    the agent has let go of it (after TAKE_LIMIT_S at the latest), or when no agent has come for LINGER_S. Until then
    Redis's process id stays taken.
10. A guard that breaks says why and ends, and with it Redis.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import sys

TYPE_CHECKING = False  # ``typing`` takes 10 ms to load.
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn

PIPE_BYTES = 1 << 20
"""A stopped guard reads nothing: this lets it be continued before Redis blocks."""
NICE = -10

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1
_MCL_CURRENT_FUTURE_ONFAULT = 1 | 2 | 4
# The module that names them takes 4 ms to load.
_SIGHUP, _SIGINT, _SIGKILL, _SIGPIPE, _SIGTERM, _SIGXFSZ = 1, 2, 9, 13, 15, 25
_SIG_DFL, _SIG_IGN = None, ctypes.c_void_p(1)


def launch(directory: str, command: list[str]) -> tuple[int, int]:
    """Start Redis; returns its process id and the reading end of what it prints."""
    guard = os.getpid()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        _become(directory, command, writing, guard)
    os.close(writing)
    os.set_blocking(reading, False)
    # Above the user's limit the default of 64 KiB stays.
    _attempt(lambda: fcntl.fcntl(reading, fcntl.F_SETPIPE_SZ, PIPE_BYTES))
    return pid, reading


def _become(directory: str, command: list[str], writing: int, guard: int) -> NoReturn:
    try:
        os.setsid()
        _LIBC.prctl(_PR_SET_PDEATHSIG, _SIGKILL)
        if os.getppid() != guard:
            os._exit(1)  # It died before it could take us along.
        # Over the guard's control sockets; everything else is closed on exec.
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(writing, 1)
        os.dup2(writing, 2)
        # Python ignores them, and what is ignored stays so.
        _LIBC.signal(_SIGPIPE, _SIG_DFL)
        _LIBC.signal(_SIGXFSZ, _SIG_DFL)
        # Redis tries a relative ``logfile`` where it was started, before it goes to its data directory.
        os.chdir(directory)
        if os.getpriority(os.PRIO_PROCESS, 0) < 0:
            os.setpriority(os.PRIO_PROCESS, 0, 0)  # The agent's is not for Redis.
        os.execv(command[0], command)  # noqa: S606 - without a shell is what is wanted
    except OSError as error:
        os.write(writing, f"{command[0]}: cannot be executed: {error.strerror}\n".encode())
    finally:
        os._exit(127)


def toughen() -> None:
    """Behind the launch, so that Redis inherits nothing of it. What is not allowed here is left out."""
    for number in (_SIGHUP, _SIGINT, _SIGTERM):
        _LIBC.signal(number, _SIG_IGN)
    policy = os.SCHED_RR | os.SCHED_RESET_ON_FORK
    if not _attempt(lambda: os.sched_setscheduler(0, policy, os.sched_param(1))):
        _attempt(lambda: os.setpriority(os.PRIO_PROCESS, 0, NICE))
    _attempt(_spare_from_the_oom_killer)
    _LIBC.mlockall(_MCL_CURRENT_FUTURE_ONFAULT)


def _spare_from_the_oom_killer() -> None:
    descriptor = os.open("/proc/self/oom_score_adj", os.O_WRONLY)
    try:
        os.write(descriptor, b"-1000")
    finally:
        os.close(descriptor)


def _attempt(action: Callable[[], object]) -> bool:
    try:
        action()
    except OSError:
        return False
    return True


def main(arguments: list[str]) -> NoReturn:
    """Arguments: path of the listening socket, Redis's directory, its command. Descriptors: 0 the agent, 1 listens."""
    path, directory, *command = arguments
    pid, output = launch(directory, command)
    # An isolated interpreter does not look where its script is.
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120
    from redis_agent.guard_loop import serve  # noqa: PLC0415 - Redis need not wait for it

    toughen()
    serve(path, pid, output)


if __name__ == "__main__":
    main(sys.argv[1:])
