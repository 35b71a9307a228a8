"""A core with its world in the test's hands: every command waits until the test answers it, in any way it likes.

The member is ``m1``. ``m2`` and ``m3`` exist only as znodes that a test writes. ZooKeeper is a dictionary, Redis one
RedisInfo: just enough that a test can say ``settle`` for what goes well, and spell out what does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar, cast

from redis_agent.core.agent import Core
from redis_agent.core.settings import CoreSettings
from redis_agent.election import Ballot
from redis_agent.messages import (
    ArmGuard,
    Check,
    Command,
    Commit,
    CommitDone,
    CommitRefused,
    CommitUnknown,
    Create,
    Delete,
    DisarmGuard,
    Ensure,
    Event,
    Exit,
    Fence,
    Follow,
    Freeze,
    GuardDone,
    KickClients,
    KillRedis,
    LeaveRedis,
    LiftFence,
    Log,
    Op,
    PauseWrites,
    Probe,
    Probed,
    ProbeRemote,
    Promote,
    Put,
    Read,
    ReadDone,
    Ready,
    RedisLeft,
    RedisUp,
    RemoteProbed,
    RoleDone,
    RoleFailed,
    SaveState,
    SaveTail,
    ScriptKill,
    SessionDown,
    SessionUp,
    Started,
    StateSaved,
    TailSaved,
    Tick,
    Unpause,
    WatchFired,
    ZkError,
    Znode,
)
from redis_agent.replication import NOWHERE, Address, Ledger, LedgerEntry, Position, RedisInfo
from redis_agent.state_record import StateRecord
from redis_agent.znodes import ClusterConfig, Leader, LeaderPhase, Member, Order, Paths, Presence, decode_leader, encode

T = TypeVar("T")
NAMES = ("m1", "m2", "m3")
ADDRESSES = {name: Address(f"10.0.0.{number}", 6379) for number, name in enumerate(NAMES, start=1)}
PATHS = Paths("redis-agent", "cache")
ANSWER_S = 0.001
ROLE_COMMANDS = (Fence, LiftFence, Freeze, Promote, Follow, PauseWrites, Unpause, ScriptKill, KickClients)

Payload = ClusterConfig | Member | Presence | Leader | Ledger | Ballot | Order


def replid(epoch: int) -> str:
    """The replid of an epoch, as long as Redis makes them."""
    return f"{epoch:040x}"


def info(**changes: Any) -> RedisInfo:
    """A Redis that has just booted, fenced, with nothing in it."""
    fresh = RedisInfo(
        run_id="run-1",
        version="7.0.15",
        is_primary=False,
        replid="f" * 40,
        offset_bytes=0,
        replica_offset_bytes=0,
        primary=NOWHERE,
    )
    return replace(fresh, **changes)


def ledger(*members: str, served: bool = True) -> Ledger:
    """One epoch after the other, led by these members, each 100 bytes further than the one before."""
    entries = tuple(
        LedgerEntry(
            epoch=epoch,
            member=member,
            guid=f"guid-{member}",
            start=Position(epoch - 1, (epoch - 1) * 100),
            replid=replid(epoch),
            served=served,
        )
        for epoch, member in enumerate(members, start=1)
    )
    return Ledger(epoch=len(members), entries=entries)


def presence(name: str, **changes: Any) -> Presence:
    """A live agent of another member."""
    return replace(Presence(name=name, guid=f"guid-{name}", redis=ADDRESSES[name], redis_up=True), **changes)


def leader(name: str, epoch: int, phase: str = LeaderPhase.SERVING, guid: str = "") -> Leader:
    """``leader`` as its owner writes it."""
    return Leader(
        name=name,
        address=ADDRESSES[name],
        epoch=epoch,
        phase=phase,
        guid=guid or f"guid-{name}",
        replid=replid(epoch) if phase == LeaderPhase.SERVING else "",
        wait=1,
        voters=NAMES,
    )


def ballot(member: str, round_: int, offset_bytes: int, **changes: Any) -> Ballot:
    """An intact member's ballot, of the epoch before the round."""
    cast_ = Ballot(
        member=member,
        round=round_,
        guid=f"guid-{member}",
        up=True,
        intact=True,
        keys=5,
        run_id=f"run-{member}",
        replid=replid(round_ - 1),
        offset_bytes=offset_bytes,
    )
    return replace(cast_, **changes)


