"""The checker of the faults: hand-made histories in which each thing goes wrong that it must see, and right ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from tests.faults import history, plot
from tests.faults.analysis import Report, analyse, first_after
from tests.faults.history import COUNTER_BASE, REFUSED, UNKNOWN, Contents, Entry, Fault, Sight
from tests.faults.nemesis import KINDS
from tests.faults.primaries import HOLD_BACK, STOP_GUARD, STOP_REDIS, WHOLE_HOST, Stop, whole_stops

MS = 1_000_000
A, B = "10.99.0.1:6379", "10.99.0.2:6379"


def write(at_ms: float, op: str = "set", *, took_ms: float = 1, confirmed: bool = False, **more: Any) -> Entry:
    """An acknowledged write; ``more`` is Entry's."""
    told = {"need": 1, "acked_by": 1, "voters": 1} if confirmed else {}
    settings = {
        "client": "c",
        "key": "k",
        "value": "v",
        "node": A,
        "outcome": history.OK,
        "replid": "one",
        **told,
        **more,
    }
    return Entry(t0=int(at_ms * MS), t1=int((at_ms + took_ms) * MS), op=op, **settings)


def increments(outcomes: str, *, answered: dict[int, int] | None = None) -> list[Entry]:
    """One client's. Of each "a" (acknowledged), "c" (confirmed), "r" (refused) or "u" (unknown); each adds its power.

    Args:
        outcomes: a letter for each.
        answered: the sums that Redis told; else what is right if all were executed.
    """
    told = {"r": REFUSED, "u": UNKNOWN}
    found, total = [], 0
    for at, letter in enumerate(outcomes):
        step = COUNTER_BASE**at
        total += step
        result = (answered or {}).get(at, total) if letter in "ac" else None
        outcome = told.get(letter, history.OK)
        found.append(
            write(at, "incr", key="n", value=str(step), outcome=outcome, result=result, confirmed=letter == "c")
        )
    return found


def total(*times: int) -> Contents:
    """The counter, if each increment was executed so often."""
    return {"n": str(sum(each * COUNTER_BASE**at for at, each in enumerate(times)))}


def pushes(*values: str, **more: Any) -> list[Entry]:
    """One after the other."""
    return [write(2 * at, "rpush", key="l", value=value, **more) for at, value in enumerate(values)]


def judge(entries: list[Entry], contents: Contents, *faults: Fault) -> Report:
    return analyse(entries, {"n1": contents, "n2": dict(contents)}, faults)


# --- sets -------------------------------------------------------------------------------------------------------------


def test_what_is_right_is_not_complained_about() -> None:
    """Everything there, or not acknowledged: no violation, and the counts are those of the history."""
    entries = [
        write(0, key="a", value="1"),
        write(1, key="b", value="2", confirmed=True),
        write(2, key="c", value="3", outcome=REFUSED),
        write(3, key="d", value="4", outcome=UNKNOWN),
        write(4, key="e", value="5", outcome=UNKNOWN),
    ]
    report = judge(entries, {"a": "1", "b": "2", "e": "5"})
    total = report.total
    assert report.violations == []
    assert (total.attempts, total.acknowledged, total.confirmed, total.refused, total.unknown) == (5, 2, 1, 1, 2)
    assert (total.lost, total.confirmed_lost) == (0, 0)


def test_a_lost_confirmed_write() -> None:
    """Is a violation, also if another value stands there; it is told which, and where it was acknowledged."""
    entries = [write(0, key="a", value="1", confirmed=True), write(1, key="b", value="2", confirmed=True)]
    report = judge(entries, {"b": "other"})
    assert report.total.confirmed_lost == 2
    assert "2 confirmed writes are lost" in report.violations
    assert any("confirmed a (acknowledged by 10.99.0.1:6379)" in each for each in report.violations)


def test_a_lost_acknowledged_write_is_counted_only() -> None:
    """Replication is asynchronous. One that WAIT alone confirmed, by links that were no voters, is counted apart."""
    entries = [
        write(0, key="a"),
        write(1, key="b", need=1, acked_by=1, voters=0),
        write(2, key="c", need=1, acked_by=0),
    ]
    report = judge(entries, {})
    assert report.violations == []
    assert (report.total.lost, report.total.waited_lost, report.total.confirmed_lost) == (3, 1, 0)


