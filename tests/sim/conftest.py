"""A cluster for directed scenarios."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.sim.cluster import Cluster, Shape
from tests.sim.scenario import Begin


@pytest.fixture
def begin() -> Iterator[Begin]:
    """A cluster whose first leader serves and whose members are in sync. A failure shows the transcript."""
    made: list[Cluster] = []

    def make(seed: int = 1, **shape: object) -> Cluster:
        cluster = Cluster(seed, Shape(**shape), trace=True)  # type: ignore[arg-type]
        made.append(cluster)
        cluster.start()
        cluster.until("the first leader serves, and all know that they are intact", cluster.settled)
        return cluster

    yield make
    for cluster in made:
        print("\n".join(cluster.world.lines[-2000:]))
