"""The state machine: every state, every trigger, every step, and why.

An agent is in exactly one of STATES. ``candidate``, ``leader`` and ``stopping`` have phases, written behind a dot:
intermediate steps are states, never booleans beside the table.

==================  ===================================================================================  ============
state               meaning                                                                              Redis
==================  ===================================================================================  ============
connecting          no ZooKeeper session that can be proved, or nothing read from it yet                 fenced
candidate           session proved, no serving leader: an election                                       frozen
leader              owns the ``leader`` znode, lease valid; only ``serving`` accepts writes              primary
follower            another member leads                                                                 its replica
expired             ZooKeeper said that the session is gone: take no role, write no znode, only fence    fenced
stopping            told to leave: give way, stop Redis (or leave it to the next life), close the session  fenced; gone
stopped             terminal                                                                             gone
==================  ===================================================================================  ============

TRANSITIONS is the truth: ``redis-agent fsm`` prints it, the diagram in the documentation is drawn from it, and
``transitions`` executes it. A trigger that has no row in a state is listed in IGNORED for it, or it is a bug.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Protocol

from transitions import EventData, Machine

CONNECTING = "connecting"
FREEZING = "candidate.freezing"
VOTING = "candidate.voting"
CLAIMING = "candidate.claiming"
SUCCEEDING = "candidate.succeeding"
TAKING_OVER = "leader.taking_over"
SERVING = "leader.serving"
PAUSING = "leader.pausing"
SEALING = "leader.sealing"
DESIGNATING = "leader.designating"
HANDING_OVER = "leader.handing_over"
RECLAIMING = "leader.reclaiming"
HANDED_OVER = "leader.handed_over"
RESIGNING = "leader.resigning"
FOLLOWER = "follower"
EXPIRED = "expired"
YIELDING = "stopping.yielding"
STOPPING_REDIS = "stopping.redis"
CLOSING = "stopping.session"
STOPPED = "stopped"

STATES = (
    CONNECTING,
    FREEZING,
    VOTING,
    CLAIMING,
    SUCCEEDING,
    TAKING_OVER,
    SERVING,
    PAUSING,
    SEALING,
    DESIGNATING,
    HANDING_OVER,
    RECLAIMING,
    HANDED_OVER,
    RESIGNING,
    FOLLOWER,
    EXPIRED,
    YIELDING,
    STOPPING_REDIS,
    CLOSING,
    STOPPED,
)
IN_ROUND = (FREEZING, VOTING, CLAIMING)
CANDIDATE = (*IN_ROUND, SUCCEEDING)
LEADER = (TAKING_OVER, SERVING)
OFFERED = (DESIGNATING, HANDING_OVER, RECLAIMING)
"""Our Redis is frozen at its final position, and the successor may take the epoch at any moment."""
HANDOVER = (PAUSING, SEALING, *OFFERED)
OWNING = (*LEADER, *HANDOVER, RESIGNING)
"""``leader`` is ours, as far as we know."""
STOPPING = (YIELDING, STOPPING_REDIS, CLOSING, STOPPED)
PROVED = (*CANDIDATE, *OWNING, HANDED_OVER, FOLLOWER)
"""States that rest on a valid lease."""

LEASED = frozenset({*PROVED, YIELDING})
"""States that the end of the lease matters to."""

TRIGGERS: Mapping[str, str] = {
    "no_leader": "a synced read shows no `leader`",
    "leader_takes": "a synced read shows another member taking over",
    "leader_serves": "a synced read shows another member serving",
    "leader_is_ours": "a synced read shows our own `leader`, of this session",
    "unfit": "we own `leader` but our Redis cannot serve under it",
    "round_over": "the epoch has moved on, so the ballot is for a round that is over",
    "redis_up": "redis-server answers",
    "redis_lost": "redis-server is dead, or was sent SIGKILL, which is as good where its role counts",
    "thawed": "somebody pointed our frozen Redis elsewhere",
    "frozen": "the freeze is confirmed and the position read behind it",
    "elected": "the ballots allow us to claim, and it is our turn",
    "claim_won": "the claim is committed",
    "claim_lost": "the claim was refused, or is known not to have happened",
    "promoted": "REPLICAOF NO ONE is done, still fenced",
    "served": "the `serve` transaction is committed",
    "deposed": "the ledger has moved on: somebody else leads or led since",
    "lease_ended": "the lease is over: we cannot prove our session",
    "session_expired": "ZooKeeper said that the session is gone, or we let go of it after proving nothing for long",
    "session_up": "a new session is established",
    "hand_over": "another member is to lead: we were told to leave, or ordered to, or are sick",
    "caught_up": "a successor has every write",
    "give_up": "nobody caught up in time, and nobody has to",
    "designated": "the znode names the successor and the final position",
    "appointed": "the leader hands over to us, and we have everything up to its final position",
    "overdue": "the successor did not take over in time",
    "succeeded": "the successor has claimed the next epoch",
    "depart": "we must leave, and there is nobody to hand over to, or no time",
    "leave": "we must leave, and lead nobody",
    "stop_again": "told to stop a second time",
    "resigned": "`leader` is deleted, or can be no more",
    "yield_over": "nobody took over in time, or nobody is there to",
    "released": "the waiting writes were answered",
    "redis_left": "Redis runs on under its guard, for our next life",
    "lingers": "redis-server was sent SIGKILL and does not end",
    "session_closed": "the session is closed, or its limit is past",
}


@dataclass(frozen=True, slots=True)
class Row:
    """In any of ``sources``, ``trigger`` leads to ``dest`` and orders ``actions``, because of ``why``."""

    sources: tuple[str, ...]
    trigger: str
    dest: str
    actions: tuple[str, ...]
    why: str


def _row(sources: str | tuple[str, ...], trigger: str, dest: str, actions: str, why: str) -> Row:
    return Row((sources,) if isinstance(sources, str) else sources, trigger, dest, tuple(actions.split()), why)


_TABLE: tuple[Row, ...] = (
    # --- finding out who leads ---
    _row(CONNECTING, "no_leader", FREEZING, "freeze", "nobody leads: freeze first, so that the vote stays true"),
    _row(CONNECTING, "leader_takes", FREEZING, "freeze", "a takeover is under way: await its outcome frozen"),
    _row(CONNECTING, "leader_serves", FOLLOWER, "follow", "another member serves: replicate from it"),
    _row(CONNECTING, "leader_is_ours", SERVING, "lift_fence", "same session, same Redis, still our leader: resume"),
    _row(CONNECTING, "unfit", FREEZING, "freeze", "leader is ours, but not for this Redis: freeze, vote, resign"),
    # --- the election ---
    _row(FREEZING, "frozen", VOTING, "cast_ballot", "the position cannot move any more: testify it"),
    _row(FREEZING, "redis_up", FREEZING, "freeze", "Redis is back: freeze it, then testify its position"),
    _row((FREEZING, VOTING), "round_over", FREEZING, "freeze", "a new round needs a new ballot"),
    _row(
        CANDIDATE, "thawed", FREEZING, "freeze", "the position moved after the freeze: the ballot is not true any more"
    ),
    _row(CANDIDATE, "redis_lost", FREEZING, "cast_empty_ballot", "tell that there is no Redis here to wait for"),
    _row(CANDIDATE, "leader_serves", FOLLOWER, "follow", "the election is decided: replicate from its winner"),
    _row((FREEZING, VOTING), "leader_is_ours", FREEZING, "freeze", "a claim that we gave up was committed: resign"),
    _row(CANDIDATE, "unfit", FREEZING, "freeze", "leader is ours, but not for this Redis: freeze, vote, resign"),
    _row(VOTING, "elected", CLAIMING, "claim", "enough intact ballots are not ahead of ours"),
    _row(CLAIMING, "claim_won", TAKING_OVER, "promote", "the epoch is ours: promote, still fenced"),
    _row(CLAIMING, "leader_is_ours", TAKING_OVER, "promote", "the claim's reply was lost, but it was committed"),
    _row(CLAIMING, "claim_lost", VOTING, "look", "somebody else was faster, or the ledger or the voters changed"),
    _row(CLAIMING, "leader_takes", VOTING, "look", "somebody else claimed this round"),
    _row(CLAIMING, "round_over", FREEZING, "freeze", "somebody claimed and is gone already: a new round"),
    # --- taking over ---
    _row(TAKING_OVER, "promoted", TAKING_OVER, "serve", "announce it before the first write is let in"),
    _row(TAKING_OVER, "served", SERVING, "lift_fence", "committed: let writes in"),
    _row((*LEADER, *HANDOVER), "unfit", FREEZING, "freeze", "our Redis cannot serve: freeze, vote, resign"),
    # --- losing it ---
    _row((*LEADER, *HANDOVER), "lease_ended", CONNECTING, "fence", "cannot prove that we lead: fence before others do"),
    _row((*LEADER, *HANDOVER), "deposed", CONNECTING, "fence look", "the ledger has moved on: we lead no more"),
    _row((*LEADER, *HANDOVER), "redis_lost", FREEZING, "cast_empty_ballot", "a dead Redis accepts nothing: resign"),
    _row((*LEADER, *HANDOVER), "no_leader", FREEZING, "freeze", "our leader was deleted: nobody claims until we voted"),
    _row((*LEADER, *HANDOVER), "leader_takes", FREEZING, "freeze", "somebody else claimed: give way"),
    _row((*LEADER, PAUSING, SEALING), "leader_serves", FOLLOWER, "follow", "somebody else serves: give way and follow"),
    # --- handing over: the old leader's side ---
    _row(SERVING, "hand_over", PAUSING, "pause_writes", "writes wait until a successor has everything"),
    _row(PAUSING, "give_up", SERVING, "unpause", "giving up is free here: the writes go on"),
    _row(PAUSING, "caught_up", SEALING, "freeze_quietly", "make the position final: a pause ends by itself"),
    _row(SEALING, "frozen", DESIGNATING, "designate", "nothing can be written any more: name the successor"),
    _row(DESIGNATING, "designated", HANDING_OVER, "", "it may take the epoch now, in one transaction"),
    _row((DESIGNATING, HANDING_OVER), "overdue", RECLAIMING, "reclaim", "nobody took it: take the epoch ourselves"),
    _row(RECLAIMING, "claim_won", TAKING_OVER, "promote", "the epoch is ours: promote, still fenced"),
    _row(RECLAIMING, "claim_lost", RECLAIMING, "reclaim", "nobody else took it either: again"),
    _row(
        OFFERED,
        "succeeded",
        HANDED_OVER,
        "await_successor",
        "the epoch is the successor's: writes wait for it",
    ),
    _row(
        (*OFFERED, HANDED_OVER),
        "leader_serves",
        FOLLOWER,
        "follow kick_clients",
        "the successor serves: become its replica, and send the clients there",
    ),
    _row(HANDED_OVER, "no_leader leader_takes", FREEZING, "freeze", "the successor failed: a round decides"),
    _row(HANDED_OVER, "leader_is_ours unfit", FREEZING, "freeze", "a claim that we gave up was committed: resign"),
    # --- handing over: the successor's side ---
    _row(FOLLOWER, "appointed", SUCCEEDING, "swap", "nothing is missing here: take the epoch in one transaction"),
    _row(SUCCEEDING, "claim_won leader_is_ours", TAKING_OVER, "promote", "the epoch is ours: promote, still fenced"),
    _row(SUCCEEDING, "claim_lost", FOLLOWER, "look", "the old leader took it back, or the voters changed"),
    _row(SUCCEEDING, "no_leader leader_takes", FREEZING, "freeze", "the leader is gone: freeze before voting"),
    # --- following ---
    _row(FOLLOWER, "no_leader", FREEZING, "freeze", "the leader is gone: freeze before voting"),
    _row(FOLLOWER, "leader_takes", FREEZING, "freeze", "the leader changed while we did not look"),
    _row(FOLLOWER, "leader_serves", FOLLOWER, "follow", "another leader, or another epoch of the same"),
    _row(FOLLOWER, "redis_up", FOLLOWER, "follow", "Redis is back: replicate from the leader"),
    _row(FOLLOWER, "leader_is_ours", FREEZING, "freeze", "a claim that we gave up was committed: resign"),
    _row(FOLLOWER, "unfit", FREEZING, "freeze", "leader is ours, but not for this Redis: freeze, vote, resign"),
    _row(
        (*CANDIDATE, HANDED_OVER, FOLLOWER),
        "lease_ended",
        CONNECTING,
        "",
        "cannot prove our session: take no part until we can",
    ),
    # --- sessions ---
    _row(
        (CONNECTING, *CANDIDATE, *LEADER, *HANDOVER, HANDED_OVER, FOLLOWER),
        "session_expired",
        EXPIRED,
        "fence renew_session",
        "no idea what is going on: no action until the state is read again in a new session",
    ),
    _row(EXPIRED, "session_up", CONNECTING, "", "a fresh session: read everything again"),
    # --- leaving ---
    _row((TAKING_OVER, PAUSING, SEALING), "depart", RESIGNING, "freeze_quietly", "do not wait for anybody, but fence"),
    _row(OFFERED, "depart", RESIGNING, "resign", "frozen already: give up leader to whoever wins"),
    _row(RESIGNING, "frozen", RESIGNING, "resign", "testify the final position and give up leader in one transaction"),
    _row(
        RESIGNING,
        "stop_again",
        STOPPING_REDIS,
        "part_with_redis",
        "frozen or about to be: a stopped Redis is a fenced one",
    ),
    _row(RESIGNING, "resigned", YIELDING, "await_successor", "waiting writes wait on until somebody can take them"),
    _row(
        RESIGNING,
        "lease_ended no_leader leader_takes leader_serves deposed",
        STOPPING_REDIS,
        "part_with_redis",
        "we lead no more: nothing left to hand over",
    ),
    _row(RESIGNING, "unfit", STOPPING_REDIS, "part_with_redis", "our Redis cannot be handed over: fence it and go"),
    _row(RESIGNING, "session_expired", STOPPING_REDIS, "part_with_redis", "no session: nothing left to hand over"),
    _row(RESIGNING, "redis_lost", CLOSING, "cast_empty_ballot close_session", "Redis is dead: resign and leave"),
    _row(
        (CONNECTING, *CANDIDATE, HANDED_OVER, FOLLOWER, EXPIRED),
        "leave",
        STOPPING_REDIS,
        "part_with_redis",
        "nothing is served here: stop Redis in order, or leave it to our next life",
    ),
    _row(YIELDING, "leader_serves", YIELDING, "release_writes", "the successor serves: send the waiting writes there"),
    _row(YIELDING, "yield_over", YIELDING, "release_writes", "waited long enough for a successor"),
    _row(YIELDING, "released", STOPPING_REDIS, "part_with_redis", "nobody waits here any more"),
    _row(YIELDING, "stop_again session_expired lease_ended", STOPPING_REDIS, "part_with_redis", "waited enough"),
    _row(STOPPING_REDIS, "stop_again", STOPPING_REDIS, "kill_redis", "no patience for an orderly stop"),
    _row((YIELDING, STOPPING_REDIS), "redis_lost", CLOSING, "close_session", "Redis is gone: take back our znodes"),
    _row(STOPPING_REDIS, "lingers", CLOSING, "close_session", "it executes nothing any more: nobody need wait for it"),
    _row(STOPPING_REDIS, "redis_left", CLOSING, "close_session", "Redis runs on: take back our znodes"),
    _row(CLOSING, "session_closed", STOPPED, "leave", "done"),
    _row(CLOSING, "stop_again", STOPPED, "leave", "the session ends by itself"),
)

TRANSITIONS: tuple[Row, ...] = tuple(
    Row(found.sources, trigger, found.dest, found.actions, found.why)
    for found in _TABLE
    for trigger in found.trigger.split()
)


def _ignored() -> dict[str, frozenset[str]]:
    """What each state ignores on purpose: everything that has no row there and has a reason below."""
    everywhere = frozenset(STATES)
    return {
        # What a read shows matters where it changes something; elsewhere it is the state's normal sight.
        "no_leader": frozenset({*IN_ROUND, EXPIRED, *STOPPING}),
        "leader_takes": frozenset({FREEZING, VOTING, EXPIRED, *STOPPING}),
        "leader_serves": frozenset({EXPIRED, STOPPING_REDIS, CLOSING, STOPPED}),
        "leader_is_ours": frozenset({*OWNING, EXPIRED, *STOPPING}),
        "unfit": frozenset({EXPIRED, *STOPPING}),
        "round_over": everywhere - {*IN_ROUND},
        "thawed": everywhere - {*CANDIDATE},
        # Redis comes and goes; where there is no row its start changes no role, and its death none either.
        "redis_up": everywhere - {FREEZING, FOLLOWER},
        "redis_lost": frozenset({CONNECTING, HANDED_OVER, FOLLOWER, EXPIRED, CLOSING, STOPPED}),
        # Answers that come after the state that asked for them was left.
        "frozen": everywhere - {FREEZING, SEALING, RESIGNING},
        "elected": everywhere - {VOTING},
        "claim_won": everywhere - {CLAIMING, SUCCEEDING, RECLAIMING},
        "claim_lost": everywhere - {CLAIMING, SUCCEEDING, RECLAIMING},
        "promoted": everywhere - {TAKING_OVER},
        "served": everywhere - {TAKING_OVER},
        "deposed": everywhere - {*OWNING},
        "caught_up": everywhere - {PAUSING},
        "give_up": everywhere - {PAUSING},
        "designated": everywhere - {DESIGNATING},
        "overdue": everywhere - {DESIGNATING, HANDING_OVER},
        "resigned": everywhere - {RESIGNING},
        "yield_over": everywhere - {YIELDING},
        "released": everywhere - {YIELDING},
        "redis_left": everywhere - {STOPPING_REDIS},
        "lingers": everywhere - {STOPPING_REDIS},
        "session_closed": everywhere - {CLOSING},
        # Asked for where they make sense only.
        "hand_over": everywhere - {SERVING},
        "appointed": everywhere - {FOLLOWER},
        "succeeded": everywhere - {*OFFERED},
        "depart": everywhere - {TAKING_OVER, *HANDOVER},
        "leave": frozenset({*OWNING, *STOPPING}),
        # No lease is needed, or none is held.
        "lease_ended": frozenset({CONNECTING, EXPIRED, STOPPING_REDIS, CLOSING, STOPPED}),
        "session_expired": frozenset({EXPIRED, STOPPING_REDIS, CLOSING, STOPPED}),
        "session_up": everywhere - {EXPIRED},
        "stop_again": everywhere - {RESIGNING, YIELDING, STOPPING_REDIS, CLOSING},
    }


IGNORED: Mapping[str, frozenset[str]] = _ignored()

_BY_PAIR: Mapping[tuple[str, str], Row] = {
    (source, found.trigger): found for found in TRANSITIONS for source in found.sources
}


class Impossible(Exception):
    """A trigger came in a state that neither has a row for it nor ignores it: a bug; nothing was changed."""


def row(state: str, trigger: str) -> Row | None:
    """The row that ``trigger`` fires in ``state``; None if it is ignored there on purpose.

    Raises:
        Impossible: neither.
    """
    found = _BY_PAIR.get((state, trigger))
    if found is None and state not in IGNORED.get(trigger, frozenset()):
        raise Impossible(f"{trigger} in {state}")
    return found


class Model(Protocol):
    """What the machine moves. Besides, it has a method without arguments for each action of the table."""

    state: str

    def announce(self, row: Row, source: str) -> None:
        """Told of each step before its actions run."""


def fire(model: Model, trigger: str) -> None:
    """Let a trigger of the table happen."""
    _machine().events[trigger].trigger(model)


@cache
def _machine() -> Machine:
    """The machine that executes the table: one for all agents of the process, since it holds nothing of theirs."""
    machine = Machine(model=None, states=list(STATES), initial=CONNECTING, auto_transitions=False, send_event=True)
    for (source, trigger), found in _BY_PAIR.items():
        machine.add_transition(trigger, source, found.dest, after=partial(_carry_out, found, source))
    return machine


def _carry_out(found: Row, source: str, step: EventData) -> None:
    model: Any = step.model
    model.announce(found, source)
    for action in found.actions:
        getattr(model, action)()


def mermaid() -> str:
    """The diagram of the documentation, from the table. Ignored triggers and steps within one phase are left out."""
    lines = ["stateDiagram-v2", "    [*] --> connecting"]
    groups: dict[str, list[str]] = {}
    for state in STATES:
        group, _, phase = state.partition(".")
        groups.setdefault(group, []).extend([phase] if phase else [])
    for group, phases in groups.items():
        if phases:
            lines += [f"    state {group} {{", *(f"        {group}_{phase} : {phase}" for phase in phases), "    }"]
    labels: dict[tuple[str, str], list[str]] = {}
    for found in TRANSITIONS:
        for source in found.sources:
            if source != found.dest:
                labels.setdefault((source, found.dest), []).append(found.trigger)
    for (source, dest), triggers in labels.items():
        lines.append(f"    {_node(source)} --> {_node(dest)} : {', '.join(triggers)}")
    return "\n".join([*lines, "    stopped --> [*]"])


def _node(state: str) -> str:
    return state.replace(".", "_")
