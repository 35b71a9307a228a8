"""The comparison's numbers, tables and picture, from canned results."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.faults.compare import check_store, wanted
from tests.faults.compare_plot import CONFIRMED, PANELS, picture
from tests.faults.compare_report import duration, markdown, numbers, table, totals
from tests.faults.compare_results import MAIN, SCENARIOS, SYSTEMS, Lost, Outcome, Spread, Store, decode, encode
from tests.faults.compare_run import dual_primary_ms, measure
from tests.faults.history import Entry
from tests.faults.sentinel import SentinelSettings
from tests.faults.sentinel_finder import SentinelFinder

MS = 1_000_000
SVG = "{http://www.w3.org/2000/svg}"


def outcome(system: str, scenario: str = "crash", run: int = 1, **numbers_: float) -> Outcome:
    made = Outcome(system=system, scenario=scenario, run=run, first_write_ms=50.0)
    for name, value in numbers_.items():
        setattr(made, name, value)
    return made


def entry(client: str, at_ms: float, node: str, **more: object) -> Entry:
    """An acknowledged SET of a millisecond."""
    t0 = int(at_ms * MS)
    known = {"t0": t0, "t1": t0 + MS, "client": client, "op": "set", "key": f"{client}:{at_ms}", "value": "v"}
    return Entry(**{**known, "node": node, "outcome": "ok", "replid": node, **more})  # type: ignore[arg-type]


# --- what is measured -------------------------------------------------------------------------------------------------


def test_losses_are_counted_by_what_the_client_knew() -> None:
    """Plain, unconfirmed and confirmed writes, and those of clients that stay, are told apart."""
    confirmed = {"need": 1, "acked_by": 1, "voters": 1}
    history = [
        entry("far", 0, "a"),
        entry("far", 1, "a", need=1, acked_by=0, voters=0),
        entry("far", 2, "a", **confirmed),
        entry("far", 3, "a", **confirmed),
        entry("stays", 4, "a", stubborn=True),
        entry("far", 5, "a", op="incr", key="c", value="1", result=1),
        entry("far", 6, "a", op="incr", key="c", value="4", result=5),
    ]
    found = measure(history, {"n1": {"far:3": "v", "c": "1"}}, 0, "b")
    assert found.plain == Lost(acknowledged=1, lost=1)
    assert found.unconfirmed == Lost(acknowledged=1, lost=1)
    assert found.confirmed == Lost(acknowledged=2, lost=1)
    assert found.stayers == Lost(acknowledged=1, lost=1)
    assert found.increments == Lost(acknowledged=2, lost=1)
    assert found.acknowledged_lost == 4, "those that stay are told apart"


def test_first_write_is_one_of_the_next_primary() -> None:
    """What the old primary still acknowledges, and what beside it is heard, does not count."""
    history = [
        entry("far", 0, "a", op="incr", key="c", value="1", result=1),
        entry("far", 100, "a"),
        entry("near", 150, "b"),
        entry("far", 300, "b"),
        entry("far", 301, "b"),
    ]
    contents = {each.key: "v" for each in history} | {"c": "1"}
    found = measure(history, {"n1": contents}, 90 * MS, "a")
    assert found.first_write_ms == 211
    assert found.stopped_ms == 200


def test_an_outage_until_the_end_is_one() -> None:
    """Clients that never write again have no acknowledgement that would end it."""
    history = [
        entry("far", 0, "a", op="incr", key="c", value="1", result=1),
        entry("far", 100, "a", outcome="unknown", t1=20_000 * MS),
    ]
    found = measure(history, {"n1": {"c": "1"}}, 0, "a")
    assert found.first_write_ms is None
    assert found.stopped_ms == 19_999


def test_two_primaries_are_seen_through_clients_that_stay() -> None:
    """From the later one's first acknowledgement to the last write that the earlier one took."""
    history = [
        entry("far", 0, "a", op="incr", key="c", value="1", result=1),
        *(entry("stays", 10 * number, "a", stubborn=True) for number in range(1, 11)),
        *(entry("far", 50 + 10 * number, "b") for number in range(11)),
    ]
    contents = {each.key: "v" for each in history} | {"c": "1"}
    assert measure(history, {"n1": contents}, 45 * MS, "a").dual_primary_ms == 100 - 51


