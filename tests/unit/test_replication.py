"""INFO and lineage: what Redis says about its data, and which position that is."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from redis_agent.replication import (
    NOWHERE,
    Address,
    Ledger,
    LedgerEntry,
    Position,
    ReplicaLink,
    append_entry,
    parse_info,
    resolve,
    with_promotions,
    with_served,
)

RUN_ID, REPLID, OLD_REPLID = "e7511bac" * 5, "0580a6ee" * 5, "35ec2ae2" * 5

PRIMARY: dict[str, Any] = {
    "redis_version": "7.0.15",
    "run_id": RUN_ID,
    "loading": 0,
    "async_loading": 0,
    "role": "master",
    "connected_slaves": 2,
    "slave1": {"ip": "10.0.0.3", "port": 6379, "state": "wait_bgsave", "offset": 0, "lag": 0},
    "slave0": {"ip": "fd00::2", "port": 6380, "state": "online", "offset": 1234, "lag": 1},
    "master_failover_state": "no-failover",
    "master_replid": REPLID,
    "master_replid2": 0,
    "master_repl_offset": 1248,
    "second_repl_offset": -1,
    "repl_backlog_active": 1,
    "db0": {"keys": 3, "expires": 0, "avg_ttl": 0},
    "db9": {"keys": 4, "expires": 1, "avg_ttl": 0, "subexpiry": 0},
}
REPLICA: dict[str, Any] = {
    "redis_version": "7.0.15",
    "run_id": RUN_ID,
    "loading": 0,
    "role": "slave",
    "master_host": "10.0.0.1",
    "master_port": 6379,
    "master_link_status": "up",
    "master_sync_in_progress": 0,
    "slave_repl_offset": 990,
    "slave_priority": 100,
    "slave_read_only": 1,
    "connected_slaves": 0,
    "master_replid": REPLID,
    "master_replid2": OLD_REPLID,
    "master_repl_offset": 1000,
    "second_repl_offset": 501,
    "repl_backlog_active": 0,
}


# --- INFO -----------------------------------------------------------------------------------------------------------


def test_a_primary_is_understood() -> None:
    """Replicas in order with their state, keys of all databases, no replid2, nothing of a replica's."""
    info = parse_info(PRIMARY)
    assert info.is_primary
    assert (info.run_id, info.version, info.replid, info.offset_bytes) == (RUN_ID, "7.0.15", REPLID, 1248)
    assert (info.replid2, info.second_offset_bytes) == ("", -1)
    assert (info.replica_offset_bytes, info.primary, info.link_up, info.syncing) == (None, None, False, False)
    assert info.keys == 7
    assert not info.empty
    assert info.backlog
    assert info.replicas == (
        ReplicaLink(Address("fd00::2", 6380), online=True, offset_bytes=1234, lag_s=1),
        ReplicaLink(Address("10.0.0.3", 6379), online=False, offset_bytes=0),
    )


def test_a_replica_is_understood() -> None:
    """Whose replica it is, both offsets, the older replid; priority and read-only are not mistaken for replicas."""
    info = parse_info(REPLICA)
    assert not info.is_primary
    assert info.primary == Address("10.0.0.1", 6379)
    assert (info.offset_bytes, info.replica_offset_bytes) == (1000, 990)
    assert (info.replid2, info.second_offset_bytes) == (OLD_REPLID, 501)
    assert info.link_up
    assert info.empty
    assert info.replicas == ()


def test_a_replica_in_trouble_is_understood() -> None:
    """A full resync, and loading in either way, are reported; a Redis that still loads is not called empty."""
    assert parse_info(REPLICA | {"master_sync_in_progress": 1, "master_link_status": "down"}).syncing
    assert not parse_info(REPLICA | {"master_link_status": "down"}).link_up
    for loading in ({"loading": 1}, {"async_loading": 1}):
        info = parse_info(REPLICA | loading)
        assert info.loading
        assert not info.empty