class Driver:
    """Feeds a core. ``pending`` holds the commands that nobody has answered yet, ``log`` all that it said."""

    def __init__(self, **settings: Any) -> None:
        self.core = Core(
            CoreSettings(root="redis-agent", cluster="cache", name="m1", redis=ADDRESSES["m1"], **settings)
        )
        self.now = 1000.0
        self.pending: list[Command] = []
        self.log: list[Log] = []
        self.tree: dict[str, Znode] = {}
        self.info = info()
        self.timeout_s = 6.0
        self.exit: Exit | None = None
        self.killed: list[KillRedis] = []
        self.ready: list[Ready] = []
        self._zxid = 0
        self._watched: set[str] = set()
        self._changed: list[str] = []
        self._sent: dict[int, float] = {}
        self._sessions = 0

    # --- events ---------------------------------------------------------------------------------------------------

    def step(self, event: Event) -> list[Command]:
        """Let the core hear an event; its commands without the logging."""
        commands = [command for command in self.core.step(event, self.now) if not self._noted(command)]
        self._sent |= {command.request: self.now for command in commands if isinstance(command, Commit | Read | Probe)}
        self.pending += commands
        return commands

    def _noted(self, command: Command) -> bool:
        """What wants no answer."""
        match command:
            case Log():
                self.log.append(command)
            case KillRedis():
                self.killed.append(command)
            case Ready():
                self.ready.append(command)
            case Exit():
                self.exit = command
            case _:
                return False
        return True

    def wait(self, seconds: float) -> list[Command]:
        """Let time pass: each deadline of the core gets its Tick. Nothing is answered meanwhile."""
        until = self.now + seconds
        commands: list[Command] = []
        for _ in range(1000):
            deadline = self.core.next_deadline()
            if deadline is None or deadline > until:
                self.now = until
                return commands
            self.now = max(self.now, deadline)
            commands += self.step(Tick())
        raise AssertionError(f"the core never rests: {self.core.timers}")

    @property
    def state(self) -> str:
        return self.core.state

    def transitions(self) -> list[str]:
        """The triggers that fired, in order."""
        return [str(dict(line.fields)["trigger"]) for line in self.log if line.event == "transition"]

    # --- pending commands -----------------------------------------------------------------------------------------

    def find(self, kind: type[T], label: str = "") -> list[T]:
        """The unanswered commands of this kind."""
        found = [command for command in self.pending if isinstance(command, kind)]
        return [command for command in found if not label or cast("Commit", command).label == label]

    def take(self, kind: type[T], label: str = "") -> T:
        """The only one of them, which is not answered by ``settle`` any more."""
        found = self.find(kind, label)
        assert len(found) == 1, f"{len(found)} times {kind.__name__} {label} in {self.pending}"
        self.pending.remove(cast("Command", found[0]))
        return found[0]

    def settle(self, hold: Callable[[Command], bool] = lambda _: False, limit: int = 200) -> None:
        """Answer everything as if all went well, in order, until there is nothing left but what is held back."""
        for _ in range(limit):
            command = next((command for command in self.pending if not hold(command)), None)
            if command is None:
                return
            self.pending.remove(command)
            self.answer(command)
        raise AssertionError(f"the core never rests: {self.pending}")

    def settle_but(self, *kinds: type | str) -> None:
        """``settle``, holding back commands of some kinds, or commits of these labels."""
        types = tuple(kind for kind in kinds if isinstance(kind, type))
        self.settle(lambda command: isinstance(command, types) or getattr(command, "label", "") in kinds)

    def answer(self, command: Command) -> list[Command]:
        """The good answer to a command, a millisecond after it."""
        sent_at, self.now = self._sent.get(getattr(command, "request", 0), self.now), self.now + ANSWER_S
        match command:
            case Commit():
                return self._commit(command, sent_at)
            case Ensure():
                for path, data in command.nodes:
                    if path not in self.tree:
                        self._write(path, data, -1, 0)
                return self.step(CommitDone(command.session, command.request, sent_at, ()))
            case Read():
                return self.step(self._read(command, sent_at))
            case SaveState():
                return self.step(StateSaved(command.request))
            case ArmGuard() | DisarmGuard():
                return self.step(GuardDone(command.incarnation, command.request))
            case LeaveRedis():
                return self.step(RedisLeft(command.incarnation))
            case SaveTail():
                return self.step(TailSaved(command.incarnation, command.request, path=f"diverged/{command.name}.rdb"))
            case ProbeRemote():
                return self.step(RemoteProbed(command.request, command.address, None))
            case Probe():
                return self.step(Probed(command.incarnation, command.request, sent_at, self.info))
            case _ if isinstance(command, ROLE_COMMANDS):
                self._change_role(command)
                return self.step(RoleDone(command.incarnation, command.request, self.info))
        return []

    def refuse(self, command: Commit, error: ZkError) -> list[Command]:
        """Nothing of it was done."""
        return self.step(CommitRefused(command.session, command.request, 0, error))

    def lose(self, command: Commit) -> list[Command]:
        """The reply is lost."""
        return self.step(CommitUnknown(command.session, command.request, "connection lost"))

    def fail(self, command: Any, *, unknown: bool, late: bool = False) -> list[Command]:
        """A role command fails."""
        return self.step(RoleFailed(command.incarnation, command.request, "no answer", unknown=unknown, late=late))

    # --- the world ------------------------------------------------------------------------------------------------

    def put(self, path: str, payload: Payload | bytes, *, owner: int = 0) -> None:
        """Another one writes a znode; ``fire_watches`` tells the core."""
        self._changed += [path] if path in self.tree else [path, path.rpartition("/")[0]]
        data = payload if isinstance(payload, bytes) else encode(payload)
        self._write(path, data, self.tree[path].version if path in self.tree else -1, owner)

    def remove(self, path: str) -> None:
        """It is gone."""
        self._changed += [path, path.rpartition("/")[0]]
        del self.tree[path]

    def fire_watches(self) -> list[Command]:
        """ZooKeeper tells of what others have changed, as far as it was watched."""
        fired = [path for path in dict.fromkeys(self._changed) if path in self._watched]
        self._changed.clear()
        self._watched.difference_update(fired)
        return [command for path in fired for command in self.step(WatchFired(self.core.session.number, path))]

    def read_again(self) -> None:
        """Watches fire, and all goes well."""
        self.fire_watches()
        self.settle()

    def commit(self, command: Commit) -> None:
        """Carry it out, but say nothing to the core: no answer, no watch."""
        assert self._apply(command.ops) is None

    def the_leader(self) -> Leader | None:
        """What the znode says."""
        node = self.tree.get(PATHS.leader)
        return None if node is None else decode_leader(node.data)

    def _commit(self, command: Commit, sent_at: float) -> list[Command]:
        refused = self._apply(command.ops)
        if refused is not None:
            index, error = refused
            return self.step(CommitRefused(command.session, command.request, index, error))
        versions = tuple(
            0 if isinstance(op, Create) else self.tree[op.path].version if isinstance(op, Put) else -1
            for op in command.ops
        )
        # Watches come before the answer, as ZooKeeper has it.
        changed = [op.path for op in command.ops if not isinstance(op, Check)]
        parents = [op.path.rpartition("/")[0] for op in command.ops if isinstance(op, Create | Delete)]
        for path in dict.fromkeys([*changed, *parents]):
            if path in self._watched:
                self._watched.discard(path)
                self.step(WatchFired(command.session, path))
        return self.step(CommitDone(command.session, command.request, sent_at, versions))

    def _apply(self, ops: tuple[Op, ...]) -> tuple[int, ZkError] | None:
        before = dict(self.tree)
        for index, op in enumerate(ops):
            node = self.tree.get(op.path)
            error: ZkError | None = None
            if isinstance(op, Create):
                error = ZkError.NODE_EXISTS if node else None
            elif node is None:
                error = ZkError.NO_NODE
            elif op.version not in (-1, node.version):
                error = ZkError.BAD_VERSION
            if error is not None:
                self.tree = before
                return index, error
            match op:
                case Create():
                    self._write(op.path, op.data, -1, self._sessions if op.ephemeral else 0)
                case Put():
                    assert node is not None
                    self._write(op.path, op.data, node.version, node.ephemeral_owner)
                case Delete():
                    del self.tree[op.path]
                case Check():
                    pass
        return None

    def _write(self, path: str, data: bytes, version: int, owner: int) -> None:
        self._zxid += 1
        czxid = self.tree[path].czxid if path in self.tree else self._zxid
        self.tree[path] = Znode(data, version + 1, czxid, self._zxid, owner)

    def _read(self, command: Read, sent_at: float) -> ReadDone:
        self._watched |= {*command.paths, *command.trees}
        trees = {
            top: {path[len(top) + 1 :]: node for path, node in self.tree.items() if path.startswith(f"{top}/")}
            for top in command.trees
        }
        paths = {path: self.tree.get(path) for path in command.paths}
        return ReadDone(command.session, command.request, sent_at, paths, {}, trees)

    def _change_role(self, command: Command) -> None:
        match command:
            case Freeze():
                self.info = replace(
                    self.info,
                    is_primary=False,
                    primary=NOWHERE,
                    link_up=False,
                    replica_offset_bytes=self.info.offset_bytes,
                )
            case Promote():
                self.info = replace(
                    self.info,
                    is_primary=True,
                    primary=None,
                    replica_offset_bytes=None,
                    backlog=True,
                    replid2=self.info.replid,
                    second_offset_bytes=self.info.offset_bytes + 1,
                    replid=replid(self.core.epoch),
                )
            case Follow():
                self.info = replace(self.info, is_primary=False, primary=command.primary, link_up=True, replid2="")
                standing = self.the_leader()
                if standing is not None:
                    self.info = replace(self.info, replid=standing.replid)

    # --- shortcuts ------------------------------------------------------------------------------------------------

    def start(self, record: StateRecord | None = None, **started: Any) -> None:
        """The process is up."""
        self.step(Started(record or StateRecord(), lock_held=True, old_redis_alive=False, **started))

    def redis_up(self, **changes: Any) -> list[Command]:
        """redis-server answers."""
        incarnation = self.core.redis.incarnation
        self.pending = [command for command in self.pending if type(command).__name__ != "StartRedis"]
        self.info = replace(self.info, run_id=f"run-{incarnation}", **changes)
        return self.step(RedisUp(incarnation, 4711, 1.0, self.info))

    def session_up(self) -> list[Command]:
        """A new session is made."""
        number = self.core.session.number
        self._sessions = number
        self._watched.clear()
        self.pending = [command for command in self.pending if type(command).__name__ != "OpenSession"]
        return self.step(SessionUp(number, True, number, self.timeout_s, self.now, f"guid-m1-{number}"))

    def session_down(self) -> list[Command]:
        """The connection is lost; so are the answers of what was in flight."""
        lost = [command for command in self.pending if isinstance(command, Commit | Read | Ensure)]
        self.pending = [command for command in self.pending if command not in lost]
        commands = self.step(SessionDown(self.core.session.number))
        for command in lost:
            if not isinstance(command, Read):
                commands += self.step(CommitUnknown(command.session, command.request, "connection lost"))
        return commands

    def session_back(self) -> list[Command]:
        """The same session answers again."""
        number = self.core.session.number
        return self.step(SessionUp(number, False, number, self.timeout_s, self.now, f"guid-m1-{number}"))


