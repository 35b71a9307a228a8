"""The ZooKeeper adapter against real servers that die, hang and come late."""

from __future__ import annotations

import queue
from pathlib import Path
from typing import Any

import pytest

from redis_agent.coordination import Coordination
from redis_agent.lab.ports import free_port
from redis_agent.lab.proxy import TcpProxy
from redis_agent.lab.zookeeper import Ensemble
from redis_agent.messages import (
    CloseSession,
    CommitDone,
    CommitUnknown,
    Create,
    OpenSession,
    Put,
    ReadDone,
    ReadFailed,
    SessionClosed,
    SessionDown,
    SessionExpired,
    SessionUp,
    ZkEvent,
)
from tests.contract.driver import Peer
from tests.integration.conftest import MakePeer
from tests.support.zookeeper import ZkClient, boottime, session_threads

# --- the timeout ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("asked_s", "granted_s"), [(1.0, 4.0), (6.0, 6.0), (100.0, 40.0)])
def test_the_negotiated_timeout_is_told(
    zk_single: Ensemble, make_peer: MakePeer, asked_s: float, granted_s: float
) -> None:
    """At a tick of 2 s ZooKeeper grants 4 to 40 s, and that exact number is what SessionUp says.

    # case A1
    """
    assert make_peer(zk_single, asked_s).open().timeout_s == granted_s


def test_cut_off_for_less_than_the_timeout(zk_single: Ensemble, make_peer: MakePeer, zk_root: str) -> None:
    """The connection is given up and made again, and it still is the same session, with its ephemeral.

    # case A2
    """
    peer, other = make_peer(zk_single), make_peer(zk_single)
    peer.open()
    other.open()
    peer.ensure((zk_root, b""))
    peer.committed(Create(f"{zk_root}/leader", b"", ephemeral=True))
    peer.client.cut()
    cut_at = boottime()
    assert isinstance(peer.read(f"{zk_root}/leader"), ReadFailed)
    peer.wait(SessionDown)
    other.committed(Create(f"{zk_root}/news", b""))
    peer.client.restore()
    again = peer.wait(SessionUp)
    assert boottime() - cut_at < 4.0
    assert not again.is_new
    assert again.zk_session_id == peer.up.zk_session_id
    assert again.sent_at > cut_at
    seen = peer.found(f"{zk_root}/leader", f"{zk_root}/news").paths
    assert None not in seen.values()


def test_cut_off_for_longer_than_the_timeout(zk_ensemble: Ensemble, make_peer: MakePeer, zk_root: str) -> None:
    """The adapter can't know of the expiry while it is cut off and doesn't claim to; it tells as soon as it hears."""
    peer, other = make_peer(zk_ensemble, 1.5), make_peer(zk_ensemble, 10.0)
    peer.open()
    other.open()
    peer.ensure((zk_root, b""))
    peer.committed(Create(f"{zk_root}/leader", b"", ephemeral=True))
    other.found(f"{zk_root}/leader")
    peer.client.cut()
    assert other.watched(f"{zk_root}/leader")
    peer.wait(SessionDown)
    assert peer.quiet(SessionExpired)
    peer.client.restore()
    peer.wait(SessionExpired)
    assert peer.quiet(SessionUp)


def test_requests_in_a_steady_flow_do_not_hide_a_dead_server(
    zk_single: Ensemble, make_peer: MakePeer, zk_root: str
) -> None:
    """A client that goes on sending, without waiting for answers, notices a silent server before its session ends."""
    peer = make_peer(zk_single)
    peer.open()
    peer.client.cut()
    cut_at = boottime()
    while peer.client.next_event(0.05) is None:
        peer.send_read(zk_root)
        assert boottime() - cut_at < 4.0
    assert boottime() - cut_at < 2.0
    peer.client.restore()
    assert not peer.wait(SessionUp).is_new


# --- servers that are not there -------------------------------------------------------------------------------------


