"""Directed scenarios: agents, guards and hosts that die or hang, and what of Redis's memory is left."""

from __future__ import annotations

import pytest

from tests.sim.agent import SIGKILLED
from tests.sim.cluster import Cluster
from tests.sim.excuses import CONTINUED
from tests.sim.redis import SimRedis
from tests.sim.scenario import App, Begin, another_serves, epoch, reason, roles, server, with_init


def processes(cluster: Cluster) -> list[SimRedis]:
    return [server(member) for member in cluster.members.values()]


# --- the agent ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_a_leader_whose_agent_is_killed_is_fenced_and_found_again(begin: Begin, seed: int) -> None:
    """# case C3: fenced within 100 ms; its next life attaches to the same process, which has lost nothing, and nobody
    waits for the session timeout.
    """
    cluster = begin(seed)
    leader, _, _ = roles(cluster)
    confirmed = App(cluster, leader).confirm()
    redis = server(leader)
    leader.kill_agent()
    cluster.until("it is fenced", lambda: not redis.writable, 0.1)
    assert redis.process.alive
    leader.start()
    cluster.until("somebody serves", lambda: cluster.serving() is not None, 2.0)
    cluster.until("all are intact", cluster.settled)
    cluster.until("all are in sync", cluster.in_sync)
    assert server(leader) is redis
    assert leader.attached == 1
    assert confirmed in redis.data
    assert cluster.checker.full_resyncs == 2, "nobody needed more than the first one"


@pytest.mark.parametrize("seed", range(6))
def test_a_follower_whose_agent_is_killed_goes_on_following(begin: Begin, seed: int) -> None:
    """It acknowledges all the time, and is intact at once when its agent is back: it never forgot anything."""
    cluster = begin(seed)
    leader, follower, _ = roles(cluster)
    redis = server(follower)
    follower.kill_agent()
    app = App(cluster, leader)
    cluster.run(1.0)
    confirmed = [app.confirm() for _ in range(5)]
    cluster.until("it has them", lambda: set(confirmed) <= set(redis.data), 2.0)
    follower.start()
    cluster.until("all are intact", cluster.settled, 5.0)
    assert server(follower) is redis
    assert epoch(cluster) == 1


@pytest.mark.parametrize("members", [3, 5])
@pytest.mark.parametrize("seed", range(6))
def test_all_agents_end_at_once_and_no_redis_does(begin: Begin, seed: int, members: int) -> None:
    """One bad setting ends every agent. Nothing is on a disk, and nothing is lost."""
    cluster = begin(seed, members=members)
    leader = cluster.serving()
    assert leader is not None
    app = App(cluster, leader)
    confirmed = [app.confirm() for _ in range(10)]
    before = processes(cluster)
    for member in cluster.members.values():
        member.kill_agent()
    cluster.run(cluster.world.rng.choice((0.1, 3.0, 20.0)))
    assert not any(redis.writable for redis in before)
    order = list(cluster.members.values())
    cluster.world.rng.shuffle(order)
    for member in order:
        member.start()
        cluster.run(cluster.world.rng.choice((0.0, 0.1, 4.0)))
    cluster.until("all are in sync", cluster.in_sync)
    assert processes(cluster) == before
    for redis in before:
        assert set(confirmed) <= set(redis.data)


@pytest.mark.parametrize("seed", range(6))
def test_an_agent_that_hangs_past_its_lease_is_killed_by_its_guard(begin: Begin, seed: int) -> None:
    """# case A6: fenced in time by somebody else, its process and memory kept; nothing confirmed is lost."""
    cluster = begin(seed)
    codes = with_init(cluster)
    old, _, _ = roles(cluster)
    app = App(cluster, old)
    confirmed = app.confirm()
    redis = server(old)
    agent = old.agent
    assert agent is not None
    agent.process.stop()
    cluster.until("it is fenced", lambda: not redis.writable, 10.0)
    cluster.until("somebody serves", lambda: cluster.serving() is not None, 2.0)
    assert not agent.process.alive
    assert epoch(cluster) == 2
    assert codes == [SIGKILLED]
    cluster.until("all are in sync", cluster.in_sync)
    assert server(old) is redis
    assert confirmed in redis.data


