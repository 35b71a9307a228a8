"""The invariants, looked at whenever something they depend on changes: that is, after every event.

1. one writer     At most one Redis would execute a client's write: alive, primary, not fenced, not paused. Excused is
                  one that nobody was able to fence (`Excuses`): what it executes beside its successor is counted, and
                  none of it may be confirmed.
2. epochs         The ledger's epoch grows by one at a time, and each epoch belongs to one member and session.
3. confirmed      A leader that serves has every write that was confirmed before, as long as at most N // 2 of N voters
                  lost their memory of that write (the process died, has not loaded it from a file that names its
                  position, and has not been in sync since).
4. divergence     A partial resync joins only a replica whose data are the beginning of its primary's.
5. healing        See `cluster`: after everything heals there is one serving leader, and the others are in sync.
6. process        A Redis accepts writes only in the process, and with the replid, that its leader published.
7. kept WAIT      No WAIT is answered with acknowledgements for a write of an older epoch than its primary's, unless
                  the same server has led without a break since (it took back an epoch that nobody wanted).
8. guard          A Redis accepts writes only while its guard is armed, or about to fence it, and never past the
                  guard's deadline and the time that it takes to fence or kill.
9. handover       An epoch that came by handover has, when it serves, every write that the one before it executed.
10. refused       A write that was refused was not executed; none is executed twice.
11. orders        An order that is done is: the latest epoch is of the member that was asked for.
12. history       Whoever accepts writes has every write once, and each client's confirmed writes in its order.
13. counters      An INCR counts at least all confirmed ones before it, and never more than were executed.
14. gives way     When the znode of the serving epoch goes, but by hand, its Redis accepts no writes any more; nor when
                  a later epoch is claimed.
15. testified     However many have lost their memory: a leader by vote has every confirmed write that a voter of its
                  round had when it voted, but for what a file without a position cannot tell (`Testimony`).
16. wiped         No full resync replaces a data set that has confirmed writes by one that lacks them, and no empty
                  member serves while a voter has any; unless they were given up in a vote before.

Counted, not forbidden (`Checker.losses`): values that a client was told of without confirmation, or that a reader saw
anywhere, and that have vanished; confirmed ones that a majority lost its memory of, and which of these a voter had.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from redis_agent.replication import Ledger
from redis_agent.znodes import Leader, LeaderPhase, Order, OrderState, Paths, decode_leader, decode_ledger, decode_order
from tests.sim.excuses import Excuses
from tests.sim.one_writer import OneWriter
from tests.sim.redis import SimRedis, Watcher
from tests.sim.redis_data import RedisConn, Snapshot
from tests.sim.testimony import Testimony
from tests.sim.world import Violation, World
from tests.sim.zk_tree import Txn


@dataclass(slots=True)
class Write:
    """A client's write, by its unique number."""

    by: str
    replid: str
    at: float
    offset: int = 0
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
        self.orders_path = paths.orders + "/"
        self.tolerated = voters // 2
        """How many voters may lose their memory of a confirmed write."""
        self.voters: tuple[str, ...] = ()
        self.writes: dict[int, Write] = {}
        self.confirmed: dict[int, None] = {}
        self.authors: dict[int, str] = {}
        """Of every write that was ever begun, executed or not."""
        self.counters: dict[str, set[int]] = {}
        """By client that counts: those of its writes that were executed."""
        self.seen: dict[int, str] = {}
        """Writes that a reader saw on some server, and who was the first."""
        self.serving: Serving | None = None
        self.served: dict[int, str] = {}
        self.redis_of: Callable[[str], SimRedis | None] = lambda _name: None
        self.excuses = Excuses(world)
        self.one_writer = OneWriter(self)
        self.testimony = Testimony(self, paths.ballots + "/")
        self.epoch_of: dict[str, int] = {}
        """By replid that a leader served with."""
        self.orders: dict[str, Order] = {}
        self.handovers = 0
        self.guard_fences = 0
        self.residue: dict[int, str] = {}
        """Writes that an excused server executed behind the claim of a later epoch, and the excuse."""
        self.claimed: dict[int, tuple[str, str]] = {}
        self.failovers = 0
        self.partial_resyncs = 0
        self.full_resyncs = 0
        self.transfer_share = 1.0
        self._forgetful: dict[str, _Regain | None] = {}
        self._served: dict[int, Leader] = {}
        self._executed: dict[str, list[int]] = {}  # by replid

    # -- the servers ------------------------------------------------------------------------------------------------

    def changed(self, redis: SimRedis) -> None:
        self.one_writer.changed(redis)

    def armed(self, redis: SimRedis, until: float) -> None:
        self.one_writer.armed(redis, until)

    def booted(self, redis: SimRedis) -> None:
        self.testimony.booted(redis)

    def replaced(self, redis: SimRedis, snapshot: Snapshot) -> None:
        self.testimony.replaced(redis, snapshot)

    def died(self, redis: SimRedis) -> None:
        self.testimony.died(redis)
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
        if write_id in self.writes:
            raise Violation("refused", f"write {write_id} is executed twice, now by {redis.site.name}")
        self.writes[write_id] = Write(redis.site.name, redis.replid, self.world.now, redis.offset)
        self._executed.setdefault(redis.replid, []).append(write_id)
        counted = self.counters.get(self.authors.get(write_id, ""))
        if counted is not None:
            counted.add(write_id)
            self._counts(redis, write_id, counted)
        serving = self.serving
        if serving is None or serving.redis is not redis:
            self.residue[write_id] = why = self.excuses.excuse(redis.site.name)
            if not why:
                raise Violation("one writer", f"{redis.site.name} executes {write_id}, and does not serve any more")

    def _counts(self, redis: SimRedis, write_id: int, counted: set[int]) -> None:
        """The value that this INCR gives back, against the confirmed ones before it."""
        self.world.count("invariant", "counters")
        held = counted.intersection(redis.data)
        missing = [number for number in counted - held if self.writes[number].confirmed and self.kept(number)]
        if (missing or write_id not in held) and not self.excuses.excused(redis.site.name):
            raise Violation("counters", f"INCR {write_id} on {redis.site.name} gives {len(held)}: without {missing}")

    def kept(self, number: int) -> bool:
        """So few have lost their memory of it that it must be there."""
        return len(self.writes[number].lost_by) <= self.tolerated

    def refused(self, write_id: int, reply: str) -> None:
        """A client was told that this write was not executed."""
        self.world.count("invariant", "refused")
        if write_id in self.writes:
            raise Violation("refused", f"write {write_id} was answered {reply}, and was executed")

    def waited(self, redis: SimRedis, conn: RedisConn, count: int) -> None:
        if conn.wrote_in and conn.wrote_in != redis.replid:
            self.world.count("invariant", "kept WAIT")
        if conn.wrote_in and conn.wrote_in != redis.replid and count and not self._taken_back(redis, conn.wrote_in):
            raise Violation(
                "kept WAIT", f"{redis.site.name} tells {conn.client.name} of acknowledgements in a new epoch"
            )

    def _taken_back(self, redis: SimRedis, wrote_in: str) -> bool:
        """From that epoch to now this server has led without a break: no rival can have come between."""
        serving = self.serving
        if serving is None or serving.redis is not redis:
            return False
        leader = serving.leader
        while leader.by_handover and leader.replid != wrote_in:
            before = self._served.get(leader.epoch - 1)
            if before is None or before.name != leader.name:
                return False
            leader = before
        return leader.replid == wrote_in

    def advanced(self, redis: SimRedis) -> None:
        """A member that lost its memory has it again once it is level with where the serving leader was."""
        name = redis.site.name
        self.testimony.replicates(redis)
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
        self.world.count("invariant", "divergence")
        assert primary.stream is not None
        size = primary.stream.size_at(offset)
        if size != len(replica.data) or primary.data[:size] != replica.data:
            raise Violation(
                "divergence",
                f"{replica.site.name} ({len(replica.data)} writes at {offset}) joins {primary.site.name} "
                f"({size} writes there) by a partial resync, but their histories differ",
            )

    def guard_fires(self, redis: SimRedis) -> None:
        self.guard_fences += 1

    def transfer_s(self, writes: int) -> float:
        self.full_resyncs += 1
        return self.transfer_share * (0.03 + 0.0002 * writes) * self.world.uniform(0.5, 2.0)

    def save_s(self, writes: int) -> float:
        return self.transfer_share * (0.02 + 0.0002 * writes) * self.world.uniform(0.5, 2.0)

    def load_s(self, writes: int) -> float:
        return self.transfer_share * (0.01 + 0.0002 * writes) * self.world.uniform(0.5, 2.0)

    # -- confirmed writes -------------------------------------------------------------------------------------------

    def confirm(self, write_id: int) -> None:
        """A client has the confirmation of this write in its hands."""
        write = self.writes[write_id]
        if write_id in self.residue:
            raise Violation("confirmed", f"write {write_id}, of {write.by} behind a later epoch's claim, is confirmed")
        write.confirmed = True
        self.confirmed[write_id] = None
        serving = self.serving
        if serving is not None and serving.leader.replid != write.replid and self._stands(serving):
            assert serving.redis is not None
            self.has_confirmed(serving.redis, "serves when it is confirmed", [write_id])

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

    def has_confirmed_of_its_time(self, redis: SimRedis) -> None:
        """Of one that is excused for accepting writes: those of its own epoch and of earlier ones."""
        epoch = self.epoch_of.get(redis.replid, 0)
        known = [number for number in self.confirmed if self.epoch_of.get(self.writes[number].replid, 0) <= epoch]
        self.has_confirmed(redis, "accepts writes, and is excused,", known)

    def has_confirmed(self, redis: SimRedis, when: str, numbers: list[int] | None = None) -> None:
        """It has all confirmed writes, or these."""
        self.world.count("invariant", "confirmed")
        held = set(redis.data)
        wanted = self.confirmed if numbers is None else numbers
        missing = [number for number in wanted if number not in held]
        lost = [number for number in missing if self.kept(number)]
        if lost:
            write = self.writes[lost[0]]
            raise Violation(
                "confirmed",
                f"{redis.site.name} {when} without {len(lost)} confirmed writes, the first is number {lost[0]}, "
                f"executed at {write.at:.4f} by {write.by}, forgotten by {sorted(write.lost_by)}",
            )
        if numbers is None:
            self._in_order(redis, when)

    def _in_order(self, redis: SimRedis, when: str) -> None:
        self.world.count("invariant", "history")
        place = {number: index for index, number in enumerate(redis.data)}
        if len(place) != len(redis.data):
            raise Violation("history", f"{redis.site.name} {when} with a write that it has twice")
        latest: dict[str, int] = {}
        for number in self.confirmed:
            index, author = place.get(number), self.authors[number]
            if index is not None and author:
                if index < latest.get(author, -1):
                    raise Violation(
                        "history", f"{redis.site.name} {when} with {number} of {author} before earlier ones"
                    )
                latest[author] = index

    def losses(self, final: list[int]) -> dict[str, int]:
        """What is not in the data at the end, though somebody had heard of it."""
        held = set(final)
        gone = [number for number in self.writes if number not in held]
        unconfirmed = [number for number in gone if not self.writes[number].confirmed]
        return {
            "acknowledged, not confirmed, and lost": sum(1 for number in unconfirmed if self.writes[number].acked),
            "seen, not confirmed, and vanished": sum(1 for number in unconfirmed if number in self.seen),
            "confirmed, and lost with a majority": len(gone) - len(unconfirmed),
            **{f"  of these: {why}": len(numbers) for why, numbers in sorted(self.testimony.behind.items())},
        }

    # -- ZooKeeper --------------------------------------------------------------------------------------------------

    def committed(self, txn: Txn) -> None:
        """Hook of the ensemble: a transaction was committed, nobody has seen it yet."""
        for change in txn.changes:
            if change.path == self.ledger_path and change.new is not None:
                before = decode_ledger(change.old.data) if change.old is not None and change.old.data else Ledger()
                self._ledger(before, decode_ledger(change.new.data))
        for change in txn.changes:
            self.testimony.committed(change)
            if change.path == self.leader_path:
                self._leader(decode_leader(change.new.data) if change.new is not None else None, txn.label)
            elif change.path.startswith(self.orders_path):
                self._order(change.path, decode_order(change.new.data) if change.new is not None else None)

    def _order(self, path: str, order: Order | None) -> None:
        if order is None:
            self.orders.pop(path, None)
            return
        self.orders[path] = order
        if order.state == OrderState.DONE:
            self.world.count("invariant", "orders")
        owner = self.claimed[max(self.claimed)][0] if self.claimed else "nobody"
        if order.state == OrderState.DONE and order.to not in ("", owner):
            raise Violation("orders", f"{path} is done, but the latest epoch is of {owner} instead of {order.to}")

    def _ledger(self, before: Ledger, after: Ledger) -> None:
        self.world.count("invariant", "epochs")
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

    def _leader(self, leader: Leader | None, label: str) -> None:
        if self.serving is not None and (leader is None or leader.epoch != self.serving.leader.epoch):
            self.one_writer.leader_goes(self.serving, label)
        if self.serving is not None and (leader is None or leader.epoch == self.serving.leader.epoch):
            self.serving.published = leader is not None
            return
        if leader is None or leader.phase != LeaderPhase.SERVING:
            self.serving = None
            return
        redis = self.redis_of(leader.name)
        self.serving = Serving(leader, redis)
        self.served[leader.epoch] = leader.name
        self._served[leader.epoch] = leader
        self.epoch_of[leader.replid] = leader.epoch
        if self._stands(self.serving):
            assert redis is not None
            self.has_confirmed(redis, f"serves epoch {leader.epoch}")
            if leader.by_handover:
                self._lost_nothing(leader, redis)
            else:
                self.testimony.elected(leader, redis)
            self._remembers(redis)

    def _lost_nothing(self, leader: Leader, redis: SimRedis) -> None:
        self.handovers += 1
        self.world.count("invariant", "handover")
        before = self._served.get(leader.epoch - 1)
        if before is None:
            raise Violation("handover", f"epoch {leader.epoch} came by handover from one that never served")
        held = set(redis.data)
        lost = [number for number in self._executed.get(before.replid, ()) if number not in held]
        if lost:
            raise Violation(
                "handover",
                f"{leader.name} serves epoch {leader.epoch} by handover without {len(lost)} writes that "
                f"{before.name} executed, the first is number {lost[0]} of {self.writes[lost[0]].at:.4f}",
            )
