"""The core as a claimant and as a leader: lease, fence, heartbeats, lost replies."""

from __future__ import annotations

from dataclasses import replace

import pytest

from redis_agent import machine
from redis_agent.messages import (
    Check,
    Commit,
    Create,
    Delete,
    Fence,
    Freeze,
    LiftFence,
    OpenSession,
    Probe,
    Probed,
    Promote,
    Put,
    Read,
    RedisDied,
    SaveState,
    SessionExpired,
    ZkError,
)
from redis_agent.znodes import LeaderPhase, decode_ballot, decode_leader, decode_ledger
from tests.support.core import (
    PATHS,
    Driver,
    ballot,
    candidate,
    claimant,
    follower,
    leader,
    replid,
    serving,
)


def checked_version(commit: Commit) -> int | None:
    """The version of the ledger on which a transaction insists."""
    versions = [op.version for op in commit.ops if isinstance(op, Check | Put) and op.path == PATHS.epoch]
    return versions[0] if versions else None


# --- claim, promote, serve ------------------------------------------------------------------------------------------


def test_the_order_is_claim_promote_serve_lift() -> None:
    """Each step is ordered only when the one before it has been answered. Case B1."""
    driver = claimant()
    steps: list[str] = []
    order: list[tuple[type[Commit | Promote | LiftFence], str]]
    order = [(Commit, "claim"), (Promote, ""), (Commit, "serve"), (LiftFence, "")]
    for kind, label in order:
        driver.settle(lambda command: isinstance(command, Promote | LiftFence | Commit))
        for later in (Promote, LiftFence):
            assert not driver.find(later) or kind is later
        steps.append(driver.state)
        driver.answer(driver.take(kind, label))
    assert steps == [machine.CLAIMING, machine.TAKING_OVER, machine.TAKING_OVER, machine.SERVING]
    assert driver.core.redis.lifted


def test_the_claim_is_conditional_and_carries_the_start() -> None:
    """It insists on the versions of ledger and config, names the claimant's position, and creates `leader`."""
    driver = claimant()
    commit = driver.take(Commit, "claim")
    check, put, create = commit.ops
    assert isinstance(check, Check)
    assert (check.path, check.version) == (PATHS.config, driver.tree[PATHS.config].version)
    assert isinstance(put, Put)
    assert put.version == driver.tree[PATHS.epoch].version
    claimed = decode_ledger(put.data)
    entry = claimed.entry(3)
    assert entry is not None
    assert (claimed.epoch, entry.member, entry.start.epoch, entry.start.offset_bytes) == (3, "m1", 2, 200)
    assert isinstance(create, Create)
    assert create.ephemeral
    assert decode_leader(create.data).phase == LeaderPhase.TAKING_OVER
    assert commit.not_after is not None
    assert commit.not_after < driver.core.lease.until


def test_promotion_is_bound_to_the_process_and_to_the_lease() -> None:
    """The very process that voted, and not after the lease."""
    driver = claimant()
    driver.settle_but(Promote)
    promote = driver.take(Promote)
    assert (promote.run_id, promote.not_after) == ("run-1", driver.core.lease.until)


def test_a_claim_needs_some_lease() -> None:
    """With less than the minimum left nobody claims; a heartbeat makes it possible again."""
    driver = candidate()
    driver.settle()
    driver.wait(driver.core.lease.until - driver.now - 0.4)
    driver.pending.clear()
    driver.put(PATHS.ballot(3, "m3"), ballot("m3", 3, 190))
    driver.fire_watches()
    for read in driver.find(Read):
        driver.answer(read)
    assert driver.state == machine.VOTING
    assert not driver.find(Commit, "claim")


def test_nobody_claims_before_the_guid_is_on_disk() -> None:
    """Without it our next life could not take our `leader` back."""
    driver = candidate()
    driver.core.session.guid_saved = False
    driver.put(PATHS.ballot(3, "m3"), ballot("m3", 3, 190))
    driver.read_again()
    assert driver.state == machine.VOTING
    assert not driver.find(Commit, "claim")


