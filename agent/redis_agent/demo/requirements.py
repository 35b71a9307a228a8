"""What the demonstration needs of this machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

JARS = ("zookeeper.jar", "zookeeper-jute.jar", "slf4j-api.jar", "slf4j-simple.jar")
JAR_DIRECTORY = Path("/usr/share/java")
OLDEST_REDIS = (6, 2)


def prepare_path() -> None:
    """Let commands beside this interpreter be found, too: set-up may have put a redis-server there."""
    beside = str(Path(sys.executable).parent)
    if beside not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join(filter(None, [os.environ.get("PATH", ""), beside]))


def missing() -> str:
    """What is missing and how to get it, in one line; empty if nothing is."""
    return "; ".join(_missing())


def _missing() -> Iterator[str]:
    server = shutil.which("redis-server")
    if server is None:
        yield "no redis-server in PATH (Debian: apt install redis-server, or run make setup in a checkout)"
    elif _version(server) < OLDEST_REDIS:
        yield f"{server} is not Redis {'.'.join(map(str, OLDEST_REDIS))} or later: put a newer one first in PATH"
    if shutil.which("java") is None:
        yield "no java in PATH (Debian: apt install default-jre-headless)"
    absent = [jar for jar in JARS if not (JAR_DIRECTORY / jar).exists()]
    if absent:
        remedy = "ZooKeeper; Debian: apt install libzookeeper-java libslf4j-java"
        yield f"no {', '.join(absent)} in {JAR_DIRECTORY} ({remedy})"


def _version(server: str) -> tuple[int, ...]:
    try:
        said = subprocess.run([server, "--version"], capture_output=True, text=True, timeout=10, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ()
    found = re.search(r"v=(\d+)\.(\d+)", said)
    return tuple(int(part) for part in found.groups()) if found else ()
