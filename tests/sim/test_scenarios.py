"""Directed scenarios: the cases in which the protocol broke before it had its rules, one by one."""

from __future__ import annotations

import pytest

from tests.sim.scenario import App, Begin, another_serves, epoch, has_ballot, reason, roles, server

# --- B4 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_a_diverged_leader_with_a_larger_offset_never_wins(begin: Begin, seed: int) -> None:
    """# case B4: an old leader wrote on alone and is far ahead in bytes, but of an older epoch."""
    cluster = begin(seed)
    old, one, other = roles(cluster)
    alone = cluster.cut_redis(old.name)
    app = App(cluster, old)
    for _ in range(50):
        app.write()
    without_zookeeper = cluster.cut_zookeeper(old.name)
    cluster.until("another leads", another_serves(cluster, old))
    new = cluster.serving()
    assert new is not None
    rest = other if new is one else one
    cluster.until("the third follows it", lambda: server(rest).replid == server(new).replid)
    confirmed = App(cluster, new).confirm()
    assert server(old).offset > server(rest).offset
    cluster.net.heal(without_zookeeper)  # it can vote, but not resync
    cluster.run(1.0)
    server(new).kill()
    cluster.until("the round after it is decided", lambda: epoch(cluster) == 3)
    cluster.net.heal(alone)
    cluster.until("all are in sync", cluster.in_sync)
    assert cluster.checker.served.get(3) == rest.name
    assert confirmed in server(old).data
    assert set(server(old).data) == {confirmed}


# --- B5 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_a_ballot_that_is_ahead_is_not_outwaited(begin: Begin, seed: int) -> None:
    """# case B5: the better candidate votes and is not heard of again; the other one does not take its place."""
    cluster = begin(seed)
    leader, better, behind = roles(cluster)
    cluster.cut_redis(behind.name)
    cluster.run(15.0)  # the leader has seen the loss, and confirms with the other one alone
    confirmed = App(cluster, leader).confirm()
    leader.crash()
    cluster.until("the better one has voted", lambda: has_ballot(cluster, better, 2))
    cut = cluster.cut_zookeeper(better.name)
    cluster.run(40.0)
    assert cluster.leader() is None or cluster.leader().name == better.name  # type: ignore[union-attr]
    assert cluster.serving() is None
    assert reason(cluster, behind), "it does not say why nobody leads"
    cluster.net.heal(cut)
    cluster.net.heal_all()
    cluster.until("the better one leads", lambda: cluster.serving() is better)
    assert confirmed in server(better).data


def test_without_enough_ballots_nobody_leads(begin: Begin) -> None:
    """# case B5: one of three is left; it is intact and has everything, and still it must not lead."""
    cluster = begin()
    leader, one, other = roles(cluster)
    other.crash()
    leader.crash()
    cluster.run(40.0)
    assert cluster.serving() is None
    assert epoch(cluster) == 1
    assert reason(cluster, one)
    other.start()
    leader.start()
    cluster.until("all are back", cluster.in_sync)


# --- B6 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_a_member_that_restarted_does_not_count(begin: Begin, seed: int) -> None:
    """# case B6: two of three are alive, but one of them has restarted since it was in sync: no quorum.

    With the third one back all have voted, and the best leads.
    """
    cluster = begin(seed)
    leader, holder, restarted = roles(cluster)
    cut = cluster.cut_redis(restarted.name)
    cluster.run(15.0)
    server(restarted).kill()
    cluster.until("it restarts", lambda: restarted.site.redis is not None)
    confirmed = App(cluster, leader).confirm()
    leader.crash()
    cluster.until("both have voted", lambda: all(has_ballot(cluster, each, 2) for each in (holder, restarted)))
    cluster.net.heal(cut)
    cluster.run(30.0)
    assert cluster.serving() is None
    assert epoch(cluster) == 1
    leader.start()
    cluster.until("all are in sync", cluster.in_sync)
    assert cluster.serving() is holder
    assert confirmed in server(leader).data


