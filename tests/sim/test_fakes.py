"""The simulated world and ZooKeeper: what they promise beyond the ZooKeeper contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from redis_agent.messages import (
    Commit,
    CommitDone,
    Create,
    Ensure,
    OpenSession,
    Put,
    Read,
    ReadDone,
    SessionDown,
    SessionExpired,
    SessionUp,
)
from tests.sim.process import Process
from tests.sim.world import Network, Pipe, World, both
from tests.sim.zk_client import ZkClient
from tests.sim.zk_server import Server
from tests.sim.zookeeper import Ensemble

# --- the world ----------------------------------------------------------------------------------------------------


def test_a_cut_holds_messages_back_in_order() -> None:
    """What is sent over a cut arrives after it is healed, in order, and overlapping cuts heal one by one."""
    world = World(1)
    net = Network(world)
    pipe = Pipe(net, "a", "b")
    heard: list[int] = []
    first, second = net.cut([("a", "b")]), net.cut([("a", "b")])
    for number in range(5):
        pipe.send(heard.append, number)
    world.run(world.now + 1)
    net.heal(first)
    world.run(world.now + 1)
    assert heard == []
    net.heal(second)
    world.run(world.now + 1)
    assert heard == [0, 1, 2, 3, 4]


def test_a_stopped_process_does_everything_later_and_a_dead_one_nothing() -> None:
    """SIGSTOP delays, SIGKILL drops."""
    world = World(1)
    process = Process(world, "p", "a")
    heard: list[str] = []
    process.stop()
    process.run(heard.append, "waits")
    process.after(1.0, heard.append, "timer")
    world.run(world.now + 5)
    assert heard == []
    process.cont()
    assert heard == ["waits", "timer"]
    process.kill()
    process.run(heard.append, "never")
    assert heard == ["waits", "timer"]


def test_a_request_may_be_done_after_it_was_looked_for_in_vain() -> None:
    """As with real servers: one stops with a request and, behind it, an attempt of the client to come back; when it
    goes on, the session has moved to it again by the time that the leader decides the request, or has not.
    """
    seen = {done_late(seed) for seed in range(1, 60)}
    assert seen == {None, False, True}


def done_late(seed: int) -> bool | None:
    """Whether the request was done; None if the client never tried the stopped server again."""
    session = Session(seed)
    client, conn = session.client, session.client.conn
    assert conn is not None
    if conn.server.reign is not None:
        return None
    stopped, tried = conn.server, [conn]
    session.client.execute(Ensure(1, 1, (("/a", b"a0"),)))
    session.until(lambda: bool(session.of(CommitDone)))
    stopped.pause()
    client.execute(Commit(1, 2, "late", (Put("/a", b"late"),)))

    def back() -> bool:
        if client.conn is not None and client.conn not in tried:
            tried.append(client.conn)
        return len(session.of(SessionUp)) > 1 or client.expired

    session.until(back)
    if client.expired:
        return None
    session.heard.clear()
    client.execute(Read(1, 3, ("/a",)))
    session.until(lambda: bool(session.of(ReadDone)))
    assert session.of(ReadDone)[0].paths["/a"].data == b"a0"
    stopped.resume()
    session.world.run(session.world.now + 1.0)
    reign = session.ensemble.reign()
    assert reign is not None
    done = reign.server.tree.nodes["/a"].data == b"late"
    again = sum(each.server is stopped for each in tried) > 1
    assert again or not done
    return done if again else None


# --- ZooKeeper ----------------------------------------------------------------------------------------------------


class Session:
    """A simulated adapter with what it has posted."""

    def __init__(self, seed: int = 1) -> None:
        self.world = World(seed)
        self.net = Network(self.world)
        self.ensemble = Ensemble(self.world, self.net)
        self.heard: list[Any] = []
        self.process = Process(self.world, "agent", "a")
        self.client = ZkClient(self.net, self.ensemble, self.process, OpenSession(1), 6.0, self.heard.append)
        self.until(lambda: bool(self.of(SessionUp)))
        (self.up,) = self.of(SessionUp)

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.heard if isinstance(event, kind)]

    def until(self, condition: Callable[[], bool], limit_s: float = 60.0) -> float:
        began = self.world.now
        assert condition() or self.world.run(began + limit_s, condition)
        return self.world.now - began

    def cut(self) -> tuple[tuple[str, str], ...]:
        names = self.ensemble.names
        return self.net.cut([(name, "a") for name in names] + [("a", name) for name in names])


@pytest.mark.parametrize("seed", range(20))
def test_a_session_ends_after_its_timeout_and_its_client_hears_of_it_after_reconnecting(seed: int) -> None:
    """Never early, at most a timeout and two ticks after the last sign of life; SessionDown long before the news."""
    session = Session(seed)
    session.world.run(session.world.now + session.world.uniform(0.0, 10.0))
    cut = session.cut()
    gone_after_s = session.until(lambda: not session.ensemble.sessions)
    assert 6.0 - 6.0 / 3 <= gone_after_s <= 6.0 + 2.0 + 1.0
    session.world.run(session.world.now + 30.0)
    assert session.of(SessionDown)
    assert not session.of(SessionExpired)
    session.net.heal(cut)
    session.until(lambda: bool(session.of(SessionExpired)), 1.0)
    assert len(session.of(SessionUp)) == 1


def test_a_session_survives_a_cut_below_its_timeout() -> None:
    """Cut off for less than the timeout: the same session again."""
    session = Session()
    cut = session.cut()
    session.world.run(session.world.now + 3.5)
    session.net.heal(cut)
    session.until(lambda: len(session.of(SessionUp)) == 2 or not session.of(SessionDown), 5.0)
    assert all(up.zk_session_id == session.up.zk_session_id for up in session.of(SessionUp))


def follower_of(session: Session) -> Server:
    """The server that the client is connected to, which is not the leader."""
    while True:
        assert session.client.conn is not None
        server = session.client.conn.server
        if server.link is not None:
            return server
        session.client.reset()
        session.until(lambda: session.client.connected)


def test_a_touch_that_was_not_relayed_does_not_prolong_the_session() -> None:
    """A server that dies between a client's sign of life and its next relay takes it to the grave."""
    session = Session()
    server = follower_of(session)
    reign = session.ensemble.reign()
    assert reign is not None
    session.world.run(session.world.now + 20.0)
    before = reign.expires[session.up.zk_session_id]
    server.on_ping(session.client.conn)  # type: ignore[arg-type]
    server.crash()
    assert reign.expires[session.up.zk_session_id] == before


