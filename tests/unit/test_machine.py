"""The table of states: whole, unambiguous, and true to what the core can do."""

from __future__ import annotations

from itertools import product

import pytest

from redis_agent import machine
from redis_agent.core.agent import Core
from redis_agent.core.settings import CoreSettings
from redis_agent.machine import IGNORED, PROVED, STATES, TRANSITIONS, TRIGGERS, Impossible, Row
from redis_agent.replication import Address

PAIRS = list(product(STATES, TRIGGERS))
CONSTANTS = {name: value for name, value in vars(machine).items() if name.isupper() and isinstance(value, str)}


def core() -> Core:
    return Core(CoreSettings(root="r", cluster="c", name="m1", redis=Address("10.0.0.1", 6379)))


class Actions:
    """Has every action of the table, and notes which were called."""

    def __init__(self, state: str) -> None:
        self.state = state
        self.announced: list[tuple[Row, str]] = []
        self.called: list[str] = []

    def announce(self, row: Row, source: str) -> None:
        assert not self.called
        self.announced.append((row, source))

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda: self.called.append(name)


def test_every_pair_is_a_row_or_ignored_on_purpose() -> None:
    """No trigger in any state is forgotten, and none has both a row and a reason to be ignored."""
    rows = {(source, row.trigger) for row in TRANSITIONS for source in row.sources}
    ignored = {(state, trigger) for trigger, states in IGNORED.items() for state in states}
    assert [pair for pair in PAIRS if pair not in rows | ignored] == []
    assert rows & ignored == set()
    assert (rows | ignored) == set(PAIRS)


def test_a_pair_has_one_row() -> None:
    """Which row fires does not depend on the order of the table."""
    pairs = [(source, row.trigger) for row in TRANSITIONS for source in row.sources]
    assert sorted(pairs) == sorted(set(pairs))


def test_each_row_is_reasonable() -> None:
    """It has a reason, known states and a known trigger."""
    for row in TRANSITIONS:
        assert len(row.why) > 3, row
        assert {*row.sources, row.dest} <= set(STATES), row
        assert row.trigger in TRIGGERS, row


def test_each_state_and_each_trigger_is_used() -> None:
    """Each trigger has a row and a meaning; every state can be reached, and only the last one has no way out."""
    assert {row.trigger for row in TRANSITIONS} == set(TRIGGERS)
    assert all(TRIGGERS.values())
    assert set(CONSTANTS.values()) == set(STATES)
    reached = {machine.CONNECTING}
    for _ in STATES:
        reached |= {row.dest for row in TRANSITIONS if reached & set(row.sources)}
    assert reached == set(STATES)
    assert set(STATES) - {source for row in TRANSITIONS for source in row.sources} == {machine.STOPPED}


@pytest.mark.parametrize("action", sorted({action for row in TRANSITIONS for action in row.actions}))
def test_each_action_exists(action: str) -> None:
    """The core has a method without arguments for it."""
    assert callable(getattr(core(), action))


def test_whoever_may_accept_writes_fences_on_the_way_out() -> None:
    """Each row that leaves the leader's states, or those of a leaving leader, orders something that fences.

    A dead Redis needs none, and `pause_writes` leads on to a state from which this holds.
    """
    fencing = {"fence", "freeze", "follow", "freeze_quietly", "part_with_redis"}
    writable = {*machine.LEADER, machine.PAUSING}
    for row in TRANSITIONS:
        if not writable & set(row.sources) or row.dest in writable or row.trigger == "redis_lost":
            continue
        assert fencing & set(row.actions), row


def test_only_a_proved_session_leads_to_a_role() -> None:
    """Out of `connecting` a role is reached only by what a read showed; out of `expired` only `connecting` is."""
    reads = {"no_leader", "leader_takes", "leader_serves", "leader_is_ours", "unfit"}
    for row in TRANSITIONS:
        if machine.CONNECTING in row.sources and row.dest in PROVED:
            assert row.trigger in reads, row
        if machine.EXPIRED in row.sources and row.dest not in machine.STOPPING:
            assert (row.trigger, row.dest) == ("session_up", machine.CONNECTING)


