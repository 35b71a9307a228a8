"""``redis-agent switchover``: against a ZooKeeper that the test itself writes to, and against whole clusters."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from kazoo.client import KazooClient  # type: ignore[import-untyped]
from kazoo.exceptions import NoNodeError  # type: ignore[import-untyped]
from kazoo.security import READ_ACL_UNSAFE, make_digest_acl  # type: ignore[import-untyped]

from redis_agent import znodes
from redis_agent.cli.main import main
from redis_agent.lab.agent_process import AgentProcess
from redis_agent.lab.cluster import LocalCluster
from redis_agent.lab.load import Load
from redis_agent.lab.ports import free_port
from redis_agent.lab.waiting import wait_for
from redis_agent.lab.zookeeper import Ensemble
from redis_agent.replication import Address, Ledger, LedgerEntry, Position
from redis_agent.znodes import Order, OrderState
from tests.support.cluster import SESSION_S, lab, observer_of

PATHS = znodes.Paths("redis-agent", "cache")
Capture = pytest.CaptureFixture[str]


# --- the command alone ----------------------------------------------------------------------------------------------


@pytest.fixture
def client(zookeeper_hosts: str) -> Iterator[KazooClient]:
    """A client of the test's own corner of ZooKeeper, with a cluster of two voters; m1 leads epoch 7."""
    client = KazooClient(zookeeper_hosts)
    client.start(timeout=10)
    entry = LedgerEntry(epoch=7, member="m1", guid="g1", start=Position(6, 5), replid="r", served=True)
    payloads: dict[str, znodes.ClusterConfig | Ledger | znodes.Member | znodes.Presence | znodes.Leader] = {
        PATHS.config: znodes.ClusterConfig(cluster_id="c", voters=("m1", "m2")),
        PATHS.epoch: Ledger(epoch=7, entries=(entry,)),
    }
    for number in (1, 2):
        name, address = f"m{number}", Address(f"10.0.0.{number}", 6379)
        payloads[PATHS.member(name)] = znodes.Member(name=name, redis=address)
        payloads[PATHS.presence(name)] = znodes.Presence(name=name, guid=f"g{number}", redis=address, redis_up=True)
    payloads[PATHS.leader] = znodes.Leader(
        name="m1", address=Address("10.0.0.1", 6379), epoch=7, phase=znodes.LeaderPhase.SERVING, guid="g1"
    )
    for path, payload in payloads.items():
        client.create(path, znodes.encode(payload), makepath=True)
    client.ensure_path(PATHS.orders)
    yield client
    client.stop()
    client.close()


def arguments(hosts: str, *more: str) -> list[str]:
    return ["switchover", "--zookeeper", hosts, "--cluster", "cache", *more]


def orders(client: KazooClient) -> dict[str, Order]:
    """The orders that are there."""
    found = {}
    for name in client.get_children(PATHS.orders):
        try:
            found[name] = znodes.decode_order(client.get(PATHS.order(name))[0])
        except NoNodeError:
            continue
    return found


@contextmanager
def leader_that(client: KazooClient, *does: Callable[[str, Order], None]) -> Iterator[None]:
    """Somebody who takes the first order that appears, on a thread of its own, as the leader's agent would."""

    def play() -> None:
        wait_for(lambda: orders(client), 10.0, "an order")
        name, order = next(iter(orders(client).items()))
        for step in does:
            step(name, order)

    thread = threading.Thread(target=play, daemon=True)
    thread.start()
    yield
    thread.join(10.0)
    assert not thread.is_alive()


def writes(client: KazooClient, state: str, detail: str = "") -> Callable[[str, Order], None]:
    def write(name: str, order: Order) -> None:
        client.set(PATHS.order(name), znodes.encode(replace(order, state=state, epoch=7, detail=detail)))

    return write


