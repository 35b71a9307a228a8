"""What one run of the comparison measured, and where it is kept: one JSON file for each, so that a comparison that was
interrupted goes on where it was.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

SYSTEMS = {
    "agent": "redis-agent, session 6 s",
    "agent-2s": "redis-agent, session 2 s",
    "sentinel-5000": "Sentinel 5000",
    "sentinel-5000-min": "Sentinel 5000, min-replicas",
    "sentinel-1000": "Sentinel 1000",
    "sentinel-1000-min": "Sentinel 1000, min-replicas",
    "sentinel-1000-min-lag2": "Sentinel 1000, min-replicas, max-lag 2",
    "sentinel-5000-aof": "Sentinel 5000, AOF",
    "sentinel-1000-pause": "Sentinel 1000, `CLIENT PAUSE` before",
}
"""What they are called; settings are in compare_systems.py."""
MAIN = tuple(SYSTEMS)[:7]
"""Those that every fault can tell apart; the others are for one question each."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A fault, and the systems it makes sense to compare under it."""

    title: str
    systems: tuple[str, ...] = MAIN


SCENARIOS = {
    "crash": Scenario("SIGKILL to the primary's redis-server"),
    "host": Scenario("The primary's host loses power and network"),
    "switchover": Scenario("Planned switchover", (*MAIN, "sentinel-1000-pause")),
    "partition": Scenario("The primary and a client cut off"),
    "pause": Scenario("SIGSTOP to the primary's redis-server, SIGCONT later", ("agent", *MAIN[2:6])),
    "restart": Scenario(
        "SIGKILL to the primary's redis-server, which is started again at once",
        ("agent", "sentinel-5000", "sentinel-5000-aof"),
    ),
}


@dataclass(slots=True, kw_only=True)
class Lost:
    """Acknowledged writes of some writers, and how many of them were gone in the end."""

    acknowledged: int = 0
    lost: int = 0


@dataclass(slots=True, kw_only=True)
class Outcome:
    """One fault in one system. Times in milliseconds after the fault, or of its length."""

    system: str
    scenario: str
    run: int
    first_write_ms: float | None = None
    """To the first acknowledged write on the next primary. None: there was none."""
    stopped_ms: float = 0.0
    """The longest time without an acknowledged write of clients that can reach the next primary."""
    refused: int = 0
    """Answers that certainly were no write: an error, a refused connection."""
    unknown: int = 0
    """Writes whose outcome their clients were not told."""
    plain: Lost = field(default_factory=Lost)
    """Acknowledged SETs without WAIT."""
    unconfirmed: Lost = field(default_factory=Lost)
    """Acknowledged SETs whose WAIT counted too few replicas: their client knows that they are in danger."""
    confirmed: Lost = field(default_factory=Lost)
    """SETs that WAIT confirmed to be on a majority."""
    increments: Lost = field(default_factory=Lost)
    stayers: Lost = field(default_factory=Lost)
    """SETs of clients that stay with the old primary until it sends them away; in none of the numbers above."""
    doubled: int = 0
    """Increments that were executed more often than they were sent."""
    dual_primary_ms: float = 0.0
    """For so long two nodes acknowledged writes."""
    settled_ms: float | None = None
    """Until everybody followed one primary again, after the end of the fault."""
    equal: bool = True
    """Whether all nodes had the same data in the end."""
    note: str = ""

    @property
    def acknowledged_lost(self) -> int:
        """Of every kind, by clients that look for the primary."""
        return self.plain.lost + self.unconfirmed.lost + self.confirmed.lost + self.increments.lost


def decode(text: str) -> Outcome:
    """The inverse of ``encode``."""
    known = json.loads(text)
    for name in ("plain", "unconfirmed", "confirmed", "increments", "stayers"):
        known[name] = Lost(**known[name])
    return Outcome(**known)


def encode(outcome: Outcome) -> str:
    return json.dumps(asdict(outcome), indent=2) + "\n"


class Store:
    """The runs below one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def path(self, system: str, scenario: str, run: int) -> Path:
        return self.directory / f"{scenario}.{system}.{run}.json"

    def has(self, system: str, scenario: str, run: int) -> bool:
        return self.path(system, scenario, run).exists()

    def add(self, outcome: Outcome) -> None:
        path = self.path(outcome.system, outcome.scenario, outcome.run)
        # Whole or not at all: we may be stopped at any moment.
        half = path.with_suffix(".new")
        half.write_text(encode(outcome), encoding="utf-8")
        half.replace(path)

    def all(self) -> list[Outcome]:
        return [decode(path.read_text(encoding="utf-8")) for path in sorted(self.directory.glob("*.*.*.json"))]


@dataclass(frozen=True, slots=True)
class Spread:
    """Of the same number in several runs."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        known = [value for value in values if value is not None]
        return cls(statistics.median(known), min(known), max(known)) if known else None


def spread(
    outcomes: Sequence[Outcome], system: str, scenario: str, number: Callable[[Outcome], float | None]
) -> Spread | None:
    """Over all runs of this; None if there is none."""
    return Spread.of(number(each) for each in outcomes if (each.system, each.scenario) == (system, scenario))
