"""Who may lead: the ballots of a round against the rules."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from redis_agent.ballots import (
    Ballot,
    Mode,
    Rules,
    all_promotions,
    by_lineage,
    exact_position,
    never_served,
    position,
    quorum,
)
from redis_agent.replication import Ledger, Position

KEEP_COMMAND = "redis-agent keep MEMBER"
"""How an operator chooses between unrelated data sets."""


@dataclass(frozen=True, slots=True)
class Round:
    """The ballots of a round and what they are worth."""

    ballots: Mapping[str, Ballot]
    """Of voters."""
    bystanders: Mapping[str, Ballot]
    """Of everybody else."""
    promotions: Mapping[str, int]
    exact: Mapping[str, Position | None]
    """By Redis's own word."""
    position: Mapping[str, Position | None]
    """What ranks: with the state files' word where that counts."""
    strangers: frozenset[str]
    """Voters whose data are of unknown lineage."""
    live: frozenset[str]
    last_offset_bytes: int | None
    ledger: Ledger
    rules: Rules

    @property
    def candidates(self) -> list[str]:
        return [name for name, ballot in self.ballots.items() if ballot.up and not ballot.abstains]

    @property
    def missing(self) -> list[str]:
        """Live voters that have not cast a ballot yet."""
        return sorted((self.rules.voters & self.live) - self.ballots.keys())

    def rank(self, name: str) -> tuple[int, int, bool, int, str]:
        """Sort key, best first: position, then priority, then name. At the same position Redis's word beats a file."""
        where = self.position[name] or Position(-1, -1)
        return -where.epoch, -where.offset_bytes, self.exact[name] is None, -self.ballots[name].priority, name


def gather(
    *,
    round_: int,
    ballots: Mapping[str, Ballot],
    live: frozenset[str],
    last_offset_bytes: int | None,
    ledger: Ledger,
    rules: Rules,
) -> Round:
    """The ballots of ``round_`` with their positions; the arguments are those of ``election.decide``."""
    current = {name: ballot for name, ballot in sorted(ballots.items()) if ballot.round == round_}
    promotions = all_promotions(current)
    voters = {name: ballot for name, ballot in current.items() if name in rules.voters}
    exact = {name: exact_position(ballot, ledger, promotions) for name, ballot in current.items()}
    told = {name: exact[name] or position(ballot, ledger, promotions) for name, ballot in current.items()}
    # An AOF may lack the end that the state file beside it still counts, so a state file must not win against the
    # memory of a process that was not interrupted: it counts only after the end of them all. (Whoever replicates
    # acknowledges, and so confirms writes, a moment before it is known to be intact.)
    remembered = any(exact[name] is not None and not ballot.reloaded for name, ballot in voters.items())
    return Round(
        ballots=voters,
        bystanders={name: ballot for name, ballot in current.items() if name not in rules.voters},
        promotions=promotions,
        exact=exact,
        position=exact if remembered else told,
        strangers=frozenset(name for name, ballot in voters.items() if ballot.keys > 0 and told[name] is None),
        live=live,
        last_offset_bytes=last_offset_bytes,
        ledger=ledger,
        rules=rules,
    )


# --- who is electable ---------------------------------------------------------------------------------------------
# Each rule returns the electable members, and if there are none, why: one sentence for people.


def electable(case: Round) -> tuple[set[str], str]:
    """The members that may lead, and if there are none, why."""
    if not case.rules.voters:
        return set(), "the cluster has no voters yet"
    if never_served(case.ledger):
        return _electable_at_bootstrap(case)
    if case.rules.mode is Mode.QUORUM:
        proved, why_not = _electable_by_quorum(case)
    else:
        proved, why_not = _electable_async(case)
    everyone, why_not_everyone = _electable_of_everyone(case)
    return proved | everyone, "; ".join(filter(None, (why_not, why_not_everyone)))


def _ahead(a: Position | None, b: Position | None) -> bool:
    """Whether ``a`` may have data that ``b`` lacks. No position at all ranks below every position."""
    return a is not None and (b is None or a > b)


