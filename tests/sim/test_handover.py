"""Directed scenarios: planned handovers, and what breaks in the middle of them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from redis_agent import machine
from redis_agent.znodes import LeaderPhase, OrderState, decode_leader
from tests.sim.agent import Member
from tests.sim.cluster import Cluster
from tests.sim.redis import SimRedis
from tests.sim.redis_data import RedisConn
from tests.sim.scenario import App, Begin, another_serves, epoch, roles, server, with_init
from tests.sim.zk_tree import Txn


class Load(App):
    """Writes without a pause on one connection, and keeps what was answered."""

    def __init__(self, cluster: Cluster, member: Member) -> None:
        super().__init__(cluster, member, "load")
        self.acknowledged: list[int] = []
        self.refused: list[int] = []
        self.longest_s = 0.0
        self._asked_at = cluster.world.now
        self.send()

    def on_reply(self, conn: RedisConn, reply: tuple[object, ...]) -> None:
        kind, number = reply
        assert isinstance(number, int)
        self.longest_s = max(self.longest_s, self.cluster.world.now - self._asked_at)
        if kind == "OK":
            self.acknowledged.append(number)
            self._asked_at = self.cluster.world.now
            self.cluster.world.after(0.001, self.send)
        else:
            self.cluster.checker.refused(number, str(kind))
            self.refused.append(number)


def begin_informed(begin: Begin, seed: int = 1) -> Cluster:
    """A cluster whose leader has read again how its followers are."""
    cluster = begin(seed)
    cluster.run(cluster.base.reread_s + 0.5)
    return cluster


def strike(cluster: Cluster, phase: str, act: Callable[[], None]) -> None:
    """``act()`` once ``leader`` shows this phase."""
    done: list[bool] = []

    def look() -> None:
        found = cluster.leader()
        if not done and found is not None and found.phase == phase:
            done.append(True)
            act()

    def committed(_txn: Txn) -> None:
        cluster.world.after(0.0, look)

    cluster.ensemble.on_commit.append(committed)


def exits(member: Member) -> list[int]:
    codes: list[int] = []
    member.on_exit.append(lambda _member, code: codes.append(code))
    return codes


# --- that all is well ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("members", [2, 3, 5])
@pytest.mark.parametrize("seed", range(4))
def test_sigterm_of_the_leader_under_load(begin: Begin, seed: int, members: int) -> None:
    """# case E1: nothing acknowledged is lost, one write waits and is refused, exit 0, all within a second."""
    cluster = begin(seed, members=members)
    old = cluster.serving()
    assert old is not None
    codes = exits(old)
    load = Load(cluster, old)
    cluster.run(1.0)
    old.stop()
    cluster.until("another serves", another_serves(cluster, old), 1.0)
    new = cluster.serving()
    assert new is not None
    assert set(load.acknowledged) <= set(server(new).data)
    cluster.until("the agent exits", lambda: bool(codes), 2.0)
    assert codes == [0]
    assert len(load.refused) == 1
    assert load.longest_s < 0.25
    assert epoch(cluster) == 2
    assert cluster.checker.handovers == 1


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("seed", range(6))
def test_a_switchover_by_order(begin: Begin, seed: int, named: bool) -> None:
    """# case E2: to a named member and to any; the old leader follows by a partial resync, and kicks its clients."""
    cluster = begin(seed)
    old, one, other = roles(cluster)
    load = Load(cluster, old)
    cluster.run(1.0)
    order = cluster.order_switchover(one.name if named else "")
    cluster.until("another serves", another_serves(cluster, old), 2.0)
    new = cluster.serving()
    assert new in ((one,) if named else (one, other))
    assert new is not None
    assert set(load.acknowledged) <= set(server(new).data)
    cluster.until("it is done", lambda: cluster.order_of(order).state == OrderState.DONE, 2.0)
    cluster.until("all are in sync", cluster.in_sync, 5.0)
    cluster.until("the old connection is closed", lambda: load.closed, 2.0)
    assert len(load.refused) == 1
    assert cluster.checker.full_resyncs == 2, "nobody needed more than the first one"
    assert epoch(cluster) == 2


def test_there_and_back_again(begin: Begin) -> None:
    """Ten switchovers in a row: each epoch by handover, and never a full resync."""
    cluster = begin()
    for number in range(2, 12):
        old = cluster.serving()
        assert old is not None
        load = Load(cluster, old)
        cluster.run(0.3)
        cluster.order_switchover()
        cluster.until("another serves", another_serves(cluster, old), 5.0)
        new = cluster.serving()
        assert new is not None
        assert set(load.acknowledged) <= set(server(new).data)
        cluster.until("all are intact", cluster.settled, 10.0)
        assert epoch(cluster) == number
    assert cluster.checker.handovers == 10
    assert cluster.checker.full_resyncs == 2


