"""What the members of a cluster testify in an election, and how far that proves their data to reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from redis_agent.replication import Ledger, Position, resolve


class Mode(Enum):
    """``quorum``: what WAIT confirmed is never lost. ``async``: the best of those that answer leads, within a limit."""

    QUORUM = "quorum"
    ASYNC = "async"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ballot:
    """What a member testifies for a round, after it has frozen."""

    member: str
    round: int
    guid: str
    """Of the session that cast it."""
    up: bool
    """False: Redis is dead; nobody need wait for it, and nothing is known of its data."""
    intact: bool = False
    reloaded: bool = False
    """Its data were loaded from disk when the process started, and nothing was replicated since: replid and offset are
    as they were then."""
    abstains: bool = False
    """Evidence only: the member is leaving, or must never lead."""
    priority: int = 100
    """Higher is preferred."""
    run_id: str = ""
    keys: int = 0
    replid: str = ""
    replid2: str = ""
    second_offset_bytes: int = -1
    offset_bytes: int = -1
    recorded: Position | None = None
    """From the member's own state file: counts only for a loaded data set whose replid says nothing, and only while
    nobody shows data that its process did not load from disk."""
    promotions: tuple[tuple[str, int], ...] = ()
    """Replids that this member made by promotion, and the epoch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """What of the settings matters to an election."""

    mode: Mode
    voters: frozenset[str]
    grace_s: float
    stagger_s: float
    max_lag_bytes: int
    keep: str = ""
    """The member whose data an operator chose, for unrelated data sets at bootstrap."""


def quorum(voters: int) -> tuple[int, int]:
    """(w, R): acknowledgements that confirm a write, and intact ballots that elect.

    Any ``w + 1`` holders of a write and any ``R`` voters share a member.
    """
    w = voters // 2
    return w, voters - w


def all_promotions(ballots: Mapping[str, Ballot]) -> dict[str, int]:
    """The promotions that any ballot of the round testifies to."""
    return {replid: epoch for name in sorted(ballots) for replid, epoch in ballots[name].promotions}


def position(ballot: Ballot, ledger: Ledger, promotions: Mapping[str, int]) -> Position | None:
    """How far a member's data reaches, as far as its ballot proves or at least tells it; None if it does not.

    An empty Redis has no position, whatever any file says, unless its process was not interrupted since it was in sync:
    then its data set is empty because it was emptied.
    """
    exact = exact_position(ballot, ledger, promotions)
    if exact is not None or not ballot.up or ballot.keys == 0:
        return exact
    return ballot.recorded


def exact_position(ballot: Ballot, ledger: Ledger, promotions: Mapping[str, int]) -> Position | None:
    """The position by Redis's own word, which says exactly which writes are there.

    A state file cannot say that: an AOF may lack the end that the file still counts.
    """
    if not ballot.up or (ballot.keys == 0 and not ballot.intact):
        return None
    found = by_lineage(ballot, ledger, promotions)
    if found is None and ballot.keys > 0 and never_served(ledger):
        return Position(0, max(ballot.offset_bytes, 0))
    return found


def by_lineage(ballot: Ballot, ledger: Ledger, promotions: Mapping[str, int]) -> Position | None:
    return resolve(
        ledger,
        promotions,
        replid=ballot.replid,
        replid2=ballot.replid2,
        second_offset_bytes=ballot.second_offset_bytes,
        offset_bytes=ballot.offset_bytes,
    )


def never_served(ledger: Ledger) -> bool:
    """A new cluster: no epoch has served, so there is no lineage to belong to. The first claims may have failed."""
    return ledger.latest_served() is None
