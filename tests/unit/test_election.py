"""Who may claim, who goes first, and what is said when nobody can."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redis_agent.election import (
    Ballot,
    Mode,
    Outcome,
    Rules,
    Verdict,
    all_promotions,
    claimed,
    decide,
    position,
    quorum,
)
from redis_agent.replication import Ledger, LedgerEntry, Position

GRACE_S, STAGGER_S = 0.25, 0.1
STARTED_AT = 1000.0
LATE = STARTED_AT + 3600.0


def rules(voters: str = "abc", mode: Mode = Mode.QUORUM, **more: Any) -> Rules:
    settings: dict[str, Any] = {"mode": mode, "grace_s": GRACE_S, "stagger_s": STAGGER_S, "max_lag_bytes": 100}
    return Rules(voters=frozenset(voters), **(settings | more))


def led(*starts: tuple[int, int], served: bool = True) -> Ledger:
    """A ledger: for each epoch from 1 on, its parent and start. Its replid is ``r<epoch>``."""
    return Ledger(
        epoch=len(starts),
        entries=tuple(
            LedgerEntry(
                epoch=epoch, member="a", guid="g", start=Position(*start), replid=f"r{epoch}" * served, served=served
            )
            for epoch, start in enumerate(starts, 1)
        ),
    )


LEDGER = led((0, 10), (1, 100), (2, 200))
"""Three epochs have served; the round is 4."""


def ballot(member: str, offset: int = 300, replid: str = "r3", **more: Any) -> Ballot:
    """An intact ballot with data, for round 4."""
    fields: dict[str, Any] = {"round": 4, "guid": f"guid-{member}", "up": True, "intact": True, "keys": 5}
    return Ballot(member=member, replid=replid, offset_bytes=offset, **(fields | more))


def dead(member: str, round_: int = 4) -> Ballot:
    return Ballot(member=member, round=round_, guid="g", up=False)


def empty(member: str, **more: Any) -> Ballot:
    """An empty Redis that was restarted."""
    return ballot(member, 0, "fresh-" + member, **({"keys": 0, "intact": False} | more))


def ask(me: str, *ballots: Ballot, **more: Any) -> Verdict:
    """Decide for ``me``, long after every delay, everybody live, unless said otherwise."""
    arguments: dict[str, Any] = {
        "ballots": {one.member: one for one in ballots},
        "ledger": LEDGER,
        "rules": rules(),
        "live": None,
        "standing_owner": "",
        "last_offset_bytes": None,
        "started_at": STARTED_AT,
        "now": LATE,
    } | more
    if arguments["live"] is None:
        arguments["live"] = arguments["rules"].voters
    return decide(me=me, round_=arguments["ledger"].epoch + 1, **arguments)


def leaders(*ballots: Ballot, **more: Any) -> set[str]:
    """Who may claim, when all delays are over."""
    return {one.member for one in ballots if ask(one.member, *ballots, **more).outcome is Outcome.CLAIM}


# --- quorum ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("voters", "w", "needed"), [(1, 0, 1), (2, 1, 1), (3, 1, 2), (4, 2, 2), (5, 2, 3), (7, 3, 4)])
def test_quorums(voters: int, w: int, needed: int) -> None:
    """The usual sizes."""
    assert quorum(voters) == (w, needed)


@given(st.integers(1, 1000))
def test_holders_and_ballots_always_share_a_member(voters: int) -> None:
    """w + 1 holders of a confirmed write and R ballots cannot miss each other."""
    w, needed = quorum(voters)
    assert (w + 1) + needed > voters


# case B3
def test_the_furthest_wins() -> None:
    """The position decides, before priority and name."""
    ballots = ballot("a", 300), ballot("b", 310, priority=1), ballot("c", 305, priority=999)
    assert ask("b", *ballots, now=STARTED_AT).outcome is Outcome.CLAIM
    assert leaders(*ballots) == {"b", "c"}
    assert ask("b", *ballots).ranking == ("b", "c")


# case B3
def test_equal_positions_are_ranked_by_priority_then_name() -> None:
    """Everybody ranks alike."""
    ballots = ballot("a", priority=5), ballot("b", priority=7), ballot("c", priority=5)
    for me in "abc":
        assert ask(me, *ballots).ranking == ("b", "a", "c")


# case B3
def test_who_abstains_never_leads() -> None:
    """Its data are evidence all the same: who is behind it needs R others."""
    assert leaders(ballot("a", 400, abstains=True), ballot("b"), ballot("c")) == {"b", "c"}
    ballots = ballot("a", 400, abstains=True), ballot("b"), dead("c")
    assert leaders(*ballots) == set()
    assert ask("b", *ballots).reason == "enough voters show intact data (a, b), but the furthest of them abstains"


# case B4
def test_a_diverged_old_leader_never_wins() -> None:
    """Its offset is the largest by far, but it is one of an older epoch."""
    ballots = ballot("a", 10**9, "r2"), ballot("b", 300), ballot("c", 290)
    assert ask("a", *ballots).outcome is Outcome.WAIT
    assert "a" not in ask("b", *ballots).ranking


# case B5
def test_a_better_ballot_is_not_outwaited() -> None:
    """One of two intact ballots is ahead, the third voter is dead: only the better one may ever claim."""
    ballots = ballot("a", 310), ballot("b", 300), dead("c")
    assert leaders(*ballots) == {"a"}
    assert ask("b", *ballots).reason == "a may claim, this member may not"


# case B5
def test_without_enough_intact_ballots_nobody_leads_and_the_reason_is_said() -> None:
    """One sentence says how many are needed, who counts, and who does not, and why."""
    verdict = ask("a", ballot("a"), ballot("b", intact=False), live=frozenset("ab"))
    assert verdict.outcome is Outcome.BLOCKED
    assert verdict.reason == "2 of 3 voters must show intact data, 1 did (a); not intact: b; no ballot: c"
    verdict = ask("a", ballot("a", intact=False), dead("b"), dead("c"))
    assert verdict.outcome is Outcome.BLOCKED
    assert verdict.reason == "2 of 3 voters must show intact data, 0 did; not intact: a; Redis down: b, c"


# case B6
def test_a_restarted_member_does_not_count() -> None:
    """It shows data of the right lineage, but may have lost its end: neither does it count for others."""
    assert leaders(ballot("a"), ballot("b", 290, intact=False), dead("c")) == set()
    assert leaders(ballot("a"), ballot("b", 290, intact=False), ballot("c", 280)) == {"a"}


# case B6
def test_a_restarted_member_may_lead_if_others_prove_that_it_lacks_nothing() -> None:
    """Two intact ballots that are not ahead of it suffice; one does not."""
    assert leaders(ballot("a", intact=False), ballot("b", 290), ballot("c", 300)) == {"a", "c"}
    assert leaders(ballot("a", intact=False), ballot("b", 290), dead("c")) == set()


# case B10
def test_when_all_voters_testify_the_best_leads() -> None:
    """Everybody was restarted: nobody is intact, but nobody can have more than the best."""
    ballots = [ballot(name, offset, intact=False) for name, offset in (("a", 250), ("b", 300), ("c", 299))]
    assert leaders(*ballots) == {"b"}
    assert leaders(*ballots[:2], dead("c")) == set()
    assert leaders(*ballots[:2]) == set()


# case B7
@pytest.mark.parametrize(("voters", "survivors"), [("a", 1), ("ab", 1), ("abc", 2), ("abcd", 2), ("abcde", 3)])
def test_how_many_survivors_suffice(voters: str, survivors: int) -> None:
    """2 members survive the loss of one, 3 of one, 5 of two; one fewer does not do."""
    for alive in range(1, len(voters) + 1):
        ballots = [ballot(name) for name in voters[:alive]]
        found = leaders(*ballots, rules=rules(voters), live=frozenset(voters[:alive]))
        assert found == (set(voters[:alive]) if alive >= survivors else set())


# case D5
def test_an_empty_redis_never_leads_while_data_lives() -> None:
    """Whatever replid, offset and state file it shows, and whatever its priority."""
    pretender = ballot("a", 10**6, "r3", keys=0, intact=False, priority=999, recorded=Position(3, 10**6))
    assert position(pretender, LEDGER, {}) is None
    assert leaders(pretender, ballot("b"), ballot("c")) == {"b", "c"}
    assert leaders(pretender, ballot("b", intact=False), ballot("c", intact=False)) == {"b", "c"}
    assert leaders(pretender, ballot("b"), dead("c")) == set()
    assert "a" not in leaders(pretender, ballot("b"), dead("c"), rules=rules(mode=Mode.ASYNC))


def test_a_data_set_that_was_emptied_keeps_its_position() -> None:
    """No keys, but a process that was not interrupted since it was in sync: somebody deleted them all."""
    drained = ballot("a", 310, keys=0)
    assert position(drained, LEDGER, {}) == Position(3, 310)
    assert leaders(drained, ballot("b", 300), dead("c")) == {"a"}


def test_a_cluster_that_lost_everything_starts_again() -> None:
    """Every voter is up and empty: somebody may lead, in an epoch that descends from none before it."""
    ballots = replace(empty("a"), offset_bytes=70), empty("b"), empty("c")
    assert leaders(*ballots) == {"a", "b", "c"}
    assert ask("a", *ballots).start == Position(0, 70)
    assert leaders(*ballots[:2], dead("c")) == set()


def test_the_last_copy_on_a_non_voter_is_not_wiped() -> None:
    """If all voters are empty, but somebody who may not lead has data, an operator must decide."""
    ballots = empty("a"), empty("b"), empty("c"), ballot("d", intact=False)
    assert leaders(*ballots) == set()
    reason = "every voter is empty, but the data set of d is not: make it a voter, or remove it"
    assert ask("a", *ballots).reason.endswith(reason)


def test_an_unknown_lineage_blocks_the_election_of_the_best() -> None:
    """Somebody's data belong to no known epoch: whether they are ahead cannot be said, so it is said instead."""
    ballots = ballot("a", 300, intact=False), ballot("b", 5, "x", intact=False), empty("c")
    verdict = ask("a", *ballots)
    assert verdict.outcome is Outcome.BLOCKED
    assert "the data set of b is of unknown lineage" in verdict.reason
    # The quorum's evidence is worth more: two intact members do not need to know what b has.
    assert leaders(ballot("a"), ballots[1], ballot("c")) == {"a", "c"}


