"""A reign: one simulated ZooKeeper server as the leader, from its election until it steps down or dies.

It proposes, counts who has logged what, and commits. It alone knows when sessions expire and which server each one is
connected to; the next leader starts all that anew. Cut off from the others it goes on as if nothing had happened, for
up to ``SYNC_LIMIT_TICKS``: it touches its own clients' sessions, ends others' (which is never committed), answers
``sync`` while nothing is proposed, and commits nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from redis_agent.messages import Op, ZkError
from tests.sim.world import Pipe
from tests.sim.zk_tree import Change, Outcome, Txn

if TYPE_CHECKING:
    from tests.sim.zk_server import Server
    from tests.sim.zookeeper import Ensemble

SYNC_LIMIT_TICKS = 5
"""ZooKeeper's usual syncLimit."""

BEHIND_S = 0.0003
"""How far the thread that decides requests is behind the one that hears where sessions are."""

EXPIRED = Outcome(expired=True)
MOVED = Outcome(moved=True)


class Link:
    """A follower's connection to its leader; in order in each direction. Dead once either end has given it up."""

    __slots__ = ("acked", "down", "follower", "heard_at", "leader", "reign", "up")

    def __init__(self, reign: Reign, follower: Server) -> None:
        self.reign = reign
        self.leader = reign.server
        self.follower = follower
        self.heard_at = reign.world.now
        self.acked = 0
        net = reign.ensemble.net
        self.down = Pipe(net, self.leader.name, follower.name)
        self.up = Pipe(net, follower.name, self.leader.name)

    def to_leader(self, fn: Callable[..., None], *args: Any) -> None:
        self.up.send(self.leader.process.run, self._heard, fn, args)

    def _heard(self, fn: Callable[..., None], args: tuple[Any, ...]) -> None:
        if self.reign.links.get(self.follower) is self:
            self.heard_at = self.reign.world.now
            fn(*args)

    def to_follower(self, fn: Callable[..., None], *args: Any) -> None:
        self.down.send(self.follower.process.run, self._told, fn, args)

    def _told(self, fn: Callable[..., None], args: tuple[Any, ...]) -> None:
        if self.follower.link is self:
            self.follower.leader_heard_at = self.reign.world.now
            fn(*args)