# --- B10 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("disk", ["aof", "rdb"])
@pytest.mark.parametrize("seed", range(6))
def test_after_a_power_loss_the_furthest_data_lead(begin: Begin, seed: int, disk: str) -> None:
    """# case B10: all die at once and come back in any order, one at a time or together."""
    cluster = begin(seed, disks=(disk,))
    leader, near, far = roles(cluster)
    app = App(cluster, leader)
    app.confirm()
    cluster.run(6.0)  # their state files tell as much
    cluster.cut_redis(far.name)
    cluster.run(12.0)
    confirmed = [app.confirm() for _ in range(5)]
    cluster.run(12.0)
    for member in cluster.members.values():
        if disk == "rdb":
            server(member).save()
        kept = list(member.site.disk.aof)
        member.crash()
        member.site.disk.aof = kept
    cluster.net.heal_all()
    order = list(cluster.members.values())
    cluster.world.rng.shuffle(order)
    for member in order:
        member.start()
        cluster.run(cluster.world.rng.choice((0.0, 1.0, 10.0)))
    cluster.until("all are in sync", cluster.in_sync, 120.0)
    assert cluster.serving() in (leader, near)
    for member in order:
        assert set(confirmed) <= set(server(member).data)


def test_data_that_met_a_leftover_leader_still_count(begin: Begin) -> None:
    """# case B10: the one with the furthest data is back first, and for seconds sees the `leader` of a dead host.

    It is told to follow, but nothing answers there: its data set is as it was loaded and must not be thrown away.
    """
    cluster = begin(disks=("aof",))
    leader, near, far = roles(cluster)
    App(cluster, leader).confirm()
    cluster.run(6.0)
    cluster.cut_redis(far.name)
    cluster.run(12.0)
    app = App(cluster, leader)
    confirmed = [app.confirm() for _ in range(5)]
    cluster.run(12.0)
    for member in cluster.members.values():
        kept = list(member.site.disk.aof)
        member.crash()
        member.site.disk.aof = kept
    leader.site.disk.wipe()
    cluster.net.heal_all()
    near.start()
    cluster.run(1.0)
    far.start()
    cluster.run(15.0)
    leader.start()
    cluster.until("all are in sync", cluster.in_sync)
    for member in cluster.members.values():
        assert set(confirmed) <= set(server(member).data)


# --- B13 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_a_new_replid_without_its_data_is_not_ahead(begin: Begin, seed: int) -> None:
    """# case B13: a replica says +CONTINUE's replid and has an old offset; the old leader has the confirmed write."""
    cluster = begin(seed)
    old, new, behind = roles(cluster)
    back = cluster.cut_redis(behind.name)
    cluster.run(15.0)
    confirmed = App(cluster, old).confirm()
    without_zookeeper = cluster.cut_zookeeper(old.name)
    cluster.until("the one that has it leads", lambda: cluster.serving() is new)
    assert server(behind).offset < server(new).offset

    def continued() -> bool:
        return server(behind).replid == server(new).replid

    cluster.net.heal(back)
    if cluster.world.run(cluster.world.now + 10.0, continued):
        cluster.cut_redis(behind.name)
    half = server(behind)
    taken_without_data = confirmed not in half.data and half.replid == server(new).replid
    new.crash()
    cluster.run(1.0)
    cluster.net.heal(without_zookeeper)
    cluster.net.heal_all()
    new.start()
    cluster.until("all are in sync", cluster.in_sync, 90.0)
    assert taken_without_data
    for member in cluster.members.values():
        assert confirmed in server(member).data


def test_a_leader_whose_replid_changes_fences(begin: Begin) -> None:
    """# case B13: what its replicas would confirm no longer belongs to the published history."""
    cluster = begin()
    leader, _, _ = roles(cluster)
    redis = server(leader)
    redis.replid = redis.new_replid()
    cluster.until("it is fenced", lambda: not redis.writable, 5.0)
    cluster.until("somebody serves with a replid of the ledger", cluster.in_sync)


