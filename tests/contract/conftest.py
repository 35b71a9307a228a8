"""The implementations that the contract is run on."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from redis_agent.lab.zookeeper import Ensemble
from tests.contract.driver import Driver
from tests.contract.sim_driver import SimZooKeeper
from tests.support.zookeeper import ProxiedClient, zk_root, zk_single

__all__ = ["zk_root", "zk_single"]


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