def test_an_order_is_written_and_nobody_waits(client: KazooClient, zookeeper_hosts: str, capsys: Capture) -> None:
    """Exit 0 as soon as it is written: who asks, when, for how long; and the command that shows what becomes of it."""
    assert main(arguments(zookeeper_hosts, "--to", "m2", "--timeout", "30")) == 0
    told = capsys.readouterr().out
    (name, order), *others = orders(client).items()
    assert not others
    assert name.startswith("switchover-")
    assert (order.kind, order.to, order.state, order.expires_s) == ("switchover", "m2", OrderState.PENDING, 30.0)
    assert "@" in order.by
    assert time.time() - 10 < order.at <= time.time()
    command = f"redis-agent status --zookeeper {zookeeper_hosts} --cluster cache"
    assert told == f"ordered as {name}; see what becomes of it: {command}\n"
    main(command.split()[1:])
    assert f"order {name} (switchover to m2, by {order.by}): pending" in capsys.readouterr().out


def test_one_order_at_a_time(client: KazooClient, zookeeper_hosts: str, capsys: Capture) -> None:
    """A second one is refused while something may come of the first, and nothing is written."""
    assert main(arguments(zookeeper_hosts)) == 0
    first = next(iter(orders(client)))
    assert main(arguments(zookeeper_hosts, "--to", "m2", "--wait")) == 1
    error = capsys.readouterr().err
    assert f"another order is pending: {first}" in error
    assert error.count("\n") == 1
    assert list(orders(client)) == [first]


def test_the_outcome_is_told_and_the_order_removed(client: KazooClient, zookeeper_hosts: str, capsys: Capture) -> None:
    """--wait hears of it by the watch on its order: the leader's own sentence, exit 0, and nothing is left."""
    detail = "m2 leads since epoch 8"
    with leader_that(client, writes(client, OrderState.ACCEPTED), writes(client, OrderState.DONE, detail)):
        assert main(arguments(zookeeper_hosts, "--wait")) == 0
    captured = capsys.readouterr()
    assert (captured.out, captured.err) == (f"{detail}\n", "")
    assert not orders(client)


@pytest.mark.parametrize("state", [OrderState.REFUSED, OrderState.FAILED])
def test_a_refusal_is_told_with_the_leaders_reason(
    client: KazooClient, zookeeper_hosts: str, capsys: Capture, state: str
) -> None:
    """Exit 1, one line."""
    with leader_that(client, writes(client, state, "m2 lags by 5 GB")):
        assert main(arguments(zookeeper_hosts, "--wait", "--to", "m2")) == 1
    assert capsys.readouterr().err == f"redis-agent: {state}: m2 lags by 5 GB\n"
    assert not orders(client)


def test_an_order_that_nobody_takes_is_withdrawn(client: KazooClient, zookeeper_hosts: str, capsys: Capture) -> None:
    """Then nothing happens later, when nobody expects it any more. case E3"""
    assert main(arguments(zookeeper_hosts, "--wait", "--timeout", "0.3")) == 1
    error = capsys.readouterr().err
    assert "no leader took the order within 0.3 s, so it was withdrawn" in error
    assert "redis-agent status" in error
    assert not orders(client)


def test_an_accepted_order_is_not_withdrawn(client: KazooClient, zookeeper_hosts: str, capsys: Capture) -> None:
    """The leader is at it: the command's time is up, the handover's is not. case E3"""
    with leader_that(client, writes(client, OrderState.ACCEPTED)):
        assert main(arguments(zookeeper_hosts, "--wait", "--timeout", "0.5")) == 1
    assert "accepted, but not done within 0.5 s" in capsys.readouterr().err
    assert [order.state for order in orders(client).values()] == [OrderState.ACCEPTED]


def test_an_order_that_somebody_removes(client: KazooClient, zookeeper_hosts: str, capsys: Capture) -> None:
    """Exit 1 at once, not after the limit."""
    with leader_that(client, lambda name, _: client.delete(PATHS.order(name))):
        assert main(arguments(zookeeper_hosts, "--wait")) == 1
    assert "somebody removed the order" in capsys.readouterr().err