# --- B14 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_promoted_twice_and_never_served_it_still_has_a_position(begin: Begin, seed: int) -> None:
    """# case B14: the only living holder of a confirmed write is stopped twice between promotion and serving."""
    cluster = begin(seed)
    leader, holder, behind = roles(cluster)
    cluster.cut_redis(behind.name)
    cluster.run(15.0)
    confirmed = App(cluster, leader).confirm()
    leader.crash()
    leader.site.disk.wipe()
    for attempt in (2, 3):
        cluster.until("it is promoted", lambda: holder.site.redis is not None and holder.site.redis.is_primary)
        assert epoch(cluster) == attempt
        cut = cluster.cut_zookeeper(holder.name)
        cluster.until("it is no longer", lambda: not server(holder).is_primary or cluster.leader() is None, 30.0)
        cluster.run(8.0)
        assert cluster.serving() is None
        assert confirmed in server(holder).data
        cluster.net.heal(cut)
    cluster.net.heal_all()
    cluster.until("it serves at last", lambda: cluster.serving() is holder)
    leader.start()
    cluster.until("all are in sync", cluster.in_sync)
    for member in cluster.members.values():
        assert confirmed in server(member).data


# --- B15 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_wait_on_a_kept_connection_confirms_nothing_in_a_later_epoch(begin: Begin, seed: int) -> None:
    """# case B15: the same member leads again with the write in its data; whoever wrote it has lost the connection."""
    cluster = begin(seed)
    leader, _, _ = roles(cluster)
    app = App(cluster, leader)
    cut = cluster.cut_redis(leader.name)
    app.write()  # nobody else has it
    cluster.delete_leader()
    cluster.until("the old leader is frozen", lambda: not server(leader).is_primary)
    cluster.net.heal(cut)
    cluster.until("a later epoch serves", lambda: cluster.in_sync() and epoch(cluster) > 1)
    app.redis.wait(app.conn, 1, 1.0)
    cluster.run(2.0)
    assert app.closed
    assert app.replies == []


# --- C5 -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_a_partitioned_leader_and_clients_on_both_sides(begin: Begin, seed: int) -> None:
    """# case C5: never two writers (the checker looks after every event), and nothing confirmed is lost."""
    cluster = begin(seed, members=(3, 5)[seed % 2], writers=4, pace_s=0.02)
    cluster.start_clients()
    cluster.run(2.0)
    for _ in range(3):
        leader = cluster.serving()
        assert leader is not None
        inside = [leader.name, cluster.clients[0].name]
        outside = [name for name in cluster.members if name != leader.name]
        outside += [client.name for client in cluster.clients[1:]] + list(cluster.ensemble.names)
        cut = cluster.net.cut([link for a in inside for b in outside for link in ((a, b), (b, a))])
        cluster.until("the other side has a leader", another_serves(cluster, leader))
        cluster.run(3.0)
        assert not server(leader).writable
        before = len(cluster.checker.confirmed)
        cluster.run(3.0)
        assert len(cluster.checker.confirmed) > before, "the majority confirms writes"
        cluster.net.heal(cut)
        cluster.until("the old leader follows", cluster.all_follow)
        cluster.run(2.0)  # its agent may take a probe to learn that its data were exchanged
        cluster.until("it is intact", cluster.settled)
    cluster.stop_clients()
    cluster.until("all are in sync", cluster.in_sync)
    for member in cluster.members.values():
        assert set(cluster.checker.confirmed) <= set(server(member).data)


# --- B16 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_a_leader_deleted_by_hand_fences_before_the_next_one_claims(begin: Begin, seed: int) -> None:
    """# case B16: also where the old leader can't hear of it: its presence stands, so the others wait for its lease."""
    cluster = begin(seed)
    old, _, _ = roles(cluster)
    cut = cluster.cut_zookeeper(old.name)
    cluster.delete_leader()
    cluster.until("the old leader is fenced", lambda: not server(old).writable, 10.0)
    assert epoch(cluster) == 1
    cluster.until("another serves", another_serves(cluster, old))
    cluster.net.heal(cut)
    cluster.until("all are in sync", cluster.in_sync)
    assert epoch(cluster) == 2
