"""Redis's own account of its data, and what it is worth: INFO, lineage, positions.

The wire's words ``master`` and ``slave`` are translated here and nowhere else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True, order=True)
class Address:
    """Where a server listens. IPv6 hosts are written without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


NOWHERE = Address("127.0.0.1", 1)
"""A port on which nothing listens: a replica of it is frozen."""

LIVELY_LAG_S = 10
"""As min-replicas-max-lag is set: a replica acknowledges once a second."""


@dataclass(frozen=True, slots=True)
class ReplicaLink:
    """A replica as its primary sees it: one connection, which is not the same as one member."""

    address: Address
    online: bool
    offset_bytes: int
    lag_s: int = 0
    """Since its last acknowledgement, in whole seconds."""

    @property
    def lively(self) -> bool:
        """It acknowledges, as Redis counts it for min-replicas-to-write: a dead link can look online for long."""
        return self.online and self.lag_s <= LIVELY_LAG_S


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisInfo:
    """The part of INFO that decisions rest on. Offsets count bytes of the replication stream."""

    run_id: str
    version: str
    """Like ``7.0.15``, or ``valkey 8.0.1``."""
    is_primary: bool
    replid: str
    replid2: str = ""
    """The replid before this one; empty if there was none."""
    second_offset_bytes: int = -1
    """``replid2`` is valid for offsets below this (Redis: second_repl_offset)."""
    offset_bytes: int
    """master_repl_offset."""
    replica_offset_bytes: int | None = None
    """slave_repl_offset; None on a primary."""
    primary: Address | None = None
    """Whose replica it is; None on a primary."""
    link_up: bool = False
    syncing: bool = False
    """A full resync is under way."""
    loading: bool = False
    keys: int = 0
    backlog: bool = False
    replicas: tuple[ReplicaLink, ...] = ()

    @property
    def empty(self) -> bool:
        """No keys at all, and not merely because they are still being loaded."""
        return self.keys == 0 and not self.loading


_DATABASE = re.compile(r"db[0-9]+")
_REPLICA = re.compile(r"slave([0-9]+)")
_ID_DIGITS = 40
_NO_ID = "0" * _ID_DIGITS


def parse_info(fields: Mapping[str, object]) -> RedisInfo:
    """A typed view of INFO as redis-py returns it (all default sections).

    Args:
        fields: the dictionary of ``redis.Redis.info()``, of Redis 6.2 or later or of Valkey.

    Raises:
        ValueError: a field without which nothing can be decided is missing or makes no sense. The message names it.
    """
    role = str(_needed(fields, "role"))
    if role not in ("master", "slave"):
        raise ValueError(f"INFO: role is {role!r}, neither master nor slave")
    is_primary = role == "master"
    replid2 = _identifier(fields.get("master_replid2", ""))
    valkey = fields.get("valkey_version")
    return RedisInfo(
        run_id=_identifier(_needed(fields, "run_id")),
        version=str(fields.get("redis_version", "")) if valkey is None else f"valkey {valkey}",
        is_primary=is_primary,
        replid=_identifier(_needed(fields, "master_replid")),
        replid2="" if replid2 == _NO_ID else replid2,
        second_offset_bytes=_integer(fields, "second_repl_offset", -1),
        offset_bytes=_integer(fields, "master_repl_offset", None),
        replica_offset_bytes=None if is_primary else _integer(fields, "slave_repl_offset", -1),
        primary=None if is_primary else _primary_address(fields),
        link_up=not is_primary and fields.get("master_link_status") == "up",
        syncing=not is_primary and _integer(fields, "master_sync_in_progress", 0) != 0,
        loading=_integer(fields, "loading", 0) != 0 or _integer(fields, "async_loading", 0) != 0,
        keys=_count_keys(fields),
        backlog=_integer(fields, "repl_backlog_active", 0) != 0,
        replicas=_replica_links(fields),
    )


def _needed(fields: Mapping[str, object], name: str) -> object:
    value = fields.get(name)
    if value is None or value == "":
        raise ValueError(f"INFO: {name} is missing (it has {len(fields)} fields)")
    return value


