"""The unit for systemd agrees with the agent's own limits and command line."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from math import inf
from pathlib import Path

import pytest

from redis_agent import guard, guard_link, redis_adapter, runtime
from redis_agent.cli.main import main
from redis_agent.config import Timing, ZooKeeper
from redis_agent.runtime_init import Init, watchdog_s

UNIT = Path(__file__).resolve().parents[2] / "systemd" / "redis-agent@.service"


def directive(name: str) -> str:
    """The value of a directive that occurs once."""
    (value,) = re.findall(rf"^{name}=(.*)$", UNIT.read_text(), flags=re.MULTILINE)
    assert isinstance(value, str)
    return value


def test_the_time_to_stop_is_enough_for_a_handover() -> None:
    """systemd does not kill an agent that is still handing over or waiting for Redis to save."""
    timing = Timing()
    needed_s = timing.handover_s + timing.stop_redis_s + timing.close_session_s
    assert int(directive("TimeoutStopSec")) >= needed_s + 10


def test_the_restart_is_quick_except_for_a_wrong_configuration() -> None:
    """A killed agent is back at once, however often; exit code 2 leaves the unit failed."""
    assert directive("Restart") == "always"
    assert directive("RestartSec") == "100ms"
    assert directive("StartLimitIntervalSec") == "0"
    assert directive("RestartPreventExitStatus") == "2"


def test_only_the_agent_is_told_to_stop_and_readiness_is_its_own_word() -> None:
    """Redis is stopped by the agent, not by systemd; the packaged service cannot run beside it."""
    assert directive("Type") == "notify"
    assert directive("KillMode") == "process"
    assert "redis-server.service" in directive("Conflicts").split()


def test_a_killed_agent_finds_its_guard_again() -> None:
    """systemd ends neither guard nor Redis with the agent, and the guard's socket stays where the next one looks."""
    assert directive("KillMode") == "process"
    assert directive("RuntimeDirectoryPreserve") == "yes"


def test_the_guard_may_have_its_priority() -> None:
    """What it asks for is allowed, and is not forbidden elsewhere in the unit."""
    assert int(directive("LimitRTPRIO")) >= 1
    assert int(directive("LimitNICE")) <= guard.NICE
    assert "RestrictRealtime" not in re.sub(r"^#.*$", "", UNIT.read_text(), flags=re.MULTILINE)


def test_a_hung_agent_is_started_again() -> None:
    """Later than its guard has ended a leader's, and than whatever holds the agent up when it starts: behind an upgrade
    nobody tells init anything until then. A stopped process takes no other signal than SIGKILL.
    """
    allowed_s, timing = float(directive("WatchdogSec")), Timing()
    lease_s = ZooKeeper(hosts="zk1:2181").session_timeout_s
    held_up_s = runtime.OLD_REDIS_LIMIT_S + guard_link.GREETING_LIMIT_S + 2 * redis_adapter.JOIN_LIMIT_S
    assert allowed_s >= held_up_s + 10
    assert allowed_s > lease_s + timing.fence_budget_s
    assert allowed_s > timing.hang_s + timing.handover_s
    assert directive("WatchdogSignal") == "SIGKILL"
    assert directive("Type") == "notify"


@pytest.mark.parametrize(
    ("environ", "allowed_s"),
    [
        ({}, inf),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, inf),
        ({"WATCHDOG_USEC": "0"}, inf),
        ({"WATCHDOG_USEC": "soon"}, inf),
    ],
)
def test_whom_init_watches(environ: dict[str, str], allowed_s: float) -> None:
    """Us, if it says so, and names nobody else; a process that it does not watch tells it nothing."""
    assert watchdog_s(environ, pid=7) == allowed_s
    init = Init({"NOTIFY_SOCKET": "/nowhere", **environ}, pid=7)
    assert (init.due == inf) == (allowed_s == inf)
    init.beat(100.0)
    assert init.due - 100.0 <= allowed_s / 2
    assert Init(environ, pid=7).due == inf


def test_the_command_is_one_that_we_understand(capsys: pytest.CaptureFixture[str]) -> None:
    """What the unit starts is a valid command line, which fails only for want of the file."""
    program, *arguments = shlex.split(directive("ExecStart").replace("%i", "no-such-cluster"))
    assert program == "redis-agent"
    assert main(arguments) == 2
    assert "/etc/redis-agent/no-such-cluster.toml: cannot be read" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_systemd_understands_every_directive(tmp_path: Path) -> None:
    """An unknown or misspelt directive would be ignored silently."""
    copy = tmp_path / UNIT.name
    # The program and its user need not exist where this is tested.
    text = UNIT.read_text().replace("ExecStart=redis-agent", "ExecStart=/bin/true")
    copy.write_text(re.sub(r"^(User|Group)=redis$", r"\1=root", text, flags=re.MULTILINE))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=yes", str(copy)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
