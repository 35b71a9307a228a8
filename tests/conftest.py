"""What every test gets: its own temporary directory, the project's redis-server, and a check that it cleans up."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
from kazoo.client import KazooClient  # type: ignore[import-untyped]

from redis_agent.lab import janitor
from redis_agent.lab.zookeeper import Ensemble
from tests.support.lacking import required

HERE = Path(__file__).resolve().parent
# These start no process, so they need not be checked one by one.
PURE = (HERE / "unit", HERE / "sim")
GONE_LIMIT_S = 5.0

_scratch = pytest.StashKey[Path]()
_janitor = pytest.StashKey[ExitStack]()


def pytest_configure(config: pytest.Config) -> None:
    """Give the run a directory of its own, which also tells its processes from those of another run."""
    # Set-up puts a redis-server there if the machine has none; it is also found without an activated environment.
    os.environ["PATH"] = f"{Path(sys.prefix) / 'bin'}{os.pathsep}{os.environ.get('PATH', '')}"
    # Settings of the developer's shell, and systemd if it started us, must not reach what is under test.
    foreign = ("REDIS_AGENT_", "JOURNAL_STREAM", "NOTIFY_SOCKET", "WATCHDOG_")
    for variable in [name for name in os.environ if name.startswith(foreign)]:
        del os.environ[variable]
    # Short, because unix sockets are below it: a path of theirs has 107 bytes at most.
    scratch = Path(tempfile.mkdtemp(prefix="ra-"))
    config.stash[_scratch] = scratch
    # Guards and their Redis outlive agents on purpose: killed, the run still leaves none behind.
    config.stash[_janitor] = ExitStack()
    config.stash[_janitor].enter_context(janitor.cleaning(scratch, keep=bool(os.environ.get("KEEP_TMP"))))
    tempfile.tempdir = os.environ["TMPDIR"] = str(scratch)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Leave nothing behind; KEEP_TMP=1 keeps the files, to look at."""
    scratch = config.stash.get(_scratch, None)
    if scratch is None:
        return
    config.stash[_janitor].close()
    for process in _ours(scratch):
        process.kill()
    if os.environ.get("KEEP_TMP"):
        sys.stderr.write(f"kept: {scratch}\n")


def is_pure(path: Path) -> bool:
    """Whether the tests in this file start no process of their own."""
    return any(path.is_relative_to(directory) for directory in PURE)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what runs real servers, before ``-m`` chooses; and see to what needs root.

    That is skipped elsewhere, and says so. Not in CI: there it would never run, and nobody would notice.
    """
    for item in items:
        if not is_pure(item.path):
            item.add_marker("alone")
    rooted = [item for item in items if item.get_closest_marker("root")]
    if os.geteuid() == 0 or not rooted:
        return
    if required():
        raise pytest.UsageError(f"{len(rooted)} tests need root, and REQUIRE_ROOT is set")
    for item in rooted:
        item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.fixture(autouse=True)
def no_process_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test ends every process that it started, also those whose parent has died."""
    if is_pure(request.path):
        yield
        return
    scratch = request.config.stash[_scratch]
    before = {(process.pid, _created(process)) for process in _ours(scratch)}
    yield
    deadline = time.monotonic() + GONE_LIMIT_S
    while left := [process for process in _ours(scratch) if (process.pid, _created(process)) not in before]:
        if time.monotonic() > deadline:
            told = [" ".join(_cmdline(process)) or str(process) for process in left]
            for process in left:
                process.kill()
            pytest.fail(f"left {len(left)} processes behind: {told}", pytrace=False)
        time.sleep(0.02)


def _ours(scratch: Path) -> list[psutil.Process]:
    """Our descendants, and orphans that work below this run's directory."""
    found = {process.pid: process for process in psutil.Process().children(recursive=True)}
    for process in psutil.process_iter():
        if process.pid not in found and process.pid != os.getpid() and _works_in(process, str(scratch)):
            found[process.pid] = process
    return [process for process in found.values() if _created(process) > 0]


def _works_in(process: psutil.Process, directory: str) -> bool:
    try:
        return process.cwd().startswith(directory) or any(directory in word for word in process.cmdline())
    except psutil.Error:
        return False


def _created(process: psutil.Process) -> float:
    """When it was started; -1 if it is gone, or a zombie that waits to be reaped by somebody else."""
    try:
        return -1.0 if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return -1.0


def _cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


@pytest.fixture(scope="session")
def zookeeper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ensemble]:
    """One ZooKeeper server for the whole run, for tests that do not harm it."""
    with Ensemble(tmp_path_factory.mktemp("zookeeper"), servers=1, tick_ms=200) as ensemble:
        yield ensemble


@pytest.fixture
def zookeeper_hosts(zookeeper: Ensemble) -> str:
    """The same as a test of its own sees it: with a fresh, empty chroot."""
    client = KazooClient(zookeeper.hosts)
    client.start(timeout=10)
    try:
        chroot: str = client.create("/test-", sequence=True)
    finally:
        client.stop()
        client.close()
    return zookeeper.hosts + chroot