def test_a_primary_that_stands_still_is_none() -> None:
    """Stopped or paused, it takes no writes; when it goes on, it does again."""
    history = [
        *(entry("stays", at_ms, "a", stubborn=True) for at_ms in (0, 10, 900, 1000)),
        *(entry("far", 100 * number, "b") for number in range(1, 13)),
    ]
    assert dual_primary_ms(history) == 1000 - 901


def test_a_late_answer_is_no_second_primary() -> None:
    """It was sent before the other began, so its primary may have ended long ago."""
    late = entry("stays", 0, "a", stubborn=True, t1=500 * MS)
    assert dual_primary_ms([late, *(entry("far", 100 * number, "b") for number in range(1, 10))]) == 0


def test_nodes_that_differ_are_noticed() -> None:
    """The replicas must have what the primary has."""
    history = [entry("far", 0, "a", op="incr", key="c", value="1", result=1)]
    assert not measure(history, {"n1": {"c": "1"}, "n2": {}}, 0, "a").equal


# --- where it is kept -------------------------------------------------------------------------------------------------


def test_a_comparison_goes_on_where_it_was(tmp_path: Path) -> None:
    """A finished run is found again as it was; half a file is none."""
    store = Store(tmp_path / "runs")
    kept = outcome("agent", confirmed=Lost(acknowledged=3, lost=1), note="said")  # type: ignore[arg-type]
    store.add(kept)
    (tmp_path / "runs" / "crash.agent.2.new").write_text("{", encoding="utf-8")
    assert store.has("agent", "crash", 1)
    assert not store.has("agent", "crash", 2)
    assert store.all() == [kept] == [decode(encode(kept))]


def options(directory: Path, **given: object) -> argparse.Namespace:
    known: dict[str, object] = {"runs": 2, "rate": 1000.0, "fault_seconds": 20.0, "directory": directory}
    return argparse.Namespace(**(known | {"systems": [*SYSTEMS], "scenarios": [*SCENARIOS]} | given))


def test_each_system_has_a_first_run_before_any_has_a_second(tmp_path: Path) -> None:
    """What was interrupted compares as many runs of each, or one more of some."""
    runs = list(wanted(options(tmp_path)))
    assert [number for _, _, number in runs] == sorted(number for _, _, number in runs)
    assert len(set(runs)) == len(runs) == 2 * sum(len(about.systems) for about in SCENARIOS.values())
    few = list(wanted(options(tmp_path, systems=["agent", "sentinel-5000-aof"], scenarios=["crash", "restart"])))
    assert few[:3] == [("agent", "crash", 1), ("agent", "restart", 1), ("sentinel-5000-aof", "restart", 1)]


def test_runs_under_other_conditions_are_not_mixed(tmp_path: Path) -> None:
    """Half of them with another rate would be a comparison of nothing."""
    assert check_store(options(tmp_path)) == ""
    assert check_store(options(tmp_path)) == ""
    assert "--fresh" in check_store(options(tmp_path, rate=500.0))


# --- how it is told ---------------------------------------------------------------------------------------------------


def test_durations_are_told_as_people_say_them() -> None:
    assert [duration(ms) for ms in (0, 0.2, 53.4, 999, 6200)] == ["0", "0", "53 ms", "999 ms", "6.2 s"]


def test_table_has_median_and_range_of_each_system() -> None:
    """A system without runs has no row; one number is no range."""
    outcomes = [outcome("agent", run=run, first_write_ms=ms) for run, ms in enumerate((60.0, 40.0, 50.0), start=1)]
    outcomes += [outcome("sentinel-5000", dual_primary_ms=12_300.0)]
    lines = table(outcomes, "crash").splitlines()
    assert len(lines) == 4
    assert lines[2].startswith(f"| {SYSTEMS['agent']} | 50 ms (40 ms to 60 ms) |")
    assert " 12.3 s |" in lines[3]
    assert Spread.of([]) is None


def test_page_tells_each_fault_and_what_was_odd() -> None:
    """Faults without runs are left out; notes say whom they are about, once."""
    outcomes = [outcome("sentinel-1000", "partition", run, equal=False) for run in (1, 2)]
    text = markdown(outcomes)
    assert SCENARIOS["partition"].title in text
    assert SCENARIOS["crash"].title not in text
    assert "- Sentinel 1000: the nodes had different data in the end (2 times)" in text


