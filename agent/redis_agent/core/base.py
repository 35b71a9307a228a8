"""What all parts of the core share: state, timers, requests, and the one way to fire a trigger."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from math import inf
from typing import Any

from redis_agent import machine
from redis_agent.core.settings import CoreSettings
from redis_agent.election import Ballot
from redis_agent.lease import Lease
from redis_agent.messages import ArmGuard, Command, DisarmGuard, Fence, KillRedis, Log, SaveState
from redis_agent.replication import Address, Ledger, Position, RedisInfo, resolve
from redis_agent.state_record import StateRecord
from redis_agent.znodes import ClusterConfig, Leader, Member, Order, Paths, Presence

LINGERS_S = 5.0
"""A process that is still there so long after SIGKILL hangs in the kernel."""


class Goal(Enum):
    """What the agent is there for."""

    RUN = auto()
    STOP = auto()
    """Leave, and stop Redis in order."""
    UPGRADE = auto()
    """Leave, and let Redis run on for the agent's next life, which begins at once."""
    FAIL = auto()
    """Leave because a person must mend something; a Redis that the cluster may need runs on."""


@dataclass(slots=True)
class Session:
    """The current ZooKeeper session. A new one starts with a new object: nothing learnt in the old one survives."""

    number: int
    connected: bool = False
    guid: str = ""
    zk_id: int = 0
    guid_saved: bool = False
    """Our guid is on disk: without that we must not own ``leader``, for our next life could not take it back."""
    ensured: bool = False
    registered: bool = False
    joining_request: int = 0
    timeout_s: float = 0.0
    """As negotiated."""
    heartbeat_request: int = 0
    heartbeat_sent_at: float = -inf
    heartbeat_version: int = -1
    """The version of the ledger on which the heartbeat in flight insists; -1: on none."""


@dataclass(slots=True)
class View:
    """What was read of the cluster in this session. ``fresh``: read since the connection was last made."""

    fresh: bool = False
    config: ClusterConfig = field(default_factory=ClusterConfig)
    config_data: bytes = b""
    config_version: int = 0
    ledger: Ledger = field(default_factory=Ledger)
    ledger_version: int = -1
    leader: Leader | None = None
    leader_version: int = -1
    members: dict[str, Member] = field(default_factory=dict)
    presences: dict[str, Presence] = field(default_factory=dict)
    presences_known: bool = False
    """No change of who is there was told since it was read."""
    presences_read_at: float = -inf
    presence_versions: dict[str, int] = field(default_factory=dict)
    ballots: dict[str, Ballot] = field(default_factory=dict)
    stale_ballots: tuple[str, ...] = ()
    """Names of ballot znodes of rounds that are over."""
    orders: dict[str, Order] = field(default_factory=dict)
    order_versions: dict[str, int] = field(default_factory=dict)
    unreadable_orders: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class LocalRedis:
    """The current redis-server process. A new one starts with a new object."""

    incarnation: int
    up: bool = False
    pid: int = 0
    create_time: float = 0.0
    run_id: str = ""
    info: RedisInfo | None = None
    loaded: tuple[str, int] | None = None
    """Replid and offset as they were when the data had been loaded from disk."""
    intact: bool = False
    """It has run without a break since it had everything that the serving leader of the current epoch had."""
    followed: bool = False
    """It was told to follow somebody since it started, so its data may be half of a broken resync."""
    lifted: bool = False
    """The fence may be lifted."""
    killed: bool = False
    """Nothing is expected of it any more, but its end."""
    killed_leading: bool = False
    """It was killed while we led with it."""
    up_since: float = inf
    settled_at: float = -inf
    """When the last role command was answered: what was asked before that may be out of date."""
    answered_at: float = -inf
    busy_since: float = inf
    probe_request: int = 0
    remote_request: int = 0
    proof: tuple[int, str, int] | None = None
    """(epoch, replid, offset) of the serving leader, read after the link came up: reach it and be intact."""
    attached: bool = False
    """It was left by our last life, and runs on."""
    attaching: bool = False
    """It should be the one that our last life left, and is not up yet."""
    silence_told: bool = False
    paused: bool = False
    """Writes wait because we told it so."""
    min_replicas: int = 0
    """What min-replicas-to-write was last lifted to, beyond the operator's own."""
    sick: str = ""
    """Why it refuses writes to everybody."""
    sick_probes: int = 0
    stalled: bool = False
    """Somebody ordered CLIENT PAUSE for all commands: it lives, but answers nothing."""
    tail_saved: str = ""
    """Name of the diverged tail that was saved, or could not be."""
    tail_request: int = 0
    guard_request: int = 0
    """Arming that is under way."""
    guard_until: float = -inf
    """Until when the guard knows our lease: without its word the fence is not lifted."""
    guard_asked: float = -inf
    disarm_request: int = 0
    """The latest disarming: a lost guard that answers it is back."""
    unguarded: bool = False
    """Its guard was lost: it may not lead, and is restarted under a new one as soon as that costs nobody anything."""
    unguarded_since: float = inf


