"""What a simulated redis-server does with its disk: loading, saving by itself and by a child, and tails put aside."""

from __future__ import annotations

from collections.abc import Callable

from redis_agent.redis_tail import surplus
from tests.sim.redis_data import Snapshot
from tests.sim.redis_replication import Replication


class Saving(Replication):
    """The part of a redis-server that deals with files; `redis.SimRedis` is the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.sick = ""
        """Why it can't save, as `Probed.sick` says it; then it refuses writes. Set by `fall_ill`."""
        self.save_s: float | None = None  # how long a BGSAVE takes, if a test says so
        self._saving = False
        self._child = 0

    def open_disk(self) -> list[int]:
        """The data set to load, and the position that its file names (an AOF names none)."""
        disk = self.site.disk
        if disk.mode == "aof":
            return disk.aof
        if disk.dump is None:
            return []
        if disk.dump.replid:
            self.replid, self.offset = disk.dump.replid, disk.dump.offset
        return disk.dump.data

    def save(self) -> None:
        """SAVE."""
        self.kill_child()
        if not self.sick:
            self.site.disk.dump = self._snapshot()

    def bgsave(self) -> None:
        """A child saves the data of this moment. Killed, by itself or with the server, it leaves the old file."""
        if self.sick or self._saving:
            return
        self._saving = True
        snapshot, self._child = self._snapshot(), self._child + 1
        takes_s = self.save_s if self.save_s is not None else self.watcher.save_s(len(snapshot.data))
        self.process.after(takes_s + self.site.disk.slow_s, self._bgsaved, self._child, snapshot)

    def _bgsaved(self, child: int, snapshot: Snapshot) -> None:
        if child == self._child:
            self._saving = False
            if not self.sick:
                self.site.disk.dump = snapshot

    def kill_child(self) -> None:
        """Before a full resync replaces the data, who saves the old ones is killed."""
        self._saving = False
        self._child += 1

    def _snapshot(self) -> Snapshot:
        """A replica that has lost its position saves no replid."""
        knows = self.stream is not None if self.is_primary else self.link_up or self.cached
        replid, offset = (self.replid, self.offset) if knows else ("", 0)
        return Snapshot(list(self.data), replid, offset)

    def save_tail(self, name: str, keep: int, done: Callable[[str, str], None]) -> None:
        """SaveTail: ``done(path, error)`` is called in this process after some time, and never if it dies before.

        One save at a time: the next one begins behind it.
        """
        if self._saving:
            self.process.after(0.01, self.save_tail, name, keep, done)
            return
        error = "saving is off" if keep < 1 else "LOADING" if self.loading else self.sick
        self._saving = not error
        snapshot = self._snapshot()
        takes_s = 0.001 if error else self.watcher.save_s(len(snapshot.data)) + self.site.disk.slow_s
        self._child += not error
        self.process.after(takes_s, self._tail_saved, self._child, snapshot, name, keep, done, error)

    def _tail_saved(
        self, child: int, snapshot: Snapshot, name: str, keep: int, done: Callable[[str, str], None], error: str
    ) -> None:
        if error:
            done("", error)
            return
        disk = self.site.disk
        self._saving = self._saving and child != self._child
        if child != self._child or (snapshot.replid and snapshot.replid != self.replid) or self.loading or self.syncing:
            done("", "its data set was replaced meanwhile")
            return
        disk.dump = disk.diverged[name] = snapshot
        for old in surplus(disk.diverged, name, keep):
            del disk.diverged[old]
        done(f"{self.site.name}/diverged/{name}.rdb", "")
