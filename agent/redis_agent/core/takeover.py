"""From the claim to the first write: promote, announce, let writes in; and what a standing leader announces."""

from __future__ import annotations

from dataclasses import replace
from math import inf

from redis_agent import machine
from redis_agent.core.rounds import Rounds
from redis_agent.election import quorum
from redis_agent.messages import Check, Commit, CommitDone, CommitRefused, CommitUnknown, Op, Promote, Put
from redis_agent.replication import RedisInfo, with_served
from redis_agent.znodes import Leader, LeaderPhase, encode

PROMOTIONS_KEPT = 8


class Takeover(Rounds):
    """Takes over what was claimed. The order is the point: promote, still fenced; serve; only then lift the fence."""

    # --- promote and serve ------------------------------------------------------------------------------------------

    def promote(self) -> None:
        """Still fenced, only within the lease, and only the very process that voted."""
        redis, evidence = self.redis, self.round.evidence
        self.epoch = self.view.ledger.epoch
        self.followed = None
        self.arm("takeover", self.now + self.settings.takeover_s)
        if evidence is None or not redis.up or evidence.run_id != redis.run_id:
            self.fire("unfit")
            return
        # Its word is awaited before the fence is lifted; until then there is nothing that it would have to do.
        self.arm_guard()
        request = self.request()
        self.role_requests[request] = "promote"
        self.order(Promote(redis.incarnation, request, evidence.run_id, self.lease.until, self.settings.role_limit_s))

    def promote_done(self, info: RedisInfo | None) -> None:
        if self.state != machine.TAKING_OVER or info is None:
            return
        if not info.is_primary:
            self.fire("unfit")
            return
        self.redis.info = info
        self.log("info", "promoted", epoch=self.epoch, offset_bytes=info.offset_bytes)
        self.fire("promoted")
        # Written down when `serve` is answered: two fsyncs on one disk would wait for each other.
        promotions = (*self.record.promotions, (info.replid, self.epoch))[-PROMOTIONS_KEPT:]
        self.record = replace(self.record, promotions=promotions, cluster_id=self.cluster_id)

    def serve(self) -> None:
        """Announce: the replid goes into the ledger, the phase to serving, in one transaction."""
        info, view = self.redis.info, self.view
        assert info is not None
        self._served_ledger = with_served(view.ledger, self.epoch, info.replid)
        self._served_leader = self._announcement(info.replid)
        ops: tuple[Op, ...] = (
            Put(self.paths.epoch, encode(self._served_ledger), view.ledger_version),
            Put(self.paths.leader, encode(self._served_leader)),
        )
        self.taking_over_request = self.barrier()
        self.order(Commit(self.session.number, self.taking_over_request, "serve", ops, not_after=self.lease.until))

    def _announcement(self, replid: str) -> Leader:
        config = self.view.config
        entry = self.view.ledger.entry(self.epoch)
        return Leader(
            name=self.settings.name,
            address=self.settings.redis,
            epoch=self.epoch,
            phase=LeaderPhase.SERVING,
            guid=self.session.guid,
            replid=replid,
            wait=self._wait_due(),
            voters=config.voters,
            at=self.wall_now,
            by_handover=entry is not None and entry.handover,
        )

    def _wait_due(self) -> int:
        """WAIT counts links, so each member that does not vote could stand for one that does."""
        voters = self.view.config.voters
        bystanders = len(self.view.members.keys() - set(voters))
        return quorum(len(voters))[0] + bystanders

    def serve_answered(self, event: CommitDone | CommitRefused | CommitUnknown) -> None:
        self.taking_over_request = 0
        if isinstance(event, CommitDone):
            view = self.view
            view.ledger, view.ledger_version = self._served_ledger, event.versions[0]
            view.leader, view.leader_version = self._served_leader, event.versions[1]
            if self.state == machine.TAKING_OVER:
                self.log("info", "served", epoch=self.epoch)
                self.serving_is_settled()
        elif isinstance(event, CommitRefused) and self.state == machine.TAKING_OVER:
            self.view.fresh = False
            self.fire("deposed")
            self.save("promotion")
        else:
            self.save("promotion")
            self.look()

    def serving_is_settled(self) -> None:
        """``serve`` is committed."""
        self.redis.intact = self.had_role = True
        self.served_incarnation = self.redis.incarnation
        self.disarm("takeover")
        self.fire("served")
        # Behind the lifted fence: a fsync must not be in the first write's way.
        self.save("promotion")

    def keep_wait_true(self) -> None:
        """A member that does not vote may have come or gone: ``wait`` must count it before it attaches."""
        leader = self.view.leader
        if leader is None or self._wait_request or leader.phase != LeaderPhase.SERVING:
            return
        if (self._wait_due(), self.view.config.voters) == (leader.wait, leader.voters):
            return
        now_due = self._announcement(leader.replid)
        self._wait_request = self.barrier()
        ops = (Check(self.paths.epoch, self.view.ledger_version), Put(self.paths.leader, encode(now_due)))
        self.order(Commit(self.session.number, self._wait_request, "wait", ops, not_after=self.lease.until))

    def wait_answered(self) -> None:
        self._wait_request = 0
        self.view.fresh = False
        self.look()

    def fit_to_resume(self) -> bool:
        """``leader`` is ours: is it for this Redis, and as far as it was when it last served?"""
        leader, info, redis = self.view.leader, self.redis.info, self.redis
        if leader is None or info is None or not redis.up or redis.killed:
            return False
        same = redis.incarnation == self.served_incarnation and self.view.ledger.epoch == leader.epoch
        serving = leader.phase == LeaderPhase.SERVING and info.is_primary and info.replid == leader.replid
        return same and serving and self.fence_due == inf and not self.role_requests