def test_an_intact_ballot_without_a_position_does_not_count() -> None:
    """Intact memory of an unknown history is evidence of nothing."""
    assert leaders(ballot("a"), ballot("b", 300, "x"), dead("c")) == set()


# --- what a state file is worth -------------------------------------------------------------------------------------


# case H4
def test_after_aof_restarts_the_state_files_decide() -> None:
    """Every replid is new, and says nothing; each member's own record orders them, and tells where the epoch starts."""
    ballots = [
        ballot(name, 0, f"new-{name}", intact=False, recorded=Position(3, offset))
        for name, offset in (("a", 250), ("b", 310), ("c", 300))
    ]
    assert leaders(*ballots) == {"b"}
    verdict = ask("b", *ballots)
    # Redis counts from 0 again: a start of 310 would put the new epoch's first writes below the old epoch.
    assert verdict.start == Position(3, 0)
    assert verdict.recorded == Position(3, 310)


# case B14
def test_an_aof_restart_is_remembered_through_a_claim_that_failed() -> None:
    """Promoted and not served, the member still has its place, and the next claim again starts where Redis counts."""
    ballots = [
        ballot(name, 0, f"new-{name}", intact=False, reloaded=True, recorded=Position(3, offset))
        for name, offset in (("a", 250), ("b", 310), ("c", 300))
    ]
    book = claimed(me="b", verdict=ask("b", *ballots), ballots={one.member: one for one in ballots}, ledger=LEDGER)
    again = [replace(one, round=5) for one in ballots]
    again[1] = replace(again[1], replid="p4", offset_bytes=28, reloaded=False, promotions=(("p4", 4),))
    assert leaders(*again, ledger=book) == {"b"}
    verdict = ask("b", *again, ledger=book)
    assert verdict.start == Position(3, 28)
    assert verdict.recorded == Position(3, 310)


