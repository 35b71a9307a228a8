"""What the core relies on in a ZooKeeper and its adapter. The same tests run on the real ones and on the simulated."""

from __future__ import annotations

import pytest

from redis_agent.messages import (
    Check,
    CommitDone,
    CommitRefused,
    CommitUnknown,
    Create,
    Delete,
    Op,
    Put,
    ReadDone,
    ReadFailed,
    SessionDown,
    SessionExpired,
    SessionUp,
    ZkError,
)
from tests.contract.driver import Client, Driver, Peer


@pytest.fixture
def peer(driver: Driver, root: str) -> Peer[Client]:
    """A client with a session, and the persistent znodes root, root/a (version 0), root/b."""
    peer = Peer(driver.client())
    peer.open()
    assert isinstance(peer.ensure((root, b""), (f"{root}/a", b"a0"), (f"{root}/b", b"b0")), CommitDone)
    return peer


@pytest.fixture
def other(driver: Driver) -> Peer[Client]:
    """A second client with a session."""
    other = Peer(driver.client())
    other.open()
    return other


# --- transactions -------------------------------------------------------------------------------------------------


def test_a_transaction_does_everything_and_tells_the_versions(peer: Peer[Client], root: str) -> None:
    """Create, Put, Delete and Check in one transaction all happen; the resulting versions are told per operation."""
    answer = peer.committed(
        Check(f"{root}/a", 0), Create(f"{root}/c", b"c0"), Put(f"{root}/a", b"a1", 0), Delete(f"{root}/b", 0)
    )
    assert answer.versions == (-1, 0, 1, -1)
    seen = peer.found(f"{root}/a", f"{root}/b", f"{root}/c").paths
    assert seen[f"{root}/b"] is None
    a, c = seen[f"{root}/a"], seen[f"{root}/c"]
    assert a is not None
    assert c is not None
    assert (a.data, a.version, c.data, c.version) == (b"a1", 1, b"c0", 0)
    assert a.mzxid == c.czxid > a.czxid


@pytest.mark.parametrize(
    ("op", "error"),
    [
        (Check("{root}/a", 7), ZkError.BAD_VERSION),
        (Check("{root}/nope", -1), ZkError.NO_NODE),
        (Put("{root}/a", b"", 7), ZkError.BAD_VERSION),
        (Put("{root}/nope", b""), ZkError.NO_NODE),
        (Create("{root}/b", b""), ZkError.NODE_EXISTS),
        (Create("{root}/nope/child", b""), ZkError.NO_NODE),
        (Delete("{root}/a", 7), ZkError.BAD_VERSION),
        (Delete("{root}/nope"), ZkError.NO_NODE),
        (Delete("{root}"), ZkError.OTHER),
    ],
    ids=lambda value: value.value if isinstance(value, ZkError) else type(value).__name__,
)
@pytest.mark.parametrize("index", [0, 1, 2])
def test_one_refused_operation_refuses_all(peer: Peer[Client], root: str, op: Op, error: ZkError, index: int) -> None:
    """Nothing of a transaction happens if one operation is refused, wherever it stands; index and error name it."""
    at_root = {name: getattr(op, name) for name in op.__slots__} | {"path": op.path.format(root=root)}
    ops: list[Op] = [Create(f"{root}/new", b""), Put(f"{root}/a", b"a1")]
    ops.insert(index, type(op)(**at_root))
    answer = peer.refused(*ops)
    assert (answer.index, answer.error) == (index, error)
    seen = peer.found(f"{root}/a", f"{root}/new").paths
    a = seen[f"{root}/a"]
    assert a is not None
    assert (a.data, a.version) == (b"a0", 0)
    assert seen[f"{root}/new"] is None


def test_the_first_of_two_refused_operations_is_named(peer: Peer[Client], root: str) -> None:
    """Where several operations would be refused, the answer is about the first."""
    answer = peer.refused(Check(f"{root}/a", 0), Create(f"{root}/b", b""), Check(f"{root}/a", 7))
    assert (answer.index, answer.error) == (1, ZkError.NODE_EXISTS)


