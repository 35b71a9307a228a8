"""Handing the epoch over: the old leader's side and the successor's.

The order of the steps is what makes it safe. The pause is no fence, for it ends by the wall clock: so the old primary
is frozen, which makes its position final, *before* a successor is named. The successor takes the epoch in one
transaction that replaces the leader, so there is no moment without one, and only if it has everything up to that
position.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from redis_agent import machine
from redis_agent.core.base import Goal, Round
from redis_agent.core.successors import Successors
from redis_agent.election import succeeded
from redis_agent.messages import (
    CatchUp,
    CaughtUp,
    Check,
    Commit,
    CommitDone,
    CommitRefused,
    CommitUnknown,
    Create,
    Delete,
    Op,
    PauseWrites,
    Put,
)
from redis_agent.replication import Position, RedisInfo
from redis_agent.znodes import Leader, LeaderPhase, encode

PAUSE_SPARE_S = 5.0
"""How much longer than the handover the pause may last."""
LOOK_AGAIN_S = 0.002
"""How soon an appointed successor asks its Redis again whether everything has arrived: there is no event for that."""
TAKEN_BACK = "taken back"
"""The reason of an epoch that the old leader claimed for itself because its successor did not come."""
RETRY_SICK_S = 30.0
STALE_S = 1.0


@dataclass(slots=True)
class Plan:
    """A handover under way."""

    successors: tuple[str, ...]
    why: str
    order: str = ""
    """Name of the order, if one asked for it."""
    chosen: str = ""


class Handover(Successors):
    """Hands over, and takes over from a leader that hands over."""

    plan: Plan | None = None
    _catch_up_request = 0
    _awaited_bytes = 0
    """The offset that a successor must reach; of the catch-up that was asked for."""
    _sick_retry_at = 0.0

    # --- the old leader -----------------------------------------------------------------------------------------------

    def begin_handover(self, successors: tuple[str, ...], why: str, order: str = "") -> None:
        self.plan = Plan(successors, why, order)
        self._catch_up_request = 0
        self.disarm("designation")
        self.log("info", "handover", why=why, to=",".join(successors) or "nobody")
        self.fire("hand_over")

    def pause_writes(self) -> None:
        """Clients' writes wait; they do not fail."""
        settings = self.settings
        self.arm("handover", self.now + settings.handover_s)
        request = self.request()
        self.role_requests[request] = "pause"
        self.redis.paused = True
        pause_s = 2 * settings.handover_s + PAUSE_SPARE_S
        self.order(PauseWrites(self.redis.incarnation, request, pause_s, settings.role_limit_s))

    def pause_done(self) -> None:
        """Ask the others for their offsets: the once-a-second acknowledgement would be too slow."""
        info, view, plan = self.redis.info, self.view, self.plan
        if self.state != machine.PAUSING or info is None or plan is None:
            return
        successors = tuple((name, view.members[name].redis) for name in plan.successors if name in view.members)
        if not successors:
            self.nobody_caught_up("there is nobody to hand over to")
            return
        self._catch_up_request = self.request()
        self._awaited_bytes = info.offset_bytes
        not_after = self.timers.get("handover", self.now)
        self.order(CatchUp(self._catch_up_request, successors, info.replid, info.offset_bytes, not_after))

    def on_caught_up(self, event: CaughtUp) -> None:
        if event.request != self._catch_up_request:
            return
        self._catch_up_request = 0
        self.log("info" if event.member else "warning", "caught_up", successor=event.member or "nobody in time")
        if event.member is None or self.plan is None:
            self.handover_overdue()
        elif not self.session.connected:
            self.nobody_caught_up("ZooKeeper is out of reach, so nobody could be named")
        else:
            self.plan.chosen = event.member
            self.fire("caught_up")

    def consider_acknowledged(self) -> None:
        """Clients that hold every slot of a successor's Redis leave us none to ask it by. To ours it acknowledges once
        a second, whoever else is there.
        """
        info, plan, members = self.redis.info, self.plan, self.view.members
        if self.state != machine.PAUSING or not self._catch_up_request or info is None or plan is None:
            return
        reached = {link.address: link.offset_bytes for link in info.replicas if link.online}
        for name in plan.successors:
            if name in members and reached.get(members[name].redis, -1) >= self._awaited_bytes:
                self.on_caught_up(CaughtUp(self._catch_up_request, name))
                return

    def nobody_caught_up(self, problem: str) -> None:
        """Stay, if we may."""
        if self.state != machine.PAUSING:
            return
        self.handover_failed(problem)
        self.fire("give_up" if self.goal is Goal.RUN else "depart")

    def consider_successors(self) -> None:
        """Whoever was to take over may have left, too: nobody need wait for it."""
        names = self.plan.successors if self.plan else ()
        if names and not self.view.presences.keys() & set(names):
            self.nobody_caught_up(f"{' and '.join(names)} left")

    def handover_overdue(self) -> None:
        """The wait for a successor is over."""
        names = " or ".join(self.plan.successors) if self.plan else "nobody"
        self.nobody_caught_up(f"{names} did not have everything within {self.settings.handover_s:g} s")

    def handover_failed(self, problem: str) -> None:
        """We go on leading; say why. Orders are answered by whoever has the plan."""
        self.disarm("handover")
        self.log("warning", "handover_failed", problem=problem)
        self.reason = f"handover failed: {problem}"
        self._sick_retry_at = self.now + RETRY_SICK_S

    def designate(self) -> None:
        """Frozen: name the successor, and the position that it must have reached."""
        self.disarm("handover")
        info, leader, plan = self.round.evidence, self.view.leader, self.plan
        if info is None or leader is None or plan is None or not self.owns_leader:
            self.view.fresh = False
            self.look()
            return
        if info.replid != leader.replid:
            self.fire("unfit")
            return
        self._designation = replace(
            leader,
            phase=LeaderPhase.HANDING_OVER,
            successor=plan.chosen,
            replid=info.replid,
            offset_bytes=info.offset_bytes,
            at=self.wall_now,
        )
        if "designation" not in self.timers:
            self.arm("designation", self.now + self.settings.designation_s)
        ops: tuple[Op, ...] = (
            Check(self.paths.epoch, self.view.ledger_version),
            Put(self.paths.leader, encode(self._designation)),
        )
        self.designate_request = self.barrier()
        not_after = self.lease.until
        self.order(Commit(self.session.number, self.designate_request, "designate", ops, not_after=not_after))

    def designate_answered(self, event: CommitDone | CommitRefused | CommitUnknown) -> None:
        self.designate_request = 0
        if isinstance(event, CommitDone):
            self.view.leader, self.view.leader_version = self._designation, event.versions[1]
            self.log("info", "designated", successor=self._designation.successor, epoch=self.epoch)
            self.fire("designated")
        else:
            self.view.fresh = False
            self.look()

    def designation_overdue(self) -> None:
        """The successor had its time. We take the epoch back, or leave it to a round."""
        successor = self.plan.chosen if self.plan else "the successor"
        if self.state not in (machine.DESIGNATING, machine.HANDING_OVER):
            return
        self.handover_failed(f"{successor} did not take over within {self.settings.designation_s:g} s")
        self.fire("overdue" if self.goal is Goal.RUN else "depart")

    def reclaim(self) -> None:
        """The same swap, for ourselves: whichever of the two is committed makes the other one impossible."""
        evidence = self.round.evidence
        final = self.resolved(evidence) if evidence is not None else None
        if final is None or final.epoch != self.view.ledger.epoch or self.view.leader_version < 0:
            self.fire("unfit")
            return
        if self.now < self.round.claim_not_before:
            self.arm("look", self.round.claim_not_before)
            return
        self._swap(final, TAKEN_BACK, (Put, self.view.leader_version))

    def consider_own_handover(self, leader: Leader) -> None:
        """``leader`` is ours as ever, or again: what became of what we ordered?"""
        if self.state == machine.DESIGNATING and not self.designate_request:
            if leader.phase == LeaderPhase.HANDING_OVER:
                self.fire("designated")
            else:
                self.designate()
        elif self.state == machine.RECLAIMING and not self.round.claim_request:
            if leader.epoch != self.view.ledger.epoch:
                self.look()  # What was read is of two moments.
            elif leader.phase == LeaderPhase.TAKING_OVER and leader.epoch == self.round.claim_epoch:
                self.fire("claim_won")
            else:
                self.fire("claim_lost")

    # --- the successor ------------------------------------------------------------------------------------------------

    def consider_appointment(self, leader: Leader) -> None:
        """The leader hands over to us. Only with everything, and only as the process that was in sync all the time."""
        redis, info = self.redis, self.redis.info
        if self.goal is not Goal.RUN or not redis.up or redis.killed or not redis.intact or info is None:
            return
        if leader.epoch < self.promised_round or self.view.ledger.epoch != leader.epoch or redis.unguarded:
            return
        if self.settings.name not in self.view.config.voters or not self.session.guid_saved:
            return
        if self.now < self.round.claim_not_before:
            self.arm("look", self.round.claim_not_before)
            return
        if self.lease.until - self.now < self.settings.min_claim_lease_s:
            return
        if not self._has_everything(info, leader):
            if not redis.probe_request:
                if self._asked_for != (leader.epoch, leader.offset_bytes):
                    self._asked_for = (leader.epoch, leader.offset_bytes)
                    self.probe()
                else:
                    self.arm("probe", self.now + LOOK_AGAIN_S)
            return
        self.fire("appointed")

    _asked_for = (0, 0)

    def _has_everything(self, info: RedisInfo, leader: Leader) -> bool:
        """Received is not enough: the smaller of the two offsets counts."""
        applied = info.offset_bytes if info.replica_offset_bytes is None else info.replica_offset_bytes
        reached = min(applied, info.offset_bytes) >= leader.offset_bytes
        return info.replid == leader.replid and reached and not info.loading and not info.is_primary

    def swap(self) -> None:
        """Take the epoch: their leader goes, ours comes, in one transaction."""
        info, leader = self.redis.info, self.view.leader
        assert info is not None
        assert leader is not None
        self.round = Round(number=self.view.ledger.epoch + 1, evidence=info, intact=True)
        final = self.resolved(info)
        if final is None or final.epoch != self.view.ledger.epoch:
            self.round.claim_not_before = self.now + self.settings.designation_s
            self.fire("claim_lost")
            return
        self._swap(final, f"handed over by {leader.name}", (Delete, self.view.leader_version))

    def _swap(self, final: Position, reason: str, how: tuple[type[Put | Delete], int]) -> None:
        view, settings = self.view, self.settings
        ledger = succeeded(
            me=settings.name,
            guid=self.session.guid,
            final=final,
            ledger=view.ledger,
            at=self.wall_now,
            reason=reason,
        )
        leader = Leader(
            name=settings.name,
            address=settings.redis,
            epoch=ledger.epoch,
            phase=LeaderPhase.TAKING_OVER,
            guid=self.session.guid,
            at=self.wall_now,
            by_handover=True,
        )
        kind, version = how
        ops: list[Op] = [
            Check(self.paths.config, view.config_version),
            Put(self.paths.epoch, encode(ledger), view.ledger_version),
        ]
        if kind is Put:
            ops.append(Put(self.paths.leader, encode(leader), version))
        else:
            ops.append(Delete(self.paths.leader, version))
            ops.append(Create(self.paths.leader, encode(leader), ephemeral=True))
        self.round.claim_epoch, self.round.claim_unknown = ledger.epoch, False
        self.round.claim_request = self.barrier()
        self._claimed_ledger, self._claimed_leader = ledger, leader
        not_after = self.lease.until - settings.min_claim_lease_s / 2
        self.order(Commit(self.session.number, self.round.claim_request, "swap", tuple(ops), not_after=not_after))

    # --- what is read of somebody else's ------------------------------------------------------------------------------

    def consider_handing_over(self, leader: Leader) -> None:
        """Another one hands over. Nobody but its successor has anything to do: there is no round."""
        if self.state == machine.FOLLOWER:
            if leader.successor == self.settings.name:
                self.consider_appointment(leader)
        elif self.state == machine.SUCCEEDING:
            if self.round.claim_request:
                return
            if leader.successor != self.settings.name:
                self.fire("leader_takes")
            elif self.round.claim_unknown:
                self.fire("claim_lost")
        elif self.state in (*machine.OWNING, machine.CLAIMING):
            self.fire("leader_takes")

    def consider_successor(self, leader: Leader) -> None:
        """Another one takes over by handover."""
        if self.state in machine.OFFERED and leader.epoch > self.epoch:
            self.fire("succeeded")
        elif self.state in (machine.FOLLOWER, machine.CONNECTING, machine.FREEZING, machine.VOTING):
            return  # It has everything, and nobody can write to the old one: no need to freeze.
        elif self.state != machine.HANDED_OVER or leader.epoch != self.epoch + 1:
            self.fire("leader_takes")

    # --- sickness -----------------------------------------------------------------------------------------------------

    def consider_sickness(self) -> None:
        """A primary that refuses all writes gives way to a healthy member; if there is none, it stays and says so."""
        redis = self.redis
        if not redis.sick or self.state != machine.SERVING or self.now < self._sick_retry_at or self.role_requests:
            return
        if not self.knows_who_is_fit(self.now - STALE_S):
            return
        successors = self.fit_successors()
        if successors:
            self.begin_handover(successors, f"this Redis refuses writes: {redis.sick}")
        else:
            self.reason = f"this Redis refuses writes ({redis.sick}), and nobody is fit to take over"
