"""The invariants, looked at whenever something they depend on changes: that is, after every event.

1. one writer     At most one Redis would execute a client's write: alive, primary, not fenced, not paused.
2. epochs         The ledger's epoch grows by one at a time, and each epoch belongs to one member and session.
3. confirmed      A leader that serves has every write that was confirmed before, as long as at most a minority of the
                  voters lost its memory of that write (its process died, and it has not been in sync since).
4. divergence     A partial resync joins only a replica whose data are the beginning of its primary's.
5. healing        See `cluster`: after everything heals there is one serving leader, and the others are in sync.
6. process        A Redis accepts writes only in the process, and with the replid, that its leader published.
7. kept WAIT      No WAIT is answered with acknowledgements for a write of an older epoch than its primary's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from redis_agent.replication import Ledger
from redis_agent.znodes import Leader, LeaderPhase, Paths, decode_leader, decode_ledger
from tests.sim.redis import SimRedis, Watcher
from tests.sim.redis_data import RedisConn
from tests.sim.world import Violation, World
from tests.sim.zk_server import Txn


@dataclass(slots=True)
class Write:
    """A client's write, by its unique number."""

    by: str
    replid: str
    at: float
    acked: bool = False
    confirmed: bool = False
    lost_by: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Serving:
    """A leadership that reached serving, and the process that it serves with. Forgotten when the next one is claimed.

    ``published``: its znode is there.
    """

    leader: Leader
    redis: SimRedis | None
    published: bool = True


@dataclass(slots=True)
class _Regain:
    """A member that forgets nothing more once it has applied this offset of this serving process."""

    leader: SimRedis
    offset: int


