"""The guard's contract (guard.py): what the agent counts on, of the real guard and of the simulated one."""

from __future__ import annotations

import pytest

from tests.contract.guard_driver import GuardDriver

LEASE_S = 0.4
SOON_S = 0.5
"""Longer than any guard needs; a real one may have to wait for a processor."""


def test_a_missed_deadline_fences_and_ends_the_agent(guard: GuardDriver) -> None:
    """Not before it; Redis and what it holds live on, and then the guard is disarmed.

    # case C2
    """
    guard.lead(LEASE_S)
    guard.stop_agent()
    assert guard.writable()
    assert guard.agent_alive()
    assert guard.within(LEASE_S + SOON_S, lambda: not guard.writable())
    assert guard.within(SOON_S, lambda: not guard.agent_alive())
    guard.run(2 * LEASE_S)
    assert guard.redis_alive()


def test_a_later_deadline_replaces_an_earlier_one(guard: GuardDriver) -> None:
    """Renewed in time it never fences, and disarmed at last it never does either."""
    guard.lead(LEASE_S)
    for _ in range(5):
        guard.run(LEASE_S / 2)
        guard.renew(LEASE_S)
    assert guard.writable()
    guard.disarm()
    guard.run(2 * LEASE_S)
    assert guard.agent_alive()
    assert guard.redis_alive()


def test_what_the_agent_has_sent_comes_before_a_deadline(guard: GuardDriver) -> None:
    """A guard that was stopped past its deadline finds the renewal that came in time, and goes on."""
    guard.lead(LEASE_S)
    guard.stop_guard()
    guard.renew(60.0)
    guard.run(2 * LEASE_S)
    guard.continue_guard()
    guard.run(LEASE_S)
    assert guard.writable()
    assert guard.agent_alive()


def test_a_stopped_guard_acts_once_it_goes_on(guard: GuardDriver) -> None:
    """Until then Redis takes writes past the deadline: it is the agent's part to fence before.

    # case C6
    """
    guard.lead(LEASE_S)
    guard.stop_guard()
    guard.run(2 * LEASE_S)
    assert guard.writable()
    guard.continue_guard()
    assert guard.within(SOON_S, lambda: not guard.writable())
    assert guard.redis_alive()


def test_an_agent_that_dies_while_armed_leaves_a_fenced_redis(guard: GuardDriver) -> None:
    """At once, not at the deadline; Redis lives on, and the next life of the agent finds it.

    # case C3
    """
    guard.lead(60.0)
    assert guard.writable()
    guard.die()
    assert guard.within(SOON_S, lambda: not guard.writable())
    assert guard.redis_alive()
    assert guard.attached()


def test_an_agent_that_dies_while_not_armed_changes_nothing(guard: GuardDriver) -> None:
    """Redis runs on, and the next life of the agent finds the same process.

    # case C3
    """
    guard.die()
    guard.run(2 * LEASE_S)
    assert guard.redis_alive()
    assert guard.attached()
    assert guard.redis_alive()


def test_after_a_disarming_a_death_changes_nothing(guard: GuardDriver) -> None:
    """As if it had never been armed."""
    guard.lead(60.0)
    guard.disarm()
    before = guard.writable()
    guard.die()
    guard.run(LEASE_S)
    assert guard.writable() == before
    assert guard.attached()


@pytest.mark.parametrize("by", ["deadline", "death"])
def test_a_redis_that_does_not_answer_the_fence_is_killed(guard: GuardDriver, by: str) -> None:
    """At the deadline, or when the agent dies.

    # case C2
    """
    guard.lead(LEASE_S if by == "deadline" else 60.0)
    guard.stop_redis()
    if by == "death":
        guard.die()
    else:
        guard.stop_agent()
    assert guard.within(LEASE_S + SOON_S, lambda: not guard.redis_alive())


def test_its_death_is_that_of_redis(guard: GuardDriver) -> None:
    """Also of one that leads: nobody would be left to fence it. The agent learns of it.

    # case C8
    """
    guard.lead(60.0)
    guard.kill_guard()
    assert guard.within(SOON_S, lambda: not guard.redis_alive())
    assert guard.within(SOON_S, guard.told_of_death)
    assert guard.agent_alive()
