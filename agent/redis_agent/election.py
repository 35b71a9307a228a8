"""Ballots in, who may claim and who goes first out.

Why it is safe: a write confirmed by ``WAIT w`` is on ``w + 1`` members, and any ``R = N - w`` voters include one of
them. Every voter froze before it cast its ballot, so none of them acknowledges anything to the old primary any more. A
member that ``R`` intact ballots are not ahead of therefore has every confirmed write.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from redis_agent.ballots import Ballot, Mode, Rules, all_promotions, never_served, position, quorum
from redis_agent.electability import Round, electable, gather, names_of, origins
from redis_agent.replication import Ledger, LedgerEntry, Position, append_entry, with_promotions

__all__ = [
    "Ballot",
    "Mode",
    "Outcome",
    "Rules",
    "Verdict",
    "all_promotions",
    "claimed",
    "decide",
    "position",
    "quorum",
    "succeeded",
]


class Outcome(Enum):
    """What a member shall do now. BLOCKED: nobody can be elected until something changes."""

    CLAIM = "claim"
    WAIT = "wait"
    BLOCKED = "blocked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """``until``: when to decide again at the latest if nothing changes (WAIT only). ``reason`` is for people."""

    outcome: Outcome
    reason: str
    until: float | None = None
    start: Position | None = None
    """CLAIM: where the new epoch starts, see LedgerEntry. ``claimed`` makes the entry."""
    recorded: Position | None = None
    """CLAIM: the claimant's position, if it is only known from its state file."""
    ranking: tuple[str, ...] = ()
    """The electable members, best first."""


def decide(
    *,
    me: str,
    round_: int,
    ballots: Mapping[str, Ballot],
    live: frozenset[str],
    standing_owner: str,
    last_offset_bytes: int | None,
    ledger: Ledger,
    rules: Rules,
    started_at: float,
    now: float,
    complete_since: float | None = None,
) -> Verdict:
    """May ``me`` claim now?

    Args:
        me: the member that asks.
        round_: the round that it has promised: the ledger's epoch + 1.
        ballots: what was read, by member. Those of other rounds, and of members that do not vote, do not count.
        live: members whose presence stands.
        standing_owner: the member whose ``leader`` znode vanished while its presence of the same session stands, or
            empty. Nobody claims before that member has fenced and cast its ballot.
        last_offset_bytes: offset of the last serving leader, if known; only for ``async`` mode.
        ledger: as read together with the ballots.
        rules: voters, mode and delays.
        started_at: when the own ballot was acknowledged.
        now: the present.
        complete_since: when the round first looked complete (every live voter has cast its ballot), if the caller
            remembers; otherwise ``started_at`` stands for it. It keeps the second best from claiming at once, with the
            best, when the last ballot comes late. Either is safe: claims are conditional.
    """
    if round_ != ledger.epoch + 1:
        return Verdict(outcome=Outcome.WAIT, reason=f"round {round_} is over, the epoch is {ledger.epoch}")
    live |= {me}
    case = gather(
        round_=round_,
        ballots=ballots,
        live=live,
        last_offset_bytes=last_offset_bytes,
        ledger=ledger,
        rules=rules,
    )
    able, why_not = electable(case)
    if able and not able & live:
        why_not = f"{names_of(able)} could lead, but its agent is gone"
    ranking = tuple(sorted(able & live, key=case.rank))
    hindrance = _hindrance(me, case)
    cast = {name for name, ballot in ballots.items() if ballot.round == round_}
    if standing_owner and standing_owner not in cast:
        reason = f"{standing_owner} led until now and is still there: it must fence and cast its ballot first"
        return Verdict(outcome=Outcome.WAIT, reason=reason, ranking=ranking)
    if not ranking:
        if case.missing:
            reason = f"waiting for the ballot of {names_of(case.missing)}"
            return Verdict(outcome=Outcome.WAIT, reason=reason)
        return Verdict(outcome=Outcome.BLOCKED, reason=why_not)
    if hindrance:
        return Verdict(outcome=Outcome.WAIT, reason=f"{hindrance}; {ranking[0]} may claim", ranking=ranking)
    if me not in ranking:
        return Verdict(outcome=Outcome.WAIT, reason=f"{ranking[0]} may claim, this member may not", ranking=ranking)
    if case.missing:
        base = started_at + rules.grace_s
    else:
        base = started_at if complete_since is None else max(started_at, complete_since)
    until = base + ranking.index(me) * rules.stagger_s
    if now < until:
        first = f"waiting for the ballot of {names_of(case.missing)}" if case.missing else f"{ranking[0]} goes first"
        return Verdict(outcome=Outcome.WAIT, reason=first, until=until, ranking=ranking)
    return _claim(me, case, ranking)


