"""Directed scenarios for rules that matter in one rare order of events only: each fails where its rule is taken out.

See `mutant_rules`; what random seeds find is not repeated here.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from redis_agent.znodes import LeaderPhase, decode_leader
from tests.sim.agent import Member
from tests.sim.cluster import Cluster
from tests.sim.redis import READ_COMMANDS
from tests.sim.scenario import App, Begin, has_ballot, roles, server
from tests.sim.zk_tree import Txn


def when_serving(cluster: Cluster, than: Member, act: Callable[[Member], None]) -> None:
    """``act(new leader)`` once another than that member is published as serving."""
    done: list[Member] = []

    def committed(txn: Txn) -> None:
        for change in txn.changes:
            if change.path != cluster.leader_path or change.new is None or done:
                continue
            leader = decode_leader(change.new.data)
            if leader.phase == LeaderPhase.SERVING and leader.name != than.name:
                done.append(cluster.members[leader.name])
                act(done[0])

    cluster.ensemble.on_commit.append(committed)


@pytest.mark.parametrize("seed", range(4))
def test_who_has_voted_acknowledges_nothing_more(begin: Begin, seed: int) -> None:
    """A host is frozen past its session and its Redis alone goes on, the moment another one serves: nobody who has
    voted still replicates from it, so WAIT confirms nothing of what lay in its sockets.
    """
    cluster = begin(seed)
    old, one, other = roles(cluster)
    app = App(cluster, old)
    app.confirm()
    redis = server(old)
    old.freeze()

    def goes_on(new: Member) -> None:
        third = other if new is one else one
        cluster.cut_zookeeper(third.name)  # it hears late whom to follow
        redis.process.run(redis.wait, app.conn, 1, 1.0)
        redis.process.cont()

    number = app.send()
    when_serving(cluster, old, goes_on)
    cluster.run(20.0)
    for reply in app.replies:
        if reply[0] == "WAITED" and isinstance(reply[1], int) and reply[1] >= 1 and number in cluster.checker.writes:
            cluster.checker.confirm(number)
    assert not any(reply[0] == "WAITED" and reply[1] for reply in app.replies), "somebody acknowledges to it"


@pytest.mark.parametrize("seed", range(4))
def test_frozen_followers_end_the_old_leaders_writes(begin: Begin, seed: int) -> None:
    """Without any clock: a host that was frozen goes on, its Redis first; the others have voted, their links are
    closed, so it refuses every write that comes from then on. What lay in its sockets may be executed, one read of a
    connection, and is lost; none of it is confirmed.
    """
    cluster = begin(seed)
    old, one, other = roles(cluster)
    app = App(cluster, old)
    app.confirm()
    cluster.run(1.0)
    redis = server(old)
    old.freeze()
    cluster.until("both have voted", lambda: all(has_ballot(cluster, each, 2) for each in (one, other)), 20.0)
    cluster.run(0.01)
    sent = [app.send() for _ in range(READ_COMMANDS + 20)]
    redis.process.run(redis.wait, app.conn, 1, 0.02)
    redis.process.cont()
    cluster.run(0.05)
    executed = [number for number in sent if number in cluster.checker.writes]
    assert executed in ([], sent[:READ_COMMANDS])
    assert not any(reply[0] == "WAITED" and reply[1] for reply in app.replies)
    late = [app.send() for _ in range(20)]
    cluster.run(0.05)
    assert not set(late) & set(cluster.checker.writes)
