"""The runner of seeds: several processes, what it reports, what it writes down."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from argparse import ArgumentTypeError
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from redis_agent import machine
from tests.sim import run as runner
from tests.sim.cluster import Cluster
from tests.sim.run import explain, main, play, run, seed_range
from tests.sim.tally import Outcome, Tally
from tests.sim.workers import WorkerFailed, spread

LIMIT_S = 60.0
QUICK = ["--faults-s", "3"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("3", range(1, 4)), ("1..3", range(1, 4)), ("7..7", range(7, 8)), ("19999..20000", range(19999, 20001))],
)
def test_ranges(text: str, expected: range) -> None:
    """A..B with both ends, or N for 1..N."""
    assert seed_range(text) == expected


@pytest.mark.parametrize("text", ["", "..", "3..", "..3", "4..3", "0x1", "1-3", "a..b", "-3", "1..2..3", "0"])
def test_what_is_no_range(text: str) -> None:
    """It is refused with a word on what is wanted."""
    with pytest.raises(ArgumentTypeError, match=r"A\.\.B"):
        seed_range(text)


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_every_seed_is_played_once(jobs: int) -> None:
    """However many processes there are, and also if there are more of them than seeds."""
    assert sorted(spread(lambda seed: seed * seed, range(1, 4), jobs)) == [1, 4, 9]


def test_a_worker_that_dies_is_an_error() -> None:
    """It names the seed, and does not hang."""
    with pytest.raises(WorkerFailed, match="seed 5 died: exit code 3"):
        list(spread(lambda seed: os._exit(3) if seed == 5 else seed, range(1, 9), 2))


def test_an_exception_in_a_worker_is_an_error() -> None:
    """It names the seed and shows where it came from."""

    def divide(seed: int) -> float:
        return 1 / (seed - 5)

    with pytest.raises(WorkerFailed, match=r"seed 5: [^$]*in divide[^$]*ZeroDivisionError"):
        list(spread(divide, range(1, 9), 2))


def test_workers_end_when_nobody_listens() -> None:
    """Whoever has enough closes the iterator: no worker plays on."""

    def slow(seed: int) -> tuple[int, int]:
        if seed > 2:
            time.sleep(LIMIT_S)
        return seed, os.getpid()

    with closing(spread(slow, range(1, 9), 2)) as outcomes:
        pids = {next(outcomes)[1], next(outcomes)[1]}
        began = time.monotonic()
    assert time.monotonic() - began < LIMIT_S / 2
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_ctrl_c_is_clean() -> None:
    """SIGINT to the whole group, as a terminal sends it: the figures so far, no traceback, and nobody is left."""
    program = [sys.executable, "-m", "tests.sim.run", "--seeds", "1000000", "--jobs", "2", *QUICK]
    runs = subprocess.Popen(
        program,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert runs.stdout is not None
        first = runs.stdout.readline()
        os.killpg(runs.pid, signal.SIGINT)
        # A worker that is left would hold the pipe open.
        printed, _ = runs.communicate(timeout=LIMIT_S)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(runs.pid, signal.SIGKILL)
        runs.communicate()
    assert first == "seeds 1..1000000, 2 at a time\n"
    assert runs.returncode == 130
    assert "Traceback" not in printed
    assert "interrupted" in printed
    assert "seeds per second" in printed


def test_a_violation_in_a_worker_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its seed, the transcript's end, how to have it again, and status 1; no later seeds are begun."""
    break_seed(monkeypatch, 4)
    assert main(["--seeds", "1..1000", "--jobs", "2", *QUICK]) == 1
    printed = capsys.readouterr().out
    assert "seed 4: progress: not within 0 s: pigs fly" in printed
    assert "again with: python -m tests.sim.run --seed 4 --trace" in printed
    assert "leader.serving" in printed
    figures = dict(line.split()[:2] for line in printed.splitlines() if line.startswith("  ") and len(line.split()) > 1)
    assert figures["violations"] == "1"
    assert int(figures["seeds"]) < 20


