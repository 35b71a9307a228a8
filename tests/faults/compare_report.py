"""The comparison as Markdown tables and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict

from tests.bench.statistics import markdown_table
from tests.faults.compare_results import SCENARIOS, SYSTEMS, Lost, Outcome, Spread, spread

Number = Callable[[Outcome], float | None]


def duration(ms: float) -> str:
    """As people say it."""
    if ms < 0.5:
        return "0"
    return f"{ms:.0f} ms" if ms < 1000 else f"{ms / 1000:.1f} s"


def count(number: float) -> str:
    return f"{number:,.0f}"


def shown(found: Spread | None, text: Callable[[float], str]) -> str:
    """The median, and behind it the range if there is one."""
    if found is None:
        return "-"
    median, least, most = (text(value) for value in (found.median, found.least, found.most))
    return median if least == most else f"{median} ({least} to {most})"


COLUMNS: tuple[tuple[str, Number, Callable[[float], str]], ...] = (
    ("first write", lambda each: each.first_write_ms, duration),
    ("no write for", lambda each: each.stopped_ms, duration),
    ("acknowledged and lost", lambda each: each.acknowledged_lost, count),
    ("confirmed and lost", lambda each: each.confirmed.lost, count),
    ("INCR lost", lambda each: each.increments.lost, count),
    ("two primaries", lambda each: each.dual_primary_ms, duration),
    ("settled after", lambda each: each.settled_ms, duration),
    ("lost by clients that stay", lambda each: each.stayers.lost, count),
    ("unknown outcome", lambda each: each.unknown, count),
)


def table(outcomes: Sequence[Outcome], scenario: str) -> str:
    """One row for each system."""
    header = ["system", *(title for title, _, _ in COLUMNS)]
    rows = []
    for system, title in SYSTEMS.items():
        if any((each.system, each.scenario) == (system, scenario) for each in outcomes):
            cells = (shown(spread(outcomes, system, scenario, number), text) for _, number, text in COLUMNS)
            rows.append([title, *cells])
    return markdown_table(header, rows)


def markdown(outcomes: Sequence[Outcome]) -> str:
    """All tables, and what all runs together have written."""
    lines = []
    for scenario, about in SCENARIOS.items():
        these = [each for each in outcomes if each.scenario == scenario]
        if these:
            lines += [f"### {about.title}", "", f"{_runs(these)}.", "", table(outcomes, scenario), ""]
            lines += [f"- {note}" for note in _notes(these)]
            lines += [""] if _notes(these) else []
    lines += ["### All together", "", totals(outcomes)]
    return "\n".join(lines)


def _runs(outcomes: Iterable[Outcome]) -> str:
    by_system: dict[str, int] = {}
    for each in outcomes:
        by_system[each.system] = by_system.get(each.system, 0) + 1
    least, most = min(by_system.values()), max(by_system.values())
    runs = f"{most} runs" if most > 1 else "1 run"
    return f"{runs} of each" if least == most else f"{least} to {runs} of each"


def _notes(outcomes: Iterable[Outcome]) -> list[str]:
    """What happened besides, each once, with the system that it happened to and how often."""
    found: dict[tuple[str, str], int] = {}
    for each in outcomes:
        remarks = [each.note] if each.note else []
        remarks += [] if each.equal else ["the nodes had different data in the end"]
        remarks += ["increments were doubled"] if each.doubled else []
        remarks += ["no other primary took over"] if each.first_write_ms is None else []
        for remark in remarks:
            found[each.system, remark] = found.get((each.system, remark), 0) + 1
    return [f"{SYSTEMS[system]}: {remark} ({times} times)" for (system, remark), times in found.items()]


def totals(outcomes: Sequence[Outcome]) -> str:
    """What was written over all runs, and what was lost of it."""
    rows = []
    for system, title in SYSTEMS.items():
        these = [each for each in outcomes if each.system == system]
        if these:
            acknowledged = sum(
                each.acknowledged for one in these for each in (one.plain, one.unconfirmed, one.confirmed)
            ) + sum(one.increments.acknowledged for one in these)
            confirmed = _sum(one.confirmed for one in these)
            rows.append(
                [
                    title,
                    count(len(these)),
                    count(acknowledged),
                    count(sum(one.acknowledged_lost for one in these)),
                    count(confirmed.acknowledged),
                    count(confirmed.lost),
                    duration(sum(one.dual_primary_ms for one in these)),
                ]
            )
    header = ("system", "runs", "acknowledged", "lost", "confirmed by WAIT", "lost", "two primaries for")
    return markdown_table(header, rows)


def _sum(many: Iterable[Lost]) -> Lost:
    total = Lost()
    for each in many:
        total.acknowledged += each.acknowledged
        total.lost += each.lost
    return total


def numbers(outcomes: Sequence[Outcome], setting: dict[str, str]) -> dict[str, object]:
    """All of it, for machines."""
    medians: dict[str, dict[str, object]] = {}
    for scenario in SCENARIOS:
        for system in SYSTEMS:
            if any((each.system, each.scenario) == (system, scenario) for each in outcomes):
                found = {title: spread(outcomes, system, scenario, number) for title, number, _ in COLUMNS}
                medians.setdefault(scenario, {})[system] = {
                    title: None if each is None else asdict(each) for title, each in found.items()
                }
    return {"setting": setting, "medians": medians, "runs": [asdict(each) for each in outcomes]}