def test_operations_of_one_transaction_see_each_other(peer: Peer[Client], root: str) -> None:
    """Deleting and creating the same path in one transaction makes a new znode: version 0, another czxid."""
    peer.committed(Put(f"{root}/a", b"a1"))
    before = peer.found(f"{root}/a").paths[f"{root}/a"]
    answer = peer.committed(Delete(f"{root}/a", 1), Create(f"{root}/a", b"again", ephemeral=True))
    assert answer.versions == (-1, 0)
    after = peer.found(f"{root}/a").paths[f"{root}/a"]
    assert before is not None
    assert after is not None
    assert (before.version, after.version) == (1, 0)
    assert after.czxid > before.czxid


def test_versions_restart_when_a_znode_is_created_again(peer: Peer[Client], root: str) -> None:
    """A version proves nothing across a deletion; the czxid does."""
    first = peer.found(f"{root}/a").paths[f"{root}/a"]
    peer.committed(Put(f"{root}/a", b"a1"))
    peer.committed(Delete(f"{root}/a"))
    peer.committed(Create(f"{root}/a", b"a0"))
    second = peer.found(f"{root}/a").paths[f"{root}/a"]
    assert first is not None
    assert second is not None
    assert (first.data, first.version) == (second.data, second.version)
    assert second.czxid > first.czxid
    assert isinstance(peer.commit(Check(f"{root}/a", 0)), CommitDone)


def test_a_late_transaction_is_not_sent(peer: Peer[Client], root: str) -> None:
    """Past ``not_after`` the adapter refuses by itself, and nothing happens."""
    late = peer.answer(peer.send_commit(Put(f"{root}/a", b"late"), not_after=peer.client.now() - 0.001))
    assert isinstance(late, CommitRefused)
    assert (late.index, late.error, late.detail) == (-1, ZkError.OTHER, "late")
    in_time = peer.answer(peer.send_commit(Check(f"{root}/a", 0), not_after=peer.client.now() + 60))
    assert isinstance(in_time, CommitDone)


def test_ensure_creates_what_is_missing_and_leaves_the_rest(peer: Peer[Client], root: str) -> None:
    """Ensure creates in order, so parents first; what exists keeps its data and version."""
    peer.committed(Put(f"{root}/a", b"mine"))
    answer = peer.ensure((f"{root}/a", b"theirs"), (f"{root}/p", b""), (f"{root}/p/q", b"q"))
    assert answer == CommitDone(1, answer.request, getattr(answer, "sent_at", 0.0), ())
    seen = peer.found(f"{root}/a", f"{root}/p/q").paths
    assert [node.data for node in seen.values() if node is not None] == [b"mine", b"q"]


def test_ensure_without_a_parent_is_refused(peer: Peer[Client], root: str) -> None:
    """Ensure makes no parents that it was not told of; the answer names the first znode that could not be made."""
    answer = peer.ensure((f"{root}/a", b""), (f"{root}/x/y", b""))
    assert isinstance(answer, CommitRefused)
    assert (answer.index, answer.error) == (1, ZkError.NO_NODE)


# --- reading ------------------------------------------------------------------------------------------------------


def test_a_read_tells_paths_lists_and_trees(peer: Peer[Client], root: str) -> None:
    """Paths come with data and metadata, lists as names, trees as names with data; what is missing is None or empty."""
    peer.committed(Create(f"{root}/a/x", b"x"), Create(f"{root}/a/y", b"y"), Create(f"{root}/a/x/deep", b""))
    sent_after = peer.client.now()
    seen = peer.found(f"{root}/a", f"{root}/nope", lists=[root, f"{root}/nope"], trees=[f"{root}/a", f"{root}/nope"])
    assert seen.paths[f"{root}/nope"] is None
    assert seen.lists == {root: {"a", "b"}, f"{root}/nope": frozenset()}
    assert {name: node.data for name, node in seen.trees[f"{root}/a"].items()} == {"x": b"x", "y": b"y"}
    assert seen.trees[f"{root}/nope"] == {}
    assert sent_after <= seen.sent_at <= peer.client.now()


