"""What the core relies on while servers of the ensemble fail. The same tests run on real servers and on simulated ones.

No test asserts that anything is quick: what must happen has `LIMIT_S`, far beyond what an election takes, and lower
bounds follow from ZooKeeper's rules alone, whatever the machine does.
"""

from __future__ import annotations

import pytest

from redis_agent.messages import (
    CommitDone,
    CommitUnknown,
    Create,
    Put,
    ReadDone,
    SessionDown,
    SessionExpired,
    SessionUp,
)
from tests.contract.driver import Peer, ServerClient, Servers

LIMIT_S = 40.0
"""For what must happen: an election, and a session's end after it."""

LONG_S = 20.0
"""A session timeout that outlives what the tests do to the servers: the longest there is (20 ticks)."""

Member = Peer[ServerClient]


def join(servers: Servers, *known: int, timeout_s: float = LONG_S) -> Member:
    """A client of these servers, with a session and the znode /a."""
    peer = Peer(servers.client(*known, timeout_s=timeout_s))
    peer.open()
    assert isinstance(peer.ensure(("/a", b"a0")), CommitDone)
    return peer


def followers(servers: Servers) -> tuple[int, int]:
    leader = servers.leader()
    return (leader + 1) % 3, (leader + 2) % 3


def data(peer: Member, path: str, *, sync: bool = True) -> bytes | None:
    """What it reads, as soon as it can."""
    deadline = peer.client.now() + LIMIT_S
    while not isinstance(answer := peer.read(path, sync=sync), ReadDone):
        assert peer.client.now() < deadline, "no read is answered"
        assert peer.quiet(SessionExpired)
    node = answer.paths[path]
    return None if node is None else node.data


def insist(peer: Member, value: bytes) -> None:
    """Write /a until the write is acknowledged."""
    deadline = peer.client.now() + LIMIT_S
    while not isinstance(peer.commit(Put("/a", value)), CommitDone):
        assert peer.client.now() < deadline, "no write is acknowledged"
        assert peer.quiet(SessionExpired)


def vanished(observer: Member, path: str) -> float:
    """Wait until the znode is gone; when that was seen."""
    deadline = observer.client.now() + LIMIT_S
    while data(observer, path) is not None:
        assert observer.client.now() < deadline, f"{path} is still there"
        assert observer.quiet(SessionExpired)
    return observer.client.now()


@pytest.mark.parametrize("at", ["leader", "follower"])
def test_a_session_and_what_was_committed_survive_the_leader(servers: Servers, at: str) -> None:
    """The leader is killed: its clients' sessions and the others' go on, with their ephemerals, on the next one."""
    leader, (one, other) = servers.leader(), followers(servers)
    known = (leader, one, other) if at == "leader" else (one, other)
    peer, observer = join(servers, *known), join(servers, one, other)
    peer.committed(Create("/mine", b"", ephemeral=True), Put("/a", b"before"))
    servers.kill(leader)
    insist(peer, b"after")
    assert data(observer, "/a") == b"after"
    assert data(observer, "/mine") == b""
    assert peer.quiet(SessionExpired)
    assert servers.leader() != leader


def test_a_server_that_was_away_catches_up(servers: Servers) -> None:
    """What was committed without it is read from it, also without sync, by a client that has seen it elsewhere."""
    leader, (one, other) = servers.leader(), followers(servers)
    servers.kill(one)
    writer = join(servers, leader, other)
    writer.committed(Put("/a", b"while away"))
    servers.restart(one)
    servers.wait_serving(3)
    late = join(servers, one)
    assert data(late, "/a") == b"while away"
    assert data(late, "/a", sync=False) == b"while away"


def test_a_new_leader_starts_every_expiry_anew(servers: Servers) -> None:
    """A client is cut off, and later the leader dies: the session lives for its whole timeout from then on.

    The bound: the next leader begins to count after the last one was killed.
    """
    timeout_s = 6.0
    leader, (one, other) = servers.leader(), followers(servers)
    peer, observer = join(servers, one, timeout_s=timeout_s), join(servers, one, other)
    peer.committed(Create("/mine", b"", ephemeral=True))
    peer.client.cut()
    peer.wait(SessionDown, LIMIT_S)  # two thirds of the timeout at most
    killed_at = observer.client.now()
    servers.kill(leader)
    assert vanished(observer, "/mine") >= killed_at + timeout_s
    peer.client.restore()
    peer.wait(SessionExpired, LIMIT_S)


@pytest.mark.parametrize("at", ["leader", "follower"])
def test_a_session_does_not_expire_before_its_timeout(servers: Servers, at: str) -> None:
    """Silent from one moment on, it lasts for its timeout at least, counted from when its last request was sent.

    On a follower that needs the relay of the touch, which the follower does by itself.
    """
    timeout_s = 4.0
    leader, (one, other) = servers.leader(), followers(servers)
    peer = join(servers, leader if at == "leader" else one, timeout_s=timeout_s)
    observer = join(servers, other)
    peer.committed(Create("/mine", b"", ephemeral=True))
    sent_at = peer.client.now()
    peer.committed(Put("/a", b"last"))
    peer.client.cut()
    assert vanished(observer, "/mine") >= sent_at + timeout_s


