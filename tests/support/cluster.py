"""Whole clusters for tests: quick settings, what the agents' logs say, and clients that write to one node only."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import redis

from redis_agent.client import LeaderObserver
from redis_agent.lab.agent_process import AgentProcess
from redis_agent.lab.cluster import LocalCluster
from redis_agent.lab.settings import Settings
from redis_agent.lab.zookeeper import Ensemble

SESSION_S = 2.0
"""At the shared server's tick of 0.2 s."""

QUICK: Settings = {
    "zookeeper": {"session_timeout_s": SESSION_S},
    # A watch that is lost is not made good for by the periodic look within any test.
    "timing": {"heartbeat_s": 0.1, "reread_s": 60.0},
    "log": {"format": "json"},
}

STILL = "repl-ping-replica-period 3600"
"""Offsets then move by writes only."""

UNCORRECTED: Settings = {"timing": {"probe_s": 30.0, "hang_s": 90.0, "busy_s": 60.0}}
"""Nobody looks at a steady Redis: a test may repoint it behind its agent's back, and only the fence itself fences."""

Event = dict[str, Any]


def lab(
    ensemble: Ensemble,
    directory: Path,
    size: int = 3,
    *,
    settings: Settings | None = None,
    overrides: Mapping[str, Settings] | None = None,
    redis_conf: str = STILL,
    password: str = "",
    proxied: bool = False,
) -> LocalCluster:
    """A cluster with quick settings in a directory of its own, not started.

    Args:
        ensemble: what it shares with others.
        directory: the test's; its name becomes the cluster's.
        size: how many members.
        settings: of all, on top of QUICK.
        overrides: by member.
        redis_conf: further lines of redis.conf.
        password: of every Redis.
        proxied: as in LocalCluster.
    """
    merged = {section: {**keys, **(settings or {}).get(section, {})} for section, keys in QUICK.items()}
    merged |= {section: dict(keys) for section, keys in (settings or {}).items() if section not in merged}
    return LocalCluster(
        ensemble,
        directory / "lab",
        size,
        cluster=f"{directory.name}-{time.monotonic_ns() % 1_000_000}",
        settings=merged,
        overrides=overrides,
        redis_conf=redis_conf,
        password=password,
        proxied=proxied,
    )


@contextmanager
def unstarted(cluster: LocalCluster) -> Iterator[LocalCluster]:
    """A cluster whose members the test starts itself; all are ended."""
    try:
        yield cluster
    finally:
        cluster.stop()


def clock() -> float:
    """The agents' clock: the field ``clock`` of their log lines."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


# --- what the logs say ----------------------------------------------------------------------------------------------


def told(member: AgentProcess, name: str, since: float = 0.0, **fields: object) -> list[Event]:
    """The core's log events of this name, with these fields, from ``since`` on."""
    return [
        event
        for event in member.log_events()
        if event.get("event") == name
        and event.get("clock", -1.0) >= since
        and all(event.get(key) == value for key, value in fields.items())
    ]


def wait_told(cluster: LocalCluster, member: AgentProcess, name: str, since: float = 0.0, **fields: object) -> Event:
    """Wait until the member has logged such an event; the first one."""
    return cluster.wait_for(lambda: told(member, name, since, **fields), f"{member.name} says {name} {fields}")[0]


def steps(member: AgentProcess, since: float = 0.0) -> list[str]:
    """The transitions since then, as ``trigger>state``."""
    return [f"{event['trigger']}>{event['to']}" for event in told(member, "transition", since)]


# --- what Redis says ------------------------------------------------------------------------------------------------


def refusal(member: AgentProcess) -> str:
    """The first word with which this Redis refuses a write; empty if it accepts it."""
    with member.redis() as client:
        try:
            client.set("refusal", "1")
        except redis.ReadOnlyError:
            return "READONLY"
        except redis.ResponseError as error:
            return str(error).split(maxsplit=1)[0]
    return ""


def repointings(member: AgentProcess) -> int:
    """How many REPLICAOF this Redis has executed."""
    with member.redis() as client:
        stats: dict[str, Any] = client.info("commandstats")
    return sum(int(stats[name]["calls"]) for name in ("cmdstat_replicaof", "cmdstat_slaveof") if name in stats)


def offsets(cluster: LocalCluster, *names: str) -> list[int]:
    """The replication offsets of these members."""
    return [cluster[name].info().get("master_repl_offset", -1) for name in names]


def write(member: AgentProcess, count: int, prefix: str = "key", size_bytes: int = 0) -> None:
    """Set that many keys to their own names, padded."""
    with member.redis(timeout_s=5.0) as client, client.pipeline(transaction=False) as pipe:
        for number in range(count):
            pipe.set(f"{prefix}:{number}", f"{prefix}:{number}".ljust(size_bytes, "."))
        pipe.execute()


def keys(member: AgentProcess, prefix: str = "key") -> int:
    """How many keys with this prefix it has."""
    with member.redis(timeout_s=5.0) as client:
        return sum(1 for _ in client.scan_iter(f"{prefix}:*", count=1000))


def observer_of(cluster: LocalCluster) -> LeaderObserver:
    """A client's view of who leads, not started."""
    return LeaderObserver(
        cluster.ensemble.hosts, cluster=cluster.cluster, root=cluster.root, session_timeout_s=SESSION_S
    )


class NodeWriter:
    """A client of one node that asks nobody who leads: it writes all the time and notes what was acknowledged.

    Args:
        member: the node.
        interval_s: between two writes.
    """

    def __init__(self, member: AgentProcess, interval_s: float = 0.003) -> None:
        self.member = member
        self.acks: list[float] = []
        """On the agents' clock, when each acknowledgement was read."""
        self._interval_s = interval_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"writer-{member.name}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        while not self._stopping.is_set():
            with suppress(redis.RedisError, OSError), self.member.redis(timeout_s=0.5) as client:
                self._write(client)
            self._stopping.wait(self._interval_s)

    def _write(self, client: redis.Redis) -> None:
        while not self._stopping.is_set():
            with suppress(redis.ResponseError):
                client.set(f"writer:{self.member.name}", len(self.acks))
                self.acks.append(clock())
            self._stopping.wait(self._interval_s)
