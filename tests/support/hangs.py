"""Processes that are stopped at a chosen moment, and what clients that wrote meanwhile were told."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from redis_agent.lab.agent_process import AgentProcess
from redis_agent.lab.cluster import LocalCluster
from redis_agent.lab.load import Load
from tests.support.cluster import NodeWriter, refusal, told, wait_told


class Identity(NamedTuple):
    """Of a redis-server."""

    pid: int | None
    run_id: str


def identity(member: AgentProcess) -> Identity:
    """Which process its Redis is, now."""
    return Identity(member.redis_pid, str(member.wait_redis()["run_id"]))


def measured(what: str, value: str) -> None:
    """Tell whoever reads the test's output (pytest -rP)."""
    sys.stdout.write(f"measured: {what}: {value}\n")


def stopped_at(member: AgentProcess, state: str, behind: int, limit_s: float = 10.0) -> str:
    """Stop an agent (SIGSTOP) as soon as its log says that it is in a state.

    The agent goes on while we look, so it may stand in a later one by then.

    Args:
        member: whose agent.
        state: as in the log.
        behind: this many bytes of the log are not looked at.
        limit_s: after this it is stopped wherever it is.

    Returns:
        The state in which it stands.
    """
    wanted = f'"to": "{state}"'.encode()
    deadline = time.monotonic() + limit_s
    with member.log_path.open("rb") as log:
        log.seek(behind)
        said = b""
        while wanted not in said and time.monotonic() < deadline:
            said += log.read()
    member.pause()
    return str(told(member, "transition")[-1]["to"])


def log_size(member: AgentProcess) -> int:
    return member.log_path.stat().st_size


def accepting(cluster: LocalCluster) -> list[str]:
    """The members whose Redis accepts a write, of those that have one."""
    return [member.name for member in cluster if member.redis_pid is not None and refusal(member) == ""]


def last_ack(writer: NodeWriter) -> float:
    """When its node acknowledged the latest write, on the agents' clock."""
    return writer.acks[-1] if writer.acks else 0.0


def let_in(cluster: LocalCluster, member: AgentProcess, since: float) -> float:
    """When it served for the first time since then: nobody wrote there before."""
    return float(wait_told(cluster, member, "served", since)["clock"])


def wait_fit(cluster: LocalCluster, leader: AgentProcess, member: AgentProcess) -> None:
    """Wait until the leader knows that this one is in sync: else it would refuse to hand over to it.

    Its offsets must move meanwhile.
    """

    def seen() -> int:
        info = leader.info()
        links = (info.get(f"slave{number}", {}) for number in range(int(info.get("connected_slaves", 0))))
        fit = any(link["port"] == member.address.port and link["offset"] > 0 for link in links)
        return int(info["master_repl_offset"]) if fit else 0

    offset = cluster.wait_for(seen, f"{member.name} acknowledges to {leader.name}")

    def looked() -> bool:
        presence = cluster.presence(leader.name)
        return presence is not None and presence.offset_bytes >= offset

    cluster.wait_for(looked, f"{leader.name} has looked since")


def missing(load: Load, leader: AgentProcess) -> Sequence[int]:
    """Writes that were confirmed, acknowledged or counted and are gone; increments that were counted twice."""
    with leader.redis(timeout_s=5.0) as client:
        losses = load.verify(client, everything=True)
    return (losses.confirmed_lost, losses.plain_lost, losses.counters_lost, losses.counters_doubled)


NOTHING = (0, 0, 0, 0)