def test_valkey_is_named() -> None:
    """Valkey pretends to be a Redis of some version; people see what it is."""
    valkey = {"redis_version": "7.2.4", "server_name": "valkey", "valkey_version": "8.0.1"}
    assert parse_info(PRIMARY | valkey).version == "valkey 8.0.1"


def test_redis_6_is_understood() -> None:
    """Redis 6.2 has no ``async_loading`` and no read offset."""
    fields = {name: value for name, value in PRIMARY.items() if name != "async_loading"} | {"redis_version": "6.2.14"}
    assert parse_info(fields).version == "6.2.14"


@given(st.integers(min_value=0, max_value=10**40 - 1))
def test_an_identifier_of_digits_is_restored(number: int) -> None:
    """redis-py makes an int of a replid or run id that happens to have only digits: all forty are restored."""
    info = parse_info(PRIMARY | {"run_id": number, "master_replid": number, "master_replid2": number})
    assert info.run_id == info.replid == f"{number:040d}"
    assert info.replid2 == ("" if number == 0 else f"{number:040d}")


@pytest.mark.parametrize("name", ["run_id", "role", "master_replid", "master_repl_offset"])
def test_what_is_essential_must_be_there(name: str) -> None:
    """Without these fields nothing can be decided, and the message names the one that is missing."""
    with pytest.raises(ValueError, match=f"INFO: {name} is missing"):
        parse_info({key: value for key, value in PRIMARY.items() if key != name})


def test_nonsense_is_refused() -> None:
    """A role that nobody knows and an offset that is no number raise; they are not guessed at."""
    with pytest.raises(ValueError, match="role is 'sentinel'"):
        parse_info(PRIMARY | {"role": "sentinel"})
    with pytest.raises(ValueError, match="master_repl_offset is 'many', not a whole number"):
        parse_info(PRIMARY | {"master_repl_offset": "many"})


