"""The transcript: one line per event that a core hears, with what it orders. Only made when somebody will read it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from redis_agent.messages import Command, Event, Log
from redis_agent.replication import RedisInfo

if TYPE_CHECKING:
    from tests.sim.agent import Agent
    from tests.sim.world import World

_HIDDEN = frozenset({"session", "incarnation", "limit_s", "sent_at", "request"})
_LONG = 60


def step(world: World, agent: Agent, event: Event, commands: Iterable[Command]) -> None:
    """``state < Event`` and, indented below, ``> Command`` for each order."""
    world.log(agent.name, f"{state(agent):<22} < {describe(event)}")
    for command in commands:
        if isinstance(command, Log):
            data = " ".join(f"{key}={_value(value)}" for key, value in command.fields)
            world.log(agent.name, f"{'':<22}   [{command.level}] {command.event} {data}")
        else:
            world.log(agent.name, f"{'':<22} > {describe(command)}")


def state(agent: Agent) -> str:
    """The core's state, as its snapshot has it, after the event."""
    snapshot = agent.core.snapshot()
    return str(getattr(snapshot, "state", "?"))


def describe(message: Event | Command) -> str:
    parts = [
        f"{field.name}={_value(getattr(message, field.name))}"
        for field in fields(message)
        if field.name not in _HIDDEN and getattr(message, field.name) not in ((), None, "", False)
    ]
    number = getattr(message, "request", None)
    return f"{type(message).__name__}{'' if number is None else f'#{number}'} {' '.join(parts)}".rstrip()


def _value(value: Any) -> str:
    if isinstance(value, RedisInfo):
        return _info(value)
    if isinstance(value, bytes):
        return _short(value.decode(errors="replace"))
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key.rpartition('/')[2]}: {_value(each)}" for key, each in value.items()) + "}"
    if isinstance(value, frozenset):
        return "{" + ", ".join(sorted(str(each) for each in value)) + "}"
    if isinstance(value, tuple):
        return "(" + ", ".join(_value(each) for each in value) + ")"
    if hasattr(value, "__slots__") and hasattr(value, "__dataclass_fields__"):
        inner = " ".join(f"{field.name}={_value(getattr(value, field.name))}" for field in fields(value))
        return f"{type(value).__name__}({inner})"
    return _short(str(value))


def _info(info: RedisInfo) -> str:
    role = "primary" if info.is_primary else f"replica of {info.primary}"
    flags = [name for name in ("link_up", "syncing", "loading", "backlog") if getattr(info, name)]
    behind = (
        "" if info.replica_offset_bytes in (None, info.offset_bytes) else f" slave_repl={info.replica_offset_bytes}"
    )
    links = "".join(f" <{link.address.host}:{link.offset_bytes}" for link in info.replicas)
    return (
        f"[{role} {info.replid[:6]}@{info.offset_bytes}{behind} 2:{info.replid2[:6]}<{info.second_offset_bytes}"
        f" keys={info.keys} {' '.join(flags)} run={info.run_id[:6]}{links}]"
    )


def _short(text: str) -> str:
    return text if len(text) <= _LONG else text[: _LONG - 1] + "…"
