"""Paths and payloads of the znodes, with a schema version. Unknown fields are ignored on reading.

Payloads are JSON objects. One of a newer schema version is read as far as this version understands it, so that two
versions of the agent can run in one cluster.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, TypeVar

import msgspec

from redis_agent.ballots import Ballot, Mode
from redis_agent.replication import Address, Ledger

SCHEMA = 1
_MAX_DIGITS = 18
"""No round is a larger number; Python would even refuse to read one of thousands of digits."""


class Corrupt(ValueError):
    """A payload that cannot be read: the message names the kind of znode and what is wrong with it."""


class Paths:
    """Where things are: below ``/<root>/<cluster>``. Slashes around ``root`` do not matter; it may have many levels."""

    def __init__(self, root: str, cluster: str) -> None:
        self.root = root
        self.cluster = cluster
        self.base = "/" + "/".join(part for part in f"{root}/{cluster}".split("/") if part)
        self.config = f"{self.base}/config"
        self.epoch = f"{self.base}/epoch"
        self.leader = f"{self.base}/leader"
        self.members = f"{self.base}/members"
        self.presences = f"{self.base}/presence"
        self.ballots = f"{self.base}/ballots"
        self.orders = f"{self.base}/orders"

    def order(self, name: str) -> str:
        return f"{self.orders}/{name}"

    def member(self, name: str) -> str:
        return f"{self.members}/{name}"

    def presence(self, name: str) -> str:
        return f"{self.presences}/{name}"

    def ballot(self, round_: int, name: str) -> str:
        return f"{self.ballots}/{round_}-{name}"


def split_ballot(znode_name: str) -> tuple[int, str] | None:
    """Round and member of a ballot, from the name of its znode; None if it is not the name of a ballot."""
    round_, dash, member = znode_name.partition("-")
    if not dash or not member or not round_.isascii() or not round_.isdigit() or len(round_) > _MAX_DIGITS:
        return None
    return int(round_), member


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterConfig:
    """The znode ``config``. ``voters`` is empty until the cluster is bootstrapped."""

    v: int = SCHEMA
    cluster_id: str = ""
    mode: Mode = Mode.QUORUM
    voters: tuple[str, ...] = ()
    max_lag_bytes: int = 1 << 20
    keep: str = ""
    """Whose data a new cluster starts with."""
    discard: str = ""
    """Run id of a redis-server whose data, of unknown lineage, an operator gave up: they may be replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """``members/<name>``: the registration."""

    v: int = SCHEMA
    name: str
    redis: Address
    api: Address | None = None
    voter: bool = True
    priority: int = 100
    tags: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Presence:
    """``presence/<name>``: the live agent's account of itself, for people and for ``status``."""

    v: int = SCHEMA
    name: str
    guid: str
    host: str = ""
    pid: int = 0
    agent_version: str = ""
    state: str = "connecting"
    epoch: int = 0
    round: int = 0
    redis: Address
    redis_up: bool = False
    redis_version: str = ""
    run_id: str = ""
    role: str = ""
    """primary or replica, as Redis says."""
    replid: str = ""
    offset_bytes: int = -1
    primary: Address | None = None
    link_up: bool = False
    intact: bool = False
    keys: int = 0
    restarts: int = 0
    reason: str = ""
    """Why it is not serving or following, in one sentence."""
    sick: str = ""
    """Why its Redis would refuse writes also as the leader's (disk full), in one line."""
    at: float = 0.0
    """Wall clock of the writer, for people only."""


class LeaderPhase:
    """How far a leadership is. Clients connect on ``serving``."""

    TAKING_OVER = "taking-over"
    SERVING = "serving"
    HANDING_OVER = "handing-over"


@dataclass(frozen=True, slots=True, kw_only=True)
class Leader:
    """``leader``: who leads, and from ``serving`` on what clients need."""

    v: int = SCHEMA
    name: str
    address: Address
    epoch: int
    phase: str
    guid: str
    replid: str = ""
    wait: int = 0
    voters: tuple[str, ...] = ()
    at: float = 0.0
    by_handover: bool = False
    """Its predecessor designated it: nothing was lost, and there was no round."""
    successor: str = ""
    """Of phase handing-over: the member that is to take over, once it has all of ``replid`` up to ``offset_bytes``."""
    offset_bytes: int = -1


