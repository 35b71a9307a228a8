"""Which cluster a command is about: named directly, or taken from an agent's configuration."""

from __future__ import annotations

import argparse
import os
import re
from math import nan

from redis_agent import znodes
from redis_agent.config import NAME_PATTERN, ConfigError
from redis_agent.config_check import hosts_problems
from redis_agent.config_file import ENVIRONMENT_FILE, load

SHORTEST_S, LONGEST_S = 0.1, 86_400.0


def add_arguments(parser: argparse.ArgumentParser, *, timeout_s: float = 5.0, limits: str = "limit") -> None:
    """Declare the options.

    Args:
        parser: gets them.
        timeout_s: the default of ``--timeout``.
        limits: what it is the limit of.
    """
    parser.add_argument(
        "--config",
        metavar="FILE",
        default=os.environ.get(ENVIRONMENT_FILE),
        help=f"take the cluster from an agent's configuration; default: ${ENVIRONMENT_FILE}",
    )
    parser.add_argument(
        "--zookeeper", metavar="HOSTS", help="servers, with an optional chroot: zk1:2181,zk2:2181/chroot"
    )
    parser.add_argument("--root", metavar="ZNODE", help="znode below which all clusters live; default: redis-agent")
    parser.add_argument("--cluster", metavar="NAME", help="name of the cluster")
    parser.add_argument(
        "--timeout", metavar="SECONDS", type=_seconds, default=timeout_s, help=f"{limits}; default: {timeout_s:g}"
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = nan
    if not SHORTEST_S <= seconds <= LONGEST_S:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from {SHORTEST_S:g} to {LONGEST_S:g}")
    return seconds


def find(options: argparse.Namespace, command: str) -> tuple[str, znodes.Paths]:
    """ZooKeeper's servers, and where the cluster is.

    Args:
        options: what ``add_arguments`` declared.
        command: for the error.

    Raises:
        ConfigError: the options do not name a cluster, or the configuration cannot be read.
    """
    hosts, root, cluster = options.zookeeper, options.root, options.cluster
    if options.config and not (hosts and cluster):
        settings = load(options.config)
        hosts = hosts or settings.zookeeper.hosts
        root = root or settings.cluster.root
        cluster = cluster or settings.cluster.name
    if not hosts or not cluster:
        missing = "--zookeeper" if not hosts else "--cluster"
        raise ConfigError(command, missing, "is missing", "give it, or --config FILE")
    for _, problem, remedy in hosts_problems(hosts):
        raise ConfigError(command, "--zookeeper", problem, remedy)
    if not re.fullmatch(NAME_PATTERN, cluster):
        raise ConfigError(
            command, "--cluster", f'"{cluster}" is no name of a cluster', "give the one in [cluster] name"
        )
    return hosts, znodes.Paths((root or "redis-agent").strip("/"), cluster)
