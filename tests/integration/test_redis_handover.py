"""A handover as two real Redis see it: what the agents order of them, under load, without agents."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from typing import Any

import redis

from redis_agent.lab.waiting import wait_for
from redis_agent.messages import CatchUp, CaughtUp, Follow, Freeze, KickClients, LiftFence, PauseWrites, Promote
from tests.support.redis import LIMIT_S, QUICK_SYNC, LocalRedis, MakeRedis, follow, make_redis

__all__ = ["make_redis"]

WRITERS = 8


class Counter:
    """A client that counts all the time with INCR, which tells whether anything was lost or done twice.

    It repeats an INCR only where Redis said READONLY, and then on the other server.
    """

    def __init__(self, name: str, first: LocalRedis, second: LocalRedis) -> None:
        self.acknowledged = 0
        self.refused = 0
        self.wrong: list[str] = []
        self.longest_s = 0.0
        """Longest time between two acknowledgements."""
        self.moved_at = 0
        """How many were acknowledged when it went to the second server."""
        self._name = name
        self._servers = [first, second]
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=name)
        self._thread.start()

    def close(self) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        client = self._servers[0].client()
        waiting_since = time.monotonic()
        while not self._stopping.is_set():
            try:
                value = client.incr(self._name)
            except redis.ReadOnlyError:
                self.refused += 1
                client = self._servers[1].client()
                self.moved_at = self.moved_at or self.acknowledged
            except redis.RedisError as error:
                self.wrong.append(f"{type(error).__name__}: {error}")
                return
            else:
                self.acknowledged += 1
                if value != self.acknowledged:
                    self.wrong.append(f"{value} for number {self.acknowledged}")
                    return
                self.longest_s = max(self.longest_s, time.monotonic() - waiting_since)
                waiting_since = time.monotonic()


def hand_over(primary: LocalRedis, replica: LocalRedis) -> dict[str, float]:
    """What two agents order, one after the other; how long each step took, in seconds."""
    steps: dict[str, float] = {}
    last_at = time.monotonic()

    def timed(step: str) -> None:
        nonlocal last_at
        last_at, steps[step] = time.monotonic(), time.monotonic() - last_at

    run_id = replica.info().run_id
    timed("look")
    paused = primary.done(PauseWrites, for_s=20.0)
    timed("pause")
    position: dict[str, Any] = {"successors": (("m2", replica.address),), "replid": paused.replid}
    assert primary.ask(CatchUp, offset=paused.offset_bytes, **position).member == "m2"
    timed("catch up")
    frozen = primary.done(Freeze, kill_clients=False)
    timed("freeze")
    caught_up = primary.ask(CatchUp, offset=frozen.offset_bytes, **position)
    assert isinstance(caught_up, CaughtUp)
    assert caught_up.member == "m2"
    timed("final position")
    promoted = replica.done(Promote, run_id=run_id)
    assert (promoted.replid2, promoted.second_offset_bytes) == (frozen.replid, frozen.offset_bytes + 1)
    timed("promote")
    replica.done(LiftFence, at_least=0)
    timed("lift")
    primary.done(Follow, primary=replica.address)
    timed("follow")
    primary.done(KickClients)
    timed("kick")
    return steps


def test_a_handover_loses_nothing_and_does_nothing_twice(make_redis: MakeRedis) -> None:
    """Cases E1, F4 (adapter's part): under load every waiting write gets READONLY, was not executed, and is repeated.

    Each of the counters is exact on the new primary, no client sees anything but READONLY, and the old primary joins
    by a partial resync.
    """
    primary, replica = make_redis(QUICK_SYNC), make_redis(QUICK_SYNC)
    primary.lead()
    follow(replica, primary)
    # After a diskless transfer the stream may begin up to a second later, though the link is called online.
    primary.client().set("first", 1)
    wait_for(lambda: replica.info().offset_bytes > 0, LIMIT_S, "the stream flows")
    with ExitStack() as stack:
        counters = [Counter(f"counter-{number}", primary, replica) for number in range(WRITERS)]
        for counter in counters:
            stack.callback(counter.close)
        wait_for(lambda: all(counter.acknowledged > 100 for counter in counters), LIMIT_S, "they count")
        steps = hand_over(primary, replica)
        wait_for(
            lambda: all(counter.wrong or counter.acknowledged > counter.moved_at + 100 for counter in counters),
            LIMIT_S,
            "they count on the new primary",
        )
    assert [counter.wrong for counter in counters] == [[]] * WRITERS
    assert [counter.refused for counter in counters] == [1] * WRITERS
    client = replica.client()
    assert sum(steps.values()) < 1.0, steps
    found = [int(client.get(f"counter-{number}")) for number in range(WRITERS)]
    assert found == [counter.acknowledged for counter in counters]
    wait_for(lambda: primary.info().link_up, LIMIT_S, "the old primary follows")
    stats = client.info("stats")
    assert (stats["sync_full"], stats["sync_partial_ok"]) == (0, 1)