def test_a_large_tree_is_read_whole(peer: Peer[Client], root: str) -> None:
    """A tree with more children than fit into one wave of requests."""
    names = [f"n{number:03}" for number in range(250)]
    for start in range(0, 250, 50):
        peer.committed(*(Create(f"{root}/a/{name}", name.encode()) for name in names[start : start + 50]))
    tree = peer.found(trees=[f"{root}/a"]).trees[f"{root}/a"]
    assert {name: node.data.decode() for name, node in tree.items()} == {name: name for name in names}


def test_a_session_sees_its_own_requests_in_order(peer: Peer[Client], root: str) -> None:
    """A read sent behind a commit, without waiting, sees it, also without ``sync``."""
    commits = [peer.send_commit(Put(f"{root}/a", str(number).encode())) for number in range(10)]
    read = peer.answer(peer.send_read(f"{root}/a", sync=False))
    assert isinstance(read, ReadDone)
    node = read.paths[f"{root}/a"]
    assert node is not None
    assert (node.data, node.version) == (b"9", 10)
    assert all(isinstance(peer.answer(request), CommitDone) for request in commits)


def test_a_read_behind_sync_sees_what_others_committed_before(
    peer: Peer[Client], other: Peer[Client], root: str
) -> None:
    """Once a commit was answered, any session's read with ``sync`` sees it."""
    for number in range(20):
        peer.committed(Put(f"{root}/a", str(number).encode()))
        node = other.found(f"{root}/a").paths[f"{root}/a"]
        assert node is not None
        assert node.data == str(number).encode()


# --- watches ------------------------------------------------------------------------------------------------------


def test_a_watch_fires_once(peer: Peer[Client], other: Peer[Client], root: str) -> None:
    """Two changes after one read fire one watch; the next read arms it again."""
    peer.found(f"{root}/a")
    other.committed(Put(f"{root}/a", b"1"))
    other.committed(Put(f"{root}/a", b"2"))
    assert peer.watched(f"{root}/a")
    assert peer.unwatched(f"{root}/a")
    peer.found(f"{root}/a")
    other.committed(Put(f"{root}/a", b"3"))
    assert peer.watched(f"{root}/a")


def test_reading_twice_arms_one_watch(peer: Peer[Client], other: Peer[Client], root: str) -> None:
    """Reading the same path many times, in one or several reads, makes a change fire once."""
    for _ in range(5):
        peer.found(f"{root}/a", f"{root}/nope")
        peer.found(f"{root}/a", f"{root}/a")
    other.committed(Put(f"{root}/a", b"1"), Create(f"{root}/nope", b""))
    assert peer.watched(f"{root}/a")
    assert peer.unwatched(f"{root}/a")
    assert peer.watched(f"{root}/nope")
    assert peer.unwatched(f"{root}/nope")


def test_a_watch_on_a_missing_znode_fires_when_it_is_created(
    peer: Peer[Client], other: Peer[Client], root: str
) -> None:
    """The existence of a path that was read as missing is watched, as is the deletion of one that was there."""
    peer.found(f"{root}/leader")
    other.committed(Create(f"{root}/leader", b"", ephemeral=True))
    assert peer.watched(f"{root}/leader")
    peer.found(f"{root}/leader")
    other.committed(Delete(f"{root}/leader"))
    assert peer.watched(f"{root}/leader")


def _found(peer: Peer[Client], kind: str, path: str) -> None:
    peer.found(lists=[path] if kind == "lists" else [], trees=[path] if kind == "trees" else [])


