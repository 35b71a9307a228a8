"""Take rules out of the source, one at a time, and see that something notices.

``python -m tests.sim.mutants`` runs them all, ``--only NAME,...`` some, ``--limit SEEDS`` bounds the search,
``--jobs`` runs several at once, ``--record`` writes what was found to ``mutants.json``, from which the table in
docs/guarantees.md is generated. Exit status 1 if one is not caught as it should be.

Each mutant runs in a copy of the source, in processes of its own: its directed test, which has to fail, where there is
one; and the seeds 1, 2, ... of the ordinary simulator, until the first violation of an invariant that it is expected
to break, where seeds are known to find it. ``--hunt`` tries seeds with all the others, too, ``--limit 0`` with none.
``--spared`` runs those that are known to be caught by nothing: other rules stand behind them.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.sim.mutant import Mutant, apply
from tests.sim.mutant_rules import MUTANTS, SPARED

ROOT = Path(__file__).resolve().parents[2]
RECORD = Path(__file__).with_name("mutants.json")
BY_NAME = {mutant.name: mutant for mutant in (*MUTANTS, *SPARED)}
LIMIT = 400
"""How many seeds are tried at most."""
LIMIT_S = 420.0
"""How long one mutant may take at most: a core that lacks a rule may also never come to an end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a mutant: the directed test that failed with it, the invariant that a seed of ``tried`` broke."""

    mutant: Mutant
    test: str = ""
    invariant: str = ""
    seed: int | None = None
    tried: int = 0
    detail: str = ""
    passed_over: tuple[str, ...] = ()
    """Violations of invariants that the mutant was not expected to break."""
    spent_s: float = 0.0

    @property
    def caught(self) -> bool:
        return bool(self.test or self.invariant)

    @property
    def as_expected(self) -> bool:
        """Each way that is said to find it has found it, as far as it was tried."""
        if self.mutant.spared:
            return not self.caught
        by_test = bool(self.test) or not self.mutant.test
        by_seeds = bool(self.invariant) or not self.tried or not self.mutant.by_seeds
        return self.caught and by_test and by_seeds

    def record(self) -> dict[str, Any]:
        """What was tried now, and nothing about what was not."""
        found: dict[str, Any] = {}
        if self.mutant.test:
            found |= {"test": self.test}
        if self.tried:
            found |= {"invariant": self.invariant, "seed": self.seed, "tried": self.tried}
            found |= {"kinds": list(self.mutant.only)}
        return found

    def __str__(self) -> str:
        by = " and ".join(filter(None, (self.test, self.invariant)))
        verdict = f"caught by {by}" if by else "SPARED" if self.mutant.spared else "SURVIVED"
        where = "" if self.seed is None else f" with seed {self.seed}"
        tried = f", {self.tried} tried" if self.tried else ""
        over = f", passed over {', '.join(self.passed_over)}" if self.passed_over else ""
        return f"{self.mutant.name:34} {verdict}{where}{tried} ({self.spent_s:.0f} s){over}  {self.detail}"


@contextmanager
def mutated(mutant: Mutant) -> Iterator[Path]:
    """A copy of the sources without the rule."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as scratch:
        root = Path(scratch)
        ignore = shutil.ignore_patterns("__pycache__")
        for part in ("agent", "tests"):
            shutil.copytree(ROOT / part, root / part, ignore=ignore)
        shutil.copy(ROOT / "pyproject.toml", root)
        apply(mutant, root)
        yield root