def test_a_replay_is_equal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """What a worker found is found by --seed, line by line as the report has it."""
    break_seed(monkeypatch, 4)
    assert main(["--seeds", "4..4", "--jobs", "2", *QUICK]) == 1
    reported = capsys.readouterr().out
    assert main(["--seed", "4", *QUICK]) == 1
    replayed = capsys.readouterr().out
    assert len(replayed.splitlines()) > 100
    assert replayed in reported


def break_seed(monkeypatch: pytest.MonkeyPatch, broken: int) -> None:
    """Let this seed violate something, in this process and in those that are forked from it."""

    class Broken(Cluster):
        def stop_clients(self) -> None:
            if self.world.seed == broken:
                self.until("pigs fly", lambda: False, 0.0)
            super().stop_clients()

    monkeypatch.setattr(runner, "Cluster", Broken)


def test_seeds_do_not_touch_each_other() -> None:
    """A seed plays out the same alone and after others, in whatever order."""
    alone = {seed: plain(play(seed, faults_s=5.0)) for seed in (3, 4, 5)}
    assert {seed: plain(play(seed, faults_s=5.0)) for seed in (5, 3, 4)} == alone


def plain(outcome: Outcome) -> tuple[object, ...]:
    return outcome.violation, outcome.virtual_s, outcome.totals, outcome.counts


def test_the_coverage_shows_what_was_reached_and_what_never_was() -> None:
    """Each step that was taken is counted; rows that were not taken at all are marked."""
    tally = Tally()
    tally.add(play(1, faults_s=0.1))
    shown = tally.coverage()
    assert "candidate.voting, elected" in shown
    assert "* overdue -> leader.reclaiming from leader.designating, leader.handing_over" in shown
    rows = {f"{source} {row.trigger}" for row in machine.TRANSITIONS for source in row.sources}
    assert set(tally.of("step")) <= rows
    assert tally.of("invariant")["epochs"] >= 2
    # Also what was not put to the test at all.
    assert re.search(r"^  handover +0$", shown, re.MULTILINE)


def test_a_run_is_recorded(tmp_path: Path) -> None:
    """A line of JSON behind those that are there."""
    file = tmp_path / "ranges.jsonl"
    file.write_text('{"seeds": "0..0"}\n', encoding="utf-8")
    assert main(["--seeds", "2..3", "--jobs", "2", "--record", str(file), *QUICK]) == 0
    first, second = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    assert first == {"seeds": "0..0"}
    assert (second["seeds"], second["played"], second["violations"]) == ("2..3", 2, 0)
    assert second["seconds"] > 0
    assert second["seeds_per_s"] > 0
    assert second["date"] == time.strftime("%Y-%m-%d")


def test_the_figures_are_sums() -> None:
    """Of everything that the outcomes say."""
    tally = Tally()
    for seed, violation in ((1, ""), (2, "one writer: a and b")):
        counts = Counter({("fault", "hang"): seed})
        totals = Counter({"writes": 1000})
        one = Outcome(
            seed=seed, members=3, violation=violation, virtual_s=60.0, cpu_s=0.1, totals=totals, counts=counts
        )
        tally.add(one)
    assert (tally.seeds, tally.failed, tally.virtual_s) == (2, [(2, "one writer: a and b")], 120.0)
    assert tally.of("fault") == {"hang": 3}
    assert "2,000" in tally.figures()


def test_the_brief_transcript_has_what_matters(capsys: pytest.CaptureFixture[str]) -> None:
    """Steps, faults and who accepts writes, without every event that an agent hears."""
    assert main(["--seed", "3", "--brief", *QUICK]) == 0
    printed = capsys.readouterr().out
    for mark in (
        "ACCEPTS WRITES",
        "candidate.voting -> candidate.claiming  on elected",
        "nemesis  *** heals everything",
    ):
        assert mark in printed
    assert " < Tick" not in printed


def test_the_end_of_a_transcript_says_how_to_have_it_again() -> None:
    """Also where nothing is wrong it says so."""
    assert explain(1, faults_s=0.1).splitlines()[-1].endswith("no violation")
    assert run(1, faults_s=0.1).violation is None
