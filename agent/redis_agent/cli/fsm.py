"""``redis-agent fsm``: the table of states that drives the agent, as text or as a diagram."""

from __future__ import annotations

import argparse
import textwrap

from redis_agent import machine


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--mermaid", action="store_true", help="print the diagram that the documentation shows")


def execute(options: argparse.Namespace) -> int:
    """Print the table or the diagram."""
    print(machine.mermaid() if options.mermaid else text())
    return 0


def text() -> str:
    """The whole table, grouped by state: what each trigger does there, and why."""
    return "\n\n".join(_state(state) for state in machine.STATES)


def _state(state: str) -> str:
    lines = [state, "-" * len(state)]
    for row in machine.TRANSITIONS:
        if state not in row.sources:
            continue
        actions = ", ".join(row.actions) or "-"
        lines += [
            f"  {row.trigger} -> {row.dest}",
            *textwrap.wrap(f"does: {actions}", 116, initial_indent="      ", subsequent_indent="            "),
            *textwrap.wrap(f"why:  {row.why}", 116, initial_indent="      ", subsequent_indent="            "),
        ]
    if len(lines) == 2:
        lines.append("  nothing leads out of it")
    return "\n".join(lines)