def test_a_refused_write_that_was_executed() -> None:
    """Its client would send it again."""
    report = judge([write(0, key="a", value="1", outcome=REFUSED, error="READONLY")], {"a": "1"})
    assert report.violations == ["a was refused (READONLY) and executed all the same"]


def test_nodes_that_differ() -> None:
    """Whatever the clients were told."""
    report = analyse([], {"n1": {"a": "1", "b": "2"}, "n2": {"a": "1", "b": "3"}, "n3": {"a": "1", "b": "3"}})
    assert report.violations == ["n1 and n2 differ in 1 keys: b"]


def test_without_contents_nothing_is_said_of_them() -> None:
    """A round that did not converge is searched for two primaries all the same."""
    entries = [write(at, confirmed=True) for at in range(9)] + [write(at, node=B, replid="two") for at in range(4, 9)]
    report = analyse(entries, {})
    assert report.total.confirmed_lost == 0
    assert [each.partition(":")[0] for each in report.violations] == ["two primaries"]


# --- counters ---------------------------------------------------------------------------------------------------------


def test_counters_that_are_right() -> None:
    """Increments of unknown outcome may have happened or not."""
    assert judge(increments("aca"), total(1, 1, 1)).violations == []
    assert judge(increments("auaru"), total(1, 0, 1, 0, 1)).violations == []
    assert judge(increments("auaru"), total(1, 1, 1, 0, 0)).violations == []
    assert judge(increments("uu"), {}).violations == []
    assert judge(increments("uua"), total(0, 1, 1)).total.lost == 0


@pytest.mark.parametrize(
    ("outcomes", "times", "violation"),
    [
        ("aa", (1, 2), "increment of n by 4 is doubled: executed 2 times"),
        ("ua", (3, 1), "is doubled: executed 3 times"),
        ("ar", (1, 1), "was refused () and executed all the same"),
        ("aa", (1, 1, 1), "more than anybody added"),
    ],
)
def test_increments_that_are_too_many(outcomes: str, times: tuple[int, ...], violation: str) -> None:
    """Executed twice, or although refused, or of nobody."""
    found = judge(increments(outcomes), total(*times)).violations
    assert any(violation in each for each in found), found


def test_a_doubled_increment_that_is_lost_afterwards() -> None:
    """Its answer told."""
    assert any("doubled" in each for each in judge(increments("a", answered={0: 2}), {}).violations)


def test_lost_increments() -> None:
    """Each one counts; confirmed ones are violations."""
    plain = judge(increments("aaaa"), total(1, 0, 0, 1))
    assert (plain.total.lost, plain.violations) == (2, [])
    gone = judge(increments("cc"), {})
    assert gone.total.confirmed_lost == 2
    assert "2 confirmed writes are lost" in gone.violations


def test_a_lost_increment_is_not_made_up_for_by_others() -> None:
    """As many as were acknowledged are there; one of them is of unknown outcome, and a confirmed one is gone."""
    report = judge(increments("accu", answered={2: COUNTER_BASE**2 + 1}), total(1, 0, 1, 1))
    assert report.total.confirmed_lost == 1
    assert any("confirmed increment of n by 4 (acknowledged by 10.99.0.1:6379)" in each for each in report.violations)


# --- lists ------------------------------------------------------------------------------------------------------------


def test_lists_that_are_right() -> None:
    """In order; those that were under way at the same time in any order."""
    assert judge(pushes("a", "b", "c"), {"l": ["a", "b", "c"]}).violations == []
    together = [write(0, "rpush", key="l", value=value, took_ms=5, client=value) for value in "ab"]
    assert judge(together, {"l": ["b", "a"]}).violations == []
    unknown = [*pushes("a", outcome=UNKNOWN), write(9, "rpush", key="l", value="b")]
    assert judge(unknown, {"l": ["b", "a"]}).violations == []


@pytest.mark.parametrize(
    ("found", "violation"),
    [
        (["a", "b", "b"], "twice"),
        (["b", "a"], "stands behind"),
        (["a", "b", "x"], "nobody sent"),
        (["a"], "confirmed element b"),
    ],
)
def test_lists_that_are_wrong(found: list[str], violation: str) -> None:
    """An element twice, out of order, of nobody, or gone."""
    assert any(violation in each for each in judge(pushes("a", "b", confirmed=True), {"l": found}).violations)


