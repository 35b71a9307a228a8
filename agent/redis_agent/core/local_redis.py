"""The local redis-server: its life, its health, what its data are worth, and following a leader."""

from __future__ import annotations

from math import inf

from redis_agent import machine
from redis_agent.core.base import LocalRedis
from redis_agent.core.sessions import Sessions
from redis_agent.messages import (
    Follow,
    Freeze,
    LiftFence,
    Probe,
    Probed,
    ProbeError,
    ProbeFailed,
    ProbeRemote,
    RedisDied,
    RedisUp,
    RemoteProbed,
    ScriptKill,
    StartRedis,
)
from redis_agent.replication import NOWHERE, RedisInfo
from redis_agent.znodes import LeaderPhase

STEADY_S = 60.0
"""A Redis that ran this long was not in a crash loop."""
FENCE_SETTING = "min-replicas-to-write"
RETRY_ROLE_S = 0.2


class RedisCare(Sessions):
    """Launches, probes, restarts and repoints the local Redis; knows whether its memory is intact."""

    freeze_request = 0
    """Of the latest freeze: only its answer is evidence."""

    # --- life -------------------------------------------------------------------------------------------------------

    def start_redis(self) -> None:
        self.redis = LocalRedis(self.redis.incarnation + 1)
        self.redis_is_gone = False
        self.fence_due = inf
        self.role_requests.clear()
        self.order(StartRedis(self.redis.incarnation))

    def on_redis_up(self, event: RedisUp) -> None:
        redis = self.redis
        redis.up, redis.pid, redis.create_time = True, event.pid, event.create_time
        redis.run_id = event.info.run_id
        redis.up_since = redis.answered_at = self.now
        self.ever_up = True
        self._observe(event.info)
        self.log("info", "redis_up", pid=event.pid, version=event.info.version, loading=event.info.loading)
        self.save("redis", redis_pid=event.pid, redis_create_time=event.create_time)
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
        redis.up, redis.lifted, redis.intact = False, False, False
        self.redis_is_gone = True
        self.fence_due = inf
        for timer in ("probe", "retry_role"):
            self.disarm(timer)
        if not self.ever_up and not self.stopping:
            # It never ran with this configuration: a person must mend it, and a crash loop would only hide it.
            self.fail(2, f"redis-server does not start: {event.last_words or f'status {event.status}'}")
        self.fire("redis_lost")
        if self.stopping:
            return
        lived_s = self.now - redis.up_since if redis.up_since < inf else 0.0
        self.failures_in_a_row = 0 if lived_s > STEADY_S else self.failures_in_a_row + 1
        backoff_s = self.settings.restart_first_s * 2 ** min(self.failures_in_a_row - 1, 20)
        delay_s = min(self.settings.restart_max_s, backoff_s) if self.failures_in_a_row else 0.0
        self.restarts += 1
        self.log("info", "redis_restart", in_s=round(delay_s, 3), restarts=self.restarts)
        self.arm("restart", self.now + delay_s)

    # --- health -----------------------------------------------------------------------------------------------------

    def probe(self) -> None:
        redis = self.redis
        if redis.up and not redis.probe_request:
            redis.probe_request = self.request()
            limit_s = self.settings.hang_s / 2
            self.order(Probe(redis.incarnation, redis.probe_request, limit_s))

    def on_probed(self, event: Probed) -> None:
        redis = self.redis
        if event.request != redis.probe_request:
            return
        redis.probe_request = 0
        redis.answered_at, redis.busy_since = self.now, inf
        if self.role_requests or event.sent_at < redis.settled_at:
            # What was read may be older than what was ordered.
            self.arm("probe", self.now + min(self.settings.probe_s, 0.1))
            return
        self._observe(event.info)
        self._check_drift(dict(event.drift))
        self._check_role(event.info)
        # Before what follows, which may want the next one sooner.
        self.arm("probe", self.now + self.settings.probe_s)
        self._prove_intact(event.info)
        self.remember_position(event.info)

    def on_probe_failed(self, event: ProbeFailed) -> None:
        redis = self.redis
        if event.request != redis.probe_request:
            return
        redis.probe_request = 0
        if event.error is ProbeError.BUSY:
            self._busy()
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
        fence_is_open = value.isdigit() and int(value) < 100_000
        if self.redis.killed or self.state in machine.LEAVING:
            return
        if self.state == machine.SERVING:
            # Somebody who raised it meant it for the leader: the operator's own value is what we were told to set.
            if drift or (value and not fence_is_open):
                self.log("warning", "drift", settings=",".join(sorted({*drift, FENCE_SETTING})))
                self.lift_fence()
            return
        if drift or fence_is_open:
            found = {*drift, FENCE_SETTING} if fence_is_open else set(drift)
            self.log("warning", "drift", settings=",".join(sorted(found)))
            self.fence()

    def _check_role(self, info: RedisInfo) -> None:
        """A leader whose data set was exchanged under it fences; a follower that was repointed is put back."""
        leader, redis = self.view.leader, self.redis
        if redis.killed:
            return
        if self.state == machine.SERVING and leader is not None:
            if not info.is_primary or info.replid != leader.replid:
                self.log("error", "replid_changed", replid=info.replid, served=leader.replid, primary=info.is_primary)
                self.fire("unfit")
            return
        if info.loading or self.leading or self.stopping or self.state == machine.EXPIRED:
            return
        # What it was told to follow last also holds while the session is in doubt; else it is to follow nobody.
        ordered = self.followed[1] if self.followed is not None else NOWHERE
        deposed = self.state == machine.CONNECTING and info.is_primary and redis.incarnation == self.served_incarnation
        if info.primary == ordered or deposed:
            return
        self.log("warning", "drift", settings="replicaof", found=str(info.primary or "no one"))
        if self.state in machine.CANDIDATE:
            # It was not frozen all the time, so the ballot may not be true any more.
            self.fire("thawed")
        elif self.followed is not None:
            self._order_follow()
        else:
            self.hold()

    def hold(self) -> None:
        """Outside of a round: back to following nobody, for somebody pointed it elsewhere."""
        self.order_freeze(kill_clients=False, what="hold")

    def order_freeze(self, *, kill_clients: bool, what: str = "freeze") -> None:
        request = self.request()
        self.role_requests[request] = what
        if what == "freeze":
            self.freeze_request = request
        self.order(Freeze(self.redis.incarnation, request, kill_clients, self.settings.role_limit_s))
        self.watch_fence()

    # --- what its data are worth ------------------------------------------------------------------------------------

    def _observe(self, info: RedisInfo) -> None:
        redis, before = self.redis, self.redis.info
        redis.info = info
        if redis.loaded is None and not info.loading:
            redis.loaded = (info.replid, info.offset_bytes)
        if info.is_primary:
            return
        if info.loading:
            # Not earlier: until the whole file is here, the data that it is to replace are all there.
            self._not_intact("a full resync replaces its data")
        elif before is not None and before.replid not in (info.replid, info.replid2):
            # A partial resync keeps the old replid as the second one; a full one does not.
            self._not_intact("its data were replaced by a full resync")

    def _not_intact(self, why: str) -> None:
        if self.redis.intact:
            self.redis.intact = False
            self.log("info", "not_intact", why=why)
        self.redis.proof = None

    def _prove_intact(self, info: RedisInfo) -> None:
        """Intact: it had everything that the serving leader of the current epoch had, read after the link came up."""
        redis, leader = self.redis, self.view.leader
        if self.state != machine.FOLLOWER or leader is None or not self.view.fresh or info.is_primary:
            return
        in_line = info.link_up and not info.syncing and not info.loading and info.replid == leader.replid
        if not in_line or info.primary != leader.address:
            redis.proof = None
            # The link is coming up: that is worth looking at more often.
            self.arm("probe", self.now + min(self.settings.probe_s, 0.1))
            return
        if redis.intact:
            return
        if redis.proof is not None and redis.proof[:2] != (leader.epoch, info.replid):
            redis.proof = None
        if redis.proof is not None:
            epoch, _, offset_bytes = redis.proof
            if info.offset_bytes >= offset_bytes:
                redis.intact = True
                self.log("info", "intact", epoch=epoch, offset_bytes=info.offset_bytes)
                self.remember_position(info)
                self.save_position()
                self.arm("heartbeat", self.now)
            return
        if not redis.remote_request:
            redis.remote_request = self.request()
            self.order(ProbeRemote(redis.remote_request, leader.address, self.settings.role_limit_s))

    def on_remote_probed(self, event: RemoteProbed) -> None:
        redis, leader = self.redis, self.view.leader
        if event.request != redis.remote_request:
            return
        redis.remote_request = 0
        info = event.info
        if info is None or leader is None or event.address != leader.address:
            return
        if info.is_primary and info.replid == leader.replid and self.state == machine.FOLLOWER:
            self.offsets_seen = {info.replid: max(info.offset_bytes, self.offsets_seen.get(info.replid, 0))}
            redis.proof = (leader.epoch, info.replid, info.offset_bytes)
            self.arm("probe", self.now)

    def remember_position(self, info: RedisInfo) -> None:
        """For the order among members that all restart from an AOF, which forgets replid and offset."""
        found = self.resolved(info) if self.redis.intact else None
        if found is not None and info.keys > 0:
            self.recorded = found
            if "save_state" not in self.timers:
                self.arm("save_state", self.now + self.settings.save_state_s)

    def save_position(self) -> None:
        if self.recorded is not None:
            position = self.recorded
            if (self.record.epoch, self.record.offset_bytes) != (position.epoch, position.offset_bytes):
                self.save("position", epoch=position.epoch, offset_bytes=position.offset_bytes)

    def save_promise(self) -> None:
        """The ballot binds our next life while it stands; now that it may be cleared, the state file does."""
        if self.record.promised_round < self.promised_round:
            self.save("promise", promised_round=self.promised_round, cluster_id=self.cluster_id)

    def knows_its_data(self) -> bool:
        """Whether following a leader may overwrite what we have: it is empty, or it is of this cluster."""
        redis, info, config = self.redis, self.redis.info, self.view.config
        if info is None or info.loading:
            return False
        if info.keys == 0 or redis.intact or redis.followed or self.resolved(info) is not None:
            return True
        if self._operator_gave_it_up():
            return True
        return bool(config.cluster_id) and self.record.cluster_id == config.cluster_id

    def _operator_gave_it_up(self) -> bool:
        """An operator chose other data, and the first leader still serves: whoever comes later was not meant."""
        config, ledger = self.view.config, self.view.ledger
        if config.keep in ("", self.settings.name) or self.settings.name not in config.voters:
            return False
        return [entry.epoch for entry in ledger.entries if entry.served] == [ledger.epoch]

    # --- following --------------------------------------------------------------------------------------------------

    def follow(self) -> None:
        """Replicate from the serving leader; where that is done already, leave it alone."""
        leader = self.view.leader
        if leader is None or leader.phase != LeaderPhase.SERVING or self.owns_leader:
            # Redis came up after what we followed was gone. What is there instead is considered next.
            self.followed = None
            return
        self.epoch = leader.epoch
        before, self.followed = self.followed, (leader.epoch, leader.address)
        redis, info = self.redis, self.redis.info
        if not redis.up or redis.killed:
            return
        if before is not None and before[1] == leader.address and info is not None and info.primary == leader.address:
            return
        self._order_follow()

    def _order_follow(self) -> None:
        assert self.followed is not None
        if not self.redis.up or self.redis.killed:
            return
        if not self.knows_its_data():
            # Redis may have come up after we had become a follower. It is decided again when they are known, or loaded.
            self.followed = None
            return
        cluster_id = self.cluster_id
        if self.record.cluster_id != cluster_id:
            # From here on our data are this cluster's: the state file must prove it before they are on disk.
            self.save("proof", cluster_id=cluster_id)
            return
        self.redis.followed = True
        self.redis.proof = None
        request = self.request()
        self.role_requests[request] = "follow"
        self.order(Follow(self.redis.incarnation, request, self.followed[1], self.settings.role_limit_s))
        self.watch_fence()

    def follow_done(self, info: RedisInfo | None) -> None:
        self.fenced()
        if info is not None:
            self._observe(info)
        self.save_promise()
        self.arm("probe", self.now)

    def follow_failed(self) -> None:
        if self.state == machine.FOLLOWER:
            self.arm("retry_role", self.now + RETRY_ROLE_S)

    def retry_follow(self) -> None:
        if self.state == machine.FOLLOWER and self.followed is not None:
            self._order_follow()

    # --- the leader's fence -----------------------------------------------------------------------------------------

    def lift_fence(self) -> None:
        """Only behind a committed ``serve``, and only within the lease."""
        redis = self.redis
        request = self.request()
        self.role_requests[request] = "lift"
        redis.lifted = True
        self.followed = None
        self.order(LiftFence(redis.incarnation, request, 0, self.lease.until, self.settings.role_limit_s))

    def lift_done(self, info: RedisInfo | None) -> None:
        self.log("info", "fence_lifted", epoch=self.epoch)
        self.arm("heartbeat", self.now)
        if info is not None:
            self._observe(info)
            self.remember_position(info)
            self.save_position()
        self.save_promise()

    def lift_failed(self, *, late: bool) -> None:
        # Late: the lease is over, and its end has its own row. Otherwise the fence may be up or down: not a leader.
        if not late and self.state == machine.SERVING:
            self.fire("unfit")
