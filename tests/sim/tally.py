"""What came of many seeds: figures, and what the run has reached of faults, steps of the state machine, invariants."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from redis_agent import __version__, machine
from tests.sim import checker
from tests.sim.excuses import CONTINUED, NOBODY
from tests.sim.world import START_S

if TYPE_CHECKING:
    from tests.sim.run import Result

_INVARIANT = re.compile(r"^\d+\. (.+?) {2,}", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Of one seed, without its cluster: small, and it travels between processes."""

    seed: int
    members: int
    violation: str = ""
    """In one line; empty: none."""
    virtual_s: float
    cpu_s: float
    totals: Counter[str]
    counts: Counter[tuple[str, str]]


def outcome_of(result: Result, cpu_s: float) -> Outcome:
    """What is kept of a seed."""
    cluster, found = result.cluster, result.cluster.checker
    totals = Counter(
        {
            "events": cluster.world.events,
            "writes": len(found.writes),
            "confirmed": len(found.confirmed),
            "epochs": found.failovers,
            "handovers": found.handovers,
            "partial resyncs": found.partial_resyncs,
            "full resyncs": found.full_resyncs,
            "guard fences": found.guard_fences,
            "attached to a running Redis": sum(member.attached for member in cluster.members.values()),
            **{f"residue of {why}": list(found.residue.values()).count(why) for why in (CONTINUED, NOBODY)},
            **cluster.losses(),
        }
    )
    return Outcome(
        seed=result.seed,
        members=result.members,
        violation=str(result.violation).splitlines()[0] if result.violation is not None else "",
        virtual_s=cluster.world.now - START_S,
        cpu_s=cpu_s,
        totals=totals,
        counts=cluster.world.counts,
    )


@dataclass(slots=True)
class Tally:
    """The sum over seeds."""

    seeds: int = 0
    failed: list[tuple[int, str]] = field(default_factory=list)
    virtual_s: float = 0.0
    cpu_s: float = 0.0
    totals: Counter[str] = field(default_factory=Counter)
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    members: Counter[int] = field(default_factory=Counter)
    began: float = field(default_factory=time.monotonic)

    def add(self, outcome: Outcome) -> None:
        """One more."""
        self.seeds += 1
        self.members[outcome.members] += 1
        self.virtual_s += outcome.virtual_s
        self.cpu_s += outcome.cpu_s
        self.totals.update(outcome.totals)
        self.counts.update(outcome.counts)
        if outcome.violation:
            self.failed.append((outcome.seed, outcome.violation))

    @property
    def wall_s(self) -> float:
        return max(time.monotonic() - self.began, 1e-9)

    def of(self, kind: str) -> dict[str, int]:
        """Names and counts of a kind, the most frequent first."""
        found = {name: count for (of, name), count in self.counts.items() if of == kind}
        return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))

    # -- for people -------------------------------------------------------------------------------------------------

    def figures(self) -> str:
        """How much was run, how fast, and what happened in it."""
        sizes = ", ".join(f"{count:,} of {size}" for size, count in sorted(self.members.items()))
        cpu_s = max(self.cpu_s, 1e-9)
        rows = [
            ("seeds", f"{self.seeds:,}", f"members: {sizes}"),
            ("violations", f"{len(self.failed):,}", " ".join(str(seed) for seed, _ in sorted(self.failed)[:20])),
            ("real time", f"{self.wall_s:,.1f} s", f"{self.seeds / self.wall_s:,.1f} seeds per second"),
            ("processor time", f"{self.cpu_s:,.1f} s", f"{self.seeds / cpu_s:,.1f} seeds per second of one core"),
            ("virtual time", f"{self.virtual_s:,.0f} s", f"{self.virtual_s / self.wall_s:,.0f} times faster than life"),
            *((name, f"{count:,}", "") for name, count in self.totals.items()),
        ]
        return _table(rows)

    def coverage(self) -> str:
        """What struck, what was looked at, which steps of the state machine were taken, and which never were."""
        taken = self.of("step")
        steps = [
            (f"{source}, {row.trigger}", f"{taken[f'{source} {row.trigger}']:,}", f"-> {row.dest}")
            for row in machine.TRANSITIONS
            for source in row.sources
            if f"{source} {row.trigger}" in taken
        ]
        tested = self.of("invariant")
        tested |= {name: 0 for name in _INVARIANT.findall(checker.__doc__ or "") if name not in tested}
        never: list[str] = []
        unused = 0
        for row in machine.TRANSITIONS:
            untaken = [source for source in row.sources if f"{source} {row.trigger}" not in taken]
            if untaken:
                whole = len(untaken) == len(row.sources)
                unused += whole
                never.append(f"  {'*' if whole else ' '} {row.trigger} -> {row.dest} from {', '.join(untaken)}")
        parts = [
            "Faults:",
            _table([(name, f"{count:,}", "") for name, count in self.of("fault").items()]),
            "\nInvariants, and how often each was put to the test:",
            _table([(name, f"{count:,}", "") for name, count in tested.items()]),
            "\nSteps of the state machine:",
            _table(steps),
            f"\nOf the table's {len(machine.TRANSITIONS)} rows {unused} were never taken (*), others not from:",
            *never,
        ]
        return "\n".join(parts)


def _table(rows: list[tuple[str, str, str]]) -> str:
    """Names to the left, numbers aligned at their ends, remarks."""
    left = max((len(name) for name, _, _ in rows), default=0)
    right = max((len(number) for _, number, _ in rows), default=0)
    return "\n".join(f"  {name:<{left}}  {number:>{right}}  {remark}".rstrip() for name, number, remark in rows)


class Progress:
    """One line on a terminal, a few times a second at most; nothing elsewhere."""

    def __init__(self, seeds: int) -> None:
        self.seeds = seeds
        self.shows = sys.stderr.isatty()
        self._next = 0.0

    def show(self, tally: Tally) -> None:
        if not self.shows or tally.wall_s < self._next:
            return
        self._next = tally.wall_s + 0.3
        left_s = (self.seeds - tally.seeds) * tally.wall_s / tally.seeds
        text = f"{tally.seeds:,} of {self.seeds:,} seeds, {len(tally.failed)} violations, "
        text += f"{tally.seeds / tally.wall_s:.1f} per second, {left_s:,.0f} s left"
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()

    def clear(self) -> None:
        if self.shows:
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()


def record(file: Path, tally: Tally, seeds: range) -> None:
    """Append a run to the list of ranges; `docs/simulation.md` shows it."""
    line = {
        "date": time.strftime("%Y-%m-%d"),
        "version": __version__,
        "commit": _commit(),
        "seeds": f"{seeds[0]}..{seeds[-1]}",
        "played": tally.seeds,
        "violations": len(tally.failed),
        "virtual_s": round(tally.virtual_s),
        "seconds": round(tally.wall_s, 1),
        "seeds_per_s": round(tally.seeds / tally.wall_s, 1),
        "seeds_per_cpu_s": round(tally.seeds / max(tally.cpu_s, 1e-9), 1),
    }
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")


def _commit() -> str:
    """Short hash of what was run; with a plus if the working tree had changes. Empty without git."""
    here = Path(__file__).parent
    try:
        git = ["git", "-C", str(here)]
        name = subprocess.run([*git, "rev-parse", "--short=9", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return name.stdout.strip() + ("+" if changes.stdout.strip() else "")
