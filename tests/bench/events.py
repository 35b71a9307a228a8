"""What happens to the leader, and what its clients notice of it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial

from redis_agent.lab.agent_process import AgentProcess
from redis_agent.lab.cluster import LocalCluster
from redis_agent.lab.load import Load
from redis_agent.znodes import OrderState

SETTLE_LIMIT_S = 60.0
EDGE_NS = 50_000_000
"""A gap is looked for from this long before the event, so that one that begins with it has a write before it."""
STAMP = "clock"


class Kind(Enum):
    """What happens."""

    CRASH = "crash"
    HANDOVER = "handover"
    RESTART = "restart"


FAILOVER_STAGES = (
    # Event in the log, whose log (of the old or the new leader), what the time up to it is called in the table.
    ("frozen", "new", "frozen"),
    ("ballot_cast", "new", "ballot cast"),
    ("claimed", "new", "claimed"),
    ("promoted", "new", "promoted"),
    ("served", "new", "served"),
    ("fence_lifted", "new", "fence lifted"),
)
STAGES = {
    Kind.CRASH: (
        ("redis_died", "old", "death of the child noticed"),
        ("resigned", "old", "`leader` deleted"),
        *FAILOVER_STAGES,
    ),
    Kind.HANDOVER: (
        ("handover", "old", "order read and accepted (clients go on)"),
        ("caught_up", "old", "writes paused, successor has everything"),
        ("frozen", "old", "frozen: the position is final"),
        ("designated", "old", "successor named"),
        ("transition:appointed", "new", "successor has heard of it, and still has everything"),
        ("claimed", "new", "epoch swapped"),
        ("promoted", "new", "promoted"),
        ("served", "new", "served"),
        ("fence_lifted", "new", "fence lifted"),
    ),
    Kind.RESTART: (
        ("session_up", "old", "interpreter up, connected to ZooKeeper"),
        ("redis_attached", "old", "attached to the running Redis"),
        # The first one contains that the `leader` of its last life was deleted.
        *FAILOVER_STAGES,
    ),
}
FIRST_WRITE = "first acknowledged write"


@dataclass(slots=True, kw_only=True)
class Measured:
    """One event. Times in milliseconds after it."""

    kind: str
    old: str
    new: str
    epoch: int
    at_s: float
    """On CLOCK_BOOTTIME."""
    first_ms: float
    """To the first write that the new leader acknowledged."""
    first_confirmed_ms: float | None
    """To the first that WAIT confirmed there."""
    gap_ms: float
    """The longest time without an acknowledged write of anybody."""
    longest_ms: float
    """The longest that any one write took, from the client's first attempt to the acknowledgement."""
    unknown: int
    """Writes whose connection broke: the application is told that the outcome is unknown."""
    unconfirmed: int
    """Acknowledged writes whose WAIT did not confirm them."""
    surprises: int
    """Answers that no client should get."""
    last_ms: float | None = None
    """To the last write that the old leader acknowledged, if its agent was killed: its guard has fenced it."""
    stages_ms: dict[str, float] = field(default_factory=dict)
    """When each stage was reached; those that the logs tell of."""


class NotDone(Exception):
    """A planned switchover was refused, or given up: the message says why. The leader stays."""


