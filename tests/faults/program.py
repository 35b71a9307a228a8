"""Faults on real processes, for as long as asked: ``python -m tests.faults``, or ``make faults MINUTES=60 SEED=1``.

Three hosts and three ZooKeeper servers in network namespaces, clients on every side of every partition, and faults that
a seed chooses. Exit code 1 if anything was violated; then everything is kept, and told where. docs/faults.md says more.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from redis_agent.demo import requirements
from redis_agent.logs import hushed
from tests.bench.statistics import machine, replace_section
from tests.faults import bed as beds
from tests.faults import history, plot
from tests.faults.analysis import Report, Tally
from tests.faults.bed import Bed
from tests.faults.cluster import PERSISTENCE, BedCluster, BedEnsemble, redis_conf
from tests.faults.history import Fault, Sight
from tests.faults.nemesis import BY_NAME, Plan, Planned, plan
from tests.faults.round import Outcome, Rounds, agent_finder, everywhere

_SHORTEST_S, _LONGEST_S = 5.0, 14.0
RECORD = Path(__file__).with_name("record.json")
"""The run that docs/faults.md shows, for the documents' generated parts."""


class Run:
    """All rounds of a run, what is written about them, and the sums."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.directory = directory
        self.seed = seed
        self.total = Report()
        self.outcomes: list[Outcome] = []
        self.done: Counter[str] = Counter()
        self.not_done: Counter[str] = Counter()
        self.sights: list[Sight] = []
        self.faults: list[Fault] = []
        self.nodes: dict[str, str] = {}
        self.remarks: list[str] = []

    def remark(self, remarks: Iterable[str]) -> None:
        """Something about the machine, told once."""
        for remark in sorted(set(remarks) - set(self.remarks)):
            print(remark, flush=True)
            self.remarks.append(remark)

    def take(self, outcome: Outcome) -> None:
        """Add a round, tell of it in a line, and draw it."""
        self.outcomes.append(outcome)
        self.total.add(outcome.report)
        self.done.update(fault.kind for fault in outcome.faults)
        self.not_done.update(told.partition(" ")[0] for told in outcome.not_done)
        self.faults += outcome.faults
        self.sights += outcome.sights
        with (self.directory / "faults.jsonl").open("ab") as file:
            file.writelines(history.encode(fault) + b"\n" for fault in outcome.faults)
        with (self.directory / "sights.jsonl").open("ab") as file:
            file.writelines(history.encode(sight) + b"\n" for sight in outcome.sights)
        assert outcome.history is not None
        title = f"seed {self.seed}, round {outcome.number}: {told_faults(outcome)}"
        plot.write(
            self.directory / f"r{outcome.number:04}.svg",
            self.nodes,
            history.read([outcome.history]),
            outcome.sights,
            outcome.faults,
            span=(outcome.began, outcome.ended),
            title=title[:170],
        )
        # The run has them.
        outcome.sights = []
        print(line(outcome), flush=True)
        for violation in outcome.report.violations:
            print(f"    VIOLATED: {violation}", flush=True)

    def finish(self) -> None:
        """The sums: text, JSON and the picture of it all."""
        text = summary(self)
        print(text, flush=True)
        (self.directory / "report.txt").write_text(text + "\n", encoding="utf-8")
        (self.directory / "report.json").write_text(json.dumps(numbers(self), indent=2) + "\n", encoding="utf-8")
        if self.outcomes:
            paths = [outcome.history for outcome in self.outcomes if outcome.history is not None]
            plot.write(
                self.directory / "timeline.svg",
                self.nodes,
                history.read(paths),
                self.sights,
                self.faults,
                span=(self.outcomes[0].began, self.outcomes[-1].ended),
                title=f"seed {self.seed}: {len(self.outcomes)} rounds",
            )


def told_faults(outcome: Outcome) -> str:
    """What went wrong when, in a line."""
    begun = outcome.began
    return ", ".join(
        f"{fault.kind} {fault.target} {(fault.t0 - begun) / 1e9:.1f}"
        + (f"-{(fault.t1 - begun) / 1e9:.1f} s" if fault.t1 - fault.t0 > 5e7 else " s")
        for fault in sorted(outcome.faults, key=lambda each: each.t0)
    )


def line(outcome: Outcome) -> str:
    """One round on the terminal."""
    report, total = outcome.report, outcome.report.total
    parts = [
        f"round {outcome.number:3} ({outcome.persistence}): {told_faults(outcome) or 'nothing went wrong'}",
        f"{total.attempts} attempts, {total.acknowledged} acknowledged, {total.confirmed} confirmed",
        f"lost {total.lost} and {total.confirmed_lost}",
        f"longest outage {report.outage_ns / 1e9:.2f} s",
        f"in sync {outcome.converged_s:.1f} s after the last fault",
    ]
    if report.dual_ms or report.residue_ms:
        parts.append(f"dual-primary {report.dual_ms:.1f} ms, continued host {report.residue_ms:.1f} ms")
    if outcome.restarted:
        parts.append(f"Redis began anew on {', '.join(outcome.restarted)}")
    if outcome.repaired:
        parts.append(f"operator repaired the file of {', '.join(outcome.repaired)}")
    if outcome.not_done:
        parts.append(f"not done: {'; '.join(each.splitlines()[0][:80] for each in outcome.not_done)}")
    return " | ".join(parts)


def numbers(run: Run) -> dict[str, object]:
    """Everything that the text says, and each round."""
    total = run.total
    return {
        "seed": run.seed,
        "rounds": len(run.outcomes),
        "seconds": total.duration_ns / 1e9,
        "writes": {name: dataclasses.asdict(tally) for name, tally in sorted(total.tallies.items())},
        "all_writes": dataclasses.asdict(total.total),
        "reads": total.reads,
        "reads_that_vanished": total.vanished,
        "dual_primary_ms": total.dual_ms,
        "continued_hosts": {
            "ms": total.residue_ms,
            "acknowledged": total.residue_writes,
            "confirmed": total.residue_confirmed,
        },
        "late_acknowledgements": sum(each.writes for each in total.late),
        "longest_outage_s": total.outage_ns / 1e9,
        "availability": total.availability,
        "slowest_convergence_s": max((each.converged_s for each in run.outcomes), default=0.0),
        "repaired_by_operator": sum(len(each.repaired) for each in run.outcomes),
        "persistence": dict(Counter(each.persistence for each in run.outcomes)),
        "faults": dict(run.done.most_common()),
        "faults_not_done": dict(run.not_done.most_common()),
        "remarks": run.remarks,
        "violations": total.violations,
        "per_round": [
            {
                "number": outcome.number,
                "persistence": outcome.persistence,
                "faults": told_faults(outcome),
                "converged_s": outcome.converged_s,
                "redis_began_anew": outcome.restarted,
                "outage_s": outcome.report.outage_ns / 1e9,
                "availability": outcome.report.availability,
                "writes": dataclasses.asdict(outcome.report.total),
                "violations": outcome.report.violations,
            }
            for outcome in run.outcomes
        ],
    }


def summary(run: Run) -> str:
    """The report, in Markdown."""
    report = run.total

    def row(name: str, tally: Tally) -> str:
        cells = [tally.attempts, tally.refused, tally.unknown, tally.acknowledged, tally.confirmed]
        cells += [tally.lost, tally.confirmed_lost]
        return f"| {name} | " + " | ".join(f"{cell:,}" for cell in cells) + " |"

    late = sum(each.writes for each in report.late)
    slowest = max((each.converged_s for each in run.outcomes), default=0.0)
    residue = f"{report.residue_writes} acknowledged, {report.residue_confirmed} confirmed"
    repaired = sum(len(each.repaired) for each in run.outcomes)
    rule = "(a pause of more than 100 ms without an acknowledged write is an outage)"
    kept = Counter(each.persistence for each in run.outcomes)
    length = f"{len(run.outcomes)} rounds ({', '.join(f'{kind} {count}' for kind, count in kept.items())})"
    length += f", {report.duration_ns / 60e9:.1f} minutes of writing"
    lines = [
        f"\nSeed {run.seed}: {length}. {machine()}.",
        "",
        "| | attempts | refused | unknown | acknowledged | confirmed | lost, not confirmed | lost, confirmed |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
        *(row(name.upper(), tally) for name, tally in sorted(report.tallies.items())),
        row("all", report.total),
        "",
        f"- two primaries: {report.dual_ms:.1f} ms",
        f"- continued whole hosts: {report.residue_ms:.1f} ms, {residue}",
        f"- other acknowledgements that arrived after the next leader's first, and were sent before it: {late}",
        f"- longest outage {report.outage_ns / 1e9:.2f} s, availability {report.availability:.2%} {rule}",
        f"- every node read and equal after each round; slowest convergence {slowest:.1f} s",
        f"- lost although WAIT alone had counted enough links (but too few voters): {report.total.waited_lost}",
        f"- {report.reads:,} values read, {report.vanished} of them gone later",
        f"- faults: {', '.join(f'{kind} {count}' for kind, count in run.done.most_common())}",
        *([f"- append-only files that an operator had to repair (redis-check-aof): {repaired}"] if repaired else []),
        *([f"- not done: {dict(run.not_done)}"] if run.not_done else []),
        *(f"- {remark}" for remark in run.remarks),
        f"- violations: {len(report.violations)}",
        *(f"  - {violation}" for violation in report.violations),
    ]
    return "\n".join(lines)


def plans(
    options: argparse.Namespace, cluster: BedCluster, first: int, length_s: float
) -> Iterator[tuple[int, Plan, random.Random]]:
    """Rounds until the time is over. A round's faults depend on the seed, its number and who leads."""
    until = time.monotonic() + length_s
    number = first
    while time.monotonic() < until:
        chance = random.Random(f"{options.seed}:{number}")
        leader = cluster.wait_settled().name
        members = list(cluster.nodes)
        if options.only:
            made = Plan(victim=leader)
            for at_s, kind in enumerate(BY_NAME[name] for name in options.only.split(",")):
                target = chance.choice([each.name for each in cluster.servers.machines])
                made.faults.append(
                    Planned(kind, target if kind.targets == "zk" else leader, 0.7 * at_s, kind.longest_s)
                )
        else:
            servers = [machine.name for machine in cluster.servers.machines]
            made = plan(chance, members, servers, leader, length_s=chance.uniform(_SHORTEST_S, _LONGEST_S))
        yield number, made, chance
        number += 1


