#!/usr/bin/env python3
"""Write the generated parts of the documentation; with ``--check`` only say whether they are up to date.

* ``systemd/redis-agent.toml``, the commented example: whole.
* ``docs/*.md`` and ``README.md``: what stands between ``<!-- generated: NAME -->`` and ``<!-- end of generated -->``,
  for each NAME in ``PARTS``.
"""

from __future__ import annotations

import ast
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec

from redis_agent.config import Section, Settings

ROOT = Path(__file__).resolve().parent.parent
SIM = ROOT / "tests" / "sim"
FAULTS = ROOT / "tests" / "faults" / "record.json"
EXAMPLE = ROOT / "systemd" / "redis-agent.toml"
# What the example sets, because it has no default or because every installation has its own.
SAMPLE = {
    ("cluster", "name"): "cache",
    ("cluster", "bootstrap_expect"): 3,
    ("zookeeper", "hosts"): "zk1:2181,zk2:2181,zk3:2181",
    ("redis", "announce_host"): "redis1.example.org",
    ("redis", "conf"): "/etc/redis/redis.conf",
}
MARKED = re.compile(r"(<!-- generated: (?P<name>[a-z-]+) -->\n).*?(<!-- end of generated -->)", re.DOTALL)


def sections() -> Iterator[tuple[str, type[Section]]]:
    """Name and type of each table of the configuration file."""
    for field in msgspec.structs.fields(Settings):
        yield field.name, field.type


def keys(section: type[Section]) -> Iterator[tuple[str, str, Any]]:
    """Name, description and default (NODEFAULT if there is none) of each key."""
    for field in msgspec.structs.fields(section):
        metas = [meta for meta in get_args(field.type)[1:] if isinstance(meta, msgspec.Meta) and meta.description]
        assert metas, f"{section.__name__}.{field.name} has no description"
        yield field.name, metas[-1].description or "", field.default


def choices(section: type[Section], key: str) -> tuple[str, ...]:
    """The words that a key may have; empty if it is free."""
    inner = next(field.type for field in msgspec.structs.fields(section) if field.name == key)
    if get_origin(inner) is Annotated:
        inner = get_args(inner)[0]
    return get_args(inner) if get_origin(inner) is Literal else ()


def toml(value: object) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if isinstance(value, str) else str(value)


def example() -> str:
    """The commented example: every key with its description; what is commented out shows the default."""
    lines = textwrap.wrap(
        "Configuration of redis-agent: every key with its default. Any key may be overridden by the environment: "
        "REDIS_AGENT_<SECTION>_<KEY>, for example REDIS_AGENT_LOG_LEVEL=debug. Relative paths start at this file's "
        "directory. Check it with: redis-agent run --check --config FILE",
        116,
        initial_indent="# ",
        subsequent_indent="# ",
    )
    for name, section in sections():
        lines += ["", f"# {(section.__doc__ or '').splitlines()[0]}", f"[{name}]"]
        for key, description, default in keys(section):
            lines += ["", *textwrap.wrap(description, 116, initial_indent="# ", subsequent_indent="# ")]
            if (name, key) in SAMPLE:
                lines.append(f"{key} = {toml(SAMPLE[name, key])}")
            else:
                assert default is not msgspec.NODEFAULT, f"{name}.{key} needs a sample"
                lines.append(f"# {key} = {toml(default)}")
    return "\n".join(lines) + "\n"


def configuration() -> str:
    """The reference: a table for each section."""
    parts = []
    for name, section in sections():
        rows = ["| key | default | meaning |", "|---|---|---|"]
        for key, description, default in keys(section):
            shown = "required" if default is msgspec.NODEFAULT else f"`{toml(default)}`"
            words = choices(section, key)
            choice = f" One of {', '.join(f'`{word}`' for word in words)}." if words else ""
            rows.append(f"| `{key}` | {shown} | {_cell(description)}{choice} |")
        parts.append(f"### [{name}]\n\n{(section.__doc__ or '').splitlines()[0]}\n\n" + "\n".join(rows))
    return "\n\n".join(parts)


