"""The three faults, and what is measured of each."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from redis_agent.lab.agent_process import AgentProcess
from redis_agent.lab.load import Load, Losses

WRONG = ("LOST", "WRONG")
"""How a line begins that tells of a broken promise."""

EDGE_NS = 50_000_000
"""A gap is looked for from this long before the fault, so that one that begins with it has a write before it."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that happens to the member that leads."""

    title: str
    """As in "SIGKILL to n1's Redis"; {name} is the member."""
    act: Callable[[AgentProcess], int]
    """Does it; returns when, in nanoseconds of time.monotonic_ns()."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of a fault."""

    title: str
    old: str
    new: str
    epoch: int
    stopped_s: float
    """The longest time without an acknowledged write."""
    first_s: float
    """From the fault to the first write that the new leader acknowledged."""
    first_confirmed_s: float | None
    """The same for a write confirmed by WAIT."""
    losses: Losses


def _kill_redis(member: AgentProcess) -> int:
    return member.kill_redis()


def _terminate_agent(member: AgentProcess) -> int:
    at_ns = time.monotonic_ns()
    member.terminate()
    return at_ns


def _kill_agent(member: AgentProcess) -> int:
    at_ns = time.monotonic_ns()
    member.kill()
    # The demonstration is init: it starts the agent again at once.
    member.start()
    return at_ns


FAULTS = (
    Fault("SIGKILL to {name}'s Redis", _kill_redis),
    Fault("SIGTERM to {name}'s agent", _terminate_agent),
    Fault("SIGKILL to {name}'s agent", _kill_agent),
)


def measure(load: Load, *, title: str, old: str, new: str, old_epoch: int, at_ns: int, losses: Losses) -> Outcome:
    """Numbers of a fault that is over.

    Args:
        load: the clients.
        title: what happened.
        old: who led.
        new: who leads.
        old_epoch: of the leader before.
        at_ns: when it happened, of time.monotonic_ns().
        losses: what was looked up afterwards.
    """
    first = load.first_ack(at_ns, after_epoch=old_epoch)
    confirmed = load.first_ack(at_ns, after_epoch=old_epoch, confirmed=True)
    assert first is not None, "measured before it was over"
    return Outcome(
        title=title,
        old=old,
        new=new,
        epoch=first.epoch,
        stopped_s=load.gap(at_ns - EDGE_NS).seconds,
        first_s=(first.at_ns - at_ns) / 1e9,
        first_confirmed_s=None if confirmed is None else (confirmed.at_ns - at_ns) / 1e9,
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
        f"first write acknowledged {_ms(outcome.first_s)} after the signal{confirmed}",
    ]
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
