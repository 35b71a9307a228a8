"""The ZooKeeper session: joining, reading, heartbeats, expiry."""

from __future__ import annotations

from math import inf

from redis_agent import machine
from redis_agent.core.base import Goal, Session, View
from redis_agent.core.reading import RETRY_S, UNREADABLE, Reading
from redis_agent.lease import steady_lease
from redis_agent.messages import (
    Check,
    CloseSession,
    Commit,
    CommitDone,
    CommitRefused,
    CommitUnknown,
    Create,
    Delete,
    Ensure,
    Op,
    OpenSession,
    Put,
    ReadDone,
    Ready,
    SessionDown,
    SessionFailed,
    SessionUp,
    ZkError,
)
from redis_agent.replication import Ledger
from redis_agent.znodes import (
    ClusterConfig,
    Corrupt,
    Member,
    Presence,
    encode,
    merge_config,
)

NAME_TAKEN_LOOK_S = 1.0
TELL_ABSENCE_S = 30.0


class Sessions(Reading):
    """Joins and stays in the cluster; keeps ``view`` up to date; keeps the lease."""

    _bootstrap_request = 0
    _cleared_request = 0
    _wait_request = 0
    _foreign_presence: tuple[int, float] | None = None

    # --- life of a session ------------------------------------------------------------------------------------------

    def renew_session(self) -> None:
        """Drop the client and everything learnt through it; a fresh one makes a fresh session."""
        self.lease.closed()
        self.session = Session(self.session.number + 1)
        self.view = View()
        self.round.claim_request = self.round.ballot_request = 0
        self.forget_everything_read()
        self._bootstrap_request = self._cleared_request = self._wait_request = 0
        self.forget_orders()
        for timer in ("heartbeat", "reread", "join", "forsake"):
            self.disarm(timer)
        self.arm("absent", self.now + self.settings.session_timeout_s)
        self.order(OpenSession(self.session.number))

    def forget_orders(self) -> None:
        """What was in flight about them is answered no more."""

    def tell_absence(self) -> None:
        """Without ZooKeeper nothing goes on here: say so once in a while."""
        if not self.session.connected and not self.stopping:
            self.log("warning", "no_zookeeper", state=self.state, remedy="see that its servers run and can be reached")
            self.arm("absent", self.now + TELL_ABSENCE_S)

    def on_session_up(self, event: SessionUp) -> None:
        session = self.session
        session.connected = True
        self.disarm("absent")
        self.view.fresh = False
        self.forget_reads()
        self.log("info", "session_up", new=event.is_new, timeout_s=event.timeout_s, session=hex(event.zk_session_id))
        if event.is_new:
            session.guid, session.zk_id, session.timeout_s = event.guid, event.zk_session_id, event.timeout_s
            self.lease.opened(timeout_s=event.timeout_s, sent_at=event.sent_at)
            self.fire("session_up")
            self._check_timeout(event.timeout_s)
        if session.ensured:
            self.look_at_all()
            if self.state == machine.SERVING:
                self.look_at_orders()
        else:
            self._ensure()
        self.arm("reread", self.now + self.settings.reread_s)
        self.arm("heartbeat", self.now)

    def _check_timeout(self, timeout_s: float) -> None:
        settings = self.settings
        left_s, arithmetic = steady_lease(
            timeout_s=timeout_s,
            tick_s=settings.tick_s,
            heartbeat_s=settings.heartbeat_s,
            fence_budget_s=settings.fence_budget_s,
        )
        if left_s < settings.min_claim_lease_s:
            self.fail(
                2,
                f"ZooKeeper grants {timeout_s:g} s of the {settings.session_timeout_s:g} s asked for, which leaves too "
                f"little lease: {arithmetic}, less than min_claim_lease_s {settings.min_claim_lease_s:g}; "
                "raise its maxSessionTimeout, or lower heartbeat_s, and its tickTime with tick_s",
            )

    def on_session_down(self, _event: SessionDown) -> None:
        self.session.connected = False
        self.arm("absent", self.now + self.settings.session_timeout_s)
        self.view.fresh = False
        self.forget_reads()
        self.log("warning", "session_down", lease_left_s=round(self.lease.until - self.now, 3))

    def on_session_expired(self) -> None:
        self.log("warning", "session_expired", session=hex(self.session.zk_id))
        self.session.connected = False
        self.lease.closed()
        self.fire("session_expired")

    def forsake_session(self) -> None:
        """We led in it, and have not been able to prove it for as long as it should have lived without us.

        If ZooKeeper hears us but we do not hear it, each attempt to connect keeps it alive, and ``leader`` with it, for
        ever: let go of it, so that it can end.
        """
        if self.state != machine.CONNECTING or self.session.connected or self.lease.valid(self.now):
            return
        self.log("warning", "session_forsaken", session=hex(self.session.zk_id))
        self.lease.closed()
        self.fire("session_expired")

    def on_session_failed(self, event: SessionFailed) -> None:
        self.fail(2, f"ZooKeeper refuses this agent: {event.reason}")

    def fail(self, code: int, reason: str) -> None:
        """Stop in order, because of something that a person must mend."""
        self.log("error", "giving_up", reason=reason)
        self.exit_code, self.exit_reason = code, reason
        self.pursue(Goal.FAIL)

    def pursue(self, goal: Goal) -> None:
        """Change what we are there for; how to get there is considered behind each event. Failing is not undone."""
        if self.goal is not Goal.FAIL:
            self.goal, self.goal_since = goal, self.now

    def close_session(self) -> None:
        """Take back our presence and close: nobody need wait for a timeout."""
        if self.session.connected and self.session.registered:
            ops = (Delete(self.paths.presence(self.settings.name)),)
            self.order(Commit(self.session.number, self.request(), "leave", ops))
        self.order(CloseSession(self.session.number, self.settings.close_session_s))
        self.arm("close", self.now + 2 * self.settings.close_session_s)

    # --- joining ----------------------------------------------------------------------------------------------------

    def _ensure(self) -> None:
        paths = self.paths
        request = self.session.joining_request = self.request()
        parts = paths.base.split("/")
        nodes = [
            *(("/".join(parts[:depth]), b"") for depth in range(2, len(parts) + 1)),
            (paths.config, encode(ClusterConfig(mode=self.settings.mode, max_lag_bytes=self.settings.max_lag_bytes))),
            (paths.epoch, encode(Ledger())),
            *((path, b"") for path in (paths.members, paths.presences, paths.ballots, paths.orders)),
        ]
        self.order(Ensure(self.session.number, request, tuple(nodes)))

    def _join(self) -> None:
        """Register, and replace what an earlier life of this very agent left behind."""
        session, name = self.session, self.settings.name
        if session.registered or session.joining_request or self.stopping:
            return
        ops: list[Op] = []
        member = Member(
            name=name, redis=self.settings.redis, voter=self.settings.voter, priority=self.settings.priority
        )
        known = self.view.members.get(name)
        if known is None:
            ops.append(Create(self.paths.member(name), encode(member)))
        elif known != member:
            ops.append(Put(self.paths.member(name), encode(member)))
        standing = self.view.presences.get(name)
        if standing is not None and standing.guid != session.guid:
            if not self._is_leftover(standing.guid):
                self._name_is_taken(standing)
                return
            # A stopped agent can't rewrite its presence, so the version shows that it is still as we read it.
            ops.append(Delete(self.paths.presence(name), self.view.presence_versions[name]))
        leader = self.view.leader
        leftover = leader is not None and leader.name == name and leader.guid != session.guid
        if leader is not None and leftover and self._is_leftover(leader.guid):
            open_ = self.redis.lifted and not self.redis.killed
            if open_ or (self.old_redis_alive and not (self.redis.attached and self.redis.up)):
                self.reason = "making sure that our Redis is fenced, before its earlier leadership is given up"
                self.arm("join", self.now + RETRY_S)
                return
            # Our Redis of then is dead or fenced, so nobody need wait for the session that it was promoted under.
            ops += [Check(self.paths.epoch, self.view.ledger_version), Delete(self.paths.leader)]
        if standing is None or standing.guid != session.guid:
            ops.append(Create(self.paths.presence(name), encode(self.presence()), ephemeral=True))
        self._foreign_presence = None
        session.joining_request = self.barrier()
        self.order(Commit(session.number, session.joining_request, "join", tuple(ops)))

    def _is_leftover(self, guid: str) -> bool:
        """Of our own earlier life: the lock file says that it is over, the state file that it was ours."""
        return self.lock_held and bool(guid) and guid == self._earlier_guid

    _earlier_guid = ""

    def _name_is_taken(self, standing: Presence) -> None:
        version = self.view.presence_versions[self.settings.name]
        if self._foreign_presence is None:
            self._foreign_presence = (version, self.now)
        first_version, since = self._foreign_presence
        where = f"{standing.host or 'an unknown host'}, process {standing.pid}"
        # The session of a host that was replaced ends by itself, and its timeout may be longer than ours.
        limit_s = max(self.settings.name_taken_s, 2 * self.settings.session_timeout_s + self.settings.tick_s)
        if version != first_version or self.now - since > limit_s:
            self.fail(2, f'the name "{self.settings.name}" is in use by a live agent on {where}: choose another')
            return
        self.reason = f"waiting for the session of an earlier agent of this name ({where}) to end"
        self.arm("join", self.now + NAME_TAKEN_LOOK_S)

    def _joined(self) -> None:
        session = self.session
        session.registered = True
        self._earlier_guid = session.guid
        self.save(f"guid {session.guid}", guid=session.guid)
        self.arm("heartbeat", self.now)
        self.order(Ready(f"joined {self.paths.base} as {self.settings.name}"))
        self.look_at_all()

    def _bootstrap(self) -> None:
        """A new cluster: as soon as enough members are there they become its voters."""
        view = self.view
        if view.config.voters or self._bootstrap_request or not self.session.registered or self.stopping:
            return
        names = sorted(name for name, member in view.members.items() if member.voter and name in view.presences)
        if len(names) < self.settings.bootstrap_expect:
            self.reason = f"waiting for {self.settings.bootstrap_expect} members, {len(names)} are here"
            return
        config = ClusterConfig(
            cluster_id=self.session.guid,
            mode=self.settings.mode,
            voters=tuple(names),
            max_lag_bytes=self.settings.max_lag_bytes,
            keep=view.config.keep,
        )
        try:
            data = merge_config(view.config_data, config)
        except Corrupt as error:
            self.reason = f"{UNREADABLE}: {error}"
            self.look_later()
            return
        ops = (Put(self.paths.config, data, view.config_version),)
        self._bootstrap_request = self.request()
        self.order(Commit(self.session.number, self._bootstrap_request, "bootstrap", ops))

    # --- heartbeats -------------------------------------------------------------------------------------------------

    def heartbeat(self) -> None:
        """One committed write: it alone proves that the ensemble hears us. At most one is in flight."""
        session = self.session
        if not session.connected or not session.registered or session.heartbeat_request:
            return
        ops: list[Op] = [Check(self.paths.epoch, self.view.ledger_version)] if self.leading else []
        ops.append(Put(self.paths.presence(self.settings.name), encode(self.presence())))
        session.heartbeat_request = self.request()
        session.heartbeat_sent_at = self.now
        session.heartbeat_version = self.view.ledger_version if self.leading else -1
        self.order(Commit(session.number, session.heartbeat_request, "heartbeat", tuple(ops)))
        self.arm("heartbeat", self.now + self._heartbeat_interval_s())

    def heartbeat_answered(self) -> None:
        """Send the next one on its interval, or at once if it is overdue."""
        self.session.heartbeat_request = 0
        self.arm("heartbeat", max(self.now, self.session.heartbeat_sent_at + self._heartbeat_interval_s()))

    def _heartbeat_interval_s(self) -> float:
        settings = self.settings
        if self.leading:
            return settings.heartbeat_s
        # A follower's lease, too, must outlast what it rests on: see `steady_lease`. This leaves it a quarter.
        spare_s = self.session.timeout_s - settings.fence_budget_s - settings.tick_s
        return min(settings.presence_s, max(settings.heartbeat_s, spare_s / 4))

    def presence(self) -> Presence:
        """Our account of ourselves."""
        redis, info = self.redis, self.redis.info
        return Presence(
            name=self.settings.name,
            guid=self.session.guid,
            host=self.settings.host,
            pid=self.settings.pid,
            agent_version=self.settings.agent_version,
            state=self.state,
            epoch=self.epoch,
            round=self.round.number,
            redis=self.settings.redis,
            redis_up=redis.up and not redis.killed,
            redis_version=info.version if info else "",
            run_id=redis.run_id,
            role=("primary" if info.is_primary else "replica") if info else "",
            replid=info.replid if info else "",
            offset_bytes=info.offset_bytes if info else -1,
            primary=info.primary if info else None,
            link_up=info.link_up if info else False,
            intact=redis.intact,
            keys=info.keys if info else 0,
            restarts=self.restarts,
            sick=redis.sick,
            reason=self.reason or (self.round.reason if self.state in machine.CANDIDATE else ""),
            at=self.wall_now,
        )

    def on_read_done(self, event: ReadDone) -> None:
        if self.read_done(event):
            self._join()
            self._bootstrap()
            self.clear_ballots()

    # --- answers ----------------------------------------------------------------------------------------------------

    def clear_ballots(self) -> None:
        """Ballots of rounds that are over may go, once somebody serves."""
        view = self.view
        if not view.stale_ballots or self._cleared_request or self.state != machine.SERVING:
            return
        ops = [Check(self.paths.epoch, view.ledger_version)]
        ops += [Delete(f"{self.paths.ballots}/{name}") for name in view.stale_ballots]  # type: ignore[misc]
        view.stale_ballots = ()
        self._cleared_request = self.request()
        self.order(Commit(self.session.number, self._cleared_request, "clear ballots", tuple(ops)))

    def session_answer(self, event: CommitDone | CommitRefused | CommitUnknown) -> bool:
        """Answers to joining, bootstrap, heartbeats and clearing up. False: it was none of them."""
        session = self.session
        if event.request == session.joining_request:
            session.joining_request = 0
            self._joining_answer(event)
        elif event.request == session.heartbeat_request:
            self.heartbeat_answered()
            if isinstance(event, CommitRefused):
                self._heartbeat_refused(event)
        elif event.request == self._bootstrap_request:
            self._bootstrap_request = 0
            self.look_at_all()
        elif event.request == self._cleared_request:
            self._cleared_request = 0
        else:
            return False
        return True

    def _joining_answer(self, event: CommitDone | CommitRefused | CommitUnknown) -> None:
        session = self.session
        if isinstance(event, CommitDone):
            if session.ensured:
                self._joined()
            else:
                session.ensured = True
                self.look_at_all()
            return
        if isinstance(event, CommitRefused) and event.error is ZkError.NO_AUTH:
            self.fail(2, f"ZooKeeper refuses writes below {self.paths.base}: {event.detail or 'no permission'}")
            return
        self.arm("join", self.now + RETRY_S)

    def _heartbeat_refused(self, event: CommitRefused) -> None:
        swapping = self.state == machine.RESIGNING and self.round.claim_unknown
        if event.error is ZkError.BAD_VERSION and (self.state in machine.OFFERED or swapping):
            self.look()  # The successor whom we let it have took the epoch, or we took it back and do not know it yet.
        elif event.error is ZkError.BAD_VERSION:
            # If it insisted on another version than the present one, it was our own `serve` or claim that overtook it.
            if self.leading and self.session.heartbeat_version == self.view.ledger_version:
                self.view.fresh = False
                self.fire("deposed")
            self.look_at_all()
        elif event.error is ZkError.NO_NODE and event.index == 0 and self.session.heartbeat_version >= 0:
            self.look_at_all()  # The ledger is gone: without it no lease is renewed.
        elif event.error is ZkError.NO_NODE:
            self.log("warning", "presence_missing", path=self.paths.presence(self.settings.name))
            self.session.registered = False
            self.view.fresh = False
            self.look_at_all()

    def try_to_join(self) -> None:
        """The join timer: ensure or look again."""
        if not self.session.connected or self.session.joining_request or self.session.registered:
            return
        if self.session.ensured:
            self.look_at_all()
        else:
            self._ensure()

    @property
    def lease_deadline(self) -> float:
        return self.lease.until if self.state in machine.LEASED else inf
