"""Hosts on one machine: a network namespace, a mount namespace and a control group each, on a bridge of their own.

Needs root. Nothing of the machine's own network is touched: the bridge is in a namespace, too, and no namespace has a
name. Each lives as long as a small process that holds it, so whatever ends those processes removes namespaces, links,
addresses and mounts: also the janitor, if we are killed.

The thread that opens a bed enters the namespace of its host ``ops``, which no partition should name: from there every
host is reached, by every socket that this thread opens, and those of the threads and children that it starts.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import redis_agent
from redis_agent.lab.waiting import wait_for

T = TypeVar("T")
Direction = Literal["both", "in", "out"]

OPS = "ops"
"""The host that we look from."""
_SUBNET = "10.99.0"
_LIMIT_S = 10.0
_ROOTS_PATH = ("/usr/sbin", "/sbin")
_CLONE_NEWNET = 0x40000000
_LIBC = ctypes.CDLL(None, use_errno=True)
_SOURCES = (Path(redis_agent.__file__).resolve().parents[1], Path(__file__).resolve().parents[2])
# Becomes the program: the process id stays. A process that enters a mount namespace is at its root.
_BECOME = 'cd "$1" && { [ -z "$2" ] || echo $$ >"$2/cgroup.procs"; } && shift 2 && exec "$@"'
_cuts = itertools.count(1)


class BedError(Exception):
    """The bed can't be made here, or a command that shapes it failed. Says what to do."""


