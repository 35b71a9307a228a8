"""The two systems behind one interface, so that everything else of the comparison is the same for both."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Protocol

import redis

from tests.faults.bed import Bed, Host
from tests.faults.sentinel import MASTER, REDIS_PORT, SentinelCluster, SentinelMember, SentinelSettings
from tests.faults.workload import Plugin

NAMES = ("n1", "n2", "n3")


class System(Protocol):
    """A primary and two replicas on the hosts n1, n2 and n3, started and in sync."""

    def plugin(self) -> Plugin:
        """How clients find the primary."""

    def node(self, name: str) -> str:
        """The member's Redis, address:port."""

    def primary(self) -> str:
        """Who takes writes, in a settled system."""

    def redis(self, name: str) -> redis.Redis:
        """A client of this member's Redis. Close it (``with``)."""

    restarts_redis: bool
    """Whether the system itself starts a Redis again that has died."""

    def signal_redis(self, name: str, number: signal.Signals) -> None: ...

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


class SentinelSystem:
    """Redis Sentinel, with a Sentinel beside each Redis."""

    restarts_redis = False

    def __init__(self, bed: Bed, settings: SentinelSettings) -> None:
        self.hosts: dict[str, Host] = {name: bed.host(name) for name in NAMES}
        self.cluster = SentinelCluster([*self.hosts.values()], settings)
        self.cluster.start()

    def plugin(self) -> Plugin:
        sentinels = [f"{host}:{port}" for host, port in self.cluster.sentinels]
        return Plugin(
            name="tests.faults.sentinel_finder:SentinelFinder", arguments={"sentinels": sentinels, "master": MASTER}
        )

    def member(self, name: str) -> SentinelMember:
        return self.cluster.members[name]

    def node(self, name: str) -> str:
        return f"{self.hosts[name].address}:{REDIS_PORT}"

    def primary(self) -> str:
        [member] = self.cluster.primaries()
        return member.name

    def redis(self, name: str) -> redis.Redis:
        return self.member(name).redis(timeout_s=10.0)

    def signal_redis(self, name: str, number: signal.Signals) -> None:
        self.member(name).signal_redis(number)

    def init(self, name: str) -> None:
        self.member(name).start_missing()

    def switchover(self) -> str:
        self.cluster.switchover()
        return ""

    def wait_settled(self, names: Sequence[str], limit_s: float) -> str:
        return self.cluster.wait_replicates(names, limit_s).name

    def stop(self) -> None:
        self.cluster.stop()


SENTINELS = {
    "sentinel-5000": SentinelSettings(),
    "sentinel-5000-min": SentinelSettings(min_replicas=1),
    "sentinel-1000": SentinelSettings(down_after_ms=1000),
    "sentinel-1000-min": SentinelSettings(down_after_ms=1000, min_replicas=1),
    "sentinel-1000-min-lag2": SentinelSettings(down_after_ms=1000, min_replicas=1, max_lag_s=2),
    "sentinel-5000-aof": SentinelSettings(appendonly=True),
}


def make(key: str, bed: Bed) -> System:
    """The system of this name, started and in sync."""
    return SentinelSystem(bed, SENTINELS[key])
