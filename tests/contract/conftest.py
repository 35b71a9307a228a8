"""The implementations that the contract is run on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from redis_agent.lab.zookeeper import Ensemble
from tests.contract.driver import Driver, Servers
from tests.contract.guard_driver import GuardDriver
from tests.contract.real_guard_driver import RealGuardDriver
from tests.contract.redis_fixtures import alone, pair, redis_driver
from tests.contract.sim_driver import SimServers, SimZooKeeper
from tests.contract.sim_guard_driver import Host
from tests.support.zookeeper import ProxiedClient, zk_root, zk_single

__all__ = ["alone", "pair", "redis_driver", "zk_root", "zk_single"]


class RealZooKeeper:
    """The adapter with kazoo, on a real server."""

    def __init__(self, ensemble: Ensemble) -> None:
        self._ensemble = ensemble
        self._clients: list[ProxiedClient] = []

    def client(self, timeout_s: float = 4.0) -> ProxiedClient:
        client = ProxiedClient(self._ensemble, timeout_s)
        self._clients.append(client)
        return client

    def close(self) -> None:
        for client in self._clients:
            client.close()


class RealServers:
    """A real ensemble that is broken server by server."""

    def __init__(self, ensemble: Ensemble) -> None:
        self.tick_s = ensemble.tick_ms / 1000
        self._ensemble = ensemble
        self._clients: list[ProxiedClient] = []
        self.leader = ensemble.leader
        self.kill = ensemble.kill
        self.restart = ensemble.restart
        self.pause = ensemble.pause
        self.resume = ensemble.resume
        self.cut_off = ensemble.cut_off
        self.rejoin = ensemble.rejoin
        self.wait_serving = ensemble.wait_serving

    def client(self, *servers: int, timeout_s: float) -> ProxiedClient:
        addresses = [self._ensemble.addresses[index] for index in servers]
        client = ProxiedClient(self._ensemble, timeout_s, addresses=addresses)
        self._clients.append(client)
        return client

    def close(self) -> None:
        for client in self._clients:
            client.close()


@pytest.fixture(params=["zookeeper", "simulated"])
def servers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Servers]:
    """Three servers of the test's own, with a tick of a second: sessions of 2 to 20 s, syncLimit 5 s."""
    if request.param == "simulated":
        yield SimServers(1.0)
        return
    with Ensemble(tmp_path / "zk", 3, tick_ms=1000, proxied=True) as ensemble:
        made = RealServers(ensemble)
        yield made
        made.close()


@pytest.fixture(scope="session", params=["zookeeper", "simulated"])
def make_driver(request: pytest.FixtureRequest) -> Callable[[], RealZooKeeper | SimZooKeeper]:
    """Each implementation in turn. Of session scope, so that a server is running before a test's own fixtures look."""
    if request.param == "simulated":
        return SimZooKeeper
    ensemble: Ensemble = request.getfixturevalue("zk_single")
    return lambda: RealZooKeeper(ensemble)


@pytest.fixture
def root(request: pytest.FixtureRequest, make_driver: Callable[[], RealZooKeeper | SimZooKeeper]) -> str:
    """A path of the test's own."""
    if make_driver is SimZooKeeper:
        return "/test"
    path: str = request.getfixturevalue("zk_root")
    return path


@pytest.fixture
def driver(make_driver: Callable[[], RealZooKeeper | SimZooKeeper]) -> Iterator[Driver]:
    """An implementation, which ends the clients that the test made."""
    made = make_driver()
    yield made
    made.close()


@pytest.fixture(params=["guard", "simulated"])
def guard(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[GuardDriver]:
    """A host with a guard, in each implementation."""
    made: GuardDriver = Host() if request.param == "simulated" else RealGuardDriver(tmp_path)
    yield made
    made.close()