def offset_s() -> float:
    """CLOCK_BOOTTIME minus the monotonic clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()


def _crash(_: LocalCluster, old: AgentProcess) -> int:
    return old.kill_redis()


def _hand_over(cluster: LocalCluster, _: AgentProcess) -> int:
    at_ns, order = cluster.switchover()
    if order.state != OrderState.DONE:
        raise NotDone(f"{order.state}: {order.detail}")
    return at_ns


def _restart(_: LocalCluster, old: AgentProcess) -> int:
    at_ns = time.monotonic_ns()
    old.kill()
    old.start()
    return at_ns


_ACTS: dict[Kind, Callable[[LocalCluster, AgentProcess], int]] = {
    Kind.CRASH: _crash,
    Kind.HANDOVER: _hand_over,
    Kind.RESTART: _restart,
}


def happen(kind: Kind, cluster: LocalCluster, load: Load, chance: random.Random) -> Measured:
    """Let it happen to the leader of a settled cluster, and measure it.

    Raises:
        LabError: it did not recover in time.
        NotDone: it did not happen.
    """
    old = cluster.wait_settled(SETTLE_LIMIT_S)
    # At any moment of the heartbeats' and the replication's intervals.
    time.sleep(chance.uniform(0.2, 1.2))
    leader = cluster.leader()
    assert leader is not None
    epoch, unknown, surprises = leader.epoch, load.unknown, len(load.surprises)
    at_ns = _ACTS[kind](cluster, old)
    for confirmed in (False, True):
        wrote = partial(load.first_ack, at_ns, after_epoch=epoch, confirmed=confirmed)
        cluster.wait_for(wrote, "an acknowledged write of the next leader", SETTLE_LIMIT_S)
    cluster.wait_for(lambda: load.resumed(at_ns, after_epoch=epoch), "every client writes again", SETTLE_LIMIT_S)
    new = cluster.wait_serving(SETTLE_LIMIT_S, after_epoch=epoch)
    first = load.first_ack(at_ns, after_epoch=epoch)
    first_confirmed = load.first_ack(at_ns, after_epoch=epoch, confirmed=True)
    assert first is not None
    old_acks = [ack.at_ns for ack in load.acks(at_ns) if ack.epoch <= epoch] if kind is Kind.RESTART else []
    return Measured(
        kind=kind.value,
        old=old.name,
        new=new.name,
        epoch=first.epoch,
        at_s=at_ns / 1e9 + offset_s(),
        first_ms=(first.at_ns - at_ns) / 1e6,
        first_confirmed_ms=None if first_confirmed is None else (first_confirmed.at_ns - at_ns) / 1e6,
        gap_ms=load.gap(at_ns - EDGE_NS).seconds * 1000,
        longest_ms=load.longest_write_s(at_ns - EDGE_NS) * 1000,
        unknown=load.unknown - unknown,
        unconfirmed=load.unconfirmed(at_ns - EDGE_NS),
        surprises=len(load.surprises) - surprises,
        last_ms=(old_acks[-1] - at_ns) / 1e6 if old_acks else None,
    )


def attribute(measured: Sequence[Measured], cluster: LocalCluster) -> None:
    """Find out from the agents' logs when each stage was reached."""
    logs = {member.name: _log(member) for member in cluster}
    for each in measured:
        for name, whose, _ in STAGES[Kind(each.kind)]:
            after_ms = (
                (at_s - each.at_s) * 1000 for at_s in logs[each.old if whose == "old" else each.new].get(name, ())
            )
            # Stamped before the write was acknowledged to the agent or the client, and after the event.
            reached = next((ms for ms in after_ms if 0 <= ms <= each.first_ms + 50), None)
            if reached is not None:
                each.stages_ms[name] = reached


def _log(member: AgentProcess) -> dict[str, list[float]]:
    """When the member's agents said what."""
    found: dict[str, list[float]] = {}
    for event in member.log_events():
        if STAMP in event:
            name = str(event["event"])
            found.setdefault(f"{name}:{event['trigger']}" if "trigger" in event else name, []).append(event[STAMP])
    return found


def parts(measured: Sequence[Measured]) -> dict[str, list[float]]:
    """How long each stage took after the one before it. All are of one kind."""
    found: dict[str, list[float]] = {}
    for each in measured:
        reached = 0.0
        for name, _, title in STAGES[Kind(each.kind)]:
            if name in each.stages_ms:
                # What two processes do side by side may be logged in another order.
                now = max(reached, each.stages_ms[name])
                found.setdefault(title, []).append(now - reached)
                reached = now
        # The client may have its acknowledgement before the agent has logged that the fence is lifted.
        found.setdefault(FIRST_WRITE, []).append(max(0.0, each.first_ms - reached))
    return found
