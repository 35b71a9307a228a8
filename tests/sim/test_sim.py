"""The core under seeds. How many: SIM_SEEDS in the environment; more of them by ``make sim SEEDS=n``.

What is checked on the way stands in `checker`. A failing seed prints its transcript's end, and how to have it again.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.run import explain, run

SEEDS = int(os.environ.get("SIM_SEEDS", "128"))
CHUNK = 8


@pytest.mark.parametrize("first", range(1, SEEDS + 1, CHUNK))
def test_no_seed_breaks_a_promise(first: int) -> None:
    """One writer at most, epochs grow by one, nothing confirmed is lost, histories never mix, and all heals.

    # case B10 (power losses are among the faults)
    """
    for seed in range(first, min(first + CHUNK, SEEDS + 1)):
        result = run(seed)
        if result.violation is not None:
            pytest.fail(explain(seed), pytrace=False)


def test_a_seed_plays_out_the_same_way_in_another_process() -> None:
    """Also where sets and dictionaries of strings are ordered differently: nothing depends on hashes."""
    command = [sys.executable, "-m", "tests.sim.run", "--seed", "3", "--trace", "--faults-s", "15"]
    transcripts = []
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
        )
        transcripts.append(done.stdout.splitlines())
    assert len(transcripts[0]) > 100
    assert transcripts[0] == transcripts[1]