def test_reads_of_what_vanished_are_counted() -> None:
    """That is allowed."""
    seen = [write(0, "get", key="a", result="1"), write(1, "get", key="b", result="2"), write(2, "get", key="c")]
    report = judge(seen, {"a": "1"})
    assert (report.reads, report.vanished, report.violations) == (2, 1, [])


# --- two primaries ----------------------------------------------------------------------------------------------------


def test_one_primary_after_the_other() -> None:
    """And back again, as another leadership: no overlap. An acknowledgement that was late is none either."""
    entries = [
        *(write(at, replid="one") for at in range(10)),
        write(9, took_ms=5, replid="one"),
        *(write(at, node=B, replid="two") for at in range(11, 20)),
        *(write(at, replid="three") for at in range(25, 30)),
    ]
    report = judge(entries, {"k": "v"})
    assert (report.violations, report.dual_ms, report.overlaps) == ([], 0, [])
    assert [each.writes for each in report.late] == [1]


def test_two_primaries_at_once() -> None:
    """From the later one's first acknowledgement until the earlier one's last write was sent."""
    entries = [write(at) for at in range(0, 100, 2)] + [write(at, node=B, replid="two") for at in range(51, 200, 2)]
    report = judge(entries, {"k": "v"})
    assert report.dual_ms == pytest.approx(98 - 52)
    assert any("two primaries: 10.99.0.1:6379 executed" in each for each in report.violations)


def test_overlaps_are_not_added_up() -> None:
    """Three primaries at once are two too many for the same milliseconds."""
    entries = [
        write(at, node=f"10.99.0.{node}:6379", replid=str(node)) for node in (1, 2, 3) for at in range(node, 100)
    ]
    assert judge(entries, {"k": "v"}).dual_ms == pytest.approx(99 - 3)


def succession(*late: Entry, stop: str, end_ms: int = 100, **more: Any) -> tuple[list[Entry], Fault]:
    """A leads, is stopped from 10 ms on, and goes on later; B leads meanwhile, and for long."""
    entries = [write(at) for at in range(10)] + [write(at, node=B, replid="two") for at in range(50, 4000, 10)]
    return [*entries, *late], Fault(t0=10 * MS, t1=end_ms * MS, kind=stop, target="10.99.0.1", **more)


def test_a_continued_host_is_kept_apart() -> None:
    """What was in its sockets, and what it took until its fence landed; nothing of it may be confirmed."""
    entries, stop = succession(write(9, took_ms=100), write(20, took_ms=85), write(105), stop=WHOLE_HOST)
    report = judge(entries, {"k": "v"}, stop)
    assert (report.violations, report.dual_ms) == ([], 0)
    assert (report.residue_writes, report.residue_confirmed) == (3, 0)
    # While it stood still it took nothing.
    assert report.residue_ms == pytest.approx(109 - 100)
    entries, stop = succession(write(105, confirmed=True), stop=WHOLE_HOST)
    assert any("continued host were confirmed" in each for each in judge(entries, {"k": "v"}, stop).violations)


@pytest.mark.parametrize("late_ms", [60, 500, 3000])
def test_a_continued_host_excuses_nothing_else(late_ms: int) -> None:
    """Not what was acknowledged while it should have stood still, nor what its fence should have stopped."""
    entries, stop = succession(write(late_ms), stop=WHOLE_HOST)
    report = judge(entries, {"k": "v"}, stop)
    assert [each.partition(":")[0] for each in report.violations] == ["two primaries"]
    assert report.dual_ms == pytest.approx(late_ms - 51)
    assert report.residue_writes == 0


def test_a_continued_host_that_is_never_fenced() -> None:
    """Almost two seconds of writes: what was acknowledged at once is excused, and the rest is two primaries."""
    entries, stop = succession(*(write(at) for at in range(101, 2000, 10)), stop=WHOLE_HOST)
    report = judge(entries, {"k": "v"}, stop)
    assert report.told["two primaries"] == 1
    assert report.dual_ms > 1000
    assert report.residue_ms < 310


