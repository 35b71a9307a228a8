"""The guard keeps its contract (guard.py), with real guards and real Redis: what tests/contract/test_guard_contract.py,
which the simulated one must pass as well, does not say.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

import psutil
import pytest
import redis

from redis_agent import guard_loop
from redis_agent.guard_link import Greeting, GuardGone, GuardLink
from redis_agent.lab.waiting import wait_for
from redis_agent.redis_conf import GUARD_CLIENT_NAME, ROLE_CLIENT_NAME, LaunchRefused
from tests.support.guard import FENCED, Host
from tests.support.hangs import measured
from tests.support.redis import LIMIT_S, clock


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    """A host whose Redis is not launched yet."""
    with Host(tmp_path) as host:
        yield host


AGENT = """
    import sys, time
    from pathlib import Path
    sys.path[:0] = sys.argv[1].split(":")
    from tests.support.guard import Host
    from tests.support.redis import clock
    host = Host(Path(sys.argv[2]))
    host.conf.write_text(Path(sys.argv[3]).read_text())
    host.unix_socket = sys.argv[4]
    link = host.connect() if sys.argv[5] == "connect" else host.launch()
    host.introduce(link)
    if float(sys.argv[6]):
        host.asked(link, 1, do="arm", until=clock() + float(sys.argv[6]))
    print(host.pid, host.guard_pid, host.greeting.create_time, flush=True)
    time.sleep(60)