def test_a_claim_whose_reply_was_lost_but_which_was_committed() -> None:
    """It is looked up, found by our guid, and carried on with; nothing is promoted before that."""
    driver = claimant()
    claim = driver.take(Commit, "claim")
    driver.commit(claim)
    driver.lose(claim)
    assert driver.state == machine.CLAIMING
    assert not driver.find(Promote)
    driver.answer(driver.take(Read))
    assert driver.state == machine.TAKING_OVER
    assert driver.transitions()[-1] == "leader_is_ours"
    driver.settle()
    assert driver.state == machine.SERVING


def test_a_claim_whose_reply_was_lost_and_which_was_not_committed() -> None:
    """It is looked up, and the vote goes on: the claim is made again."""
    driver = claimant()
    driver.lose(driver.take(Commit, "claim"))
    driver.answer(driver.take(Read))
    assert "claim_lost" in driver.transitions()
    driver.settle()
    assert driver.state == machine.SERVING
    assert driver.core.epoch == 3


def test_a_claim_that_is_committed_after_it_was_given_up() -> None:
    """Our own `leader` turns up while we vote again: we freeze, vote and resign rather than serve on old evidence."""
    driver = claimant()
    claim = driver.take(Commit, "claim")
    driver.lose(claim)
    driver.settle_but("claim")
    driver.commit(claim)
    driver.settle()
    assert driver.transitions()[-4:] == ["elected", "claim_lost", "leader_is_ours", "frozen"]
    assert not driver.core.redis.lifted
    assert driver.the_leader() is None, "the ballot of round 4 took it away"
    assert PATHS.ballot(4, "m1") in driver.tree


def test_a_refused_claim_goes_back_to_voting() -> None:
    """Somebody was faster, or the voters changed: what the verdict rested on is read again first."""
    driver = claimant()
    driver.refuse(driver.take(Commit, "claim"), ZkError.BAD_VERSION)
    assert driver.state == machine.VOTING
    assert not driver.find(Commit, "claim")
    assert driver.find(Read)


@pytest.mark.parametrize("committed", [True, False])
def test_a_serve_whose_reply_was_lost(committed: bool) -> None:
    """The fence stays until `leader` is seen to say serving; if it never does, the takeover's limit ends it."""
    driver = claimant()
    driver.settle_but("serve")
    serve = driver.take(Commit, "serve")
    if committed:
        driver.commit(serve)
    driver.lose(serve)
    assert not driver.find(LiftFence)
    driver.settle()
    assert driver.state == (machine.SERVING if committed else machine.TAKING_OVER)
    assert driver.core.redis.lifted == committed
    for _ in range(40):
        driver.wait(0.1)
        driver.settle()
    assert ("unfit" in driver.transitions()) != committed


def test_a_refused_serve_is_a_deposition() -> None:
    """The ledger has moved on: fence, and read."""
    driver = claimant()
    driver.settle_but("serve")
    driver.refuse(driver.take(Commit, "serve"), ZkError.BAD_VERSION)
    assert driver.state == machine.CONNECTING
    assert driver.find(Fence)
    assert not driver.find(LiftFence)


def test_a_takeover_that_gets_stuck_is_given_up() -> None:
    """A Redis that does not promote in time: freeze, vote, resign. Case B8."""
    driver = claimant()
    driver.settle_but(Promote)
    driver.fail(driver.take(Promote), unknown=True)
    assert driver.transitions()[-1] == "unfit"
    assert driver.find(Freeze)
    driver.settle_but("ballot")
    resign = driver.take(Commit, "ballot")
    assert [op.path for op in resign.ops if isinstance(op, Delete)] == [PATHS.leader]


def test_resigning_freezes_once_and_votes_once() -> None:
    """While the ballot that takes our `leader` away is on its way, `leader` is still ours: no reason to start again."""
    driver = claimant()
    driver.settle_but(Promote)
    driver.fail(driver.take(Promote), unknown=False)
    driver.answer(driver.take(Freeze))
    assert driver.state == machine.VOTING
    assert len(driver.find(Commit, "ballot")) == 1
    assert driver.find(Freeze) == []
    driver.settle_but("ballot")
    assert len(driver.find(Commit, "ballot")) == 1


@pytest.mark.parametrize("outcome", ["committed", "refused"])
def test_what_was_promoted_is_on_disk(outcome: str) -> None:
    """The replid that a promotion made goes into the state file, whatever became of it. Case B14."""
    driver = claimant()
    driver.settle_but("serve", SaveState)
    serve = driver.take(Commit, "serve")
    if outcome == "committed":
        driver.answer(serve)
    else:
        driver.refuse(serve, ZkError.BAD_VERSION)
    driver.settle_but(SaveState)
    saved = [command.record.promotions for command in driver.find(SaveState)]
    assert ((replid(3), 3),) in saved


