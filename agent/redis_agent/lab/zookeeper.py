"""A small real ZooKeeper ensemble on loopback: Debian's jars, one JVM of some 60 MB per server, fsync on."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from redis_agent.lab.ports import free_ports
from redis_agent.lab.proxy import TcpProxy

_JARS = ("zookeeper.jar", "zookeeper-jute.jar", "slf4j-api.jar", "slf4j-simple.jar")
_JAR_DIRECTORY = Path("/usr/share/java")
_JVM = (
    "-Xms16m",
    "-Xmx64m",
    "-Xss512k",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-XX:-UsePerfData",
    "-XX:+ExitOnOutOfMemoryError",
    "-Dzookeeper.jmx.log4j.disable=true",
    # Each request is handled by the threads that receive it. Worker threads are for machines with many cores: where
    # three servers and all their clients share two, a read costs half as much processor time without them.
    "-Dzookeeper.nio.numWorkerThreads=0",
    "-Dzookeeper.commitProcessor.numWorkerThreads=0",
    # Kilobytes that each transaction log is filled up with beforehand; 64 MB is for disks, not for a test.
    "-Dzookeeper.preAllocSize=1024",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
)
_MAIN_CLASS = "org.apache.zookeeper.server.quorum.QuorumPeerMain"
_PAUSE_S = 0.01
_ATTEMPTS = 3


class LabError(Exception):
    """The servers can't be started here, or didn't get where they should in time. Says what to do."""


@dataclass(slots=True)
class Server:
    """One of them: where it listens, and its process while it runs."""

    directory: Path
    host: str
    client_port: int
    peer_port: int
    election_port: int
    process: subprocess.Popen[bytes] | None = None


class Ensemble:
    """ZooKeeper servers, numbered from 0; with one it is a standalone server.

    ``stop`` and the end of the ``with`` block end every server. Should this process die before, the kernel kills them
    (where ``setpriv`` is installed); to the kernel the parent is the *thread* that called ``start`` or ``restart``, so
    call them from one that lives as long as the servers should.

    :param directory: for configuration, data and logs; created if missing; left as it is at the end.
    :param servers: how many.
    :param tick_ms: ZooKeeper's tickTime. Session timeouts are clamped to 2 to 20 ticks.
    :param host: the loopback address to listen on.
    :param proxied: followers reach their leader through proxies, so that ``cut_off`` works.
    """

    def __init__(
        self,
        directory: Path,
        servers: int = 3,
        *,
        tick_ms: int = 2000,
        host: str = "127.0.0.1",
        proxied: bool = False,
    ) -> None:
        if servers < 1:
            raise ValueError("an ensemble needs at least one server")
        self.directory = directory
        self.size = servers
        self.tick_ms = tick_ms
        self.host = host
        self.proxied = proxied
        self._servers: list[Server] = []
        self._proxies: dict[tuple[int, int], TcpProxy] = {}
        """From a follower to its leader, by their numbers."""

    @property
    def addresses(self) -> list[tuple[str, int]]:
        """Where clients connect, per server."""
        return [(server.host, server.client_port) for server in self._servers]

    @property
    def hosts(self) -> str:
        """The same as ZooKeeper clients want it."""
        return ",".join(f"{host}:{port}" for host, port in self.addresses)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self, limit_s: float = 30.0) -> None:
        """Start all servers and wait until all of them serve.

        :raises LabError: if java or ZooKeeper's jars are missing, or they don't serve in time.
        """
        command = _command()
        failure = ""
        for _ in range(_ATTEMPTS):
            self._configure()
            for server in self._servers:
                self._launch(server, command)
            try:
                self.wait_serving(self.size, limit_s)
            except LabError as exc:
                # A port may have been taken between the choice and the use of it.
                failure = str(exc)
                self.stop()
            else:
                return
        raise LabError(failure)

    def stop(self) -> None:
        """Kill and reap every server. Nothing is lost: what ZooKeeper acknowledged is on disk."""
        for index, server in enumerate(self._servers):
            if server.process is not None:
                self.kill(index)
        proxies, self._proxies = self._proxies, {}
        for proxy in proxies.values():
            proxy.close()

    def kill(self, index: int) -> None:
        """SIGKILL, also while it is paused, and reap."""
        server = self._servers[index]
        if server.process is not None:
            server.process.kill()
            server.process.wait()
            server.process = None

    def restart(self, index: int, limit_s: float = 30.0) -> None:
        """Start a killed server again, on its old data and ports, and wait until it serves."""
        self.kill(index)
        self.launch(index)
        self._wait(lambda: self.mode(index) != "", limit_s, f"server {index} does not serve again")

    def launch(self, index: int) -> None:
        """Start a killed server again; does not wait."""
        self._launch(self._servers[index], _command())

    def pause(self, index: int) -> None:
        """SIGSTOP: its sockets stay open and silent. Returns when none of its threads runs any more."""
        self._signal(index, signal.SIGSTOP)
        pid = self.pid(index)
        if pid is not None:
            self._wait(lambda: _stopped(pid), 5.0, f"server {index} does not stop")

    def resume(self, index: int) -> None:
        """SIGCONT."""
        self._signal(index, signal.SIGCONT)

    def cut_off(self, index: int) -> None:
        """A follower and its leader hear nothing of each other. Elections, and clients, still get through."""
        for (follower, _), proxy in self._proxies.items():
            if follower == index:
                proxy.cut()

    def rejoin(self, index: int) -> None:
        """The end of ``cut_off``: what was held back arrives."""
        for (follower, _), proxy in self._proxies.items():
            if follower == index:
                proxy.restore()

    def pid(self, index: int) -> int | None:
        """The process id of a server, None while it is killed."""
        process = self._servers[index].process
        return None if process is None else process.pid

    def mode(self, index: int) -> str:
        """``standalone``, ``leader`` or ``follower``; empty while it doesn't serve or doesn't answer."""
        if self._servers[index].process is None:
            return ""
        for line in _four_letter_word(self.addresses[index], b"srvr").splitlines():
            name, _, value = line.partition(": ")
            if name == "Mode":
                return value.strip()
        return ""

    def leader(self, limit_s: float = 30.0) -> int:
        """Which server leads (or is alone), as soon as one does.

        :raises LabError: if none does in time.
        """
        found: list[int] = []

        def look() -> bool:
            found[:] = [index for index in range(self.size) if self.mode(index) in ("leader", "standalone")]
            return bool(found)

        self._wait(look, limit_s, "no server leads")
        return found[0]

    def wait_serving(self, count: int, limit_s: float = 30.0) -> None:
        """Wait until at least ``count`` servers serve.

        :raises LabError: if they don't in time, or one that should has exited.
        """
        self._wait(
            lambda: sum(self.mode(index) != "" for index in range(self.size)) >= count,
            limit_s,
            f"fewer than {count} of {self.size} ZooKeeper servers serve",
        )

    def _wait(self, reached: Callable[[], bool], limit_s: float, failure: str) -> None:
        deadline = time.monotonic() + limit_s
        while not reached():
            self._check_alive()
            if time.monotonic() > deadline:
                raise LabError(f"{failure} after {limit_s:g} s; see {self.directory}/*/log{self._last_words()}")
            time.sleep(_PAUSE_S)

    def _check_alive(self) -> None:
        for index, server in enumerate(self._servers):
            if server.process is not None and (status := server.process.poll()) is not None:
                server.process = None
                raise LabError(f"ZooKeeper server {index} exited with status {status}{self._last_words()}")

    def _last_words(self) -> str:
        lines = []
        for server in self._servers:
            with suppress(OSError, IndexError):
                lines.append((server.directory / "log").read_text(errors="replace").splitlines()[-1])
        return "".join(f"\n  {line}" for line in lines)

    def _signal(self, index: int, number: signal.Signals) -> None:
        process = self._servers[index].process
        if process is None:
            raise LabError(f"ZooKeeper server {index} is not running")
        process.send_signal(number)

    def place(self) -> list[Server]:
        """Where the servers are: here, on free ports. Other laboratories have other hosts."""
        ports = free_ports(3 * self.size, host=self.host)
        triples = zip(ports[0::3], ports[1::3], ports[2::3], strict=True)
        return [Server(self.directory / f"zk{index}", self.host, *triple) for index, triple in enumerate(triples)]

    def popen(self, server: Server, argv: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        """How a server's program is run: here."""
        return subprocess.Popen(
            argv,
            cwd=server.directory,
            env={"PATH": os.environ.get("PATH", "")},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Not ours: Ctrl-C in a terminal is for the one who started them.
            start_new_session=True,
        )

    def _launch(self, server: Server, command: list[str]) -> None:
        with (server.directory / "log").open("ab") as log:
            server.process = self.popen(server, [*command, str(server.directory / "zoo.cfg")], log)

    def _configure(self) -> None:
        self._servers = self.place()
        if self.proxied:
            for follower, leader in permutations(range(self.size), 2):
                peer = self._servers[leader]
                self._proxies[follower, leader] = TcpProxy((peer.host, peer.peer_port))
        for index, server in enumerate(self._servers):
            data = server.directory / "data"
            data.mkdir(parents=True, exist_ok=True)
            (data / "myid").write_text(f"{index + 1}\n", encoding="ascii")
            (server.directory / "zoo.cfg").write_text(self._config(index), encoding="utf-8")

    def _config(self, index: int) -> str:
        server = self._servers[index]
        lines = [
            f"tickTime={self.tick_ms}",
            # In ticks: to join the quorum, and to stay in step with the leader.
            "initLimit=10",
            "syncLimit=5",
            f"dataDir={server.directory / 'data'}",
            f"clientPort={server.client_port}",
            f"clientPortAddress={server.host}",
            "maxClientCnxns=0",
            "admin.enableServer=false",
            "4lw.commands.whitelist=srvr,ruok,mntr",
        ]
        if self.size > 1:
            for other, peer in enumerate(self._servers):
                proxy = self._proxies.get((index, other))
                port = peer.peer_port if proxy is None else proxy.address[1]
                lines.append(f"server.{other + 1}={peer.host}:{port}:{peer.election_port}")
        return "\n".join(lines) + "\n"


