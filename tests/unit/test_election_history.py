"""Whole histories of leaderships: no elected leader lacks a confirmed write.

A small model of Redis replication (replids, partial and full resyncs, PINGs, restarts from nothing, from an RDB and
from an AOF) is driven at random through many elections. Every decision is made by the real functions: ballots,
positions, verdicts, and the ledger that a claim writes. Losses of memory are counted per write; as long as at most a
minority of the voters lost it, each leader that serves must have it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redis_agent.election import Ballot, Mode, Outcome, Rules, all_promotions, claimed, decide, position, quorum
from redis_agent.replication import Ledger, LedgerEntry, Position, append_entry, with_served

PING = 0


@dataclass
class Node:
    """One member: Redis's stream and bookkeeping, and what its agent remembers."""

    name: str
    stream: list[int] = field(default_factory=list)
    """Everything since the beginning of the data set, one byte each: PING, or the number of a write."""
    offset: int = 0
    replid: str = ""
    replid2: str = ""
    second: int = -1
    primary: Node | None = None
    up: bool = True
    intact: bool = False
    loaded: tuple[str, int] | None = None
    """Replid and offset after the restart, if there was one."""
    recorded: Position | None = None
    promotions: dict[str, int] = field(default_factory=dict)

    @property
    def writes(self) -> set[int]:
        return set(self.stream) - {PING}

    def append(self, item: int) -> None:
        self.stream.append(item)
        self.offset += 1


