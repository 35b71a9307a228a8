"""``redis-agent run``: the agent, in the foreground."""

from __future__ import annotations

import argparse
import gc
import os
import signal
import sys
from functools import partial

from redis_agent import logs
from redis_agent.cli.loading import loading
from redis_agent.config import ConfigError
from redis_agent.config_file import ENVIRONMENT_FILE, load
from redis_agent.config_host import check_host

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
"""What the running agent handles; it lets them through once it does."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        default=os.environ.get(ENVIRONMENT_FILE),
        help=f"configuration (TOML); default: ${ENVIRONMENT_FILE}",
    )
    parser.add_argument("--check", action="store_true", help="check the configuration and this host, then exit")


def execute(options: argparse.Namespace) -> int:
    """Run until told to stop."""
    # Until they are handled they wait: none must end us half started, with a Redis of our last life running.
    earlier = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        return _execute(options)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, earlier - set(SIGNALS))


def _execute(options: argparse.Namespace) -> int:
    if not options.config:
        raise ConfigError("redis-agent run", "--config", "is missing", "name the configuration file")
    settings = load(options.config)
    warnings = check_host(settings, options.config)
    with logs.writing(settings.log.level, settings.log.format):
        for warning in warnings:
            logs.event("warning", "configuration", problem=warning)
        if options.check:
            return 0
        with loading():
            from redis_agent import runtime
        # Nor is it looked through again while the agent runs: a failover should not have to wait for that.
        gc.freeze()
        ending = runtime.run(settings, partial(load, options.config), options.config)
    if not ending.again:
        # One more stop has nothing left to stop, and must not change how this one ended.
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)
    if ending.again:
        # The same process id, so that init keeps us; the program and its settings may have changed. Signals are held
        # back already.
        if ending.stop:
            os.environ[runtime.STOP_VARIABLE] = "1"
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606 - no shell is wanted
    return ending.code
