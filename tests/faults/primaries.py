"""Two nodes that took writes at the same time, in the clients' history of a round.

A *leadership* is a node with one replication id. It has begun with its first acknowledgement (``t1`` of the write that
was acknowledged first). A write that an older leadership *certainly executed* after a newer one of another node had
begun is a violation. What is certain does not depend on how fast anybody is: a write is executed after it was sent
(``t0``), and, if it was sent while Redis is known to have stood still, after that. The *dual-primary time* is the
union of the spans from the newer one's beginning to the last such write (or to the last write that the newer one
certainly executed, if that was before). It is a lower bound: nothing is counted that could be explained by packets
that were late. What could be is counted apart as *late*: acknowledged in a newer leadership, and sent before it. A
late one that is confirmed, comes more than ``LATE_NS`` into the newer leadership, and was held back by nothing, is a
violation, too.

The continued whole host, which the project does not promise to hold back, is kept apart: its *residue* is what was
acknowledged within ``RESIDUE_NS`` of the end of a stop that held Redis and its guard together, and that began before
the newer leadership did.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

from tests.faults.history import Entry, Fault

RESIDUE_NS = 300_000_000
"""So long may agent and guard of a continued host need on a busy machine; milliseconds are usual."""
LATE_NS = 300_000_000
"""So long a client may not have run on a busy machine although its reply was there."""
WHOLE_HOST = "host-freeze"
STOP_REDIS = "redis-stop"
STOP_GUARD = "guard-stop"
HOLD_BACK = frozenset({"rack-cut", "member-cut", "redis-cut", "clients-cut", "pair-cut", "packet-loss"})
"""Faults that hold packets between clients and Redis back."""
_FOREVER = 1 << 62


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

    @property
    def ms(self) -> float:
        return max(0, self.t1 - self.t0) / 1e6


@dataclass(slots=True)
class Found:
    """What does not fit, and what almost does not."""

    certain: list[Overlap] = field(default_factory=list)
    residues: list[Overlap] = field(default_factory=list)
    late: list[Overlap] = field(default_factory=list)
    too_late: list[Entry] = field(default_factory=list)
    """Confirmed, late, and nothing explains why."""


class Stop(NamedTuple):
    """Something stood still: certainly from ``begun`` to ``ending``, and certainly no more from ``ended`` on."""

    begun: int
    ending: int
    ended: int

    @classmethod
    def of(cls, fault: Fault) -> Stop:
        ended = fault.t1 or _FOREVER
        return cls(fault.held_from or fault.t0, fault.held_until or ended, ended)


@dataclass(slots=True)
class _Node:
    stands: list[Stop]
    """When its Redis stood still, in order."""
    whole: list[Stop]
    """When its guard did so, too."""

    def executed_ns(self, entry: Entry) -> int:
        """Not before that it can have been executed."""
        at = entry.t0
        for stop in self.stands:
            if stop.begun <= at < stop.ending <= entry.t1:
                at = stop.ending
        return at


@dataclass
class _Leadership:
    address: str
    node: _Node
    writes: list[Entry] = field(default_factory=list)

    @cached_property
    def first_ns(self) -> int:
        return min(entry.t1 for entry in self.writes)

    @cached_property
    def last_ns(self) -> int:
        return max(self.node.executed_ns(entry) for entry in self.writes)


def find(acknowledged: Sequence[Entry], faults: Sequence[Fault]) -> Found:
    """Look for two primaries among the acknowledged writes of a round.

    Args:
        acknowledged: sorted by ``t0``.
        faults: of the round. Targets are the hosts of nodes.
    """
    by_node: dict[str, list[Entry]] = defaultdict(list)
    for entry in acknowledged:
        by_node[entry.node].append(entry)
    order: list[_Leadership] = []
    for address, writes in by_node.items():
        host = address.rpartition(":")[0]
        node = _Node(_standing(faults, host, writes), whole_stops(faults, host))
        leaderships: dict[str, _Leadership] = {}
        for entry, replid in zip(writes, _replids(writes), strict=True):
            leaderships.setdefault(replid, _Leadership(address, node)).writes.append(entry)
        order += leaderships.values()
    order.sort(key=lambda each: each.first_ns)
    delays = [_delay(fault) for fault in faults if fault.kind in HOLD_BACK]
    found = Found()
    for older, newer in itertools.combinations(order, 2):
        if older.address != newer.address:
            _compare(found, older, newer, delays)
    return found


def _compare(found: Found, older: _Leadership, newer: _Leadership, delays: Sequence[tuple[int, int]]) -> None:
    begin = newer.first_ns
    certain: list[Entry] = []
    residue: list[Entry] = []
    late: list[Entry] = []
    continued = _FOREVER
    for entry in older.writes:
        if entry.t1 <= begin:
            continue
        held_back = any(start < entry.t1 and entry.t0 < end for start, end in delays)
        stop = _continued(entry, older.node.whole, begin, held_back)
        if stop is not None:
            continued = min(continued, stop.ending)
            residue.append(entry)
        elif older.node.executed_ns(entry) > begin:
            certain.append(entry)
        else:
            late.append(entry)
            if entry.confirmed and entry.t1 > begin + LATE_NS and not held_back:
                found.too_late.append(entry)

    def overlap(entries: Sequence[Entry], t0: int, t1: int) -> list[Overlap]:
        if not entries:
            return []
        confirmed = sum(entry.confirmed for entry in entries)
        return [
            Overlap(older=older.address, newer=newer.address, t0=t0, t1=t1, writes=len(entries), confirmed=confirmed)
        ]

    last = max((older.node.executed_ns(entry) for entry in certain), default=begin)
    found.certain += overlap(certain, begin, max(begin, min(last, newer.last_ns)))
    # While it stood still it took nothing.
    found.residues += overlap(residue, max(begin, continued), max((entry.t1 for entry in residue), default=begin))
    found.late += overlap(late, begin, max((entry.t1 for entry in late), default=begin))


def _replids(writes: Sequence[Entry]) -> list[str]:
    """Of each of a node's writes. One that has none gets that of the neighbour which is nearer in time.

    A connection that died, or a Redis that was frozen between the write and what was asked behind it, leaves none.
    """
    before: list[Entry | None] = []
    known: Entry | None = None
    for entry in writes:
        known = entry if entry.replid else known
        before.append(known)
    found: list[str] = []
    known = None
    for entry, earlier in zip(reversed(writes), reversed(before), strict=True):
        known = entry if entry.replid else known
        if earlier is None or known is None:
            nearest = earlier or known
        else:
            nearest = earlier if entry.t0 - earlier.t1 <= known.t0 - entry.t1 else known
        found.append(nearest.replid if nearest is not None else "")
    return found[::-1]


def _standing(faults: Sequence[Fault], host: str, writes: Sequence[Entry]) -> list[Stop]:
    """When Redis on this host stood still.

    If a write was sent and acknowledged in between, then by another process: the one that was stopped is gone.
    """
    stops = []
    for fault in faults:
        if fault.target == host and fault.kind in {STOP_REDIS, WHOLE_HOST}:
            stop = Stop.of(fault)
            inside = [each.t0 for each in writes if stop.begun <= each.t0 and each.t1 < stop.ending]
            stops.append(stop._replace(ending=min(inside, default=stop.ending)))
    return sorted(stops)


def whole_stops(faults: Sequence[Fault], host: str) -> list[Stop]:
    """When Redis and its guard on this host stood still together."""
    mine = [fault for fault in faults if fault.target == host]
    found = [Stop.of(fault) for fault in mine if fault.kind == WHOLE_HOST]
    for redis in (Stop.of(fault) for fault in mine if fault.kind == STOP_REDIS):
        for guard in (Stop.of(fault) for fault in mine if fault.kind == STOP_GUARD):
            both = Stop(max(redis.begun, guard.begun), min(redis.ending, guard.ending), min(redis.ended, guard.ended))
            if both.begun < both.ending:
                found.append(both)
    return found


def _continued(entry: Entry, stops: Sequence[Stop], began: int, held_back: bool) -> Stop | None:
    """The stop whose residue this write is; None: it is none.

    Between ``ending`` and ``ended`` the host went on; nobody knows when. A reply that the network may have held back
    says nothing of when the write was executed, but when it was sent still does.
    """
    for stop in stops:
        latest = stop.ended + RESIDUE_NS
        if stop.begun < began and entry.t0 <= latest and stop.ending <= entry.t1 and (held_back or entry.t1 <= latest):
            return stop
    return None


def _delay(fault: Fault) -> tuple[int, int]:
    """For how long it may hold packets back: what was lost is sent again in pauses that grow with the fault."""
    end = fault.t1 or _FOREVER
    return fault.t0, end + (end - fault.t0)


def union_ms(overlaps: Iterable[Overlap]) -> float:
    """The milliseconds that are in any of them."""
    total, until = 0, 0
    for each in sorted(overlaps, key=lambda overlap: overlap.t0):
        begin = max(each.t0, until)
        if each.t1 > begin:
            total += each.t1 - begin
            until = each.t1
    return total / 1e6