class History:
    """Members, the ledger, and what was confirmed."""

    def __init__(self, seed: int, voters: int, *, restarts: tuple[str, ...]) -> None:
        self.random = Random(seed)
        self.restarts = restarts
        self.nodes = [Node("abcdefg"[i]) for i in range(voters)]
        self.rules = Rules(
            mode=Mode.QUORUM,
            voters=frozenset(node.name for node in self.nodes),
            grace_s=0.0,
            stagger_s=0.0,
            max_lag_bytes=0,
        )
        self.w, self.needed = quorum(voters)
        self.ledger = Ledger()
        self.leader: Node | None = None
        self.epoch_of: dict[int, int] = {}
        self.replids = 0
        self.lost_by: dict[int, set[str]] = {}
        """Confirmed writes, and who lost them from memory since."""
        self.served = 0
        for node in self.nodes:
            node.replid = self.new_replid()

    def new_replid(self) -> str:
        self.replids += 1
        return f"id{self.replids}"

    def chance(self, percent: int) -> bool:
        return self.random.randrange(100) < percent

    # --- Redis ----------------------------------------------------------------------------------------------------

    def attach(self, node: Node, primary: Node) -> None:
        """PSYNC: partial if the histories allow it, and then the replid comes before the data; else a full resync."""
        same = node.replid == primary.replid and node.offset <= primary.offset
        branch = node.replid == primary.replid2 and node.offset < primary.second
        if same or branch:
            data = len(primary.stream) - (primary.offset - node.offset)
            assert node.stream == primary.stream[:data], "a partial resync joined different histories"
            if branch:
                node.replid2, node.second, node.replid = node.replid, node.offset + 1, primary.replid
        else:
            self.forget(node)
            node.stream, node.offset = list(primary.stream), primary.offset
            node.replid, node.replid2, node.second = primary.replid, primary.replid2, primary.second
        node.primary = primary
        self.settle(node)

    def settle(self, node: Node) -> None:
        """Intact is who has applied the offset of the serving leader while it was attached to it."""
        if node.primary is self.leader and self.leader is not None and node.offset >= self.leader.offset:
            node.intact = True
            for write in node.writes & self.lost_by.keys():
                self.lost_by[write].discard(node.name)

    def replicate(self, node: Node) -> None:
        """Some of what the primary has reaches its replica."""
        if node.up and node.primary is not None and node.primary.up:
            behind = node.primary.offset - node.offset
            for item in node.primary.stream[len(node.primary.stream) - behind :][: self.random.randint(0, behind)]:
                node.append(item)
            self.settle(node)

    def confirm(self, primary: Node) -> None:
        """WAIT w: writes of this epoch that enough attached replicas have are confirmed."""
        attached = [node for node in self.nodes if node.up and node.primary is primary]
        for write in [write for write in primary.writes if self.epoch_of[write] == self.ledger.epoch]:
            if sum(write in node.writes for node in attached) >= self.w:
                self.lost_by.setdefault(write, set())

    def write(self, primary: Node) -> None:
        if self.chance(20):
            primary.append(PING)
            return
        number = len(self.epoch_of) + 1
        self.epoch_of[number] = self.ledger.epoch
        primary.append(number)

    def forget(self, node: Node) -> None:
        node.intact = False
        for write in node.writes & self.lost_by.keys():
            self.lost_by[write].add(node.name)

    def crash(self, node: Node) -> None:
        if node.up:
            node.recorded = position(self.ballot(node, 0), self.ledger, {}) or node.recorded
        self.forget(node)
        node.up, node.primary = False, None
        if node is self.leader:
            self.leader = None
        for other in self.nodes:
            if other.primary is node:
                other.primary = None

    def restart(self, node: Node) -> None:
        kind = self.random.choice(self.restarts)
        if kind == "empty":
            node.stream, node.offset, node.replid, node.replid2, node.second = [], 0, self.new_replid(), "", -1
        else:
            lost = self.random.randint(0, min(3, len(node.stream), node.offset))
            node.stream = node.stream[: len(node.stream) - lost]
            node.offset -= lost
            if kind == "aof":
                node.offset, node.replid, node.replid2, node.second = 0, self.new_replid(), "", -1
            elif node.offset < node.second - 1:
                node.replid, node.replid2, node.second = node.replid2, "", -1
        node.up, node.loaded = True, (node.replid, node.offset)

    def freeze(self, node: Node) -> None:
        node.primary = None
        for other in self.nodes:
            if other.primary is node:
                other.primary = None

    # --- election ---------------------------------------------------------------------------------------------------

    def ballot(self, node: Node, round_: int) -> Ballot:
        return Ballot(
            member=node.name,
            round=round_,
            guid=f"guid-{node.name}",
            up=node.up,
            intact=node.intact,
            reloaded=node.loaded == (node.replid, node.offset),
            priority=self.random.randint(1, 3),
            keys=len(node.writes),
            replid=node.replid,
            replid2=node.replid2,
            second_offset_bytes=node.second,
            offset_bytes=node.offset,
            recorded=node.recorded,
            promotions=tuple(node.promotions.items()),
        )

    def elect(self, present: list[Node]) -> tuple[Node, Ledger] | None:
        """Those present freeze and vote; anyone that may claim does."""
        round_ = self.ledger.epoch + 1
        for node in present:
            if node.up:
                self.freeze(node)
        if self.leader is not None and self.chance(50):
            # The old primary is not fenced yet: what it had sent reaches those that have not frozen.
            for node in self.nodes:
                self.replicate(node)
        ballots = {node.name: self.ballot(node, round_) for node in present}
        live = frozenset(ballots)
        claims = []
        for node in present:
            verdict = decide(
                me=node.name,
                round_=round_,
                ballots=ballots,
                live=live,
                standing_owner="",
                last_offset_bytes=None,
                ledger=self.ledger,
                rules=self.rules,
                started_at=0.0,
                now=1.0,
            )
            if verdict.outcome is Outcome.CLAIM:
                after = claimed(me=node.name, verdict=verdict, ballots=ballots, ledger=self.ledger)
                claims.append((node, after))
        up = [node for node in present if node.up and node.intact]
        known = [node for node in up if position(ballots[node.name], self.ledger, all_promotions(ballots))]
        assert claims or len(known) < self.needed, "a quorum of intact members elects nobody"
        return self.random.choice(claims) if claims else None

    def promote(self, node: Node) -> None:
        node.replid2, node.second, node.replid = node.replid, node.offset + 1, self.new_replid()
        node.promotions[node.replid] = self.ledger.epoch
        for _ in range(self.random.randint(0, 2)):
            node.append(PING)

    def serve(self, node: Node) -> None:
        self.ledger = with_served(self.ledger, self.ledger.epoch, node.replid)
        self.leader, self.served = node, self.served + 1
        node.intact = True
        minority = (len(self.nodes) - 1) // 2
        for write, lost_by in self.lost_by.items():
            missing = write not in node.writes and len(lost_by) <= minority
            assert not missing, f"write {write} was confirmed, and {node.name} serves without it"
        for write in node.writes & self.lost_by.keys():
            self.lost_by[write].discard(node.name)

    # --- the story --------------------------------------------------------------------------------------------------

    def lead(self) -> None:
        """A while under a serving leader."""
        leader = self.leader
        assert leader is not None
        for _ in range(self.random.randint(1, 12)):
            node = self.random.choice(self.nodes)
            if node is leader:
                self.write(leader)
            elif not node.up:
                self.restart(node)
            elif node.primary is not leader:
                self.attach(node, leader)
            elif self.chance(4):
                self.crash(node)  # A follower: the leader's own end comes below.
            else:
                self.replicate(node)
            self.confirm(leader)

    def run(self, elections: int) -> None:
        for _ in range(elections):
            if self.leader is not None:
                self.lead()
            power_loss = self.chance(6)
            for node in self.nodes:
                if power_loss or self.chance(25 if node is self.leader else 8):
                    self.crash(node)
                if not node.up and self.chance(70):
                    self.restart(node)
            present = [node for node in self.nodes if self.chance(85)]
            won = self.elect(present)
            self.leader = None
            if won is None:
                continue
            node, self.ledger = won
            if self.chance(15):
                self.crash(node)
            if not node.up:
                continue
            self.freeze(node)
            self.promote(node)
            if self.chance(20):
                # Somebody follows it although it does not serve yet; then it dies, or it is only deposed.
                follower = self.random.choice(self.nodes)
                if follower is not node and follower.up:
                    self.attach(follower, node)
                    self.replicate(follower)
                if self.chance(50):
                    self.crash(node)
                continue
            self.serve(node)