def test_a_state_file_does_not_beat_evidence() -> None:
    """An AOF may lack the end that the file still counts, so an intact member leads although it shows less."""
    boaster = ballot("a", 0, "new", intact=False, recorded=Position(3, 320), priority=999)
    assert leaders(boaster, ballot("b", 310), ballot("c", 300)) == {"b"}
    assert leaders(boaster, ballot("b", 310), dead("c"), rules=rules(mode=Mode.ASYNC)) == {"b"}
    # Nor against one that replicates, and thus confirms writes, but is not known to be intact yet.
    assert leaders(boaster, ballot("b", 310, intact=False), ballot("c", 0, "x", keys=0, intact=False)) == {"b"}
    # Where all were restarted it counts, but not more than what an RDB says.
    reloaded = ballot("b", 310, intact=False, reloaded=True), ballot("c", 10, intact=False, reloaded=True)
    assert leaders(boaster, *reloaded) == {"a"}
    # Of the same position Redis's own word says that the data are there: the AOF may lack the end, so it is waited for.
    assert leaders(boaster, replace(reloaded[0], offset_bytes=320), reloaded[1]) == {"b"}


def test_a_state_file_says_nothing_where_the_replid_speaks() -> None:
    """The position of a known replid is exact; the record may be older or newer, and is not asked."""
    assert position(ballot("a", 300, recorded=Position(9, 9)), LEDGER, {}) == Position(3, 300)
    assert position(dead("a"), LEDGER, {}) is None
    assert position(replace(dead("a"), recorded=Position(3, 300)), LEDGER, {}) is None


