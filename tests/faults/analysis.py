"""What became of the writes: the clients' history of a round and the final contents of every node: what does not fit.

What has to do with data is here; whether two nodes took writes at the same time is found by ``primaries``.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tests.faults import primaries
from tests.faults.history import COUNTER_BASE, REFUSED, UNKNOWN, Contents, Entry, Fault
from tests.faults.primaries import Overlap, union_ms

GAP_NS = 100_000_000
"""Shorter pauses are none."""
_EXAMPLES = 5
"""So many violations of each kind are told; the counts are in the tallies."""


@dataclass(slots=True, kw_only=True)
class Tally:
    """Of one kind of write (or of all)."""

    attempts: int = 0
    acknowledged: int = 0
    confirmed: int = 0
    refused: int = 0
    unknown: int = 0
    lost: int = 0
    """Acknowledged, not confirmed, and gone."""
    waited_lost: int = 0
    """Of these, WAIT counted enough links, but not enough distinct voters."""
    confirmed_lost: int = 0

    def add(self, other: Tally) -> None:
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def count(self, entry: Entry) -> None:
        self.attempts += 1
        self.acknowledged += entry.ok
        self.confirmed += entry.confirmed
        self.refused += entry.outcome == REFUSED
        self.unknown += entry.outcome == UNKNOWN

    def lose(self, entry: Entry) -> None:
        if entry.confirmed:
            self.confirmed_lost += 1
        else:
            self.lost += 1
            self.waited_lost += entry.waited


@dataclass(slots=True, kw_only=True)
class Report:
    """Of one round, or of all together."""

    tallies: dict[str, Tally] = field(default_factory=dict)
    """By operation: set, incr, rpush."""
    violations: list[str] = field(default_factory=list)
    """What must never be, one sentence each."""
    told: Counter[str] = field(default_factory=Counter)
    """How many violations of each kind; not all of them are in ``violations``."""
    overlaps: list[Overlap] = field(default_factory=list)
    """Certain ones."""
    residues: list[Overlap] = field(default_factory=list)
    """Of whole hosts that were continued."""
    late: list[Overlap] = field(default_factory=list)
    """What may merely have arrived late."""
    reads: int = 0
    vanished: int = 0
    """Values that were read and were gone in the end: allowed, but counted."""
    duration_ns: int = 0
    unavailable_ns: int = 0
    """In pauses of more than GAP_NS without an acknowledged write."""
    outage_ns: int = 0
    """The longest of them."""

    @property
    def total(self) -> Tally:
        total = Tally()
        for tally in self.tallies.values():
            total.add(tally)
        return total

    @property
    def dual_ms(self) -> float:
        """Certain, and not the residue."""
        return union_ms(self.overlaps)

    @property
    def residue_ms(self) -> float:
        return union_ms(self.residues)

    @property
    def residue_writes(self) -> int:
        return sum(each.writes for each in self.residues)

    @property
    def residue_confirmed(self) -> int:
        return sum(each.confirmed for each in self.residues)

    @property
    def availability(self) -> float:
        return 1 - self.unavailable_ns / self.duration_ns if self.duration_ns else 1.0

    def add(self, other: Report) -> None:
        for name, tally in other.tallies.items():
            self.tallies.setdefault(name, Tally()).add(tally)
        self.violations += other.violations
        self.told += other.told
        self.overlaps += other.overlaps
        self.residues += other.residues
        self.late += other.late
        self.reads += other.reads
        self.vanished += other.vanished
        self.duration_ns += other.duration_ns
        self.unavailable_ns += other.unavailable_ns
        self.outage_ns = max(self.outage_ns, other.outage_ns)


def analyse(entries: Iterable[Entry], finals: Mapping[str, Contents], faults: Sequence[Fault] = ()) -> Report:
    """Compare what clients were told with what is there.

    Args:
        entries: of one round, of all clients.
        finals: each node's contents after the round, when nobody writes any more. None at all: nothing is said of them.
        faults: of the round; stops of Redis, guard and host matter, and what may have held a reply back.
    """
    history = sorted(entries, key=lambda entry: entry.t0)
    report = Report()
    for entry in history:
        if entry.is_write:
            report.tallies.setdefault(entry.op, Tally()).count(entry)
    _compare_nodes(report, finals)
    if finals:
        _check_contents(report, history, next(iter(finals.values())))
    _check_primaries(report, history, faults)
    _measure_gaps(report, [entry for entry in history if entry.is_write and not entry.stubborn])
    total = report.total
    if total.confirmed_lost:
        report.violations.insert(0, f"{total.confirmed_lost} confirmed writes are lost")
    return report


# --- the data ---------------------------------------------------------------------------------------------------------


def _check_contents(report: Report, history: list[Entry], contents: Contents) -> None:
    _check_sets(report, [entry for entry in history if entry.op == "set"], contents)
    _check_lists(report, [entry for entry in history if entry.op == "rpush"], contents)
    _check_counters(report, [entry for entry in history if entry.op == "incr"], contents)
    _check_reads(report, [entry for entry in history if entry.op == "get"], contents)


def _compare_nodes(report: Report, finals: Mapping[str, Contents]) -> None:
    for (one, first), (other, second) in itertools.pairwise(finals.items()):
        if first != second:
            keys = [key for key in first.keys() | second.keys() if first.get(key) != second.get(key)]
            report.violations.append(f"{one} and {other} differ in {len(keys)} keys: {', '.join(sorted(keys)[:5])}")


def _check_sets(report: Report, history: list[Entry], contents: Contents) -> None:
    for entry in history:
        found = contents.get(entry.key)
        if entry.ok and found != entry.value:
            report.tallies["set"].lose(entry)
            if entry.confirmed:
                _tell(report, "lost set", f"confirmed {entry.key} (acknowledged by {entry.node}) is lost: {found!r}")
        elif entry.outcome == REFUSED and found is not None:
            _tell(report, "refused", f"{entry.key} was refused ({entry.error}) and executed all the same")


def _check_lists(report: Report, history: list[Entry], contents: Contents) -> None:
    sent: dict[str, dict[str, Entry]] = defaultdict(dict)
    for entry in history:
        sent[entry.key][entry.value] = entry
    for key, by_value in sent.items():
        found = contents.get(key, [])
        assert isinstance(found, list)
        present = set(found)
        if len(present) < len(found):
            _tell(report, "twice", f"{key} has {len(found) - len(present)} elements twice")
        if foreign := present - by_value.keys():
            _tell(report, "foreign", f"{key} has {len(foreign)} elements that nobody sent: {sorted(foreign)[:3]}")
        for value, entry in by_value.items():
            if entry.ok and value not in present:
                report.tallies["rpush"].lose(entry)
                if entry.confirmed:
                    _tell(
                        report,
                        "lost element",
                        f"confirmed element {value} of {key} (acknowledged by {entry.node}) is lost",
                    )
            elif entry.outcome == REFUSED and value in present:
                _tell(
                    report, "refused", f"element {value} of {key} was refused ({entry.error}) and executed all the same"
                )
        _check_order(report, key, [by_value[value] for value in found if value in by_value])


def _check_order(report: Report, key: str, present: list[Entry]) -> None:
    """What was acknowledged before another was sent stands before it."""
    latest: Entry | None = None
    for entry in present:
        if latest is not None and entry.ok and entry.t1 < latest.t0:
            _tell(
                report,
                "order",
                f"{key}: {entry.value} stands behind {latest.value}, which was sent after its acknowledgement",
            )
            return
        if latest is None or entry.t0 > latest.t0:
            latest = entry


def _check_counters(report: Report, history: list[Entry], contents: Contents) -> None:
    """Each increment adds a power of COUNTER_BASE of its own: the sum tells of each how often it was executed."""
    by_key: dict[str, list[Entry]] = defaultdict(list)
    for entry in history:
        by_key[entry.key].append(entry)
    for key, attempts in by_key.items():
        final = contents.get(key, "0")
        assert isinstance(final, str)
        for entry in attempts:
            _check_increment(report, entry, int(final))
        steps = {int(entry.value) for entry in attempts}
        if foreign := int(final) - sum(step * _times(int(final), step) for step in steps):
            _tell(report, "foreign", f"{key} has {foreign} more than anybody added")


def _check_increment(report: Report, entry: Entry, final: int) -> None:
    step = int(entry.value)
    times = _times(final, step)
    answered = _times(entry.result, step) if isinstance(entry.result, int) else 0
    name = f"increment of {entry.key} by {entry.value}"
    if max(times, answered) > 1:
        _tell(report, "doubled", f"{name} is doubled: executed {max(times, answered)} times")
    if entry.ok and not times:
        report.tallies["incr"].lose(entry)
        if entry.confirmed:
            _tell(report, "lost increment", f"confirmed {name} (acknowledged by {entry.node}) is lost")
    elif entry.outcome == REFUSED and times:
        _tell(report, "refused", f"{name} was refused ({entry.error}) and executed all the same")


def _times(value: int, step: int) -> int:
    return value // step % COUNTER_BASE


def _check_reads(report: Report, history: list[Entry], contents: Contents) -> None:
    for entry in history:
        if entry.ok and entry.result is not None:
            report.reads += 1
            report.vanished += contents.get(entry.key) != entry.result


def _tell(report: Report, kind: str, violation: str) -> None:
    report.told[kind] += 1
    if report.told[kind] <= _EXAMPLES:
        report.violations.append(violation)


# --- two primaries ----------------------------------------------------------------------------------------------------


def _check_primaries(report: Report, history: Sequence[Entry], faults: Sequence[Fault]) -> None:
    found = primaries.find([entry for entry in history if entry.ok and entry.is_write], faults)
    report.overlaps, report.residues, report.late = found.certain, found.residues, found.late
    for overlap in found.certain:
        _tell(
            report,
            "two primaries",
            f"two primaries: {overlap.older} executed {overlap.writes} writes (of which {overlap.confirmed} confirmed) "
            f"after {overlap.newer} had acknowledged its first; {overlap.ms:.1f} ms",
        )
    if report.residue_confirmed:
        _tell(report, "residue", f"{report.residue_confirmed} writes of a continued host were confirmed")
    for entry in found.too_late:
        _tell(
            report,
            "too late",
            f"confirmed {entry.key} (of {entry.client}) was acknowledged by {entry.node} long after another had begun, "
            "and nothing had held the reply back",
        )


# --- availability -----------------------------------------------------------------------------------------------------


def _measure_gaps(report: Report, history: Sequence[Entry]) -> None:
    """By clients that look for the leader. The edges of the round count."""
    if not history:
        return
    begin, end = history[0].t0, max(entry.t1 for entry in history)
    stamps = [begin, *sorted(entry.t1 for entry in history if entry.ok), end]
    gaps = [after - before for before, after in itertools.pairwise(stamps)]
    report.duration_ns = end - begin
    report.unavailable_ns = sum(gap for gap in gaps if gap > GAP_NS)
    report.outage_ns = max(gaps)


def first_after(history: Sequence[Entry], since_ns: int, *, confirmed: bool = False) -> Entry | None:
    """The first write that was *sent* after a moment and acknowledged (or confirmed); for times of failovers.

    Args:
        history: sorted by t0, as ``sorted(entries, key=lambda entry: entry.t0)`` gives it.
        since_ns: the moment.
        confirmed: only what was confirmed.
    """
    begin = bisect_left(history, since_ns, key=lambda entry: entry.t0)
    good = (each for each in history[begin:] if each.is_write and (each.confirmed if confirmed else each.ok))
    return min(good, key=lambda entry: entry.t1, default=None)