def _wait_for(condition: Callable[[], bool], limit_s: float = 10.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


def _redis_server() -> str | None:
    return shutil.which("redis-server") or shutil.which("redis-server", path=str(Path(sys.executable).parent))


@pytest.fixture
def start_redis(tmp_path: Path) -> Iterator[Callable[..., Redis]]:
    """Starts a redis-server of its own on a unix socket, with more options if given; returns a client."""
    server = _redis_server()
    if server is None:
        pytest.skip("no redis-server in PATH")
    running: list[tuple[subprocess.Popen[bytes], Redis]] = []

    def start(name: str, *options: str) -> Redis:
        socket = tmp_path / f"{name}.sock"
        command = [server, "--port", "0", "--unixsocket", str(socket), "--dir", str(tmp_path), "--save", "", *options]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        client = Redis(unix_socket_path=str(socket), protocol=2)
        running.append((process, client))
        _wait_for(lambda: _answers(client))
        return client

    yield start
    for process, client in running:
        client.close()
        process.kill()
        process.wait()


def _answers(client: Redis) -> bool:
    try:
        return bool(client.ping())
    except RedisConnectionError:
        return False


def test_a_real_redis_is_understood(start_redis: Callable[..., Redis]) -> None:
    """A fresh server, one with keys in two databases, and one that was frozen as a replica of nowhere and promoted."""
    client = start_redis("a")
    fresh = parse_info(client.info())
    assert fresh.is_primary
    assert fresh.empty
    assert not fresh.backlog
    assert len(fresh.run_id) == len(fresh.replid) == 40

    client.set("a", 1)
    client.execute_command("MOVE", "a", 3)
    client.set("a", 2)
    client.replicaof(NOWHERE.host, NOWHERE.port)
    frozen = parse_info(client.info())
    assert not frozen.is_primary
    assert frozen.primary == NOWHERE
    assert not frozen.link_up
    assert frozen.keys == 2
    # A freeze changes neither replid nor offset, and leaves a primary as intact a replica as it was.
    assert (frozen.run_id, frozen.replid) == (fresh.run_id, fresh.replid)
    assert frozen.replica_offset_bytes == frozen.offset_bytes

    client.replicaof("NO", "ONE")
    promoted = parse_info(client.info())
    assert promoted.is_primary
    assert promoted.replid != frozen.replid
    assert promoted.replid2 == frozen.replid
    assert promoted.second_offset_bytes == frozen.offset_bytes + 1


# --- lineage --------------------------------------------------------------------------------------------------------


def entry(epoch: int, parent: int, start: int, replid: str = "", *, served: bool = True, **more: Any) -> LedgerEntry:
    """A leadership; its replid is ``r<epoch>`` unless said otherwise."""
    return LedgerEntry(
        epoch=epoch,
        member="m",
        guid="g",
        start=Position(parent, start),
        replid=replid or (f"r{epoch}" if served else ""),
        served=served,
        **more,
    )


def ledger(*entries: LedgerEntry) -> Ledger:
    return Ledger(epoch=entries[-1].epoch if entries else 0, entries=entries)


def where(
    book: Ledger,
    replid: str,
    offset: int,
    *,
    replid2: str = "",
    second: int = -1,
    promotions: dict[str, int] | None = None,
) -> Position | None:
    return resolve(
        book, promotions or {}, replid=replid, replid2=replid2, second_offset_bytes=second, offset_bytes=offset
    )


LINE = ledger(entry(1, 0, 10), entry(2, 1, 100), entry(3, 2, 200))
"""Three leaderships, each of which began where the one before it ended."""


def test_a_replid_stands_for_its_epoch_from_its_start_on() -> None:
    """At or past the start of its epoch a data set belongs to that epoch."""
    assert where(LINE, "r3", 200) == Position(3, 200)
    assert where(LINE, "r3", 999) == Position(3, 999)
    assert where(LINE, "r2", 999) == Position(2, 999)


# case B13
def test_a_new_replid_without_its_data_counts_as_an_ancestor() -> None:
    """A replica reports the new replid at +CONTINUE: until it has the data it ranks where its data are of."""
    assert where(LINE, "r3", 199) == Position(2, 199)
    assert where(LINE, "r3", 50) == Position(1, 50)
    assert where(LINE, "r3", 5) == Position(0, 5)


# case B4
def test_a_diverged_tail_of_an_older_epoch_is_behind() -> None:
    """However large its offset, what an old leader wrote after the branch ranks below the newer epoch."""
    old, new = where(LINE, "r2", 10**9), where(LINE, "r3", 200)
    assert old is not None
    assert new is not None
    assert old < new


# case B14
def test_an_epoch_that_never_served_ranks_as_its_parent() -> None:
    """Nothing was written in it: beyond its start there are only PINGs, and they give no advantage."""
    book = ledger(entry(1, 0, 10), entry(2, 1, 100, "p2", served=False))
    assert where(book, "p2", 100) == Position(1, 100)
    assert where(book, "p2", 150) == Position(1, 100)
    assert where(book, "p2", 99) == Position(1, 99)
    assert where(book, "p2", 4) == Position(0, 4)


# case B14
def test_two_promotions_in_a_row_without_serving_keep_the_position() -> None:
    """Replid and replid2 are both of epochs that never served; the position is still that of the epoch before them."""
    book = ledger(
        entry(1, 0, 10), entry(2, 1, 100, served=False), entry(3, 1, 100, served=False), entry(4, 1, 90, served=False)
    )
    promotions = {"p2": 2, "p3": 3}
    assert where(book, "p3", 130, replid2="p2", second=115, promotions=promotions) == Position(1, 100)
    assert where(book, "p2", 130, promotions=promotions) == Position(1, 100)
    assert where(book, "p3", 130) is None


def test_a_served_epoch_counts_only_under_the_replid_that_served() -> None:
    """A primary may take another replid before it serves: data under the first one have nothing of the epoch."""
    book = ledger(entry(1, 0, 10), entry(2, 1, 100))
    assert where(book, "first", 120, promotions={"first": 2}) == Position(1, 100)
    assert where(book, "r2", 120, promotions={"first": 2}) == Position(2, 120)


def test_an_unknown_replid_counts_up_to_the_branch_from_a_known_one() -> None:
    """What lies behind the branch was never served, or was written outside the rules."""
    assert where(LINE, "x", 500, replid2="r2", second=151) == Position(2, 150)
    assert where(LINE, "x", 120, replid2="r2", second=151) == Position(2, 120)
    assert where(LINE, "x", 500, replid2="r3", second=151) == Position(2, 150)
    assert where(LINE, "x", 500, replid2="r2", second=-1) is None


def test_a_known_replid_needs_no_other() -> None:
    """replid2 is only asked if the replid itself says nothing."""
    assert where(LINE, "r3", 300, replid2="r1", second=20) == Position(3, 300)


@pytest.mark.parametrize(("replid", "replid2"), [("x", ""), ("x", "y"), ("", ""), ("0" * 40, "0" * 40)])
def test_an_unknown_lineage_has_no_position(replid: str, replid2: str) -> None:
    """It is never taken for the lowest position, nor an empty replid of the ledger for a match."""
    book = ledger(entry(1, 0, 10), entry(2, 1, 100, served=False))
    assert where(book, replid, 50, replid2=replid2, second=40) is None


def test_a_promotion_in_an_unknown_epoch_is_ignored() -> None:
    """An epoch that was trimmed, or that never was, proves nothing."""
    assert where(LINE, "p9", 500, promotions={"p9": 9}) is None
    assert where(LINE, "p0", 500, promotions={"p0": 0}) is None
    assert where(LINE, "p9", 500, replid2="r3", second=301, promotions={"p9": 9}) == Position(3, 300)


def test_a_walk_into_trimmed_epochs_finds_nothing() -> None:
    """If the parent is not in the ledger any more, the position is unknown."""
    book = ledger(entry(7, 5, 100), entry(8, 7, 200))
    assert where(book, "r8", 150) == Position(7, 150)
    assert where(book, "r8", 50) is None


def test_a_ledger_that_runs_in_circles_is_survived() -> None:
    """A ledger that nobody of ours wrote must not hang the agent."""
    book = ledger(entry(1, 2, 50), entry(2, 1, 100))
    assert where(book, "r2", 10) is None


def test_after_an_aof_restart_the_claimant_keeps_its_place() -> None:
    """Redis counts from 0 again, so ``start`` cannot say where the claimant stood; the recorded position does."""
    book = ledger(entry(1, 0, 10), entry(2, 1, 0, "p2", served=False, recorded=Position(1, 900)))
    assert where(book, "p2", 0) == Position(1, 900)
    assert where(book, "p2", 42) == Position(1, 900)
    served = with_served(book, 2, "p2")
    assert where(served, "p2", 42) == Position(2, 42)


def test_the_data_set_that_the_cluster_began_with_is_epoch_0() -> None:
    """Members that have the adopted data set, but none of the first epoch yet, are known."""
    book = ledger(entry(1, 0, 500, origins=("before",)))
    assert where(book, "before", 480) == Position(0, 480)
    assert where(book, "x", 480, replid2="before", second=451) == Position(0, 450)


# --- the ledger -----------------------------------------------------------------------------------------------------


def test_the_ledger_grows_by_one_epoch_at_a_time() -> None:
    """A claim adds the next epoch; anything else is a mistake that raises."""
    book = append_entry(Ledger(), entry(1, 0, 0, served=False))
    assert (book.epoch, book.entries[0].epoch) == (1, 1)
    for epoch in (0, 1, 3):
        with pytest.raises(ValueError, match=f"epoch {epoch} cannot follow epoch 1"):
            append_entry(book, entry(epoch, 0, 0))
    with pytest.raises(ValueError, match="2 is the least"):
        append_entry(book, entry(2, 1, 0), keep=1)


@given(st.lists(st.booleans(), max_size=60), st.integers(min_value=2, max_value=9))
def test_the_ledger_is_bounded_and_keeps_what_matters(serves: list[bool], keep: int) -> None:
    """However many claims fail, the newest half of the served epochs stays, and so does the current epoch."""
    book, served_ever = Ledger(), []
    for epoch, serve in enumerate(serves, 1):
        last = book.latest_served()
        book = append_entry(book, entry(epoch, last.epoch if last else 0, epoch, served=False), keep)
        if serve:
            book = with_served(book, epoch, f"r{epoch}")
            served_ever.append(epoch)
        assert len(book.entries) <= keep
        assert book.entry(epoch) is not None
        assert [old.epoch for old in book.entries] == sorted(old.epoch for old in book.entries)
        kept = {old.epoch for old in book.entries if old.served}
        assert set(served_ever[-(keep // 2) :]) <= kept
        last = book.latest_served()
        assert (last.epoch if last else None) == (served_ever[-1] if served_ever else None)


def test_serving_records_the_replid() -> None:
    """Only the current epoch can serve, and only with a replid."""
    book = append_entry(LINE, entry(4, 3, 300, served=False))
    served = with_served(book, 4, "r4")
    assert served.entry(4) == entry(4, 3, 300)
    assert served.epoch == 4
    assert book.latest_served() == LINE.entry(3)
    for epoch, replid in ((3, "r"), (5, "r"), (4, ""), (4, "0" * 40)):
        with pytest.raises(ValueError, match=f"epoch {epoch} cannot serve"):
            with_served(book, epoch, replid)


def test_promotions_are_recorded_where_the_replid_is_lacking() -> None:
    """A replid that is in the ledger, of a served epoch or not, is never overwritten by a testimony."""
    book = ledger(entry(1, 0, 10), entry(2, 1, 100, served=False), entry(3, 1, 100, "known", served=False))
    found = with_promotions(book, {"p1": 1, "p2": 2, "p3": 3, "p9": 9})
    assert [old.replid for old in found.entries] == ["r1", "p2", "known"]
    assert [old.served for old in found.entries] == [True, False, False]
    assert with_promotions(book, {}) is book


@st.composite
def books(draw: st.DrawFn) -> tuple[Ledger, dict[str, int]]:
    """A ledger as claims, promotions and serves make it, and promotions that are testified."""
    book, promotions = Ledger(), {}
    reach = Position(0, draw(st.integers(0, 20)))
    for epoch in range(1, draw(st.integers(1, 7)) + 1):
        book = append_entry(book, entry(epoch, reach.epoch, reach.offset_bytes, served=False))
        fate = draw(st.sampled_from(["served", "promoted", "dead"]))
        if fate == "served":
            book = with_served(book, epoch, f"r{epoch}")
            reach = Position(epoch, reach.offset_bytes + draw(st.integers(0, 20)))
        elif fate == "promoted":
            promotions[f"r{epoch}"] = epoch
    return book, promotions


@given(books(), st.integers(1, 8), st.integers(0, 200), st.integers(0, 50))
def test_more_data_never_ranks_lower(
    book_and_promotions: tuple[Ledger, dict[str, int]], epoch: int, offset: int, more: int
) -> None:
    """Under one replid a larger offset never makes a smaller position, and every position names a served epoch."""
    book, promotions = book_and_promotions
    here = where(book, f"r{epoch}", offset, promotions=promotions)
    there = where(book, f"r{epoch}", offset + more, promotions=promotions)
    assert (here is None) == (there is None)
    if here is None or there is None:
        return
    assert here <= there
    assert here.offset_bytes <= offset
    named = book.entry(here.epoch)
    assert here.epoch == 0 or (named is not None and named.served)


@given(books(), st.integers(1, 8), st.integers(0, 200))
def test_recorded_promotions_resolve_as_testified_ones(
    book_and_promotions: tuple[Ledger, dict[str, int]], epoch: int, offset: int
) -> None:
    """It makes no difference whether a promotion is testified by a ballot or was written into the ledger."""
    book, promotions = book_and_promotions
    written = with_promotions(book, promotions)
    assert where(book, f"r{epoch}", offset, promotions=promotions) == where(written, f"r{epoch}", offset)


def test_addresses_are_written_as_people_expect() -> None:
    """IPv6 hosts have brackets where a port follows."""
    assert str(Address("10.0.0.1", 6379)) == "10.0.0.1:6379"
    assert str(Address("fd00::1", 6379)) == "[fd00::1]:6379"