def _outdoes(case: Round, a: str, b: str) -> bool:
    """Whether member ``a`` may have data that ``b`` lacks, going by state files, too.

    What Redis itself says is there; of the same position in a state file the AOF may lack the end.
    """
    ours, theirs = case.position[a], case.position[b]
    told_alike = ours is not None and ours == theirs
    return _ahead(ours, theirs) or (told_alike and case.exact[a] is not None and case.exact[b] is None)


def _electable_by_quorum(case: Round) -> tuple[set[str], str]:
    """Members that R intact ballots are not ahead of."""
    needed = quorum(len(case.rules.voters))[1]
    intact = [name for name, ballot in case.ballots.items() if ballot.intact and case.exact[name] is not None]
    electable = set()
    for name in case.candidates:
        own = case.exact[name]
        behind = [other for other in intact if not _ahead(case.exact[other], own)]
        if own is not None and len(behind) >= needed:
            electable.add(name)
    if electable:
        return electable, ""
    if len(intact) >= needed:
        return set(), f"enough voters show intact data ({names_of(intact)}), but the furthest of them abstains"
    counts = f"{needed} of {len(case.rules.voters)} voters must show intact data, {len(intact)} did"
    counts += f" ({names_of(intact)})" if intact else ""
    down = [name for name, ballot in case.ballots.items() if not ballot.up]
    groups = {
        "not intact": sorted(case.ballots.keys() - set(intact) - set(down)),
        "Redis down": down,
        "no ballot": sorted(case.rules.voters - case.ballots.keys()),
    }
    return set(), "; ".join([counts, *(f"{what}: {names_of(names)}" for what, names in groups.items() if names)])


def _electable_async(case: Round) -> tuple[set[str], str]:
    """The furthest of those that answered and are still there, if it is near enough to the last leader."""
    answered = [name for name in case.candidates if case.position[name] is not None and name in case.live]
    if not answered:
        silent = _silent(case)
        reason = "no voter that answered shows data of this cluster"
        return set(), f"{reason}; no data: {names_of(silent)}" if silent else reason
    best = max(where for name in answered if (where := case.position[name]) is not None)
    winners = {name for name in answered if case.position[name] == best}
    lag_bytes = _lag_bytes(best, case.ledger, case.last_offset_bytes)
    if lag_bytes is None:
        return set(), f"what {names_of(winners)} has is not of the last leader's history"
    if lag_bytes > case.rules.max_lag_bytes:
        limit = f"max_lag_bytes allows {case.rules.max_lag_bytes}"
        return set(), f"the furthest, {names_of(winners)}, is {lag_bytes} bytes behind the last leader, {limit}"
    return winners, ""


def _lag_bytes(where: Position, ledger: Ledger, last_offset_bytes: int | None) -> int | None:
    """How much of the last serving leader's data a position lacks; None if they have nothing in common.

    A position in an older epoch shares the history up to where the newer epoch began. If the leader's offset is not
    known, nothing can be said, and 0 stands for it.
    """
    last = ledger.latest_served()
    if last is None or last_offset_bytes is None:
        return 0
    epoch, shared_bytes = last.epoch, last_offset_bytes
    while epoch > where.epoch:
        entry = ledger.entry(epoch)
        if entry is None or entry.start.epoch >= epoch:
            return None
        epoch, shared_bytes = entry.start.epoch, min(shared_bytes, entry.start.offset_bytes)
    if epoch != where.epoch:
        return None
    return max(0, last_offset_bytes - min(where.offset_bytes, shared_bytes))


def _electable_of_everyone(case: Round) -> tuple[set[str], str]:
    """The best, if every voter's Redis is up and has testified: nobody else can have more."""
    silent = _silent(case)
    if silent:
        return set(), ""  # What the mode's own rule says is reason enough.
    if case.strangers:
        return set(), f"{_data_of(case.strangers)} is of unknown lineage, it may belong to another cluster"
    return _best_of_all(case)