@dataclass(slots=True)
class Round:
    """The round we are frozen for, and how far it is."""

    number: int = 0
    evidence: RedisInfo | None = None
    """INFO behind the freeze."""
    intact: bool = False
    ballot: Ballot | None = None
    """Ours, as it was sent. What was read may show the one of an earlier life."""
    ballot_request: int = 0
    cast_at: float | None = None
    complete_since: float | None = None
    claim_request: int = 0
    claim_epoch: int = 0
    claim_unknown: bool = False
    claim_not_before: float = -inf
    """After a refused claim: what refused it may last."""
    reason: str = ""
    ranking: tuple[str, ...] = ()


class Base:
    """State and helpers. The parts of the core inherit from each other in the order in which they need each other."""

    def __init__(self, settings: CoreSettings) -> None:
        self.settings = settings
        self.paths = Paths(settings.root, settings.cluster)
        self.now = 0.0
        self.wall_offset_s = 0.0
        self.commands: list[Command] = []
        self.timers: dict[str, float] = {}
        self.triggers: deque[str] = deque()
        self.state = machine.CONNECTING
        self.lease = Lease(tick_s=settings.tick_s, fence_budget_s=settings.fence_budget_s)
        self.session = Session(0)
        self.view = View()
        self.redis = LocalRedis(0)
        self.round = Round()
        self.record = StateRecord(member=settings.name)
        self.recorded: Position | None = None
        self.lock_held = False
        self.old_redis_alive = False
        self.promised_round = 0
        self.epoch = 0
        """Of the leadership that we hold, claim or follow; 0 if none."""
        self.followed: tuple[int, Address] | None = None
        """Epoch and address of the leader that our Redis was told to follow."""
        self.served_incarnation = 0
        self.goal = Goal.RUN
        self.goal_since = 0.0
        self.stop_count = 0
        self.exit_code = 0
        self.exit_reason = "stopped as told"
        self.reason = ""
        self.restarts = 0
        self.failures_in_a_row = 0
        self.ever_up = False
        self.redis_is_gone = True
        """No redis-server process of ours exists."""
        self.role_requests: dict[int, str] = {}
        self.fence_due = inf
        self.guard_due = inf
        """When the guard must have answered at the latest."""
        self.had_role = False
        """In this life our Redis was told to follow, or served: the cluster may need what it has."""
        self.offsets_seen: dict[str, int] = {}
        """How far the latest leader is known to have come, by its replid."""
        self._requests = 0
        self._saving: dict[int, str] = {}

    # --- the machine ------------------------------------------------------------------------------------------------

    def fire(self, trigger: str) -> None:
        """Let a trigger happen; what it orders may fire further ones, which happen after it.

        Raises:
            Impossible: the table neither has nor ignores it here. Nothing was changed.
        """
        self.triggers.append(trigger)
        if len(self.triggers) > 1:
            return
        while self.triggers:
            if machine.row(self.state, self.triggers[0]) is not None:
                machine.fire(self, self.triggers[0])
            self.triggers.popleft()

    def announce(self, row: machine.Row, source: str) -> None:
        """Log a step of the machine, before its actions run."""
        if row.dest in machine.PROVED and row.dest not in (machine.VOTING, machine.CLAIMING):
            self.reason = ""
        self.log(
            "info",
            "transition",
            **{"from": source, "to": row.dest, "trigger": row.trigger},
            epoch=self.epoch or self.view.ledger.epoch,
            round=self.round.number,
            why=row.why,
        )

    # --- helpers ----------------------------------------------------------------------------------------------------

    def order(self, command: Command) -> None:
        self.commands.append(command)

    def request(self) -> int:
        """A new number for a command that will be answered."""
        self._requests += 1
        return self._requests

    def log(self, level: str, event: str, **fields: object) -> None:
        self.order(Log(level, event, (*fields.items(), ("clock", round(self.now, 6)))))

    def arm(self, timer: str, at: float) -> None:
        self.timers[timer] = at

    def disarm(self, timer: str) -> None:
        self.timers.pop(timer, None)

    @property
    def wall_now(self) -> float:
        return round(self.now + self.wall_offset_s, 3)

    @property
    def leading(self) -> bool:
        return self.state in machine.OWNING

    @property
    def stopping(self) -> bool:
        return self.state in machine.STOPPING

    @property
    def leaves_redis(self) -> bool:
        """Whether Redis runs on when we are gone."""
        needed = self.had_role or self.redis.attached or self.old_redis_alive
        return self.goal is Goal.UPGRADE or (self.goal is Goal.FAIL and needed)

    @property
    def proved(self) -> bool:
        """The session is proved and the cluster was read since it was: roles may be taken."""
        session = self.session
        return session.connected and session.registered and self.view.fresh and self.lease.valid(self.now)

    @property
    def owns_leader(self) -> bool:
        """``leader`` was last seen to be ours, of this very session."""
        leader = self.view.leader
        return leader is not None and bool(self.session.guid) and leader.guid == self.session.guid

    @property
    def cluster_id(self) -> str:
        """Of the cluster as it was read, or else as our state file has it."""
        return self.view.config.cluster_id or self.record.cluster_id

    def resolved(self, info: RedisInfo) -> Position | None:
        return resolve(
            self.view.ledger,
            dict(self.record.promotions),
            replid=info.replid,
            replid2=info.replid2,
            second_offset_bytes=info.second_offset_bytes,
            offset_bytes=info.offset_bytes,
        )

    def save(self, what: str = "", **changes: Any) -> None:
        """Put the state record on disk, with ``changes``."""
        self.record = replace(self.record, member=self.settings.name, **changes)
        request = self.request()
        self._saving[request] = what
        self.order(SaveState(request, self.record))

    # --- the fence --------------------------------------------------------------------------------------------------

    def fence(self) -> None:
        """Soft fence now; a hard one if it is not confirmed in time."""
        if not self.redis.up or self.redis.killed:
            return
        request = self.request()
        self.role_requests[request] = "fence"
        self.order(Fence(self.redis.incarnation, request, self.settings.role_limit_s))
        self.watch_fence()

    def watch_fence(self) -> None:
        """A command that fences was ordered: if the fence may be lifted, its confirmation has a deadline.

        So it has while the guard is armed, which would kill us too. Only sealing for a handover is in no such hurry:
        the lease holds, and its end sets the short deadline.
        """
        if self.redis.lifted or self.redis.guard_asked > -inf:
            sealing = self.state == machine.SEALING
            limit_s = self.settings.role_limit_s if sealing else self.settings.fence_timeout_s
            self.fence_due = min(self.fence_due, self.now + limit_s)

    def fenced(self) -> None:
        """A command that fences was confirmed. A lift that was ordered behind it undoes it all the same."""
        pending = self.role_requests.values()
        if "lift" in pending or "raise" in pending:
            if not {"fence", "freeze", "hold", "follow"} & set(pending):
                self.fence_due = inf
            return
        self.redis.lifted = False
        self.fence_due = inf
        # While we take over or serve it will be lifted again, and the guard is told of that already.
        if "promote" not in pending and self.state not in machine.LEADER:
            self.disarm_guard()

    # --- the guard --------------------------------------------------------------------------------------------------

    def arm_guard(self) -> None:
        """Tell the guard how long our lease lasts. It fences later than we do ourselves, but in time.

        Both stay within the fence budget: a lease that ended without our being hung is no reason to kill us.
        """
        redis = self.redis
        if not redis.up or redis.killed or redis.guard_request or self.lease.until <= redis.guard_asked:
            return
        redis.guard_asked = self.lease.until
        redis.guard_request = self.request()
        self.guard_due = min(self.guard_due, self.now + self.settings.guard_timeout_s)
        until = self.lease.until + self.settings.fence_budget_s / 2
        self.order(ArmGuard(redis.incarnation, redis.guard_request, until))

    def disarm_guard(self) -> None:
        """Redis is fenced, and nothing is in flight that could undo that."""
        redis = self.redis
        if redis.guard_asked == -inf:
            return
        self.guard_due = inf
        redis.guard_asked = redis.guard_until = -inf
        # An answer to an arming that is still under way says nothing any more.
        redis.guard_request = 0
        redis.disarm_request = self.request()
        self.order(DisarmGuard(redis.incarnation, redis.disarm_request))

    @property
    def guarded(self) -> bool:
        """The guard has acknowledged that it is armed."""
        return self.redis.guard_until > -inf

    def kill_redis(self, reason: str = "told to stop again") -> None:
        """The hard fence: sent is done. So whoever leads with it steps down now.

        Its death may take long: a disk hangs that it waits for, or there is much memory to give back.
        """
        redis = self.redis
        self.fence_due = self.guard_due = inf
        if redis.killed or not redis.incarnation:
            return
        redis.killed, redis.killed_leading = True, self.leading
        self.log("warning", "redis_killed", reason=reason)
        self.order(KillRedis(redis.incarnation, reason))
        # No instruction of its is carried out any more: it is fenced, and its guard has nothing left to do.
        redis.lifted = False
        self.disarm_guard()
        self.disarm("probe")
        self.arm("lingers", self.now + LINGERS_S)
        if self.state == machine.RESIGNING:
            self.fire("unfit")
        elif self.state in (*machine.CANDIDATE, *machine.OWNING):
            self.fire("redis_lost")