def fsm_diagram() -> str:
    """The state machine as a diagram."""
    from redis_agent import machine  # noqa: PLC0415 - only needed here

    return f"```mermaid\n{machine.mermaid().strip()}\n```"


def fsm_table() -> str:
    """The state machine as a table, with the reason of each row."""
    from redis_agent import machine  # noqa: PLC0415 - only needed here

    rows = ["| from | trigger | to | actions | why |", "|---|---|---|---|---|"]
    for row in machine.TRANSITIONS:
        cells = (", ".join(row.sources), row.trigger, row.dest, ", ".join(row.actions) or "-", row.why)
        rows.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return "\n".join(rows)


def sim_faults() -> str:
    """The kinds of fault that the simulator's nemesis draws from, by the names that ``--only`` knows."""
    sys.path.insert(0, str(ROOT))
    from tests.sim.cluster import Cluster  # noqa: PLC0415 - only needed here
    from tests.sim.nemesis import Nemesis  # noqa: PLC0415

    return ", ".join(f"`{kind}`" for kind in Nemesis(Cluster(0)).all_kinds) + "."


def sim_invariants() -> str:
    """The invariants, from the docstring of the simulator's checker."""
    text = ast.get_docstring(ast.parse((SIM / "checker.py").read_text(encoding="utf-8"))) or ""
    found = re.findall(r"^(\d+)\. (.+?) {2,}((?:.|\n {4,})+)", text, re.MULTILINE)
    assert found, "the checker's docstring has no list"
    rows = [f"| {number} | {name} | {_cell(' '.join(rule.split()))} |" for number, name, rule in found]
    return "\n".join(["| | invariant | |", "|---|---|---|", *rows])