class OrderState:
    """What became of an order. The last three are final."""

    PENDING = "pending"
    ACCEPTED = "accepted"
    DONE = "done"
    REFUSED = "refused"
    FAILED = "failed"

    FINAL = frozenset({DONE, REFUSED, FAILED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """``orders/<name>``: what an operator asks of the leader, and what became of it."""

    v: int = SCHEMA
    kind: str
    """``switchover``."""
    to: str = ""
    """The member that is to lead; empty: the best."""
    by: str = ""
    """Who asks, for people."""
    at: float = 0.0
    """Wall clock of whoever asks."""
    expires_s: float = 60.0
    """Not to be begun later than this after ``at``."""
    state: str = OrderState.PENDING
    epoch: int = 0
    """Of the leadership that it was given to, if that matters; once it is accepted, of the one that accepted it."""
    detail: str = ""
    """The outcome in one sentence."""


def encode(payload: ClusterConfig | Member | Presence | Leader | Ledger | Ballot | Order) -> bytes:
    """JSON; a Ledger and a Ballot get their schema version ``v`` too."""
    if not isinstance(payload, Ledger | Ballot):
        return msgspec.json.encode(payload)
    return msgspec.json.encode({"v": SCHEMA, **_fields(payload)})


def decode_config(data: bytes) -> ClusterConfig:
    """The shared settings; those of an empty znode are the defaults.

    Raises:
        Corrupt: it is not a ``config``.
    """
    return _decode("config", data, ClusterConfig) if data else ClusterConfig()


def decode_member(data: bytes) -> Member:
    """A registration.

    Raises:
        Corrupt: it is not one.
    """
    return _decode("member", data, Member)


def decode_presence(data: bytes) -> Presence:
    """An agent's account of itself.

    Raises:
        Corrupt: it is not one.
    """
    return _decode("presence", data, Presence)


def decode_leader(data: bytes) -> Leader:
    """The leader.

    Raises:
        Corrupt: it is not one.
    """
    return _decode("leader", data, Leader)


def decode_order(data: bytes) -> Order:
    """An operator's request.

    Raises:
        Corrupt: it is not one.
    """
    return _decode("order", data, Order)


def decode_ledger(data: bytes) -> Ledger:
    """The ledger; an empty znode is that of a new cluster.

    Raises:
        Corrupt: it is not a ledger.
    """
    return _decode("epoch", data, Ledger) if data else Ledger()


def decode_ballot(data: bytes) -> Ballot:
    """A ballot.

    Raises:
        Corrupt: it is not one.
    """
    return _decode("ballot", data, Ballot)


def merge_config(data: bytes, changes: ClusterConfig) -> bytes:
    """The payload of ``config`` after ``changes``, with the fields of ``data`` that this version does not know.

    Raises:
        Corrupt: ``data`` is not a ``config``.
    """
    decode_config(data)
    try:
        existing = msgspec.json.decode(data, type=dict[str, object]) if data else {}
    except (msgspec.DecodeError, RecursionError) as error:
        raise Corrupt(f"config: {error}") from error
    merged = {**existing, **_fields(changes)}
    # A newer agent's fields are still there, so it still is a newer payload.
    merged["v"] = max(int(str(existing.get("v", SCHEMA))), changes.v)
    return msgspec.json.encode(merged)


_Payload = TypeVar("_Payload")


def _fields(payload: object) -> dict[str, object]:
    fields = msgspec.to_builtins(payload)
    assert isinstance(fields, dict)
    return fields


def _decode(kind: str, data: bytes, payload: type[_Payload]) -> _Payload:
    if not data:
        raise Corrupt(f"{kind}: the znode is empty")
    try:
        found: _Payload = _parsed(data, payload)  # type: ignore[arg-type]  # a class can be hashed
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"{kind}: {error}") from error
    return found


@lru_cache(maxsize=256)
def _parsed(data: bytes, payload: type[object]) -> Any:
    """Most of a tree that is read again is as it was; and a payload is never changed, so it can be had twice."""
    return msgspec.json.decode(data, type=payload)
