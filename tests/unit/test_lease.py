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
    lease.acknowledged(5.0, 5.1)
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


QUICK_S = 0.003


def acknowledge(lease: Lease, *stamps: float) -> None:
    """Heartbeats that were sent then, and each one answered at once."""
    for sent_at in stamps:
        lease.acknowledged(sent_at, sent_at + QUICK_S)


def test_a_heartbeat_alone_does_not_extend_the_lease(lease: Lease) -> None:
    """Acknowledged heartbeats push nothing out while the leader may not have asked for touched sessions since."""
    acknowledge(lease, 100.5, 101.0, 101.5)
    assert lease.until == 105.75


def test_the_third_of_three_heartbeats_proves_the_first(lease: Lease) -> None:
    """The second was sent more than half a tick after the answer to the first, the third after the second's."""
    acknowledge(lease, 100.5, 101.0, 101.5, 102.0)
    assert lease.until == 105.75
    acknowledge(lease, 102.5)
    assert lease.until == 106.25
    acknowledge(lease, 103.0)
    assert lease.until == 106.75


def test_two_heartbeats_do_not_prove_one_of_them_however_far_apart_they_are(lease: Lease) -> None:
    """The reply with the touched session may have been lost behind the second one's answer."""
    acknowledge(lease, 100.5, 104.0)
    assert lease.until == 105.75
    acknowledge(lease, 104.5)
    assert lease.until == 106.25


def test_a_heartbeat_counts_from_its_answer_on(lease: Lease) -> None:
    """One that was long on its way got to its server behind the question: a tick between the sendings proves nothing.

    Its sending is what the lease is counted from all the same, once it is proved.
    """
    lease.acknowledged(100.5, 102.4)
    acknowledge(lease, 102.4, 102.9, 103.4)
    assert lease.until == 105.75
    acknowledge(lease, 103.9)
    assert lease.until == 105.75
    acknowledge(lease, 104.4)
    assert lease.until == 108.15


def test_heartbeats_that_overlap_prove_nothing_for_each_other(lease: Lease) -> None:
    """The third must have been sent after the second was answered."""
    lease.acknowledged(100.5, 100.6)
    lease.acknowledged(102.0, 104.0)
    lease.acknowledged(103.9, 104.1)
    assert lease.until == 105.75
    lease.acknowledged(104.1, 104.2)
    assert lease.until == 106.25


def test_stamps_from_before_the_session_are_ignored(lease: Lease) -> None:
    """An acknowledgement that belongs to an older session proves nothing about this one."""
    acknowledge(lease, 99.0, 101.5, 102.0)
    assert lease.until == 105.75


def test_closing_ends_the_lease_at_once(lease: Lease) -> None:
    """After the session nothing is proved, whatever is acknowledged late."""
    acknowledge(lease, 100.5, 102.0, 103.0)
    lease.closed()
    acknowledge(lease, 104.0)
    assert lease.until == -inf


def test_a_new_session_starts_afresh(lease: Lease) -> None:
    """Nothing of the old session is carried over to the next one."""
    acknowledge(lease, 101.0, 103.0, 104.0)
    lease.opened(timeout_s=4.0, sent_at=104.5)
    assert lease.until == 108.25
    acknowledge(lease, 105.0)
    assert lease.until == 108.25


@pytest.mark.parametrize(("tick_s", "budget_s"), [(-1.0, 0.0), (1.0, -0.1), (float("nan"), 0.0)])
def test_nonsense_is_refused(tick_s: float, budget_s: float) -> None:
    """Negative times would lengthen the lease."""
    with pytest.raises(ValueError, match="must not be negative"):
        Lease(tick_s=tick_s, fence_budget_s=budget_s)


STEPS = st.lists(
    st.tuples(st.floats(min_value=0.0, max_value=3.0), st.floats(min_value=0.0, max_value=3.0)), max_size=60
)


@given(STEPS, st.sampled_from([0.0, 0.1, 2.0]))
def test_it_follows_the_formula_and_never_exceeds_it(steps: list[tuple[float, float]], tick_s: float) -> None:
    """One heartbeat after the other: never later than the formula, little earlier, and never back.

    ``steps``: how long each waited behind the answer before it, and for its own.
    """
    lease = Lease(tick_s=tick_s, fence_budget_s=BUDGET_S)
    lease.opened(timeout_s=TIMEOUT_S, sent_at=0.0)
    beats: list[tuple[float, float]] = []
    before, now = lease.until, 0.0
    for wait_s, answer_s in steps:
        sent_at = now + wait_s
        now = sent_at + answer_s
        lease.acknowledged(sent_at, now)
        seconds = [sent for sent, answered in beats if answered <= sent_at]
        proved = [sent for sent, answered in beats if answered + tick_s * 5 / 8 <= max(seconds, default=-inf)]
        beats.append((sent_at, now))
        exact = max(proved, default=0.0) + (TIMEOUT_S - BUDGET_S)
        assert lease.until <= exact + 1e-9
        assert lease.until >= before
        if min(wait for wait, _ in steps) >= tick_s / 16:
            assert lease.until >= exact - 1e-9  # none was too near to another one to be kept
        before = lease.until


@given(st.lists(st.floats(min_value=0.0, max_value=10.0), min_size=100, max_size=400))
def test_it_remembers_few_stamps(stamps: list[float]) -> None:
    """However many heartbeats there are, and in whatever order, what is kept is bounded."""
    lease = Lease(tick_s=TICK_S, fence_budget_s=BUDGET_S)
    lease.opened(timeout_s=TIMEOUT_S, sent_at=0.0)
    for sent_at in stamps:
        lease.acknowledged(sent_at, sent_at)
        assert len(lease._answered) <= 64