@pytest.mark.parametrize("kind", ["lists", "trees"])
def test_lists_and_trees_watch_the_names_only(peer: Peer[Client], other: Peer[Client], root: str, kind: str) -> None:
    """A child's creation and deletion fire the parent's watch; a change of a child's or the parent's data doesn't."""
    _found(peer, kind, f"{root}/a")
    other.committed(Put(f"{root}/a", b"changed"))
    other.committed(Create(f"{root}/a/x", b""))
    assert peer.watched(f"{root}/a")
    assert peer.unwatched(f"{root}/a")
    _found(peer, kind, f"{root}/a")
    other.committed(Put(f"{root}/a/x", b"changed"))
    assert peer.unwatched(f"{root}/a")
    assert peer.unwatched(f"{root}/a/x")
    other.committed(Delete(f"{root}/a/x"))
    assert peer.watched(f"{root}/a")


@pytest.mark.parametrize("kind", ["lists", "trees"])
def test_a_missing_list_is_watched_for_its_creation(
    peer: Peer[Client], other: Peer[Client], root: str, kind: str
) -> None:
    """A list or tree that is read as missing tells when it comes into being."""
    _found(peer, kind, f"{root}/later")
    other.committed(Create(f"{root}/later", b""))
    assert peer.watched(f"{root}/later")


def test_watches_do_not_outlive_the_connection(peer: Peer[Client], other: Peer[Client], root: str) -> None:
    """After a reconnection nothing fires until it was read again; the disconnection itself fires no watch."""
    peer.found(f"{root}/a", lists=[root])
    peer.client.reset()
    peer.wait(SessionDown)
    assert not peer.wait(SessionUp).is_new
    other.committed(Put(f"{root}/a", b"1"), Create(f"{root}/new", b""))
    assert peer.unwatched(f"{root}/a")
    assert peer.unwatched(root)


# --- sessions -----------------------------------------------------------------------------------------------------


def test_ephemerals_belong_to_the_session_and_go_with_it(peer: Peer[Client], other: Peer[Client], root: str) -> None:
    """An ephemeral names its session's id as owner, and closing the session deletes it: others' watches tell."""
    peer.committed(Create(f"{root}/leader", b"", ephemeral=True))
    node = other.found(f"{root}/leader").paths[f"{root}/leader"]
    assert node is not None
    assert node.ephemeral_owner == peer.up.zk_session_id
    assert peer.close().clean
    assert other.watched(f"{root}/leader")
    assert other.found(f"{root}/leader").paths[f"{root}/leader"] is None


def test_an_ephemeral_has_no_children(peer: Peer[Client], root: str) -> None:
    """ZooKeeper refuses children of an ephemeral."""
    peer.committed(Create(f"{root}/leader", b"", ephemeral=True))
    answer = peer.refused(Create(f"{root}/leader/child", b""))
    assert (answer.index, answer.error) == (0, ZkError.OTHER)


def test_a_broken_connection_is_not_the_end_of_the_session(peer: Peer[Client], other: Peer[Client], root: str) -> None:
    """SessionDown, then SessionUp for the same session: not new, same id, same guid, stamped anew; ephemerals stay."""
    peer.committed(Create(f"{root}/leader", b"", ephemeral=True))
    first, broken_at = peer.up, peer.client.now()
    peer.client.reset()
    peer.wait(SessionDown)
    again = peer.wait(SessionUp)
    assert first.is_new
    assert not again.is_new
    assert (again.zk_session_id, again.guid, again.timeout_s) == (first.zk_session_id, first.guid, first.timeout_s)
    assert first.sent_at < broken_at <= again.sent_at <= peer.client.now()
    assert other.found(f"{root}/leader").paths[f"{root}/leader"] is not None
    assert peer.quiet(SessionExpired)


