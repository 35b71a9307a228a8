"""``redis-agent version``."""

from __future__ import annotations

import argparse
import platform
from importlib import metadata

import redis_agent

LIBRARIES = ("kazoo", "redis", "hiredis", "msgspec", "psutil", "transitions")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are none."""


def execute(options: argparse.Namespace) -> int:  # noqa: ARG001 - the signature is the same for all
    """Print them, one a line."""
    print(f"redis-agent {redis_agent.__version__}")
    print(f"python {platform.python_version()}")
    for library in LIBRARIES:
        try:
            print(f"{library} {metadata.version(library)}")
        except metadata.PackageNotFoundError:
            print(f"{library} not installed")
    return 0
