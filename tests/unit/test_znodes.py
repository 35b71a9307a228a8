"""Paths and payloads of the znodes: what is written can be read, by older and newer versions too."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redis_agent import znodes
from redis_agent.election import Ballot, Mode
from redis_agent.replication import Address, Ledger, LedgerEntry, Position
from redis_agent.znodes import ClusterConfig, Corrupt, Leader, LeaderPhase, Member, Paths, Presence

WORDS = st.text(max_size=12)
NUMBERS = st.integers(min_value=-1, max_value=2**53)
COUNTS = st.integers(min_value=0, max_value=2**40)
TIMES = st.floats(min_value=0.0, max_value=1e12)
ADDRESSES = st.builds(Address, WORDS, st.integers(1, 65535))
POSITIONS = st.builds(Position, COUNTS, COUNTS)
BALLOTS = st.builds(
    Ballot,
    member=WORDS,
    round=COUNTS,
    guid=WORDS,
    up=st.booleans(),
    intact=st.booleans(),
    reloaded=st.booleans(),
    priority=NUMBERS,
    keys=COUNTS,
    replid=WORDS,
    offset_bytes=NUMBERS,
    recorded=st.none() | POSITIONS,
    promotions=st.lists(st.tuples(WORDS, COUNTS), max_size=3).map(tuple),
)
ENTRIES = st.builds(
    LedgerEntry,
    epoch=COUNTS,
    member=WORDS,
    guid=WORDS,
    start=POSITIONS,
    replid=WORDS,
    served=st.booleans(),
    recorded=st.none() | POSITIONS,
    origins=st.lists(WORDS, max_size=2).map(tuple),
    at=TIMES,
    reason=WORDS,
)
LEDGERS = st.builds(Ledger, epoch=COUNTS, entries=st.lists(ENTRIES, max_size=4).map(tuple))
CONFIGS = st.builds(
    ClusterConfig,
    cluster_id=WORDS,
    mode=st.sampled_from(Mode),
    voters=st.lists(WORDS, max_size=5).map(tuple),
    max_lag_bytes=COUNTS,
    keep=WORDS,
    discard=WORDS,
)
MEMBERS = st.builds(
    Member,
    name=WORDS,
    redis=ADDRESSES,
    api=st.none() | ADDRESSES,
    voter=st.booleans(),
    priority=NUMBERS,
    tags=st.dictionaries(WORDS, WORDS, max_size=3),
)
PRESENCES = st.builds(
    Presence,
    name=WORDS,
    guid=WORDS,
    redis=ADDRESSES,
    offset_bytes=NUMBERS,
    primary=st.none() | ADDRESSES,
    link_up=st.booleans(),
    reason=WORDS,
    at=TIMES,
)
LEADERS = st.builds(
    Leader,
    name=WORDS,
    address=ADDRESSES,
    epoch=COUNTS,
    phase=st.sampled_from([LeaderPhase.TAKING_OVER, LeaderPhase.SERVING, LeaderPhase.HANDING_OVER]),
    guid=WORDS,
    wait=COUNTS,
    voters=st.lists(WORDS, max_size=5).map(tuple),
    at=TIMES,
)
DECODERS = (
    znodes.decode_config,
    znodes.decode_member,
    znodes.decode_presence,
    znodes.decode_leader,
    znodes.decode_ledger,
    znodes.decode_ballot,
)


@given(CONFIGS, MEMBERS, PRESENCES, LEADERS, LEDGERS, BALLOTS)
def test_what_is_written_is_read_again(
    config: ClusterConfig, member: Member, presence: Presence, leader: Leader, ledger: Ledger, ballot: Ballot
) -> None:
    """Every payload survives encoding and decoding unchanged, and carries the schema version."""
    assert znodes.decode_config(znodes.encode(config)) == config
    assert znodes.decode_member(znodes.encode(member)) == member
    assert znodes.decode_presence(znodes.encode(presence)) == presence
    assert znodes.decode_leader(znodes.encode(leader)) == leader
    assert znodes.decode_ledger(znodes.encode(ledger)) == ledger
    assert znodes.decode_ballot(znodes.encode(ballot)) == ballot
    for payload in (config, member, presence, leader, ledger, ballot):
        assert json.loads(znodes.encode(payload))["v"] == znodes.SCHEMA


def test_fields_and_versions_of_the_future_are_read() -> None:
    """A payload of a newer schema, with fields that this version does not know, is read as far as it is understood."""
    leader = Leader(name="a", address=Address("::1", 6379), epoch=7, phase=LeaderPhase.SERVING, guid="g")
    payload = json.loads(znodes.encode(leader)) | {"v": 9, "colour": "green"}
    payload["address"]["family"] = 6
    found = znodes.decode_leader(json.dumps(payload).encode())
    assert (found.v, found.name, found.address, found.epoch) == (9, "a", Address("::1", 6379), 7)
    ledger = json.loads(znodes.encode(Ledger(epoch=3))) | {"v": 2, "shape": []}
    assert znodes.decode_ledger(json.dumps(ledger).encode()) == Ledger(epoch=3)


def test_the_empty_znodes_of_a_new_cluster_are_defaults() -> None:
    """``epoch`` and ``config`` are created empty; nothing else may be empty."""
    assert znodes.decode_ledger(b"") == Ledger()
    assert znodes.decode_config(b"") == ClusterConfig()
    for decode in (znodes.decode_member, znodes.decode_presence, znodes.decode_leader, znodes.decode_ballot):
        with pytest.raises(Corrupt, match="the znode is empty"):
            decode(b"")


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"{", "leader: Input data was truncated"),
        (b"\xff\xfe", "leader: "),
        (b"[]", "leader: Expected `object`"),
        (b'{"name": "a"}', "leader: Object missing required field `address`"),
        (b'{"name": 3}', r"leader: Expected `str`, got `int` - at `\$.name`"),
    ],
)
def test_a_corrupt_payload_says_what_is_wrong(data: bytes, complaint: str) -> None:
    """The message names the znode, the field and what was expected."""
    with pytest.raises(Corrupt, match=complaint):
        znodes.decode_leader(data)


@given(
    st.binary(max_size=200) | st.recursive(st.none() | st.integers() | WORDS, st.lists).map(json.dumps).map(str.encode)
)
def test_no_input_raises_anything_else(data: bytes) -> None:
    """Whatever bytes a znode holds, they are read, or refused as corrupt."""
    for decode in DECODERS:
        try:
            decode(data)
        except Corrupt:
            continue


@pytest.mark.parametrize("root", ["redis/prod", "/redis/prod", "/redis/prod/", "//redis//prod//"])
def test_the_root_may_be_written_in_any_way(root: str) -> None:
    """Slashes around and inside the root do not matter."""
    paths = Paths(root, "orders")
    assert paths.base == "/redis/prod/orders"
    assert paths.member("a") == "/redis/prod/orders/members/a"
    assert paths.presence("a") == "/redis/prod/orders/presence/a"
    assert paths.ballot(12, "a-1") == "/redis/prod/orders/ballots/12-a-1"
    assert (paths.config, paths.epoch, paths.leader, paths.orders) == tuple(
        f"/redis/prod/orders/{name}" for name in ("config", "epoch", "leader", "orders")
    )


def test_an_empty_root_is_the_top() -> None:
    """A chroot in the connection string may stand for the root."""
    assert Paths("/", "c").leader == "/c/leader"
    assert Paths("", "c").ballots == "/c/ballots"


@given(COUNTS, st.text(min_size=1, max_size=8).filter(lambda name: "/" not in name))
def test_the_name_of_a_ballot_tells_round_and_member(round_: int, name: str) -> None:
    """Members with dashes in their names are found again."""
    assert znodes.split_ballot(Paths("r", "c").ballot(round_, name).removeprefix("/r/c/ballots/")) == (round_, name)


@pytest.mark.parametrize("name", ["", "7", "7-", "-a", "x-a", "-7-a", "７-a", "1.5-a", "9" * 5000 + "-a"])
def test_other_names_are_no_ballots(name: str) -> None:
    """What somebody else put below ``ballots`` is not taken for a ballot."""
    assert znodes.split_ballot(name) is None


def test_merging_the_config_keeps_what_is_not_understood() -> None:
    """A change by this version leaves a newer version's fields and schema number alone."""
    data = json.dumps({"v": 3, "cluster_id": "id", "voters": ["a"], "quiet_hours": [1, 2]}).encode()
    merged = json.loads(znodes.merge_config(data, ClusterConfig(cluster_id="id", voters=("a", "b"), mode=Mode.ASYNC)))
    assert merged["quiet_hours"] == [1, 2]
    assert (merged["v"], merged["voters"], merged["mode"]) == (3, ["a", "b"], "async")


@pytest.mark.parametrize("decode", [*DECODERS, znodes.decode_order])
def test_nesting_without_end_is_corrupt(decode: Callable[[bytes], object]) -> None:
    """It is an error of the payload, as any other garbage, and not of whoever reads it."""
    with pytest.raises(Corrupt):
        decode(b'{"unknown":' + b"[" * 5000 + b"]" * 5000 + b"}")


@pytest.mark.parametrize("value", [b"1e500", b"9" * 5000])
def test_a_config_with_numbers_that_nobody_can_read_is_not_overwritten(value: bytes) -> None:
    """Of a field that this version does not know: it would be lost, or changed."""
    with pytest.raises(Corrupt, match="config: "):
        znodes.merge_config(b'{"unknown":' + value + b"}", ClusterConfig())


def test_merging_into_nothing_writes_the_whole_config() -> None:
    """The first change of an empty ``config`` is a complete payload."""
    config = ClusterConfig(cluster_id="id", voters=("a",))
    assert znodes.decode_config(znodes.merge_config(b"", config)) == config


def test_a_corrupt_config_is_not_overwritten() -> None:
    """A merge refuses what it cannot read."""
    with pytest.raises(Corrupt, match="config: "):
        znodes.merge_config(b"[]", ClusterConfig())