def test_the_end_of_a_stop_takes_time() -> None:
    """Between the moment in which it is ordered and that in which the order is carried out a host goes on: the first
    writes are of its residue, and the limit is counted from the last.
    """
    late = [write(at, took_ms=0.5) for at in (101, 150, 440)]
    entries, stop = succession(*late, stop=WHOLE_HOST, end_ms=150, held_from=11 * MS, held_until=100 * MS)
    report = judge(entries, {"k": "v"}, stop)
    assert (report.violations, report.residue_writes) == ([], 3)
    entries, stop = succession(write(99, took_ms=0.5), stop=WHOLE_HOST, end_ms=150, held_until=100 * MS)
    assert judge(entries, {"k": "v"}, stop).told["two primaries"] == 1


def test_the_network_may_hold_a_residue_back() -> None:
    """An answer that comes later than the limit, through a lossy network, to what was sent before. To nothing else."""
    lossy = Fault(t0=5 * MS, t1=900 * MS, kind="packet-loss", target="10.99.0.2")
    entries, stop = succession(write(20, took_ms=700), stop=WHOLE_HOST)
    assert judge(entries, {"k": "v"}, stop, lossy).violations == []
    assert judge(entries, {"k": "v"}, stop).told["two primaries"] == 1
    entries, stop = succession(write(500), stop=WHOLE_HOST)
    assert judge(entries, {"k": "v"}, stop, lossy).told["two primaries"] == 1


def test_a_stopped_redis_executes_what_was_sent_meanwhile_after_it() -> None:
    """It stood still past its lease, and nobody killed it: what lay in its sockets is executed, once it goes on, in the
    time of its successor. Each client had one write under way, sent before the successor began.
    """
    queued = [write(20 + at, took_ms=2000, client=f"c{at}") for at in range(5)]
    entries, stop = succession(*queued, stop=STOP_REDIS, end_ms=2015)
    report = judge(entries, {"k": "v"}, stop)
    assert [each.partition(":")[0] for each in report.violations] == ["two primaries"]
    assert [each.writes for each in report.overlaps] == [5]
    assert report.dual_ms == pytest.approx(2015 - 51)
    # Sent before it stood still for certain, it may have been executed before, too.
    entries, stop = succession(write(9, took_ms=2010), stop=STOP_REDIS, end_ms=2015)
    report = judge(entries, {"k": "v"}, stop)
    assert (report.violations, [each.writes for each in report.late]) == ([], [1])


def test_another_process_does_not_stand_still() -> None:
    """The stopped Redis was killed, and the one after it leads: what it acknowledges is executed at once."""
    entries = [
        *(write(at) for at in range(10)),
        *(write(at, node=B, replid="two") for at in range(20, 30)),
        *(write(at, replid="three") for at in range(40, 99)),
        write(99, took_ms=5, replid="three"),
        *(write(at, node=B, replid="four") for at in range(100, 200)),
    ]
    stop = Fault(t0=10 * MS, t1=102 * MS, kind=STOP_REDIS, target="10.99.0.1")
    assert judge(entries, {"k": "v"}, stop).violations == []


def test_a_late_confirmation_needs_a_reason() -> None:
    """A client may have slept for a moment, and a network may hold a reply back; else it comes from a primary that goes
    on although another has begun.
    """
    cut = Fault(t0=0, t1=300 * MS, kind="rack-cut", target="10.99.0.1")
    kept = write(9, took_ms=500, confirmed=True)
    entries, _ = succession(kept, stop=WHOLE_HOST)
    report = judge(entries, {"k": "v"})
    assert (report.dual_ms, [each.partition(" ")[0] for each in report.violations]) == (0, ["confirmed"])
    assert judge(entries, {"k": "v"}, cut).violations == []
    entries, _ = succession(write(9, took_ms=200, confirmed=True), stop=WHOLE_HOST)
    assert judge(entries, {"k": "v"}).violations == []
    assert {kind.name for kind in KINDS} > HOLD_BACK