# --- lineage through ballots ----------------------------------------------------------------------------------------


# case B8
# case B14
def test_a_promotion_that_never_served_is_resolved_through_a_ballot() -> None:
    """The winner of the last round was promoted and died; who had followed it still has a position by its testimony."""
    failed = LedgerEntry(epoch=4, member="a", guid="g", start=Position(3, 300))
    book = Ledger(epoch=4, entries=(*LEDGER.entries, failed))
    promoter = replace(dead("a", 5), promotions=(("p4", 4),))
    follower = ballot("b", 328, "p4", round=5)
    assert position(follower, book, all_promotions({"a": promoter})) == Position(3, 300)
    assert position(follower, book, {}) is None
    other = ballot("c", 290, round=5)
    assert leaders(promoter, follower, other, ledger=book) == {"b"}
    assert leaders(follower, other, ledger=book, live=frozenset("bc")) == set()


# case B14
def test_the_claim_writes_what_the_ballots_testify() -> None:
    """From then on the promotion is known without the promoter, also when its replid was never in the ledger."""
    failed = LedgerEntry(epoch=4, member="a", guid="g", start=Position(3, 300))
    book = Ledger(epoch=4, entries=(*LEDGER.entries, failed))
    ballots = {
        "a": replace(dead("a", 5), promotions=(("p4", 4),)),
        "b": ballot("b", 328, "p4", round=5),
        "c": ballot("c", 290, round=5),
        "d": ballot("d", 1, "old", round=3, promotions=(("stale", 4),)),
    }
    verdict = ask("b", *ballots.values(), ledger=book)
    after = claimed(me="b", verdict=verdict, ballots=ballots, ledger=book, at=12.5, reason="a died")
    assert after.epoch == 5
    assert after.entries[:3] == LEDGER.entries
    assert after.entries[3] == replace(failed, replid="p4")
    expected = LedgerEntry(
        epoch=5, member="b", guid="guid-b", start=Position(3, 300), at=12.5, reason="a died", served=False
    )
    assert after.entries[4] == expected
    assert position(ballots["b"], after, {}) == Position(3, 300)


def test_only_a_claim_claims() -> None:
    """Any other verdict makes no ledger entry."""
    verdict = ask("a", ballot("a"))
    with pytest.raises(ValueError, match="a verdict of wait claims nothing"):
        claimed(me="a", verdict=verdict, ballots={"a": ballot("a")}, ledger=LEDGER)


# --- bootstrap ------------------------------------------------------------------------------------------------------


def fresh(member: str, offset: int = 0, replid: str = "", **more: Any) -> Ballot:
    """A ballot of the first round."""
    defaults = {"round": 1, "intact": False, "keys": 3 if replid else 0}
    return ballot(member, offset, replid or f"own-{member}", **(defaults | more))


def test_a_new_empty_cluster_elects_anybody() -> None:
    """The first leader is the one that priority and name say, once every voter has shown that it is empty."""
    ballots = fresh("a"), fresh("b", 14, priority=200), fresh("c")
    verdict = ask("b", *ballots, ledger=Ledger(), now=STARTED_AT)
    assert verdict.outcome is Outcome.CLAIM
    assert verdict.start == Position(0, 14)
    assert verdict.ranking == ("b", "a", "c")
    for mode in Mode:
        blocked = ask("a", *ballots[:2], dead("c", 1), ledger=Ledger(), rules=rules(mode=mode))
        assert blocked.outcome is Outcome.BLOCKED
        assert blocked.reason == "the first election needs every voter, c has not shown its data"


