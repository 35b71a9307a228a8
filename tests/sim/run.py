"""Run seeds: ``python -m tests.sim.run --seeds 1..100`` or ``--seed 7 --trace``.

A seed that violates an invariant is run again with the transcript on, and its end is printed. Exit status 1 then, 2 if
the simulator itself failed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tests.sim import transcript
from tests.sim.cluster import Cluster, Shape
from tests.sim.nemesis import Nemesis
from tests.sim.tally import Outcome, Progress, Tally, outcome_of, record
from tests.sim.workers import WorkerFailed, spread
from tests.sim.world import Violation

FAULTS_S = 60.0
HEAL_LIMIT_S = 90.0
ORDERS_LIMIT_S = 30.0
STAY_LIMIT_S = 10.0
"""A message that was slow before the healing may cost the leader its lease afterwards: it resumes."""

TAIL_LINES = 150

RANGES = "tests/sim/ranges.jsonl"
WORTH_RECORDING = 1000
"""How many seeds are worth a word on how to record them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Of one seed."""

    seed: int
    violation: Violation | None
    cluster: Cluster
    members: int


def shape_of(seed: int) -> Shape:
    """Size and persistence by seed, so that any range of seeds has a mixture."""
    members = (3, 3, 3, 5, 2, 3, 5, 1)[seed % 8]
    disks = (("none",), ("rdb",), ("aof",), ("rdb", "aof", "none"))[seed // 8 % 4]
    return Shape(members=members, disks=disks, writers=(2, 3)[seed % 2])


def run(
    seed: int,
    *,
    trace: bool = False,
    faults_s: float = FAULTS_S,
    long_pauses: bool = True,
    only: tuple[str, ...] = (),
    clock_rate: float | None = None,
) -> Result:
    """One seed: start, break things for a while, heal, and see that all is well."""
    shape = replace(shape_of(seed), clock_rate=clock_rate)
    cluster = Cluster(seed, shape, trace=trace)
    if cluster.world.chance(0.3):
        cluster.checker.backlog_entries = 30  # so that those who were away need full resyncs
    cluster.checker.transfer_share = cluster.world.rng.choice((0.2, 1.0, 10.0))
    violation = None
    try:
        cluster.start()
        cluster.start_clients()
        nemesis = Nemesis(cluster, long_pauses=long_pauses, only=only)
        if cluster.world.chance(0.8):
            cluster.until("the first leader serves and all follow", cluster.in_sync)
        nemesis.start()
        cluster.run(faults_s)
        nemesis.heal()
        cluster.run(1.0)
        cluster.stop_clients()
        cluster.until("after healing one leader serves and all others are in sync", cluster.in_sync, HEAL_LIMIT_S)
        cluster.world.count("invariant", "healing")
        cluster.run(2.0)
        cluster.until("it stays so", cluster.in_sync, STAY_LIMIT_S)
        cluster.until("every order has its answer", cluster.orders_answered, ORDERS_LIMIT_S)
    except Violation as found:
        violation = found
    except AssertionError:  # the fakes' own: it needs the seed and the transcript as much
        violation = Violation("simulator", traceback.format_exc())
    return Result(seed=seed, violation=violation, cluster=cluster, members=shape.members)


def report(result: Result, *, lines: int | None = TAIL_LINES) -> str:
    """The violation, and the (end of the) transcript."""
    shown = result.cluster.world.lines if lines is None else result.cluster.world.lines[-lines:]
    verdict = "no violation" if result.violation is None else str(result.violation)
    end = [f"seed {result.seed}, {result.members} members, at {result.cluster.world.now:.4f}: {verdict}"]
    if result.violation is not None:
        end.append(f"again with: python -m tests.sim.run --seed {result.seed} --trace")
    return "\n".join([*shown, *end])


def explain(seed: int, **how: Any) -> str:
    """Run a seed again with the transcript on, and report. ``how``: as `run` takes it."""
    return report(run(seed, trace=True, **how))


def play(seed: int, **how: Any) -> Outcome:
    """Run a seed, and keep only what came of it."""
    began = time.process_time()
    result = run(seed, **how)
    return outcome_of(result, time.process_time() - began)


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    how: dict[str, Any] = {
        "faults_s": options.faults_s,
        "long_pauses": not options.short_pauses,
        "only": tuple(filter(None, options.only.split(","))),
        "clock_rate": options.clock_rates,
    }
    if options.seed is not None:
        return _one(options.seed, trace=options.trace, brief=options.brief, how=how)
    tally = Tally()
    try:
        status = _many(options, tally, how)
    except KeyboardInterrupt:
        sys.stdout.write("interrupted\n")
        status = 130
    except WorkerFailed as failure:
        sys.stdout.write(f"{failure}\n")
        status = 2
    sys.stdout.write(tally.figures() + "\n")
    if options.coverage:
        sys.stdout.write("\n" + tally.coverage() + "\n")
    if options.record is not None and status in (0, 1):
        record(options.record, tally, options.seeds)
    elif len(options.seeds) >= WORTH_RECORDING:
        sys.stdout.write(f"not recorded: that takes --record {RANGES}\n")
    return status


def seed_range(text: str) -> range:
    """``A..B``, both included; a number N means 1..N.

    Raises:
        argparse.ArgumentTypeError: it is neither.
    """
    first, dots, last = text.partition("..")
    numbers = (first, last) if dots else ("1", first)
    if not all(number.isascii() and number.isdigit() for number in numbers) or int(numbers[0]) > int(numbers[1]):
        raise argparse.ArgumentTypeError(f"not a range of seeds: {text!r}; write A..B, or N for 1..N")
    return range(int(numbers[0]), int(numbers[1]) + 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.run", description=(__doc__ or "").splitlines()[0])
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--seeds", metavar="A..B", type=seed_range, help="both ends included; a number N means 1..N")
    which.add_argument("--seed", type=int, metavar="N", help="this one, exactly as it was in any run")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes (%(default)s)")
    parser.add_argument("--trace", action="store_true", help="print the whole transcript of --seed")
    parser.add_argument("--brief", action="store_true", help="the same, but only faults, steps, and who accepts writes")
    parser.add_argument("--coverage", action="store_true", help="print what was reached, and which steps never were")
    parser.add_argument("--record", type=Path, metavar="FILE", help="append what came of the range, as a line of JSON")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first violation")
    parser.add_argument("--faults-s", type=float, default=FAULTS_S, help="how long things are broken, virtual seconds")
    parser.add_argument("--short-pauses", action="store_true", help="do not stop agents past their lease")
    parser.add_argument("--only", metavar="KIND,...", default="", help="faults of these kinds alone")
    parser.add_argument("--clock-rates", type=float, metavar="SHARE", help="how far clocks' rates are from 1, at most")
    return parser


def _one(seed: int, *, trace: bool, brief: bool, how: dict[str, Any]) -> int:
    """Nothing here depends on how fast it was: the same seed prints the same."""
    result = run(seed, trace=trace or brief, **how)
    if brief:
        result.cluster.world.lines = transcript.brief(result.cluster.world.lines)
    if result.violation is not None and not (trace or brief):
        sys.stdout.write(explain(seed, **how) + "\n")
    else:
        sys.stdout.write(report(result, lines=None) + "\n")
    return 1 if result.violation is not None else 0


def _many(options: argparse.Namespace, tally: Tally, how: dict[str, Any]) -> int:
    """Seeds in several processes, up to the first violation."""
    seeds: range = options.seeds
    progress = Progress(len(seeds))
    jobs = min(options.jobs, len(seeds))
    sys.stdout.write(f"seeds {seeds[0]}..{seeds[-1]}, {jobs} at a time\n")
    sys.stdout.flush()
    with closing(spread(partial(play, **how), seeds, jobs)) as outcomes:
        for outcome in outcomes:
            tally.add(outcome)
            progress.show(tally)
            if outcome.violation:
                progress.clear()
                sys.stdout.write(f"seed {outcome.seed}: {outcome.violation}\n")
                if not options.keep_going:
                    break
    progress.clear()
    if tally.failed and not options.keep_going:
        sys.stdout.write(explain(tally.failed[-1][0], **how) + "\n")
    return 1 if tally.failed else 0


if __name__ == "__main__":
    sys.exit(main())