RESTARTS = {"rdb": ("rdb",), "aof": ("aof",), "empty": ("empty",), "any": ("rdb", "aof", "empty")}


# case B10
# case B14
@pytest.mark.parametrize("restarts", RESTARTS)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32), voters=st.sampled_from([1, 2, 3, 4, 5]))
def test_no_elected_leader_lacks_a_confirmed_write(restarts: str, seed: int, voters: int) -> None:
    """Whatever fails and restarts, while at most a minority lost it from memory, what WAIT confirmed is there."""
    History(seed, voters, restarts=RESTARTS[restarts]).run(elections=25)


def test_the_histories_are_worth_something() -> None:
    """The model does elect leaders, confirm writes, lose members' memory, and leave epochs unserved."""
    histories = [History(seed, 3, restarts=RESTARTS["any"]) for seed in range(30)]
    for history in histories:
        history.run(elections=25)
    assert sum(history.served for history in histories) > 200
    assert sum(len(history.lost_by) for history in histories) > 200
    assert sum(bool(lost_by) for history in histories for lost_by in history.lost_by.values()) > 20
    unserved = [entry for history in histories for entry in history.ledger.entries if not entry.served]
    assert len(unserved) > 50


def test_a_ledger_survives_many_failed_claims() -> None:
    """A hundred claims that never served later, every member of the last served epoch still has its position."""
    history = History(1, 3, restarts=("rdb",))
    while history.served == 0:
        history.run(elections=1)
    node = history.leader
    assert node is not None
    ballot = history.ballot(node, 0)
    before = position(ballot, history.ledger, {})
    for epoch in range(history.ledger.epoch + 1, history.ledger.epoch + 101):
        assert before is not None
        failed = LedgerEntry(epoch=epoch, member=node.name, guid="guid", start=before)
        history.ledger = append_entry(history.ledger, failed)
    assert position(ballot, history.ledger, {}) == before
