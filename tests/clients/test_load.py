"""The instruments that judge the agents must be able to find fault."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import psutil
import redis

from redis_agent import LeaderObserver
from redis_agent.lab.load import Load
from redis_agent.lab.ports import free_port
from redis_agent.lab.waiting import wait_for
from redis_agent.lab.writer import Ack
from redis_agent.replication import Address
from tests.clients.conftest import ROOT, Stage

LIMIT_S = 10.0


@contextmanager
def redis_server(directory: Path) -> Iterator[redis.Redis]:
    """A primary of its own."""
    server = shutil.which("redis-server")
    assert server is not None
    port = free_port()
    process = subprocess.Popen(
        [server, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(directory)],
        stdout=subprocess.DEVNULL,
    )
    try:
        with redis.Redis(port=port, decode_responses=True) as client:
            wait_for(lambda: answers(client), LIMIT_S, "Redis answers")
            yield client
    finally:
        process.kill()
        process.wait()


def answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.ConnectionError:
        return False


def port_of(client: redis.Redis) -> int:
    port: int = client.connection_pool.connection_kwargs["port"]
    return port


@contextmanager
def loading(stage: Stage, client: redis.Redis) -> Iterator[Load]:
    """A load on this Redis as the leader of epoch 1. Nobody replicates, so WAIT 0 confirms everything."""
    stage.show(1, address=Address("127.0.0.1", port_of(client)), wait=0)
    with LeaderObserver(stage.hosts, cluster=stage.cluster, root=ROOT, session_timeout_s=4.0) as observer:
        observer.wait_for_leader(LIMIT_S)
        with Load(observer, rate_per_s=2000) as load:
            wait_for(lambda: load.acknowledged > 100, LIMIT_S, "the clients write")
            yield load


def test_all_is_found_where_nothing_is_lost(stage: Stage, tmp_path: Path) -> None:
    """Every acknowledged write is looked up and found, and every second has writes in it."""
    with redis_server(tmp_path) as client, loading(stage, client) as load:
        since_ns = time.monotonic_ns()
        wait_for(lambda: load.acknowledged > 400, LIMIT_S, "the clients write")
        load.stop()
        losses = load.verify(client)
        assert losses.sound
        assert (losses.confirmed_lost, losses.plain_lost, losses.counters_lost, losses.unknown) == (0, 0, 0, 0)
        assert losses.confirmed > 0
        assert losses.plain > 0
        assert load.gap(since_ns, since_ns + 50_000_000).seconds < 0.05
        assert load.verify(client, everything=True) == losses
        assert not load.surprises


def test_a_lost_write_is_found(stage: Stage, tmp_path: Path) -> None:
    """One confirmed key that is gone, one plain key that is gone, a counter that was set back: each is noticed."""
    with redis_server(tmp_path) as client, loading(stage, client) as load:
        client.set("load:counter5", 1)
        wait_for(lambda: load.verify(client).counters_lost > 0, LIMIT_S, "the counter is missed")
        client.set("load:counter5", 1_000_000)
        wait_for(lambda: load.verify(client).counters_doubled > 0, LIMIT_S, "the counter is too far")
        load.stop()
        assert client.delete("load:confirmed3:7", "load:plain1:5") == 2
        losses = load.verify(client, everything=True)
    assert not losses.sound
    assert losses.confirmed_lost == 1
    assert losses.examples == ["load:confirmed3:7"]
    assert losses.plain_lost == 1


def test_an_outage_is_measured_and_what_was_not_executed_is_written_again(stage: Stage, tmp_path: Path) -> None:
    """While Redis refuses writes there is a gap; no write is lost by it, none is unknown, none is left out."""
    with redis_server(tmp_path) as client, loading(stage, client) as load:
        refused_ns = time.monotonic_ns()
        client.config_set("min-replicas-to-write", 10)
        wait_for(lambda: time.monotonic_ns() - refused_ns > 200_000_000, LIMIT_S, "a fifth of a second has passed")
        client.config_set("min-replicas-to-write", 0)
        lifted_ns = time.monotonic_ns()
        written = load.acknowledged
        wait_for(lambda: load.acknowledged > written + 50, LIMIT_S, "the clients write again")
        gap = load.gap(refused_ns)
        load.stop()
        losses = load.verify(client)
        assert 0.15 < gap.seconds < (lifted_ns - refused_ns) / 1e9 + 0.1
        assert load.longest_write_s(refused_ns) > 0.15
        assert (losses.confirmed_lost, losses.plain_lost, losses.counters_lost, losses.unknown) == (0, 0, 0, 0)
        for key in ("load:plain1", "load:confirmed3"):
            sequence = sorted(int(name.rpartition(":")[2]) for name in client.scan_iter(f"{key}:*", count=1000))
            assert sequence == list(range(1, len(sequence) + 1))
        assert not load.surprises


def test_a_dead_leader_s_last_writes_are_unknown_and_the_next_one_is_found(stage: Stage, tmp_path: Path) -> None:
    """A connection that breaks in the middle leaves at most one unknown write per client; the next leader is written
    to at once.
    """
    (tmp_path / "b").mkdir()
    with redis_server(tmp_path) as first, redis_server(tmp_path / "b") as second, loading(stage, first) as load:
        at_ns = time.monotonic_ns()
        first.shutdown(nosave=True, now=True)
        stage.show(2, address=Address("127.0.0.1", port_of(second)), wait=0)
        found = wait_for(lambda: load.first_ack(at_ns, after_epoch=1), LIMIT_S, "the next leader acknowledges")
        assert isinstance(found, Ack)
        assert found.epoch == 2
        assert wait_for(lambda: load.first_ack(at_ns, after_epoch=1, confirmed=True), LIMIT_S, "confirmed").confirmed
        load.stop()
        losses = load.verify(second)
        assert losses.unknown <= 5
        # It has nothing of what the first one acknowledged.
        assert losses.confirmed_lost > 0
        assert losses.plain_lost > 0


def test_a_leader_that_stands_still_is_left_for_the_next_one(stage: Stage, tmp_path: Path) -> None:
    """A host that is frozen answers nothing and closes nothing: its clients go on with the next leader within a second,
    not after their limit, and what they had sent is unknown; nothing that it says later is believed.
    """
    (tmp_path / "b").mkdir()
    with redis_server(tmp_path) as first, redis_server(tmp_path / "b") as second, loading(stage, first) as load:
        server = psutil.Process(first.info("server")["process_id"])
        server.suspend()
        at_ns = time.monotonic_ns()
        stage.show(2, address=Address("127.0.0.1", port_of(second)), wait=0)
        for confirmed in (False, True):
            again = partial(load.first_ack, at_ns, after_epoch=1, confirmed=confirmed)
            assert wait_for(again, LIMIT_S, "the next leader acknowledges").at_ns - at_ns < 2_000_000_000
        server.resume()
        load.stop()
        assert 0 < load.unknown <= 5
        # What had been answered before the signal may be read some time after it.
        assert not [ack for ack in load.acks(at_ns) if ack.epoch == 1 and ack.begun_ns > at_ns]