def _silent(case: Round) -> list[str]:
    return sorted(name for name in case.rules.voters if name not in case.ballots or not case.ballots[name].up)


def _best_of_all(case: Round) -> tuple[set[str], str]:
    """Candidates that no ballot is ahead of."""
    furthest = [name for name in case.ballots if not any(_outdoes(case, other, name) for other in case.ballots)]
    holders = [name for name, ballot in case.bystanders.items() if ballot.up and ballot.keys > 0]
    if holders and all(ballot.keys == 0 for ballot in case.ballots.values()):
        return set(), f"every voter is empty, but {_data_of(holders)} is not: make it a voter, or remove it"
    winners = {name for name in furthest if name in case.candidates}
    return winners, "" if winners else f"the furthest, {names_of(furthest)}, abstains"


# --- bootstrap ----------------------------------------------------------------------------------------------------


def _electable_at_bootstrap(case: Round) -> tuple[set[str], str]:
    """The first leader: every voter must testify, and their data sets must be one and the same history."""
    silent = _silent(case)
    if silent:
        return set(), f"the first election needs every voter, {names_of(silent)} has not shown its data"
    holders = {name: ballot for name, ballot in case.ballots.items() if ballot.keys > 0}
    newcomers = {
        name: ballot for name, ballot in holders.items() if by_lineage(ballot, case.ledger, case.promotions) is None
    }
    if len(_related_groups(holders, newcomers)) <= 1 and not _forked(newcomers.values()):
        return _best_of_all(case)
    if case.rules.keep in holders:
        chosen = case.rules.keep in case.candidates
        return ({case.rules.keep}, "") if chosen else (set(), f"{case.rules.keep} was chosen, but it abstains")
    reason = f"unrelated data sets on {names_of(holders)}: choose the one to keep with `{KEEP_COMMAND}`"
    if case.rules.keep:
        reason += f" ({case.rules.keep}, which was chosen, has no data)"
    return set(), reason


def _related_groups(holders: Mapping[str, Ballot], newcomers: Iterable[str]) -> list[set[str]]:
    """Members whose data sets have a replid in common, directly or by way of others.

    Those that are not ``newcomers`` have one that the ledger knows from an earlier attempt to start the cluster.
    """
    groups: list[tuple[set[str], set[str]]] = []
    for name, ballot in holders.items():
        members, replids = {name}, _replids(ballot)
        if name not in newcomers:
            replids = replids | {"known to the ledger"}
        apart = []
        for group in groups:
            if group[1] & replids:
                members, replids = members | group[0], replids | group[1]
            else:
                apart.append(group)
        groups = [*apart, (members, replids)]
    return [members for members, _ in groups]


def _forked(ballots: Collection[Ballot]) -> bool:
    """Whether two of them went different ways from a common replid, so that each may have what the other lacks."""
    by_stem = [(branch, branch.replid2) for branch in ballots if branch.replid2.strip("0")]
    for branch, stem in by_stem:
        for other in ballots:
            if other.replid == branch.replid:
                continue
            if other.replid2 == stem or (other.replid == stem and other.offset_bytes >= branch.second_offset_bytes):
                return True
    return False


def _replids(ballot: Ballot) -> set[str]:
    return {replid for replid in (ballot.replid, ballot.replid2) if replid.strip("0")}


def origins(own: Ballot, ballots: Iterable[Ballot], ledger: Ledger, promotions: Mapping[str, int]) -> tuple[str, ...]:
    """The replids of the data set that the cluster starts with, so that whoever has it is known from now on."""
    if own.keys == 0:
        return ()
    holders = {ballot.member: ballot for ballot in ballots if ballot.up and ballot.keys > 0}
    newcomers = {name: ballot for name, ballot in holders.items() if by_lineage(ballot, ledger, promotions) is None}
    group = next(members for members in _related_groups(holders, newcomers) if own.member in members)
    return tuple(sorted(set().union(*(_replids(holders[name]) for name in group & newcomers.keys()))))


def names_of(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _data_of(names: Iterable[str]) -> str:
    return f"the data set of {names_of(names)}"
