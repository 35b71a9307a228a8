"""The checker of the faults: hand-made histories in which each thing goes wrong that it must see, and right ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from tests.faults import history, plot
from tests.faults.analysis import Report, analyse, first_after, whole_stops
from tests.faults.history import REFUSED, UNKNOWN, Contents, Entry, Fault, Sight

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


def increments(*results: int | None, confirmed: bool = False) -> list[Entry]:
    """One client's; None: of unknown outcome."""
    return [
        write(at, "incr", key="n", result=result, confirmed=confirmed and result is not None)
        if result is not None
        else write(at, "incr", key="n", outcome=UNKNOWN)
        for at, result in enumerate(results)
    ]


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
    """Increments of unknown outcome may have happened or not, and may show up late."""
    assert judge(increments(1, 2, 3), {"n": "3"}).violations == []
    assert judge(increments(1, None, 3, None), {"n": "4"}).violations == []
    assert judge(increments(1, None, 2, None, 4), {"n": "4"}).violations == []
    assert judge(increments(None, None, 1), {"n": "2"}).total.lost == 0


@pytest.mark.parametrize(
    ("results", "final"), [((1, 3), "3"), ((1, None, 4), "4"), ((1, 2), "3"), ((1, None, 2, None), "5")]
)
def test_a_doubled_increment(results: tuple[int | None, ...], final: str) -> None:
    """More increments than were sent, seen in an answer or at the end."""
    assert any("is doubled" in each for each in judge(increments(*results), {"n": final}).violations)


@pytest.mark.parametrize(
    ("results", "final", "lost"),
    [((1, 2, 3, 2), "2", 2), ((1, 2, 3), "1", 2), ((1, 2), None, 2), ((1, 2, 2, 2), "2", 2)],
)
def test_lost_increments(results: tuple[int, ...], final: str | None, lost: int) -> None:
    """Each one counts; confirmed ones are violations."""
    contents = {} if final is None else {"n": final}
    plain = judge(increments(*results), contents)
    assert (plain.total.lost, plain.violations) == (lost, [])
    confirmed = judge(increments(*results, confirmed=True), contents)
    assert confirmed.total.confirmed_lost == lost
    assert f"{lost} confirmed writes are lost" in confirmed.violations


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
    assert any("two primaries: 10.99.0.1:6379 acknowledged" in each for each in report.violations)


def test_overlaps_are_not_added_up() -> None:
    """Three primaries at once are two too many for the same milliseconds."""
    entries = [
        write(at, node=f"10.99.0.{node}:6379", replid=str(node)) for node in (1, 2, 3) for at in range(node, 100)
    ]
    assert judge(entries, {"k": "v"}).dual_ms == pytest.approx(99 - 3)


def continued(end_ms: int, *late: Entry) -> tuple[list[Entry], Fault]:
    """A leads, its host stops at 10 ms and goes on later; B leads meanwhile."""
    entries = [write(at) for at in range(10)] + [write(at, node=B, replid="two") for at in range(50, 200)]
    return [*entries, *late], Fault(t0=10 * MS, t1=end_ms * MS, kind="host-freeze", target="10.99.0.1")


def test_a_continued_host_is_kept_apart() -> None:
    """What was in its sockets, and what it took until its fence landed; nothing of it may be confirmed."""
    queued, fresh = write(9, took_ms=100), write(105)
    entries, stop = continued(100, queued, fresh)
    report = judge(entries, {"k": "v"}, stop)
    assert (report.violations, report.dual_ms) == ([], 0)
    assert (report.residue_writes, report.residue_confirmed) == (2, 0)
    # While it stood still it took nothing.
    assert report.residue_ms == pytest.approx(109 - 100)
    entries, stop = continued(100, write(105, confirmed=True))
    assert any("continued host were confirmed" in each for each in judge(entries, {"k": "v"}, stop).violations)


@pytest.mark.parametrize("late_ms", [60, 3000])
def test_a_continued_host_excuses_nothing_else(late_ms: int) -> None:
    """Not what was acknowledged while it should have stood still, nor long afterwards."""
    entries, stop = continued(100, write(late_ms), *(write(at, node=B, replid="two") for at in range(200, 4000, 50)))
    assert judge(entries, {"k": "v"}, stop).dual_ms > 0


def test_redis_and_guard_stopped_together_are_a_stopped_host() -> None:
    """For as long as both are."""
    faults = [
        Fault(t0=10, t1=50, kind="redis-stop", target="a"),
        Fault(t0=20, t1=60, kind="guard-stop", target="a"),
        Fault(t0=70, t1=80, kind="guard-stop", target="a"),
        Fault(t0=0, t1=90, kind="guard-stop", target="b"),
    ]
    assert whole_stops(faults, "a") == [(20, 50)]
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