def _stopped(pid: int) -> bool:
    """Every thread of this process is stopped."""
    states = []
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(OSError):
            states.append(stat.read_text().rpartition(")")[2].split()[0])
    return set(states) <= {"T"}


def _command() -> list[str]:
    """How to run a server, but for its configuration file.

    :raises LabError: if something is missing.
    """
    java = shutil.which("java")
    if java is None:
        raise LabError("no java in PATH: install a Java runtime (Debian: apt install default-jre-headless)")
    jars = [_JAR_DIRECTORY / name for name in _JARS]
    missing = [str(jar) for jar in jars if not jar.exists()]
    if missing:
        raise LabError(f"no {', '.join(missing)}: install ZooKeeper (Debian: apt install libzookeeper-java)")
    setpriv = shutil.which("setpriv")
    # setpriv becomes java, so the process id is the JVM's.
    dies_with_us = [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []
    return [*dies_with_us, java, *_JVM, "-cp", ":".join(str(jar) for jar in jars), _MAIN_CLASS]


def _four_letter_word(address: tuple[str, int], word: bytes) -> str:
    """What the server answers to one of ZooKeeper's administrative commands; empty if it doesn't."""
    try:
        with socket.create_connection(address, timeout=0.5) as connection:
            connection.sendall(word)
            answer = bytearray()
            while chunk := connection.recv(4096):
                answer += chunk
            return answer.decode("utf-8", "replace")
    except OSError:
        return ""
