"""Pointing the local Redis: nowhere, or at the leader; and saving what that would discard."""

from __future__ import annotations

from redis_agent import machine
from redis_agent.core.worth import Worth
from redis_agent.messages import Follow, Freeze, KickClients, SaveTail, TailSaved
from redis_agent.replication import NOWHERE, Ledger, Position, RedisInfo
from redis_agent.znodes import LeaderPhase

RETRY_ROLE_S = 0.2
KICK_AFTER_S = 0.3
"""What a client has that watches the leader, to go there by itself."""


def branch_bytes(ledger: Ledger, epoch: int, position: Position) -> int | None:
    """Where the history of ``epoch`` leaves the one that ``position`` lies in; None if that cannot be said.

    What lies beyond it in ``position``'s history is not in the data set of ``epoch``.
    """
    entry = ledger.entry(epoch)
    while entry is not None and entry.start.epoch > position.epoch:
        entry = ledger.entry(entry.start.epoch)
    if entry is None or entry.epoch <= position.epoch:
        return None
    if entry.start.epoch == position.epoch:
        return entry.start.offset_bytes
    # The position's whole epoch was passed over: the histories parted before it began.
    passed = ledger.entry(position.epoch)
    return passed.start.offset_bytes if passed is not None else None


class Following(Worth):
    """Freezes, follows, and puts back what somebody pointed elsewhere."""

    freeze_request = 0
    """Of the latest freeze: only its answer is evidence."""

    def order_freeze(self, *, kill_clients: bool, what: str = "freeze") -> None:
        request = self.request()
        self.role_requests[request] = what
        if what == "freeze":
            self.freeze_request = request
        self.redis.paused = self.redis.paused and not kill_clients
        self.order(Freeze(self.redis.incarnation, request, kill_clients, self.settings.role_limit_s))
        self.watch_fence()

    def hold(self) -> None:
        """Outside of a round: back to following nobody, for somebody pointed it elsewhere."""
        self.order_freeze(kill_clients=False, what="hold")

    def check_role(self, info: RedisInfo) -> None:
        """A leader whose data set was exchanged under it fences; a follower that was repointed is put back."""
        leader, redis = self.view.leader, self.redis
        if redis.killed:
            return
        if self.state == machine.SERVING and leader is not None:
            if not info.is_primary or info.replid != leader.replid:
                self.log("error", "replid_changed", replid=info.replid, served=leader.replid, primary=info.is_primary)
                self.fire("unfit")
            return
        if info.loading or self.leading or self.stopping or redis.tail_request:
            return
        if self.state in (machine.EXPIRED, machine.HANDED_OVER):
            return
        # What it was told to follow last also holds while the session is in doubt; else it is to follow nobody.
        ordered = self.followed[1] if self.followed is not None else NOWHERE
        ours = redis.attached or redis.incarnation == self.served_incarnation
        if info.primary == ordered or (self.state == machine.CONNECTING and info.is_primary and ours):
            return
        self.log("warning", "drift", settings="replicaof", found=str(info.primary or "no one"))
        if self.state in machine.CANDIDATE:
            # It was not frozen all the time, so the ballot may not be true any more.
            self.fire("thawed")
        elif self.followed is not None:
            self._order_follow()
        else:
            self.hold()

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
        self.had_role = True
        if before is not None and before[1] == leader.address and info is not None and info.primary == leader.address:
            return
        self._order_follow()

    def _order_follow(self) -> None:
        assert self.followed is not None
        redis = self.redis
        if not redis.up or redis.killed:
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
        if self._saving_tail():
            return
        if not redis.followed:
            # What a broken resync leaves behind must be told from data by our next life, too.
            redis.followed = True
            self.save("memory")
        self.had_role = True
        redis.paused = False
        redis.proof = None
        request = self.request()
        self.role_requests[request] = "follow"
        self.order(Follow(redis.incarnation, request, self.followed[1], self.settings.role_limit_s))
        self.watch_fence()

    def follow_done(self, info: RedisInfo | None) -> None:
        self.fenced()
        if info is not None:
            self.observe(info)
        self.save_promise()
        self.arm("probe", self.now)

    def follow_failed(self) -> None:
        if self.state == machine.FOLLOWER:
            self.arm("retry_role", self.now + RETRY_ROLE_S)

    def retry_follow(self) -> None:
        if self.state == machine.FOLLOWER and self.followed is not None:
            self._order_follow()

    def kick_clients(self) -> None:
        """Behind the answers to what waited: whoever stays connected shall look for the leader.

        A write that is on its way when its connection is closed is of unknown outcome to its client. So those that
        watch the leader get a moment to go by themselves; meanwhile they read -READONLY.
        """
        self.arm("kick", self.now + KICK_AFTER_S)

    def kick_now(self) -> None:
        if self.state == machine.FOLLOWER and self.redis.up and not self.redis.killed:
            request = self.request()
            self.role_requests[request] = "kick"
            self.order(KickClients(self.redis.incarnation, request, self.settings.role_limit_s))

    # --- the diverged tail ------------------------------------------------------------------------------------------

    def _saving_tail(self) -> bool:
        """A resync is about to discard what only we have: it is saved first. True: wait for that."""
        redis = self.redis
        if redis.tail_request:
            return True
        name = self._tail_name()
        if not name or name == redis.tail_saved:
            return False
        self.log("warning", "diverged_tail", name=name)
        redis.tail_saved, redis.tail_request = name, self.request()
        limit_s, keep = self.settings.tail_limit_s, self.settings.keep_diverged
        self.order(SaveTail(redis.incarnation, redis.tail_request, name, keep, limit_s))
        return True

    def _tail_name(self) -> str:
        info = self.redis.info
        if self.settings.keep_diverged <= 0 or info is None or info.keys == 0:
            return ""
        position = self.resolved(info) or self.recorded
        if self.discarded and not self.redis.followed:
            # Nobody else has any of it, and nothing says how old it is: it is never deleted to make room.
            return f"discarded-{self.redis.run_id[:12]}"
        if position is None or position.epoch == 0:
            return ""
        branch = branch_bytes(self.view.ledger, self.epoch, position)
        if branch is None or position.offset_bytes <= branch:
            return ""
        return f"epoch-{position.epoch}-offset-{position.offset_bytes}"

    def on_tail_saved(self, event: TailSaved) -> None:
        redis = self.redis
        if event.request != redis.tail_request:
            return
        redis.tail_request = 0
        if event.error:
            # Availability first: the data set that the others elected is the cluster's.
            self.log("error", "tail_not_saved", name=redis.tail_saved, problem=event.error)
        else:
            self.log("warning", "tail_saved", path=event.path)
        self.retry_follow()
