"""The command ``redis-agent``.

Exit codes: 0 well; 1 not well, or it failed; 2 wrong usage or configuration, or ZooKeeper out of reach; 70 an internal
invariant is broken (Redis was fenced first); 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import redis_agent
from redis_agent.cli import COMMANDS, Command
from redis_agent.cli.loading import loading


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line instead of two."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}; try {self.prog} --help\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a subcommand.

    Args:
        argv: the arguments without the program's name; default: those of the process.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(prog="redis-agent", description=(redis_agent.__doc__ or "").splitlines()[0])
    parser.add_argument("--version", action="version", version=f"redis-agent {redis_agent.__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command: Command | None = None
    chosen = next((word for word in arguments if not word.startswith("-")), None)
    for name, (module, summary) in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=summary, description=summary)
        if name == chosen:
            # Only the chosen command's module is loaded: `run` must start fast.
            with loading():
                command = importlib.import_module(module)
            command.add_arguments(subparser)
    options = parser.parse_args(arguments)
    assert command is not None, "argparse insists on a known command"
    return _execute(command, options)


def _execute(command: Command, options: argparse.Namespace) -> int:
    from redis_agent.config import ConfigError

    try:
        code = command.execute(options)
        sys.stdout.flush()
    except ConfigError as error:
        text = str(error)
        print(text if text.startswith("redis-agent") else f"redis-agent: {text}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has gone (`redis-agent fsm | head`): nothing more can be said, also not by the interpreter's exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code


if __name__ == "__main__":
    sys.exit(main())