def test_a_follower_that_is_cut_off_answers_with_what_it_has(servers: Servers) -> None:
    """Its reads are stale, a sync waits there; once it is back the sync is answered, and what follows is new."""
    leader, (one, _) = servers.leader(), followers(servers)
    peer, writer = join(servers, one), join(servers, leader)
    assert data(peer, "/a") == b"a0"
    servers.cut_off(one)
    writer.committed(Put("/a", b"new"))
    stale = peer.found("/a", sync=False).paths["/a"]
    assert stale is not None
    assert stale.data == b"a0"
    waiting = peer.send_read("/a")
    assert peer.unwatched("/a")
    assert not any(isinstance(event, ReadDone) for event in peer.events)
    servers.rejoin(one)
    answer = peer.answer(waiting, LIMIT_S)
    assert isinstance(answer, ReadDone)
    node = answer.paths["/a"]
    assert node is not None
    assert node.data == b"new"


def test_a_follower_without_its_leader_drops_its_clients(servers: Servers) -> None:
    """After syncLimit; their sessions are alive elsewhere, and go on with the follower once it is back."""
    leader, (one, _) = servers.leader(), followers(servers)
    peer, observer = join(servers, one), join(servers, leader)
    peer.committed(Create("/mine", b"", ephemeral=True))
    servers.cut_off(one)
    cut_at = peer.client.now()
    peer.wait(SessionDown, LIMIT_S)
    assert peer.client.now() >= cut_at + 4 * servers.tick_s  # syncLimit less a ping's interval, and its half
    assert data(observer, "/mine") == b""
    servers.rejoin(one)
    assert not peer.wait(SessionUp, LIMIT_S).is_new
    assert peer.quiet(SessionExpired)


def test_a_leader_without_followers_commits_nothing(servers: Servers) -> None:
    """No acknowledgement, no change, and no session ends; with the followers back all goes on."""
    leader, pair = servers.leader(), followers(servers)
    peer = join(servers, leader, *pair)
    peer.committed(Create("/mine", b"", ephemeral=True))
    for follower in pair:
        servers.pause(follower)
    answer = peer.commit(Put("/a", b"alone"))
    assert isinstance(answer, CommitUnknown)
    for follower in pair:
        servers.resume(follower)
    insist(peer, b"together")
    assert data(peer, "/mine") == b""
    assert peer.quiet(SessionExpired)


def test_a_request_that_its_session_has_overtaken_is_not_done(servers: Servers) -> None:
    """The session has moved to another server: what arrives by the old connection afterwards has no effect."""
    one, other = followers(servers)
    peer = Peer(servers.client(one, other, timeout_s=6.0))
    peer.client.cut_server(1)
    peer.open()
    assert isinstance(peer.ensure(("/a", b"a0")), CommitDone)
    peer.client.restore()
    peer.client.cut_server(0)
    request = peer.send_commit(Put("/a", b"too late"))
    assert isinstance(peer.answer(request, LIMIT_S), CommitUnknown)
    assert not peer.wait(SessionUp, LIMIT_S).is_new
    peer.client.restore()
    assert peer.unwatched("/a")
    assert data(peer, "/a") == b"a0"
    assert peer.quiet(SessionExpired)


def test_a_request_that_waits_at_a_server_may_be_done_late_but_not_on_a_newer_version(servers: Servers) -> None:
    """The server is stopped with a request in its sockets, and perhaps with an attempt of the client to come back.

    By that attempt the session moves back to it, so the request may be done although it was overtaken, and after it was
    looked for in vain. What was committed in between on the version that it asks for keeps it out for good.
    """
    one, other = followers(servers)
    peer = Peer(servers.client(one, other, timeout_s=6.0))
    peer.client.cut_server(1)
    peer.open()
    assert isinstance(peer.ensure(("/a", b"a0")), CommitDone)
    peer.client.restore()
    node = peer.found("/a").paths["/a"]
    assert node is not None
    servers.pause(one)
    request = peer.send_commit(Put("/a", b"late", version=node.version))
    assert isinstance(peer.answer(request, LIMIT_S), CommitUnknown)
    assert not peer.wait(SessionUp, LIMIT_S).is_new
    assert data(peer, "/a") == b"a0"
    peer.committed(Put("/a", b"newer", version=node.version))
    servers.resume(one)
    assert peer.quiet(SessionExpired)
    assert data(peer, "/a") == b"newer"
    insist(peer, b"end")


def test_no_change_is_missed_across_a_change_of_leaders(servers: Servers) -> None:
    """Whoever reads again whenever it is connected again, and on every watch, ends up with the last value."""
    leader, (one, other) = servers.leader(), followers(servers)
    watcher, writer = join(servers, leader, one, other), join(servers, one, other)
    assert data(watcher, "/a") == b"a0"
    servers.kill(leader)
    for number in range(20):
        insist(writer, b"%d" % number)
    watcher.wait(SessionUp, LIMIT_S)
    seen = data(watcher, "/a", sync=False)
    insist(writer, b"last")
    if seen != b"last":
        assert watcher.watched("/a")
    assert data(watcher, "/a") == b"last"


def test_a_pause_of_the_leader_ends_no_session_that_its_followers_hear(servers: Servers) -> None:
    """Reads go on without it; what was asked of it is done when it goes on, or is looked for by a new leader."""
    leader, (one, other) = servers.leader(), followers(servers)
    peer = join(servers, one, other)
    peer.committed(Create("/mine", b"", ephemeral=True))
    servers.pause(leader)
    assert data(peer, "/a", sync=False) == b"a0"
    request = peer.send_commit(Put("/a", b"asked"))
    assert peer.unwatched("/a")
    servers.resume(leader)
    assert isinstance(peer.answer(request, LIMIT_S), CommitDone | CommitUnknown)
    insist(peer, b"later")
    assert data(peer, "/mine") == b""
    assert peer.quiet(SessionExpired)