def test_totals_add_up_over_all_faults() -> None:
    """What was confirmed counts among what was acknowledged."""
    lost = {"plain": Lost(acknowledged=10, lost=2), "confirmed": Lost(acknowledged=5, lost=1)}
    outcomes = [outcome("agent", scenario, **lost) for scenario in ("crash", "host")]  # type: ignore[arg-type]
    assert totals(outcomes).splitlines()[2] == f"| {SYSTEMS['agent']} | 2 | 30 | 6 | 10 | 2 | 0 |"


def test_numbers_are_json() -> None:
    """All of it, and the medians by fault and system."""
    told = json.loads(json.dumps(numbers([outcome("agent")], {"machine": "this"})))
    assert told["medians"]["crash"]["agent"]["first write"] == {"median": 50.0, "least": 50.0, "most": 50.0}
    assert told["runs"][0]["system"] == "agent"


# --- the picture ------------------------------------------------------------------------------------------------------


@pytest.fixture
def outcomes() -> list[Outcome]:
    return [
        outcome(system, scenario, run, first_write_ms=100.0 * index * run, dual_primary_ms=float(index))
        for index, system in enumerate(SYSTEMS)
        for scenario, about in SCENARIOS.items()
        if system in about.systems
        for run in (1, 2, 3)
    ]


def test_picture_has_a_bar_for_each_system_in_each_panel(outcomes: list[Outcome]) -> None:
    """And nothing leaves the frame."""
    root = ET.fromstring(picture(outcomes, "less < more"))
    bars = root.findall(f"{SVG}rect")
    assert len(bars) == len(MAIN) * sum(len(row) for row in PANELS)
    assert all(float(bar.attrib["width"]) >= 0 for bar in bars)
    assert max(float(bar.attrib["x"]) + float(bar.attrib["width"]) for bar in bars) < float(root.attrib["width"])
    assert root.findall(f"{SVG}text")[-1].text == "less < more"


def test_picture_says_what_was_not_measured(outcomes: list[Outcome]) -> None:
    """A bar of length 0 would be a claim."""
    some = [each for each in outcomes if (each.system, each.scenario) != ("sentinel-1000", "host")]
    assert picture(some, "").count("not measured") == 1


def test_picture_tells_confirmed_writes_apart() -> None:
    """Of what was lost, the part that nobody expected to lose is darker."""
    lost = {"plain": Lost(acknowledged=9, lost=6), "confirmed": Lost(acknowledged=9, lost=3)}
    root = ET.fromstring(picture([outcome("sentinel-5000", "switchover", **lost)], ""))  # type: ignore[arg-type]
    (dark,) = [each for each in root.findall(f"{SVG}path") if each.attrib["fill"] == CONFIRMED]
    longest = max(float(bar.attrib["width"]) for bar in root.findall(f"{SVG}rect"))
    assert f"h{longest / 3:.1f}v" in dark.attrib["d"]


# --- Sentinel's side --------------------------------------------------------------------------------------------------


def answer(epoch: int, host: str) -> tuple[list[bytes], list[bytes]]:
    return [b"name", b"main", b"config-epoch", b"%d" % epoch], [host.encode(), b"6379"]


def test_finder_believes_the_latest_configuration() -> None:
    """A Sentinel that was cut off tells of the past; one that knows no such primary tells nothing."""
    finder = SentinelFinder([], "main")
    assert finder.find() is None
    for state, address in (answer(0, "a"), answer(1, "b"), answer(0, "a")):
        finder._believe(state, address)
    finder._believe(Exception("ERR No such master with that name"), None)
    found = finder.find()
    assert found is not None
    assert (found.node, found.need, found.voters) == ("b:6379", 1, None)
    finder.close()


def test_sentinel_is_configured_as_compared() -> None:
    """The settings that the table names are those in the files."""
    settings = SentinelSettings(down_after_ms=1000, min_replicas=1, max_lag_s=2)
    assert "sentinel monitor main 10.0.0.1 6379 2" in settings.sentinel_lines("10.0.0.2", "10.0.0.1")
    assert "sentinel down-after-milliseconds main 1000" in settings.sentinel_lines("10.0.0.2", "10.0.0.1")
    assert {"min-replicas-to-write 1", "min-replicas-max-lag 2"} <= set(settings.redis_lines("10.0.0.2"))