# --- lease and fence ------------------------------------------------------------------------------------------------


def test_the_end_of_the_lease_fences_and_then_kills() -> None:
    """Soft fence at the end of the lease; if it is not confirmed in time, SIGKILL. Cases A4, C2."""
    driver = serving()
    until = driver.core.lease.until
    driver.session_down()
    driver.wait(until - driver.now - 0.001)
    assert driver.state == machine.SERVING
    assert not driver.find(Fence)
    driver.wait(0.001)
    assert driver.state == machine.CONNECTING
    assert driver.find(Fence)
    assert not driver.killed
    driver.wait(driver.core.settings.fence_timeout_s)
    assert [kill.reason for kill in driver.killed] == ["the soft fence was not confirmed in time"]


def test_a_confirmed_fence_kills_nobody() -> None:
    """The soft fence keeps data and replicas; that is the point of it."""
    driver = serving()
    driver.session_down()
    driver.wait(driver.core.lease.until - driver.now)
    driver.answer(driver.take(Fence))
    driver.wait(30)
    assert not driver.killed
    assert not driver.core.redis.lifted


def test_a_fence_that_is_overtaken_by_the_lift_is_not_believed() -> None:
    """A drift's fence was ordered before the fence was lifted and is answered after that: Redis may be open all the
    same, so the fence at the end of the lease has its deadline.
    """
    driver = claimant()
    driver.settle_but("serve", Probe)
    driver.wait(1)
    driver.settle_but("serve", Probe)
    probe = driver.take(Probe)
    driver.step(Probed(1, probe.request, driver.now, driver.info, (("repl-backlog-ttl", "60"),)))
    drift = driver.take(Fence)
    driver.answer(driver.take(Commit, "serve"))
    assert driver.state == machine.SERVING
    lift = driver.take(LiftFence)
    driver.answer(drift)
    driver.answer(lift)
    assert driver.core.redis.lifted
    driver.session_down()
    driver.wait(driver.core.lease.until - driver.now + driver.core.settings.fence_timeout_s)
    assert driver.killed


def test_the_deadline_says_when_the_lease_ends() -> None:
    """Whoever calls the core learns in time when it must call again."""
    driver = serving()
    driver.session_down()
    driver.core.timers.clear()
    assert driver.core.next_deadline() == driver.core.lease.until


def test_the_lease_is_looked_at_before_the_event() -> None:
    """An answer that comes after the end of the lease, before the timer ran, finds no leader any more."""
    driver = serving()
    driver.session_down()
    driver.now = driver.core.lease.until + 1
    driver.session_back()
    assert driver.state == machine.CONNECTING
    assert driver.find(Fence)


def test_a_disconnection_is_not_an_expiry() -> None:
    """Less than the lease: same session, no role change, no role command, no new client. Case A2."""
    driver = serving()
    before = len(driver.transitions())
    driver.session_down()
    driver.wait(2)
    driver.session_back()
    driver.settle_but(Probe)
    driver.wait(0.1)
    assert driver.state == machine.SERVING
    assert len(driver.transitions()) == before
    assert driver.core.session.number == 1
    assert not any(isinstance(command, Freeze | Fence | LiftFence) for command in driver.pending)


def test_a_leader_change_during_a_disconnection_is_seen() -> None:
    """The first read after it shows another leader: follow it. Case A2."""
    driver = serving()
    driver.session_down()
    driver.put(PATHS.leader, leader("m3", 4), owner=901)
    driver.session_back()
    driver.settle_but(Probe)
    assert driver.state == machine.FOLLOWER


def test_our_own_leader_is_resumed_only_by_a_read_in_the_same_session() -> None:
    """The lease ended, the session did not: fenced, then read, and only then the fence is lifted again."""
    driver = serving()
    driver.session_down()
    driver.wait(driver.core.lease.until - driver.now)
    driver.answer(driver.take(Fence))
    driver.session_back()
    driver.settle_but(Probe, Read)
    assert driver.state == machine.CONNECTING
    for _ in range(6):
        driver.wait(0.8)
        driver.settle_but(Probe, Read)
    assert driver.core.lease.valid(driver.now)
    assert driver.state == machine.CONNECTING, "not by a heartbeat alone"
    driver.settle_but(Probe)
    assert driver.state == machine.SERVING
    assert driver.core.redis.lifted


