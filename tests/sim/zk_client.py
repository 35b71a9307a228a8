"""The simulated ZooKeeper adapter: one client per session, on top of `zookeeper`.

It does what `redis_agent.coordination` makes of kazoo: requests fail at once unless connected, what is in flight when
the connection drops fails as unknown, a request that waits for a third of the session timeout drops the connection,
and a client ends with its session.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from redis_agent.messages import (
    CloseSession,
    Commit,
    CommitDone,
    CommitRefused,
    CommitUnknown,
    Create,
    Ensure,
    Event,
    OpenSession,
    Read,
    ReadFailed,
    SessionClosed,
    SessionDown,
    SessionExpired,
    SessionUp,
    WatchFired,
    ZkCommand,
    ZkError,
)
from tests.sim.process import Process
from tests.sim.world import Network
from tests.sim.zk_read import Reading
from tests.sim.zk_server import Connection, Listener, Request, Server
from tests.sim.zk_tree import Outcome
from tests.sim.zookeeper import Ensemble

REQUEST_LIMIT_SHARE = 1 / 3
CONNECT_LIMIT_S = 0.25
HANDSHAKE_LIMIT_S = 1.0

Call = Read | Ensure | Commit


class ZkClient(Listener):
    """The client of one session. ``post`` takes the events; ``servers``: those that it knows, if not all."""

    def __init__(
        self,
        net: Network,
        ensemble: Ensemble,
        process: Process,
        command: OpenSession,
        timeout_s: float,
        post: Callable[[Event], None],
        servers: Sequence[Server] = (),
    ) -> None:
        self.net = net
        self.world = net.world
        self.servers = servers or ensemble.servers
        self.process = process
        self.number = command.session
        self.post = post
        self.timeout_s = timeout_s
        self.session_id = 0
        self.guid = f"{self.world.rng.getrandbits(64):016x}"
        self.conn: Connection | None = None
        self.connected = False
        self.over = False
        self.expired = False
        self._attempted_at = 0.0
        self._last_sent = 0.0
        self._ping_unanswered = False
        self._last_zxid = 0
        self._backoff_s = 0.02
        self._attempt = 0
        self._in_flight: dict[int, tuple[Call, float]] = {}
        self._call = 0
        self._reading: dict[int, Reading] = {}
        self._connect()

    # -- the connection ---------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        if self.over:
            return
        self._attempt += 1
        self._attempted_at = self.process.now
        server = self.world.rng.choice(self.servers)
        if not self.net.open(self.process.host, server.name):
            self.process.after(CONNECT_LIMIT_S, self._retry, self._attempt)
            return
        self.conn = conn = Connection(self.net, self.process.host, server, self)
        conn.up.send(server.accept, conn, self.session_id, self.timeout_s, self._last_zxid)
        self.process.after(HANDSHAKE_LIMIT_S, self._retry, self._attempt)

    def _retry(self, attempt: int) -> None:
        """This attempt has led nowhere."""
        if attempt != self._attempt or self.connected or self.over:
            return
        self._close_connection()
        self._attempt += 1  # any other news of this attempt comes too late
        self.process.after(self._backoff_s * self.world.uniform(0.5, 1.0), self._connect)
        self._backoff_s = min(self._backoff_s * 1.5, 0.25)

    def _close_connection(self) -> None:
        conn, self.conn = self.conn, None
        self.connected = False
        if conn is not None:
            conn.up.send(conn.server.on_client_closed, conn)

    def _listens(self, conn: Connection) -> bool:
        return conn is self.conn and not self.over

    def on_connected(self, conn: Connection, session_id: int, timeout_s: float, is_new: bool) -> None:
        self.process.run(self._on_connected, conn, session_id, timeout_s, is_new)

    def _on_connected(self, conn: Connection, session_id: int, timeout_s: float, is_new: bool) -> None:
        if not self._listens(conn) or self.connected:
            return
        self.connected = True
        self._backoff_s = 0.02
        self.session_id = session_id
        self.timeout_s = timeout_s
        self._last_sent = self.process.now
        self._ping_unanswered = False
        self.process.after(timeout_s / 3, self._ping, conn)
        self.post(
            SessionUp(
                session=self.number,
                is_new=is_new,
                zk_session_id=session_id,
                timeout_s=timeout_s,
                sent_at=self._attempted_at,
                guid=self.guid,
            )
        )

    def on_closed(self, conn: Connection) -> None:
        self.process.run(self._on_closed, conn)

    def _on_closed(self, conn: Connection) -> None:
        if self._listens(conn):
            if self.connected:
                self._disconnected("the server closed the connection")
            else:
                self._retry(self._attempt)

    def _disconnected(self, why: str) -> None:
        self._close_connection()
        self._attempt += 1  # its handshake's limit, still to come, must not connect a second time
        self.post(SessionDown(self.number))
        self._fail_all(why)
        self.process.after(self.world.uniform(0.0, 0.01), self._connect)

    def reset(self) -> None:
        """The connection breaks, and both ends learn at once."""
        conn = self.conn
        if conn is not None and self.connected:
            conn.server.drop(conn, False)
            self._disconnected("the connection was reset")

    def on_expired(self, conn: Connection) -> None:
        self.process.run(self._on_expired, conn)

    def _on_expired(self, conn: Connection) -> None:
        if self._listens(conn):
            self.over = self.expired = True
            self._close_connection()
            self.post(SessionExpired(self.number))
            self._fail_all("session expired")

    def _ping(self, conn: Connection) -> None:
        """A third of the timeout after whatever was sent last: a ping, or the end if the last one was not answered."""
        if not self._listens(conn):
            return
        left_s = self._last_sent + self.timeout_s / 3 - self.process.now
        if left_s > 1e-9:
            self.process.after(left_s, self._ping, conn)
        elif self._ping_unanswered:
            self._disconnected("no answer to a ping")
        else:
            self._ping_unanswered = True
            self._last_sent = self.process.now
            conn.up.send(conn.server.on_ping, conn)
            self.process.after(self.timeout_s / 3, self._ping, conn)

    def on_pong(self, conn: Connection) -> None:
        self.process.run(self._on_pong, conn)

    def _on_pong(self, conn: Connection) -> None:
        if self._listens(conn):
            self._ping_unanswered = False

    def on_watch(self, conn: Connection, path: str) -> None:
        self.process.run(self._on_watch, conn, path)

    def _on_watch(self, conn: Connection, path: str) -> None:
        if self._listens(conn):
            self.post(WatchFired(self.number, path))

    # -- commands ---------------------------------------------------------------------------------------------------

    def execute(self, command: Call) -> None:
        if isinstance(command, Commit) and command.not_after is not None and self.process.now > command.not_after:
            late = CommitRefused(self.number, command.request, index=-1, error=ZkError.OTHER, detail="late")
            self.post(late)
        elif not self.connected or self.conn is None or self.over:
            self.post(failed(command, "not connected"))
        else:
            self._call += 1
            self._last_sent = self.process.now
            self._in_flight[self._call] = (command, self.process.now)
            self.process.after(self.timeout_s * REQUEST_LIMIT_SHARE, self._too_slow, self.conn, self._call)
            if isinstance(command, Read):
                self._reading[self._call] = Reading(self, self.conn, self._call, command)
            elif isinstance(command, Commit):
                self._send(self.conn, self._transaction(self._call, command))
            else:
                self._send(self.conn, self._ensuring(self._call, command))

    def _send(self, conn: Connection, request: Request) -> None:
        conn.up.send(conn.server.on_request, conn, request)

    def _too_slow(self, conn: Connection, call: int) -> None:
        if call in self._in_flight and self._listens(conn):
            self._disconnected("a request was not answered in time")

    def _fail_all(self, why: str) -> None:
        self._reading.clear()
        calls, self._in_flight = self._in_flight, {}
        for command, _ in calls.values():
            self.post(failed(command, why))

    def finished(self, conn: Connection, call: int, event: Event, zxid: int) -> None:
        """The answer of a call has arrived at this host."""
        self.process.run(self._finished, conn, call, event, zxid)

    def _finished(self, conn: Connection, call: int, event: Event, zxid: int) -> None:
        if self._listens(conn) and self._in_flight.pop(call, None) is not None:
            self._reading.pop(call, None)
            self._last_zxid = max(self._last_zxid, zxid)
            self.post(event)

    def _transaction(self, call: int, command: Commit) -> Request:
        sent_at = self.process.now

        def request(server: Server, conn: Connection, done: Callable[[], None]) -> None:
            server.submit(conn, command.ops, command.label, lambda outcome: answer(server, conn, outcome, done))

        def answer(server: Server, conn: Connection, outcome: Outcome, done: Callable[[], None]) -> None:
            if outcome.expired or outcome.moved:
                self._refused_session(server, conn, outcome)
                return
            event: Event = CommitDone(self.number, command.request, sent_at, outcome.versions)
            if outcome.error is not None:
                event = CommitRefused(self.number, command.request, outcome.index, outcome.error, "")
            conn.down.send(self.finished, conn, call, event, server.applied)
            done()

        return request

    def _ensuring(self, call: int, command: Ensure) -> Request:
        """Looks first, and creates what is missing, one by one: each create is a transaction of its own."""
        sent_at = self.process.now
        todo = list(command.nodes)

        def request(server: Server, conn: Connection, done: Callable[[], None]) -> None:
            while todo and todo[0][0] in server.tree.nodes:
                todo.pop(0)
            if todo:
                ops = (Create(*todo[0]),)
                server.submit(conn, ops, f"ensure {todo[0][0]}", lambda outcome: created(server, conn, outcome, done))
                return
            event = CommitDone(self.number, command.request, sent_at, ())
            conn.down.send(self.finished, conn, call, event, server.applied)
            done()

        def created(server: Server, conn: Connection, outcome: Outcome, done: Callable[[], None]) -> None:
            path, _ = todo.pop(0)
            if outcome.expired or outcome.moved:
                self._refused_session(server, conn, outcome)
            elif outcome.error in (None, ZkError.NODE_EXISTS):
                request(server, conn, done)
            else:
                index = len(command.nodes) - len(todo) - 1
                assert outcome.error is not None
                event = CommitRefused(self.number, command.request, index, outcome.error, path)
                conn.down.send(self.finished, conn, call, event, server.applied)
                done()

        return request

    @staticmethod
    def _refused_session(server: Server, conn: Connection, outcome: Outcome) -> None:
        if outcome.expired:
            conn.down.send(conn.client.on_expired, conn)
        server.drop(conn, False)

    # -- the end ----------------------------------------------------------------------------------------------------

    def retire(self) -> None:
        """No further news from this client; its session lives on at the servers."""
        self.over = True
        self._close_connection()
        self._fail_all("the session was closed")

    def abandon(self) -> None:
        """The process has died: the kernel closes the connection, what was sent may still arrive."""
        self.over = True
        self._close_connection()

    def close(self, command: CloseSession) -> None:
        """Close the session if the server can be reached, else drop it."""
        conn = self.conn
        if self.over or not self.connected or conn is None:
            self.retire()
            self.process.after(0.001, self.post, SessionClosed(self.number, clean=self.expired))
            return
        self.over = True
        self._fail_all("the session was closed")
        answered: list[bool] = []

        def answer(clean: bool) -> None:
            if not answered:
                answered.append(clean)
                self._close_connection()
                self.post(SessionClosed(self.number, clean=clean))

        def request(server: Server, conn: Connection, done: Callable[[], None]) -> None:
            def ended(_outcome: Outcome) -> None:
                conn.down.send(self.process.run, answer, True)
                done()

            server.end_session(conn, ended)

        self._send(conn, request)
        self.process.after(command.limit_s, answer, False)


def failed(command: ZkCommand, why: str) -> ReadFailed | CommitUnknown:
    """The answer to a command whose outcome can't be learnt."""
    assert isinstance(command, Call)
    if isinstance(command, Read):
        return ReadFailed(command.session, command.request, why)
    return CommitUnknown(command.session, command.request, why)
