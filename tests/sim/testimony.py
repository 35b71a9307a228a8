"""What the voters of a round testified and really had, and what replaces data sets: P2 beyond memory, and P5.

The memory of a majority may be lost. Then all voters testify, and the best of what is left is to lead: what a confirmed
write is worth depends on who still has it, not on how many have lost it. Held against the leader is every confirmed
write that a voter had when it cast its ballot of that round, but for three cases, which are counted:

* **memory before files**: an AOF names no position, and its state file may count more than the AOF kept. So it does not
  win against the memory of a process that was not interrupted.
* **not in the state file**: the file was written before the write.
* **taken by the crash**: the leader had it, too, and lost it from the end of its own AOF.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from redis_agent.znodes import Leader, decode_ballot
from tests.sim.world import Violation

if TYPE_CHECKING:
    from tests.sim.checker import Checker
    from tests.sim.redis import SimRedis
    from tests.sim.redis_data import Snapshot
    from tests.sim.zk_tree import Change


@dataclass(frozen=True, slots=True)
class Testified:
    """What a voter had when its ballot was committed. ``recorded``: epoch and offset of its state file.

    ``exact``: its position is Redis's own word. ``loaded``: from disk, and nothing was replicated since.
    """

    data: frozenset[int]
    exact: bool
    loaded: bool
    recorded: tuple[int, int]


class Testimony:
    """Told by the checker of ballots, boots, deaths and full resyncs."""

    def __init__(self, checker: Checker, ballots_path: str) -> None:
        self.checker = checker
        self.world = checker.world
        self._ballots_path = ballots_path
        self._rounds: dict[int, dict[str, Testified]] = {}
        self._loaded: dict[str, SimRedis] = {}
        """Processes whose data are as they were loaded from disk."""
        self._at_death: dict[str, list[int]] = {}
        self._taken: dict[str, set[int]] = {}
        """By member: what crashes took from the end of its AOF."""
        self.given_up: set[int] = set()
        """Confirmed writes that a serving leader was excused for lacking."""
        self.behind: dict[str, set[int]] = {}
        """Confirmed writes that a voter had and the leader of its round lacked, by excuse."""

    # -- processes --------------------------------------------------------------------------------------------------

    def died(self, redis: SimRedis) -> None:
        data = redis.data or redis.dropped
        if data:
            self._at_death[redis.site.name] = data

    def booted(self, redis: SimRedis) -> None:
        """Its data are loaded. An RDB names its position: what it loads has not been forgotten."""
        name, disk = redis.site.name, redis.site.disk
        self._loaded.pop(name, None)
        if not redis.data:
            return
        self._loaded[name] = redis
        if disk.mode == "aof":
            lost = set(self._at_death.get(name, ())).difference(redis.data)
            self._taken.setdefault(name, set()).update(lost)
        elif redis.cached:
            for number in redis.data:
                self.checker.writes[number].lost_by.discard(name)

    def replicates(self, redis: SimRedis) -> None:
        """Its link came up, or it has applied more."""
        if self._loaded.get(redis.site.name) is redis and redis.link_up:
            del self._loaded[redis.site.name]

    def replaced(self, redis: SimRedis, snapshot: Snapshot) -> None:
        """A full resync is about to replace what it has."""
        self.world.count("invariant", "wiped")
        confirmed = self.checker.confirmed
        held = set(snapshot.data)
        gone = [n for n in redis.data if n in confirmed and n not in held and n not in self.given_up]
        if gone:
            raise Violation(
                "wiped",
                f"a full resync of {redis.site.name} replaces {len(redis.data)} writes by {len(held)}, which lack "
                f"{len(gone)} confirmed ones, the first is number {gone[0]}",
            )

    # -- rounds -----------------------------------------------------------------------------------------------------

    def committed(self, change: Change) -> None:
        """A ballot is there."""
        if not change.path.startswith(self._ballots_path) or change.new is None or not change.new.data:
            return
        ballot = decode_ballot(change.new.data)
        redis = self.checker.redis_of(ballot.member)
        testified = self._rounds.setdefault(ballot.round, {})
        testified.pop(ballot.member, None)
        if not ballot.up or redis is None or redis.run_id != ballot.run_id:
            return
        loaded = self._loaded.get(ballot.member) is redis
        member = self.checker.excuses.member_of(ballot.member)
        record = member.record if member is not None else None
        testified[ballot.member] = Testified(
            data=frozenset(redis.data),
            exact=not loaded or redis.cached,
            loaded=loaded,
            recorded=(record.epoch, record.offset_bytes) if record is not None else (-1, -1),
        )

    def elected(self, leader: Leader, redis: SimRedis) -> None:
        """It begins to serve by a vote."""
        testified = self._rounds.get(leader.epoch, {})
        self._rounds = {round_: cast for round_, cast in self._rounds.items() if round_ > leader.epoch}
        self.world.count("invariant", "testified")
        lacks = self.checker.confirmed.keys() - set(redis.data) - self.given_up
        if not redis.data:
            self._empty(leader, lacks)
        memory = any(each.exact and not each.loaded and each.data for each in testified.values())
        for name, each in testified.items():
            for number in sorted(lacks & each.data):
                why = "" if each.exact else self._excuse(leader.name, number, each, memory=memory)
                if not why:
                    raise Violation(
                        "testified",
                        f"{leader.name} serves epoch {leader.epoch} without {len(lacks & each.data)} confirmed writes "
                        f"that {name} had when it voted, the first is number {number}",
                    )
                self.behind.setdefault(why, set()).add(number)
        self.given_up |= lacks

    def _excuse(self, leader: str, number: int, holder: Testified, *, memory: bool) -> str:
        if memory:
            return "memory before files"
        if number in self._taken.get(leader, ()):
            return "taken by the crash"
        write = self.checker.writes[number]
        if (self.checker.epoch_of.get(write.replid, 0), write.offset) > holder.recorded:
            return "not in the state file"
        return ""

    def _empty(self, leader: Leader, lacks: set[int]) -> None:
        self.world.count("invariant", "wiped (an empty one serves)")
        for name in self.checker.voters:
            redis = self.checker.redis_of(name)
            if redis is not None and redis.process.alive and not redis.loading and lacks.intersection(redis.data):
                raise Violation("wiped", f"{leader.name} is empty and serves epoch {leader.epoch}, {name} has data")