@pytest.mark.parametrize("case", ["leader", "unknown", "dead", "cut off"])
def test_an_order_that_can_not_be_carried_out_is_refused(begin: Begin, case: str) -> None:
    """# case E4: with a reason, and nothing happens."""
    cluster = begin()
    leader, one, _ = roles(cluster)
    to = {"leader": leader.name, "unknown": "zebra"}.get(case, one.name)
    if case == "dead":
        one.crash()
    elif case == "cut off":
        cluster.cut_redis(one.name)
    if to == one.name:
        cluster.run(15.0)
    path = cluster.order_switchover(to)
    cluster.until("it is answered", lambda: cluster.order_of(path).state in OrderState.FINAL, 10.0)
    order = cluster.order_of(path)
    assert order.state in (OrderState.REFUSED, OrderState.FAILED)
    assert order.detail
    assert cluster.serving() is leader
    assert epoch(cluster) == 1


@pytest.mark.parametrize("leads", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_an_upgrade_keeps_redis(begin: Begin, seed: int, leads: bool) -> None:
    """SIGUSR2: a leader hands over first; the next life attaches to the same process and is intact again."""
    cluster = begin(seed)
    old, one, _ = roles(cluster)
    member = old if leads else one
    redis, lives = server(member), member.lives
    load = Load(cluster, old)
    cluster.run(0.5)
    member.upgrade()
    cluster.until("it is back", lambda: member.lives == lives + 1, 5.0)
    cluster.until("all are intact", cluster.settled, 10.0)
    assert server(member) is redis
    assert member.attached == 1
    new = cluster.serving()
    assert new is not None
    assert (new is old) is not leads
    assert set(load.acknowledged) <= set(server(new).data)
    assert cluster.checker.handovers == int(leads)


@pytest.mark.parametrize("seed", range(4))
def test_a_rolling_restart(begin: Begin, seed: int) -> None:
    """# case E6: all three are stopped and started again, one after the other, with their Redis; nothing is lost."""
    cluster = begin(seed)
    acknowledged: list[int] = []
    for member in list(cluster.members.values()):
        leader = cluster.serving()
        assert leader is not None
        load = Load(cluster, leader)
        cluster.run(0.3)
        codes = exits(member)
        member.stop()
        cluster.until("it has exited", lambda codes=codes: bool(codes), 5.0)  # type: ignore[misc]
        acknowledged += load.acknowledged
        member.start()
        cluster.until("all are intact", cluster.settled, 10.0)
    for member in cluster.members.values():
        assert set(acknowledged) <= set(server(member).data)


# --- that something breaks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_the_successors_agent_dies_after_its_designation(begin: Begin, seed: int) -> None:
    """# case E3: the old leader takes the epoch back and goes on with the same data; a write that waited goes through
    (one that came while it was frozen was refused), and the order says what happened.
    """
    cluster = begin_informed(begin, seed)
    old, one, _ = roles(cluster)
    load = Load(cluster, old)
    cluster.run(0.5)
    strike(cluster, LeaderPhase.HANDING_OVER, one.kill_agent)
    path = cluster.order_switchover(one.name)
    cluster.until("it leads again", lambda: cluster.serving() is old and epoch(cluster) == 2, 10.0)
    before = len(load.acknowledged)
    cluster.until("writes go on", lambda: len(load.acknowledged) > before + 10 or bool(load.refused), 5.0)
    cluster.until("it is answered", lambda: cluster.order_of(path).state == OrderState.FAILED, 5.0)
    assert one.name in cluster.order_of(path).detail
    assert set(load.acknowledged) <= set(server(old).data)
    one.start()
    cluster.until("all are intact", cluster.settled)


@pytest.mark.parametrize("seed", range(6))
def test_the_successors_redis_restarts_empty_after_its_designation(begin: Begin, seed: int) -> None:
    """# case E7: what was intact when it was named is not any more: it doesn't lead, and nothing is lost."""
    cluster = begin_informed(begin, seed)
    old, one, _ = roles(cluster)
    load = Load(cluster, old)
    cluster.run(0.5)

    def wipe() -> None:
        server(one).kill()
        one.site.disk.wipe()

    strike(cluster, LeaderPhase.HANDING_OVER, wipe)
    cluster.order_switchover(one.name)
    cluster.until("somebody leads", lambda: cluster.serving() is not None and epoch(cluster) > 1, 20.0)
    new = cluster.serving()
    assert new is not None
    assert set(load.acknowledged) <= set(server(new).data)
    cluster.until("all are in sync", cluster.in_sync)


STEPS = (machine.PAUSING, machine.SEALING, machine.DESIGNATING, machine.HANDING_OVER, machine.HANDED_OVER)


def at_step(cluster: Cluster, member: Member, step: str) -> None:
    cluster.order_switchover()
    agent = member.agent
    assert agent is not None
    # Who hears late that the successor has claimed may hear at the same time that it serves.
    cluster.until(f"it is in {step}", lambda: agent.core.snapshot().state in (step, machine.FOLLOWER), 5.0)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("seed", range(3))
def test_the_old_leaders_agent_hangs_between_two_steps(begin: Begin, seed: int, step: str) -> None:
    """# case E7: until the pause has run out by itself: nothing that was executed is lost, and another leads."""
    cluster = begin_informed(begin, seed)
    old, _, _ = roles(cluster)
    with_init(cluster)
    load = Load(cluster, old)
    cluster.run(0.5)
    at_step(cluster, old, step)
    agent = old.agent
    assert agent is not None
    agent.process.stop()
    cluster.run(30.0)
    agent.process.cont()
    cluster.until("all are in sync", cluster.in_sync)
    new = cluster.serving()
    assert new is not None
    assert set(cluster.checker.writes) == set(server(new).data)
    assert set(load.acknowledged) <= set(server(new).data)


@pytest.mark.parametrize("victim", ["agent", "redis", "guard", "host"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("seed", range(2))
def test_the_old_leader_dies_between_two_steps(begin: Begin, seed: int, step: str, victim: str) -> None:
    """# case E7: of the agent, Redis, the guard, or all of them: what was executed lives on elsewhere.

    Unless Redis is lost before anybody had everything: that is a crash like any other.
    """
    cluster = begin_informed(begin, seed)
    old, _, _ = roles(cluster)
    Load(cluster, old)
    cluster.run(0.5)
    at_step(cluster, old, step)
    assert old.site.guard is not None
    {
        "agent": old.kill_agent,
        "redis": server(old).kill,
        "guard": old.site.guard.kill,
        "host": old.crash,
    }[victim]()
    cluster.run(2.0)
    old.start()
    cluster.until("all are in sync", cluster.in_sync)
    new = cluster.serving()
    assert new is not None
    if step != machine.PAUSING or victim == "agent":
        assert set(cluster.checker.writes) == set(server(new).data)


def test_the_swaps_reply_is_lost(begin: Begin) -> None:
    """The successor took the epoch and never hears of it: nobody takes it twice, and nothing is lost."""
    cluster = begin_informed(begin)
    old, one, _ = roles(cluster)
    load = Load(cluster, old)
    cluster.run(0.5)
    cut: list[tuple[tuple[str, str], ...]] = []

    def mute() -> None:
        cut.append(cluster.net.cut([(name, one.name) for name in cluster.ensemble.names]))

    def committed(txn: Txn) -> None:
        for change in txn.changes:
            named = change.path == cluster.leader_path and change.new is not None
            if named and not cut and decode_leader(change.new.data).name == one.name:  # type: ignore[union-attr]
                mute()

    cluster.ensemble.on_commit.append(committed)
    cluster.order_switchover(one.name)
    cluster.until("it was swapped", lambda: bool(cut), 5.0)
    cluster.run(2.0)
    cluster.net.heal(cut[0])
    cluster.until("all are in sync", cluster.in_sync)
    new = cluster.serving()
    assert new is not None
    assert set(load.acknowledged) <= set(server(new).data)


def test_a_hung_successor_is_not_waited_for_long(begin: Begin) -> None:
    """# case E3: its Redis hangs, so it never catches up: the leader stays, and the writes that waited go on."""
    cluster = begin_informed(begin)
    old, one, other = roles(cluster)
    load = Load(cluster, old)
    cluster.run(0.5)
    hung: list[SimRedis] = [server(one), server(other)]
    for redis in hung:
        redis.process.stop()
    path = cluster.order_switchover(one.name)
    cluster.until("it is answered", lambda: cluster.order_of(path).state in OrderState.FINAL, 15.0)
    assert cluster.order_of(path).state in (OrderState.FAILED, OrderState.REFUSED)
    for redis in hung:
        redis.process.cont()
    cluster.until("all are in sync", cluster.in_sync)
    assert set(load.acknowledged) <= set(server(old).data)
