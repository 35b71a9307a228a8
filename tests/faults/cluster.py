"""Three racks in a bed: in each a member (agent, guard, Redis), a ZooKeeper server and a host for clients."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import psutil
import redis

from redis_agent.lab import host as processes
from redis_agent.lab.agent_process import AgentProcess
from redis_agent.lab.cluster import LocalCluster
from redis_agent.lab.settings import Settings
from redis_agent.lab.waiting import wait_for
from redis_agent.lab.zookeeper import Ensemble, Server
from redis_agent.replication import Address
from redis_agent.znodes import Leader
from tests.faults.bed import Bed, BedError, Host
from tests.faults.history import Contents
from tests.faults.machine import Clock, Disk, shim

RACKS = 3
REDIS_PORT = 6379
CLIENT_PORT, PEER_PORT, ELECTION_PORT = 2181, 2888, 3888
TICK_MS = 1000
CLUSTER = "faults"
_RESTART_PAUSE_S = 0.1
_LOOK_S = 0.02
_BATCH = 2000
_REMOVED_LIMIT_S = 30.0
_BROKEN_FILE = "Bad file format reading the append only file"
_MANIFEST = "appendonlydir/appendonly.aof.manifest"
_REDIS_CONF = """
bind * -::*
protected-mode no
"""
PERSISTENCE = {
    "aof": 'save ""\nappendonly yes\nappendfsync everysec\nauto-aof-rewrite-min-size 16mb\n',
    # Often, so that faults meet it.
    "rdb": "save 5 1\nappendonly no\n",
    "none": 'save ""\nappendonly no\n',
}
"""What Redis writes to its disk."""


class BedEnsemble(Ensemble):
    """ZooKeeper servers, each on a host of its own."""

    def __init__(self, bed: Bed, size: int = RACKS, *, tick_ms: int = TICK_MS) -> None:
        super().__init__(bed.directory, size, tick_ms=tick_ms)
        self.machines = [bed.host(f"zk{number}") for number in range(1, size + 1)]

    def place(self) -> list[Server]:
        ports = (CLIENT_PORT, PEER_PORT, ELECTION_PORT)
        return [Server(machine.directory, machine.address, *ports) for machine in self.machines]

    def popen(self, server: Server, argv: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        machine = next(each for each in self.machines if each.address == server.host)
        return machine.popen(_surviving(argv), stdout=log, stderr=log)

    def start_again(self, index: int) -> None:
        """A killed server, on its old data; does not wait."""
        self.kill(index)
        self.machines[index].reap()
        self.launch(index)


class BedMember(AgentProcess):
    """A member on a host of its own, with a disk and a clock of its own, below an init that starts its agent again."""

    def __init__(self, machine: Host, settings: Settings, library: Path | None, redis_conf: str) -> None:
        self.machine = machine
        self.clock = Clock(machine, library)
        # Redis' directory has the name that AgentProcess gives it.
        self.disk = Disk(machine, machine.directory / "data")
        self.powered = True
        self.refusals: list[str] = []
        """Why its agent gave up for good: exit code 2."""
        self._read_so_far = 0
        announced: Settings = {"redis": {"announce_host": machine.address}, **settings}
        super().__init__(machine.name, machine.directory, announced, port=REDIS_PORT, redis_conf=redis_conf)
        self.address = Address(machine.address, REDIS_PORT)

    @property
    def node(self) -> str:
        return str(self.address)

    def popen(self, argv: Sequence[str], env: dict[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        argv = _surviving(argv)
        return self.machine.popen(argv, cwd=self.directory, env=env | self.clock.environment, stdout=log, stderr=log)

    def supervise(self) -> None:
        """As init does: an agent that has ended is started again, unless it said that a person must act."""
        if not self.powered or self.process is None or (status := self.process.poll()) is None:
            return
        if status == 2:
            if not self.refusals:
                reasons = [event["reason"] for event in self.log_events() if event.get("event") == "giving_up"]
                self.refusals.append(str(reasons[-1:])[-300:])
            return
        self.start()

    def power_cut(self) -> None:
        """Everything on this host is gone at once."""
        self.powered = False
        self.machine.kill()
        if self.process is not None:
            self.process.wait(5.0)

    def power_on(self) -> None:
        """Init starts the agent."""
        self.powered = True

    def repair(self) -> bool:
        """Do what Redis tells its operator to do, if it can't read its file any more. Says whether it did.

        After a write that a full disk cut short, Redis 7.0 truncates the file and goes on behind the old end, which
        leaves a hole (it opens the file of a rewrite without O_APPEND). With that it does not start again.
        """
        told = self.log_text()
        if _BROKEN_FILE not in told[self._read_so_far :] or self.redis_pid is not None:
            return False
        self._read_so_far = len(told)
        try:
            self.machine.run("redis-check-aof", "--fix", self.data_dir / _MANIFEST, text="y\n")
        except BedError:
            return False
        if not self.running:
            # It said that a person must act, and one has.
            self.start()
        self.refusals.clear()
        return True

    def part(self, name: str) -> psutil.Process | None:
        """The agent, the guard or Redis; None if there is none."""
        with suppress(psutil.Error):
            if name == "agent":
                return None if self.pid is None else psutil.Process(self.pid)
            server = self.redis_process()
            return server if name == "redis" else processes.guard_of(self.directory, server)
        return None

    def contents(self) -> Contents:
        """All keys of this Redis with their values."""
        found: dict[str, str | list[str]] = {}
        with self.redis(timeout_s=20.0) as client:
            names = sorted(client.scan_iter(count=_BATCH))
            for begun in range(0, len(names), _BATCH):
                some = names[begun : begun + _BATCH]
                values: Any = client.mget(some)
                for name, value in zip(some, values, strict=True):
                    elements: Any = client.lrange(name, 0, -1) if value is None else value
                    found[name] = elements
        return found


def redis_conf(persistence: str) -> str:
    """Of a member, by the name of a PERSISTENCE."""
    return _REDIS_CONF + PERSISTENCE[persistence]


class BedCluster(LocalCluster):
    """The members, and an init for each. ``with`` starts them and waits until they are settled."""

    def __init__(
        self,
        bed: Bed,
        ensemble: BedEnsemble,
        *,
        settings: Settings | None = None,
        redis_conf: str = _REDIS_CONF + PERSISTENCE["aof"],
        size: int = RACKS,
    ) -> None:
        library, self.why_no_jumps = shim(bed.directory)
        tick_s = ensemble.tick_ms / 1000
        common: dict[str, dict[str, object]] = {
            "cluster": {"name": CLUSTER, "bootstrap_expect": size},
            "zookeeper": {"hosts": ensemble.hosts, "tick_s": tick_s, "session_timeout_s": 3 * tick_s},
            "timing": {"heartbeat_s": min(0.5, tick_s / 4), "restart_max_s": 2.0},
            "log": {"format": "json", "level": "info"},
            **{section: dict(keys) for section, keys in (settings or {}).items()},
        }
        super().__init__(ensemble, bed.directory, 0, cluster=CLUSTER)
        self.bed = bed
        self.servers = ensemble
        self.racks: list[list[Host]] = []
        self.nodes: dict[str, BedMember] = {}
        for number in range(1, size + 1):
            machine = bed.host(f"n{number}")
            self.nodes[machine.name] = BedMember(machine, common, library, redis_conf)
            self.racks.append([machine, ensemble.machines[number - 1], bed.host(f"c{number}")])
        self.members = dict(self.nodes)
        self._ending = threading.Event()
        self._init = threading.Thread(target=self._supervise, name="init", daemon=True)

    def start(self, *names: str) -> None:
        super().start(*names)
        if self._init.ident is None:
            self._init.start()

    def stop(self) -> None:
        self._ending.set()
        if self._init.ident is not None:
            self._init.join()
        super().stop()

    def _supervise(self) -> None:
        pauses: dict[str, int] = {}
        while not self._ending.wait(_LOOK_S):
            for member in self.nodes.values():
                gone = member.process is not None and member.process.poll() is not None
                pauses[member.name] = pauses.get(member.name, 0) + 1 if gone else 0
                if pauses[member.name] * _LOOK_S >= _RESTART_PAUSE_S:
                    member.supervise()

    def in_sync(self, name: str, leader: Leader) -> bool:
        """Ports are the same everywhere here, so the host is looked at, too."""
        if not super().in_sync(name, leader):
            return False
        return name == leader.name or self.members[name].info().get("master_host") == leader.address.host

    def remove(self, prefix: str) -> None:
        """Remove the keys of a round, so that Redis stays small."""
        wait_for(lambda: self._removed(prefix), _REMOVED_LIMIT_S, f"the keys {prefix} are removed", pause_s=0.2)

    def _removed(self, prefix: str) -> bool:
        # With a disk that has only just room again Redis refuses for a moment, or somebody else takes over.
        with suppress(redis.RedisError):
            self._remove(prefix)
            return True
        return False

    def _remove(self, prefix: str) -> None:
        leader = self.wait_settled()
        with leader.redis(timeout_s=20.0) as client:
            # A cluster that has served is never empty.
            client.set("bed", "1")
            names = list(client.scan_iter(f"{prefix}:*", count=_BATCH))
            for begun in range(0, len(names), _BATCH):
                client.unlink(*names[begun : begun + _BATCH])

    def barrier(self, limit_ms: int = 5000) -> bool:
        """Everybody has what the leader has. Nobody else may write meanwhile."""
        with suppress(redis.RedisError), self.wait_settled().redis(timeout_s=limit_ms / 1000 + 1) as client:
            client.set("bed", "1")
            answered: Any = client.wait(len(self.members) - 1, limit_ms)
            return int(answered) == len(self.members) - 1
        return False


def _surviving(argv: Sequence[str]) -> list[str]:
    """Without the wish to die with the thread that started it: here any thread does, and the bed ends everything."""
    return list(argv[argv.index("--") + 1 :]) if "--" in argv else list(argv)
