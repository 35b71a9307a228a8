"""Who is told of what happens inside the simulated servers."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.sim.redis import SimRedis
    from tests.sim.redis_data import RedisConn, Snapshot


class Watcher:
    """Told of what happens inside the servers, and asked how long things take; the checker is one."""

    backlog_entries = 100_000

    def changed(self, redis: SimRedis) -> None:
        """Something that decides whether it accepts writes has changed."""

    def advanced(self, redis: SimRedis) -> None:
        """A replica has applied more, or its link came up."""

    def joined(self, replica: SimRedis, primary: SimRedis, offset: int) -> None:
        """The primary has granted a partial resync from this offset."""

    def wrote(self, redis: SimRedis, write_id: int) -> None:
        """A client's write was executed."""

    def waited(self, redis: SimRedis, conn: RedisConn, count: int) -> None:
        """A client's WAIT is answered."""

    def forgot(self, redis: SimRedis) -> None:
        """It is alive and has lost its data set (``dropped``)."""

    def died(self, redis: SimRedis) -> None:
        """The process is gone."""

    def booted(self, redis: SimRedis) -> None:
        """It has loaded what was on its disk, if anything was."""

    def replaced(self, redis: SimRedis, snapshot: Snapshot) -> None:
        """A full resync has arrived and is about to replace what it has."""

    def armed(self, redis: SimRedis, until: float) -> None:
        """Its guard is armed until then, by its host's clock."""

    def guard_fires(self, redis: SimRedis) -> None:
        """Its guard begins to fence it."""

    def transfer_s(self, writes: int) -> float:
        """How long sending a file of so many writes takes."""
        return 0.05 + 0.0001 * writes

    def save_s(self, writes: int) -> float:
        """How long a file of so many writes takes to save."""
        return 0.02 + 0.0001 * writes

    def load_s(self, writes: int) -> float:
        return 0.02 + 0.0001 * writes
