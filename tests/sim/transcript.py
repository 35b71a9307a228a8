"""The transcript: one line per event that a core hears, with what it orders. Only made when somebody will read it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from redis_agent.messages import (
    Check,
    Command,
    Commit,
    Create,
    Delete,
    Ensure,
    Event,
    Log,
    Op,
    Put,
    Read,
    ReadDone,
    SaveState,
    Started,
    StateSaved,
    Znode,
)
from redis_agent.replication import RedisInfo
from redis_agent.state_record import StateRecord
from redis_agent.znodes import decode_ballot, decode_leader, decode_ledger

if TYPE_CHECKING:
    from tests.sim.agent import Agent
    from tests.sim.world import World

_HIDDEN = frozenset({"session", "incarnation", "limit_s", "sent_at", "request"})
_HIDDEN_IN_LOGS = frozenset({"clock", "epoch", "round"})
_WIDTH = 20
_HEX = re.compile(r"\b([0-9a-f]{6})[0-9a-f]{10,}\b")
_MARKS = ("***", "  = ", "ccepts writes", "ACCEPTS WRITES", "FENCES", ".redis  ", "session 0x", "[error]")


def step(world: World, agent: Agent, event: Event, commands: Iterable[Command]) -> None:
    """``state < Event``, and below it ``> Command`` for each order, ``=`` for each step of the state machine."""
    ordered = list(commands)
    if isinstance(event, StateSaved) and not ordered:
        return
    world.log(agent.name, f"{agent.core.snapshot().state:<{_WIDTH}} < {_shortened(describe(event))}")
    for command in ordered:
        if isinstance(command, Log) and command.event == "transition":
            step = dict(command.fields)
            taken = f"{step['from']} -> {step['to']}  on {step['trigger']}: {step['why']}"
            world.log(agent.name, f"{'':<{_WIDTH}} = {taken}")
        elif isinstance(command, Log):
            data = " ".join(f"{key}={_value(value)}" for key, value in command.fields if key not in _HIDDEN_IN_LOGS)
            world.log(agent.name, f"{'':<{_WIDTH}}   [{command.level}] {command.event} {_shortened(data)}".rstrip())
        else:
            world.log(agent.name, f"{'':<{_WIDTH}} > {_shortened(describe(command))}")


def brief(lines: Iterable[str]) -> list[str]:
    """Of a transcript: faults, steps of the state machine, sessions that end, and who accepts writes.

    Without the column of what has passed since the line before: that one is mostly left out.
    """
    return [line[:10] + line[21:] for line in lines if any(mark in line for mark in _MARKS)]


def _shortened(text: str) -> str:
    """Replids and guids: their first digits tell them apart."""
    return _HEX.sub(r"\1", text)


def describe(message: Event | Command) -> str:
    """A message in a line, without what a reader of a transcript need not know."""
    number = getattr(message, "request", None)
    name = f"{type(message).__name__}{'' if number is None else f'#{number}'}"
    match message:
        case Read():
            return name
        case ReadDone():
            return f"{name} {_read(message)}"
        case Commit():
            return f"{name} [{message.label}] {' '.join(_op(op) for op in message.ops)}"
        case Ensure():
            return f"{name} {' '.join(path for path, _ in message.nodes)}"
        case SaveState() | Started():
            return f"{name} {record(message.record)}"
    parts = [
        f"{field.name}={_value(getattr(message, field.name))}"
        for field in fields(message)
        if field.name not in _HIDDEN and getattr(message, field.name) not in ((), None, "", False)
    ]
    return f"{name} {' '.join(parts)}".rstrip()


def record(kept: StateRecord) -> str:
    """A state file."""
    return " ".join(f"{field.name}={getattr(kept, field.name)}" for field in fields(kept) if getattr(kept, field.name))


def _read(done: ReadDone) -> str:
    """What matters of what was read: the ledger, the leader, the names in the trees."""
    parts = [f"{_last(path)}={_znode(path, node)}" for path, node in done.paths.items()]
    parts += [f"{_last(path)}=[{' '.join(sorted(names))}]" for path, names in done.lists.items()]
    for path, tree in done.trees.items():
        shown = [f"{name}{_ballot(node)}" if _last(path) == "ballots" else name for name, node in sorted(tree.items())]
        parts.append(f"{_last(path)}=[{' '.join(shown)}]")
    return " ".join(parts)


def _znode(path: str, node: Znode | None) -> str:
    if node is None:
        return "none"
    if _last(path) == "leader":
        return _leader(node.data)
    if _last(path) == "epoch":
        return f"{decode_ledger(node.data).epoch}/v{node.version}"
    return f"v{node.version}"


def _leader(data: bytes) -> str:
    leader = decode_leader(data)
    to = f" to {leader.successor} at {leader.offset_bytes}" if leader.successor else ""
    return f"<{leader.name} {leader.phase}{to} epoch={leader.epoch} {leader.replid[:6]}>"


def _ballot(node: Znode) -> str:
    ballot = decode_ballot(node.data)
    if not ballot.up:
        return "(down)"
    flags = ("" if ballot.intact else " not intact") + (" abstains" if ballot.abstains else "")
    return f"({ballot.replid[:6]}@{ballot.offset_bytes}{flags})"


def _op(op: Op) -> str:
    what = f"{type(op).__name__} {_last(op.path)}"
    if isinstance(op, Check | Put | Delete) and op.version != -1:
        what += f"/v{op.version}"
    if isinstance(op, Create | Put) and _last(op.path) == "leader":
        what += _leader(op.data)
    elif isinstance(op, Create | Put) and "/ballots/" in op.path:
        what += _ballot(Znode(op.data, 0, 0, 0, 0))
    return f"({what})"


def _last(path: str) -> str:
    return path.rpartition("/")[2]


def _value(value: Any) -> str:
    if isinstance(value, RedisInfo):
        return info(value)
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, tuple):
        return "(" + ", ".join(_value(each) for each in value) + ")"
    return getattr(value, "value", None) or str(value)


def info(info: RedisInfo) -> str:
    """INFO in a few words."""
    role = "primary" if info.is_primary else f"replica of {info.primary}"
    flags = [name for name in ("link_up", "syncing", "loading", "backlog") if getattr(info, name)]
    applied = info.replica_offset_bytes
    behind = "" if applied in (None, info.offset_bytes) else f" applied={applied}"
    second = f" ({info.replid2[:6]} before {info.second_offset_bytes})" if info.replid2 else ""
    links = "".join(f" <{link.address.host}:{link.offset_bytes}" for link in info.replicas)
    return (
        f"[{role} {info.replid[:6]}@{info.offset_bytes}{behind}{second} keys={info.keys} {' '.join(flags)}"
        f" run={info.run_id[:6]}{links}]"
    )
