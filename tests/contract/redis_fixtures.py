"""The implementations that the Redis contract is run on, and the servers that most of it begins with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.real_redis_driver import RealRedisDriver
from tests.contract.redis_driver import RedisDriver, Server, follow
from tests.contract.sim_redis_driver import SimRedisDriver


@pytest.fixture(params=["redis", "simulated"])
def redis_driver(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RedisDriver]:
    """Each implementation in turn."""
    if request.param == "simulated":
        yield SimRedisDriver()
        return
    real = RealRedisDriver(tmp_path)
    yield real
    real.close()


@pytest.fixture
def alone(redis_driver: RedisDriver) -> Server:
    """One that was started and nothing else."""
    return redis_driver.server()


@pytest.fixture
def pair(redis_driver: RedisDriver) -> tuple[Server, Server]:
    """A primary that takes writes, and its replica, in sync and with some data."""
    primary, replica = redis_driver.server(), redis_driver.server()
    primary.lead()
    assert primary.app().write() == "OK"
    follow(redis_driver, replica, primary)
    return primary, replica
