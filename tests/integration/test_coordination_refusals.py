"""What ZooKeeper refuses, and what a server says that makes no sense: the adapter tells, once."""

from __future__ import annotations

import logging
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import pytest

from redis_agent.lab.zookeeper import Ensemble
from redis_agent.messages import (
    CommitDone,
    CommitRefused,
    CommitUnknown,
    Create,
    Put,
    ReadFailed,
    SessionDown,
    SessionExpired,
    SessionFailed,
    SessionUp,
    ZkError,
)
from tests.contract.driver import Peer
from tests.integration.conftest import MakePeer
from tests.support.zookeeper import ZkClient


def test_expiry_as_the_error_of_an_operation(make_refusing_server: Callable[[int], tuple[str, int]]) -> None:
    """A server that answers a request with "session expired" has the same effect as one that says so at a reconnect:
    told once, everything in flight answered, no further session.

    # case A5
    """
    session_expired = -112
    peer = Peer(ZkClient([make_refusing_server(session_expired)], 4.0))
    peer.open()
    requests = [peer.send_commit(Put("/a", b"")), peer.send_read("/a"), peer.send_commit(Put("/a", b""))]
    answers = [peer.answer(request) for request in requests]
    assert [type(answer) for answer in answers] == [CommitUnknown, ReadFailed, CommitUnknown]
    assert peer.wait(SessionExpired) == SessionExpired(1)
    assert peer.quiet(SessionExpired)
    assert peer.quiet(SessionUp)
    assert isinstance(peer.commit(Put("/a", b"")), CommitUnknown)
    assert peer.close().clean


def test_an_answer_that_cannot_be_understood(make_refusing_server: Callable[[int], tuple[str, int]]) -> None:
    """An error code of the future breaks the connection, not the adapter: the request is answered, the session goes
    on.
    """
    peer = Peer(ZkClient([make_refusing_server(-9999)], 4.0))
    peer.open()
    assert isinstance(peer.commit(Put("/a", b"")), CommitUnknown)
    peer.wait(SessionDown)
    assert not peer.wait(SessionUp).is_new
    peer.close(limit_s=0.2)


@pytest.fixture
def make_refusing_server() -> Iterator[Callable[[int], tuple[str, int]]]:
    """A server that grants one session and answers each of its requests with an error."""
    with ExitStack() as stack:

        def make(error: int) -> tuple[str, int]:
            listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            threading.Thread(target=_refuse_all, args=(listener, error), daemon=True).start()
            stack.callback(listener.shutdown, socket.SHUT_RDWR)
            address: tuple[str, int] = listener.getsockname()
            return address

        yield make


def _refuse_all(listener: socket.socket, error: int) -> None:
    """ZooKeeper's wire: frames of a length and a body; the first body is the connect request."""
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        # A client that has heard enough hangs up, whatever it has asked before.
        with suppress(ConnectionError), connection, connection.makefile("rb") as stream:
            first = True
            while len(header := stream.read(4)) == 4:
                body = stream.read(struct.unpack("!i", header)[0])
                if first:
                    # Protocol version, timeout in ms, session id, password, not read-only.
                    answer = struct.pack("!iiqi16sB", 0, 4000, 77, 16, b"p" * 16, 0)
                    first = False
                else:
                    # The request's number, a transaction id, the error.
                    answer = struct.pack("!iqi", struct.unpack_from("!i", body)[0], 1, error)
                connection.sendall(struct.pack("!i", len(answer)) + answer)


def test_a_missing_chroot_needs_a_person(zk_single: Ensemble, make_peer: MakePeer, zk_root: str) -> None:
    """A chroot that does not exist is told as such, instead of trying for ever."""
    peer = make_peer(zk_single, chroot=f"{zk_root}/not/there")
    peer.open()
    assert isinstance(peer.ensure(("/redis-agent", b"")), CommitRefused)
    assert f"{zk_root}/not/there" in peer.wait(SessionFailed).reason


def test_a_chroot_that_exists(zk_single: Ensemble, make_peer: MakePeer, zk_root: str) -> None:
    """Below a chroot paths, lists and watches are relative to it."""
    outside = make_peer(zk_single)
    outside.open()
    outside.ensure((zk_root, b""))
    peer = make_peer(zk_single, chroot=zk_root)
    peer.open()
    assert isinstance(peer.ensure(("/a", b"")), CommitDone)
    peer.found("/a", lists=["/"])
    outside.committed(Put(f"{zk_root}/a", b"x"), Create(f"{zk_root}/b", b""))
    assert peer.watched("/a")
    assert peer.watched("/")


def test_protected_znodes(zk_single: Ensemble, make_peer: MakePeer, zk_root: str) -> None:
    """What a protected client creates everyone may read, and nobody but a client with its credential may change."""
    owner = make_peer(zk_single, auth=(("digest", "agent:secret"),), protected=True)
    stranger = make_peer(zk_single)
    for peer in (owner, stranger):
        peer.open()
    owner.ensure((zk_root, b""))
    owner.committed(Create(f"{zk_root}/leader", b"mine", ephemeral=True))
    node = stranger.found(f"{zk_root}/leader").paths[f"{zk_root}/leader"]
    assert node is not None
    assert node.data == b"mine"
    for op in (Put(f"{zk_root}/leader", b"theirs"), Create(f"{zk_root}/x", b"")):
        assert stranger.refused(op).error is ZkError.NO_AUTH
    again = make_peer(zk_single, auth=(("digest", "agent:secret"),), protected=True)
    again.open()
    assert isinstance(again.ensure((zk_root, b"")), CommitDone)
    again.committed(Put(f"{zk_root}/leader", b"also mine"))


def test_credentials_are_not_logged(
    zk_single: Ensemble, make_peer: MakePeer, zk_root: str, caplog: pytest.LogCaptureFixture
) -> None:
    """At the most talkative log level the credential is in no line; a lost connection is no louder than debug.

    # case D7
    """
    caplog.set_level(1)
    peer = make_peer(zk_single, auth=(("digest", "agent:hunter2"),), protected=True)
    peer.open()
    peer.ensure((zk_root, b""))
    peer.client.reset()
    peer.wait(SessionDown)
    peer.wait(SessionUp)
    assert caplog.records
    assert "hunter2" not in caplog.text
    assert max(record.levelno for record in caplog.records) == logging.DEBUG
