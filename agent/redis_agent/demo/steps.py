"""What happens to the leader, and what is measured of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from redis_agent.lab.agent_process import AgentProcess
from redis_agent.lab.cluster import LocalCluster
from redis_agent.lab.load import Load, Losses
from redis_agent.lab.zookeeper import LabError
from redis_agent.znodes import OrderState

WRONG = ("LOST", "WRONG")
"""How a line begins that tells of a broken promise."""

EDGE_NS = 50_000_000
"""A gap is looked for from this long before it, so that one that begins with it has a write before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Something that happens to the member that leads."""

    title: str
    """As in "SIGKILL to n1's Redis"; {name} is the member."""
    act: Callable[[LocalCluster, AgentProcess], int]
    """Does it; returns when, in nanoseconds of time.monotonic_ns()."""
    since: str = "the signal"
    """What the time is counted from."""
    undo: Callable[[AgentProcess], int] | None = None
    """Done once another one leads; returns when."""
    undone: str = ""
    """What that is called."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a step."""

    title: str
    old: str
    new: str
    epoch: int
    since: str
    stopped_s: float
    """The longest time without an acknowledged write."""
    first_s: float
    """From then to the first write that the new leader acknowledged."""
    first_confirmed_s: float | None
    """The same for a write confirmed by WAIT."""
    late: int
    """Writes that the old leader acknowledged after it had been continued."""
    losses: Losses


def _kill_redis(_: LocalCluster, member: AgentProcess) -> int:
    return member.kill_redis()


def _terminate_agent(_: LocalCluster, member: AgentProcess) -> int:
    at_ns = time.monotonic_ns()
    member.terminate()
    return at_ns


def _kill_agent(_: LocalCluster, member: AgentProcess) -> int:
    at_ns = time.monotonic_ns()
    member.kill()
    # The demonstration is init: it starts the agent again at once.
    member.start()
    return at_ns


def _switch_over(cluster: LocalCluster, _: AgentProcess) -> int:
    at_ns, order = cluster.switchover()
    if order.state != OrderState.DONE:
        raise LabError(f"the switchover was {order.state}: {order.detail}\n{cluster.describe()}")
    return at_ns


def _freeze_host(_: LocalCluster, member: AgentProcess) -> int:
    return member.freeze_host()


def _thaw_host(member: AgentProcess) -> int:
    return member.thaw_host()


STEPS = (
    Step(title="SIGKILL to {name}'s Redis", act=_kill_redis),
    Step(title="SIGTERM to {name}'s agent", act=_terminate_agent),
    Step(title="SIGKILL to {name}'s agent", act=_kill_agent),
    Step(title="switchover from {name}", act=_switch_over, since="the order"),
    Step(
        title="{name}'s host freezes",
        act=_freeze_host,
        since="SIGSTOP to agent, guard and Redis",
        undo=_thaw_host,
        undone="{name}'s host goes on, late by {late_s:.1f} s",
    ),
)


def measure(
    load: Load,
    step: Step,
    *,
    old: str,
    new: str,
    old_epoch: int,
    at_ns: int,
    undone_ns: int | None,
    losses: Losses,
) -> Outcome:
    """Numbers of a step that is over.

    Args:
        load: the clients.
        step: what happened.
        old: who led.
        new: who leads.
        old_epoch: of the leader before.
        at_ns: when it happened, of time.monotonic_ns().
        undone_ns: when it was undone, if it was.
        losses: what was looked up afterwards.
    """
    first = load.first_ack(at_ns, after_epoch=old_epoch)
    confirmed = load.first_ack(at_ns, after_epoch=old_epoch, confirmed=True)
    assert first is not None, "measured before it was over"
    return Outcome(
        title=step.title.format(name=old),
        old=old,
        new=new,
        epoch=first.epoch,
        since=step.since,
        stopped_s=load.gap(at_ns - EDGE_NS).seconds,
        first_s=(first.at_ns - at_ns) / 1e9,
        first_confirmed_s=None if confirmed is None else (confirmed.at_ns - at_ns) / 1e9,
        late=0 if undone_ns is None else sum(ack.epoch == old_epoch for ack in load.acks(undone_ns)),
        losses=losses,
    )


def _ms(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"


def describe(outcome: Outcome) -> list[str]:
    """The outcome in plain sentences."""
    losses = outcome.losses
    who = "leads again" if outcome.new == outcome.old else "leads"
    confirmed = (
        "" if outcome.first_confirmed_s is None else f", confirmed by WAIT after {_ms(outcome.first_confirmed_s)}"
    )
    lines = [
        f"{outcome.new} {who}, epoch {outcome.epoch}; writes stopped for {_ms(outcome.stopped_s)}",
        f"first write acknowledged {_ms(outcome.first_s)} after {outcome.since}{confirmed}",
    ]
    if outcome.late:
        lines.append(f"{outcome.late} writes were acknowledged by {outcome.old} after it was continued")
    if losses.confirmed_lost:
        lines.append(f"LOST: {losses.confirmed_lost} of {losses.confirmed:,} confirmed writes: {losses.examples}")
    else:
        lines.append(f"all {losses.confirmed:,} confirmed writes are there")
    if losses.counters_doubled:
        lines.append(f"WRONG: {losses.counters_doubled} increments were executed twice")
    lines.append(
        f"not confirmed: {losses.plain_lost} of {losses.plain:,} acknowledged writes and {losses.counters_lost} "
        f"increments lost so far; {losses.unknown} of unknown outcome"
    )
    return lines