def claimed(
    *, me: str, verdict: Verdict, ballots: Mapping[str, Ballot], ledger: Ledger, at: float = 0.0, reason: str = ""
) -> Ledger:
    """The ledger that a claim writes: the new epoch, and the promotions that the round's ballots testify to.

    Args:
        me: the claimant.
        verdict: its verdict, CLAIM.
        ballots: those that the verdict rests on.
        ledger: the one that the verdict rests on.
        at: wall clock, for people.
        reason: why there is an election, for people.

    Raises:
        ValueError: the verdict is not CLAIM.
    """
    if verdict.outcome is not Outcome.CLAIM or verdict.start is None:
        raise ValueError(f"a verdict of {verdict.outcome.value} claims nothing")
    own = ballots[me]
    current = {name: ballot for name, ballot in ballots.items() if ballot.round == own.round}
    promotions = all_promotions(current)
    entry = LedgerEntry(
        epoch=ledger.epoch + 1,
        member=me,
        guid=own.guid,
        start=verdict.start,
        recorded=verdict.recorded,
        origins=origins(own, current.values(), ledger, promotions) if never_served(ledger) else (),
        at=at,
        reason=reason,
    )
    return append_entry(with_promotions(ledger, promotions), entry)


def succeeded(*, me: str, guid: str, final: Position, ledger: Ledger, at: float = 0.0, reason: str = "") -> Ledger:
    """The ledger that a handover writes: the next epoch starts at the final position of the one before.

    Args:
        me: the member that takes the epoch.
        guid: of its session.
        final: its position, which is at least the final one of the epoch that it continues.
        ledger: the one that the handover began under.
        at: wall clock, for people.
        reason: why, for people.

    Raises:
        ValueError: the position is not in the epoch that is handed over.
    """
    if final.epoch != ledger.epoch:
        raise ValueError(f"epoch {ledger.epoch} cannot be handed over at a position of epoch {final.epoch}")
    entry = LedgerEntry(epoch=ledger.epoch + 1, member=me, guid=guid, start=final, handover=True, at=at, reason=reason)
    return append_entry(ledger, entry)


def _hindrance(me: str, case: Round) -> str:
    """Why ``me`` itself may not claim, whatever the ballots say; empty if nothing speaks against it."""
    if me not in case.rules.voters:
        return "this member is not a voter"
    if me not in case.ballots:
        return "this member has not cast its ballot"
    if not case.ballots[me].up:
        return "this member's Redis is down"
    if case.ballots[me].abstains:
        return "this member abstains"
    return ""


def _claim(me: str, case: Round, ranking: tuple[str, ...]) -> Verdict:
    where, offset_bytes = case.position[me], max(case.ballots[me].offset_bytes, 0)
    recorded = None
    if where is None:
        # Nothing of any earlier epoch is in an empty data set, so the new epoch descends from none of them.
        start = Position(0, offset_bytes)
    elif case.exact[me] is None or where.offset_bytes > offset_bytes:
        # Redis counts from 0 again since it was restarted from an AOF, in this life or in an earlier claim's. Offsets
        # of the new epoch are compared with its start, so that must be one that Redis counts.
        start, recorded = Position(where.epoch, offset_bytes), where
    else:
        start = where
    reason = f"the best of {names_of(ranking)}" if me == ranking[0] else f"{ranking[0]} did not claim in time"
    return Verdict(
        outcome=Outcome.CLAIM,
        reason=reason,
        start=start,
        recorded=recorded,
        ranking=ranking,
    )
