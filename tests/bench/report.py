"""The results as Markdown and as JSON."""

from __future__ import annotations

import argparse
import datetime as dt
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from redis_agent.lab.load import Losses
from tests.bench.events import Kind, Measured, parts
from tests.bench.statistics import machine, markdown_table, summary

HEADER = ("milliseconds", "p50", "p95", "p99", "max")
TITLES = {
    Kind.CRASH: "SIGKILL to the leader's Redis",
    Kind.HANDOVER: "planned switchover",
    Kind.RESTART: "SIGKILL to the leader's agent, which is started again at once",
}
TARGETS = {
    Kind.CRASH: "p50 of the first line at most 25 ms, p99 at most 80 ms",
    Kind.HANDOVER: "p50 of the longest write at most 20 ms, p99 at most 60 ms, no error, nothing lost",
    Kind.RESTART: "100 ms after the interpreter is up; fenced by the guard within 100 ms",
}
SINCE = {Kind.CRASH: "kill", Kind.HANDOVER: "order", Kind.RESTART: "kill"}


@dataclass(slots=True, kw_only=True)
class Idle:
    """A process with nothing to do."""

    member: str
    role: str
    process: str
    cpu_percent: float
    rss_mb: float


@dataclass(slots=True, kw_only=True)
class Lost:
    """What became of acknowledged writes."""

    confirmed: int = 0
    confirmed_lost: int = 0
    plain: int = 0
    plain_lost: int = 0
    counters_lost: int = 0
    counters_doubled: int = 0

    def add(self, losses: Losses | Lost) -> None:
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(losses, name))

    @property
    def sound(self) -> bool:
        return not self.confirmed_lost and not self.counters_doubled

    def sentence(self) -> str:
        return (
            f"Of {self.confirmed:,} writes confirmed by WAIT {self.confirmed_lost} were lost, of {self.plain:,} others "
            f"that were acknowledged {self.plain_lost}; {self.counters_lost} acknowledged increments were lost, "
            f"{self.counters_doubled} doubled."
        )


@dataclass(slots=True, kw_only=True)
class Results:
    """Everything that was measured."""

    measured: list[Measured] = field(default_factory=list)
    lost: dict[Kind, Lost] = field(default_factory=dict)
    idle: list[Idle] = field(default_factory=list)
    not_done: list[str] = field(default_factory=list)
    """Planned switchovers that did not happen, and why."""

    def of(self, kind: Kind) -> list[Measured]:
        return [each for each in self.measured if each.kind == kind.value]

    @property
    def sound(self) -> bool:
        """Nothing confirmed was lost, nothing doubled; and every handover was done, without any loss or error."""
        planned = self.lost.get(Kind.HANDOVER, Lost())
        errors = sum(each.unknown + each.surprises for each in self.of(Kind.HANDOVER))
        gentle = not (planned.plain_lost or planned.counters_lost or errors or self.not_done)
        return gentle and all(lost.sound for lost in self.lost.values())


def _row(title: str, values: Sequence[float]) -> list[str]:
    return [title, *(f"{value:.1f}" for value in summary(values).values())]


def _lines(kind: Kind, measured: Sequence[Measured]) -> dict[str, list[float]]:
    since = SINCE[kind]
    return {
        f"{since} to the first acknowledged write on the new leader": [each.first_ms for each in measured],
        f"{since} to the first write confirmed by WAIT": [
            each.first_confirmed_ms for each in measured if each.first_confirmed_ms is not None
        ],
        f"{since} to the last write that the old leader acknowledged, fenced by its guard": [
            each.last_ms for each in measured if each.last_ms is not None
        ],
        "longest time without an acknowledged write": [each.gap_ms for each in measured],
        "longest time that one write took": [each.longest_ms for each in measured],
    }


def _section(kind: Kind, measured: Sequence[Measured], lost: Lost) -> list[str]:
    unknown, surprises = sum(each.unknown for each in measured), sum(each.surprises for each in measured)
    unconfirmed = sum(each.unconfirmed for each in measured)
    errors = (
        f"Errors that the clients could not hide: writes of unknown outcome {unknown}, unexpected answers {surprises}. "
        f"Acknowledged, but not confirmed by their WAIT: {unconfirmed}."
    )
    return [
        f"### {TITLES[kind].capitalize() if kind is Kind.HANDOVER else TITLES[kind]}: {len(measured)} times",
        "",
        markdown_table(HEADER, [_row(title, values) for title, values in _lines(kind, measured).items() if values]),
        "",
        f"Target: {TARGETS[kind]}. {lost.sentence()} {errors}",
        "",
        "Where the time goes (each from the stage before it):",
        "",
        markdown_table(HEADER, [_row(title, values) for title, values in parts(measured).items()]),
        "",
    ]


def markdown(results: Results, options: argparse.Namespace) -> str:
    """The page's section."""
    setting = (
        f"3 agents, 3 ZooKeeper servers (fsync on), {options.rate:g} writes per second, all on one machine: "
        f"{machine()}. {dt.datetime.now(dt.UTC):%Y-%m-%d}."
    )
    lines = [setting, ""]
    for kind in Kind:
        if measured := results.of(kind):
            lines += _section(kind, measured, results.lost[kind])
    if results.not_done:
        lines += [
            f"{len(results.not_done)} switchovers were not done, the first one because: {results.not_done[0]}",
            "",
        ]
    if results.idle:
        rows = [
            [each.member, each.role, each.process, f"{each.cpu_percent:.2f}", f"{each.rss_mb:.1f}"]
            for each in results.idle
        ]
        lines += [
            f"### Without load, over {options.idle:g} s",
            "",
            "Targets, for agent and guard together: 1 % of a core, 60 MB.",
            "",
            markdown_table(("member", "role", "process", "CPU, % of a core", "RSS, MB"), rows),
            "",
        ]
    return "\n".join(lines).rstrip()


def numbers(results: Results) -> dict[str, object]:
    """All of it, for machines."""
    kinds: dict[str, object] = {}
    for kind in Kind:
        if measured := results.of(kind):
            kinds[kind.value] = {
                "times": len(measured),
                "ms": {title: summary(values) for title, values in _lines(kind, measured).items() if values},
                "parts_ms": {title: summary(values) for title, values in parts(measured).items()},
                "unknown": sum(each.unknown for each in measured),
                "unconfirmed": sum(each.unconfirmed for each in measured),
                "surprises": sum(each.surprises for each in measured),
                "lost": asdict(results.lost[kind]),
            }
    return {
        "machine": machine(),
        "kinds": kinds,
        "not_done": results.not_done,
        "idle": [asdict(each) for each in results.idle],
        "measured": [asdict(each) for each in results.measured],
    }