def test_only_agents_may_order(client: KazooClient, zookeeper_hosts: str, tmp_path: Path, capsys: Capture) -> None:
    """Refused without the agents' credentials, with the remedy; with them, only they may change the order.

    case G7
    """
    client.set_acls(PATHS.orders, [make_digest_acl("agent", "secret", all=True), *READ_ACL_UNSAFE])
    assert main(arguments(zookeeper_hosts)) == 1
    assert "auth_file" in capsys.readouterr().err
    secret = tmp_path / "zookeeper-auth"
    secret.write_text("agent:secret\n")
    secret.chmod(0o600)
    file = tmp_path / "cache.toml"
    file.write_text(
        f'[cluster]\nname = "cache"\nbootstrap_expect = 2\n[zookeeper]\nhosts = "{zookeeper_hosts}"\n'
        f'auth_file = "{secret}"\n[redis]\nannounce_host = "10.0.0.1"\n'
    )
    assert main(["switchover", "--config", str(file)]) == 0
    told = capsys.readouterr().out
    assert told.endswith(f"redis-agent status --config {file}\n")
    acl = client.get_acls(PATHS.order(told.split(";")[0].split()[-1]))[0]
    assert {(each.id.scheme, each.perms) for each in acl} == {("digest", 31), ("world", 1)}


def test_zookeeper_out_of_reach(capsys: Capture) -> None:
    """Exit 2 within the limit, in one line."""
    assert main(arguments(f"127.0.0.1:{free_port()}", "--timeout", "0.5")) == 2
    error = capsys.readouterr().err
    assert "does not answer within 0.5 s" in error
    assert error.count("\n") == 1


