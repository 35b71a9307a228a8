"""``redis-agent demo``: three members on this machine: killed, switched over, frozen, while clients write.

Exit status: 0 if everything recovered in time and nothing confirmed was lost, 1 if not, 2 if something is missing here.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

__all__ = ["add_arguments", "execute", "main"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="rounds of five steps each; default: 1")
    parser.add_argument(
        "--duration", type=float, default=2.0, metavar="SECONDS", help="time to write between two steps; default: 2"
    )
    parser.add_argument("--rate", type=float, default=1000.0, metavar="N", help="writes per second; default: 1000")
    parser.add_argument("--plain", action="store_true", help="plain lines, also on a terminal")
    parser.add_argument("--keep", action="store_true", help="keep the directory with configurations and logs")


def execute(options: argparse.Namespace) -> int:
    """Run it; return the exit status."""
    # Loaded now, so that declaring the options costs nothing.
    from redis_agent.demo.program import Options, run  # noqa: PLC0415

    return run(
        Options(
            rounds=max(1, options.rounds),
            duration_s=max(0.2, options.duration),
            rate_per_s=max(10.0, options.rate),
            plain=options.plain,
            keep=options.keep,
        )
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """The same from a list of arguments (default: the command line)."""
    parser = argparse.ArgumentParser(prog="redis-agent demo", description=__doc__)
    add_arguments(parser)
    return execute(parser.parse_args(arguments))