# case H3
def test_an_existing_primary_with_replicas_is_adopted() -> None:
    """The furthest offset of its replid leads, and the data set's replids are written down as the cluster's origin."""
    ballots = fresh("a", 500, "x"), fresh("b", 490, "x"), fresh("c")
    assert leaders(*ballots, ledger=Ledger()) == {"a"}
    verdict = ask("a", *ballots, ledger=Ledger())
    book = claimed(me="a", verdict=verdict, ballots={one.member: one for one in ballots}, ledger=Ledger())
    assert book.entries[0].start == Position(0, 500)
    assert book.entries[0].origins == ("x",)
    # Before the first epoch has reached them, members with the adopted data set are known.
    assert position(replace(ballots[1], round=2), book, {}) == Position(0, 490)


# case H1
def test_an_empty_primary_does_not_wipe_the_others() -> None:
    """At bootstrap, too, whoever has data goes before whoever has none."""
    assert leaders(fresh("a", priority=999), fresh("b", 5, "x"), fresh("c"), ledger=Ledger()) == {"b"}


# case H2
def test_unrelated_data_sets_are_refused_until_an_operator_chooses() -> None:
    """The reason names who holds them and the command; the choice counts only for one that has data."""
    ballots = fresh("a", 500, "x"), fresh("b", 900, "y"), fresh("c")
    verdict = ask("a", *ballots, ledger=Ledger())
    assert verdict.outcome is Outcome.BLOCKED
    assert verdict.reason == "unrelated data sets on a, b: choose the one to keep with `redis-agent keep MEMBER`"
    assert leaders(*ballots, ledger=Ledger(), rules=rules(keep="a")) == {"a"}
    verdict = ask("a", *ballots, ledger=Ledger(), rules=rules(keep="c"))
    assert verdict.outcome is Outcome.BLOCKED
    assert verdict.reason.endswith("(c, which was chosen, has no data)")


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_data_sets_are_related_through_others(order: tuple[int, ...]) -> None:
    """Two that share no replid are one history, if a third one links them; the order of reading does not matter."""
    ballots = [
        fresh("a", 500, "x", replid2="y", second_offset_bytes=401),
        fresh("b", 400, "y", replid2="z", second_offset_bytes=301),
        fresh("c", 300, "z"),
    ]
    assert leaders(*(ballots[i] for i in order), ledger=Ledger()) == {"a"}
    assert leaders(ballots[0], ballots[2], ledger=Ledger(), rules=rules("ac")) == set()


def test_a_fork_of_one_data_set_is_refused() -> None:
    """Both went on from a common past, so each has what the other lacks: a larger offset decides nothing."""
    branch = fresh("a", 500, "x", replid2="y", second_offset_bytes=401)
    assert leaders(branch, fresh("b", 400, "y"), ledger=Ledger(), rules=rules("ab")) == {"a"}
    assert leaders(branch, fresh("b", 401, "y"), ledger=Ledger(), rules=rules("ab")) == set()
    sibling = fresh("b", 600, "w", replid2="y", second_offset_bytes=401)
    assert leaders(branch, sibling, ledger=Ledger(), rules=rules("ab")) == set()


# case B8
def test_a_first_election_that_failed_is_repeated() -> None:
    """The first claimants died before they served: the ledger is not empty, but the cluster is still new."""
    ballots = {one.member: one for one in (fresh("a", 500, "x"), fresh("b", 490, "x"), fresh("c"))}
    book = claimed(
        me="a", verdict=ask("a", *ballots.values(), ledger=Ledger()), ballots=ballots, ledger=Ledger(), reason="first"
    )
    # It had promoted itself, sent PINGs, and claimed and promoted itself once more.
    again = {
        "a": fresh("a", 528, "p1", replid2="x", second_offset_bytes=501, round=2, promotions=(("p1", 1),)),
        "b": fresh("b", 490, "x", round=2),
        "c": fresh("c", round=2),
    }
    assert leaders(*again.values(), ledger=book) == {"a"}
    verdict = ask("a", *again.values(), ledger=book)
    assert verdict.start == Position(0, 500)
    book = claimed(me="a", verdict=verdict, ballots=again, ledger=book)
    third = (
        fresh("a", 556, "p2", replid2="p1", second_offset_bytes=529, round=3, promotions=(("p1", 1), ("p2", 2))),
        fresh("b", 490, "x", round=3),
        fresh("c", round=3),
    )
    assert leaders(*third, ledger=book) == {"a"}


