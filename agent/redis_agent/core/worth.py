"""What the local Redis's data are worth: positions, whether its memory is intact, what the state file keeps of it."""

from __future__ import annotations

from math import inf

from redis_agent import machine
from redis_agent.core.sessions import Sessions
from redis_agent.messages import ProbeRemote, RemoteProbed
from redis_agent.replication import NOWHERE, RedisInfo

ASK_AGAIN_S = 0.2
UNKNOWN_LOAD = ("", -1)
"""A process of which nobody remembers what it had loaded from disk."""


class Worth(Sessions):
    """Knows how far the data reach, and whether the process was in sync without a break since."""

    def observe(self, info: RedisInfo) -> None:
        """Take in what Redis says of itself."""
        redis, before = self.redis, self.redis.info
        redis.info = info
        if redis.loaded is None and not info.loading:
            redis.loaded = (info.replid, info.offset_bytes)
            self.save("memory")
        if not info.is_primary:
            if info.loading:
                # Not earlier: until the whole file is here, the data that it is to replace are all there.
                self.not_intact("a full resync replaces its data")
            elif before is not None and before.replid not in (info.replid, info.replid2):
                # A partial resync keeps the old replid as the second one; a full one does not.
                self.not_intact("its data were replaced by a full resync")
        if redis.intact and self.record.intact_replid != info.replid:
            self.save("memory")
        self._take_back(info)

    def _take_back(self, info: RedisInfo) -> None:
        """What the state file counts beyond Redis's own word was of an earlier process, and was not on its disk.

        Once a full resync has begun Redis saves its data without a position, and the file's would stand for them.
        """
        found = self.resolved(info) if info.keys > 0 and not info.loading else None
        if found is not None and self.recorded is not None and found < self.recorded:
            self.log("warning", "position_taken_back", epoch=found.epoch, offset_bytes=found.offset_bytes)
            self.recorded = found
            self.save_position()

    def recall(self, info: RedisInfo) -> None:
        """Our last life left this process running: what the state file says of it holds as far as Redis confirms it."""
        redis, record = self.redis, self.record
        redis.attached = True
        points_somewhere = info.primary not in (None, NOWHERE)
        same = record.run_id == info.run_id
        redis.followed = points_somewhere or (same and record.followed)
        if points_somewhere and info.primary is not None:
            self.followed = (0, info.primary)
        if not same:
            redis.loaded = UNKNOWN_LOAD
            return
        redis.loaded = record.loaded or (None if info.loading else UNKNOWN_LOAD)
        # A full resync from elsewhere takes away the replid that it was intact under; one from its leader brings data
        # that are at least as new.
        redis.intact = bool(record.intact_replid) and not info.loading and not info.syncing
        redis.intact = redis.intact and record.intact_replid in (info.replid, info.replid2)
        # Empty, and on its way from one history to another: what a full resync leaves that could not be loaded.
        emptied = info.keys == 0 and info.replica_offset_bytes not in (None, info.offset_bytes)
        redis.intact = redis.intact and not emptied
        self.log("info", "redis_attached", run_id=info.run_id, intact=redis.intact, offset_bytes=info.offset_bytes)

    def save(self, what: str = "", **changes: object) -> None:
        """Put the state record on disk, with ``changes`` and what is known of the process."""
        redis = self.redis
        if redis.run_id:
            known = {
                "run_id": redis.run_id,
                "loaded": redis.loaded,
                "intact_replid": redis.info.replid if redis.intact and redis.info else "",
                "followed": redis.followed,
            }
            changes = {**known, **changes}
        super().save(what, **changes)

    def not_intact(self, why: str) -> None:
        """Its memory is evidence no more, also for our next life."""
        self.redis.proof = None
        if self.redis.intact:
            self.redis.intact = False
            self.log("info", "not_intact", why=why)
            self.save("memory")

    def prove_intact(self, info: RedisInfo) -> None:
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
                self.save("memory")
                self.arm("heartbeat", self.now)
            else:
                self.arm("probe", self.now + min(self.settings.probe_s, 0.1))
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
        if info is None:
            self.arm("probe", min(self.timers.get("probe", inf), self.now + ASK_AGAIN_S))
            return
        if leader is None or event.address != leader.address:
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
        if info.keys == 0 or redis.intact or self._was_pointed_here() or self.resolved(info) is not None:
            return True
        if self._operator_gave_it_up() or self.discarded:
            return True
        return bool(config.cluster_id) and self.record.cluster_id == config.cluster_id

    @property
    def discarded(self) -> bool:
        """An operator gave up the data of this very process. One that is started later was not meant."""
        return bool(self.redis.run_id) and self.view.config.discard == self.redis.run_id

    def _was_pointed_here(self) -> bool:
        """It was told to follow in this life, which was decided then; of earlier ones only the state file can say."""
        return self.redis.followed and not self.redis.attached

    def _operator_gave_it_up(self) -> bool:
        """An operator chose other data, for the first leader, and this very process showed its own in that election.

        What is started later was not meant, also while that leader still serves.
        """
        config, ledger, ballot = self.view.config, self.view.ledger, self.round.ballot
        if config.keep in ("", self.settings.name) or self.settings.name not in config.voters:
            return False
        if ballot is None or ballot.round != ledger.epoch or ballot.run_id != self.redis.run_id:
            return False
        return [entry.epoch for entry in ledger.entries if entry.served] == [ledger.epoch]