def test_the_order_is_claim_promote_serve_and_then_the_fence() -> None:
    """Nothing but a committed `serve`, or being the leader still, lifts the fence. Case B1."""
    lifting = [(row.sources, row.trigger) for row in TRANSITIONS if "lift_fence" in row.actions]
    assert lifting == [((machine.CONNECTING,), "leader_is_ours"), ((machine.TAKING_OVER,), "served")]
    assert all(row.trigger == "promoted" for row in TRANSITIONS if "serve" in row.actions)
    claims = {machine.CLAIMING, machine.SUCCEEDING, machine.RECLAIMING}
    assert all(set(row.sources) <= claims for row in TRANSITIONS if "promote" in row.actions)
    assert all(row.trigger in ("claim_won", "leader_is_ours") for row in TRANSITIONS if "promote" in row.actions)
    assert all(row.sources == (machine.FOLLOWER,) for row in TRANSITIONS if "swap" in row.actions)
    assert all(row.sources == (machine.VOTING,) for row in TRANSITIONS if "claim" in row.actions)


def test_a_successor_is_named_only_behind_the_freeze() -> None:
    """Pause, catch up, freeze, designate: the pause alone is no fence. Case E1."""
    assert [row.sources for row in TRANSITIONS if "designate" in row.actions] == [(machine.SEALING,)]
    into = [(row.trigger, row.actions) for row in TRANSITIONS if row.dest == machine.SEALING]
    assert into == [("caught_up", ("freeze_quietly",))]
    giving_up = [row.sources for row in TRANSITIONS if "unpause" in row.actions]
    assert giving_up == [(machine.PAUSING,)], "nothing is frozen yet"


@pytest.mark.parametrize(("state", "trigger"), [("no-such-state", "leave"), (machine.SERVING, "no_such_trigger")])
def test_an_unknown_pair_is_impossible(state: str, trigger: str) -> None:
    """It raises, whichever half is unknown."""
    with pytest.raises(Impossible, match=f"{trigger} in {state}"):
        machine.row(state, trigger)


def test_an_impossible_trigger_changes_nothing() -> None:
    """The core raises, stays what it was, and orders nothing."""
    agent = core()
    with pytest.raises(Impossible):
        agent.fire("no_such_trigger")
    assert (agent.state, agent.commands) == (machine.CONNECTING, [])


def test_ignored_on_purpose_is_none() -> None:
    """An ignored trigger has no row, and nothing happens."""
    assert machine.row(machine.STOPPED, "no_leader") is None
    agent = core()
    agent.fire("served")
    assert (agent.state, agent.commands) == (machine.CONNECTING, [])


@pytest.mark.parametrize("row", TRANSITIONS, ids=lambda row: f"{row.trigger}-{row.dest}")
def test_the_machine_does_what_the_row_says(row: Row) -> None:
    """From each source: announced first, then the actions in order, and the state is the row's."""
    for source in row.sources:
        actions = Actions(source)
        machine.fire(actions, row.trigger)
        assert actions.state == row.dest
        assert actions.announced == [(row, source)]
        assert actions.called == list(row.actions)


def test_the_diagram_shows_every_step_between_states() -> None:
    """Each state is a node, and each row that changes the state is on an arrow."""
    drawn = machine.mermaid()
    assert drawn.startswith("stateDiagram-v2\n    [*] --> connecting\n")
    assert drawn.endswith("stopped --> [*]")
    arrows: dict[tuple[str, str], set[str]] = {}
    for line in drawn.splitlines():
        ends, colon, triggers = line.strip().partition(" : ")
        source, arrow, dest = ends.partition(" --> ")
        if colon and arrow:
            assert (source, dest) not in arrows, "two arrows for one pair"
            arrows[source, dest] = set(triggers.split(", "))
    expected: dict[tuple[str, str], set[str]] = {}
    for row in TRANSITIONS:
        for source in row.sources:
            if source != row.dest:
                pair = source.replace(".", "_"), row.dest.replace(".", "_")
                expected.setdefault(pair, set()).add(row.trigger)
    assert arrows == expected
    for state in STATES:
        assert state.replace(".", "_") in drawn
        group, dot, phase = state.partition(".")
        if dot:
            assert f"        {group}_{phase} : {phase}\n" in drawn


def test_an_agent_starts_without_a_role() -> None:
    """A fresh one is connecting."""
    assert core().state == machine.CONNECTING
