"""Leaving: stop Redis in order, or leave it to our next life; close the session."""

from __future__ import annotations

from math import inf

from redis_agent import machine
from redis_agent.core.base import LINGERS_S, Goal
from redis_agent.core.orders import Orders
from redis_agent.messages import Exit, LeaveRedis, StopRedis

TELL_LINGERING_S = 30.0


class Leaving(Orders):
    """Leaves without losing anything that was acknowledged."""

    _stop_next_life = False
    _leaving_redis = False
    """Redis is to be left running as soon as it is certainly fenced."""

    def on_stop_requested(self) -> None:
        self.stop_count += 1
        self.log("info", "stop_requested", times=self.stop_count)
        if self.goal is Goal.UPGRADE and self.stopping:
            self._stop_next_life = True
            return
        if self.stop_count == 1:
            self.pursue(Goal.STOP)
            return
        if self.state in machine.HANDOVER:
            self.fire("depart")
        elif self.state == machine.HANDED_OVER:
            self.fire("leave")
        else:
            self.fire("stop_again")

    def on_upgrade_requested(self) -> None:
        """SIGUSR2. Somebody who wants it stopped is not contradicted."""
        self.log("info", "upgrade_requested")
        if self.goal is Goal.RUN:
            self.exit_reason = "upgrade"
            self.pursue(Goal.UPGRADE)

    def consider_goal(self) -> None:
        """Behind each event: the next step on the way out, if that is where we go."""
        if self.state == machine.STOPPING_REDIS:
            self._leave_fenced_redis()
            self._give_up_leader()
        if self.goal is Goal.RUN or self.stopping:
            return
        if self.state == machine.SERVING:
            if self.stop_count < 2 and not self.knows_who_is_fit(self.goal_since):
                return
            # Also one that is only almost fit may become it in time.
            present = [name for name in self.view.config.voters if name in self.view.presences]
            others = tuple(name for name in present if name != self.settings.name)
            self.begin_handover(self.fit_successors() or others, self.exit_reason)
        elif self.state == machine.TAKING_OVER:
            self.fire("depart")
        elif self.state == machine.FOLLOWER and self._just_followed():
            return  # The writes that waited are answered first.
        elif self.state in (machine.CLAIMING, machine.SUCCEEDING) and self._claim_is_open():
            return  # If it is committed `leader` is ours, and must not stand while Redis stops.
        elif self.state not in (*machine.OWNING, machine.HANDED_OVER):
            self.fire("leave")

    def _claim_is_open(self) -> bool:
        in_doubt = bool(self.round.claim_request) or self.round.claim_unknown
        return in_doubt and self.stop_count < 2 and self.lease.valid(self.now)

    def _just_followed(self) -> bool:
        waited_for = "kick" in self.timers or {"follow", "kick"} & set(self.role_requests.values())
        return bool(waited_for) and self.redis.up and self.stop_count < 2

    def resign(self) -> None:
        """The ballot shows our final position and that we do not stand; ``leader`` goes in the same transaction.

        We may just be taking the epoch back, by a swap of which nothing is known yet. It and the ballot insist on the
        same version of the ledger, so one of them makes the other impossible: either the epoch is as it was, and
        ``leader`` gone; or it is ours, and the ballot, refused, is cast again when that was read.
        """
        self.round.number = self.view.ledger.epoch + 1
        self.cast_ballot(abstains=True)

    def await_successor(self) -> None:
        """Writes that wait go on waiting, but not for ever."""
        self.disarm("designation")
        self.arm("yield", self.now + self.settings.handover_s)
        if self.state == machine.YIELDING:
            self.consider_yielding()

    def yield_overdue(self) -> None:
        if self.state == machine.HANDED_OVER and self.goal is not Goal.RUN:
            self.fire("leave")
        elif self.state == machine.YIELDING:
            self.fire("yield_over")

    def consider_yielding(self) -> None:
        """Whoever could take over may have left, too."""
        others = set(self.view.presences) & set(self.view.config.voters) - {self.settings.name}
        if not others and "unpause" not in self.role_requests.values():
            self.fire("yield_over")

    def release_writes(self) -> None:
        """Unpause: what waited is answered -READONLY, which says that it was not executed."""
        self.disarm("yield")
        if "unpause" in self.role_requests.values():
            return
        if not self.redis.up or self.redis.killed:
            self.fire("released")
            return
        self.unpause()

    # --- the end ----------------------------------------------------------------------------------------------------

    def part_with_redis(self) -> None:
        """Stop it in order, or let it run on under its guard."""
        for timer in ("handover", "designation", "yield", "takeover", "election"):
            self.disarm(timer)
        for timer in ("restart", "await", "recast", "retry_role"):
            self.disarm(timer)
        redis = self.redis
        if self.redis_is_gone:
            self.fire("redis_lost")
            return
        self.arm("lingers", self.now + LINGERS_S + (0.0 if redis.killed else self.settings.stop_redis_s))
        # Whoever was let in is shut out first, in case it takes its time (stopping, it may write an RDB).
        self.fence()
        self.save_position()
        there = redis.up or self.old_redis_alive  # Perhaps we are just attaching to it.
        self._leaving_redis = self.leaves_redis and there and not redis.killed and not redis.unguarded
        if self._leaving_redis:
            self.save("memory")
            self._leave_fenced_redis()
        else:
            self.order(StopRedis(redis.incarnation, self.settings.stop_redis_s))

    def _give_up_leader(self) -> None:
        """Stopping may take its time: once Redis is fenced nobody need wait for it."""
        fenced = not self.redis.lifted and self.redis.guard_asked == -inf
        if self.owns_leader and fenced and self.session.connected and not self.round.ballot_request:
            self.cast_empty_ballot()

    def _leave_fenced_redis(self) -> None:
        """Not before the fence is confirmed: our session, which keeps others from leading, ends right behind it."""
        redis = self.redis
        if self._leaving_redis and not redis.lifted and not redis.killed and redis.guard_asked == -inf:
            self._leaving_redis = False
            self.order(LeaveRedis(redis.incarnation))

    def redis_lingers(self) -> None:
        """It was told to stop, or killed, and is still there: kept up by the kernel, as on a disk that hangs."""
        redis = self.redis
        if not redis.killed:
            if self.state == machine.STOPPING_REDIS:
                self.kill_redis("it did not stop in time")
            return
        self.reason = f"redis-server {redis.pid} was killed and does not end"
        remedy = "it hangs in the kernel: see its disk; a new one is started when it is gone"
        self.log("error", "redis_lingers", pid=redis.pid, remedy=remedy)
        self.arm("lingers", self.now + TELL_LINGERING_S)
        self.fire("lingers")

    def redis_left(self) -> None:
        """Nothing more is heard of it in this life."""
        self.redis.up = False
        self.disarm("probe")
        self.fire("redis_left")

    def leave(self) -> None:
        self.log("info", "stopped", code=self.exit_code, reason=self.exit_reason)
        again = self.goal is Goal.UPGRADE
        self.order(Exit(self.exit_code, self.exit_reason, again=again, stop=self._stop_next_life))
