"""What the benchmark makes of its numbers."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import pytest

from tests.bench.events import FIRST_WRITE, Kind, Measured, parts
from tests.bench.report import Lost, Results, markdown, numbers

OPTIONS = argparse.Namespace(rate=1000.0, idle=0.0)


def measured(kind: Kind, **changes: Any) -> Measured:
    given: dict[str, Any] = {
        "kind": kind.value, "old": "n1", "new": "n2", "epoch": 2, "at_s": 100.0, "first_ms": 20.0,
        "first_confirmed_ms": 22.0, "gap_ms": 21.0, "longest_ms": 24.0, "unknown": 0, "unconfirmed": 0, "surprises": 0,
    }  # fmt: skip
    return Measured(**(given | changes))


def test_each_stage_counts_from_the_one_before_it() -> None:
    """What was not told is left out; what two processes logged in another order takes no time, and none is negative."""
    stages = {"redis_died": 1.0, "frozen": 6.0, "ballot_cast": 5.5, "served": 15.0, "fence_lifted": 21.0}
    found = parts([measured(Kind.CRASH, stages_ms=stages)])
    assert list(found.values()) == [[1.0], [5.0], [0.0], [9.0], [6.0], [0.0]]
    assert list(found)[-1] == FIRST_WRITE


@pytest.mark.parametrize(
    ("kind", "event", "lost", "sound"),
    [
        (Kind.CRASH, {}, {}, True),
        # Acknowledged without a confirmation, and errors: they happen in a crash, and must not in a handover.
        (Kind.CRASH, {"unknown": 3}, {"plain_lost": 2, "counters_lost": 1}, True),
        (Kind.HANDOVER, {"unknown": 1}, {}, False),
        (Kind.HANDOVER, {"surprises": 1}, {}, False),
        (Kind.HANDOVER, {}, {"plain_lost": 1}, False),
        (Kind.HANDOVER, {}, {"counters_lost": 1}, False),
        (Kind.CRASH, {}, {"confirmed_lost": 1}, False),
        (Kind.RESTART, {}, {"counters_doubled": 1}, False),
    ],
)
def test_a_broken_promise_fails_the_run(kind: Kind, event: dict[str, int], lost: dict[str, int], sound: bool) -> None:
    """Nothing confirmed is lost and nothing doubled, ever; nothing at all is lost or fails in a handover."""
    results = Results(measured=[measured(kind, **event)], lost={kind: Lost(**lost)})
    assert results.sound is sound
    assert not replace(results, not_done=["refused"]).sound


def test_only_what_happened_is_reported() -> None:
    """One section for each kind, in Markdown and in JSON."""
    results = Results(measured=[measured(Kind.HANDOVER, unconfirmed=4)], lost={Kind.HANDOVER: Lost(confirmed=1000)})
    text = markdown(results, OPTIONS)
    assert "### Planned switchover: 1 times" in text
    assert "SIGKILL" not in text
    assert "Of 1,000 writes confirmed by WAIT 0 were lost" in text
    assert "Acknowledged, but not confirmed by their WAIT: 4." in text
    assert "| longest time that one write took | 24.0 | 24.0 | 24.0 | 24.0 |" in text
    kinds = numbers(results)["kinds"]
    assert isinstance(kinds, dict)
    assert list(kinds) == ["handover"]


def test_a_killed_agents_report_says_how_soon_its_guard_fenced() -> None:
    """By the last write that the old leader acknowledged; one that nobody wrote to any more says nothing."""
    events = [measured(Kind.RESTART, last_ms=3.5), measured(Kind.RESTART)]
    text = markdown(Results(measured=events, lost={Kind.RESTART: Lost()}), OPTIONS)
    assert "acknowledged, fenced by its guard | 3.5 | 3.5 | 3.5 | 3.5 |" in text
