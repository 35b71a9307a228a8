"""A whole cluster on this machine: agents as child processes, their Redis, and a look at what ZooKeeper says."""

from __future__ import annotations

import logging
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from kazoo.client import KazooClient  # type: ignore[import-untyped]
from kazoo.exceptions import KazooException, NoNodeError  # type: ignore[import-untyped]
from kazoo.handlers.threading import KazooTimeoutError  # type: ignore[import-untyped]

from redis_agent import znodes
from redis_agent.lab.agent_process import AgentProcess
from redis_agent.lab.ports import free_ports
from redis_agent.lab.proxy import TcpProxy
from redis_agent.lab.settings import Settings
from redis_agent.lab.waiting import wait_for
from redis_agent.lab.zookeeper import Ensemble, LabError
from redis_agent.replication import Ledger
from redis_agent.znodes import ClusterConfig, Leader, LeaderPhase, Order, OrderState, Paths, Presence

T = TypeVar("T")
LIMIT_S = 20.0
_READ_LIMIT_S = 2.0
_RETRY = {"max_tries": -1, "delay": 0.02, "backoff": 1.5, "max_delay": 0.25}


class LocalCluster:
    """Members n1, n2, ... of one cluster. ``with`` starts them, waits until they are settled, and ends them.

    Args:
        ensemble: the ZooKeeper servers, started.
        directory: for everything the members own; made if missing, left as it is. Keep it short: unix sockets are
            below it, and their paths have 107 bytes at most.
        size: how many members.
        cluster: its name. Give each one that shares an ensemble a name of its own.
        root: znode below which all clusters live.
        settings: of all members; what is not given fits the ensemble's tick.
        overrides: by member, on top of them.
        redis_conf: further lines of everybody's redis.conf.
        password: of every Redis.
        proxied: put a TCP proxy between each agent and each ZooKeeper server, for ``cut_zookeeper``.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        directory: Path,
        size: int = 3,
        *,
        cluster: str = "lab",
        root: str = "redis-agent",
        settings: Settings | None = None,
        overrides: Mapping[str, Settings] | None = None,
        redis_conf: str = "",
        password: str = "",
        proxied: bool = False,
    ) -> None:
        self.ensemble = ensemble
        self.directory = directory
        self.cluster = cluster
        self.root = root
        self.paths = Paths(root, cluster)
        self.members: dict[str, AgentProcess] = {}
        self._zk: Any = None
        names = [f"n{number}" for number in range(1, size + 1)]
        for name, port in zip(names, free_ports(size), strict=True):
            proxies = [TcpProxy(address) for address in ensemble.addresses] if proxied else []
            addresses = [proxy.address for proxy in proxies] or ensemble.addresses
            hosts = ",".join(f"{host}:{port}" for host, port in addresses)
            member = AgentProcess(
                name,
                directory / name,
                _default_settings(cluster, root, hosts, size, ensemble.tick_ms / 1000),
                port=port,
                redis_conf=redis_conf,
                password=password,
                proxies=proxies,
            )
            member.configure(settings)
            member.configure((overrides or {}).get(name))
            self.members[name] = member

    def __getitem__(self, name: str) -> AgentProcess:
        return self.members[name]

    def __iter__(self) -> Iterator[AgentProcess]:
        return iter(self.members.values())

    def __enter__(self) -> Self:
        try:
            self.start()
            self.wait_started()
        except BaseException:
            self._tell()
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None and not issubclass(kind, KeyboardInterrupt | SystemExit):
            self._tell()
        self.stop()

    def _tell(self) -> None:
        # A failing test shows what it wrote; this is most of what one needs then.
        with suppress(Exception):
            sys.stderr.write(self.describe())

    # --- beginning and end --------------------------------------------------------------------------------------------

    def start(self, *names: str) -> None:
        """Start these members' agents, or all. Does not wait."""
        for name in names or tuple(self.members):
            self.members[name].start()

    def stop(self) -> None:
        """Kill everything, at once and for sure. For an orderly end use ``AgentProcess.stop``. Files stay."""
        for member in self.members.values():
            if member.process is not None:
                member.process.kill()
        for member in self.members.values():
            member.destroy()
        if self._zk is not None:
            _close(self._zk)
            self._zk = None

    # --- what ZooKeeper says ------------------------------------------------------------------------------------------

    @property
    def zk(self) -> Any:
        """A kazoo client of the laboratory's own, past all proxies."""
        if self._zk is None:
            client = KazooClient(self.ensemble.hosts, timeout=10.0, connection_retry=_RETRY, logger=_quiet())
            client.start(timeout=15)
            self._zk = client
        return self._zk

    def leader(self) -> Leader | None:
        """The ``leader`` znode, in whatever phase."""
        return self._get(self.paths.leader, znodes.decode_leader)

    def serving(self) -> AgentProcess | None:
        """The member that serves."""
        leader = self.leader()
        return self.members[leader.name] if leader is not None and leader.phase == LeaderPhase.SERVING else None

    def epoch(self) -> int:
        """The current epoch by the ledger."""
        return self.ledger().epoch

    def ledger(self) -> Ledger:
        return self._get(self.paths.epoch, znodes.decode_ledger) or Ledger()

    def config(self) -> ClusterConfig:
        return self._get(self.paths.config, znodes.decode_config) or ClusterConfig()

    def presence(self, name: str) -> Presence | None:
        """What the agent says of itself."""
        return self._get(self.paths.presence(name), znodes.decode_presence)

    def presences(self) -> dict[str, Presence]:
        """The same of all agents that are there."""
        found = {name: self.presence(name) for name in self.members}
        return {name: presence for name, presence in found.items() if presence is not None}

    def _get(self, path: str, decode: Callable[[bytes], T]) -> T | None:
        try:
            data, _ = self.zk.get_async(path).get(timeout=_READ_LIMIT_S)
        except (NoNodeError, KazooException, KazooTimeoutError):
            return None
        decoded: T = decode(data)
        return decoded

    # --- waiting ------------------------------------------------------------------------------------------------------

    def wait_for(self, condition: Callable[[], T | None], what: str, limit_s: float = LIMIT_S) -> T:
        """Wait for anything; a failure tells all about the cluster.

        Raises:
            LabError: it did not come true in time.
        """
        return wait_for(condition, limit_s, lambda: f"{what}\n{self.describe()}", pause_s=0.01)

    def wait_serving(self, limit_s: float = LIMIT_S, *, after_epoch: int = 0, name: str = "") -> AgentProcess:
        """Wait for a serving leader.

        Args:
            limit_s: how long at most.
            after_epoch: of a later epoch than this.
            name: this very member.

        Returns:
            The member that serves.
        """

        def found() -> AgentProcess | None:
            leader = self.leader()
            if leader is None or leader.phase != LeaderPhase.SERVING or leader.epoch <= after_epoch:
                return None
            return self.members[leader.name] if name in ("", leader.name) else None

        return self.wait_for(found, f"{name or 'somebody'} serves after epoch {after_epoch}", limit_s)

    def wait_started(self, limit_s: float = LIMIT_S) -> AgentProcess:
        """As ``wait_settled``, but gives up as soon as an agent has ended.

        Returns:
            The member that serves.

        Raises:
            LabError: an agent has ended, or they were not settled in time.
        """

        def started() -> AgentProcess | None:
            for member in self:
                if member.starts and not member.running:
                    raise LabError(f"{member.name}'s agent ended with {member.returncode}:{member.last_words()}")
            return self._settled([member.name for member in self if member.running])

        return self.wait_for(started, "a serving leader and everybody in sync", limit_s)

    def wait_settled(self, limit_s: float = LIMIT_S, *, members: Iterable[str] | None = None) -> AgentProcess:
        """Wait until somebody serves and the others follow it, intact and in sync.

        Args:
            limit_s: how long at most.
            members: whom to look at; default: those whose agents run.

        Returns:
            The member that serves.
        """

        def settled() -> AgentProcess | None:
            return self._settled(members if members is not None else [each.name for each in self if each.running])

        return self.wait_for(settled, "a serving leader and everybody in sync", limit_s)

    def _settled(self, names: Iterable[str]) -> AgentProcess | None:
        leader = self.leader()
        if leader is None or leader.phase != LeaderPhase.SERVING:
            return None
        return self.members[leader.name] if all(self.in_sync(name, leader) for name in names) else None

    def in_sync(self, name: str, leader: Leader) -> bool:
        """The member leads, or follows this leader and counts in an election; by Redis's word and the agent's."""
        presence = self.presence(name)
        if presence is None or not presence.intact or presence.epoch != leader.epoch:
            return False
        info = self.members[name].info()
        if name == leader.name:
            return info.get("role") == "master" and presence.state == "leader.serving"
        return (
            info.get("role") == "slave"
            and info.get("master_port") == leader.address.port
            and info.get("master_link_status") == "up"
            and presence.state == "follower"
        )

    # --- orders -------------------------------------------------------------------------------------------------------

    def switchover(self, to: str = "", limit_s: float = LIMIT_S) -> tuple[int, Order]:
        """Order a switchover and wait for the outcome, as ``redis-agent switchover --wait`` does.

        Args:
            to: who is to lead; empty: the best.
            limit_s: how long at most.

        Returns:
            When it was ordered, in nanoseconds of time.monotonic_ns(), and the order as it was answered.

        Raises:
            LabError: there was no answer in time.
        """
        path = self.paths.order(f"lab-{uuid.uuid4().hex[:8]}")
        order = Order(kind="switchover", to=to, by="laboratory", at=time.time(), expires_s=limit_s)
        at_ns = time.monotonic_ns()
        self.zk.create_async(path, znodes.encode(order)).get(timeout=_READ_LIMIT_S)

        def answered() -> Order | None:
            found = self._get(path, znodes.decode_order)
            return found if found is not None and found.state in OrderState.FINAL else None

        answer = self.wait_for(answered, f"the switchover to {to or 'anybody'} is answered", limit_s)
        self.zk.delete_async(path).get(timeout=_READ_LIMIT_S)
        return at_ns, answer

    # --- diagnostics --------------------------------------------------------------------------------------------------

    def describe(self, lines: int = 40) -> str:
        """All that one wants to know when something did not happen."""
        with ThreadPoolExecutor(max_workers=len(self.members)) as pool:
            accounts = list(pool.map(self._account, self.members.values()))
        parts = [f"cluster {self.cluster} at {time.strftime('%H:%M:%S')}", f"  leader: {self.leader()}"]
        parts += [f"  ledger: {self.ledger()}", f"  config: {self.config()}"]
        with suppress(KazooException, KazooTimeoutError):
            parts.append(f"  ballots: {self.zk.get_children_async(self.paths.ballots).get(timeout=_READ_LIMIT_S)}")
        parts += accounts
        parts += [f"log of {each.name}:{each.last_words(lines)}" for each in self.members.values()]
        return "\n".join(parts) + "\n"

    def _account(self, member: AgentProcess) -> str:
        info = member.info()
        keys = ("role", "master_replid", "master_repl_offset", "slave_repl_offset", "master_port", "master_link_status")
        shown = {key: info[key] for key in (*keys, "connected_slaves", "loading") if key in info}
        agent = f"pid {member.pid}" if member.running else f"ended with {member.returncode}"
        where = f"  {member.name} ({member.address}): agent {agent}; Redis pid {member.redis_pid}: {shown}"
        return f"{where}\n    presence: {self.presence(member.name)}"


def _default_settings(cluster: str, root: str, hosts: str, size: int, tick_s: float) -> Settings:
    # Production's relation of the session to the tick; a short tick needs more, for the margins do not shrink with it.
    session_timeout_s = max(3 * tick_s, tick_s + 1.5)
    return {
        "cluster": {"name": cluster, "root": root, "bootstrap_expect": size},
        "zookeeper": {"hosts": hosts, "tick_s": tick_s, "session_timeout_s": session_timeout_s},
        "timing": {"heartbeat_s": min(0.5, tick_s / 4)},
        "log": {"level": "info"},
    }


def _quiet() -> logging.Logger:
    # Without a handler Python would print kazoo's warnings, and a laboratory loses connections all the time.
    logger = logging.getLogger("redis_agent.lab.kazoo")
    logger.setLevel(logging.CRITICAL)
    return logger


def _close(client: Any) -> None:
    # Nothing depends on an orderly end of the laboratory's own session; ZooKeeper may be gone already.
    with suppress(Exception):
        client.stop()
    with suppress(Exception):
        client.close()