def test_zookeeper_comes_after_the_agent(tmp_path: Path, make_peer: MakePeer, zk_root: str) -> None:
    """Without ZooKeeper nothing is posted and nothing ends; the session comes up when the server does.

    # case A10
    """
    with Ensemble(tmp_path, 1, tick_ms=500) as ensemble:
        ensemble.kill(0)
        peer = make_peer(ensemble)
        peer.client.execute(OpenSession(1))
        assert peer.client.next_event(0.7) is None
        assert isinstance(peer.commit(Create(zk_root, b"")), CommitUnknown)
        ensemble.restart(0)
        assert peer.wait(SessionUp).is_new
        assert isinstance(peer.commit(Create(zk_root, b"")), CommitDone)


def test_a_dead_and_a_silent_server_in_the_list(zk_single: Ensemble, make_peer: MakePeer) -> None:
    """One server refuses connections and one takes them and says nothing: the session survives each reconnection.

    # case A11
    """
    live = zk_single.addresses[0]
    with TcpProxy(live) as silent:
        silent.cut()
        peer = make_peer(zk_single, addresses=[live])
        addresses = [peer.client.proxies[0].address, ("127.0.0.1", free_port()), silent.address]
        several = Peer(ZkClient(addresses, 4.0))
        several.open()
        for _ in range(4):
            peer.client.proxies[0].reset()
            broken_at = boottime()
            several.wait(SessionDown)
            again = several.wait(SessionUp)
            assert not again.is_new
            assert boottime() - broken_at < 3.0
        assert several.close().clean


def test_the_leader_of_the_ensemble_dies(tmp_path: Path, make_peer: MakePeer, zk_root: str) -> None:
    """A killed ZooKeeper leader costs a reconnection, not the session, and not what was committed.

    # case A11
    """
    with Ensemble(tmp_path, 3, tick_ms=500) as ensemble:
        peer = make_peer(ensemble)
        peer.open()
        peer.ensure((zk_root, b""))
        peer.committed(Create(f"{zk_root}/leader", b"", ephemeral=True))
        ensemble.kill(ensemble.leader())
        peer.wait(SessionDown)
        assert not peer.wait(SessionUp).is_new
        assert peer.found(f"{zk_root}/leader").paths[f"{zk_root}/leader"] is not None
        assert peer.quiet(SessionExpired)
        peer.close()


def test_a_server_that_hangs_is_left(zk_ensemble: Ensemble, make_peer: MakePeer, zk_root: str) -> None:
    """A commit to a stopped server is unknown within half of the session timeout, and the next server takes over."""
    followers = [index for index in range(3) if zk_ensemble.mode(index) == "follower"]
    hung, sound = followers
    addresses = zk_ensemble.addresses
    peer = make_peer(zk_ensemble, addresses=[addresses[hung], addresses[sound]])
    # Let it choose the one that is going to hang.
    peer.client.proxies[1].cut()
    peer.open()
    peer.ensure((zk_root, b""))
    peer.client.proxies[1].restore()
    zk_ensemble.pause(hung)
    try:
        hung_at = boottime()
        assert isinstance(peer.commit(Put(zk_root, b"")), CommitUnknown)
        assert boottime() - hung_at < 2.0
        assert not peer.wait(SessionUp).is_new
        assert boottime() - hung_at < 4.0
        assert isinstance(peer.commit(Put(zk_root, b"")), CommitDone)
    finally:
        zk_ensemble.resume(hung)


def test_a_read_behind_sync_is_never_stale(zk_ensemble: Ensemble, make_peer: MakePeer, zk_root: str) -> None:
    """What one client committed through one server, another sees through any other server, if it asks for ``sync``."""
    writer = make_peer(zk_ensemble, addresses=[zk_ensemble.addresses[0]])
    readers = [make_peer(zk_ensemble, addresses=[address]) for address in zk_ensemble.addresses]
    for peer in (writer, *readers):
        peer.open()
    writer.ensure((zk_root, b""))
    for number in range(20):
        writer.committed(Put(zk_root, str(number).encode()))
        for reader in readers:
            node = reader.found(zk_root).paths[zk_root]
            assert node is not None
            assert node.data == str(number).encode()


# --- closing --------------------------------------------------------------------------------------------------------


def _close_within(peer: Peer[Any], limit_s: float, grace_s: float = 0.7) -> SessionClosed:
    began_at = boottime()
    closed = peer.close(limit_s)
    assert boottime() - began_at < limit_s + grace_s
    assert [name for name in session_threads() if name.startswith("zk-session")] == []
    return closed


