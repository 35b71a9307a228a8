"""What the commands share that change a cluster's ``config``."""

from __future__ import annotations

import argparse
import sys
from typing import Protocol

from redis_agent import znodes
from redis_agent.cli import cluster_view, target
from redis_agent.cli.apart import apart
from redis_agent.config_file import load
from redis_agent.config_host import zookeeper_auth

ATTEMPTS = 5
"""If somebody else changes ``config`` or the ledger at the same time: read again, but not for ever."""


class Refused(Exception):
    """It must not be done, or cannot be. The message says why, and what to do instead."""


class Change(Protocol):
    """About one member. Says in a sentence what was done; raises Refused, Unreachable."""

    def __call__(
        self, hosts: str, paths: znodes.Paths, member: str, *, auth: tuple[tuple[str, str], ...], limit_s: float
    ) -> str: ...


def carry_out(options: argparse.Namespace, command: str, change: Change) -> int:
    """Make the change: 0 if it is written, 1 if it is refused, 2 if ZooKeeper cannot be reached.

    Args:
        options: those of `target`, and ``member``.
        command: for errors.
        change: what the command does.
    """
    hosts, paths = target.find(options, command)
    # Where only agents may write, a command must be able to prove that it belongs to them.
    auth = zookeeper_auth(load(options.config), options.config) if options.config else ()
    try:
        print(apart(lambda: change(hosts, paths, options.member, auth=auth, limit_s=options.timeout)))
    except (Refused, znodes.Corrupt) as refused:
        print(f"redis-agent: {refused}", file=sys.stderr)
        return 1
    except cluster_view.Unreachable as error:
        print(f"redis-agent: {error}", file=sys.stderr)
        return 2
    return 0