def test_an_unsynced_read_may_be_stale_and_a_synced_one_is_not() -> None:
    """A server that is cut off from the leader answers reads with what it has; sync waits for the leader."""
    session = Session()
    server = follower_of(session)
    cut = session.net.cut(both([server.name], [name for name in session.ensemble.names if name != server.name]))
    session.ensemble.decide((Create("/x", b"new"),), "test")
    session.client.execute(Read(1, 1, ("/x",), sync=False))
    session.client.execute(Read(1, 2, ("/x",), sync=True))
    session.world.run(session.world.now + 1.0)
    (stale,) = session.of(ReadDone)
    assert stale.paths == {"/x": None}
    session.net.heal(cut)
    session.world.run(session.world.now + 1.0)
    assert session.of(ReadDone)[1].paths["/x"].data == b"new"


def test_a_tree_is_not_read_at_one_moment() -> None:
    """The data of a tree's children are read later than their names: another client's change may come between."""
    session = Session()
    session.ensemble.decide((Create("/t", b""), Create("/t/x", b"old")), "test")
    session.world.run(session.world.now + 1.0)
    seen = set()
    for request in range(1, 200):
        session.client.execute(Read(1, request, lists=(), trees=("/t",), sync=False))
        session.world.after(session.world.uniform(0.0, 0.002), session.ensemble.decide, (Put("/t/x", b"new"),), "t")
        session.world.run(session.world.now + 1.0)
        seen.add(session.of(ReadDone)[-1].trees["/t"]["x"].data)
        session.ensemble.decide((Put("/t/x", b"old"),), "test")
        session.world.run(session.world.now + 1.0)
    assert seen == {b"old", b"new"}