def environment(root: Path) -> dict[str, str]:
    python_path = os.pathsep.join((str(root / "agent"), str(root)))
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    return {
        **os.environ,
        "PATH": path,
        "PYTHONPATH": python_path,
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def try_mutant(mutant: Mutant, seeds: list[int], *, limit_s: float = LIMIT_S) -> Outcome:
    """Run its directed test, and look for a seed that catches it, in this order of seeds."""
    began = time.monotonic()
    found: dict[str, Any] = {}
    with mutated(mutant) as root:
        if mutant.test:
            found |= _run_test(mutant, root)
        if seeds:
            found |= _run_seeds(mutant, root, seeds, limit_s)
    return Outcome(mutant=mutant, spent_s=time.monotonic() - began, **found)


def _run_test(mutant: Mutant, root: Path) -> dict[str, Any]:
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", mutant.test]
    done = subprocess.run(command, cwd=root, env=environment(root), capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1) or " skipped" in done.stdout:  # not a failing test, but none that could be run
        raise RuntimeError(f"{mutant.name}: {mutant.test} cannot be run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return {"test": mutant.test.rpartition("::")[2] if done.returncode else ""}


def _run_seeds(mutant: Mutant, root: Path, seeds: list[int], limit_s: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "tests.sim.mutants", "--child", *map(str, seeds)]
    command += ["--expects", ",".join(mutant.expects), "--kinds", ",".join(mutant.only)]
    pipe = subprocess.PIPE
    child = subprocess.Popen(command, cwd=root, env=environment(root), stdout=pipe, stderr=pipe, text=True)
    try:
        output, problem = child.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        child.kill()
        output, _ = child.communicate()
        return {"tried": output.count("\n"), "detail": f"given up after {limit_s:g} s"}
    lines = [json.loads(line) for line in output.splitlines()]
    if child.returncode != 0 or not lines:
        raise RuntimeError(f"{mutant.name}: the simulator did not run:\n{problem[-2000:]}")
    *before, last = lines
    others = tuple(f"{line['rule']} ({line['seed']})" for line in lines if line["rule"] and not line["caught"])
    found: dict[str, Any] = {"tried": len(before) + 1, "passed_over": others[:5]}
    if last["caught"]:
        found |= {"invariant": last["rule"], "seed": last["seed"], "detail": last["detail"]}
    return found


def child(seeds: list[int], expects: list[str], kinds: list[str]) -> None:
    """In the copy: one line for each seed, until the first that catches it."""
    import redis_agent  # noqa: PLC0415 - of the copy
    from tests.sim.run import run  # noqa: PLC0415

    assert Path(redis_agent.__file__).is_relative_to(Path.cwd()), "the core under test is not the mutated one"
    for seed in seeds:
        violation = run(seed, only=tuple(kinds)).violation
        rule = violation.rule if violation is not None else ""
        detail = violation.detail.splitlines()[0][:160] if violation is not None else ""
        caught = rule in expects
        print(json.dumps({"seed": seed, "rule": rule, "caught": caught, "detail": detail}), flush=True)
        if caught:
            break


def recorded() -> dict[str, dict[str, Any]]:
    """What was found when it was last recorded, by name."""
    return json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else {}


def record(outcome: Outcome) -> None:
    """Keep what was found, in the order of the list; what was not tried now stays as it was."""
    known, name = recorded(), outcome.mutant.name
    known[name] = known.get(name, {}) | outcome.record()
    listed = [mutant.name for mutant in MUTANTS if mutant.name in known]
    kept = {each: known[each] for each in dict.fromkeys((*listed, *known))}
    RECORD.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--only", metavar="NAME,...", default="", help="these alone; part of a name is enough")
    parser.add_argument(
        "--limit", type=int, default=LIMIT, metavar="SEEDS", help=f"at most so many, {LIMIT} if not given"
    )
    parser.add_argument("--first", type=int, default=1, metavar="SEED", help="the seed to begin with")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--record", action="store_true", help=f"write {RECORD.name}")
    parser.add_argument("--hunt", action="store_true", help="try seeds also of those that have a directed test")
    parser.add_argument("--spared", action="store_true", help="those that nothing notices yet, instead")
    parser.add_argument("--list", action="store_true", help="only list them")
    parser.add_argument("--child", nargs="+", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--expects", default="", help=argparse.SUPPRESS)
    parser.add_argument("--kinds", default="", help="restrict the nemesis to these kinds of fault")
    options = parser.parse_args()
    if options.child:
        child(options.child, options.expects.split(","), list(filter(None, options.kinds.split(","))))
        return 0
    wanted = list(filter(None, options.only.split(",")))
    known = SPARED if options.spared else MUTANTS
    # A whole name means that one, a part of a name all that have it.
    chosen = [
        mutant
        for mutant in known
        if not wanted or any(mutant.name == part or (part not in BY_NAME and part in mutant.name) for part in wanted)
    ]
    if options.kinds:
        chosen = [replace(mutant, only=tuple(options.kinds.split(","))) for mutant in chosen]
    if options.list:
        for mutant in chosen:
            print(f"{mutant.name:34} {mutant.section:8} {mutant.rule}")
        return 0
    seeds = list(range(options.first, options.first + options.limit))
    outcomes: list[Outcome] = []
    began = time.monotonic()
    with ThreadPoolExecutor(options.jobs) as pool:
        running = [
            pool.submit(try_mutant, mutant, seeds if options.hunt or mutant.by_seeds else []) for mutant in chosen
        ]
        try:
            for done in as_completed(running):
                outcomes.append(done.result())
                print(outcomes[-1], flush=True)
                if options.record:
                    record(outcomes[-1])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    wrong = [outcome.mutant.name for outcome in outcomes if not outcome.as_expected]
    caught = sum(outcome.caught for outcome in outcomes)
    print(
        f"{len(outcomes)} mutants, {caught} caught, {time.monotonic() - began:.0f} s"
        + (f"; NOT as expected: {', '.join(sorted(wrong))}" if wrong else "")
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
