"""Clocks that run at other rates, and wall clocks that jump: what the design assumes of them, and what it does not."""

from __future__ import annotations

import pytest

from tests.sim.agent import Member
from tests.sim.clock import ASSUMED_RATE, WALL_OFFSET_S, Clock
from tests.sim.cluster import Cluster
from tests.sim.scenario import App, Begin, another_serves, epoch, roles, server
from tests.sim.world import Violation, World

GUARD_BEARS = 1.0 - (6.0 - 0.125 + 0.05) / 6.0
"""By how much a clock may be slow if the guard alone is left to fence: see `clock`."""


def test_a_clock_shows_its_own_time() -> None:
    """An offset, a rate, a wall clock beside it; another boot begins anew and keeps the wall clock."""
    world = World(1)
    clock = Clock(world)
    assert (clock.now, clock.wall) == (world.now, world.now + WALL_OFFSET_S)
    clock.draw(world.rng, 0.01)
    before = clock.now
    clock.set_rate(0.5)
    assert clock.now == pytest.approx(before)
    world.run(world.now + 10.0)
    assert clock.now == pytest.approx(before + 5.0)
    assert clock.true(before) == pytest.approx(world.now - 10.0)
    again = clock.rebooted()
    assert again.now == pytest.approx(10.0)
    assert again.wall == pytest.approx(clock.wall)


def test_what_is_assumed_is_within_the_margin() -> None:
    """The arithmetic of `clock`: the assumption leaves something for threads and sockets."""
    assert ASSUMED_RATE < GUARD_BEARS < 0.0126


def _guard_alone(cluster: Cluster, leader: Member) -> None:
    """Its agent hangs where ZooKeeper does not hear it: the guard is what is left to fence it."""
    assert leader.agent is not None
    cluster.cut_zookeeper(leader.name)
    leader.agent.process.stop()
    cluster.until("another serves", another_serves(cluster, leader), 20.0)
    cluster.run(3.0)


def _begin_anew(begin: Begin, seed: int, rate: float) -> tuple[Cluster, Member]:
    """The leader has such a clock, and a new session: its creation is all that is proved, which is the tightest."""
    cluster = begin(seed)
    leader, _, _ = roles(cluster)
    leader.kill_agent()
    leader.site.clock.set_rate(rate)
    cluster.run(0.05)
    leader.start()
    cluster.until("it serves again", lambda: cluster.serving() is leader, 5.0)
    return cluster, leader


@pytest.mark.parametrize("seed", range(12))
def test_a_clock_that_is_slow_within_the_assumption_is_fenced_in_time(begin: Begin, seed: int) -> None:
    """One percent slow, the agent hung, cut off: never two that accept writes, and nobody is excused."""
    cluster, leader = _begin_anew(begin, seed, 1.0 - ASSUMED_RATE)
    _guard_alone(cluster, leader)
    assert not cluster.checker.residue
    assert cluster.checker.guard_fences == 2, "by the death of the agent's first life, and at the end of the lease"


def test_a_clock_that_is_slower_than_assumed_breaks_the_lease_and_no_confirmed_write(begin: Begin) -> None:
    """Twenty percent slow: in some runs the session ends before the writes do. What WAIT confirmed survives: it needs
    no clock.
    """
    rules = []
    for seed in range(12):
        cluster, leader = _begin_anew(begin, seed, 0.8)
        try:
            _guard_alone(cluster, leader)
        except Violation as violation:
            rules.append(violation.rule)
    assert rules
    assert set(rules) == {"gives way"}


@pytest.mark.parametrize("seed", range(6))
def test_with_followers_attached_even_half_the_rate_is_borne(begin: Begin, seed: int) -> None:
    """A lease that heartbeats prove has more room, and behind it the old primary lacks replicas: they have frozen."""
    cluster = begin(seed)
    cluster.checker.one_writer.trusts_clocks = False
    leader, _, _ = roles(cluster)
    leader.site.clock.set_rate(0.5)
    cluster.run(cluster.world.uniform(5.0, 8.0))
    _guard_alone(cluster, leader)


@pytest.mark.parametrize("seed", range(6))
def test_nobody_compares_clocks_of_hosts(begin: Begin, seed: int) -> None:
    """Boots that lie days apart: a failover takes no longer, and a host that boots again has a clock that is reset."""
    cluster = begin(seed)
    leader, one, other = roles(cluster)
    offsets = {member.site.clock.offset_s for member in (leader, one, other)}
    assert max(offsets) - min(offsets) > 1000.0
    confirmed = App(cluster, leader).confirm()
    leader.crash()
    assert leader.site.clock.now < 60.0
    cluster.until("another serves", another_serves(cluster, leader), 9.0)
    leader.start()
    cluster.until("all are in sync", cluster.in_sync, 20.0)
    assert all(confirmed in server(member).data for member in (leader, one, other))


@pytest.mark.parametrize("by_s", [-7200.0, -1.0, 1.0, 7200.0])
def test_a_wall_clock_that_jumps_changes_no_role(begin: Begin, by_s: float) -> None:
    """Leases, sessions and timeouts go by CLOCK_BOOTTIME: the same leader serves on, in the same epoch."""
    cluster = begin()
    leader, _, _ = roles(cluster)
    for member in cluster.members.values():
        member.site.clock.wall_offset_s += by_s
        server(member).clock_set()
    cluster.run(10.0)
    assert cluster.serving() is leader
    assert epoch(cluster) == 1
    cluster.until("all are well", cluster.settled, 15.0)


@pytest.mark.parametrize("seed", range(6))
def test_a_pause_that_ends_early_by_the_wall_clock_loses_nothing(begin: Begin, seed: int) -> None:
    """# case E7: the clock jumps by an hour in the middle of a handover, and the pause with it: writes go on or are
    refused, and the successor has all that was executed (the checker's rule "handover").
    """
    cluster = begin(seed)
    cluster.run(cluster.base.reread_s + 0.5)
    leader, _, _ = roles(cluster)
    redis = server(leader)
    app = App(cluster, leader)
    cluster.order_switchover()
    cluster.until("its writes are paused", lambda: redis.paused, 2.0)
    written = app.send()
    leader.site.clock.wall_offset_s += 3600.0
    redis.clock_set()
    assert not redis.paused
    cluster.until("another serves", another_serves(cluster, leader), 5.0)
    cluster.until("all are in sync", cluster.in_sync, 20.0)
    executed = written in cluster.checker.writes
    assert executed == all(written in server(member).data for member in cluster.members.values())
