"""``Core``: events in, commands out."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf

from redis_agent import machine
from redis_agent.core.considering import Considering
from redis_agent.core.reading import Part
from redis_agent.core.settings import CoreSettings
from redis_agent.core.snapshot import Snapshot
from redis_agent.messages import (
    CaughtUp,
    ClockSet,
    Command,
    CommitDone,
    CommitRefused,
    CommitUnknown,
    Event,
    GuardDone,
    GuardFailed,
    Probed,
    ProbeFailed,
    ReadDone,
    ReadFailed,
    RedisAwaited,
    RedisDied,
    RedisLeft,
    RedisRefused,
    RedisUp,
    RemoteProbed,
    RoleDone,
    RoleFailed,
    SessionClosed,
    SessionDown,
    SessionExpired,
    SessionFailed,
    SessionUp,
    Started,
    StateSaved,
    StopRedis,
    StopRequested,
    TailSaved,
    Tick,
    UpgradeRequested,
    WatchFired,
)
from redis_agent.replication import Position

_ZK_EVENTS = (
    SessionUp,
    SessionDown,
    SessionExpired,
    SessionClosed,
    SessionFailed,
    WatchFired,
    ReadDone,
    ReadFailed,
    CommitDone,
    CommitRefused,
    CommitUnknown,
)
_REDIS_EVENTS = (
    RedisUp,
    RedisAwaited,
    RedisRefused,
    RedisDied,
    RedisLeft,
    GuardDone,
    GuardFailed,
    TailSaved,
    Probed,
    ProbeFailed,
    RoleDone,
    RoleFailed,
)


class Core(Considering):
    """The agent's decisions, as a function of (state, event, now).

    The caller's duties: deliver events one at a time, in the order in which each adapter posted them; execute the
    commands in order, before the next event; call with ``Tick`` when ``next_deadline`` has come; never turn ``now``
    back.
    """

    def __init__(self, settings: CoreSettings) -> None:
        super().__init__(settings)
        self._work = self._work_of_timers()

    def step(self, event: Event, now: float) -> list[Command]:
        """Hear ``event`` at ``now`` (CLOCK_BOOTTIME, seconds) and say what to do.

        Raises:
            Impossible: a trigger came that the table does not know here. The caller fences and exits.
        """
        self.now = max(now, self.now)
        self.commands = []
        # Deadlines first: what an event may do depends on whether the lease still holds.
        self._run_timers()
        self._hear(event)
        self.consider()
        self.send_read()
        return self.commands

    def next_deadline(self) -> float | None:
        """When to call with ``Tick`` at the latest."""
        first = min((*self.timers.values(), self.fence_due, self.guard_due, self.lease_deadline))
        return None if first == inf else first

    def snapshot(self) -> Snapshot:
        info, leader = self.redis.info, self.view.leader
        return Snapshot(
            name=self.settings.name,
            state=self.state,
            epoch=self.epoch,
            round=self.round.number,
            leader=leader.name if leader else "",
            lease_until=self.lease.until,
            connected=self.session.connected,
            redis_up=self.redis.up,
            run_id=self.redis.run_id,
            role=("primary" if info.is_primary else "replica") if info else "",
            replid=info.replid if info else "",
            offset_bytes=info.offset_bytes if info else -1,
            intact=self.redis.intact,
            fence_lifted=self.redis.lifted,
            restarts=self.restarts,
            reason=self.reason or self.round.reason,
        )

    # --- timers -----------------------------------------------------------------------------------------------------

    def _run_timers(self) -> None:
        if self.now >= self.lease_deadline:
            self.log("warning", "lease_ended", late_s=round(self.now - self.lease.until, 4))
            if self.owns_leader:
                self.arm("forsake", self.now + self.session.timeout_s + self.settings.tick_s)
            # Only what is read from now on may lead to a role again.
            self.view.fresh = False
            self.look_at_all()
            self.fire("lease_ended")
        if self.now >= self.fence_due:
            self.kill_redis("the soft fence was not confirmed in time")
        if self.now >= self.guard_due:
            self.guard_lost("it did not answer in time")
        due = [name for name, at in self.timers.items() if at <= self.now]
        for name in due:
            del self.timers[name]
        for name in due:
            if name in self._work:
                self._work[name]()

    def _work_of_timers(self) -> dict[str, Callable[[], None]]:
        """By timer, whose name is that of the wait that it bounds, or of the work that it repeats.

        "election" is none of them: it only makes the core look at the ballots again, as it does after every event.
        """
        return {
            "heartbeat": self.heartbeat,
            "probe": self.probe,
            "await": self.await_redis,
            "restart": self.start_redis,
            "look": self.look_at_all,
            "reread": self._reread,
            "join": self.try_to_join,
            "forsake": self.forsake_session,
            "absent": self.tell_absence,
            "retry_role": self._retry_role,
            "unpause": self.retry_unpause,
            "kick": self.kick_now,
            "orders": self.look_at_orders,
            "recast": self.recast,
            "save_guid": self._save_guid,
            "save_state": self.save_position,
            "takeover": self._takeover_overdue,
            "handover": self.handover_overdue,
            "designation": self.designation_overdue,
            "stand": self.stand_again,
            "yield": self.yield_overdue,
            "lingers": self.redis_lingers,
            "close": partial(self.fire, "session_closed"),
        }

    def _save_guid(self) -> None:
        self.save(f"guid {self.record.guid}")

    def _reread(self) -> None:
        """Should a watch ever be lost, this still converges."""
        self.look_at_all()
        if self.state == machine.SERVING:
            self.look_at_orders()
        self.arm("reread", self.now + self.settings.reread_s)

    def _retry_role(self) -> None:
        self.retry_freeze()
        self.retry_follow()

    def _takeover_overdue(self) -> None:
        if self.state != machine.TAKING_OVER:
            return
        self.log("error", "takeover_overdue", epoch=self.epoch)
        self.fire("unfit")

    # --- events -----------------------------------------------------------------------------------------------------

    def _hear(self, event: Event) -> None:
        # Staleness first: nothing of an older session or process gets near the table.
        if isinstance(event, _ZK_EVENTS) and event.session != self.session.number:
            return
        if isinstance(event, _REDIS_EVENTS) and event.incarnation != self.redis.incarnation:
            return
        match event:
            case Tick():
                pass
            case ClockSet():
                self.wall_offset_s = event.wall_offset_s
            case Started():
                self._on_started(event)
            case StopRequested():
                self.on_stop_requested()
            case UpgradeRequested():
                self.on_upgrade_requested()
            case StateSaved():
                self._on_state_saved(event)
            case CaughtUp():
                self.on_caught_up(event)
            case RemoteProbed():
                self.on_remote_probed(event)
            case _ if isinstance(event, _REDIS_EVENTS):
                self._hear_redis(event)
            case _:
                self._hear_zookeeper(event)

    def _hear_zookeeper(self, event: Event) -> None:
        match event:
            case SessionUp():
                self.on_session_up(event)
            case SessionDown():
                self.on_session_down(event)
            case SessionExpired():
                self.on_session_expired()
            case SessionClosed():
                self.fire("session_closed")
            case SessionFailed():
                self.on_session_failed(event)
            case WatchFired():
                self.on_watch_fired(event)
            case ReadDone():
                self.on_read_done(event)
            case ReadFailed():
                self.on_read_failed(event)
            case CommitDone() | CommitRefused() | CommitUnknown():
                if isinstance(event, CommitDone) and event.versions:
                    # An Ensure, which has none, may have been answered after reads alone: those prove nothing.
                    self.lease.acknowledged(event.sent_at, self.now)
                    self.renew_guard()
                self._commit_answered(event)
                if isinstance(event, CommitDone):
                    self.heartbeat_committed(event.sent_at)

    def _commit_answered(self, event: CommitDone | CommitRefused | CommitUnknown) -> None:
        if self.session_answer(event):
            return
        if event.request == self.round.ballot_request:
            self.ballot_answered(event)
        elif event.request == self.round.claim_request:
            self.claim_answered(event)
        elif event.request == self.taking_over_request:
            self.serve_answered(event)
        elif event.request == self._wait_request:
            self.wait_answered()
        elif event.request == self.designate_request:
            self.designate_answered(event)
        elif event.request == self._order_request:
            self.order_answered(event)
        else:
            # A claim or ballot that was given up meanwhile: see what became of it.
            self.look(Part.LEADER | Part.BALLOTS)

    def _hear_redis(self, event: Event) -> None:
        match event:
            case RedisUp():
                self.on_redis_up(event)
                if self.state == machine.STOPPING_REDIS and not (self.leaves_redis and event.attached):
                    # It was only being started when it was told to stop, and may have missed it.
                    self.order(StopRedis(event.incarnation, self.settings.stop_redis_s))
            case RedisAwaited():
                self.on_redis_awaited(event)
            case RedisRefused():
                self.on_redis_refused(event)
            case RedisDied():
                self.on_redis_died(event)
            case RedisLeft():
                self.redis_left()
            case GuardDone():
                self.on_guard_done(event)
            case GuardFailed():
                self.on_guard_failed(event)
            case TailSaved():
                self.on_tail_saved(event)
            case Probed():
                self.on_probed(event)
                self.consider_acknowledged()
            case ProbeFailed():
                self.on_probe_failed(event)
            case RoleDone():
                self._role_done(event)
            case RoleFailed():
                self._role_failed(event)

    def _role_done(self, event: RoleDone) -> None:
        self.redis.settled_at = self.now
        match self.role_requests.pop(event.request, ""):
            case "fence":
                self.fenced()
                if event.info is not None:
                    self.observe(event.info)
            case "freeze":
                self.freeze_done(event.request, event.info)
            case "hold":
                self.fenced()
            case "follow":
                self.follow_done(event.info)
            case "lift":
                self.lift_done(event.info)
                self.look_at_orders()
            case "raise":
                self.redis.info = event.info or self.redis.info
            case "promote":
                self.promote_done(event.info)
            case "pause":
                self.redis.info = event.info or self.redis.info
                self.pause_done()
            case "unpause":
                self.fire("released")

    def _role_failed(self, event: RoleFailed) -> None:
        self.redis.settled_at = self.now
        kind = self.role_requests.pop(event.request, "")
        if not self.redis.up:
            return
        level = "info" if event.late else "warning"
        self.log(level, "redis_command_failed", command=kind, problem=event.reason, unknown=event.unknown)
        match kind:
            case "freeze":
                self.freeze_failed(unknown=event.unknown)
            case "follow":
                self.follow_failed()
            case "lift":
                self.lift_failed(late=event.late)
            case "raise":
                self.redis.min_replicas = -1  # As it is, or as it was: the next look tells.
            case "promote" if self.state == machine.TAKING_OVER:
                self.fire("unfit")
            case "pause":
                self.nobody_caught_up("the clients could not be paused")
            case "unpause":
                self.unpause_failed()
                self.fire("released")

    # --- local matters ----------------------------------------------------------------------------------------------

    def _on_started(self, event: Started) -> None:
        record = event.record
        if record.member in ("", self.settings.name):
            self.record = record
            self._earlier_guid = record.guid
            self.promised_round = record.promised_round
            if record.offset_bytes >= 0:
                self.recorded = Position(record.epoch, record.offset_bytes)
        self.lock_held, self.old_redis_alive = event.lock_held, event.old_redis_alive
        self.wall_offset_s = event.wall_offset_s
        self.start_redis()
        self.renew_session()

    def _on_state_saved(self, event: StateSaved) -> None:
        what = self._saving.pop(event.request, "")
        if event.error:
            self.log("error", "state_not_saved", problem=event.error)
            if what.startswith("guid "):
                self.arm("save_guid", self.now + self.settings.save_state_s)
                return
        if what == "proof":
            self.retry_follow()
        if what == f"guid {self.session.guid}":
            self.session.guid_saved = True