def test_a_cluster_without_voters_waits_for_them() -> None:
    """Before the voters are written down there is no election."""
    verdict = ask("a", fresh("a"), ledger=Ledger(), rules=rules(""))
    assert verdict.outcome is Outcome.BLOCKED
    assert verdict.reason == "the cluster has no voters yet"


# --- async mode -----------------------------------------------------------------------------------------------------


ASYNC = rules(mode=Mode.ASYNC)


def test_in_async_mode_the_best_that_answered_leads() -> None:
    """One member suffices, also one that was restarted; who is behind it does not outwait it while it lives."""
    assert leaders(ballot("a", 300), dead("b"), dead("c"), rules=ASYNC) == {"a"}
    assert leaders(ballot("a", 300), ballot("b", 299), dead("c"), rules=ASYNC) == {"a"}
    assert leaders(ballot("a", 300, intact=False), live=frozenset("a"), rules=ASYNC) == {"a"}
    # Its agent is gone since: the next best is the best of those that are left.
    assert ask("b", ballot("a", 300), ballot("b", 299), live=frozenset("b"), rules=ASYNC).ranking == ("b",)


def test_in_async_mode_the_lag_is_limited() -> None:
    """More than ``max_lag_bytes`` behind the last leader's known offset: nobody leads, unless everybody testified."""
    ballots = ballot("a", 300), ballot("b", 250), dead("c")
    assert leaders(*ballots, rules=ASYNC, last_offset_bytes=400) == {"a"}
    verdict = ask("a", *ballots, rules=ASYNC, last_offset_bytes=401)
    assert verdict.outcome is Outcome.BLOCKED
    assert verdict.reason == "the furthest, a, is 101 bytes behind the last leader, max_lag_bytes allows 100"
    assert leaders(*ballots[:2], ballot("c", 10), rules=ASYNC, last_offset_bytes=10**6) == {"a"}


def test_the_lag_is_counted_along_the_lineage() -> None:
    """What an older epoch has beyond the branch to the last one does not make up for what it lacks."""
    gone = dead("b"), dead("c")
    assert leaders(ballot("a", 190, "r2"), *gone, rules=ASYNC, last_offset_bytes=290) == {"a"}
    assert leaders(ballot("a", 190, "r2"), *gone, rules=ASYNC, last_offset_bytes=291) == set()
    assert leaders(ballot("a", 10**6, "r2"), *gone, rules=ASYNC, last_offset_bytes=300) == {"a"}
    assert leaders(ballot("a", 10**6, "r2"), *gone, rules=ASYNC, last_offset_bytes=301) == set()
    fork = led((0, 10), (1, 100), (1, 50))
    verdict = ask("a", ballot("a", 120, "r2"), *gone, rules=ASYNC, ledger=fork, last_offset_bytes=60)
    assert verdict.reason == "what a has is not of the last leader's history"


def test_in_async_mode_data_are_needed_too() -> None:
    """Without any data of this cluster among those that answered nobody leads."""
    verdict = ask("a", empty("a"), ballot("b", 4, "x"), dead("c"), rules=ASYNC)
    assert verdict.outcome is Outcome.BLOCKED
    assert verdict.reason == "no voter that answered shows data of this cluster; no data: c"


# --- timing and order -----------------------------------------------------------------------------------------------


THREE = ballot("a", 300), ballot("b", 300), ballot("c", 300)


def test_a_complete_round_is_decided_at_once_and_in_order() -> None:
    """The first claims at once, each next one a little later."""
    assert ask("a", *THREE, now=STARTED_AT).outcome is Outcome.CLAIM
    for rank, me in ((1, "b"), (2, "c")):
        verdict = ask(me, *THREE, now=STARTED_AT)
        assert verdict.outcome is Outcome.WAIT
        assert verdict.reason == "a goes first"
        assert verdict.until == pytest.approx(STARTED_AT + rank * STAGGER_S)
        verdict = ask(me, *THREE, now=STARTED_AT + rank * STAGGER_S + 1e-6)
        assert verdict.outcome is Outcome.CLAIM
        assert verdict.reason == "a did not claim in time"