def execute(options: argparse.Namespace, directory: Path) -> Run:
    """The whole run, an equal part of it with each kind of persistence. Stops at the first violation."""
    run = Run(directory, options.seed)
    kinds = options.persistence.split(",")
    try:
        for kind in kinds:
            if not run.total.violations:
                _execute_with(kind, options, run, options.minutes * 60 / len(kinds))
    except KeyboardInterrupt:
        print("interrupted: what was done so far", flush=True)
    return run


def _execute_with(persistence: str, options: argparse.Namespace, run: Run, length_s: float) -> None:
    """Rounds on a cluster of their own."""
    scratch = Path(tempfile.mkdtemp(prefix="ra-faults-"))
    try:
        with (
            Bed(scratch, keep=False) as bed,
            BedEnsemble(bed) as ensemble,
            BedCluster(bed, ensemble, redis_conf=redis_conf(persistence)) as cluster,
        ):
            run.nodes = {member.name: member.node for member in cluster.nodes.values()}
            reasons = {cluster.why_no_jumps, *(member.disk.why_no_stall for member in cluster.nodes.values())}
            run.remark(reasons - {""})
            clients = everywhere(cluster, agent_finder(cluster), load=options.load)
            rounds = Rounds(cluster, clients, run.directory)
            try:
                first = options.first + len(run.outcomes)
                for number, planned, chance in plans(options, cluster, first, length_s):
                    outcome = rounds.run(number, planned, chance)
                    outcome.persistence = persistence
                    run.take(outcome)
                    if run.total.violations:
                        _keep(cluster, run.directory)
                        break
            finally:
                rounds.close()
                for each in clients:
                    each.close()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _keep(cluster: BedCluster, directory: Path) -> None:
    """Whatever tells more, before the bed goes: logs, state, configuration and data of every host."""
    (directory / "cluster.txt").write_text(cluster.describe(), encoding="utf-8")
    for host in cluster.bed.hosts.values():
        # Through the host's own mounts: its disk is not ours.
        seen = Path(f"/proc/{host.holder.pid}/root{host.directory}")
        shutil.copytree(
            seen,
            directory / "hosts" / host.name,
            ignore=shutil.ignore_patterns("disk.img", "ballast", "*.sock", "lost+found"),
            dirs_exist_ok=True,
        )


