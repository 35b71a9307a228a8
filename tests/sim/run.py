"""Run seeds: ``python -m tests.sim.run --seeds 1..100`` or ``--seed 7 --trace``.

A seed that violates an invariant is run again with the transcript on, and its end is printed. Exit status 1 then.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections import Counter
from dataclasses import dataclass
from typing import Any

from tests.sim.cluster import Cluster, Shape
from tests.sim.nemesis import Nemesis
from tests.sim.world import Violation

FAULTS_S = 60.0
HEAL_LIMIT_S = 90.0
ORDERS_LIMIT_S = 30.0
TAIL_LINES = 150


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
) -> Result:
    """One seed: start, break things for a while, heal, and see that all is well."""
    shape = shape_of(seed)
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
        cluster.run(2.0)
        cluster.until("it stays so", cluster.in_sync, 1.0)
        cluster.until("every order has its answer", cluster.orders_answered, ORDERS_LIMIT_S)
    except Violation as found:
        violation = found
    except AssertionError:  # the fakes' own: it needs the seed and the transcript as much
        violation = Violation("simulator", traceback.format_exc())
    return Result(seed=seed, violation=violation, cluster=cluster, members=shape.members)


def report(result: Result, *, lines: int | None = TAIL_LINES) -> str:
    """The violation, and the (end of the) transcript."""
    if result.violation is None:
        return f"seed {result.seed}: no violation"
    shown = result.cluster.world.lines if lines is None else result.cluster.world.lines[-lines:]
    return "\n".join(
        [
            *shown,
            f"seed {result.seed}, {result.members} members, at {result.cluster.world.now:.4f}: {result.violation}",
            f"again with: python -m tests.sim.run --seed {result.seed} --trace",
        ]
    )


def explain(seed: int, **how: Any) -> str:
    """Run a seed again with the transcript on, and report. ``how``: as `run` takes it."""
    return report(run(seed, trace=True, **how))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--seeds", metavar="A..B", help="a range of seeds, both ends included; a number N means 1..N")
    which.add_argument("--seed", type=int, metavar="N")
    parser.add_argument("--trace", action="store_true", help="print the whole transcript")
    parser.add_argument("--faults-s", type=float, default=FAULTS_S, help="how long things are broken, virtual seconds")
    parser.add_argument("--short-pauses", action="store_true", help="do not stop agents past their lease")
    parser.add_argument("--only", metavar="KIND,...", default="", help="faults of these kinds alone")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first violation")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        seeds = range(options.seed, options.seed + 1)
    else:
        first, _, last = options.seeds.rpartition("..")
        seeds = range(int(first or 1), int(last) + 1)
    how: dict[str, Any] = {
        "faults_s": options.faults_s,
        "long_pauses": not options.short_pauses,
        "only": tuple(filter(None, options.only.split(","))),
    }
    totals: Counter[str] = Counter()
    failed: list[int] = []
    began = time.process_time()
    for seed in seeds:
        result = run(seed, trace=options.trace, **how)
        checker = result.cluster.checker
        totals.update(
            events=result.cluster.world.events,
            writes=len(checker.writes),
            confirmed=len(checker.confirmed),
            epochs=checker.failovers,
            partial_resyncs=checker.partial_resyncs,
            full_resyncs=checker.full_resyncs,
            handovers=checker.handovers,
            guard_fences=checker.guard_fences,
            attached=sum(member.attached for member in result.cluster.members.values()),
            residue=len(checker.residue),
        )
        if options.trace:
            sys.stdout.write(report(result, lines=None) + "\n")
            if result.violation is None:
                sys.stdout.write("\n".join(result.cluster.world.lines) + "\n")
        if result.violation is not None:
            failed.append(seed)
            if options.keep_going:
                sys.stdout.write(f"seed {seed}: {str(result.violation).splitlines()[0]}\n")
            elif not options.trace:
                sys.stdout.write(explain(seed, **how) + "\n")
                break
    spent_s = time.process_time() - began
    done = seeds.index(seed) + 1
    broken = f" {failed[:20]}" if failed else ""
    sys.stdout.write(
        f"{done} seeds, {len(failed)} with a violation{broken}, {done / spent_s:.1f} seeds "
        f"per CPU second; {', '.join(f'{count:,} {name}' for name, count in totals.items())}\n"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
