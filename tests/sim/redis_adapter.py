"""The simulated Redis adapter: carries out what the core orders of Redis, the local one and others.

Role commands run one after the other. One that is not answered in time has an unknown outcome: its connection is
killed before the next one runs, but until then a stopped server may still come to it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from redis_agent.messages import (
    ArmGuard,
    CatchUp,
    CaughtUp,
    DisarmGuard,
    Event,
    Fence,
    Follow,
    Freeze,
    KickClients,
    KillRedis,
    LeaveRedis,
    LiftFence,
    PauseWrites,
    Probe,
    Probed,
    ProbeError,
    ProbeFailed,
    ProbeRemote,
    Promote,
    RedisCommand,
    RemoteProbed,
    RoleCommand,
    RoleDone,
    RoleFailed,
    SaveTail,
    ScriptKill,
    StartRedis,
    StopRedis,
    TailSaved,
    Unpause,
)
from redis_agent.replication import NOWHERE, Address, RedisInfo
from tests.sim.redis import Refused, SimRedis
from tests.sim.redis_life import RedisLife

if TYPE_CHECKING:
    from tests.sim.world import Timer

CATCH_UP_POLL_S = 0.002


class RedisAdapter(RedisLife):
    """What the agent's process does to Redis. ``post`` takes the events."""

    _role: RoleCommand | None = None
    _role_sent = False
    _unsettled = False
    _role_timer: Timer | None = None

    def begin_roles(self) -> None:
        self._roles: deque[tuple[RoleCommand, float]] = deque()
        self._role = None
        self._unsettled = False

    def fail_roles(self, why: str) -> list[Event]:
        role, self._role = self._role, None
        waiting, self._roles = self._roles, deque()
        if self._role_timer is not None:
            self._role_timer.cancel()
        failures: list[Event] = [
            RoleFailed(each.incarnation, each.request, f"not sent: {why}", unknown=False) for each, _ in waiting
        ]
        if role is not None:
            failures.insert(0, RoleFailed(role.incarnation, role.request, "connection closed", self._role_sent))
        return failures

    # -- commands ---------------------------------------------------------------------------------------------------

    def execute(self, command: RedisCommand | ProbeRemote | CatchUp) -> None:
        match command:
            case StartRedis():
                self.start(command)
            case ArmGuard() | DisarmGuard():
                self.tell_guard(command)
            case LeaveRedis():
                self.leave(command)
            case StopRedis():
                self.stop(command)
            case KillRedis():
                self.kill(command)
            case SaveTail():
                self._save_tail(command)
            case Probe():
                self._probe(command)
            case ProbeRemote():
                self._ask(
                    command.address,
                    command.limit_s,
                    lambda info: self.post(RemoteProbed(command.request, command.address, info)),
                )
            case CatchUp():
                self._catch_up(command)
            case ScriptKill():
                self.process.after(0.001, self.post, RoleDone(command.incarnation, command.request, None))
            case _:
                self._queue_role(command)

    def _probe(self, command: Probe) -> None:
        redis = self.of(command.incarnation)
        answered: list[bool] = []

        def finish(event: Event) -> None:
            if not answered:
                answered.append(True)
                self.post(event)

        def refused() -> None:
            finish(ProbeFailed(command.incarnation, command.request, ProbeError.REFUSED))

        if redis is None or redis.ended or not self.is_up:
            self.process.after(self.local_s(), refused)
            return
        sent_at = self.process.now

        def at_redis() -> None:
            drift = (("min-replicas-to-write", str(redis.min_replicas)),)
            done = Probed(command.incarnation, command.request, sent_at, redis.info(), drift, redis.sick)
            self.process.after(self.local_s(), finish, done)

        def timeout() -> None:
            error = ProbeError.REFUSED if redis.ended else ProbeError.TIMEOUT
            if redis.process.alive and not redis.process.stopped and redis.silent:
                error = ProbeError.PAUSED
            finish(ProbeFailed(command.incarnation, command.request, error))

        redis.process.after(self.local_s(), redis.obey, at_redis)
        self.process.after(command.limit_s, timeout)

    def _save_tail(self, command: SaveTail) -> None:
        redis = self.of(command.incarnation)
        answered: list[bool] = []

        def finish(path: str, error: str) -> None:
            if not answered:
                answered.append(True)
                self.post(TailSaved(command.incarnation, command.request, path, error))

        def saved(path: str, error: str) -> None:
            self.process.after(self.local_s(), finish, path, error)

        if redis is None or not self.is_up:
            self.process.after(self.local_s(), finish, "", "redis-server is not up")
            return
        redis.process.after(self.local_s(), redis.obey, redis.save_tail, command.name, command.keep, saved)
        self.process.after(command.limit_s, finish, "", "not saved in time")

    def _ask(self, address: Address, limit_s: float, then: Callable[[RedisInfo | None], None]) -> None:
        """INFO of any server; None if there is no answer within the limit."""
        answered: list[bool] = []

        def finish(info: RedisInfo | None) -> None:
            if not answered:
                answered.append(True)
                then(info)

        self.process.after(limit_s, finish, None)
        site = self.sites.get(address)
        if site is None or not self.net.open(self.site.name, site.name):
            return
        if site.redis is None:
            self.process.after(2 * self.local_s(), finish, None)
            return
        redis = site.redis

        def at_redis() -> None:
            info = redis.info()
            if self.net.open(self.site.name, site.name):
                self.process.after(self.net.delay(site.name, self.site.name), finish, info)

        redis.process.after(self.net.delay(self.site.name, site.name), redis.obey, at_redis)

    def _catch_up(self, command: CatchUp) -> None:
        over: list[bool] = []

        def ask(name: str, address: Address) -> None:
            if not over:
                left_s = max(command.not_after - self.process.now, 0.0)
                self._ask(address, left_s, lambda info: look(name, address, info))

        def look(name: str, address: Address, info: RedisInfo | None) -> None:
            if over:
                return
            if info is not None and _has(info, command.replid, command.offset):
                over.append(True)
                self.post(CaughtUp(command.request, name))
            else:
                self.process.after(CATCH_UP_POLL_S, ask, name, address)

        def give_up() -> None:
            if not over:
                over.append(True)
                self.post(CaughtUp(command.request, None))

        for name, address in command.successors:
            ask(name, address)
        self.process.after(max(command.not_after - self.process.now, 0.0), give_up)

    # -- role commands ----------------------------------------------------------------------------------------------

    def _queue_role(self, command: RoleCommand) -> None:
        redis = self.of(command.incarnation)
        if redis is None or redis.ended or not self.is_up:
            self._refuse_role(command, "redis-server is not up")
            return
        self._roles.append((command, self.process.now + command.limit_s))
        self._next_role()

    def _next_role(self) -> None:
        """The worker takes the next one, if it is free. A command's limit counts from when it was queued."""
        while self._role is None and self._roles:
            command, deadline = self._roles.popleft()
            redis = self.redis
            assert redis is not None
            if self.process.now >= deadline:
                self._refuse_role(command, "not sent: its time was up while others were waited for")
                continue
            self._role = command
            self._role_sent = False
            self._role_timer = self.world.at(
                self.process.clock.true(deadline), self.process.run, self._role_timeout, command
            )
            if self._unsettled:
                redis.process.after(self.local_s(), redis.obey, self._settle, redis, command)
            else:
                self._send_role(redis, command)

    def _settle(self, redis: SimRedis, command: RoleCommand) -> None:
        """Redis kills the old connection: what it has not read of it by now, it never reads."""
        redis.role_generation = self.role_generation
        self.process.after(self.local_s(), self._settled, redis, command)

    def _settled(self, redis: SimRedis, command: RoleCommand) -> None:
        if command is self._role:
            self._unsettled = False
            self._send_role(redis, command)

    def _send_role(self, redis: SimRedis, command: RoleCommand) -> None:
        if isinstance(command, LiftFence | Promote) and self.process.now >= command.not_after:
            self._role = None
            self._refuse_role(command, "not sent: too late", late=True)
            self._next_role()
            return
        self._role_sent = True
        redis.process.after(self.local_s(), self._arrive, redis, command, self.role_generation)

    def _arrive(self, redis: SimRedis, command: RoleCommand, generation: int) -> None:
        """It is in the server's socket. One that was stopped finds several to be read, and takes them in any order."""
        just_continued = redis.process.running_since == self.world.now
        if just_continued and self.world.chance(0.5):
            redis.process.after(self.local_s(), redis.obey, self._at_redis, redis, command, generation)
        else:
            redis.obey(self._at_redis, redis, command, generation)

    def _refuse_role(self, command: RoleCommand, reason: str, *, late: bool = False) -> None:
        failed = RoleFailed(command.incarnation, command.request, reason, unknown=False, late=late)
        self.process.after(0.0, self.post, failed)

    def _role_timeout(self, command: RoleCommand) -> None:
        if command is not self._role:
            return
        self._role = None
        if self._role_sent:
            assert self.guard is not None
            self.role_generation = self.guard.new_generation()
            self._unsettled = True
        reason = "timeout" if self._role_sent else "not sent: the old connection can't be killed"
        self.post(RoleFailed(command.incarnation, command.request, reason, unknown=self._role_sent))
        self._next_role()

    def _at_redis(self, redis: SimRedis, command: RoleCommand, generation: int) -> None:
        """The server reads the command, unless this connection was killed before."""
        if generation < redis.role_generation:
            return
        try:
            wait_s = self._carry_out(redis, command)
        except Refused as refusal:
            self.process.after(self.local_s(), self._role_done, command, None, str(refusal))
            return
        redis.process.after(wait_s, self._read_behind, redis, command)

    def _read_behind(self, redis: SimRedis, command: RoleCommand) -> None:
        if isinstance(command, Promote):
            redis.make_backlog()
        self.process.after(self.local_s(), self._role_done, command, redis.info(), "")

    def _role_done(self, command: RoleCommand, info: RedisInfo | None, refusal: str) -> None:
        if command is not self._role:
            return  # it was given up before
        self._role = None
        if self._role_timer is not None:
            self._role_timer.cancel()
        if info is None:
            self.post(RoleFailed(command.incarnation, command.request, refusal, unknown=False))
        else:
            self.post(RoleDone(command.incarnation, command.request, info))
        self._next_role()

    def _carry_out(self, redis: SimRedis, command: RoleCommand) -> float:
        """Do it; returns how long until the INFO behind it is read."""
        if self.world.tracing:
            self.world.log(f"{self.site.name}.redis", f"executes {type(command).__name__}")
        match command:
            case Fence():
                redis.fence()
            case LiftFence():
                redis.lift_fence(command.at_least)
            case Freeze():
                redis.fence()
                redis.replicaof(NOWHERE)
                if command.kill_clients:
                    redis.kill_clients()
                    redis.unpause()  # nobody waits any more
            case Promote():
                if redis.run_id != command.run_id:
                    raise Refused("another process")
                redis.replicaof_no_one()
                return 0.0 if redis.stream is not None else self.world.uniform(0.001, 0.004)
            case Follow():
                redis.fence()
                redis.replicaof(command.primary)
                redis.unpause()
            case PauseWrites():
                redis.pause_writes(command.for_s)
            case Unpause():
                redis.unpause()
            case KickClients():
                redis.kick_clients()
        return 0.0


def _has(info: RedisInfo, replid: str, offset: int) -> bool:
    """Received is not enough: the smaller of its two offsets counts."""
    applied = info.offset_bytes if info.replica_offset_bytes is None else info.replica_offset_bytes
    return info.replid == replid and min(applied, info.offset_bytes) >= offset