def _identifier(value: object) -> str:
    """A replid or run id. redis-py makes an int of one that has only digits, which loses its leading zeros."""
    return f"{value:0{_ID_DIGITS}d}" if isinstance(value, int) else str(value)


def _integer(fields: Mapping[str, object], name: str, default: int | None) -> int:
    """A whole number; without a default it must be there."""
    value = _needed(fields, name) if default is None else fields.get(name, default)
    try:
        return int(str(value))
    except ValueError:
        raise ValueError(f"INFO: {name} is {value!r}, not a whole number") from None


def _primary_address(fields: Mapping[str, object]) -> Address | None:
    host = fields.get("master_host")
    return None if host is None else Address(str(host), _integer(fields, "master_port", 0))


def _count_keys(fields: Mapping[str, object]) -> int:
    """Keys of all databases together."""
    databases = (value for name, value in fields.items() if _DATABASE.fullmatch(name))
    return sum(_integer(value, "keys", 0) for value in databases if isinstance(value, Mapping))


def _replica_links(fields: Mapping[str, object]) -> tuple[ReplicaLink, ...]:
    numbered: list[tuple[int, ReplicaLink]] = []
    for name, value in fields.items():
        match = _REPLICA.fullmatch(name)
        if match is None or not isinstance(value, Mapping):
            continue
        link = ReplicaLink(
            address=Address(str(value.get("ip", "")), _integer(value, "port", 0)),
            online=value.get("state") == "online",
            offset_bytes=_integer(value, "offset", 0),
            lag_s=_integer(value, "lag", 0),
        )
        numbered.append((int(match[1]), link))
    return tuple(link for _, link in sorted(numbered, key=lambda pair: pair[0]))


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """How far a member's data reaches. Ordered: epoch first, then offset within that epoch."""

    epoch: int
    offset_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """One leadership. ``start`` is the claimant's position at the claim: its parent epoch, and the offset."""

    epoch: int
    member: str
    guid: str
    start: Position
    replid: str = ""
    """Known once promoted; recorded by ``serve`` at the latest."""
    served: bool = False
    recorded: Position | None = None
    """The claimant's position where ``start`` cannot tell it: after a restart from an AOF Redis counts from 0 again, so
    ``start`` has the offset as Redis counts now, and this the position from the claimant's state file."""
    origins: tuple[str, ...] = ()
    """Replids of the data set that the cluster was started with: older than every epoch, so they stand for epoch 0."""
    handover: bool = False
    """Its predecessor designated it at its final position: every acknowledged write is in it."""
    at: float = 0.0
    """Wall clock, for people only."""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ledger:
    """The znode ``epoch``: the current epoch, and the recent leaderships, oldest first."""

    epoch: int = 0
    entries: tuple[LedgerEntry, ...] = ()

    def entry(self, epoch: int) -> LedgerEntry | None:
        """The leadership with this number, or None if it was trimmed or never was."""
        return next((entry for entry in reversed(self.entries) if entry.epoch == epoch), None)

    def latest_served(self) -> LedgerEntry | None:
        """The newest leadership in which anything can have been written."""
        return next((entry for entry in reversed(self.entries) if entry.served), None)


def resolve(
    ledger: Ledger,
    promotions: Mapping[str, int],
    *,
    replid: str,
    replid2: str,
    second_offset_bytes: int,
    offset_bytes: int,
) -> Position | None:
    """The position that a replid and an offset stand for, or None if the lineage is unknown.

    A replid counts for its epoch only from the offset on at which that epoch began: a replica reports the new replid at
    ``+CONTINUE``, before it has the data. Below that, and where the epoch never served, its parent epoch is tried.

    Args:
        ledger: which replid belongs to which epoch, and where each epoch began.
        promotions: replids that members made by promotion, and in which epoch, as ballots testify. They matter for
            epochs that never served, whose replid the ledger may not know.
        replid: Redis's master_replid.
        replid2: Redis's master_replid2, or empty.
        second_offset_bytes: ``replid2`` is valid for offsets below this.
        offset_bytes: Redis's master_repl_offset.
    """
    epoch = _epoch_of(ledger, promotions, replid)
    if epoch is None:
        # Whatever lies behind the branch was never served, or was written outside the cluster's rule: the data are
        # evidence only up to there.
        epoch = _epoch_of(ledger, promotions, replid2)
        if epoch is None:
            return None
        replid, offset_bytes = replid2, min(offset_bytes, second_offset_bytes - 1)
    if offset_bytes < 0:
        return None
    return _walk(ledger, epoch, replid, offset_bytes)