def publish(run: Run, page: Path, minutes: float) -> None:
    """Put the sums and the picture into a page, and the figures where other pages get them from."""
    picture = page.parent / "images" / f"{page.stem}.svg"
    picture.parent.mkdir(exist_ok=True)
    shutil.copyfile(run.directory / "timeline.svg", picture)
    told = numbers(run)
    del told["per_round"]
    told |= {"date": time.strftime("%Y-%m-%d"), "minutes": minutes, "load_average": round(os.getloadavg()[2], 1)}
    alt = "Each member's role and the writes that it acknowledged, with the faults below, over the whole run"
    busy = f"load average of the machine, the bed included: {told['load_average']}"
    head = f"A run of {minutes:g} minutes, {told['date']}; {busy}.\n\n![{alt}](images/{picture.name})\n"
    replace_section(page, "faults", head + summary(run))
    RECORD.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0, help="how long; default: 3")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=1, metavar="N", help="number of the first round; default: 1")
    parser.add_argument("--only", default="", metavar="KINDS", help=f"these faults only: {', '.join(BY_NAME)}")
    parser.add_argument("--load", type=float, default=1.0, help="times the usual number of writes (some 600 a second)")
    parser.add_argument(
        "--persistence",
        default=",".join(PERSISTENCE),
        metavar="KINDS",
        help="what Redis writes to disk, an equal part of the run for each; default: %(default)s",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="replace the section of this Markdown page and images/<its name>.svg beside it",
    )
    parser.add_argument("--directory", type=Path, help="for results; default: build/faults/<time>")
    options = parser.parse_args(arguments)
    requirements.prepare_path()
    if lacking := requirements.missing() or beds.missing():
        print(f"make faults: {lacking}", file=sys.stderr)
        return 2
    directory = (options.directory or Path("build/faults") / time.strftime("%Y%m%d-%H%M%S")).resolve()
    directory.mkdir(parents=True, exist_ok=True)
    print(f"seed {options.seed}, {options.minutes:g} minutes; results are in {directory}", flush=True)
    with hushed("kazoo"):
        run = execute(options, directory)
    run.finish()
    if options.output is not None:
        publish(run, options.output, options.minutes)
    if run.total.violations:
        print(f"VIOLATED. Everything is in {directory}; docs/faults.md says how to read it.", file=sys.stderr)
        return 1
    return 0