def test_an_expired_session_says_so_once_and_stays_dead(peer: Peer[Client], other: Peer[Client], root: str) -> None:
    """Expiry: told exactly once, ephemerals gone, further commands answered without effect, a fresh session works."""
    peer.committed(Create(f"{root}/leader", b"", ephemeral=True))
    other.found(f"{root}/leader")
    peer.client.expire(1)
    assert other.watched(f"{root}/leader")
    assert peer.wait(SessionExpired) == SessionExpired(1)
    assert isinstance(peer.commit(Put(f"{root}/a", b"zombie")), CommitUnknown)
    assert isinstance(peer.read(f"{root}/a"), ReadFailed)
    assert peer.quiet(SessionExpired)
    assert peer.quiet(SessionUp)
    assert peer.close().clean

    fresh = Peer(peer.client, session=2)
    assert fresh.open().is_new
    assert fresh.up.zk_session_id != peer.up.zk_session_id
    assert fresh.up.guid != peer.up.guid
    seen = fresh.found(f"{root}/a", f"{root}/leader").paths
    assert seen[f"{root}/leader"] is None
    a = seen[f"{root}/a"]
    assert a is not None
    assert a.data == b"a0"


def test_three_expiries_in_a_row(driver: Driver, root: str) -> None:
    """# case A3: each time one new session with an id and a guid of its own, whose watches work."""
    client = driver.client()
    identities = set()
    for session in range(1, 4):
        peer = Peer(client, session)
        up = peer.open()
        identities |= {up.zk_session_id, up.guid}
        peer.ensure((root, b""))
        peer.committed(Create(f"{root}/presence", b"", ephemeral=True))
        peer.found(f"{root}/presence", lists=[root])
        assert peer.found(lists=[root]).lists[root] == {"presence"}
        peer.committed(Put(f"{root}/presence", b"1"))
        assert peer.watched(f"{root}/presence")
        client.expire(session)
        peer.wait(SessionExpired)
        assert peer.close().clean
    assert len(identities) == 6


def test_a_cut_connection_fails_what_is_in_flight(peer: Peer[Client], root: str) -> None:
    """Requests that are not answered in time are answered by the adapter, before the session could have expired."""
    peer.client.cut()
    sent_at = peer.client.now()
    commit, read = peer.send_commit(Put(f"{root}/a", b"lost")), peer.send_read(f"{root}/a")
    assert isinstance(peer.answer(commit), CommitUnknown)
    assert isinstance(peer.answer(read), ReadFailed)
    peer.wait(SessionDown)
    assert peer.client.now() - sent_at < 4.0
    assert isinstance(peer.commit(Put(f"{root}/a", b"lost")), CommitUnknown)
    assert isinstance(peer.read(f"{root}/a"), ReadFailed)
    assert peer.quiet(SessionExpired)
    peer.client.restore()


def test_a_lost_request_was_not_done(peer: Peer[Client], root: str) -> None:
    """The outcome of a request that was on the wire is unknown; here it never arrived."""
    peer.client.cut()
    request = peer.send_commit(Put(f"{root}/a", b"lost"))
    peer.client.reset()
    assert isinstance(peer.answer(request), CommitUnknown)
    peer.client.restore()
    assert not peer.wait(SessionUp).is_new
    node = peer.found(f"{root}/a").paths[f"{root}/a"]
    assert node is not None
    assert node.version == 0


def test_a_lost_reply_was_done(peer: Peer[Client], other: Peer[Client], root: str) -> None:
    """The outcome of a request that was on the wire is unknown; here only its reply was lost."""
    other.found(f"{root}/a")
    peer.client.cut_replies()
    request = peer.send_commit(Put(f"{root}/a", b"done"))
    assert other.watched(f"{root}/a")
    peer.client.reset()
    assert isinstance(peer.answer(request), CommitUnknown)
    peer.client.restore()
    assert not peer.wait(SessionUp).is_new
    node = peer.found(f"{root}/a").paths[f"{root}/a"]
    assert node is not None
    assert (node.data, node.version) == (b"done", 1)


def test_a_session_that_is_not_open_answers_too(driver: Driver, root: str) -> None:
    """Each command with a request is answered, also for a session that was never opened, or is closed."""
    peer = Peer(driver.client(), session=7)
    assert isinstance(peer.commit(Create(root, b"")), CommitUnknown)
    assert isinstance(peer.ensure((root, b"")), CommitUnknown)
    assert isinstance(peer.read(root), ReadFailed)
    assert not peer.close().clean