"""


class OtherAgent:
    """An agent in a process of its own, to be killed: it arms the guard for ``armed_s`` from now, unless that is 0."""

    def __init__(self, host: Host, armed_s: float, how: str = "launch") -> None:
        copy = host.conf.with_suffix(".copy")
        copy.write_text(host.conf.read_text(encoding="utf-8"), encoding="utf-8")
        arguments = [":".join(sys.path), str(host.directory), str(copy), host.unix_socket, how, str(armed_s)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(AGENT), *arguments], stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        pid, guard_pid, started = self.process.stdout.readline().split()
        host.greeting = Greeting(int(guard_pid), int(pid), float(started), None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


# --- 1: Redis is its child ------------------------------------------------------------------------------------------


def test_redis_is_its_child_and_dies_with_it(host: Host) -> None:
    """Line 1: in a group of its own, with nothing of the guard's, and killed by the kernel when the guard is killed.

    # case C8
    """
    link = host.launch()
    host.introduce(link)
    child, guard = psutil.Process(host.pid), psutil.Process(host.guard_pid)
    assert child.ppid() == guard.pid
    assert os.getpgid(child.pid) == os.getsid(child.pid) == child.pid
    assert os.getsid(guard.pid) == guard.pid

    def sockets(process: psutil.Process) -> set[str]:
        found = [str(entry.readlink()) for entry in Path(f"/proc/{process.pid}/fd").iterdir()]
        return {target for target in found if target.startswith("socket:")}

    assert sockets(guard)
    assert not sockets(child) & sockets(guard)
    own = psutil.Process()
    assert os.sched_getscheduler(child.pid) == os.sched_getscheduler(own.pid)
    assert child.nice() == own.nice()
    adjustment = "oom_score_adj"
    assert Path(f"/proc/{child.pid}/{adjustment}").read_text() == Path(f"/proc/{own.pid}/{adjustment}").read_text()
    assert "VmLck:\t       0 kB" in Path(f"/proc/{child.pid}/status").read_text()
    guard.kill()
    wait_for(lambda: not host.alive(), 1.0, "Redis is dead", pause_s=0.001)
    with pytest.raises(GuardGone):
        host.hear(link, "anything")


def test_it_loads_nothing_but_the_standard_library() -> None:
    """It must start in milliseconds, whatever is installed, and hold little."""
    script = "import sys; sys.path.append(sys.argv[1]); import redis_agent.guard_loop; print('\\n'.join(sys.modules))"
    source = str(Path(guard_loop.__file__).resolve().parents[1])
    command = [sys.executable, "-I", "-S", "-c", script, source]
    loaded = set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    ours = {name for name in loaded if name.partition(".")[0] == "redis_agent"}
    assert ours == {"redis_agent", "redis_agent.guard_loop", "redis_agent.guard_fence"}
    assert loaded - ours <= {*sys.stdlib_module_names, *loaded & set(sys.builtin_module_names), "__main__"} | {
        name for name in loaded if name.partition(".")[0] in sys.stdlib_module_names
    }
    assert not loaded & {"typing", "subprocess", "threading", "logging", "pathlib"}


# --- 2: one agent ---------------------------------------------------------------------------------------------------


def test_it_has_one_agent_at_a_time(host: Host) -> None:
    """Line 2: a second one is refused, and told by whom, while the first lives; after that it is greeted."""
    first = host.launch()
    second = GuardLink.find(host.path)
    assert second is not None
    with pytest.raises(LaunchRefused, match=f"process {os.getpid()} is the agent"):
        second.greeting(LIMIT_S)
    second.close()
    host.asked(first, 1, do="disarm")
    first.hang_up()
    third = host.connect()
    host.asked(third, 2, do="disarm")


# --- 3: output ------------------------------------------------------------------------------------------------------


def test_it_blocks_neither_redis_nor_itself_on_an_agent_that_does_not_read(host: Host) -> None:
    """Line 3: what is printed is read at once; lines that the agent does not take are dropped and counted.

    In the place of Redis a program that prints far more than all buffers hold. The acknowledgement is not dropped.
    """
    done = host.directory / "done"
    host.conf.write_text(f"seq 1 1000000\ntouch {done}\nexec sleep 60\n", encoding="utf-8")
    link = host.launch("/bin/sh")
    wait_for(done.exists, LIMIT_S, "everything is printed")
    assert link.send({"do": "disarm", "id": 7})
    assert host.hear(link, "done")["id"] == 7
    lines = [line for message in host.messages if message["is"] == "out" for line in message["lines"]]
    while "1000000" not in lines:
        lines += host.hear(link, "out")["lines"]
    lost = sum(message["lost"] for message in host.messages if message["is"] == "out")
    assert lost > 0
    assert len(lines) + lost == 1_000_000
    assert lines == sorted(lines, key=int)


# --- 5: it fires ----------------------------------------------------------------------------------------------------


def last_ack(host: Host, stop: Callable[[], bool]) -> float:
    """Write all the time; when the last write was acknowledged (monotonic), once Redis has refused for a while."""
    client, acknowledged = host.client(), time.monotonic()
    refused = 0
    while refused < 20 or not stop():
        try:
            client.set("a", 1)
            acknowledged, refused = time.monotonic(), 0
        except redis.ResponseError:
            refused += 1
        assert time.monotonic() - acknowledged < LIMIT_S
    return acknowledged


def test_an_agent_that_dies_while_armed_leaves_a_fenced_redis(host: Host) -> None:
    """Line 5: no write is acknowledged later than 100 ms after the kill; Redis and its data live on.

    # case C3
    """
    with OtherAgent(host, armed_s=60.0) as agent:
        host.client().set("kept", "yes")
        agent.process.kill()
        killed_at = time.monotonic()
        assert last_ack(host, lambda: True) - killed_at < 0.1
        assert host.fence() == FENCED
        assert host.alive()
        assert host.client().get("kept") == "yes"
        wait_for(lambda: not host.named("redis-agent-role"), 1.0, "the role connection is closed")


def test_a_missed_deadline_ends_the_agent_and_fences(host: Host) -> None:
    """Line 5: an agent that is stopped is killed at the deadline, and Redis is fenced, not killed; then it is disarmed.

    # case C2
    """
    with OtherAgent(host, armed_s=0.5) as agent:
        agent.process.send_signal(signal.SIGSTOP)
        assert agent.process.wait(LIMIT_S) == -signal.SIGKILL
        wait_for(lambda: host.fence() == FENCED, 1.0, "Redis is fenced", pause_s=0.001)
        assert host.alive()
        link = host.connect()
        line = host.hear(link, "out")["lines"][-1]
        assert line.startswith("guard: fenced redis-server in ")
        assert line.endswith("the deadline has passed")
        host.client().config_set("min-replicas-to-write", 0)
        # This one never arms it, and leaves it.
        link.hang_up()
        host.connect()
        assert host.fence() == "0"


# --- 6: the fence ---------------------------------------------------------------------------------------------------


class Role:
    """A role connection to Redis."""

    def __init__(self, host: Host) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(host.unix_socket)
        self.sock.sendall(f"CLIENT SETNAME {ROLE_CLIENT_NAME}\r\nCLIENT ID\r\n".encode())
        said = b""
        while said.count(b"\r\n") < 2:
            said += self.sock.recv(100)
        self.number = int(said.split(b":")[1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()


@pytest.mark.parametrize("tells", [True, False])
def test_what_a_role_connection_has_not_been_read_of_is_never_executed(host: Host, tells: bool) -> None:
    """Line 6: a late command that would lift the fence, behind much that Redis has yet to read, does not come to pass.
    An agent of an older version does not tell over which connection.

    # case C3
    """
    link = host.launch()
    host.introduce(link, tells=tells)
    with Role(host) as connection:
        role = connection.sock
        host.asked(link, 1, do="arm", until=clock() + 60)
        assert not tells or link.send({"do": "lift", "over": connection.number})
        os.kill(host.pid, signal.SIGSTOP)
        role.setblocking(False)
        sent = 0
        with suppress(BlockingIOError):
            while sent < 60:
                role.sendall(b"CONFIG SET min-replicas-to-write 0\r\n" * 40)
                sent += 1
        link.hang_up()
        # The guard asks now, and Redis must not be silent for long.
        os.kill(host.pid, signal.SIGCONT)
        wait_for(lambda: host.fence() == FENCED, 1.0, "Redis is fenced")
        wait_for(lambda: not host.named(ROLE_CLIENT_NAME), 1.0, "the role connection is closed")
    assert sent > 10
    assert host.fence() == FENCED
    assert host.alive()


MANY = 10_000
IDLE = """
    import socket, sys
    count, path = int(sys.argv[2]), sys.argv[1]
    open_ = []
    for _ in range(count):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(path)
        open_.append(sock)
    for sock in open_:
        sock.sendall(b"PING\\r\\n")
    for sock in open_:
        assert sock.recv(10) == b"+PONG\\r\\n"
    print("open", flush=True)
    sys.stdin.read()
