"""A fault at the boundaries of commands, deterministically. All of them: ``python -m tests.sim.boundaries``."""

from __future__ import annotations

import os

import pytest

from tests.sim.boundaries import MOMENTS, SCENARIOS, STRIKES, Case, cases_of, commands_of, explain, play, sampled

SAMPLE = int(os.environ.get("SIM_BOUNDARIES", "16"))


def _holds(cases: list[Case]) -> None:
    for case in cases:
        _, violation = play(case)
        if violation is not None:
            pytest.fail(explain(case), pytrace=False)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_strike_at_any_command_breaks_no_promise(scenario: str) -> None:
    """Whatever is killed or stopped right before or behind a command: all heals, and the invariants hold on the way.

    # case B8 (the winner dies between claim and serve, and between promote and serve), C3, E3, E7
    """
    _holds(sampled(cases_of(scenario, 1), SAMPLE))


def test_the_agent_is_killed_at_every_command_of_a_failover() -> None:
    """Of every member, right before and right behind it: complete, not a sample. # case B8"""
    cases = [case for case in cases_of("failover", 2) if case.strike == "agent" and case.moment != "later"]
    assert len(cases) > 30
    _holds(cases)


def test_a_case_is_named_and_counted() -> None:
    """The commands of a handover are all there, on both sides, and a case's name gives the case again."""
    heard = commands_of("switchover", 1)
    commands = {name for each in heard.values() for name in each}
    assert {"PauseWrites", "CatchUp", "Freeze", "Commit", "Promote", "LiftFence", "ArmGuard", "Follow"} <= commands
    cases = list(cases_of("switchover", 1))
    assert len(cases) == sum(map(len, heard.values())) * len(MOMENTS) * len(STRIKES)
    assert Case.parse(str(cases[7])) == cases[7]