def test_a_lease_that_ends_without_a_disconnection_needs_a_read_too() -> None:
    """A slow ZooKeeper: what was read before the lease ended proves nothing once heartbeats are answered again."""
    driver = serving()
    driver.settle_but(Probe)
    driver.wait(driver.core.lease.until - driver.now + 0.001)
    assert driver.state == machine.CONNECTING
    driver.settle_but(Probe, Read)
    for _ in range(6):
        driver.wait(0.7)
        driver.settle_but(Probe, Read)
    assert driver.core.lease.valid(driver.now)
    assert driver.state == machine.CONNECTING
    driver.settle_but(Probe)
    assert driver.state == machine.SERVING


def test_an_expired_session_leads_to_a_fence_and_a_fresh_session() -> None:
    """No znode is written, nothing learnt is kept, and one new client is made. Case A3."""
    driver = serving()
    driver.step(SessionExpired(driver.core.session.number))
    assert driver.state == machine.EXPIRED
    kinds = [type(command).__name__ for command in driver.pending]
    assert kinds.count("OpenSession") == 1
    assert kinds.count("Fence") == 1
    assert driver.core.session.number == 2
    assert driver.core.view.leader is None
    driver.pending = [command for command in driver.pending if not isinstance(command, Fence)]
    driver.wait(0.05)
    assert not driver.find(Commit)


def test_a_session_that_expired_in_the_middle_is_not_resumed() -> None:
    """`leader` of the session before is not ours."""
    driver = serving()
    driver.step(SessionExpired(1))
    for path in [path for path, node in driver.tree.items() if node.ephemeral_owner == 1]:
        driver.remove(path)
    driver.put(PATHS.leader, leader("m1", 3, guid="guid-m1-1"), owner=1)
    driver.session_up()
    driver.settle_but(Probe)
    assert driver.state != machine.SERVING
    assert not driver.core.redis.lifted


def test_a_dead_redis_resigns_at_once() -> None:
    """`leader` goes in the same transaction as the empty ballot; nobody waits for the session. Case B2."""
    driver = serving()
    commands = driver.step(RedisDied(1, -9, "", was_up=True))
    resign = next(command for command in commands if isinstance(command, Commit))
    assert Delete(PATHS.leader) in resign.ops
    cast = [decode_ballot(op.data) for op in resign.ops if isinstance(op, Create)]
    assert [(one.round, one.up) for one in cast] == [(4, False)]
    assert checked_version(resign) == driver.tree[PATHS.epoch].version


def test_a_restarted_redis_never_serves_without_an_election() -> None:
    """Another process than the one that served: unfit, even though `leader` is still ours. Case D5."""
    driver = serving()
    driver.session_down()
    driver.step(RedisDied(1, -9, "", was_up=True))
    driver.wait(0.1)
    driver.redis_up(is_primary=False, keys=5)
    driver.session_back()
    driver.settle_but(Probe, "ballot")
    assert driver.state != machine.SERVING
    assert not driver.core.redis.lifted
    assert not driver.find(LiftFence)


def test_a_changed_replid_under_a_leader_makes_it_unfit() -> None:
    """A serving leader whose replid is not the one in the ledger fences. Case B13."""
    driver = serving()
    driver.wait(1)
    probe = driver.take(Probe)
    other = replace(driver.info, replid="e" * 40)
    driver.step(Probed(probe.incarnation, probe.request, driver.now, other))
    assert driver.transitions()[-1] == "unfit"
    assert driver.find(Freeze)


def test_a_deleted_leader_freezes_before_anybody_claims() -> None:
    """Somebody deleted `leader` by hand: freeze and vote again. Case B16."""
    driver = serving()
    driver.remove(PATHS.leader)
    driver.fire_watches()
    driver.answer(driver.take(Read))
    assert driver.state == machine.FREEZING
    assert driver.find(Freeze)


# --- heartbeats -----------------------------------------------------------------------------------------------------


