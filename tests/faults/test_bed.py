"""The bed itself: hosts that see each other, packets that vanish, hosts that stop and die, and nothing left behind."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from redis_agent.lab.waiting import wait_for
from tests.faults import bed as beds
from tests.faults.bed import Bed, Host
from tests.support.lacking import lacks

pytestmark = pytest.mark.root
PORT = 6379
SILENCE_S = 0.3
OWNER = """
import sys
from pathlib import Path
from tests.faults.bed import Bed
with Bed(Path(sys.argv[1]), keep=False) as bed:
    bed.host("a").popen(["sleep", "600"])
    bed.host("a").run("mount", "-t", "tmpfs", "none", str(bed.host("a").directory))
    print(bed.host("a").holder.pid, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def bed(tmp_path: Path) -> Iterator[Bed]:
    if reason := beds.missing():
        lacks(reason)
    with Bed(tmp_path / "bed") as made:
        yield made


def serve(host: Host) -> None:
    host.popen(
        ["redis-server", "--port", str(PORT), "--bind", "0.0.0.0", "--protected-mode", "no", "--save", ""],
        stdout=subprocess.DEVNULL,
    )
    wait_for(lambda: answers(host, limit_s=1.0), 5.0, f"Redis of {host} answers")


def answers(host: Host, *, limit_s: float = SILENCE_S) -> bool:
    """Redis there answers whoever asks on this thread."""
    with suppress(OSError), socket.create_connection((host.address, PORT), limit_s) as connection:
        connection.sendall(b"PING\r\n")
        return connection.recv(64).startswith(b"+PONG")
    return False


def test_packets_vanish_as_asked(bed: Bed) -> None:
    """Whole hosts, single peers, one direction, single ports; and all is well again afterwards."""
    a, b = bed.host("a"), bed.host("b")
    serve(a)
    serve(b)
    assert b.run_in_namespace(lambda: answers(a))
    cut = a.cut([b])
    assert (answers(a), b.run_in_namespace(lambda: answers(a))) == (True, False)
    cut.heal()
    for direction in ("in", "out"):
        cut = a.cut(direction=direction)
        assert (answers(a), answers(b), a.run_in_namespace(lambda: answers(a))) == (False, True, True)
        cut.heal()
    cut = a.cut(ports=[PORT + 1])
    assert answers(a)
    cut.heal()
    # A member that can't reach others' Redis, and whose own can't be reached.
    cut = a.cut([b], ports=[PORT])
    assert not a.run_in_namespace(lambda: answers(b))
    assert not b.run_in_namespace(lambda: answers(a))
    cut.heal()
    assert answers(a)
    assert b.run_in_namespace(lambda: answers(a))


def test_a_host_stops_goes_on_and_dies(bed: Bed) -> None:
    """All of it at once; its guests do neither."""
    host = bed.host("a")
    serve(host)
    guest = host.popen(["sleep", "600"], guest=True)
    host.freeze()
    assert not answers(host)
    host.thaw()
    assert answers(host)
    host.freeze()
    host.kill()
    assert (host.pids(), guest.poll(), answers(host)) == ([], None, False)
    serve(host)


def test_without_control_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same by signals, where the machine does not have them."""
    if reason := beds.missing():
        lacks(reason)
    monkeypatch.setattr(beds, "cgroup_root", lambda: None)
    with Bed(tmp_path / "bed") as made:
        test_a_host_stops_goes_on_and_dies(made)


def test_nothing_stays_behind(tmp_path: Path) -> None:
    """Its owner killed: no process, no namespace, no control group, no file."""
    if reason := beds.missing():
        lacks(reason)
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(tmp_path / "bed")],
        cwd=Path(__file__).resolve().parents[2],
        env=beds.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert owner.stdout is not None
    holder = int(owner.stdout.readline())
    root = beds.cgroup_root()
    groups = set() if root is None else set(root.glob("redis-agent-bed-*"))
    assert not beds.is_gone(holder)
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    wait_for(lambda: not (tmp_path / "bed").exists(), 10.0, "the directory is gone")
    assert beds.is_gone(holder)
    # Those of another run are none of our business.
    assert root is None or not any((group / "a").exists() for group in groups)
