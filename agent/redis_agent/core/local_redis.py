"""The local redis-server: its life and its health."""

from __future__ import annotations

from math import inf

from redis_agent import machine
from redis_agent.core.base import Goal, LocalRedis
from redis_agent.core.leading import Leading
from redis_agent.messages import (
    Probe,
    Probed,
    ProbeError,
    ProbeFailed,
    RedisAwaited,
    RedisDied,
    RedisRefused,
    RedisUp,
    ScriptKill,
    StartRedis,
    StopRedis,
)

STEADY_S = 60.0
"""A Redis that ran this long was not in a crash loop."""
FENCE_SETTING = "min-replicas-to-write"
FENCED_FROM = 100_000
"""A min-replicas-to-write of this or more is a fence."""
AFTER_LEADING_S = 0.25
"""A leader's Redis is not started again at once: whoever takes over needs the processor more."""
SICK_PROBES = 2
START_LIMIT_S = 120.0
"""For how long a redis-server that was launched may answer nothing at all, not even LOADING.

It says LOADING between two pieces of what it loads, so silent are: modules that load, an append-only file whose long
manifest is read or whose end is cut off, a disk that takes its time over an fsync. Ending a start that would have
succeeded loses time, not data; and the next one has twice as long, up to START_DOUBLINGS times.
"""
START_DOUBLINGS = 6


