"""Comparing what was read of the cluster with what we are, and firing what follows."""

from __future__ import annotations

from redis_agent import machine
from redis_agent.core.leaving import Leaving
from redis_agent.election import quorum
from redis_agent.znodes import Leader, LeaderPhase

DISCARD_COMMAND = "redis-agent discard"
"""How an operator allows it, before the member's name."""


class Considering(Leaving):
    """Looks behind each event whether the view asks for a step; the table says which one it is."""

    def consider(self) -> None:
        """Compare what was read with what we are, and fire what follows."""
        if self.proved and self.state not in (
            machine.EXPIRED,
            machine.STOPPING_REDIS,
            machine.CLOSING,
            machine.STOPPED,
        ):
            self._consider_view()
            self.consider_orders()
            self.consider_sickness()
            self.replace_unguarded()
        self.consider_goal()

    def _consider_view(self) -> None:
        leader = self.view.leader
        if self.state == machine.YIELDING and self.view.presences_known:
            self.consider_yielding()
        if self.state == machine.PAUSING and self.view.presences_known:
            self.consider_successors()
        if self.state == machine.RESIGNING and (leader is None or self.owns_leader):
            self.recast_if_due()
        elif leader is None:
            self._consider_no_leader()
        elif self.owns_leader:
            self._consider_own(leader)
        elif leader.phase == LeaderPhase.SERVING:
            self._consider_serving(leader)
        elif leader.phase == LeaderPhase.HANDING_OVER:
            self.consider_handing_over(leader)
        elif leader.by_handover:
            self.consider_successor(leader)
        elif self.state not in (machine.FREEZING, machine.VOTING):
            self.fire("leader_takes")

    def _consider_no_leader(self) -> None:
        if self.state == machine.CLAIMING:
            if self.round.claim_unknown and not self.round.claim_request:
                self.fire("claim_lost")
            return
        if self.state == machine.CONNECTING and not self._may_vote():
            return
        if self.state in (machine.FREEZING, machine.VOTING):
            if self.round.number != self.view.ledger.epoch + 1:
                self.fire("round_over")
            elif self.state == machine.VOTING:
                self.consider_election()
            elif not self.redis.up or self.redis.killed:
                self.recast_if_due()
        elif not self.stopping:
            self.fire("no_leader")

    def _may_vote(self) -> bool:
        """Before a cluster has voters there is nothing to vote on."""
        return bool(self.view.config.voters)

    def _consider_own(self, leader: Leader) -> None:
        if self.state == machine.CONNECTING:
            if not self.role_requests or self.redis.killed:  # The fence is on its way: its answer comes here again.
                self.fire("leader_is_ours" if self.fit_to_resume() else "unfit")
        elif self.state in (machine.CLAIMING, machine.SUCCEEDING):
            if not self.round.claim_request:
                self.fire("leader_is_ours")
        elif self.state == machine.SERVING:
            self.keep_wait_true()
        elif self.state in machine.OFFERED:
            self.consider_own_handover(leader)
        elif self.state == machine.FREEZING:
            if not self.redis.up or self.redis.killed:
                self.recast_if_due()
        elif self.state in (machine.VOTING, machine.FOLLOWER, machine.HANDED_OVER):
            # The ballot that takes it away may be on its way.
            if not self.round.ballot_request:
                self.fire("leader_is_ours")
        elif self.state == machine.TAKING_OVER and self._serve_is_settled(leader):
            # The reply to `serve` was lost, but it was committed.
            self.serving_is_settled()

    def _serve_is_settled(self, leader: Leader) -> bool:
        settled = leader.phase == LeaderPhase.SERVING and leader.epoch == self.epoch
        return settled and not self.taking_over_request

    def _consider_serving(self, leader: Leader) -> None:
        if leader.epoch < self.promised_round:
            # We voted for a later round: this one is being deposed, and nobody may confirm anything to it.
            self.reason = f"{leader.name} serves epoch {leader.epoch}, but this member voted for {self.promised_round}"
            self.look_later()
            return
        if self.state == machine.FOLLOWER and self.followed is not None and self.followed[0] == leader.epoch:
            return
        voters = leader.voters
        if self.settings.name not in voters and leader.wait < quorum(len(voters))[0] + len(
            self.view.members.keys() - set(voters)
        ):
            # A plain WAIT would take our acknowledgement for a voter's.
            self.reason = "waiting for the leader to count this member, which does not vote, in its `wait`"
            return
        joining = self.state in (machine.CONNECTING, *machine.CANDIDATE, machine.FOLLOWER)
        if joining and self.redis.up and not self.knows_its_data():
            if self.redis.info is not None and not self.redis.info.loading:
                remedy = f"`{DISCARD_COMMAND} {self.settings.name}` gives it up, and lets this member follow"
                self.reason = f"this member's data set is of unknown lineage: not overwritten; {remedy}"
            return
        self.fire("leader_serves")
