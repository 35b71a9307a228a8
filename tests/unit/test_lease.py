"""The arithmetic of the lease: what an acknowledged heartbeat proves, and what it does not."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redis_agent.lease import Lease

TICK_S, BUDGET_S, TIMEOUT_S = 2.0, 0.25, 6.0


@pytest.fixture
def lease() -> Lease:
    """A lease with the default settings and a session whose creation was sent at 100."""
    lease = Lease(tick_s=TICK_S, fence_budget_s=BUDGET_S)
    lease.opened(timeout_s=TIMEOUT_S, sent_at=100.0)
    return lease


def test_without_a_session_nothing_is_proved() -> None:
    """A lease that was never opened is not valid at any time, and acknowledgements do not open it."""
    lease = Lease(tick_s=TICK_S, fence_budget_s=BUDGET_S)
    lease.acknowledged(5.0)
    assert lease.until == -inf
    assert not lease.valid(-1e12)


def test_the_creation_of_the_session_is_the_first_proof(lease: Lease) -> None:
    """A new session is good for the negotiated timeout less the fence budget, from when its creation was sent."""
    assert lease.until == 105.75
    assert lease.valid(105.74)
    assert not lease.valid(105.75)


# case A1
def test_the_negotiated_timeout_counts() -> None:
    """Deadlines follow the timeout that ZooKeeper granted."""
    lease = Lease(tick_s=TICK_S, fence_budget_s=BUDGET_S)
    lease.opened(timeout_s=4.0, sent_at=0.0)
    assert lease.until == 3.75


def test_a_heartbeat_alone_does_not_extend_the_lease(lease: Lease) -> None:
    """Acknowledged heartbeats within one tick of the first proof push nothing out: they may not have been relayed."""
    for sent_at in (100.5, 101.0, 101.5, 102.0):
        lease.acknowledged(sent_at)
    assert lease.until == 105.75


def test_a_heartbeat_counts_once_another_was_sent_a_tick_later(lease: Lease) -> None:
    """What was sent a whole tick before the newest acknowledged heartbeat is proved to have been relayed."""
    for sent_at in (100.5, 101.0, 102.5):
        lease.acknowledged(sent_at)
    assert lease.until == 106.25
    lease.acknowledged(103.0)
    assert lease.until == 106.75


def test_stamps_may_arrive_in_any_order(lease: Lease) -> None:
    """A late acknowledgement of an older heartbeat still counts, and never shortens the lease."""
    lease.acknowledged(103.0)
    assert lease.until == 105.75
    lease.acknowledged(101.0)
    assert lease.until == 106.75
    lease.acknowledged(100.5)
    assert lease.until == 106.75


def test_stamps_from_before_the_session_are_ignored(lease: Lease) -> None:
    """An acknowledgement that belongs to an older session proves nothing about this one."""
    lease.acknowledged(99.0)
    assert lease.until == 105.75


def test_closing_ends_the_lease_at_once(lease: Lease) -> None:
    """After the session nothing is proved, whatever is acknowledged late."""
    lease.acknowledged(103.0)
    lease.closed()
    lease.acknowledged(104.0)
    assert lease.until == -inf


def test_a_new_session_starts_afresh(lease: Lease) -> None:
    """Nothing of the old session is carried over to the next one."""
    lease.acknowledged(101.0)
    lease.acknowledged(104.0)
    lease.opened(timeout_s=4.0, sent_at=104.5)
    assert lease.until == 108.25
    lease.acknowledged(105.0)
    assert lease.until == 108.25


@pytest.mark.parametrize(("tick_s", "budget_s"), [(-1.0, 0.0), (1.0, -0.1), (float("nan"), 0.0)])
def test_nonsense_is_refused(tick_s: float, budget_s: float) -> None:
    """Negative times would lengthen the lease."""
    with pytest.raises(ValueError, match="must not be negative"):
        Lease(tick_s=tick_s, fence_budget_s=budget_s)


@given(st.lists(st.floats(min_value=0.0, max_value=60.0), max_size=300), st.sampled_from([0.0, 0.1, 2.0]))
def test_it_follows_the_formula_and_never_exceeds_it(stamps: list[float], tick_s: float) -> None:
    """In any order of stamps: never later than the formula, at most a sixteenth of a tick earlier, never back."""
    lease = Lease(tick_s=tick_s, fence_budget_s=BUDGET_S)
    lease.opened(timeout_s=TIMEOUT_S, sent_at=0.0)
    acknowledged: list[float] = []
    before = lease.until
    for sent_at in stamps:
        lease.acknowledged(sent_at)
        acknowledged.append(sent_at)
        proved = [stamp for stamp in acknowledged if stamp <= max(acknowledged) - tick_s]
        exact = max(proved, default=0.0) + (TIMEOUT_S - BUDGET_S)
        assert exact - tick_s / 16 - 1e-9 <= lease.until <= exact
        assert lease.until >= before
        before = lease.until


@given(st.lists(st.floats(min_value=0.0, max_value=10.0), min_size=100, max_size=400))
def test_it_remembers_few_stamps(stamps: list[float]) -> None:
    """However many heartbeats there are, what is kept is bounded."""
    lease = Lease(tick_s=TICK_S, fence_budget_s=BUDGET_S)
    lease.opened(timeout_s=TIMEOUT_S, sent_at=0.0)
    for sent_at in stamps:
        lease.acknowledged(sent_at)
        assert len(lease._later) <= 17