def test_closing_while_connected(zk_single: Ensemble, make_peer: MakePeer) -> None:
    """A connected session is closed cleanly in far less than the limit.

    # case A8
    """
    peer = make_peer(zk_single)
    peer.open()
    began_at = boottime()
    assert _close_within(peer, limit_s=5.0).clean
    assert boottime() - began_at < 0.5


def test_closing_behind_a_black_hole(zk_single: Ensemble, make_peer: MakePeer) -> None:
    """A session whose server does not answer any more, known or not yet known, is dropped within the limit.

    # case A8
    """
    unaware, suspended = make_peer(zk_single), make_peer(zk_single)
    unaware.open()
    unaware.client.cut()
    request = unaware.send_commit(Put("/", b""))
    assert not _close_within(unaware, limit_s=0.3).clean
    assert isinstance(unaware.answer(request), CommitUnknown)

    suspended.open()
    suspended.client.cut()
    suspended.client.proxies[0].reset()
    suspended.wait(SessionDown)
    assert not _close_within(suspended, limit_s=0.3).clean


def test_closing_what_never_came_up(make_peer: MakePeer, tmp_path: Path) -> None:
    """A session that no server ever answered is dropped at once.

    # case A8
    """
    peer = Peer(ZkClient([("127.0.0.1", free_port())], 4.0))
    peer.client.execute(OpenSession(1))
    assert not _close_within(peer, limit_s=0.3).clean


def test_closing_an_expired_session(zk_single: Ensemble, make_peer: MakePeer) -> None:
    """A lost session is dropped at once, and counts as cleanly gone: ZooKeeper said so.

    # case A8
    """
    peer = make_peer(zk_single)
    peer.open()
    peer.client.expire(1)
    peer.wait(SessionExpired)
    assert _close_within(peer, limit_s=0.3).clean


def test_closing_from_a_callback(zk_single: Ensemble) -> None:
    """A close that is ordered on the connection's own thread is carried out on another one.

    # case A8
    """
    heard: queue.SimpleQueue[ZkEvent] = queue.SimpleQueue()

    def post(event: ZkEvent) -> None:
        if isinstance(event, SessionUp):
            coordination.execute(CloseSession(1, limit_s=2.0))
        heard.put(event)

    coordination = Coordination(hosts=zk_single.hosts, session_timeout_s=4.0, post=post, clock=boottime)
    coordination.execute(OpenSession(1))
    assert isinstance(heard.get(timeout=5), SessionUp)
    assert heard.get(timeout=5) == SessionClosed(1, clean=True)


# --- limits ---------------------------------------------------------------------------------------------------------


def test_each_request_is_answered_once_whatever_happens(zk_single: Ensemble, make_peer: MakePeer, zk_root: str) -> None:
    """A flood of requests while the connection breaks again and again: one answer each, none lost, none twice."""
    peer = make_peer(zk_single)
    peer.open()
    peer.ensure((zk_root, b""))
    sent = []
    for number in range(600):
        sent.append(peer.send_commit(Put(zk_root, b"x")) if number % 2 else peer.send_read(zk_root, trees=["/"]))
        if number % 150 == 149:
            peer.client.proxies[0].reset()
            peer.wait(SessionUp)
    answers = [peer.answer(request) for request in sent]
    assert len(answers) == 600
    assert {CommitDone, CommitUnknown, ReadDone, ReadFailed} >= {type(answer) for answer in answers}
    assert not [event for event in peer.events if getattr(event, "request", 0)]
    assert peer.client.next_event(0.1) is None


def test_watches_do_not_pile_up(zk_single: Ensemble, make_peer: MakePeer, zk_root: str) -> None:
    """Reading the same things for years keeps one callback per path."""
    peer = make_peer(zk_single)
    peer.open()
    peer.ensure((zk_root, b""))
    for _ in range(50):
        peer.found(zk_root, f"{zk_root}/nope", lists=[zk_root], trees=[zk_root, f"{zk_root}/nope"])
    client = peer.client.kazoo(1)
    assert {path: len(watchers) for path, watchers in client._data_watchers.items()} == {
        zk_root: 1,
        f"{zk_root}/nope": 1,
    }
    assert {path: len(watchers) for path, watchers in client._child_watchers.items()} == {zk_root: 1}