def test_the_delay_counts_from_the_last_ballot() -> None:
    """If the round became complete late, the second best still lets the best go first."""
    late = STARTED_AT + 5.0
    verdict = ask("b", *THREE, now=late, complete_since=late)
    assert (verdict.outcome, verdict.until) == (Outcome.WAIT, late + STAGGER_S)
    assert ask("a", *THREE, now=late, complete_since=late).outcome is Outcome.CLAIM


# case B9
def test_a_voter_that_hangs_delays_the_round_by_the_grace_only() -> None:
    """Live, but silent: the others wait for the grace, then go on without it."""
    two = THREE[1:]
    verdict = ask("b", *two, now=STARTED_AT)
    assert (verdict.outcome, verdict.until) == (Outcome.WAIT, STARTED_AT + GRACE_S)
    assert verdict.reason == "waiting for the ballot of a"
    assert ask("b", *two, now=STARTED_AT + GRACE_S).outcome is Outcome.CLAIM
    assert ask("c", *two, now=STARTED_AT + GRACE_S).until == STARTED_AT + GRACE_S + STAGGER_S


def test_nobody_waits_for_the_dead() -> None:
    """A voter without a presence, or one that says that its Redis is dead, delays nothing."""
    assert ask("b", *THREE[1:], now=STARTED_AT, live=frozenset("bc")).outcome is Outcome.CLAIM
    assert ask("b", *THREE[1:], dead("a"), now=STARTED_AT).outcome is Outcome.CLAIM


def test_who_is_gone_is_not_waited_for_in_the_ranking() -> None:
    """Its ballot is evidence, but its agent cannot claim any more."""
    assert ask("b", *THREE, now=STARTED_AT, live=frozenset("bc")).outcome is Outcome.CLAIM


def test_only_the_one_that_is_gone_could_lead() -> None:
    """Then the reason names it."""
    verdict = ask("b", ballot("a", 400), ballot("b", 300), dead("c"), live=frozenset("bc"))
    assert verdict.outcome is Outcome.BLOCKED
    assert verdict.reason == "a could lead, but its agent is gone"


def test_while_ballots_are_missing_nothing_is_blocked() -> None:
    """A live voter may still bring what is lacking: wait for its ballot, without a deadline."""
    verdict = ask("a", ballot("a"))
    assert (verdict.outcome, verdict.until) == (Outcome.WAIT, None)
    assert verdict.reason == "waiting for the ballot of b, c"


# case B16
def test_a_leader_whose_znode_was_deleted_is_awaited() -> None:
    """Its presence stands, so it may still be writable: nobody claims before it has cast its ballot of this round."""
    stale = replace(THREE[0], round=3)
    for me in "bc":
        for ballots in (THREE[1:], (stale, *THREE[1:])):
            verdict = ask(me, *ballots, standing_owner="a")
            assert (verdict.outcome, verdict.until) == (Outcome.WAIT, None)
            assert verdict.reason == "a led until now and is still there: it must fence and cast its ballot first"
    assert leaders(*THREE, standing_owner="a") == {"a", "b", "c"}


@pytest.mark.parametrize(
    ("own", "reason"),
    [
        (None, "this member has not cast its ballot; b may claim"),
        (dead("a"), "this member's Redis is down; b may claim"),
        (ballot("a", abstains=True), "this member abstains; b may claim"),
        (ballot("a", round=3), "this member has not cast its ballot; b may claim"),
    ],
)
def test_who_may_not_claim_says_why(own: Ballot | None, reason: str) -> None:
    """Whatever the others show, a member without an own valid ballot does nothing."""
    verdict = ask("a", *THREE[1:], *([own] if own else []))
    assert verdict.outcome is Outcome.WAIT
    assert verdict.reason == reason


def test_a_non_voter_never_claims() -> None:
    """Nor does its ballot count."""
    verdict = ask("d", *THREE, ballot("d", 400))
    assert verdict.outcome is Outcome.WAIT
    assert verdict.reason == "this member is not a voter; a may claim"
    assert leaders(ballot("a", 300), ballot("d", 300), dead("b"), dead("c")) == set()


def test_a_round_that_is_over_decides_nothing() -> None:
    """Another one has claimed since: the ballots are of the past."""
    for round_ in (3, 5):
        verdict = decide(
            me="a",
            round_=round_,
            ballots={one.member: replace(one, round=round_) for one in THREE},
            live=frozenset("abc"),
            standing_owner="",
            last_offset_bytes=None,
            ledger=LEDGER,
            rules=rules(),
            started_at=STARTED_AT,
            now=LATE,
        )
        assert verdict.outcome is Outcome.WAIT
        assert verdict.reason == f"round {round_} is over, the epoch is 3"