@pytest.mark.parametrize("seed", range(4))
def test_an_agent_that_hangs_shortly_keeps_its_role(begin: Begin, seed: int) -> None:
    """The guard acts on deadlines only."""
    cluster = begin(seed)
    leader, _, _ = roles(cluster)
    agent = leader.agent
    assert agent is not None
    agent.process.stop()
    cluster.run(2.0)
    agent.process.cont()
    cluster.run(10.0)
    assert cluster.serving() is leader
    assert epoch(cluster) == 1
    assert cluster.checker.guard_fences == 0


@pytest.mark.parametrize("seed", range(4))
def test_redis_and_its_agent_hang_together(begin: Begin, seed: int) -> None:
    """# case C2: the guard gets no answer to its fence, so it kills Redis before it could accept another write."""
    cluster = begin(seed)
    with_init(cluster)
    old, _, _ = roles(cluster)
    redis = server(old)
    assert old.agent is not None
    old.agent.process.stop()
    redis.process.stop()
    cluster.until("another serves", another_serves(cluster, old), 30.0)
    assert not redis.process.alive
    cluster.until("all are in sync", cluster.in_sync)


def test_a_lease_that_ends_without_a_hang_costs_no_agent(begin: Begin) -> None:
    """Cut off from ZooKeeper the agent fences by itself, before its guard has to."""
    cluster = begin()
    old, _, _ = roles(cluster)
    agent, redis = old.agent, server(old)
    cut = cluster.cut_zookeeper(old.name)
    cluster.until("another serves", another_serves(cluster, old), 30.0)
    cluster.net.heal(cut)
    cluster.until("all are in sync", cluster.in_sync)
    assert old.agent is agent
    assert server(old) is redis
    assert cluster.checker.guard_fences == 0


# --- a Redis that hangs while its agent is away -------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_a_hung_follower_that_cannot_be_attached_to_is_replaced(begin: Begin, seed: int) -> None:
    """Somebody leads, so its memory is not needed: killed as any hung follower, and launched anew."""
    cluster = begin(seed)
    leader, follower, _ = roles(cluster)
    confirmed = App(cluster, leader).confirm()
    redis = server(follower)
    redis.process.stop()
    follower.kill_agent()
    cluster.run(0.2)
    follower.start()
    cluster.until("it is killed", lambda: not redis.process.alive, 30.0)
    cluster.until("all are intact", cluster.settled)
    assert cluster.serving() is leader
    assert confirmed in server(follower).data


def test_a_paused_follower_that_cannot_be_attached_to_is_waited_for(begin: Begin) -> None:
    """Somebody ordered CLIENT PAUSE of all commands: that is no hang, so it is attached to when the pause is over."""
    cluster = begin()
    leader, follower, _ = roles(cluster)
    redis = server(follower)
    redis.pause_all(30.0)
    follower.kill_agent()
    cluster.run(0.2)
    follower.start()
    cluster.run(25.0)
    assert server(follower) is redis
    cluster.until("all are intact", cluster.settled, 60.0)
    assert server(follower) is redis
    assert cluster.serving() is leader


@pytest.mark.parametrize("seed", range(4))
def test_a_hung_redis_that_may_be_needed_is_waited_for(begin: Begin, seed: int) -> None:
    """Nobody leads: however long it hangs, it is attached to when it goes on, and then it votes with what it has."""
    cluster = begin(seed)
    leader, last, other = roles(cluster)
    confirmed = App(cluster, leader).confirm()
    redis = server(last)
    redis.process.stop()
    last.kill_agent()
    leader.crash()
    other.crash()
    cluster.run(10.0)
    last.start()
    cluster.run(30.0)
    assert server(last) is redis
    redis.process.cont()
    leader.start()
    other.start()
    cluster.until("all are intact", cluster.settled)
    assert server(last) is redis
    assert confirmed in redis.data


# --- a Redis that is killed and does not end ----------------------------------------------------------------------