def _epoch_of(ledger: Ledger, promotions: Mapping[str, int], replid: str) -> int | None:
    if not replid or replid == _NO_ID:
        return None
    for entry in reversed(ledger.entries):
        if entry.replid == replid:
            return entry.epoch
    epoch = promotions.get(replid)
    if epoch is not None and ledger.entry(epoch) is not None:
        return epoch
    return 0 if any(replid in entry.origins for entry in ledger.entries) else None


def _walk(ledger: Ledger, epoch: int, replid: str, offset_bytes: int) -> Position | None:
    """From ``epoch`` towards its ancestors, to the first one that served and that the offset reaches."""
    while epoch > 0:
        entry = ledger.entry(epoch)
        if entry is None:
            return None
        # Only the data under the replid that served can have any of that epoch's writes. A promotion may make two
        # replids: Redis takes another one when its first replica attaches to it without a backlog.
        served = entry.served and replid in ("", entry.replid)
        reached = offset_bytes >= entry.start.offset_bytes
        if served and reached:
            return Position(epoch, offset_bytes)
        if reached and entry.recorded is not None:
            return entry.recorded
        if not served:
            # Nothing was written in it, so what goes beyond its start are PINGs.
            offset_bytes = min(offset_bytes, entry.start.offset_bytes)
        if entry.start.epoch >= epoch:
            return None  # Not a ledger that we wrote; do not walk in circles.
        epoch, replid = entry.start.epoch, ""
    return Position(0, offset_bytes)


def append_entry(ledger: Ledger, entry: LedgerEntry, keep: int = 64) -> Ledger:
    """The ledger after a claim.

    At most ``keep`` entries remain. The newest half of that many *served* ones always stay: an endless row of claims
    that never serve must not push out the epoch that everybody's data belong to.

    Raises:
        ValueError: the entry is not that of the next epoch, or ``keep`` is less than 2.
    """
    if entry.epoch != ledger.epoch + 1:
        raise ValueError(f"ledger: epoch {entry.epoch} cannot follow epoch {ledger.epoch}")
    if keep < 2:
        raise ValueError(f"ledger: cannot keep {keep} entries, 2 is the least")
    entries = [*ledger.entries, entry]
    sheltered = [old.epoch for old in entries if old.served][-(keep // 2) :]
    while len(entries) > keep:
        entries.remove(next(old for old in entries if old.epoch not in sheltered))
    return Ledger(epoch=entry.epoch, entries=tuple(entries))


def with_served(ledger: Ledger, epoch: int, replid: str) -> Ledger:
    """The ledger after ``serve``: the current epoch serves under ``replid``.

    Raises:
        ValueError: it is not the current epoch, or there is no replid.
    """
    if epoch != ledger.epoch or ledger.entry(epoch) is None:
        raise ValueError(f"ledger: epoch {epoch} cannot serve, the current one is {ledger.epoch}")
    if not replid or replid == _NO_ID:
        raise ValueError(f"ledger: epoch {epoch} cannot serve without a replid")
    return _edited(ledger, {epoch: replid}, served=True)


def with_promotions(ledger: Ledger, promotions: Mapping[str, int]) -> Ledger:
    """The ledger with the replids of epochs that were promoted but never served, as far as it lacked them."""
    lacking = {entry.epoch for entry in ledger.entries if not entry.served and not entry.replid}
    return _edited(ledger, {epoch: replid for replid, epoch in promotions.items() if epoch in lacking}, served=False)


def _edited(ledger: Ledger, replids: Mapping[int, str], *, served: bool) -> Ledger:
    if not replids:
        return ledger
    entries = (
        replace(entry, replid=replids[entry.epoch], served=served) if entry.epoch in replids else entry
        for entry in ledger.entries
    )
    return Ledger(epoch=ledger.epoch, entries=tuple(entries))