# --- properties -----------------------------------------------------------------------------------------------------


@st.composite
def rounds(draw: st.DrawFn) -> tuple[Ballot, ...]:
    """Any ballots of five voters and a bystander, of a cluster that has served."""
    ballots = []
    for member in "abcdef":
        kind = draw(st.sampled_from(["absent", "dead", "empty", "data", "data", "data"]))
        if kind == "dead":
            ballots.append(dead(member))
        elif kind == "empty":
            ballots.append(empty(member))
        elif kind == "data":
            one = ballot(
                member,
                draw(st.integers(0, 320)),
                draw(st.sampled_from(["r1", "r2", "r3", "r3", "x"])),
                intact=draw(st.booleans()),
                reloaded=draw(st.booleans()),
                abstains=draw(st.integers(0, 5)) == 0,
                priority=draw(st.integers(0, 2)),
                recorded=draw(st.none() | st.builds(Position, st.integers(1, 3), st.integers(0, 320))),
            )
            ballots.append(one)
    return tuple(ballots)


FIVE = rules("abcde")


@given(rounds())
def test_who_may_claim_lacks_nothing_that_a_quorum_proves(ballots: tuple[Ballot, ...]) -> None:
    """In quorum mode: R intact ballots not ahead, or every voter up and nobody ahead. Nobody else, ever."""
    voters = [one for one in ballots if one.member in FIVE.voters]
    exact = {one.member: position(replace(one, recorded=None), LEDGER, {}) for one in voters}
    told = {one.member: position(one, LEDGER, {}) for one in voters}
    # State files only count while nobody shows what its process did not load.
    where = exact if any(not one.reloaded and exact[one.member] is not None for one in voters) else told
    for name in leaders(*ballots, rules=FIVE):
        own = where[name]
        count = 0
        for one in voters:
            theirs = exact[one.member]
            count += one.intact and theirs is not None and own is not None and theirs <= own
        everybody = len([one for one in voters if one.up]) == 5
        best = all(theirs is None or (own is not None and theirs <= own) for theirs in where.values())
        assert (exact[name] is not None and count >= 3) or (everybody and best)


@given(rounds(), st.sampled_from(Mode), st.none() | st.integers(0, 600))
def test_everybody_ranks_alike(ballots: tuple[Ballot, ...], mode: Mode, last: int | None) -> None:
    """Members that read the same come to the same ranking, in whatever order they read it; only they claim."""
    settings = rules("abcde", mode)
    verdicts = {
        me: ask(me, *order, rules=settings, last_offset_bytes=last)
        for me, order in (("a", ballots), ("c", ballots[::-1]), ("f", ballots))
    }
    rankings = {verdict.ranking for verdict in verdicts.values()}
    assert len(rankings) == 1
    ranking = rankings.pop()
    assert leaders(*ballots, rules=settings, last_offset_bytes=last) == set(ranking)
    assert all(verdict.reason for verdict in verdicts.values())


@given(rounds())
def test_a_quorum_of_intact_members_is_never_blocked(ballots: tuple[Ballot, ...]) -> None:
    """If R voters show intact data of known lineage and none of them abstains, somebody may lead."""
    intact = [
        one
        for one in ballots
        if one.member in FIVE.voters and one.up and one.intact and position(replace(one, recorded=None), LEDGER, {})
    ]
    if len(intact) >= 3 and not any(one.abstains for one in intact):
        assert leaders(*ballots, rules=FIVE)


@given(rounds(), st.floats(0.0, 2.0), st.frozensets(st.sampled_from("abcdef")))
def test_waiting_ends(ballots: tuple[Ballot, ...], after_s: float, live: frozenset[str]) -> None:
    """A deadline that is given lies ahead, and when it comes and nothing has changed, the member claims."""
    for me in "abcde":
        verdict = ask(me, *ballots, rules=FIVE, live=live, now=STARTED_AT + after_s)
        if verdict.until is not None:
            assert verdict.outcome is Outcome.WAIT
            assert verdict.until > STARTED_AT + after_s
            assert ask(me, *ballots, rules=FIVE, live=live, now=verdict.until).outcome is Outcome.CLAIM
