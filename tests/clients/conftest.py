from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from kazoo.client import KazooClient  # type: ignore[import-untyped]
from kazoo.exceptions import NoNodeError  # type: ignore[import-untyped]

from redis_agent.lab.zookeeper import Ensemble
from redis_agent.replication import Address
from redis_agent.znodes import Leader, LeaderPhase, Paths, encode

ROOT = "redis-agent-test"


@pytest.fixture(scope="package")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ensemble]:
    """One ZooKeeper server with a short tick."""
    with Ensemble(tmp_path_factory.mktemp("zookeeper"), servers=1, tick_ms=200) as started:
        yield started


@dataclass
class Stage:
    """Plays the agents' part: writes the ``leader`` znode of one cluster by hand."""

    hosts: str
    cluster: str
    zk: KazooClient

    @property
    def path(self) -> str:
        return Paths(ROOT, self.cluster).leader

    def leader(self, epoch: int = 1, phase: str = LeaderPhase.SERVING) -> Leader:
        return Leader(
            name=f"n{epoch}",
            address=Address("127.0.0.1", 7000 + epoch),
            epoch=epoch,
            phase=phase,
            guid=f"guid-{epoch}",
            replid=f"{epoch:040x}",
            wait=1,
            voters=("n1", "n2", "n3"),
        )

    def show(self, epoch: int = 1, phase: str = LeaderPhase.SERVING, **changes: object) -> Leader:
        """Make ``leader`` say this."""
        leader = replace(self.leader(epoch, phase), **changes)  # type: ignore[arg-type]
        self.show_raw(encode(leader))
        return leader

    def show_raw(self, data: bytes) -> None:
        try:
            self.zk.set(self.path, data)
        except NoNodeError:
            self.zk.create(self.path, data, ephemeral=True)

    def clear(self) -> None:
        self.zk.delete(self.path)


@pytest.fixture
def stage(ensemble: Ensemble) -> Iterator[Stage]:
    zk = KazooClient(ensemble.hosts, timeout=4.0)
    zk.start(timeout=10)
    cluster = f"c-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    zk.ensure_path(Paths(ROOT, cluster).base)
    yield Stage(ensemble.hosts, cluster, zk)
    zk.stop()
    zk.close()


@pytest.fixture
def own_ensemble(tmp_path: Path) -> Iterator[Ensemble]:
    """A server that the test may kill and pause."""
    with Ensemble(tmp_path / "zookeeper", servers=1, tick_ms=100) as started:
        yield started


@pytest.fixture
def own_stage(own_ensemble: Ensemble) -> Iterator[Stage]:
    retry = {"max_tries": -1, "delay": 0.02, "backoff": 1.5, "max_delay": 0.1}
    zk = KazooClient(own_ensemble.hosts, timeout=2.0, connection_retry=retry)
    zk.start(timeout=10)
    zk.ensure_path(Paths(ROOT, "own").base)
    yield Stage(own_ensemble.hosts, "own", zk)
    own_ensemble.kill(0)
    zk.stop()
    zk.close()
