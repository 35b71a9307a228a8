"""The two systems behind one interface, so that everything else of the comparison is the same for both."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

import redis

from redis_agent.lab.settings import Settings
from redis_agent.znodes import OrderState
from tests.bench.program import warm_up
from tests.faults.bed import Bed, Host
from tests.faults.cluster import BedCluster, BedEnsemble
from tests.faults.sentinel import MASTER, REDIS_PORT, SentinelCluster, SentinelMember, SentinelSettings
from tests.faults.workload import Plugin

NAMES = ("n1", "n2", "n3")
PAUSE_MS = 15_000
"""Longer than Sentinel needs to make the old primary a replica."""
WARM_UP = 200
"""Requests to each ZooKeeper server beforehand."""


class System(Protocol):
    """A primary and two replicas on the hosts n1, n2 and n3, started and in sync."""

    restarts_redis: bool
    """Whether the system itself starts a Redis again that has died."""

    def plugin(self) -> Plugin:
        """How clients find the primary."""

    def rack(self, name: str) -> list[Host]:
        """The member's host, and who falls and is cut off with it: a third of those who decide."""

    def node(self, name: str) -> str:
        """The member's Redis, address:port."""

    def primary(self) -> str:
        """Who takes writes, in a settled system."""

    def redis(self, name: str) -> redis.Redis:
        """A client of this member's Redis. Close it (``with``)."""

    def redis_pid(self, name: str) -> int:
        """Of the member's redis-server."""

    def power_cut(self, name: str) -> None:
        """Everything in the member's rack is gone at once, but for clients."""

    def init(self, name: str) -> None:
        """Start on this host again whatever init would."""

    def switchover(self) -> str:
        """Order a planned switchover and wait until the command says that it is done.

        Returns:
            Why it was not done; empty if it was.
        """

    def wait_settled(self, names: Sequence[str], limit_s: float) -> str:
        """Wait until one of these is the primary and the others follow it. Returns it."""

    def stop(self) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """What an operator would set. Everything else has redis-agent's default."""

    tick_ms: int
    """ZooKeeper's."""
    session_timeout_s: float
    redis_conf: str = "bind * -::*\nprotected-mode no\nappendonly no\n"
    """As Sentinel's Redis; the backlog of 64 MB is redis-agent's default."""


class SentinelSystem:
    """Redis Sentinel, with a Sentinel beside each Redis.

    Args:
        bed: for its hosts.
        settings: of Sentinels and Redis.
        pauses: the operator holds writes back before a planned switchover.
    """

    restarts_redis = False

    def __init__(self, bed: Bed, settings: SentinelSettings, *, pauses: bool = False) -> None:
        self._pauses = pauses
        self.hosts: dict[str, Host] = {name: bed.host(name) for name in NAMES}
        self.cluster = SentinelCluster([*self.hosts.values()], settings)
        self.cluster.start()

    def plugin(self) -> Plugin:
        sentinels = [f"{host}:{port}" for host, port in self.cluster.sentinels]
        return Plugin(
            name="tests.faults.sentinel_finder:SentinelFinder", arguments={"sentinels": sentinels, "master": MASTER}
        )

    def rack(self, name: str) -> list[Host]:
        return [self.hosts[name]]

    def member(self, name: str) -> SentinelMember:
        return self.cluster.members[name]

    def node(self, name: str) -> str:
        return f"{self.hosts[name].address}:{REDIS_PORT}"

    def primary(self) -> str:
        [member] = self.cluster.primaries()
        return member.name

    def redis(self, name: str) -> redis.Redis:
        return self.member(name).redis(timeout_s=10.0)

    def redis_pid(self, name: str) -> int:
        return self.member(name).redis_pid

    def power_cut(self, name: str) -> None:
        self.hosts[name].kill()

    def init(self, name: str) -> None:
        self.member(name).start_missing()

    def switchover(self) -> str:
        if self._pauses:
            with self.redis(self.primary()) as client:
                client.client_pause(PAUSE_MS, all=False)
        self.cluster.switchover()
        return ""

    def wait_settled(self, names: Sequence[str], limit_s: float) -> str:
        return self.cluster.wait_replicates(names, limit_s).name

    def stop(self) -> None:
        self.cluster.stop()


class AgentSystem:
    """Redis-agent, with three ZooKeeper servers on hosts of their own, one in each rack."""

    restarts_redis = True

    def __init__(self, bed: Bed, settings: AgentSettings) -> None:
        self._stack = ExitStack()
        try:
            self._servers = self._stack.enter_context(BedEnsemble(bed, tick_ms=settings.tick_ms))
            # One that was just started is several times as slow as one that has been up for weeks.
            warm_up(self._servers, WARM_UP)
            tick_s = settings.tick_ms / 1000
            zookeeper = {
                "hosts": self._servers.hosts,
                "tick_s": tick_s,
                "session_timeout_s": settings.session_timeout_s,
            }
            own: Settings = {"zookeeper": zookeeper, "timing": {"heartbeat_s": min(0.5, tick_s / 4)}}
            self.cluster = BedCluster(bed, self._servers, settings=own, redis_conf=settings.redis_conf)
            self._stack.enter_context(self.cluster)
        except BaseException:
            self.stop()
            raise

    def plugin(self) -> Plugin:
        members = {name: self.node(name) for name in NAMES}
        arguments = {"hosts": self._servers.hosts, "cluster": self.cluster.cluster, "members": members}
        return Plugin(arguments=arguments)

    def rack(self, name: str) -> list[Host]:
        return [self.cluster.nodes[name].machine, self._servers.machines[NAMES.index(name)]]

    def node(self, name: str) -> str:
        return self.cluster.nodes[name].node

    def primary(self) -> str:
        return self.cluster.wait_settled().name

    def redis(self, name: str) -> redis.Redis:
        return self.cluster[name].redis(timeout_s=10.0)

    def redis_pid(self, name: str) -> int:
        pid = self.cluster[name].redis_pid
        assert pid is not None
        return pid

    def power_cut(self, name: str) -> None:
        self.cluster.nodes[name].power_cut()
        self._servers.machines[NAMES.index(name)].kill()

    def init(self, name: str) -> None:
        """The bed has an init for agents."""

    def switchover(self) -> str:
        _, order = self.cluster.switchover()
        return "" if order.state == OrderState.DONE else f"the switchover was not done: {order.detail}"

    def wait_settled(self, names: Sequence[str], limit_s: float) -> str:
        return self.cluster.wait_settled(limit_s, members=names).name

    def stop(self) -> None:
        self._stack.close()


SENTINELS = {
    "sentinel-5000": SentinelSettings(),
    "sentinel-5000-min": SentinelSettings(min_replicas=1),
    "sentinel-1000": SentinelSettings(down_after_ms=1000),
    "sentinel-1000-min": SentinelSettings(down_after_ms=1000, min_replicas=1),
    "sentinel-1000-min-lag2": SentinelSettings(down_after_ms=1000, min_replicas=1, max_lag_s=2),
    "sentinel-5000-aof": SentinelSettings(appendonly=True),
    "sentinel-1000-pause": SentinelSettings(down_after_ms=1000),
}


AGENTS = {
    "agent": AgentSettings(tick_ms=2000, session_timeout_s=6.0),
    "agent-2s": AgentSettings(tick_ms=500, session_timeout_s=2.0),
}


def make(key: str, bed: Bed) -> System:
    """The system of this name, started and in sync."""
    if key in AGENTS:
        return AgentSystem(bed, AGENTS[key])
    return SentinelSystem(bed, SENTINELS[key], pauses=key == "sentinel-1000-pause")
