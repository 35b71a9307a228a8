"""A round of the election: freeze, ballot, verdict, claim."""

from __future__ import annotations

from dataclasses import replace

from redis_agent import machine
from redis_agent.core.base import Round
from redis_agent.core.following import RETRY_ROLE_S
from redis_agent.core.local_redis import RedisCare
from redis_agent.core.reading import Part
from redis_agent.election import Ballot, Outcome, Rules, Verdict, claimed, decide
from redis_agent.messages import (
    Check,
    Commit,
    CommitDone,
    CommitRefused,
    CommitUnknown,
    Create,
    Delete,
    Op,
    Put,
)
from redis_agent.replication import Position, RedisInfo
from redis_agent.znodes import Leader, LeaderPhase, encode


class Rounds(RedisCare):
    """Takes part in elections."""

    _verdict: Verdict | None = None

    # --- freeze and ballot ------------------------------------------------------------------------------------------

    def freeze(self) -> None:
        """Cut the replica from its primary, so that neither its position nor its word to the primary moves any more."""
        self.round = Round(number=self.view.ledger.epoch + 1)
        self.followed = None
        for timer in ("election", "takeover"):
            self.disarm(timer)
        if self.redis.up and not self.redis.killed:
            self.order_freeze(kill_clients=True)
        elif self.redis_is_gone or self.redis.killed:
            self.cast_empty_ballot()
        # Else it is being started, and will be frozen as soon as it answers.

    def freeze_quietly(self) -> None:
        """For a handover: the clients whose writes wait are answered when the successor serves."""
        self.round = Round(number=self.view.ledger.epoch + 1)
        self.order_freeze(kill_clients=False)

    def freeze_done(self, request: int, info: RedisInfo | None) -> None:
        self.fenced()
        redis = self.redis
        if info is None or request != self.freeze_request:
            return  # An earlier freeze: what was ordered since may have moved the position.
        self.observe(info)  # What is still being loaded is not intact.
        self.round.evidence = info
        if self._emptied(info):
            self.not_intact("a full resync was broken off")
        self.round.intact = redis.intact
        self.remember_position(info)
        self.log("info", "frozen", offset_bytes=info.offset_bytes, intact=redis.intact, round=self.round.number)
        if info.loading:
            self.arm("retry_role", self.now + RETRY_ROLE_S)
            return
        self.fire("frozen")

    def freeze_failed(self, *, unknown: bool) -> None:
        if self.state not in (machine.FREEZING, machine.SEALING, machine.RESIGNING):
            return
        if self.state == machine.SEALING and not unknown:
            self.arm("retry_role", self.now + RETRY_ROLE_S)  # Nothing was done, and the wait for it is bounded.
            return
        if self.redis.lifted or (unknown and self.owns_leader):
            self.kill_redis("the freeze was not confirmed")
            return
        if self.owns_leader and self.state == machine.FREEZING and not self.round.ballot_request:
            # It was never let in to, so `leader` can go without the freeze; a true ballot replaces this one later.
            self.cast_empty_ballot()
        self.arm("retry_role", self.now + RETRY_ROLE_S)

    def retry_freeze(self) -> None:
        states = (machine.FREEZING, machine.SEALING, machine.RESIGNING)
        if self.state in states and self.redis.up and not self.redis.killed:
            self.order_freeze(kill_clients=self.state == machine.FREEZING)

    def cast_ballot(self, *, abstains: bool = False) -> None:
        """Testify. If ``leader`` is still ours, it goes in the same transaction: nobody waits for two."""
        info, redis = self.round.evidence, self.redis
        assert info is not None
        if self._emptied(info):
            self._cast(replace(self._empty_ballot(), up=True, abstains=True))
            return
        loaded = redis.loaded == (info.replid, info.offset_bytes) and not redis.intact
        self._cast(
            replace(
                self._empty_ballot(),
                up=True,
                intact=self.round.intact,
                reloaded=loaded,
                abstains=abstains or not self.settings.voter or self._stands_back(),
                keys=info.keys,
                replid=info.replid,
                replid2=info.replid2,
                second_offset_bytes=info.second_offset_bytes,
                offset_bytes=info.offset_bytes,
                recorded=self._recorded() if info.keys else None,
            )
        )

    def _stands_back(self) -> bool:
        """Nobody followed us, or nothing would fence us if we hung: evidence only."""
        return self.now < self.abstain_until or self.redis.unguarded

    def _stand_if_free(self) -> None:
        """What kept us from standing may have ended while the ballot was on its way."""
        ballot, evidence = self.round.ballot, self.round.evidence
        if ballot is None or evidence is None or not ballot.abstains or self._emptied(evidence):
            return
        if self.settings.voter and not self._stands_back():
            self.stand_again()

    def stand_again(self) -> None:
        """What kept us from standing is over: cast a ballot that stands."""
        if self.state == machine.VOTING and not self.round.ballot_request:
            self.round.cast_at = self.round.complete_since = None

    def cast_empty_ballot(self) -> None:
        """There is no Redis here: nobody need wait for it. A leader resigns with it."""
        mine = self.round
        same = mine.ballot is not None and not mine.ballot.up and mine.ballot.run_id == self.redis.run_id
        told = bool(mine.ballot_request) or (mine.cast_at is not None and not self.owns_leader)
        if same and told and mine.number == self.view.ledger.epoch + 1:
            return  # When it was killed. Now it is dead.
        self.round = Round(number=self.view.ledger.epoch + 1)
        self._cast(self._empty_ballot())

    def _emptied(self, info: RedisInfo) -> bool:
        """A full resync whose file could not be loaded leaves replid and offset of data that are gone.

        Redis takes leave of its old primary when a full resync begins (its two offsets differ from then on), and of its
        old data when the file is complete. A file of a version that it cannot read leaves it empty; one that breaks in
        the middle makes it exit.
        """
        return self.redis.followed and info.keys == 0 and info.replica_offset_bytes != info.offset_bytes

    def _recorded(self) -> Position | None:
        """From the state file; one that only proves that the data are of this cluster puts them last."""
        if self.recorded is None and self.record.cluster_id and self.record.cluster_id == self.view.config.cluster_id:
            return Position(0, 0)
        return self.recorded

    def _empty_ballot(self) -> Ballot:
        return Ballot(
            member=self.settings.name,
            round=self.round.number,
            guid=self.session.guid,
            up=False,
            priority=self.settings.priority,
            run_id=self.redis.run_id,
            promotions=self.record.promotions,
        )

    def _cast(self, ballot: Ballot) -> None:
        view, session = self.view, self.session
        if not session.connected or not session.registered or view.ledger_version < 0:
            return
        if self.owns_leader:
            self.log("info", "resigned", epoch=view.ledger.epoch)
        elif view.leader is not None:
            return  # Somebody takes over: a ballot for the next round would bind us not to follow it.
        # Binding before it is sent, for it may be committed without our knowing.
        self.promised_round = max(self.promised_round, ballot.round)
        path = self.paths.ballot(ballot.round, ballot.member)
        ops: list[Op] = [Check(self.paths.epoch, view.ledger_version)]
        if self.owns_leader:
            ops.append(Delete(self.paths.leader))
        earlier = view.ballots.get(self.settings.name)
        if earlier is not None and earlier.round == ballot.round:
            ops.append(Delete(path))
        ops.append(Create(path, encode(ballot)))
        self.epoch = 0
        self.round.ballot = ballot
        self.round.ballot_request = self.barrier()
        self.order(Commit(session.number, self.round.ballot_request, "ballot", tuple(ops)))

    def ballot_answered(self, event: CommitDone | CommitRefused | CommitUnknown) -> None:
        self.round.ballot_request = 0
        if isinstance(event, CommitDone):
            self.round.cast_at = self.now
            if self.round.ballot is not None:
                self.view.ballots[self.settings.name] = self.round.ballot
            self.log("info", "ballot_cast", round=self.round.number)
            if self.owns_leader:
                self.view.leader = None
            self._stand_if_free()
            if self.state == machine.RESIGNING:
                self.fire("resigned")
            self.look(Part.BALLOTS)
        else:
            self.log("info", "ballot_refused", round=self.round.number, answer=type(event).__name__)
            self.view.fresh = False
            self.arm("recast", self.now + RETRY_ROLE_S)
            self.look(Part.LEADER | Part.BALLOTS)

    def recast_if_due(self) -> None:
        if "recast" not in self.timers:
            self.recast()

    def recast(self) -> None:
        """The ballot's outcome was not good, and what was read since has not changed the round: again."""
        if self.round.cast_at is not None or self.round.ballot_request or not self.proved:
            return
        if self.state == machine.VOTING or (self.state == machine.RESIGNING and self.round.evidence is not None):
            self.round.number = self.view.ledger.epoch + 1
            self.cast_ballot(abstains=self.state == machine.RESIGNING)
        elif self.state == machine.FREEZING and (self.redis_is_gone or self.redis.killed):
            self.cast_empty_ballot()

    # --- verdict and claim ------------------------------------------------------------------------------------------

    def consider_election(self) -> None:
        """In ``voting``: is it our turn?"""
        round_, view, settings = self.round, self.view, self.settings
        if view.leader is not None or not view.presences_known or not self.session.guid_saved:
            return
        if round_.cast_at is None or round_.ballot is None:
            self.recast_if_due()
            return
        live = frozenset(view.presences)
        voters = frozenset(view.config.voters)
        view.ballots[settings.name] = round_.ballot
        cast = {name for name, ballot in view.ballots.items() if ballot.round == round_.number}
        if round_.complete_since is None and voters & live <= cast:
            round_.complete_since = self.now
        self._verdict = verdict = decide(
            me=settings.name,
            round_=round_.number,
            ballots=view.ballots,
            live=live,
            standing_owner=self._standing_owner(),
            last_offset_bytes=self._last_offset_bytes(),
            ledger=view.ledger,
            rules=Rules(
                mode=view.config.mode,
                voters=voters,
                grace_s=settings.grace_s,
                stagger_s=settings.stagger_s,
                max_lag_bytes=view.config.max_lag_bytes,
                keep=view.config.keep,
            ),
            started_at=round_.cast_at,
            now=self.now,
            complete_since=round_.complete_since,
        )
        self._note_verdict(verdict)
        if verdict.until is not None:
            self.arm("election", verdict.until)
        if verdict.outcome is Outcome.CLAIM:
            if self.now < self.round.claim_not_before:
                self.arm("election", self.round.claim_not_before)
            elif self.lease.until - self.now >= settings.min_claim_lease_s:
                self.fire("elected")
            else:
                self.arm("election", self.now + settings.heartbeat_s)

    def _note_verdict(self, verdict: Verdict) -> None:
        if verdict.reason != self.round.reason:
            self.round.reason = verdict.reason
            level = "warning" if verdict.outcome is Outcome.BLOCKED else "info"
            self.log(level, "verdict", outcome=verdict.outcome.value, round=self.round.number, reason=verdict.reason)
        self.round.ranking = verdict.ranking

    def _standing_owner(self) -> str:
        """Whose ``leader`` vanished while its presence of the same session stands: it may not have fenced yet."""
        latest = self.view.ledger.entry(self.view.ledger.epoch)
        if latest is None:
            return ""
        presence = self.view.presences.get(latest.member)
        # One that cannot be read may be its.
        return latest.member if presence is not None and presence.guid in ("", latest.guid) else ""

    def _last_offset_bytes(self) -> int | None:
        latest = self.view.ledger.latest_served()
        return self.offsets_seen.get(latest.replid) if latest else None

    def claim(self) -> None:
        """One transaction: the next epoch with where it starts, and ``leader``, if nobody changed the ledger."""
        view, settings, verdict = self.view, self.settings, self._verdict
        assert verdict is not None
        ledger = claimed(
            me=settings.name,
            verdict=verdict,
            ballots=view.ballots,
            ledger=view.ledger,
            at=self.wall_now,
            reason=verdict.reason,
        )
        leader = Leader(
            name=settings.name,
            address=settings.redis,
            epoch=ledger.epoch,
            phase=LeaderPhase.TAKING_OVER,
            guid=self.session.guid,
            at=self.wall_now,
        )
        ops: tuple[Op, ...] = (
            Check(self.paths.config, view.config_version),
            Put(self.paths.epoch, encode(ledger), view.ledger_version),
            Create(self.paths.leader, encode(leader), ephemeral=True),
        )
        self.round.claim_epoch = ledger.epoch
        self.round.claim_unknown = False
        self.round.claim_request = self.barrier()
        self._claimed_ledger, self._claimed_leader = ledger, leader
        not_after = self.lease.until - settings.min_claim_lease_s / 2
        self.order(Commit(self.session.number, self.round.claim_request, "claim", ops, not_after=not_after))

    def claim_answered(self, event: CommitDone | CommitRefused | CommitUnknown) -> None:
        self.round.claim_request = 0
        if isinstance(event, CommitDone):
            view = self.view
            view.ledger, view.ledger_version = self._claimed_ledger, event.versions[1]
            # The last operation of a claim and of a swap is the one on ``leader``.
            view.leader, view.leader_version = self._claimed_leader, event.versions[-1]
            self.log("info", "claimed", epoch=self.round.claim_epoch)
            self.fire("claim_won")
        elif isinstance(event, CommitRefused):
            self.log("info", "claim_refused", epoch=self.round.claim_epoch, error=event.error.value)
            # What it rested on is out of date.
            self.view.fresh = False
            self.round.claim_not_before = self.now + RETRY_ROLE_S
            if self.state != machine.RECLAIMING:  # There it is tried again, once it is known why.
                self.fire("claim_lost")
            self.look_at_all()
        else:
            self.round.claim_unknown = True
            self.view.fresh = False
            self.look_at_all()