def missing() -> str:
    """Why there can be no bed here; empty if there can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    # Debian keeps these tools where only root looks, and sudo may have left root with a user's PATH.
    paths = os.environ.get("PATH", "").split(os.pathsep)
    os.environ["PATH"] = os.pathsep.join([*paths, *(each for each in _ROOTS_PATH if each not in paths)])
    for tool, package in {
        "ip": "iproute2",
        "nft": "nftables",
        "nsenter": "util-linux",
        "unshare": "util-linux",
    }.items():
        if shutil.which(tool) is None:
            return f"no {tool} in PATH (Debian: apt install {package})"
    tried = subprocess.run(
        ["unshare", "--net", "--mount", "nft", "list", "ruleset"], capture_output=True, text=True, check=False
    )
    return f"no network namespaces here: {tried.stderr.strip()}" if tried.returncode else ""


def cgroup_root() -> Path | None:
    """Where version 2 of the control groups is mounted, with kill and freeze; None if it is not."""
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        _, place, kind, *_ = line.split()
        # Version 2 knows both without any controller, so a machine that mounts it beside version 1 will do.
        if kind == "cgroup2" and os.access(place, os.W_OK):
            return Path(place)
    return None


def environment() -> dict[str, str]:
    """Ours, with which our modules are found from any directory."""
    paths = [*map(str, _SOURCES), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


class Bed:
    """Hosts that see each other. ``with`` makes it and leaves nothing behind, also if this process is killed.

    Args:
        directory: everything of the hosts is below it; made if missing. Keep it short, unix sockets are below it.
        keep: leave the files.
    """

    def __init__(self, directory: Path, *, keep: bool = True) -> None:
        self.directory = directory.resolve()
        self.hosts: dict[str, Host] = {}
        self._keep = keep
        self._groups: Path | None = None
        self._janitor: subprocess.Popen[bytes] | None = None
        self._switch: subprocess.Popen[str] | None = None
        self._home: int | None = None

    def __enter__(self) -> Self:
        if reason := missing():
            raise BedError(reason)
        self.directory.mkdir(parents=True, exist_ok=True)
        if (root := cgroup_root()) is not None:
            self._groups = root / f"redis-agent-bed-{secrets.token_hex(4)}"
            self._groups.mkdir()
        self._janitor = self._start_janitor()
        try:
            self._switch = self.hold("switch")
            for command in ("link add br0 type bridge forward_delay 0", "link set br0 up"):
                run_in(self._switch.pid, "ip", *command.split())
            self._home = os.open("/proc/self/ns/net", os.O_RDONLY)
            _enter(self.host(OPS).holder.pid)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Back home; then the janitor ends every process, and the bed with them."""
        if self._home is not None:
            _LIBC.setns(self._home, _CLONE_NEWNET)
            os.close(self._home)
            self._home = None
        if self._janitor is not None:
            assert self._janitor.stdin is not None
            self._janitor.stdin.close()
            self._janitor.wait(2 * _LIMIT_S)
            self._janitor = None
        for process in (self._switch, *(each.holder for each in self.hosts.values())):
            if process is not None:
                process.kill()
                process.wait()
                if process.stdout is not None:
                    process.stdout.close()
        for host in self.hosts.values():
            host.reap()
        self.hosts.clear()

    def host(self, name: str) -> Host:
        """The host of this name; made when it is asked for first."""
        if name not in self.hosts:
            self.hosts[name] = self._make(name)
        return self.hosts[name]

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    def _make(self, name: str) -> Host:
        number = len(self.hosts) + 1
        holder = self.hold(name)
        assert self._switch is not None
        host = Host(name, f"{_SUBNET}.{number}", self.directory / name, holder, self._groups)
        link = f"v{number}"
        for arguments in (
            f"link add {link} type veth peer name eth0 netns {holder.pid}",
            f"link set {link} master br0 up",
        ):
            run_in(self._switch.pid, "ip", *arguments.split())
        for arguments in (f"addr add {host.address}/24 dev eth0", "link set eth0 up", "link set lo up"):
            run_in(holder.pid, "ip", *arguments.split())
        return host

    def hold(self, name: str) -> subprocess.Popen[str]:
        """A process with a network and a mount namespace of its own, which are there when this returns."""
        group = "" if self._groups is None else str(_made(self._groups / "holders"))
        become = ["unshare", "--net", "--mount", "sh", "-c", _BECOME, "sh", str(self.directory), group]
        process = subprocess.Popen(
            [*become, "sh", "-c", f"echo {name}; exec sleep infinity"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert process.stdout is not None
        if process.stdout.readline().strip() != name:
            raise BedError(f"no namespaces for {name}")
        return process

    def _start_janitor(self) -> subprocess.Popen[bytes]:
        arguments = [str(self.directory), str(self._groups or ""), *(["--keep"] if self._keep else [])]
        return subprocess.Popen(
            [sys.executable, "-m", "tests.faults.bed_janitor", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            cwd="/",
            env=environment(),
            # Out of reach of Ctrl-C and of a closed terminal.
            start_new_session=True,
        )


class Cut:
    """Packets that vanish, until ``heal``."""

    def __init__(self, host: Host, table: str) -> None:
        self._host = host
        self._table: str | None = table

    def heal(self) -> None:
        """Let them pass again. Twice is fine."""
        if self._table is not None:
            run_in(self._host.holder.pid, "nft", f"delete table inet {self._table}")
            self._table = None


class Host:
    """One host. ``Bed.host`` makes it.

    Its *guests* (clients beside a server) share its network, but neither freeze nor die with it.
    """

    def __init__(
        self, name: str, address: str, directory: Path, holder: subprocess.Popen[str], groups: Path | None
    ) -> None:
        self.name = name
        self.address = address
        self.directory = _made(directory)
        self.holder = holder
        self.frozen = False
        self._group = None if groups is None else _made(groups / name)
        self._guests = None if groups is None else _made(groups / f"{name}-guests")
        self._processes: list[subprocess.Popen[Any]] = []
        self._guest_pids: set[int] = set()

    def __repr__(self) -> str:
        return f"{self.name} ({self.address})"

    # --- processes ----------------------------------------------------------------------------------------------------

    def popen(
        self,
        argv: Sequence[str | Path],
        *,
        guest: bool = False,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> subprocess.Popen[Any]:
        """Start a program here. Its process id is the program's own.

        Args:
            argv: the program.
            guest: it is a guest.
            cwd: default: the host's directory.
            env: default: ours.
            **settings: further ones of Popen.
        """
        group = self._guests if guest else self._group
        # Into the mount namespace last: the programs that do it are looked up in ours.
        enter = ["nsenter", f"--net=/proc/{self.holder.pid}/ns/net", f"--mount=/proc/{self.holder.pid}/ns/mnt", "--"]
        become = ["sh", "-c", _BECOME, "sh", str(cwd or self.directory), str(group or "")]
        process = subprocess.Popen(
            [*enter, *become, *map(str, argv)],
            env=None if env is None else dict(env),
            **({"stdin": subprocess.DEVNULL, "start_new_session": True} | settings),
        )
        self._processes = [each for each in self._processes if each.poll() is None] + [process]
        if guest:
            self._guest_pids.add(process.pid)
        return process

    def run(self, *argv: str | Path, text: str | None = None) -> str:
        """Run a command in the network and the mounts of this host, outside of its control group. Returns its output.

        Raises:
            BedError: it failed.
        """
        return run_in(self.holder.pid, *map(str, argv), text=text, mounts=True)

    def run_in_namespace(self, function: Callable[[], T]) -> T:
        """Call a function on a thread of its own whose sockets are this host's (also those of threads it starts)."""
        results: list[T] = []
        errors: list[BaseException] = []

        def call() -> None:
            try:
                _enter(self.holder.pid)
                results.append(function())
            except BaseException as error:  # noqa: BLE001  (raised again where it was called)
                errors.append(error)

        thread = threading.Thread(target=call, name=f"in-{self.name}")
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]

    def pids(self) -> list[int]:
        """Who works on this host, guests excepted."""
        if self._group is not None:
            return [int(word) for word in (self._group / "cgroup.procs").read_text(encoding="ascii").split()]
        return [pid for pid in _in_namespace(self.holder.pid) if pid not in self._guest_pids]

    def freeze(self) -> None:
        """Stop the whole host: every process at once, as far as the machine can."""
        self.frozen = True
        if self._group is None:
            self._signal(signal.SIGSTOP)
            return
        (self._group / "cgroup.freeze").write_text("1", encoding="ascii")
        events = self._group / "cgroup.events"
        # One that waits for a stalled disk stops when it comes back from there.
        with suppress(Exception):
            wait_for(lambda: "frozen 1" in events.read_text(encoding="ascii"), 0.5, f"{self.name} is frozen")

    def thaw(self) -> None:
        """Continue the host."""
        self.frozen = False
        if self._group is None:
            self._signal(signal.SIGCONT)
        else:
            (self._group / "cgroup.freeze").write_text("0", encoding="ascii")

    def kill(self) -> None:
        """A power cut: every process is gone when this returns, frozen or not. Disks and network stay."""
        if self._group is not None:
            (self._group / "cgroup.kill").write_text("1", encoding="ascii")

        def nobody_left() -> bool:
            if self._group is None:
                self._signal(signal.SIGKILL)
            self.reap()
            return all(is_gone(pid) for pid in self.pids())

        wait_for(nobody_left, _LIMIT_S, lambda: f"the end of {self.pids()} on {self.name}")
        if self.frozen:
            self.thaw()

    def reap(self) -> None:
        """Collect those of our children that have ended."""
        self._processes = [each for each in self._processes if each.poll() is None]

    def _signal(self, number: signal.Signals) -> None:
        for pid in self.pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    # --- the network --------------------------------------------------------------------------------------------------

    def cut(
        self,
        to: Iterable[Host] | None = None,
        direction: Direction = "both",
        ports: Iterable[int] | None = None,
        *,
        loss_percent: int = 100,
    ) -> Cut:
        """Let packets vanish; nobody is told, no connection is closed.

        Args:
            to: from and to these hosts; None: all others.
            direction: as seen from here.
            ports: only of connections to one of these TCP ports, at either end.
            loss_percent: how many of them.
        """
        table = f"cut{next(_cuts)}"
        lines = [f"table inet {table} {{"]
        for way, hook in (("in", "input"), ("out", "output")):
            if direction in ("both", way):
                rules = "\n".join(_rules(way, to, ports, loss_percent))
                lines.append(f"chain {way} {{ type filter hook {hook} priority -300; policy accept;\n{rules}\n}}")
        lines.append("}")
        run_in(self.holder.pid, "nft", "-f", "-", text="\n".join(lines))
        return Cut(self, table)


def _rules(way: str, to: Iterable[Host] | None, ports: Iterable[int] | None, loss_percent: int) -> list[str]:
    interface, address = ("iif", "saddr") if way == "in" else ("oif", "daddr")
    match = f'{interface} "eth0"'
    if to is not None:
        match += f" ip {address} {{ {', '.join(host.address for host in to)} }}"
    verdict = "drop" if loss_percent >= 100 else f"numgen random mod 100 < {loss_percent} drop"
    if ports is None:
        return [f"{match} {verdict}"]
    listed = ", ".join(map(str, ports))
    return [f"{match} tcp {end} {{ {listed} }} {verdict}" for end in ("sport", "dport")]


def run_in(pid: int, *argv: str, text: str | None = None, mounts: bool = False) -> str:
    """Run a short command in the namespaces of a process. Returns its output.

    Raises:
        BedError: it failed.
    """
    enter = [f"--net=/proc/{pid}/ns/net", *([f"--mount=/proc/{pid}/ns/mnt"] if mounts else [])]
    done = subprocess.run(
        ["nsenter", *enter, "--", *argv], input=text, capture_output=True, text=True, check=False, timeout=_LIMIT_S
    )
    if done.returncode:
        raise BedError(f"{' '.join(argv)}: {done.stderr.strip()}")
    return done.stdout


def _enter(pid: int) -> None:
    """Let the calling thread live in the network of that process."""
    descriptor = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    try:
        if _LIBC.setns(descriptor, _CLONE_NEWNET):
            raise BedError(f"setns: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(descriptor)


def _in_namespace(holder: int) -> list[int]:
    network = Path(f"/proc/{holder}/ns/net").readlink()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) not in (holder, os.getpid()):
            with suppress(OSError):
                if (entry / "ns" / "net").readlink() == network:
                    found.append(int(entry.name))
    return found


def is_gone(pid: int) -> bool:
    """It has ended, whether or not somebody has collected it."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2].startswith(("Z", "X"))
    return True


def _made(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    return directory