def sim_ranges() -> str:
    """The recorded runs of the simulator."""
    runs = [msgspec.json.decode(line) for line in (SIM / "ranges.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [
        f"| {run['date']} | {run['commit']} | {run['seeds']} | {run['violations']} | "
        f"{run['virtual_s'] / 3600:,.0f} h | {run['seconds'] / 60:,.1f} min | {run['seeds_per_s']} |"
        for run in runs
    ]
    seeds: set[tuple[str, int]] = set()
    for run in runs:  # a run that was interrupted has played the first ones of its range
        first = int(run["seeds"].partition("..")[0])
        seeds |= {(run["commit"], seed) for seed in range(first, first + run["played"])}
    failed = sum({(run["commit"], run["seeds"]): run["violations"] for run in runs}.values())
    head = "| date | commit | seeds | violations | virtual time | real time | seeds per second |"
    total = f"Together {len(seeds):,} seeds, each counted once for each commit, {failed:,} violations."
    return "\n".join([head, "|---|---|---|---:|---:|---:|---:|", *rows, "", total])


def how_tried() -> str:
    """What was tried on what, and how much of it is recorded."""
    model = "the rules alone, breadth first, all interleavings of few writes"
    transitions = "20 to 100 million transitions; each of its 23 rules taken out gives a counterexample"
    cores = "the real core, simulated ZooKeeper, Redis, guards, clocks and networks; faults under seeds"
    rules = "[below](#rules-taken-out-one-by-one)"
    both = "the same tests on simulated and real ZooKeeper, Redis and guard"
    real = "real servers, real processes, proxies that cut and hold back"
    beds = "three hosts and three ZooKeeper servers in network namespaces, random faults, clients on every side"
    rows = [
        ("explicit-state model of the protocol", model, transitions, "kept with the design"),
        ("[simulator](simulation.md)", cores, _simulated(), "`make sim SEEDS=20000`"),
        ("mutants", "the simulator against the core with one rule taken out", rules, "`make mutants`"),
        ("contract suite", both, "", "`make test TESTS=tests/contract`"),
        ("cases", real, "", "`make test TESTS=tests/integration`"),
        ("[faults](faults.md)", beds, _suffered(), "`make faults MINUTES=60`"),
        ("[Sentinel side by side](comparison.md)", "the same workloads and faults", "", "`make compare`"),
    ]
    lines = ["| what | on what | how many | run it |", "|---|---|---|---|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def _simulated() -> str:
    runs = [msgspec.json.decode(line) for line in (SIM / "ranges.jsonl").read_text(encoding="utf-8").splitlines()]
    played, failed = sum(run["played"] for run in runs), sum(run["violations"] for run in runs)
    hours = sum(run["virtual_s"] for run in runs) / 3600
    return f"{played:,} seeds, {hours:,.0f} virtual hours, {failed:,} violations" if runs else "no run is recorded yet"


def _suffered() -> str:
    if not FAULTS.exists():
        return "no run is recorded yet"
    told = msgspec.json.decode(FAULTS.read_bytes())
    writes = told["all_writes"]
    return (
        f"{told['minutes']:g} minutes, {told['rounds']:,} rounds: {writes['acknowledged']:,} writes acknowledged, "
        f"{writes['confirmed']:,} confirmed, {writes['confirmed_lost']:,} of these lost; two primaries for "
        f"{told['dual_primary_ms']:.0f} ms; {len(told['violations']):,} violations ({told['date']})"
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


def mutants() -> str:
    """The rules that were taken out one by one, and what noticed; then those that nothing notices."""
    sys.path.insert(0, str(ROOT))
    from tests.sim.mutants import MUTANTS, SPARED, recorded  # noqa: PLC0415 - only needed here

    known = recorded()
    both = [known.get(mutant.name, {}) for mutant in MUTANTS]
    tests, seeds = sum(bool(found.get("test")) for found in both), sum(bool(found.get("invariant")) for found in both)
    total = f"{len(MUTANTS)} rules: a directed test notices {tests} of them, seeds notice {seeds}."
    rows = ["| rule taken out | DESIGN | directed test | seeds | faults |", "|---|---|---|---|---|"]
    for mutant, found in zip(MUTANTS, both, strict=True):
        test = f"`{found['test']}`" if found.get("test") else ""
        cells = (f"**{mutant.name}**: {mutant.rule}", mutant.section, test, _by_seeds(found))
        rows.append("| " + " | ".join(_cell(cell) for cell in (*cells, ", ".join(found.get("kinds", [])))) + " |")
    parts = [total, "\n".join(rows)]
    if SPARED:
        parts.append("What nothing notices yet, and what is believed, but not proved, to stand behind each rule:")
        rows = ["| rule taken out | DESIGN | what is believed |", "|---|---|---|"]
        for mutant in SPARED:
            rows.append(f"| **{mutant.name}**: {_cell(mutant.rule)} | {mutant.section} | {_cell(mutant.spared)} |")
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def _by_seeds(found: dict[str, Any]) -> str:
    """Which invariant the search ended with, and how long it was."""
    if not found.get("tried"):
        return ""
    if found["seed"] is None:
        return f"none of {found['tried']}"
    return f"{found['invariant']}: seed {found['seed']}"


PARTS: dict[str, Callable[[], str]] = {
    "configuration": configuration,
    "fsm-diagram": fsm_diagram,
    "fsm-table": fsm_table,
    "sim-faults": sim_faults,
    "sim-invariants": sim_invariants,
    "sim-ranges": sim_ranges,
    "mutants": mutants,
    "how-tried": how_tried,
}


def wanted() -> dict[Path, str]:
    """Each file with generated parts, as it should be."""
    files = {EXAMPLE: example()}
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        if path.exists():
            text = path.read_text(encoding="utf-8")
            new = MARKED.sub(lambda found: f"{found[1]}\n{PARTS[found['name']]()}\n\n{found[3]}", text)
            if MARKED.search(text):
                files[path] = new
    return files


def main() -> int:
    """Write, or check."""
    check = sys.argv[1:] == ["--check"]
    stale = [
        (path, text) for path, text in wanted().items() if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    for path, text in stale:
        print(f"{path.relative_to(ROOT)}: {'out of date, run `make docs`' if check else 'written'}")
        if not check:
            path.write_text(text, encoding="utf-8")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
