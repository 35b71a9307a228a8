"""What each role command says to Redis, and what its replies mean. No I/O here.

Each command is one pipeline with INFO at its end, so that its answer tells what Redis is *behind* it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from redis_agent.messages import (
    Event,
    Fence,
    Follow,
    Freeze,
    KickClients,
    LiftFence,
    PauseWrites,
    Probe,
    ProbeError,
    ProbeFailed,
    Promote,
    RoleCommand,
    RoleDone,
    RoleFailed,
    SaveTail,
    ScriptKill,
    TailSaved,
    Unpause,
)
from redis_agent.redis_conf import FENCED, MAX_LAG_S, OWN_CLIENT_NAMES
from redis_agent.redis_wire import ErrorReply, Reply, Request, info_fields
from redis_agent.replication import NOWHERE, RedisInfo, parse_info

INFO: Request = ("INFO",)


class Weight(Enum):
    """What an error reply to a step means for the whole command."""

    KEY = auto()
    """The command was not executed."""
    MUST = auto()
    """If the key step was executed: half done, so the outcome counts as unknown."""
    MAY = auto()
    """Nothing."""


@dataclass(frozen=True, slots=True)
class Step:
    """One request of a pipeline."""

    request: Request
    weight: Weight = Weight.MUST


def _config_set(name: str, value: str | int, weight: Weight = Weight.MUST) -> Step:
    return Step(("CONFIG", "SET", name, value), weight)


CLIENTS: tuple[Request, ...] = (("CLIENT", "LIST", "TYPE", "normal"), ("CLIENT", "LIST", "TYPE", "pubsub"))
"""KickClients asks for these, and then orders ``kick_steps``."""

_CLIENT = re.compile(r"^id=([0-9]+) (?:.* )?name=(\S*) ", re.MULTILINE)


def kick_steps(listed: Sequence[Reply], own_ids: Collection[int]) -> tuple[Step, ...]:
    """Close each of these clients but the agents' and the guard's own; INFO last.

    Args:
        listed: the replies to CLIENTS.
        own_ids: ids of connections that are ours whatever their names.
    """
    rows = [
        row for reply in listed if isinstance(reply, bytes) for row in _CLIENT.findall(reply.decode("utf-8", "replace"))
    ]
    others = [int(number) for number, name in rows if name not in OWN_CLIENT_NAMES and int(number) not in own_ids]
    # Not one CLIENT KILL TYPE normal, which would close our own too. One that has left meanwhile is no error.
    return (*(Step(("CLIENT", "KILL", "ID", number)) for number in others), Step(INFO))


def role_steps(command: RoleCommand, own_min_replicas: int, repin: Mapping[str, str]) -> tuple[Step, ...]:
    """The pipeline of a role command, INFO last.

    Args:
        command: what to do.
        own_min_replicas: the operator's min-replicas-to-write.
        repin: pinned settings that were found changed; the commands that decide about writes put them back.
    """
    # With a max-lag of zero min-replicas-to-write has no effect.
    lag = _config_set("min-replicas-max-lag", MAX_LAG_S)
    pins = tuple(_config_set(name, value, Weight.MAY) for name, value in repin.items())
    fence = _config_set("min-replicas-to-write", FENCED)
    match command:
        case Fence():
            steps = (lag, _config_set("min-replicas-to-write", FENCED, Weight.KEY), *pins)
        case LiftFence():
            least = max(own_min_replicas, command.at_least)
            steps = (lag, _config_set("min-replicas-to-write", least, Weight.KEY), *pins)
        case Freeze():
            kills = (Step(("CLIENT", "KILL", "TYPE", "normal")), Step(("CLIENT", "KILL", "TYPE", "pubsub")))
            nowhere = Step(("REPLICAOF", NOWHERE.host, NOWHERE.port), Weight.KEY)
            # Nobody waits any more: a pause must not outlive the handover that it was for.
            unpause = Step(("CLIENT", "UNPAUSE"), Weight.MAY)
            steps = (lag, fence, nowhere, *((*kills, unpause) if command.kill_clients else ()), *pins)
        case Promote():
            # Behind the fence, whatever somebody did to it since Redis was last looked at.
            steps = (lag, fence, Step(("REPLICAOF", "NO", "ONE"), Weight.KEY))
        case Follow():
            follow = Step(("REPLICAOF", command.primary.host, command.primary.port), Weight.KEY)
            steps = (lag, fence, follow, Step(("CLIENT", "UNPAUSE")), *pins)
        case PauseWrites():
            steps = (Step(("CLIENT", "PAUSE", max(1, round(command.for_s * 1000)), "WRITE"), Weight.KEY),)
        case Unpause():
            steps = (Step(("CLIENT", "UNPAUSE"), Weight.KEY),)
        case KickClients():
            steps = tuple(Step(request, Weight.KEY) for request in CLIENTS)
    return (*steps, Step(INFO))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a role command came to. ``error`` is empty if it was executed and ``info`` was read behind it."""

    info: RedisInfo | None
    error: str = ""
    unknown: bool = False


def judge(steps: Sequence[Step], replies: Sequence[Reply]) -> Outcome:
    """Weigh the replies of a pipeline."""
    failed = [(step, reply) for step, reply in zip(steps, replies, strict=True) if isinstance(reply, ErrorReply)]
    key = next((pair for pair in failed if pair[0].weight is Weight.KEY), None)
    must = next((pair for pair in failed if pair[0].weight is Weight.MUST), None)
    if key is not None:
        return Outcome(None, f"{_words(key[0])}: {key[1]}")
    if must is not None:
        return Outcome(None, f"{_words(must[0])}: {must[1]} (the rest of it was executed)", unknown=True)
    return Outcome(read_info(replies[-1]))


def _words(step: Step) -> str:
    return " ".join(str(part) for part in step.request)


def read_info(reply: Reply) -> RedisInfo:
    """The typed INFO. Raises ValueError if it is not one."""
    if not isinstance(reply, bytes):
        raise ValueError(f"INFO: {reply}")  # noqa: TRY004 - what is wrong is what Redis said
    return parse_info(info_fields(reply))


def gone(command: RoleCommand | Probe | ScriptKill | SaveTail, reason: str) -> Event:
    """The answer to a command that there is no process for: nothing was sent."""
    if isinstance(command, SaveTail):
        return TailSaved(command.incarnation, command.request, error=reason)
    if isinstance(command, Probe):
        return ProbeFailed(command.incarnation, command.request, ProbeError.REFUSED, reason)
    return RoleFailed(command.incarnation, command.request, reason, unknown=False)


def answer(command: RoleCommand, outcome: Outcome) -> Event:
    """The event that an outcome amounts to."""
    if outcome.error:
        return RoleFailed(command.incarnation, command.request, outcome.error, outcome.unknown)
    return RoleDone(command.incarnation, command.request, outcome.info)