class RedisCare(Leading):
    """Launches, probes and restarts the local Redis."""

    # --- life -------------------------------------------------------------------------------------------------------

    def start_redis(self) -> None:
        self.redis = LocalRedis(self.redis.incarnation + 1)
        self.redis_is_gone = False
        self.fence_due = self.guard_due = inf
        self.role_requests.clear()
        self.redis.attaching = self.old_redis_alive
        self.redis.answered_at = self.now
        self.arm("await", self.now + self._start_limit_s())
        self.order(StartRedis(self.redis.incarnation))

    def _start_limit_s(self) -> float:
        """For how long one that is not up yet may be silent."""
        if self.redis.attaching:
            return self.settings.hang_s
        return START_LIMIT_S * 2.0 ** min(self.failures_in_a_row, START_DOUBLINGS)

    def await_redis(self) -> None:
        """One that is silent before it is up hangs like any other.

        What our last life left may have data that nobody else has. What was launched has only what is on its disk.
        """
        redis = self.redis
        if redis.up or redis.killed or self.redis_is_gone or self.stopping:
            return
        silent_s, limit_s = self.now - redis.answered_at, self._start_limit_s()
        if silent_s < limit_s:
            self.arm("await", redis.answered_at + limit_s)
            return
        if not redis.silence_told:
            self.log("warning", "redis_silent", for_s=round(silent_s, 3), problem="it is not up yet")
            redis.silence_told = True
        if not redis.attaching or self._may_kill():
            self.kill_redis(f"no answer for {silent_s:.1f} s, and it is not up yet")
        else:
            self.arm("await", self.now + self.settings.probe_s)

    def on_redis_awaited(self, event: RedisAwaited) -> None:
        redis = self.redis
        if redis.up:
            return
        if event.error is ProbeError.PAUSED:
            self._paused()
            return
        if event.error is ProbeError.REFUSED:
            if not redis.silence_told:
                self.log("warning", "redis_full", problem="clients have all its connections", remedy="raise maxclients")
            redis.silence_told, redis.answered_at = True, self.now
            return
        # A script that runs for too long is a hang.
        redis.busy_since = min(redis.busy_since, self.now)
        if self.now - redis.busy_since < self.settings.busy_s:
            redis.answered_at = self.now

    def on_redis_refused(self, event: RedisRefused) -> None:
        """It has answered, and it is fenced: its data are as good as any, so a person decides what becomes of it."""
        if not self.stopping:
            self.disarm("await")
            self.fail(2, event.reason)

    def on_redis_up(self, event: RedisUp) -> None:
        redis = self.redis
        redis.up, redis.pid, redis.create_time = True, event.pid, event.create_time
        redis.run_id = event.info.run_id
        redis.attaching, redis.busy_since, redis.stalled = False, inf, False
        redis.up_since = redis.answered_at = self.now
        self.ever_up = True
        self.old_redis_alive = event.attached
        if event.attached:
            self.recall(event.info)
            # What waited for it to be fenced may go on: giving up our last life's leadership.
            self.look_at_all()
        self.observe(event.info)
        self.log("info", "redis_up", pid=event.pid, version=event.info.version, loading=event.info.loading)
        self.save("redis", redis_pid=event.pid, redis_create_time=event.create_time)
        self.disarm("await")
        self.arm("probe", self.now)
        self.fire("redis_up")

    def on_redis_died(self, event: RedisDied) -> None:
        redis = self.redis
        self.log(
            "info" if event.ordered else "error",
            "redis_died",
            status=event.status,
            last_words=event.last_words if not event.ordered else "",
        )
        led = self.leading or redis.killed_leading
        redis.up, redis.lifted, redis.intact, redis.paused = False, False, False, False
        self.redis_is_gone, self.old_redis_alive = True, False
        self.fence_due = self.guard_due = inf
        for timer in ("probe", "retry_role", "await", "lingers"):
            self.disarm(timer)
        if not self.ever_up and not event.was_up and not self.stopping and not redis.killed:
            # It never ran with this configuration: a person must mend it, and a crash loop would only hide it.
            self.fail(2, f"redis-server does not start: {event.last_words or f'status {event.status}'}")
        self.fire("redis_lost")
        if not self.stopping and self.goal is Goal.RUN:
            self._restart_later(led=led)

    def _restart_later(self, *, led: bool) -> None:
        lived_s = self.now - self.redis.up_since if self.redis.up_since < inf else 0.0
        self.failures_in_a_row = 0 if lived_s > STEADY_S else self.failures_in_a_row + 1
        backoff_s = self.settings.restart_first_s * 2 ** min(self.failures_in_a_row - 1, 20)
        delay_s = min(self.settings.restart_max_s, backoff_s) if self.failures_in_a_row else 0.0
        if led and len(self.view.presences) > 1:
            delay_s = max(delay_s, AFTER_LEADING_S)
        self.restarts += 1
        self.log("info", "redis_restart", in_s=round(delay_s, 3), restarts=self.restarts)
        self.arm("restart", self.now + delay_s)

    def replace_unguarded(self) -> None:
        """A Redis without a guard is restarted under a new one, once nobody needs what it has."""
        redis = self.redis
        if not redis.unguarded or not redis.up or redis.killed or self.role_requests or self.leading:
            return
        if self.now < redis.unguarded_since + self.settings.guard_timeout_s:
            return  # It may only have been slow.
        others = (self.view.presences.keys() & set(self.view.config.voters)) - {self.settings.name}
        if self.state == machine.FOLLOWER or (self.state == machine.VOTING and not others):
            redis.killed = True
            self.log("warning", "guard_replaced", why="Redis is its child, and is restarted with it")
            self.order(StopRedis(redis.incarnation, self.settings.stop_redis_s))

    # --- health -----------------------------------------------------------------------------------------------------

    def probe(self) -> None:
        redis = self.redis
        if redis.up and not redis.killed and not redis.probe_request:
            redis.probe_request = self.request()
            limit_s = self.settings.hang_s / 2
            self.order(Probe(redis.incarnation, redis.probe_request, limit_s))

    def on_probed(self, event: Probed) -> None:
        redis = self.redis
        if event.request != redis.probe_request or redis.killed:
            return
        redis.probe_request = 0
        redis.answered_at, redis.busy_since, redis.stalled = self.now, inf, False
        if self.role_requests or event.sent_at < redis.settled_at:
            # What was read may be older than what was ordered.
            self.arm("probe", self.now + min(self.settings.probe_s, 0.1))
            return
        self.observe(event.info)
        self._check_drift(dict(event.drift))
        self.check_role(event.info)
        self._note_sickness(event.sick)
        # Before what follows, which may want the next one sooner.
        self.arm("probe", self.now + self.settings.probe_s)
        self.prove_intact(event.info)
        self.remember_position(event.info)
        self.watch_replicas(event.info)

    def _note_sickness(self, sick: str) -> None:
        """A Redis that can't save refuses all writes. Once may be chance."""
        redis = self.redis
        redis.sick_probes = redis.sick_probes + 1 if sick else 0
        before, redis.sick = redis.sick, sick if redis.sick_probes >= SICK_PROBES else ""
        if redis.sick != before:
            level = "error" if redis.sick else "info"
            self.log(level, "redis_sick", problem=redis.sick or "no more", remedy="free its disk" if redis.sick else "")
            self.arm("heartbeat", self.now)

    def on_probe_failed(self, event: ProbeFailed) -> None:
        redis = self.redis
        if event.request != redis.probe_request or redis.killed:
            return
        redis.probe_request = 0
        if event.error is ProbeError.BUSY:
            self._busy()
            self.arm("probe", self.now + self.settings.probe_s)
            return
        if event.error is ProbeError.PAUSED:
            self._paused()
            self.arm("probe", self.now + self.settings.probe_s)
            return
        if event.error is ProbeError.DENIED:
            redis.answered_at = self.now
            self.log("error", "redis_denies", problem=event.detail, remedy="give the agent's user its rights back")
            self.arm("probe", self.now + self.settings.probe_s)
            return
        silent_s = self.now - redis.answered_at
        self.log("warning", "redis_silent", error=event.error.value, for_s=round(silent_s, 3), problem=event.detail)
        if silent_s >= self.settings.hang_s and self._may_kill():
            self.kill_redis(f"no answer for {silent_s:.1f} s")
        else:
            self.arm("probe", self.now + min(self.settings.probe_s, 0.1))

    def _paused(self) -> None:
        """It lives, whatever the operator's pause is for."""
        self.redis.answered_at = self.now
        if not self.redis.stalled:
            self.log("warning", "redis_paused", problem="somebody ordered CLIENT PAUSE for all commands")
        self.redis.stalled = True

    def _busy(self) -> None:
        """A long script is alive up to a limit, then killed; one that cannot be killed is a hang."""
        redis = self.redis
        redis.answered_at = self.now
        redis.busy_since = min(redis.busy_since, self.now)
        busy_s = self.now - redis.busy_since
        if busy_s >= self.settings.busy_s + self.settings.hang_s and self._may_kill():
            self.kill_redis(f"a script runs for {busy_s:.1f} s and cannot be killed")
        elif busy_s >= self.settings.busy_s:
            self.log("warning", "script_kill", for_s=round(busy_s, 3))
            request = self.request()
            self.role_requests[request] = "script_kill"
            self.order(ScriptKill(redis.incarnation, request, self.settings.role_limit_s))

    def _may_kill(self) -> bool:
        """A hung follower's memory is the quorum's evidence: while nobody leads it is not thrown away."""
        if self.leading or self.redis.lifted:
            return True
        leader = self.view.leader
        return self.state == machine.FOLLOWER and leader is not None

    def _check_drift(self, drift: dict[str, str]) -> None:
        """Somebody changed a setting that the fence or the followers' memory rests on: put it back, and say so."""
        value = drift.pop(FENCE_SETTING, "")
        fence_is_open = value.isdigit() and int(value) < FENCED_FROM
        if self.redis.killed or self.state in (*machine.HANDOVER, machine.RESIGNING):
            return
        if self.state == machine.SERVING:
            if not self.redis.lifted:
                return
            # Somebody who raised it meant it for the leader: the operator's own value is what we were told to set.
            lowered = value.isdigit() and int(value) < self.redis.min_replicas
            if drift or lowered or (value and not fence_is_open):
                self.log("warning", "drift", settings=",".join(sorted({*drift, FENCE_SETTING})))
                self.mend_fence()
            return
        if drift or fence_is_open:
            found = {*drift, FENCE_SETTING} if fence_is_open else set(drift)
            self.log("warning", "drift", settings=",".join(sorted(found)))
            self.fence()
