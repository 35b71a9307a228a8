"""What is read of the cluster, when, and what is learnt from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from enum import Flag, auto
from typing import TypeVar

from redis_agent import machine
from redis_agent.core.base import Base
from redis_agent.messages import Read, ReadDone, ReadFailed, WatchFired, Znode
from redis_agent.replication import Address
from redis_agent.znodes import (
    Corrupt,
    Presence,
    decode_ballot,
    decode_config,
    decode_leader,
    decode_ledger,
    decode_member,
    decode_order,
    decode_presence,
    split_ballot,
)

RETRY_S = 0.2
UNREADABLE = "a znode cannot be read"
Payload = TypeVar("Payload")


class Part(Flag):
    """What a read covers. In a failover each request costs every member time, so only what is needed is read."""

    NOTHING = 0
    LEADER = auto()
    """The ledger and ``leader``."""
    BALLOTS = auto()
    PRESENCES = auto()
    SETTINGS = auto()
    """``config`` and the members."""
    ORDERS = auto()
    """For the leader only."""
    ALL = LEADER | BALLOTS | PRESENCES | SETTINGS


class Reading(Base):
    """Keeps ``view`` up to date: one read at a time; what changes meanwhile is read again after it."""

    taking_over_request = 0
    """Of the ``serve`` transaction in flight."""
    designate_request = 0
    """Of the transaction in flight that names a successor."""
    _wanted = Part.NOTHING
    _owed = Part.NOTHING
    """What a failed read was to show: read with the next one."""
    _reading = Part.NOTHING
    _must_sync = True
    """Who leads is to be read behind a sync."""
    _read_request = 0
    _barrier = 0

    def look(self, parts: Part = Part.LEADER, *, hint: bool = False) -> None:
        """Read this as soon as it may be read.

        A watch's ``hint`` needs no sync: our server has the change that it tells of, and what follows from it is tried
        by conditional writes. What was asked by nobody's hint may rest on an older state of our server.
        """
        self._wanted |= parts
        self._must_sync |= Part.LEADER in parts and not hint

    def look_at_all(self) -> None:
        self.look(Part.ALL)

    def look_at_orders(self) -> None:
        """With who is fit to carry them out: nobody watches what presences say."""
        self.look(Part.ORDERS | Part.PRESENCES)

    def look_later(self) -> None:
        """What stands in the way may take its time: look again after a while, once."""
        if "look" not in self.timers:
            self.arm("look", self.now + 1.0)

    def barrier(self) -> int:
        """A request number for a write about leadership. What was read before it is out of date when it arrives."""
        self._barrier = self.request()
        return self._barrier

    def forget_reads(self) -> None:
        """The connection is gone: what was asked is answered no more."""
        self._must_sync = True
        if self._read_request:
            self._owed |= self._reading
        self._read_request = 0
        self.view.presences_known = False

    def forget_everything_read(self) -> None:
        """The session is gone."""
        self._wanted = self._reading = self._owed = Part.NOTHING
        self._read_request = self.taking_over_request = self.designate_request = 0

    def _may_read(self) -> bool:
        """On the way to the first write a read would only be in the way; conditional writes tell of a rival there."""
        if self.state == machine.TAKING_OVER:
            return not (self.role_requests or self.taking_over_request)
        if self.state == machine.SERVING:
            return "lift" not in self.role_requests.values()
        if self.state in (machine.CLAIMING, machine.SUCCEEDING, machine.RECLAIMING):
            return not self.round.claim_request
        if self.state in (machine.SEALING, machine.DESIGNATING):
            return not (self.role_requests or self.designate_request)
        if self.state == machine.FREEZING:
            return not self.round.ballot_request and "freeze" not in self.role_requests.values()
        return not (self.state == machine.VOTING and self.round.ballot_request)

    def send_read(self) -> None:
        parts = self._wanted
        if not parts or self._read_request or not self.session.connected or not self.session.ensured:
            return
        if not self._may_read():
            return
        parts |= self._owed
        self._owed = Part.NOTHING
        paths = self.paths
        # The ledger before the leader: each later read is at least as new, so a leader that is missing behind epoch n
        # is the leader of epoch n, gone.
        names = [paths.epoch]
        names += [paths.leader] if Part.LEADER in parts else []
        trees = [paths.ballots] if Part.BALLOTS in parts else []
        trees += [paths.presences] if Part.PRESENCES in parts else []
        trees += [paths.orders] if Part.ORDERS in parts else []
        if Part.SETTINGS in parts:
            names, trees = [paths.config, *names], [*trees, paths.members]
        self._wanted, self._reading = Part.NOTHING, parts
        self._read_request = self.request()
        # A claim checks everything else.
        sync = Part.LEADER in parts and (self._must_sync or not self.view.fresh)
        if Part.LEADER in parts:
            self._must_sync = False
        self.order(
            Read(self.session.number, self._read_request, paths=tuple(names), trees=tuple(trees), sync=sync),
        )

    def on_watch_fired(self, event: WatchFired) -> None:
        paths = self.paths
        if event.path in (paths.config, paths.members):
            self.look(Part.SETTINGS | Part.LEADER, hint=True)
        elif event.path == paths.presences:
            self.view.presences_known = False
            self.look(Part.PRESENCES, hint=True)
        elif event.path == paths.orders:
            if self.state == machine.SERVING:
                self.look_at_orders()
        elif event.path == paths.ballots:
            if self.state == machine.VOTING:
                self.look(Part.BALLOTS, hint=True)
        else:
            self.look(Part.LEADER, hint=True)

    def on_read_failed(self, event: ReadFailed) -> None:
        if event.request == self._read_request:
            self._read_request = 0
            self._owed |= self._reading
            self._must_sync = True
            self.arm("look", self.now + RETRY_S)

    def read_done(self, event: ReadDone) -> bool:
        """Take in what was read. False: it was nothing to go by."""
        if event.request != self._read_request:
            return False
        self._read_request = 0
        if event.request < self._barrier:
            self.look(self._reading | Part.LEADER)
            return False
        try:
            self._learn(event)
        except Corrupt as error:
            # Not ours to mend, and nothing to act on: keep the view that we have, out of date, and say so.
            self.view.fresh = False
            self._owed |= self._reading
            self.log("error", "unreadable_znode", problem=str(error))
            self.reason = f"{UNREADABLE}: {error}"
            self.arm("look", self.now + self.settings.reread_s)
            return False
        if self.session.registered and self.paths.leader in event.paths:
            self.view.fresh = True
        if self.reason.startswith(UNREADABLE):
            self.reason = ""
        return True

    # --- learning ---------------------------------------------------------------------------------------------------

    def _learn(self, event: ReadDone) -> None:
        view, paths = self.view, self.paths
        for path in (paths.config, paths.epoch):
            if path in event.paths and event.paths[path] is None:
                raise Corrupt(f"{path} is gone: restore it")
        if config := event.paths.get(paths.config):
            view.config, view.config_data = decode_config(config.data), config.data
            view.config_version = config.version
            self._forget_another_cluster()
        if paths.members in event.trees:
            view.members = dict(self._decoded(event.trees[paths.members], decode_member))
        if paths.presences in event.trees:
            self._learn_presences(event.trees[paths.presences])
        if ledger := event.paths.get(paths.epoch):
            if ledger.version != view.ledger_version and paths.leader not in event.paths:
                # Somebody claimed, and what we know of `leader` is older than that.
                view.fresh = False
                self.look()
            view.ledger, view.ledger_version = decode_ledger(ledger.data), ledger.version
        if paths.leader in event.paths:
            leader = event.paths[paths.leader]
            view.leader = decode_leader(leader.data) if leader else None
            view.leader_version = leader.version if leader else -1
        if paths.ballots in event.trees:
            self._learn_ballots(event.trees[paths.ballots])
        if paths.orders in event.trees:
            view.orders = dict(self._decoded(event.trees[paths.orders], decode_order))
            view.order_versions = {name: node.version for name, node in event.trees[paths.orders].items()}
            versions = view.order_versions.items()
            view.unreadable_orders = {name: version for name, version in versions if name not in view.orders}

    def _decoded(self, nodes: Mapping[str, Znode], decode: Callable[[bytes], Payload]) -> Iterator[tuple[str, Payload]]:
        """What can be read of a tree: one member's garbage must not stop everybody's election."""
        for name, node in nodes.items():
            try:
                yield name, decode(node.data)
            except Corrupt as error:
                self.log("error", "unreadable_znode", name=name, problem=str(error))

    def _learn_presences(self, nodes: Mapping[str, Znode]) -> None:
        known = dict(self._decoded(nodes, decode_presence))
        self.view.presences = {name: known.get(name) or _unreadable(name) for name in nodes}
        self.view.presence_versions = {name: node.version for name, node in nodes.items()}
        self.view.presences_known = True
        self.view.presences_read_at = self.now
        leader = self.view.leader
        presence = self.view.presences.get(leader.name) if leader else None
        if presence is not None and leader is not None and presence.replid == leader.replid:
            seen = self.offsets_seen.get(leader.replid, -1)
            self.offsets_seen = {leader.replid: max(seen, presence.offset_bytes)}

    def _learn_ballots(self, nodes: Mapping[str, Znode]) -> None:
        view = self.view
        current: dict[str, Znode] = {}
        stale: list[str] = []
        for name, node in nodes.items():
            parts = split_ballot(name)
            if parts is None:
                continue
            round_, member = parts
            if member == self.settings.name:
                # Also a ballot of an earlier life binds us: never follow a leader of a lower epoch.
                self.promised_round = max(self.promised_round, round_)
            if round_ == view.ledger.epoch + 1:
                current[member] = node
            elif round_ <= view.ledger.epoch:
                stale.append(name)
        view.ballots, view.stale_ballots = dict(self._decoded(current, decode_ballot)), tuple(sorted(stale))
        mine = self.round
        ours = mine.number == view.ledger.epoch + 1 and mine.cast_at is not None and not mine.ballot_request
        if ours and self.state in machine.CANDIDATE and self.settings.name not in current:
            # Somebody removed it. It is as true as it was: cast it again.
            mine.cast_at = mine.complete_since = None

    def _forget_another_cluster(self) -> None:
        """A state file that is about another cluster proves nothing here, and binds us to nothing."""
        cluster_id, record = self.view.config.cluster_id, self.record
        if not record.cluster_id or not cluster_id or record.cluster_id == cluster_id:
            return
        self.log("warning", "state_file_of_another_cluster", ours=cluster_id, found=record.cluster_id)
        self.recorded = None
        self.promised_round = 0  # The ballots, which are read together with the settings, tell what binds us here.
        self.record = replace(record, cluster_id="", promised_round=0, promotions=(), epoch=0, offset_bytes=-1)


def _unreadable(name: str) -> Presence:
    return Presence(name=name, guid="", redis=Address("", 0), reason="its presence cannot be read")
