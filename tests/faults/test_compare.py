"""The comparison as a smoke test: one fault in both systems, on real processes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.bed import missing
from tests.faults.compare_run import run
from tests.support.lacking import required

pytestmark = [
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.skipif(bool(missing()) and not required(), reason=missing() or "-"),
]


@pytest.mark.parametrize("system", ["agent-2s", "sentinel-1000"])
def test_both_systems_survive_a_crash(system: str, tmp_path: Path) -> None:
    """Another Redis takes writes, the same clients see it, and nothing that WAIT confirmed is gone."""
    outcome = run(system, "crash", 1, tmp_path, rate_per_s=300, warm_s=0.5)
    assert outcome.first_write_ms is not None
    assert outcome.confirmed.acknowledged > 0
    assert outcome.increments.acknowledged > 0
    assert outcome.confirmed.lost == 0
    assert outcome.dual_primary_ms == 0
    assert outcome.equal
