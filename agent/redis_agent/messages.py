"""Everything the agent's core hears (events) and everything it orders (commands).

The core is a function of (state, event, now). It is told of the world by events and changes it by commands, both
plain values, so that the same core runs on real servers and in the simulator.

Conventions that hold for every message:

* All times are seconds on CLOCK_BOOTTIME. The adapter stamps them; the core never reads a clock.
* ``session`` is the agent's own number of a ZooKeeper session (1, 2, ...), not ZooKeeper's id. An event of another
  session than the current one is dropped before anything else looks at it.
* ``incarnation`` is the agent's own number of a redis-server process (1, 2, ...). The same rule applies.
* ``request`` is a number that the core gives to a command and that its answer carries. Numbers only grow. Each command
  with a ``request`` is answered by exactly one event, also when it was never sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from redis_agent.replication import Address, RedisInfo
from redis_agent.state_record import StateRecord

# --- ZooKeeper: operations and what a read returns ----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Create:
    """Create a znode; fails with NODE_EXISTS."""

    path: str
    data: bytes
    ephemeral: bool = False


@dataclass(frozen=True, slots=True)
class Put:
    """Set a znode's data. ``version`` -1 means any version."""

    path: str
    data: bytes
    version: int = -1


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a znode. ``version`` -1 means any version."""

    path: str
    version: int = -1


@dataclass(frozen=True, slots=True)
class Check:
    """Fail the transaction unless the znode exists at this version (-1: exists at all)."""

    path: str
    version: int


Op = Create | Put | Delete | Check


class ZkError(Enum):
    """Why ZooKeeper refused a transaction: nothing of it was done."""

    NO_NODE = "no-node"
    NODE_EXISTS = "node-exists"
    BAD_VERSION = "bad-version"
    NO_AUTH = "no-auth"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Znode:
    """A znode as it was read."""

    data: bytes
    version: int
    czxid: int
    mzxid: int
    ephemeral_owner: int


# --- commands to the ZooKeeper adapter ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OpenSession:
    """Make a fresh client and keep trying to connect until told to close. Answered by SessionUp, some day."""

    session: int


@dataclass(frozen=True, slots=True)
class CloseSession:
    """Close (or drop, if it can't be reached) a session within ``limit_s``. Answered by SessionClosed."""

    session: int
    limit_s: float


@dataclass(frozen=True, slots=True)
class Ensure:
    """Create these persistent znodes where they are missing, in order; existing ones are left as they are.

    Answered by CommitDone (``versions`` empty), CommitRefused or CommitUnknown.
    """

    session: int
    request: int
    nodes: tuple[tuple[str, bytes], ...]


@dataclass(frozen=True, slots=True)
class Read:
    """Read znodes, arming a one-shot watch on each thing read.

    Order is part of the contract: ``sync`` first if asked for, then ``paths`` in the order given, then ``lists``, then
    ``trees``. ``paths``: data of one znode each (data/existence watch). ``lists``: names of the children (child
    watch). ``trees``: names of the children (child watch) and their data (no watch on the children).
    Answered by ReadDone or ReadFailed.
    """

    session: int
    request: int
    paths: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    trees: tuple[str, ...] = ()
    sync: bool = True


@dataclass(frozen=True, slots=True)
class Commit:
    """One transaction, all or nothing. ``label`` is for people. Not sent after ``not_after``.

    Answered by CommitDone, CommitRefused (nothing was done) or CommitUnknown (it may have been done, or may still be).
    """

    session: int
    request: int
    label: str
    ops: tuple[Op, ...]
    not_after: float | None = None


# --- events of the ZooKeeper adapter ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SessionUp:
    """Connected: a new session if ``is_new``, else the same one again. All watches are gone, re-read.

    ``timeout_s`` is the negotiated one. ``sent_at`` was stamped before the connection was attempted that made it.
    ``guid`` is random and unique to this session.
    """

    session: int
    is_new: bool
    zk_session_id: int
    timeout_s: float
    sent_at: float
    guid: str


@dataclass(frozen=True, slots=True)
class SessionDown:
    """Disconnected. The session may well live on; what is in flight is answered by CommitUnknown or ReadFailed."""

    session: int


@dataclass(frozen=True, slots=True)
class SessionExpired:
    """ZooKeeper said that the session is gone (as an event or as the error of an operation)."""

    session: int


@dataclass(frozen=True, slots=True)
class SessionClosed:
    """Answer to CloseSession: the client is gone, ``clean`` if ZooKeeper confirmed it."""

    session: int
    clean: bool


@dataclass(frozen=True, slots=True)
class SessionFailed:
    """ZooKeeper refuses us for good (authentication, chroot missing): a person must act."""

    session: int
    reason: str


@dataclass(frozen=True, slots=True)
class WatchFired:
    """Something changed below or at ``path``. A hint: read, then act on what is there now."""

    session: int
    path: str


@dataclass(frozen=True, slots=True)
class ReadDone:
    """What a Read found. A path that does not exist maps to None; a list or tree that does not exist is empty."""

    session: int
    request: int
    sent_at: float
    paths: Mapping[str, Znode | None]
    lists: Mapping[str, frozenset[str]]
    trees: Mapping[str, Mapping[str, Znode]]


@dataclass(frozen=True, slots=True)
class ReadFailed:
    """The read was not answered; nothing is known."""

    session: int
    request: int
    reason: str


@dataclass(frozen=True, slots=True)
class CommitDone:
    """Committed. ``versions`` has the resulting version per op (0 for Create, -1 for Delete and Check)."""

    session: int
    request: int
    sent_at: float
    versions: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class CommitRefused:
    """Refused as a whole: op number ``index`` failed with ``error``. Nothing was done."""

    session: int
    request: int
    index: int
    error: ZkError
    detail: str = ""


@dataclass(frozen=True, slots=True)
class CommitUnknown:
    """The outcome is unknown: look it up (after sync, by our guid) before anything is built on it."""

    session: int
    request: int
    reason: str


# --- commands to the Redis adapter --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartRedis:
    """Launch redis-server, fenced, a replica of nowhere; or attach to the one that our last life left. Answered by
    RedisUp, RedisRefused, or RedisDied; until then perhaps by RedisAwaited.
    """

    incarnation: int


@dataclass(frozen=True, slots=True)
class ArmGuard:
    """Have the guard fence at ``until`` unless told otherwise before, and at once if the agent dies.

    Answered by GuardDone or GuardFailed. A later ``until`` replaces an earlier one.
    """

    incarnation: int
    request: int
    until: float


@dataclass(frozen=True, slots=True)
class DisarmGuard:
    """Redis is fenced, and nothing is under way that could lift the fence. Answered by GuardDone or GuardFailed."""

    incarnation: int
    request: int


@dataclass(frozen=True, slots=True)
class LeaveRedis:
    """Let go of Redis and its guard, which run on for the agent's next life. Answered by RedisLeft."""

    incarnation: int


@dataclass(frozen=True, slots=True)
class StopRedis:
    """Stop it in order (it saves what its configuration says); SIGKILL after ``limit_s``. Answered by RedisDied."""

    incarnation: int
    limit_s: float


@dataclass(frozen=True, slots=True)
class KillRedis:
    """SIGKILL to the process group, at once, from the owner's thread: never behind a hung Redis."""

    incarnation: int
    reason: str


@dataclass(frozen=True, slots=True)
class Probe:
    """INFO over the monitor connection, within ``limit_s``. Answered by Probed or ProbeFailed."""

    incarnation: int
    request: int
    limit_s: float


@dataclass(frozen=True, slots=True)
class ProbeRemote:
    """INFO of another member's Redis, within ``limit_s``. Answered by RemoteProbed."""

    request: int
    address: Address
    limit_s: float


@dataclass(frozen=True, slots=True)
class Fence:
    """Soft fence: min-replicas-to-write far above any number of replicas. A role command."""

    incarnation: int
    request: int
    limit_s: float


@dataclass(frozen=True, slots=True)
class LiftFence:
    """Set min-replicas-to-write to the operator's own value, or ``at_least`` if more. Not after ``not_after``."""

    incarnation: int
    request: int
    at_least: int
    not_after: float
    limit_s: float


@dataclass(frozen=True, slots=True)
class Freeze:
    """Fence, REPLICAOF nowhere, optionally kill all normal and pubsub clients, then INFO: one pipeline.

    Answered by RoleDone with the INFO that was read behind the freeze.
    """

    incarnation: int
    request: int
    kill_clients: bool
    limit_s: float


@dataclass(frozen=True, slots=True)
class Promote:
    """If it still is process ``run_id``: REPLICAOF NO ONE, make sure of a backlog, INFO. Not after ``not_after``."""

    incarnation: int
    request: int
    run_id: str
    not_after: float
    limit_s: float


@dataclass(frozen=True, slots=True)
class Follow:
    """Fence, REPLICAOF ``primary``, end a CLIENT PAUSE, INFO."""

    incarnation: int
    request: int
    primary: Address
    limit_s: float


@dataclass(frozen=True, slots=True)
class PauseWrites:
    """CLIENT PAUSE ``for_s`` WRITE, then INFO."""

    incarnation: int
    request: int
    for_s: float
    limit_s: float


@dataclass(frozen=True, slots=True)
class Unpause:
    """CLIENT UNPAUSE, then INFO."""

    incarnation: int
    request: int
    limit_s: float


@dataclass(frozen=True, slots=True)
class ScriptKill:
    """SCRIPT KILL over a connection of its own. Answered by RoleDone or RoleFailed."""

    incarnation: int
    request: int
    limit_s: float


@dataclass(frozen=True, slots=True)
class KickClients:
    """Close all normal and pubsub client connections but the agent's and the guard's own: they look for the leader."""

    incarnation: int
    request: int
    limit_s: float


@dataclass(frozen=True, slots=True)
class SaveTail:
    """Save the data set as it is, as ``<data directory>/diverged/<name>.rdb``; of these the newest ``keep`` remain.

    Not a role command: Redis saves in the background. Answered by TailSaved.
    """

    incarnation: int
    request: int
    name: str
    keep: int
    limit_s: float


RoleCommand = Fence | LiftFence | Freeze | Promote | Follow | PauseWrites | Unpause | KickClients
"""Role commands run one after the other over one connection; an answer of unknown outcome is RoleFailed(unknown)."""


@dataclass(frozen=True, slots=True)
class CatchUp:
    """Ask ``successors`` for their offsets until one has ``replid`` and at least ``offset``, or ``not_after`` is past.

    Answered by CaughtUp.
    """

    request: int
    successors: tuple[tuple[str, Address], ...]
    replid: str
    offset: int
    not_after: float


# --- events of the Redis adapter ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RedisUp:
    """redis-server answers (it may still be loading), and the agent's connections to it are open.

    ``attached``: it is the process that the agent's last life left. Then no command of that life can reach it any more,
    it is fenced (whatever its role), and ``info`` was read behind that.
    """

    incarnation: int
    pid: int
    create_time: float
    info: RedisInfo
    attached: bool = False


@dataclass(frozen=True, slots=True)
class RedisDied:
    """The process is gone. ``status`` as of ``wait``: negative for a signal. ``last_words``: Redis's own message.

    ``was_up``: it had answered before. ``ordered``: we had asked it to stop.
    """

    incarnation: int
    status: int
    last_words: str
    was_up: bool
    ordered: bool = False


@dataclass(frozen=True, slots=True)
class RedisRefused:
    """The process that the agent's last life left answers, but the agent can't work with it (password, rights).

    It runs on as it is, fenced: for a guard that was armed has fenced it, and one that was not had a fenced Redis.
    ``reason`` is one line with the remedy.
    """

    incarnation: int
    reason: str


@dataclass(frozen=True, slots=True)
class RedisAwaited:
    """redis-server is not up yet, but lives: a script runs (BUSY), it is PAUSED, or has no slot for us (REFUSED).

    Told again and again, for as long as it lasts.
    """

    incarnation: int
    error: ProbeError


@dataclass(frozen=True, slots=True)
class GuardDone:
    """Answer to ArmGuard and DisarmGuard: the guard says that it has it."""

    incarnation: int
    request: int


@dataclass(frozen=True, slots=True)
class GuardFailed:
    """Answer to ArmGuard and DisarmGuard: there is no guard that could be told."""

    incarnation: int
    request: int
    reason: str


@dataclass(frozen=True, slots=True)
class RedisLeft:
    """Answer to LeaveRedis: Redis runs on under its guard; nothing more is heard of it in this life."""

    incarnation: int


@dataclass(frozen=True, slots=True)
class Probed:
    """Answer to Probe. ``drift`` names each pinned setting that had another value, with that value.

    ``sick``: why Redis refuses writes to everybody (MISCONF: it can't save), in one line; empty if it doesn't.
    """

    incarnation: int
    request: int
    sent_at: float
    info: RedisInfo
    drift: tuple[tuple[str, str], ...] = ()
    sick: str = ""


class ProbeError(Enum):
    """Why a probe had no answer."""

    TIMEOUT = "timeout"
    BUSY = "busy"
    REFUSED = "refused"
    DENIED = "denied"
    PAUSED = "paused"


@dataclass(frozen=True, slots=True)
class ProbeFailed:
    """Answer to Probe: no INFO. TIMEOUT: no answer in time; BUSY: a script runs; DENIED: password or ACL; PAUSED: it
    lives, but somebody ordered CLIENT PAUSE for all commands.
    """

    incarnation: int
    request: int
    error: ProbeError
    detail: str = ""


@dataclass(frozen=True, slots=True)
class RemoteProbed:
    """Answer to ProbeRemote; ``info`` is None if it did not answer."""

    request: int
    address: Address
    info: RedisInfo | None


@dataclass(frozen=True, slots=True)
class TailSaved:
    """Answer to SaveTail: ``path`` is the file, or ``error`` says why there is none."""

    incarnation: int
    request: int
    path: str = ""
    error: str = ""


@dataclass(frozen=True, slots=True)
class RoleDone:
    """A role command was executed; ``info`` was read behind it on the same connection (None for ScriptKill)."""

    incarnation: int
    request: int
    info: RedisInfo | None


@dataclass(frozen=True, slots=True)
class RoleFailed:
    """A role command failed. ``unknown``: it may have been, or may yet be, executed. Else it was not executed.

    ``late``: not sent because its ``not_after`` had passed.
    """

    incarnation: int
    request: int
    reason: str
    unknown: bool
    late: bool = False


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """Answer to CatchUp: the member that has caught up, or None."""

    request: int
    member: str | None


# --- local matters ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class SaveState:
    """Write the state file atomically and durably, off the owner's thread. Answered by StateSaved."""

    request: int
    record: StateRecord


@dataclass(frozen=True, slots=True)
class StateSaved:
    """Answer to SaveState; ``error`` is empty when the record is on disk."""

    request: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class Log:
    """One line for people, as data."""

    level: str
    event: str
    fields: tuple[tuple[str, object], ...] = ()


@dataclass(frozen=True, slots=True)
class Ready:
    """The agent has joined: tell init (sd_notify)."""

    status: str


@dataclass(frozen=True, slots=True)
class Exit:
    """The agent is done. The session is closed; Redis is stopped, or was left to the next life.

    ``again``: the process is to execute itself again, for an upgrade. ``stop``: its next life is told to stop when
    it begins, because Redis had been left to it when this one was told.
    """

    code: int
    reason: str
    again: bool = False
    stop: bool = False


@dataclass(frozen=True, slots=True)
class Started:
    """First event: the process is up. ``record`` is what the state file held; ``lock_held`` the lock beside it.

    ``old_redis_alive``: the redis-server that the record names (pid and creation time) still runs.
    ``wall_offset_s``: wall clock minus CLOCK_BOOTTIME, for the times that people read in znodes.
    """

    record: StateRecord
    lock_held: bool
    old_redis_alive: bool
    wall_offset_s: float = 0.0


@dataclass(frozen=True, slots=True)
class ClockSet:
    """Somebody has set the wall clock: it is ``wall_offset_s`` ahead of CLOCK_BOOTTIME from now on."""

    wall_offset_s: float


@dataclass(frozen=True, slots=True)
class StopRequested:
    """SIGTERM or SIGINT. The second one skips the waiting, not the fencing."""


@dataclass(frozen=True, slots=True)
class UpgradeRequested:
    """SIGUSR2: hand over if we lead, leave Redis running, and execute the agent's program again."""


@dataclass(frozen=True, slots=True)
class Tick:
    """A deadline of the core has come."""


ZkCommand = OpenSession | CloseSession | Ensure | Read | Commit
RedisCommand = (
    StartRedis
    | ArmGuard
    | DisarmGuard
    | LeaveRedis
    | StopRedis
    | KillRedis
    | Probe
    | ScriptKill
    | SaveTail
    | RoleCommand
)
LocalCommand = SaveState | Log | Ready | Exit
Command = ZkCommand | RedisCommand | ProbeRemote | CatchUp | LocalCommand

ZkEvent = (
    SessionUp
    | SessionDown
    | SessionExpired
    | SessionClosed
    | SessionFailed
    | WatchFired
    | ReadDone
    | ReadFailed
    | CommitDone
    | CommitRefused
    | CommitUnknown
)
RedisEvent = (
    RedisUp
    | RedisAwaited
    | RedisRefused
    | RedisDied
    | RedisLeft
    | GuardDone
    | GuardFailed
    | Probed
    | ProbeFailed
    | RemoteProbed
    | RoleDone
    | RoleFailed
    | TailSaved
    | CaughtUp
)
Event = ZkEvent | RedisEvent | Started | StateSaved | ClockSet | StopRequested | UpgradeRequested | Tick