class Reign:
    """``expires`` holds the sessions that this leader believes in, ``prep`` the tree with all that was proposed."""

    def __init__(self, ensemble: Ensemble, server: Server, epoch: int) -> None:
        self.ensemble = ensemble
        self.world = ensemble.world
        self.server = server
        self.epoch = epoch
        self.zxid = epoch << 32
        self.over = False
        self.prep = server.tree.copy()
        self.links: dict[Server, Link] = {}
        self.expires: dict[int, float] = {}
        self._owners: dict[int, Server] = {}
        self._pending: deque[Txn] = deque()
        self._logged = 0  # by this server itself
        self._syncs: dict[int, list[Callable[[], None]]] = {}
        self._skip = True
        self._phase = self.world.uniform(0.0, ensemble.tick_s)
        for session in self.prep.sessions:
            self._expire_later(session)
        server.process.after(self._phase, self._tick)
        server.process.after(ensemble.tick_s / 2, self._half_tick)

    # -- sessions ---------------------------------------------------------------------------------------------------

    def touch(self, session: int) -> bool:
        """A sign of life; False if this leader knows no such session."""
        if session not in self.expires:
            return False
        self._expire_later(session)
        return True

    def _expire_later(self, session: int) -> None:
        """Expiry falls on the tick boundary after the timeout: never early, and never earlier than it was."""
        tick_s = self.ensemble.tick_s
        until = self.world.now + self.prep.sessions[session] - self._phase
        at = (until // tick_s + 1) * tick_s + self._phase
        self.expires[session] = max(self.expires.get(session, 0.0), at)

    def _tick(self) -> None:
        if not self.over:
            self.server.process.after(self.ensemble.tick_s, self._tick)
            self.expire_due()

    def expire_due(self) -> None:
        now = self.world.now + 1e-9
        for session in [session for session, at in self.expires.items() if at <= now]:
            self.end(None, 0, session, "expired")

    def end(self, origin: Server | None, request: int, session: int, why: str) -> None:
        """The session is over, by expiry or because its client closed it: its ephemerals go in one transaction.

        From now on it is gone for this leader, whatever becomes of the transaction.
        """
        if self.over:
            return
        if session not in self.expires:
            zxid = self.zxid + 1
            self._propose(Txn(zxid, label="no such session", origin=origin, request=request, outcome=EXPIRED))
            return
        del self.expires[session]
        self._owners.pop(session, None)
        label = f"session {session:#x} {why}"
        if self.world.tracing:
            self.world.log("zk", f"{label} (says {self.server.name})")
        changes = self.prep.end(session)
        self._propose(Txn(self.zxid + 1, changes=changes, label=label, ends=session, origin=origin, request=request))

    def open(self, origin: Server, request: int, session: int, timeout_s: float) -> None:
        if self.over:
            return
        tick_s = self.ensemble.tick_s
        timeout_s = min(max(timeout_s, 2 * tick_s), 20 * tick_s)
        label = f"session {session:#x} opened"
        zxid = self.zxid + 1
        self._propose(Txn(zxid, label=label, opens=session, timeout_s=timeout_s, origin=origin, request=request))
        self._owners[session] = origin
        self._expire_later(session)

    def revalidate(self, origin: Server, session: int, answer: Callable[[float], None]) -> None:
        """A client has come back, to this server: the session's timeout, 0 if there is no such session."""
        if self.over:
            return
        if self.touch(session):
            self._owners[session] = origin
            answer(self.prep.sessions[session])
        else:
            answer(0.0)

    # -- requests ---------------------------------------------------------------------------------------------------

    def request(self, origin: Server, request: int, session: int, ops: tuple[Op, ...], label: str) -> None:
        """Decide a transaction of a client, on top of all that was proposed before.

        One that its session has overtaken is decided a moment later: should an old attempt of the client to come back
        to the same server arrive right behind it, the session is there again, and the request is done after all.
        """
        if self._owners.get(session, origin) is origin:
            self._decide(origin, request, session, ops, label)
        else:
            self.server.process.after(BEHIND_S, self._decide, origin, request, session, ops, label)

    def _decide(self, origin: Server, request: int, session: int, ops: tuple[Op, ...], label: str) -> None:
        if self.over:
            return
        zxid = self.zxid + 1
        changes: tuple[Change, ...] = ()
        if session not in self.expires:
            outcome = EXPIRED
        elif self._owners.setdefault(session, origin) is not origin:
            outcome = MOVED
        else:
            outcome, changes = self.prep.decide(ops, zxid, session)
        if outcome.error is not None and self.world.tracing:
            op = ops[outcome.index]
            self.world.log(
                "zk", f"refused [{label}]: op {outcome.index} {type(op).__name__} {op.path}: {outcome.error.value}"
            )
        self._propose(Txn(zxid, session, changes, label, origin=origin, request=request, outcome=outcome))

    def sync(self, answer: Callable[[], None]) -> None:
        """Behind what is proposed now. No quorum is asked."""
        if self.over:
            return
        if self._pending:
            self._syncs.setdefault(self._pending[-1].zxid, []).append(answer)
        else:
            answer()

    def by_hand(self, ops: tuple[Op, ...], label: str) -> Outcome:
        """An operator's transaction. It is committed when this returns, and so is all that was proposed before.

        The disks and the network happen to be quick, as far as they can be: refused if too few are in step.
        """
        near = [
            each for each in self.links if each.link is self.links[each] and each.last_logged >= self.server.applied
        ]
        if 1 + len(near) < self.ensemble.majority:
            return Outcome(error=ZkError.OTHER)
        zxid = self.zxid + 1
        outcome, changes = self.prep.decide(ops, zxid, 0)
        if outcome.error is not None:
            return outcome
        self._propose(Txn(zxid, changes=changes, label=label))
        for follower in near:
            for txn in self._pending:
                follower.log(txn)
        while self._pending and self._pending[0].zxid <= zxid:
            self._commit(self._pending.popleft())
        return outcome

    # -- agreement --------------------------------------------------------------------------------------------------

    def _propose(self, txn: Txn) -> None:
        self.zxid = txn.zxid
        self.prep.apply(txn)
        self._pending.append(txn)
        for link in self.links.values():
            link.to_follower(link.follower.on_proposal, link, txn)
        self.server.fsync(self._on_logged, txn)

    def _on_logged(self, txn: Txn) -> None:
        if self.over:
            self.server.log_late(self.epoch, txn)
        else:
            self.server.log(txn)
            self._logged = txn.zxid
            self._advance()

    def on_ack(self, link: Link, zxid: int) -> None:
        """A follower has this on disk, and all before it."""
        link.acked = zxid
        self._advance()

    def _advance(self) -> None:
        while self._pending and not self.over:
            zxid = self._pending[0].zxid
            have = (self._logged >= zxid) + sum(link.acked >= zxid for link in self.links.values())
            if have < self.ensemble.majority:
                return
            self._commit(self._pending.popleft())

    def _commit(self, txn: Txn) -> None:
        self.ensemble.commit(txn)
        for link in self.links.values():
            link.to_follower(link.follower.on_commit, txn)
        self.server.apply(txn)
        for answer in self._syncs.pop(txn.zxid, ()):
            answer()

    # -- followers --------------------------------------------------------------------------------------------------

    def admit(self, follower: Server) -> None:
        """It gets what was committed here, and then what is proposed."""
        link = Link(self, follower)
        self.links[follower] = link
        follower.follow(link)
        for txn in self._pending:
            link.to_follower(follower.on_proposal, link, txn)

    def on_gone(self, follower: Server) -> None:
        """Its connection has ended."""
        self.links.pop(follower, None)

    def on_relay(self, touched: dict[int, None]) -> None:
        """A follower's answer to a ping: the sessions that it has heard from."""
        for session in touched:
            self.touch(session)

    def synced(self) -> int:
        """How many servers, itself included, are in step as far as it knows."""
        since = self.world.now - SYNC_LIMIT_TICKS * self.ensemble.tick_s
        return 1 + sum(link.heard_at >= since for link in self.links.values())

    def _half_tick(self) -> None:
        """Ping; every other time see whether there is a quorum."""
        if self.over:
            return
        since = self.world.now - SYNC_LIMIT_TICKS * self.ensemble.tick_s
        for link in list(self.links.values()):
            if link.heard_at < since:
                self._cast_off(link)
        self._skip = not self._skip
        if self._skip and 1 + len(self.links) < self.ensemble.majority:
            self.server.look_for_leader("not enough followers")
            return
        for link in self.links.values():
            link.to_follower(link.follower.on_leader_ping, link)
        self.server.process.after(self.ensemble.tick_s / 2, self._half_tick)

    def _cast_off(self, link: Link) -> None:
        del self.links[link.follower]
        link.to_follower(link.follower.on_leader_gone)

    def end_reign(self) -> None:
        self.over = True
        self._syncs.clear()
        for link in list(self.links.values()):
            self._cast_off(link)