def hang_in_kernel(redis: SimRedis, for_s: float = 120.0) -> None:
    """No answer, and SIGKILL does not end it, as on a disk that hangs."""
    redis.dies_late_s = for_s
    redis.process.stop()


@pytest.mark.parametrize("seed", range(6))
def test_a_leaders_redis_that_is_killed_and_lingers_gives_way(begin: Begin, seed: int) -> None:
    """# case C2: killed is fenced, so another serves in the time that a hang takes to be noticed, although the old
    process is there for a long time, with its port. When it has ended the member is whole again.
    """
    cluster = begin(seed)
    old, _, _ = roles(cluster)
    confirmed = App(cluster, old).confirm()
    redis, agent = server(old), old.agent
    hang_in_kernel(redis)
    cluster.until("another serves", another_serves(cluster, old), 6.0)
    assert not redis.ended
    cluster.run(20.0)
    assert old.agent is agent, "the guard was disarmed"
    assert epoch(cluster) == 2
    assert "does not end" in reason(cluster, old)
    redis.kill(at_once=True)
    cluster.until("all are in sync", cluster.in_sync)
    assert old.agent is agent
    assert confirmed in server(old).data


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("before_s", [0.0, 0.001, 0.003, 0.01])
def test_a_redis_that_lingers_does_not_hold_up_who_leaves(begin: Begin, seed: int, before_s: float) -> None:
    """# case C2: the leader is told to leave, and its Redis hangs at that moment or in the middle of the handover: it
    is killed, another serves, and the agent does not wait for the end of what nothing can end.
    """
    cluster = begin(seed)
    codes: list[int] = []
    old, _, _ = roles(cluster)
    old.on_exit.append(lambda _, code: codes.append(code))
    redis = server(old)
    cluster.world.after(before_s, hang_in_kernel, redis)
    old.stop()
    cluster.until("another serves", another_serves(cluster, old), 15.0)
    cluster.until("the agent is gone", lambda: bool(codes), 45.0)
    assert not redis.ended
    old.start()
    cluster.run(10.0)
    redis.kill(at_once=True)
    cluster.until("all are in sync", cluster.in_sync)


@pytest.mark.parametrize("seed", range(4))
def test_a_hang_behind_the_end_of_the_lease_is_no_leadership(begin: Begin, seed: int) -> None:
    """# case A4: cut off from ZooKeeper its fence is not confirmed, so it is killed; back again, it gives up `leader`
    although the process lingers.
    """
    cluster = begin(seed)
    old, _, _ = roles(cluster)
    redis = server(old)
    cut = cluster.cut_zookeeper(old.name)
    agent = old.agent
    assert agent is not None
    cluster.until("its lease is over", lambda: agent.core.snapshot().lease_until - agent.process.now < 0.01, 10.0)
    hang_in_kernel(redis)
    cluster.run(0.15)
    assert not redis.process.alive
    cluster.net.heal(cut)
    cluster.until("another serves", another_serves(cluster, old), 4.0)
    assert not redis.ended


# --- the guard ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("leads", [True, False])
def test_a_guard_that_is_killed_takes_redis_along(begin: Begin, seed: int, leads: bool) -> None:
    """# case C8: fenced by death, and started again under a new guard; if it led, another does."""
    cluster = begin(seed)
    leader, one, _ = roles(cluster)
    member = leader if leads else one
    redis, guard = server(member), member.site.guard
    assert guard is not None
    guard.kill()
    assert not redis.process.alive
    if leads:
        cluster.until("another serves", another_serves(cluster, leader), 2.0)
    cluster.until("all are intact", cluster.settled)
    assert member.site.guard not in (None, guard)


@pytest.mark.parametrize("seed", range(4))
def test_a_guard_that_is_stopped_costs_its_leader_the_role(begin: Begin, seed: int) -> None:
    """# case C8: no acknowledgement, no leader, for nobody could undo what it lifts. It gets a new guard."""
    cluster = begin(seed)
    old, _, _ = roles(cluster)
    confirmed = App(cluster, old).confirm()
    guard = old.site.guard
    assert guard is not None
    guard.process.stop()
    cluster.until("another serves", another_serves(cluster, old), 15.0)
    cluster.until("it has a new guard", lambda: old.site.guard not in (None, guard), 30.0)
    cluster.until("all are intact", cluster.settled)
    for member in cluster.members.values():
        assert confirmed in server(member).data


