"""That the tests would notice: a handful of mutants in every build, and the list of all of them kept in order.

``make mutants`` runs them all.
"""

from __future__ import annotations

import py_compile
import shutil
from pathlib import Path

import pytest

from tests.sim.mutant import Mutant, apply
from tests.sim.mutant_rules import MUTANTS, SPARED
from tests.sim.mutants import BY_NAME, ROOT, recorded, try_mutant

AT_LEAST = 25
QUICK = (
    "session-number",
    "quorum",
    "not-ahead",
    "everyone-testified",
    "guard-armed",
    "followers-fenced",
    "seal-before-designation",
    "dead-redis-resigns",
)
"""Found within a few seconds, from each section of the list."""
NEXT = 12
"""How many seeds are tried behind the recorded one: a change of the simulator may have shifted what it shows."""


@pytest.mark.parametrize("name", QUICK)
def test_a_core_that_lacks_a_rule_is_caught(name: str) -> None:
    """By a violation of an invariant that the rule is there for, or by the test that it is there for."""
    mutant = BY_NAME[name]
    seed = recorded().get(name, {}).get("seed")
    seeds = [*([] if seed is None else [seed]), *range(1, NEXT + 1)] if mutant.by_seeds else []
    outcome = try_mutant(mutant, seeds, limit_s=60.0)
    assert outcome.as_expected, str(outcome)


@pytest.mark.parametrize("mutant", [*MUTANTS, *SPARED], ids=lambda mutant: mutant.name)
def test_each_edit_fits_the_source(mutant: Mutant, tmp_path: Path) -> None:
    """Every text to be replaced is there exactly once, and what is left is a program."""
    for edit in mutant.edits:
        (tmp_path / edit.file).parent.mkdir(parents=True, exist_ok=True)
        if not (tmp_path / edit.file).exists():
            shutil.copy(ROOT / edit.file, tmp_path / edit.file)
    apply(mutant, tmp_path)
    for file in {edit.file for edit in mutant.edits}:
        py_compile.compile(str(tmp_path / file), doraise=True)


def test_the_list_is_in_order() -> None:
    """Enough rules, each once; the record is about all of them, and says that each is caught as it is said to be."""
    assert len(BY_NAME) == len(MUTANTS) + len(SPARED)
    assert len(MUTANTS) >= AT_LEAST
    assert all(mutant.spared for mutant in SPARED)
    known = recorded()
    assert list(known) == [mutant.name for mutant in MUTANTS], "`make mutants ARGS=--record`"
    for mutant in MUTANTS:
        found = known[mutant.name]
        assert found.get("test", "") == mutant.test.rpartition("::")[2], f"{mutant.name}: its test"
        assert found.get("invariant") or not mutant.by_seeds, f"{mutant.name}: its seed"