@pytest.mark.parametrize("kept", [True, False])
def test_an_acknowledgement_without_a_replication_id_belongs_to_its_neighbours(kept: bool) -> None:
    """The connection died, or Redis was frozen, before the id was read: it counts all the same.

    Args:
        kept: others of that leadership have one.
    """
    unnamed = [write(at, replid="") for at in range(60, 110)]
    entries, stop = succession(*unnamed, stop="none")
    report = judge([each for each in entries if kept or each.node == B or not each.replid], {"k": "v"}, stop)
    assert report.told["two primaries"] == 1
    # The residue's, too.
    entries, stop = succession(write(105, replid="", confirmed=True), stop=WHOLE_HOST)
    assert judge(entries, {"k": "v"}, stop).residue_confirmed == 1


def test_a_replication_id_is_that_of_the_nearer_neighbour() -> None:
    """The first write of a later leadership is none of the one before."""
    entries = [
        *(write(at, replid="one") for at in range(10)),
        *(write(at, node=B, replid="two") for at in range(20, 30)),
        write(40, replid=""),
        *(write(at, replid="three") for at in range(42, 50)),
    ]
    assert judge(entries, {"k": "v"}).violations == []


def test_redis_and_guard_stopped_together_are_a_stopped_host() -> None:
    """For as long as both are."""
    faults = [
        Fault(t0=10, t1=50, kind=STOP_REDIS, target="a"),
        Fault(t0=20, t1=60, held_from=21, held_until=59, kind=STOP_GUARD, target="a"),
        Fault(t0=70, t1=80, kind=STOP_GUARD, target="a"),
        Fault(t0=0, t1=90, kind=STOP_GUARD, target="b"),
    ]
    assert whole_stops(faults, "a") == [Stop(21, 50, 50)]
    assert whole_stops(faults, "b") == []


# --- the rest ---------------------------------------------------------------------------------------------------------


def test_outages_are_pauses_without_an_acknowledged_write() -> None:
    """By clients that look for the leader: stubborn ones do not count. The edges of a round do."""
    entries = [write(0, outcome=REFUSED), write(500), write(550), write(799), write(800, stubborn=True), write(1000)]
    report = judge(entries, {"k": "v"})
    assert report.outage_ns == 501 * MS
    assert report.duration_ns == 1001 * MS
    assert report.unavailable_ns == (501 + 249 + 201) * MS
    assert report.availability == pytest.approx(50 / 1001)


def test_sums_of_rounds() -> None:
    """Counts add up; the longest outage is the longest."""
    total = Report()
    for _ in range(2):
        total.add(judge([write(0, key="a"), write(300, key="b", value="x")], {"a": "v"}))
    assert (total.total.attempts, total.total.lost, total.outage_ns) == (4, 2, 300 * MS)


def test_the_first_write_after_a_moment() -> None:
    """Sent after it, acknowledged first."""
    entries = [write(0), write(10, outcome=REFUSED), write(11, took_ms=9), write(12), write(14, confirmed=True)]
    assert first_after(entries, 5 * MS) == entries[3]
    assert first_after(entries, 5 * MS, confirmed=True) == entries[4]
    assert first_after(entries, 15 * MS) is None


def test_a_history_is_read_back(tmp_path: Path) -> None:
    """But for a line that its writer could not finish."""
    path = tmp_path / "history.jsonl"
    entries = [write(0, confirmed=True), write(1, "incr", result=7), write(2, outcome=UNKNOWN, error="ä")]
    path.write_bytes(b"".join(history.encode(entry) + b"\n" for entry in entries) + b'{"t0": 1')
    assert list(history.read([path])) == entries


def test_a_picture_is_well_formed(tmp_path: Path) -> None:
    """Roles, writes and faults are in it, whatever their names are."""
    path = tmp_path / "picture.svg"
    sights = [Sight(t=at * 100 * MS, node="n1", role="primary", leads=at > 3, epoch=1) for at in range(10)]
    fault = Fault(t0=0, kind="<rack-cut>", target="n1")
    plot.write(path, {"n1": A}, [write(5)], sights, [fault], span=(0, 1000 * MS), title="a & b")
    text = ET.parse(path).getroot()
    titles = [title.text or "" for title in text.iter("{http://www.w3.org/2000/svg}title")]
    assert any("leads" in title for title in titles)
    assert any("<rack-cut> n1" in title for title in titles)