def test_a_leaders_heartbeat_checks_the_ledger() -> None:
    """A deposed leader's heartbeat fails at once; a follower's has nothing to check."""
    driver = serving()
    driver.wait(0.5)
    heartbeat = driver.take(Commit, "heartbeat")
    assert checked_version(heartbeat) == driver.tree[PATHS.epoch].version
    other = follower()
    other.wait(1)
    assert checked_version(other.take(Commit, "heartbeat")) is None


def test_one_heartbeat_is_in_flight() -> None:
    """The next one is sent when the first is answered, at once if it is overdue by then."""
    driver = serving()
    driver.wait(3)
    heartbeat = driver.take(Commit, "heartbeat")
    commands = driver.answer(heartbeat)
    driver.wait(0)
    assert len(driver.find(Commit, "heartbeat")) == 1, commands


def test_heartbeats_keep_the_lease() -> None:
    """A minute of answered heartbeats, and still the same leader."""
    driver = serving()
    for _ in range(240):
        driver.wait(0.25)
        driver.settle()
    assert driver.state == machine.SERVING
    assert "lease_ended" not in driver.transitions()


def test_a_refused_heartbeat_deposes() -> None:
    """The ledger has moved on: fence at once, whatever the lease says."""
    driver = serving()
    driver.wait(0.5)
    driver.refuse(driver.take(Commit, "heartbeat"), ZkError.BAD_VERSION)
    assert driver.transitions()[-1] == "deposed"
    assert driver.find(Fence)


def test_our_own_serve_does_not_depose_us() -> None:
    """A heartbeat that was sent while `serve` was on its way insists on the version before it: no deposition."""
    driver = claimant()
    driver.settle_but("serve")
    assert driver.state == machine.TAKING_OVER
    driver.wait(0.6)
    driver.settle_but("heartbeat", "serve", Probe)
    serve, *heartbeats = (command for command in driver.pending if isinstance(command, Commit))
    driver.pending.clear()
    for commit in (serve, *heartbeats):
        driver.answer(commit)
    driver.settle()
    assert "deposed" not in driver.transitions()
    assert driver.state == machine.SERVING


def test_ballots_of_earlier_rounds_are_cleared_after_serving() -> None:
    """Those of rounds that are over, in one transaction with a check of the ledger."""
    driver = candidate()
    driver.put(PATHS.ballot(2, "m3"), ballot("m3", 2, 100))
    driver.put(PATHS.ballot(3, "m3"), ballot("m3", 3, 190))
    driver.fire_watches()
    driver.settle_but("clear ballots")
    clear = driver.take(Commit, "clear ballots")
    assert driver.state == machine.SERVING
    assert clear.ops[0].path == PATHS.epoch
    assert {PATHS.ballot(2, "m3")} <= {op.path for op in clear.ops if isinstance(op, Delete)}
    assert checked_version(clear) == driver.tree[PATHS.epoch].version


def test_ballots_are_cleared_in_a_later_session_too() -> None:
    """A clearing whose answer went down with its session does not stop the next one."""
    driver = candidate()
    driver.put(PATHS.ballot(2, "m3"), ballot("m3", 2, 100))
    driver.put(PATHS.ballot(3, "m3"), ballot("m3", 3, 190))
    driver.fire_watches()
    driver.settle_but("clear ballots", Probe)
    driver.take(Commit, "clear ballots")
    driver.step(SessionExpired(1))
    driver.settle_but(OpenSession, Probe)
    for path in [path for path, node in driver.tree.items() if node.ephemeral_owner == 1]:
        driver.remove(path)
    driver.put(PATHS.ballot(4, "m3"), ballot("m3", 4, 190))
    driver.session_up()
    for _ in range(20):
        driver.wait(0.1)
        driver.settle()
    assert driver.state == machine.SERVING
    assert PATHS.ballot(2, "m3") not in driver.tree


def test_the_driver_says_what_is_pending() -> None:
    """The helper itself: taking what is not there is a failure that shows what is."""
    with pytest.raises(AssertionError, match="0 times Promote"):
        Driver().take(Promote)


# --- what hands may do to znodes ------------------------------------------------------------------------------------


def test_a_ballot_that_somebody_removed_is_cast_again() -> None:
    """It is as true as it was; without it nobody could ever be elected."""
    driver = candidate()
    own = PATHS.ballot(3, "m1")
    driver.settle()
    driver.remove(own)
    driver.fire_watches()
    driver.settle()
    assert own in driver.tree
