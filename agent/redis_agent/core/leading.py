"""While we serve: the lifted fence, the replicas that writes wait for, and whether anybody follows."""

from __future__ import annotations

from math import inf

from redis_agent import machine
from redis_agent.core.following import RETRY_ROLE_S, Following
from redis_agent.core.reading import Part
from redis_agent.election import Mode, quorum
from redis_agent.messages import GuardDone, GuardFailed, LiftFence, Unpause
from redis_agent.replication import RedisInfo

FIRST_LOOK_S = 0.05
"""How soon after the first write it is looked for whether followers have attached."""


class Leading(Following):
    """Lifts the fence, behind the guard's word, and keeps it as high as the attached voters allow."""

    _replicas_lost_at: float | None = None
    _unfollowed_since = inf
    served_at = -inf
    abstain_until = -inf
    """We resigned because nobody followed us: let others lead."""

    # --- the guard --------------------------------------------------------------------------------------------------

    def on_guard_done(self, event: GuardDone) -> None:
        redis = self.redis
        if redis.unguarded and event.request == redis.disarm_request:
            redis.unguarded = False
            self.log("info", "guard_is_back")
            self.arm("stand", self.now)
            return
        if not redis.guard_request or event.request != redis.guard_request:
            return
        redis.guard_request = 0
        redis.guard_until = redis.guard_asked
        self.guard_due = inf
        if self.state == machine.SERVING and not redis.lifted:
            self.lift_fence()
        self.arm_guard()

    def on_guard_failed(self, event: GuardFailed) -> None:
        if event.request == self.redis.guard_request and self.redis.up:
            self.guard_lost(event.reason)

    def guard_lost(self, why: str) -> None:
        """Without a guard nobody may be let in: give way. It is replaced together with Redis, whose parent it is.

        Unless it comes back: it was only stopped, and answers what it was told when it goes on.
        """
        redis = self.redis
        self.guard_due = inf
        redis.guard_request = 0
        redis.unguarded, redis.unguarded_since = True, self.now
        self.log("error", "guard_lost", problem=why)
        if self.leading:
            self.fire("unfit")

    def renew_guard(self) -> None:
        """The lease is longer than what the guard knows of it. One that leads no more leaves the old end as it is."""
        if self.redis.guard_asked > -inf and self.leading:
            self.arm_guard()

    # --- the fence --------------------------------------------------------------------------------------------------

    def lift_fence(self) -> None:
        """Only behind a committed ``serve``, only within the lease, and only once the guard watches over it."""
        # What we knew as an earlier leader, or before we resumed.
        self._replicas_lost_at, self._unfollowed_since = None, inf
        if not self.guarded:
            self.arm_guard()
            return
        self.followed = None
        self.view.orders, self.view.unreadable_orders = {}, {}
        self._lift(0, "lift")

    def _lift(self, at_least: int, what: str) -> None:
        redis = self.redis
        request = self.request()
        self.role_requests[request] = what
        redis.lifted = True
        redis.min_replicas = at_least
        self.order(LiftFence(redis.incarnation, request, at_least, redis.guard_until, self.settings.role_limit_s))

    def lift_done(self, info: RedisInfo | None) -> None:
        self.log("info", "fence_lifted", epoch=self.epoch)
        self.served_at = self.now
        self.arm("heartbeat", self.now)
        self.arm("probe", self.now + min(FIRST_LOOK_S, self.settings.probe_s))
        if info is not None:
            self.observe(info)
            self.remember_position(info)
            self.save_position()
        self.save_promise()
        if self.redis.paused:
            self.unpause()

    def lift_failed(self, *, late: bool) -> None:
        """It may be up or down, or (``late``) was not lifted because the guard knew of no longer lease."""
        if self.state != machine.SERVING:
            return
        if not late:
            self.fire("unfit")
        elif self.lease.valid(self.now):
            self.redis.lifted = False
            self.redis.guard_asked = self.redis.guard_until = -inf
            self.arm_guard()

    def unpause_failed(self) -> None:
        """Writes still wait: try again."""
        self.redis.paused = self.state == machine.SERVING
        self.arm("unpause", self.now + RETRY_ROLE_S)

    def retry_unpause(self) -> None:
        """They wait for us, if we still serve."""
        if self.redis.paused and self.redis.up and self.state == machine.SERVING:
            self.unpause()

    def unpause(self) -> None:
        """Let the waiting writes go on: carried out if we serve, refused if we do not."""
        self.redis.paused = False
        request = self.request()
        self.role_requests[request] = "unpause"
        self.order(Unpause(self.redis.incarnation, request, self.settings.role_limit_s))

    # --- who follows ------------------------------------------------------------------------------------------------

    def watch_replicas(self, info: RedisInfo) -> None:
        """After each look at a serving Redis."""
        if self.state != machine.SERVING or self.redis.killed or not self.redis.lifted:
            return
        addresses = {
            self.view.members[name].redis
            for name in self.view.config.voters
            if name != self.settings.name and name in self.view.members
        }
        lively = [link for link in info.replicas if link.lively]
        attached = {link.address for link in lively} & addresses
        self._keep_replicas(len(attached), len(lively) - len(attached))
        # One that still copies the data set is not online, and follows all the same.
        following = [link for link in info.replicas if link.lively or not link.online]
        self._consider_followers(followed=any(link.address in addresses for link in following))

    def _keep_replicas(self, voters: int, others: int) -> None:
        """With w voters attached, a write needs them: when they freeze, their links close, and no clock is needed.

        Links of others count to Redis too, so they are added. If voters are lost otherwise, it is lowered again, but
        only behind a heartbeat that was sent and committed after the loss: so far nobody else was elected.
        """
        w = quorum(len(self.view.config.voters))[0] if self.view.config.mode is Mode.QUORUM else 0
        redis = self.redis
        if w and voters >= w:
            self._replicas_lost_at = None
            if redis.min_replicas != w + others and self._may_set_replicas():
                self.log("info", "writes_need_replicas", replicas=w + others)
                self._lift(w + others, "raise")
        elif redis.min_replicas and self._replicas_lost_at is None:
            self._replicas_lost_at = self.now
            self.log("warning", "replicas_lost", attached=voters, needed=w)
            self.arm("heartbeat", self.now)

    def heartbeat_committed(self, sent_at: float) -> None:
        """The ensemble heard us after the replicas were lost."""
        lost_at = self._replicas_lost_at
        if lost_at is None or sent_at < lost_at or not self._may_set_replicas():
            return
        self._replicas_lost_at = None
        self.log("warning", "writes_need_no_replicas", why="the followers are gone, and nobody else was elected")
        self._lift(0, "raise")

    def mend_fence(self) -> None:
        """Somebody changed what a leader's Redis rests on: set it again."""
        if self._may_set_replicas():
            self._lift(self.redis.min_replicas, "raise")

    def _may_set_replicas(self) -> bool:
        """Of a fence that is lifted. Lifting it, with all that belongs to that, is done by nothing else on the way."""
        return self.state == machine.SERVING and self.redis.lifted and self.guarded and not self.role_requests

    def _consider_followers(self, *, followed: bool) -> None:
        """ZooKeeper reaches us, but nobody else does: then others, who reach each other, should lead."""
        voters, presences = set(self.view.config.voters), self.view.presences
        able = [name for name in voters - {self.settings.name} if name in presences and presences[name].redis_up]
        if not followed:
            self.look(Part.PRESENCES)  # Nobody watches what they say of themselves.
        if followed or len(able) <= len(voters) // 2:
            self._unfollowed_since = inf
            return
        self._unfollowed_since = min(self._unfollowed_since, self.now)
        unfollowed_s = self.now - self._unfollowed_since
        if unfollowed_s >= self.settings.unfollowed_s:
            self.log("error", "nobody_follows", for_s=round(unfollowed_s, 3), able=",".join(sorted(able)))
            self.abstain_until = self.now + 2 * self.settings.unfollowed_s
            self.arm("stand", self.abstain_until)
            self.fire("unfit")