class Checker(Watcher):
    """Raises Violation. ``voters`` are all members of the simulated cluster."""

    def __init__(self, world: World, paths: Paths, voters: int) -> None:
        self.world = world
        self.leader_path = paths.leader
        self.ledger_path = paths.epoch
        self.minority = (voters - 1) // 2
        self.writes: dict[int, Write] = {}
        self.confirmed: dict[int, None] = {}
        self.writable: dict[str, SimRedis] = {}
        self.serving: Serving | None = None
        self.served: dict[int, str] = {}
        self.redis_of: Callable[[str], SimRedis | None] = lambda _name: None
        self.claimed: dict[int, tuple[str, str]] = {}
        self.failovers = 0
        self.partial_resyncs = 0
        self.full_resyncs = 0
        self.transfer_share = 1.0
        self._forgetful: dict[str, _Regain | None] = {}

    # -- the servers ------------------------------------------------------------------------------------------------

    def changed(self, redis: SimRedis) -> None:
        name = redis.site.name
        was = self.writable.get(name) is redis
        if redis.writable == was:
            return
        if was:
            del self.writable[name]
            if self.world.tracing:
                self.world.log(f"{name}.redis", "no longer accepts writes")
            return
        self.writable[name] = redis
        if self.world.tracing:
            self.world.log(f"{name}.redis", f"ACCEPTS WRITES replid={redis.replid[:6]} offset={redis.offset}")
        if len(self.writable) > 1:
            raise Violation("one writer", f"{sorted(self.writable)} accept writes at the same moment")
        serving = self.serving
        if serving is None or serving.redis is not redis or serving.leader.replid != redis.replid:
            raise Violation("process", f"{name} accepts writes in a process or with a replid that was never published")
        self._has_confirmed(redis, "accepts writes")

    def died(self, redis: SimRedis) -> None:
        self._lost(redis, redis.data)
        self._lost(redis, redis.dropped)

    def forgot(self, redis: SimRedis) -> None:
        self._lost(redis, redis.dropped)
        redis.dropped = []

    def tampered(self, redis: SimRedis) -> None:
        """A hand has given it a history of its own: nothing but a full resync leads back, so its data do not count."""
        self._lost(redis, redis.data)

    def _lost(self, redis: SimRedis, numbers: list[int]) -> None:
        for number in numbers:
            self.writes[number].lost_by.add(redis.site.name)
        self._forgetful[redis.site.name] = None

    def wrote(self, redis: SimRedis, write_id: int) -> None:
        self.writes[write_id] = Write(redis.site.name, redis.replid, self.world.now)

    def waited(self, redis: SimRedis, conn: RedisConn, count: int) -> None:
        if conn.wrote_in and conn.wrote_in != redis.replid and count:
            raise Violation(
                "kept WAIT", f"{redis.site.name} tells {conn.client.name} of acknowledgements in a new epoch"
            )

    def advanced(self, redis: SimRedis) -> None:
        """A member that lost its memory has it again once it is level with where the serving leader was."""
        name = redis.site.name
        if name not in self._forgetful:
            return
        serving = self.serving
        leader = serving.redis if serving is not None and serving.published else None
        link = redis.uplink
        if leader is None or link is None or not redis.link_up or link.primary is not leader:
            self._forgetful[name] = None
            return
        regain = self._forgetful[name]
        if regain is None or regain.leader is not leader:
            self._forgetful[name] = regain = _Regain(leader, leader.offset)
        if redis.offset >= regain.offset and redis.replid == leader.replid:
            self._remembers(redis)

    def _remembers(self, redis: SimRedis) -> None:
        self._forgetful.pop(redis.site.name, None)
        for number in redis.data:
            self.writes[number].lost_by.discard(redis.site.name)

    def joined(self, replica: SimRedis, primary: SimRedis, offset: int) -> None:
        self.partial_resyncs += 1
        assert primary.stream is not None
        size = primary.stream.size_at(offset)
        if size != len(replica.data) or primary.data[:size] != replica.data:
            raise Violation(
                "divergence",
                f"{replica.site.name} ({len(replica.data)} writes at {offset}) joins {primary.site.name} "
                f"({size} writes there) by a partial resync, but their histories differ",
            )

    def transfer_s(self, writes: int) -> float:
        self.full_resyncs += 1
        return self.transfer_share * (0.03 + 0.0002 * writes) * self.world.uniform(0.5, 2.0)

    def load_s(self, writes: int) -> float:
        return self.transfer_share * (0.01 + 0.0002 * writes) * self.world.uniform(0.5, 2.0)

    # -- confirmed writes -------------------------------------------------------------------------------------------

    def confirm(self, write_id: int) -> None:
        """A client has the confirmation of this write in its hands."""
        write = self.writes[write_id]
        write.confirmed = True
        self.confirmed[write_id] = None
        serving = self.serving
        if serving is not None and serving.leader.replid != write.replid and self._stands(serving):
            assert serving.redis is not None
            self._has_confirmed(serving.redis, "serves when it is confirmed", [write_id])

    def _stands(self, serving: Serving) -> bool:
        """It still serves with the process and the history that it published."""
        redis = serving.redis
        return (
            redis is not None
            and redis.process.alive
            and redis.is_primary
            and redis.replid == serving.leader.replid
            and not redis.loading
        )

    def _has_confirmed(self, redis: SimRedis, when: str, numbers: list[int] | None = None) -> None:
        held = set(redis.data)
        wanted = self.confirmed if numbers is None else numbers
        missing = [number for number in wanted if number not in held]
        lost = [number for number in missing if len(self.writes[number].lost_by) <= self.minority]
        if lost:
            write = self.writes[lost[0]]
            raise Violation(
                "confirmed",
                f"{redis.site.name} {when} without {len(lost)} confirmed writes, the first is number {lost[0]}, "
                f"executed at {write.at:.4f} by {write.by}, forgotten by {sorted(write.lost_by)}",
            )

    # -- ZooKeeper --------------------------------------------------------------------------------------------------

    def committed(self, txn: Txn) -> None:
        """Hook of the ensemble: a transaction was committed, nobody has seen it yet."""
        for change in txn.changes:
            if change.path == self.ledger_path and change.new is not None:
                before = decode_ledger(change.old.data) if change.old is not None and change.old.data else Ledger()
                self._ledger(before, decode_ledger(change.new.data))
            elif change.path == self.leader_path:
                self._leader(decode_leader(change.new.data) if change.new is not None else None)

    def _ledger(self, before: Ledger, after: Ledger) -> None:
        if after.epoch not in (before.epoch, before.epoch + 1):
            raise Violation("epochs", f"the ledger goes from {before.epoch} to {after.epoch}")
        for entry in after.entries:
            owner = (entry.member, entry.guid)
            known = self.claimed.setdefault(entry.epoch, owner)
            if known != owner:
                raise Violation("epochs", f"epoch {entry.epoch} is claimed by {owner}, and was by {known}")
        if after.epoch > before.epoch:
            self.failovers += 1
            if after.epoch not in self.claimed:
                raise Violation("epochs", f"epoch {after.epoch} has no entry in the ledger")

    def _leader(self, leader: Leader | None) -> None:
        if self.serving is not None and (leader is None or leader.epoch == self.serving.leader.epoch):
            self.serving.published = leader is not None
            return
        if leader is None or leader.phase != LeaderPhase.SERVING:
            self.serving = None
            return
        redis = self.redis_of(leader.name)
        self.serving = Serving(leader, redis)
        self.served[leader.epoch] = leader.name
        if self._stands(self.serving):
            assert redis is not None
            self._has_confirmed(redis, f"serves epoch {leader.epoch}")
            self._remembers(redis)