def cluster(driver: Driver, *others: str, epochs: Ledger | None = None) -> Driver:
    """A cluster of three voters in which ``others`` are present; ``epochs`` is its ledger."""
    config = ClusterConfig(cluster_id="c", voters=NAMES)
    driver.put(PATHS.config, config)
    driver.put(PATHS.epoch, epochs or Ledger())
    for name in NAMES[1:]:
        driver.put(PATHS.member(name), Member(name=name, redis=ADDRESSES[name]))
    for name in others:
        driver.put(PATHS.presence(name), presence(name), owner=900)
    return driver


RECORD = StateRecord(cluster_id="c", member="m1", guid="guid-m1-earlier")
"""The state file of a member that has been in this cluster before."""


def follower(**settings: Any) -> Driver:
    """m1 follows m2, which serves epoch 2 with m3; it is intact, at offset 200."""
    driver = cluster(Driver(**settings), "m2", "m3", epochs=ledger("m1", "m2"))
    driver.put(PATHS.leader, leader("m2", 2), owner=900)
    driver.start(RECORD)
    driver.redis_up(keys=5, replid=replid(1), offset_bytes=150)
    driver.session_up()
    driver.settle()
    driver.info = replace(driver.info, offset_bytes=200, replica_offset_bytes=200)
    # What the comparison with the leader would have shown.
    driver.core.redis.intact = True
    assert driver.state == "follower", driver.transitions()
    return driver


def candidate(**settings: Any) -> Driver:
    """The same member in round 3, voting: m2 is gone, m3 has not cast its ballot."""
    driver = follower(**settings)
    driver.remove(PATHS.leader)
    driver.remove(PATHS.presence("m2"))
    driver.read_again()
    assert driver.state == "candidate.voting", driver.transitions()
    return driver


def claimant(**settings: Any) -> Driver:
    """The same: m3's ballot came, and m1's claim is on its way."""
    driver = candidate(**settings)
    driver.put(PATHS.ballot(3, "m3"), ballot("m3", 3, 190))
    driver.fire_watches()
    driver.settle_but("claim")
    assert driver.state == "candidate.claiming", driver.transitions()
    return driver


def serving(**settings: Any) -> Driver:
    """m1 leads epoch 3 and serves; m3 is there."""
    driver = claimant(**settings)
    driver.settle()
    assert driver.state == "leader.serving", driver.transitions()
    return driver
