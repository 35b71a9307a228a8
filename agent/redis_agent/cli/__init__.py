"""The command ``redis-agent``: one module per subcommand, each loaded only when it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import argparse


class Command(Protocol):
    """What a subcommand's module provides."""

    def add_arguments(self, parser: argparse.ArgumentParser, /) -> None:
        """Declare the options."""

    def execute(self, options: argparse.Namespace, /) -> int:
        """Do it; return the exit code."""


COMMANDS = {
    "run": ("redis_agent.cli.run", "run the agent in the foreground"),
    "status": ("redis_agent.cli.status", "show a cluster: who leads, who follows, and what is wrong"),
    "switchover": ("redis_agent.cli.switchover", "let another member lead, as planned: nothing is lost"),
    "keep": ("redis_agent.cli.keep", "choose whose data a new cluster starts with, if members hold unrelated ones"),
    "discard": ("redis_agent.cli.discard", "let a member with data of unknown lineage follow, which replaces them"),
    "fsm": ("redis_agent.cli.fsm", "show the table of states that the agent is driven by"),
    "demo": (
        "redis_agent.demo",
        "three members on this machine: killed, switched over, frozen, while clients write",
    ),
    "version": ("redis_agent.cli.version", "show the versions of this program and its libraries"),
}
"""Name: (module, summary)."""