@pytest.mark.parametrize("seed", range(4))
def test_a_follower_does_not_need_its_guard(begin: Begin, seed: int) -> None:
    """Stopped, it is not even noticed before it is needed."""
    cluster = begin(seed)
    leader, one, other = roles(cluster)
    for member in (one, other):
        assert member.site.guard is not None
        member.site.guard.process.stop()
    cluster.run(10.0)
    assert cluster.serving() is leader
    leader.crash()
    cluster.run(5.0)
    for member in (one, other):
        guard = member.site.guard
        if guard is not None:
            guard.process.cont()
    leader.start()
    cluster.until("all are intact", cluster.settled)


# --- the host -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_a_frozen_host_confirms_nothing_when_it_goes_on(begin: Begin, seed: int) -> None:
    """# case C6: agent, guard and Redis are stopped past the lease and continued in any order: nothing confirmed is
    lost, and nothing of what lay in its sockets is confirmed. What is acknowledged all the same is counted.
    """
    cluster = begin(seed)
    codes = with_init(cluster)
    old, _, _ = roles(cluster)
    app = App(cluster, old)
    confirmed = app.confirm()
    redis = server(old)
    old.freeze()
    late = [app.send() for _ in range(20)]
    cluster.until("another serves", another_serves(cluster, old), 30.0)
    order = old.processes()
    cluster.world.rng.shuffle(order)
    for process in order:
        process.cont()
        cluster.run(cluster.world.uniform(0.0, 0.003))
    cluster.until("it is fenced", lambda: not redis.writable, 0.2)
    executed = [number for number in late if number in cluster.checker.writes]
    assert executed == list(cluster.checker.residue)
    assert set(cluster.checker.residue.values()) <= {CONTINUED}
    cluster.until("all are in sync", cluster.in_sync)
    assert set(codes) <= {SIGKILLED}
    for member in cluster.members.values():
        assert confirmed in server(member).data
        assert not set(executed) & set(server(member).data)


# --- the state file -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_an_agent_without_its_state_file_still_finds_its_redis(begin: Begin, seed: int, old: bool) -> None:
    """Lost, or somebody's backup: the process that is there is attached to, and joins again."""
    cluster = begin(seed)
    leader, follower, _ = roles(cluster)
    app = App(cluster, leader)
    confirmed = [app.confirm() for _ in range(3)]
    redis = server(follower)
    follower.kill_agent()
    follower.age_state() if old else follower.lose_state()
    cluster.run(1.0)
    follower.start()
    cluster.until("all are intact", cluster.settled)
    assert server(follower) is redis
    assert set(confirmed) <= set(redis.data)


# --- what may be wrong with Redis ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_a_leader_that_can_not_save_hands_over(begin: Begin, seed: int) -> None:
    """# case D4: its disk is full, so it refuses writes; a healthy one leads, and nothing is lost."""
    cluster = begin(seed)
    old, _, _ = roles(cluster)
    before = App(cluster, old).confirm()
    server(old).fall_ill("MISCONF No space left on device")
    cluster.until("another serves", another_serves(cluster, old), 10.0)
    assert cluster.checker.handovers == 1
    new = cluster.serving()
    assert new is not None
    assert before in server(new).data


def test_where_all_are_sick_the_leader_stays(begin: Begin) -> None:
    """# case D4: and says why."""
    cluster = begin()
    leader, _, _ = roles(cluster)
    for member in (*cluster.others(leader), leader):
        server(member).fall_ill("MISCONF No space left on device")
        cluster.run(3.0)
    cluster.run(20.0)
    found = cluster.leader()
    assert found is not None
    assert found.name == leader.name
    assert epoch(cluster) == 1
    assert "refuses writes" in reason(cluster, leader)