"""


@contextmanager
def idle_clients(host: Host, count: int) -> Iterator[None]:
    """So many connections that do nothing, of a process that has the descriptors for them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count + 100:
        pytest.skip(f"needs {count + 100} descriptors, and may have {hard}")
    command = ["sh", "-c", f'ulimit -n {count + 100}; exec "$@"', "sh", sys.executable, "-c", textwrap.dedent(IDLE)]
    with subprocess.Popen(
        [*command, host.unix_socket, str(count)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "open\n"
            yield
        finally:
            process.stdin.close()


def test_ten_thousand_clients_cost_no_redis(tmp_path: Path) -> None:
    """Line 6: what confirms the fence in time is not killed because the list of its clients takes longer. Still a
    late command is not executed, and all role connections are closed.

    # case C3, D3
    """
    with Host(tmp_path, f"maxclients {MANY + 100}") as host:
        link = host.launch()
        host.introduce(link)
        with idle_clients(host, MANY), Role(host) as lifter, Role(host) as other:
            begun = clock()
            assert len(host.client().execute_command("CLIENT LIST")) >= MANY
            measured("a list of all clients", f"{(clock() - begun) * 1000:.0f} ms")
            host.asked(link, 1, do="arm", until=clock() + 60)
            assert link.send({"do": "lift", "over": lifter.number})
            os.kill(host.pid, signal.SIGSTOP)
            for role in (lifter, other):
                role.sock.sendall(b"PING\r\n" * 1000)
            lifter.sock.sendall(b"CONFIG SET min-replicas-to-write 0\r\n")
            link.hang_up()
            os.kill(host.pid, signal.SIGCONT)
            wait_for(lambda: host.fence() == FENCED, 1.0, "Redis is fenced", pause_s=0.001)
            wait_for(lambda: not host.named(ROLE_CLIENT_NAME), 5.0, "all role connections are closed")
            assert host.fence() == FENCED
            assert host.alive()
            again = host.connect()
            line = host.hear(again, "out")["lines"][-1]
            assert line.startswith("guard: fenced redis-server in ")
            measured(f"the fence, with {MANY} clients", line)


def test_a_redis_that_does_not_confirm_is_killed_with_its_group(tmp_path: Path) -> None:
    """Line 6: a stopped Redis is killed after the limit, and a child of it that saves dies with it."""
    with Host(tmp_path, "rdb-key-save-delay 10000000") as host:
        link = host.launch()
        host.introduce(link)
        client = host.client()
        client.mset({f"key{number}": "x" for number in range(100)})
        client.bgsave()
        saver = wait_for(lambda: psutil.Process(host.pid).children(), 5.0, "a child saves")[0]
        os.kill(host.pid, signal.SIGSTOP)
        stopped_at = clock()
        host.asked(link, 1, do="arm", until=clock() + 0.05)
        link.hang_up()
        wait_for(lambda: not host.alive(), 1.0, "Redis is dead", pause_s=0.001)
        assert clock() - stopped_at < 0.2
        wait_for(lambda: is_gone(saver.pid), 1.0, "so is its child")


# --- 7: its connection ----------------------------------------------------------------------------------------------


def test_clients_that_take_all_slots_come_too_late(tmp_path: Path) -> None:
    """Line 7: with maxclients reached Redis is fenced, not killed.

    # case D3
    """
    with Host(tmp_path, "maxclients 10") as host, ExitStack() as stack:
        link = host.launch()
        host.introduce(link)
        admin = host.client()
        host.asked(link, 1, do="arm", until=clock() + 60)

        def fill() -> bool:
            for _ in range(12):
                stack.enter_context(socket.socket(socket.AF_UNIX)).connect(host.unix_socket)
            return bool(admin.info("clients")["connected_clients"] >= 10)

        wait_for(fill, 5.0, "all slots are taken")
        link.hang_up()
        setting = "min-replicas-to-write"
        wait_for(lambda: admin.config_get(setting)[setting] == FENCED, 1.0, "Redis is fenced")
        assert host.alive()


def test_its_connection_is_opened_again(tmp_path: Path) -> None:
    """Line 7: closed with all others, as by a freeze, it is there again behind the next ``arm``."""
    with Host(tmp_path, "requirepass sesame") as host:
        link = host.launch()
        wait_for(lambda: link.send(host.credentials("sesame")), 1.0, "it is told")
        admin = redis.Redis(unix_socket_path=host.unix_socket, password="sesame", decode_responses=True)

        def connected() -> list[str]:
            with suppress(redis.ConnectionError, redis.BusyLoadingError):
                return [row["id"] for row in admin.client_list() if row["name"] == GUARD_CLIENT_NAME]
            return []

        number = 0

        def armed() -> list[str]:
            nonlocal number
            number += 1
            host.asked(link, number, do="arm", until=clock() + 60)
            return connected()

        (before,) = wait_for(armed, LIMIT_S, "the guard is connected")
        admin.client_kill_filter(_type="normal", skipme=True)
        (after,) = wait_for(armed, LIMIT_S, "the guard is connected again")
        assert after != before
        admin.client_kill_filter(_type="normal", skipme=True)
        # And once more when it is needed.
        link.hang_up()
        setting = "min-replicas-to-write"
        wait_for(lambda: admin.config_get(setting)[setting] == FENCED, 1.0, "Redis is fenced")
        assert host.alive()
        admin.close()


# --- 8: not armed ---------------------------------------------------------------------------------------------------


def test_an_agent_that_dies_while_not_armed_changes_nothing(host: Host) -> None:
    """Line 8: Redis runs on as it was, and the next agent learns which process it is and what the last one had said."""
    with OtherAgent(host, armed_s=0.0) as agent:
        launched = host.greeting
        assert launched is not None
        agent.process.kill()
        agent.process.wait()
    host.client().set("a", 1)
    host.connect()
    assert host.fence() == "0"
    told = Greeting(
        launched.guard_pid, launched.redis_pid, launched.create_time, None, "a note", host.unix_socket, "", ""
    )
    assert host.greeting == told


# --- 9: the end -----------------------------------------------------------------------------------------------------


def test_a_death_is_told_and_then_the_guard_ends(host: Host) -> None:
    """Line 9: status and last lines; the id stays taken until the agent lets go; the socket is gone by then."""
    link = host.launch()
    host.introduce(link)
    os.kill(host.pid, signal.SIGTERM)
    dead = host.hear(link, "dead")
    assert dead["status"] == 0
    assert any("bye bye" in line for line in dead["lines"])
    assert not host.path.exists()
    assert psutil.Process(host.pid).status() == psutil.STATUS_ZOMBIE
    assert not is_gone(host.guard_pid)
    link.hang_up()
    wait_for(lambda: is_gone(host.guard_pid), 1.0, "the guard has ended")


def test_the_next_agent_learns_of_a_death_without_one(host: Host) -> None:
    """Line 9: it comes in time, and is told."""
    host.launch().hang_up()
    process = os.pidfd_open(host.pid)
    os.kill(host.pid, signal.SIGKILL)
    assert select.select([process], [], [], 1.0)[0]
    os.close(process)
    host.connect().hang_up()
    assert host.greeting is not None
    assert host.greeting.status == -signal.SIGKILL
    assert not host.path.exists()
    wait_for(lambda: is_gone(host.guard_pid), 1.0, "the guard has ended")


def test_a_guard_that_nobody_wants_ends(host: Host) -> None:
    """Line 9: Redis died and no agent has come: after a while the guard leaves, and its socket with it."""
    host.launch().hang_up()
    os.kill(host.pid, signal.SIGKILL)
    wait_for(lambda: is_gone(host.guard_pid), guard_loop.LINGER_S + 2, "the guard has ended")
    assert not host.path.exists()


# --- 10: it breaks --------------------------------------------------------------------------------------------------


def test_a_guard_that_breaks_takes_redis_along(host: Host) -> None:
    """Line 10: a message that makes no sense is a broken invariant: it says so, and Redis is dead.

    # case C8
    """
    link = host.launch()
    host.introduce(link)
    assert link.send({"do": "arm"})
    assert "KeyError" in host.hear(link, "broken")["why"]
    wait_for(lambda: not host.alive(), 1.0, "Redis is dead")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_it_does_not_end_when_told(host: Host, number: signal.Signals) -> None:
    """What ends a host's processes in order reaches Redis itself: the guard goes when Redis has gone."""
    link = host.launch()
    host.introduce(link)
    os.kill(host.guard_pid, number)
    host.asked(link, 1, do="disarm")
    assert host.alive()
