"""redis-agent and Redis Sentinel under the same faults, with the same clients: ``python -m tests.faults.compare``.

Each run is a fresh system in a bed of its own. What is finished is kept, so that a comparison that was interrupted goes
on where it was.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from redis_agent.demo import requirements
from redis_agent.logs import hushed
from tests.bench.statistics import machine, replace_section
from tests.faults.bed import missing
from tests.faults.compare_plot import picture
from tests.faults.compare_report import markdown, numbers
from tests.faults.compare_results import SCENARIOS, SYSTEMS, Outcome, Store
from tests.faults.compare_run import RATE_PER_S, run

FAULT_S = 20.0
ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "comparison.md"
IMAGE = ROOT / "docs" / "images" / "comparison.svg"


def wanted(options: argparse.Namespace) -> Iterator[tuple[str, str, int]]:
    """System, scenario and number of each run. All systems get a first run before any gets a second."""
    for number in range(1, options.runs + 1):
        for scenario, about in SCENARIOS.items():
            for system in about.systems:
                if scenario in options.scenarios and system in options.systems:
                    yield system, scenario, number


def conditions(options: argparse.Namespace) -> dict[str, str]:
    """What all runs of one comparison must have in common."""
    return {
        "machine": machine(),
        "writes per second": f"{options.rate:g}",
        "partitions and pauses last": f"{options.fault_seconds:g} s",
    }


def check_store(options: argparse.Namespace) -> str:
    """Why what is there can't be gone on with; empty if it can."""
    path = options.directory / "conditions.json"
    now = conditions(options)
    if not path.exists():
        path.write_text(json.dumps(now, indent=2) + "\n", encoding="utf-8")
    then = json.loads(path.read_text(encoding="utf-8"))
    if then == now:
        return ""
    return f"{options.directory} has runs under other conditions ({then}, now {now}): remove it, or give --fresh"


def perform(options: argparse.Namespace, store: Store) -> int:
    """All runs that are missing. Returns how many failed."""
    missing_runs = [each for each in wanted(options) if not store.has(*each)]
    failed = 0
    for done, (system, scenario, number) in enumerate(missing_runs, start=1):
        begun = time.monotonic()
        # Short, because unix sockets are below it.
        directory = Path(tempfile.mkdtemp(prefix="rc-"))
        told = f"[{done}/{len(missing_runs)}] {scenario}, {SYSTEMS[system]}, run {number}"
        try:
            outcome = run(system, scenario, number, directory, fault_s=options.fault_seconds, rate_per_s=options.rate)
        except KeyboardInterrupt:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        except Exception as error:  # noqa: BLE001  (whatever it was, the other runs go on, and this one is tried again)
            failed += 1
            (directory / "error.txt").write_text(f"{error}\n", encoding="utf-8")
            print(f"{told}: failed, all is in {directory}: {str(error)[:200]}", file=sys.stderr, flush=True)
            continue
        store.add(outcome)
        shutil.rmtree(directory, ignore_errors=True)
        print(f"{told}: {_sentence(outcome)} ({time.monotonic() - begun:.0f} s)", file=sys.stderr, flush=True)
    return failed


def _sentence(outcome: Outcome) -> str:
    first = "no write again" if outcome.first_write_ms is None else f"first write {outcome.first_write_ms:.0f} ms"
    return (
        f"{first}, {outcome.acknowledged_lost} acknowledged lost, {outcome.confirmed.lost} of them confirmed, "
        f"two primaries for {outcome.dual_primary_ms:.0f} ms"
    )


def report(options: argparse.Namespace, store: Store) -> bool:
    """Write tables, numbers and plot. Returns whether redis-agent kept its promises."""
    outcomes = store.all()
    known = json.loads((options.directory / "conditions.json").read_text(encoding="utf-8"))
    runs = max((each.run for each in outcomes), default=0)
    setting = (
        f"{known['machine']}, everything on this machine; {known['writes per second']} writes per second; partitions "
        f"and pauses of {known['partitions and pauses last']}. {dt.datetime.now(dt.UTC):%Y-%m-%d}."
    )
    text = f"{setting}\n\n{markdown(outcomes)}"
    bars = f"Bars: median of {runs} runs; lines: from the least to the most" if runs > 1 else "One run of each"
    caption = f"{bars}. Dark: confirmed by WAIT. Less is better everywhere."
    plot = picture(outcomes, caption)
    (options.directory / "comparison.md").write_text(text + "\n", encoding="utf-8")
    (options.directory / "comparison.svg").write_text(plot, encoding="utf-8")
    (options.directory / "comparison.json").write_text(
        json.dumps(numbers(outcomes, known), indent=2) + "\n", encoding="utf-8"
    )
    if options.docs:
        replace_section(PAGE, "comparison", text)
        IMAGE.parent.mkdir(exist_ok=True)
        IMAGE.write_text(plot, encoding="utf-8")
    print(text)
    ours = [each for each in outcomes if each.system.startswith("agent")]
    return not any(each.confirmed.lost or each.doubled or each.dual_primary_ms for each in ours)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.compare", description=__doc__)
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="of each fault in each system; default: 3")
    parser.add_argument("--systems", nargs="+", choices=SYSTEMS, default=[*SYSTEMS], metavar="NAME", help="only these")
    parser.add_argument("--scenarios", nargs="+", choices=SCENARIOS, default=[*SCENARIOS], metavar="NAME")
    parser.add_argument("--rate", type=float, default=RATE_PER_S, metavar="N", help="writes per second; default: 1000")
    parser.add_argument("--fault-seconds", type=float, default=FAULT_S, metavar="N", help="of partitions and pauses")
    parser.add_argument("--directory", type=Path, default=ROOT / "build" / "compare", help="for runs and results")
    parser.add_argument("--fresh", action="store_true", help="forget the runs that are there")
    parser.add_argument("--docs", action="store_true", help="write docs/comparison.md and its picture, too")
    options = parser.parse_args(arguments)
    requirements.prepare_path()
    if lacking := requirements.missing() or missing():
        print(lacking, file=sys.stderr)
        return 2
    if options.fresh:
        shutil.rmtree(options.directory, ignore_errors=True)
    store = Store(options.directory / "runs")
    if refused := check_store(options):
        print(refused, file=sys.stderr)
        return 2
    with hushed("kazoo"):
        failed = perform(options, store)
    kept = report(options, store)
    if failed:
        print(f"{failed} runs failed; start it again to repeat them", file=sys.stderr)
    return 0 if kept and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