@contextmanager
def in_the_background(*words: str) -> Iterator[subprocess.Popen[str]]:
    """The command as a process."""
    process = subprocess.Popen(
        # In the background of a shell SIGINT is ignored, and children inherit that.
        ["env", "--default-signal=INT", sys.executable, "-m", "redis_agent.cli.main", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_ctrl_c_leaves_the_order(client: KazooClient, zookeeper_hosts: str) -> None:
    """130, and a line that says so: whoever wants to know what becomes of it is told how."""
    with in_the_background(*arguments(zookeeper_hosts, "--wait")) as command:
        wait_for(lambda: orders(client), 10.0, "the order is written")
        wait_for(lambda: client.get_children(PATHS.orders), 5.0, "it is there")
        command.send_signal(signal.SIGINT)
        out, error = command.communicate(timeout=10)
    assert (command.returncode, out) == (130, "")
    assert "interrupted; " in error
    assert "stays and may be carried out: redis-agent status" in error
    assert error.count("\n") == 1
    assert len(orders(client)) == 1


def test_zookeeper_goes_and_comes_back_while_it_waits(tmp_path: Path) -> None:
    """The outcome is told all the same: a lost connection is not an answer."""
    with Ensemble(tmp_path / "zk", 1, tick_ms=200) as ensemble:
        retry = {"max_tries": -1, "delay": 0.02, "max_delay": 0.2}
        client = KazooClient(ensemble.hosts, timeout=2.0, connection_retry=retry)
        client.start(timeout=10)
        try:
            write_minimal(client)
            with in_the_background(*arguments(ensemble.hosts, "--wait")) as command:
                wait_for(lambda: orders(client), 10.0, "the order is written")
                ensemble.kill(0)
                ensemble.restart(0)
                wait_for(lambda: client.connected, 20.0, "connected again")
                name, order = next(iter(client.retry(orders, client).items()))
                client.retry(writes(client, OrderState.DONE, "m2 leads since epoch 8"), name, order)
                assert command.communicate(timeout=40) == ("m2 leads since epoch 8\n", "")
        finally:
            client.stop()
            client.close()
    assert command.returncode == 0


def write_minimal(client: KazooClient) -> None:
    """A leader and another voter."""
    client.create(PATHS.config, znodes.encode(znodes.ClusterConfig(voters=("m1", "m2"))), makepath=True)
    for name in ("m1", "m2"):
        address = Address("10.0.0.1", 6379)
        client.create(PATHS.member(name), znodes.encode(znodes.Member(name=name, redis=address)), makepath=True)
        presence = znodes.Presence(name=name, guid=name, redis=address, redis_up=True)
        client.create(PATHS.presence(name), znodes.encode(presence), makepath=True)
    leader = znodes.Leader(
        name="m1", address=Address("10.0.0.1", 6379), epoch=7, phase=znodes.LeaderPhase.SERVING, guid="m1"
    )
    client.create(PATHS.leader, znodes.encode(leader), makepath=True)
    client.ensure_path(PATHS.orders)


# --- whole clusters -------------------------------------------------------------------------------------------------


def switchover(cluster: LocalCluster, *more: str) -> int:
    where = ["--zookeeper", cluster.ensemble.hosts, "--cluster", cluster.cluster, "--root", cluster.root]
    return main(["switchover", *where, *more])


def lost(load: Load, leader: AgentProcess) -> tuple[int, ...]:
    """Writes that were confirmed, acknowledged, counted and are gone; counted twice; of unknown outcome."""
    with leader.redis(timeout_s=5.0) as client:
        losses = load.verify(client, everything=True)
    counts = (losses.confirmed_lost, losses.plain_lost, losses.counters_lost, losses.counters_doubled)
    return (*counts, losses.unknown)


def test_to_a_named_member_and_to_any_under_load(zookeeper: Ensemble, tmp_path: Path, capsys: Capture) -> None:
    """Eight clients write all the time. Three switchovers: nothing acknowledged is lost, no increment is doubled, no
    outcome is unknown, no client sees an error that it can't hide, and the old leader follows.

    case E2, F4
    """
    with lab(zookeeper, tmp_path) as cluster, observer_of(cluster) as observer:
        observer.wait_for_leader(10)
        with Load(observer, plain=3, confirmed=3, counters=2, rate_per_s=400) as load:
            cluster.wait_for(lambda: load.acknowledged > 100, "writes are acknowledged")
            for named in (True, False, True):
                old, epoch = cluster.wait_settled(), cluster.epoch()
                to = next(member for member in cluster if member is not old)
                at_ns = time.monotonic_ns()
                assert switchover(cluster, "--wait", *(["--to", to.name] if named else [])) == 0
                new = cluster.wait_serving(after_epoch=epoch)
                assert new is (to if named else new)
                assert new is not old
                assert cluster.epoch() == epoch + 1
                assert f"{new.name} leads since epoch {epoch + 1}" in capsys.readouterr().out
                wrote = partial(load.first_ack, at_ns, after_epoch=epoch, confirmed=True)
                cluster.wait_for(wrote, "confirmed writes go on")
                assert load.gap(at_ns).seconds < SESSION_S / 2
                assert not cluster.zk.get_children(cluster.paths.orders)
            leader = cluster.wait_settled()
        assert lost(load, leader) == (0, 0, 0, 0, 0)
        assert (load.unknown, load.surprises) == (0, [])


def test_the_ledger_says_that_it_was_a_handover(zookeeper: Ensemble, tmp_path: Path) -> None:
    """Clients may rely on it: every acknowledged write of the epoch before is there. case E2"""
    with lab(zookeeper, tmp_path) as cluster:
        old = cluster.wait_settled()
        assert switchover(cluster, "--wait") == 0
        assert cluster.wait_settled() is not old
        leader = cluster.leader()
        assert leader is not None
        assert leader.by_handover
        assert cluster.ledger().entries[-1].handover


def test_members_that_cannot_lead_are_refused(zookeeper: Ensemble, tmp_path: Path, capsys: Capture) -> None:
    """Unknown, nofailover, dead: exit 1, one line with the reason, and the leader goes on in its epoch.

    case E4
    """
    overrides = {"n4": {"member": {"nofailover": True}}}
    with lab(zookeeper, tmp_path, 4, overrides=overrides, settings={"cluster": {"bootstrap_expect": 3}}) as cluster:
        leader, epoch = cluster.wait_settled(), cluster.epoch()
        dead = next(member for member in cluster if member.name != "n4" and member is not leader)
        assert dead.stop() == 0
        cluster.wait_for(lambda: cluster.presence(dead.name) is None, "its presence is gone")
        for to, told in (("n9", "there is no member n9"), ("n4", "not a voter"), (dead.name, "is not there")):
            assert switchover(cluster, "--wait", "--to", to) == 1
            error = capsys.readouterr().err
            assert told in error
            assert error.count("\n") == 1
        assert switchover(cluster, "--wait", "--to", leader.name) == 1
        assert f"{leader.name} leads already" in capsys.readouterr().err
        assert (cluster.serving(), cluster.epoch()) == (leader, epoch)


def told_offsets(leader: AgentProcess) -> list[int]:
    """Of each replica, as its primary knows it."""
    info = leader.info()
    return [int(info[f"slave{number}"]["offset"]) for number in range(int(info.get("connected_slaves", 0)))]


def test_a_successor_that_hangs(zookeeper: Ensemble, tmp_path: Path, capsys: Capture) -> None:
    """The one that was named cannot catch up: the order fails with the reason, the leader stays, and clients' writes go
    on without an error.

    case E3, E4
    """
    settings = {"timing": {"probe_s": 30.0, "hang_s": 90.0, "busy_s": 60.0, "handover_s": 1.0, "designation_s": 0.5}}
    with lab(zookeeper, tmp_path, settings=settings) as cluster, observer_of(cluster) as observer:
        leader, epoch = cluster.wait_settled(), cluster.epoch()
        hung = next(member for member in cluster if member is not leader)
        observer.wait_for_leader(10)
        with Load(observer, plain=2, confirmed=1, counters=1, rate_per_s=200) as load:
            cluster.wait_for(lambda: load.acknowledged > 50, "writes are acknowledged")
            # Behind a full resync a replica says nothing of its offset for up to a second.
            cluster.wait_for(lambda: all(told_offsets(leader)), "both followers have told how far they are")
            hung.signal_redis(signal.SIGSTOP)
            try:
                assert switchover(cluster, "--wait", "--to", hung.name, "--timeout", "20") == 1
            finally:
                hung.signal_redis(signal.SIGCONT)
            at_ns = time.monotonic_ns()
            cluster.wait_for(lambda: load.acks(at_ns), "writes go on")
        error = capsys.readouterr().err
        assert error.startswith("redis-agent: failed: ")
        assert "within 1 s" in error
        assert (cluster.serving(), cluster.epoch()) == (leader, epoch)
        assert lost(load, leader) == (0, 0, 0, 0, 0)


def test_a_successor_that_does_not_take_over(zookeeper: Ensemble, tmp_path: Path, capsys: Capture) -> None:
    """Its Redis has everything, so it is designated, but its agent stands still: the old leader takes the epoch back,
    the order fails with the reason, the writes that waited are acknowledged, and none of them failed or was lost.

    case E3
    """
    with lab(zookeeper, tmp_path) as cluster, observer_of(cluster) as observer:
        leader, epoch = cluster.wait_settled(), cluster.epoch()
        chosen = next(member for member in cluster if member is not leader)
        observer.wait_for_leader(10)
        with Load(observer, plain=2, confirmed=1, counters=1, rate_per_s=200) as load:
            cluster.wait_for(lambda: load.acknowledged > 50, "writes are acknowledged")
            at_ns = time.monotonic_ns()
            chosen.pause()
            try:
                assert switchover(cluster, "--wait", "--to", chosen.name, "--timeout", "20") == 1
                cluster.wait_for(lambda: load.resumed(at_ns, after_epoch=epoch), "everybody writes again")
            finally:
                chosen.resume()
            assert f"failed: {chosen.name} did not take over" in capsys.readouterr().err
            assert cluster.wait_settled() is leader
            assert cluster.epoch() == epoch + 1
        assert lost(load, leader) == (0, 0, 0, 0, 0)
        assert load.surprises == []
