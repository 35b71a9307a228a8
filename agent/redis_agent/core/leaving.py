"""SIGTERM: hand over if we lead, stop Redis in order, close the session."""

from __future__ import annotations

from redis_agent import machine
from redis_agent.core.rounds import Rounds
from redis_agent.messages import CatchUp, CaughtUp, Exit, PauseWrites, StopRedis, Unpause

PAUSE_SPARE_S = 5.0
"""How much longer than the handover the pause may last: it ends by the wall clock, and is no fence."""


class Leaving(Rounds):
    """Leaves without losing anything that was acknowledged."""

    _catch_up_request = 0

    def on_stop_requested(self) -> None:
        self.stop_count += 1
        self.log("info", "stop_requested", times=self.stop_count)
        self.fire("stop" if self.stop_count == 1 else "stop_again")

    # --- handing over -----------------------------------------------------------------------------------------------

    def pause_writes(self) -> None:
        """Clients' writes wait; they do not fail."""
        settings = self.settings
        self.arm("handover", self.now + settings.handover_s)
        request = self.request()
        self.role_requests[request] = "pause"
        pause_s = 2 * settings.handover_s + PAUSE_SPARE_S
        self.order(PauseWrites(self.redis.incarnation, request, pause_s, settings.role_limit_s))

    def pause_done(self) -> None:
        """Ask the others for their offsets: the once-a-second acknowledgement would be too slow."""
        info, view = self.redis.info, self.view
        if self.state != machine.HANDING_OVER or info is None:
            return
        successors = tuple(
            (name, view.members[name].redis)
            for name in view.config.voters
            if name != self.settings.name and name in view.presences and name in view.members
        )
        if not successors:
            self.fire("caught_up")
            return
        self._catch_up_request = self.request()
        not_after = self.timers.get("handover", self.now)
        self.order(CatchUp(self._catch_up_request, successors, info.replid, info.offset_bytes, not_after))

    def on_caught_up(self, event: CaughtUp) -> None:
        if event.request != self._catch_up_request:
            return
        self._catch_up_request = 0
        self.log("info" if event.member else "warning", "caught_up", successor=event.member or "nobody in time")
        self.fire("caught_up")

    def resign(self) -> None:
        """The ballot shows our final position and that we do not stand; ``leader`` goes in the same transaction."""
        self.round.number = self.view.ledger.epoch + 1
        self.cast_ballot(abstains=True)

    def await_successor(self) -> None:
        self.arm("yield", self.now + self.settings.handover_s)
        self.consider_yielding()

    def consider_yielding(self) -> None:
        """Whoever could take over may have left, too."""
        others = set(self.view.presences) & set(self.view.config.voters) - {self.settings.name}
        if not others:
            self.fire("yield_over")

    def release_writes(self) -> None:
        """Unpause: what waited is answered -READONLY, which says that it was not executed."""
        self.disarm("yield")
        if "unpause" in self.role_requests.values():
            return
        if not self.redis.up:
            self.fire("released")
            return
        request = self.request()
        self.role_requests[request] = "unpause"
        self.order(Unpause(self.redis.incarnation, request, self.settings.role_limit_s))

    # --- the end ----------------------------------------------------------------------------------------------------

    def stop_redis(self) -> None:
        for timer in ("handover", "yield", "takeover", "election", "restart", "recast", "retry_role"):
            self.disarm(timer)
        redis = self.redis
        if self.redis_is_gone:
            self.fire("redis_lost")
            return
        # Whoever was let in is shut out first, in case stopping takes its time (it may write an RDB).
        self.fence()
        self.save_position()
        self.order(StopRedis(redis.incarnation, self.settings.stop_redis_s))

    def leave(self) -> None:
        self.log("info", "stopped", code=self.exit_code, reason=self.exit_reason)
        self.order(Exit(self.exit_code, self.exit_reason))
