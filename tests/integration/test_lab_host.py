"""A member's host in the laboratory: agent, guard, Redis; and that nothing of it is ever left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from redis_agent.lab import host, janitor
from redis_agent.lab.agent_process import AgentProcess
from redis_agent.lab.waiting import wait_for
from redis_agent.lab.zookeeper import Ensemble
from tests.support.cluster import lab, unstarted


def states(member: AgentProcess) -> list[str]:
    pids = (member.pid, member.guard_pid, member.redis_pid)
    return [psutil.Process(pid).status() if pid is not None else "gone" for pid in pids]


def test_a_host_stands_still_and_goes_on(zookeeper: Ensemble, tmp_path: Path) -> None:
    """Agent, guard and Redis are found, stopped and continued together."""
    with lab(zookeeper, tmp_path, 1) as cluster:
        member = cluster["n1"]
        assert len({member.pid, member.guard_pid, member.redis_pid} - {None}) == 3
        assert psutil.Process(member.redis_pid).ppid() == member.guard_pid
        member.freeze_host(("redis", "guard", "agent"))
        assert states(member) == [psutil.STATUS_STOPPED] * 3
        assert member.frozen
        member.thaw_host()
        assert psutil.STATUS_STOPPED not in states(member)
        cluster.wait_settled()


def test_a_killed_agent_leaves_guard_and_redis_until_the_laboratory_ends(zookeeper: Ensemble, tmp_path: Path) -> None:
    """They outlive the agent, and are found all the same; ``destroy`` ends them, also if they are stopped."""
    with unstarted(lab(zookeeper, tmp_path, 2)) as cluster:
        cluster.start()
        cluster.wait_started()
        for member in cluster:
            guard, server = member.guard_pid, member.redis_pid
            member.kill()
            assert (member.guard_pid, member.redis_pid) == (guard, server)
        cluster["n1"].stop_guard()
        for member in cluster:
            member.destroy()
            assert (host.workers(member.directory), member.guard_pid, member.redis_pid) == ([], None, None)


def test_the_guard_takes_redis_along(zookeeper: Ensemble, tmp_path: Path) -> None:
    """SIGKILL to the guard of a member ends that Redis; the agent starts another pair."""
    with lab(zookeeper, tmp_path, 1) as cluster:
        member = cluster["n1"]
        guard, server = member.guard_pid, member.redis_pid
        member.kill_guard()
        cluster.wait_for(lambda: member.redis_pid not in (None, server), "another Redis runs")
        cluster.wait_for(lambda: member.guard_pid not in (None, guard), "under another guard")


def test_a_killed_laboratory_leaves_nothing_behind(zookeeper: Ensemble) -> None:
    """SIGKILL to the process that runs a cluster: its agents die with it, and the janitor ends guards and Redis."""
    script = (
        "import sys, pathlib\n"
        "from redis_agent.lab import janitor\n"
        "from redis_agent.lab.agent_process import AgentProcess\n"
        "from redis_agent.lab.ports import free_port\n"
        "directory, hosts = pathlib.Path(sys.argv[1]), sys.argv[2]\n"
        "settings = {'cluster': {'name': directory.name, 'bootstrap_expect': 1},\n"
        "            'zookeeper': {'hosts': hosts, 'tick_s': 0.2, 'session_timeout_s': 2.0}}\n"
        "with janitor.cleaning(directory):\n"
        "    member = AgentProcess('n1', directory / 'n1', settings, port=free_port())\n"
        "    member.start()\n"
        "    member.wait_redis()\n"
        "    print(member.guard_pid, member.redis_pid, flush=True)\n"
        "    sys.stdin.read()\n"
    )
    directory = Path(tempfile.mkdtemp(prefix="lab-"))
    with subprocess.Popen(
        [sys.executable, "-c", script, str(directory), zookeeper.hosts],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as laboratory:
        assert laboratory.stdout is not None
        pids = {int(word) for word in laboratory.stdout.readline().split()}
        assert pids <= set(janitor.workers(directory.resolve()))
        laboratory.send_signal(signal.SIGKILL)
    wait_for(lambda: not list(janitor.workers(directory.resolve())), 10.0, "nobody works there any more")
    wait_for(lambda: not directory.exists(), 5.0, "the directory is gone")
    assert not any(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE for pid in pids)
