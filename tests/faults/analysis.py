"""What became of the writes: the clients' history of a round and the final contents of every node: what does not fit.

**Two primaries.** A *leadership* is a node with one replication id. From its first acknowledgement (``t1`` of the write
that was acknowledged first) to the last time that a write was sent which it acknowledged (the greatest ``t0``) it was
certainly taking writes, whatever the clocks of the clients' own code did in between. Where those spans of two nodes
overlap, both certainly acknowledged writes at the same time, and the union of these overlaps is the *dual-primary
time*. It is a lower bound: nothing is counted that could be explained by packets that were late. What could be is
counted apart: *late* acknowledgements were received in a later leadership, but sent before it.

The continued whole host, which the project does not promise to hold back, is kept apart: an overlap is its *residue* if
every late write in it was acknowledged within ``RESIDUE_NS`` of the end of a stop that held Redis and its guard
together, and that began before the later leadership did.
"""

from __future__ import annotations

import itertools
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tests.faults.history import REFUSED, UNKNOWN, Contents, Entry, Fault

RESIDUE_NS = 2_000_000_000
GAP_NS = 100_000_000
"""Shorter pauses are none."""
WHOLE_HOST = "host-freeze"
STOP_REDIS = "redis-stop"
STOP_GUARD = "guard-stop"
_EXAMPLES = 5
"""So many violations of each kind are told; the counts are in the tallies."""
_FOREVER = 1 << 62


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """Two nodes took writes at the same time, or may have."""

    older: str
    newer: str
    t0: int
    t1: int
    writes: int
    """That the older one acknowledged although the newer one had begun."""
    confirmed: int
    excused: bool
    """A whole host was continued."""

    @property
    def ms(self) -> float:
        return max(0, self.t1 - self.t0) / 1e6


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
    late: list[Overlap] = field(default_factory=list)
    """Possible ones."""
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
        return _union_ms(each for each in self.overlaps if not each.excused)

    @property
    def residue_ms(self) -> float:
        return _union_ms(each for each in (*self.overlaps, *self.late) if each.excused)

    @property
    def residue_writes(self) -> int:
        return sum(each.writes for each in self.late if each.excused)

    @property
    def residue_confirmed(self) -> int:
        return sum(each.confirmed for each in self.late if each.excused)

    @property
    def availability(self) -> float:
        return 1 - self.unavailable_ns / self.duration_ns if self.duration_ns else 1.0

    def add(self, other: Report) -> None:
        for name, tally in other.tallies.items():
            self.tallies.setdefault(name, Tally()).add(tally)
        self.violations += other.violations
        self.told += other.told
        self.overlaps += other.overlaps
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
        faults: of the round; only stops of Redis, guard and host matter.
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
    by_key: dict[str, list[Entry]] = defaultdict(list)
    for entry in history:
        by_key[entry.key].append(entry)
    for key, attempts in by_key.items():
        final = contents.get(key, "0")
        assert isinstance(final, str)
        _check_counter(report, key, attempts, int(final))


def _check_counter(report: Report, key: str, attempts: list[Entry], final: int) -> None:
    """Of one client, which sends one after the other. Each has its own number while nothing is lost."""
    executed: list[Entry] = []
    """Acknowledged and not lost so far, by their numbers, which grow."""
    value = maybe = 0
    for entry in attempts:
        maybe += entry.outcome == UNKNOWN
        if not entry.ok:
            continue
        assert isinstance(entry.result, int)
        maybe = _advance(report, key, executed, value, entry.result, maybe)
        value = entry.result
        executed.append(entry)
    _advance(report, key, executed, value, final + 1, maybe)


def _advance(report: Report, key: str, executed: list[Entry], value: int, result: int, maybe: int) -> int:
    """The next number is ``result``, after ``value``. Returns how many of unknown outcome have not shown up yet."""
    ahead = result - (value + 1)
    if ahead > maybe:
        _tell(report, "doubled", f"{key} is doubled: {result} after {value} with {maybe} of unknown outcome")
    # Whoever is at or past the next number is gone.
    while executed and _number(executed[-1]) >= result:
        entry = executed.pop()
        report.tallies["incr"].lose(entry)
        if entry.confirmed:
            _tell(
                report,
                "lost increment",
                f"confirmed increment of {key} to {entry.result} (by {entry.node}) is lost: next is {result}",
            )
    return maybe - min(max(ahead, 0), maybe)


def _number(entry: Entry) -> int:
    assert isinstance(entry.result, int)
    return entry.result


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


@dataclass(slots=True)
class _Leadership:
    node: str
    writes: list[Entry] = field(default_factory=list)

    @property
    def first_ns(self) -> int:
        return min(entry.t1 for entry in self.writes)

    @property
    def last_ns(self) -> int:
        return max(entry.t0 for entry in self.writes)


def _check_primaries(report: Report, history: Sequence[Entry], faults: Sequence[Fault]) -> None:
    found: dict[tuple[str, str], _Leadership] = {}
    for entry in history:
        if entry.ok and entry.is_write and entry.replid:
            found.setdefault((entry.node, entry.replid), _Leadership(entry.node)).writes.append(entry)
    order = sorted(found.values(), key=lambda each: each.first_ns)
    for older, newer in itertools.combinations(order, 2):
        if older.node != newer.node:
            _compare(report, older, newer, faults)
    for overlap in report.overlaps:
        if not overlap.excused:
            _tell(
                report,
                "two primaries",
                f"two primaries: {overlap.older} acknowledged {overlap.writes} writes that were sent up to "
                f"{overlap.ms:.1f} ms after {overlap.newer} had acknowledged its first",
            )
    if report.residue_confirmed:
        _tell(report, "residue", f"{report.residue_confirmed} writes of a continued host were confirmed")


def _compare(report: Report, older: _Leadership, newer: _Leadership, faults: Sequence[Fault]) -> None:
    begin = newer.first_ns
    late = [entry for entry in older.writes if entry.t1 > begin]
    if not late:
        return
    stops = whole_stops(faults, older.node.rpartition(":")[0])
    ends = [_continued(entry, stops, begin) for entry in late]
    excused = None not in ends
    about = {
        "older": older.node,
        "newer": newer.node,
        # While it stood still it took nothing.
        "t0": max(begin, min(end for end in ends if end is not None)) if excused else begin,
        "writes": len(late),
        "confirmed": sum(entry.confirmed for entry in late),
        "excused": excused,
    }
    until = min(older.last_ns, newer.last_ns)
    report.late.append(Overlap(t1=max(entry.t1 for entry in late), **about))  # type: ignore[arg-type]
    if until > begin:
        report.overlaps.append(Overlap(t1=until, **about))  # type: ignore[arg-type]


def whole_stops(faults: Sequence[Fault], node: str) -> list[tuple[int, int]]:
    """When Redis and its guard on this node stood still together: from when to when."""
    mine = [fault for fault in faults if fault.target == node]
    spans = [(fault.t0, fault.t1 or _FOREVER) for fault in mine if fault.kind == WHOLE_HOST]
    for redis in (fault for fault in mine if fault.kind == STOP_REDIS):
        for guard in (fault for fault in mine if fault.kind == STOP_GUARD):
            span = max(redis.t0, guard.t0), min(redis.t1 or _FOREVER, guard.t1 or _FOREVER)
            if span[0] < span[1]:
                spans.append(span)
    return spans


def _continued(entry: Entry, stops: list[tuple[int, int]], began: int) -> int | None:
    """When the host was continued whose residue this write is; None: it is none."""
    fitting = (end for start, end in stops if start < began and end <= entry.t1 <= end + RESIDUE_NS)
    return next(fitting, None)


def _union_ms(overlaps: Iterable[Overlap]) -> float:
    total, until = 0, 0
    for each in sorted(overlaps, key=lambda overlap: overlap.t0):
        begin = max(each.t0, until)
        if each.t1 > begin:
            total += each.t1 - begin
            until = each.t1
    return total / 1e6


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
