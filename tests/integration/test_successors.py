"""Successors that lag, and successors that die while clients' writes wait for them."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from redis_agent.lab.agent_process import AgentProcess
from redis_agent.lab.cluster import LocalCluster
from redis_agent.lab.load import Load
from redis_agent.lab.settings import Settings
from redis_agent.lab.zookeeper import Ensemble
from redis_agent.znodes import OrderState
from tests.support.cluster import clock, lab, observer_of, refusal, steps, wait_told, write
from tests.support.hangs import NOTHING, missing, wait_fit

MAX_LAG_BYTES = 100_000
LOOKS: Settings = {
    "cluster": {"max_lag_bytes": MAX_LAG_BYTES},
    # It is soon known who is in sync; a Redis that stands still is not killed for it.
    "timing": {"probe_s": 0.1, "presence_s": 0.1, "hang_s": 90.0, "busy_s": 60.0, "handover_s": 2.0},
}


def test_a_lagging_member_is_refused(zookeeper: Ensemble, tmp_path: Path) -> None:
    """Its Redis stands still while others write: it is asked for in vain, with the reason, and nothing else happens.
    Once it has caught up it is welcome.

    # case E4
    """
    with lab(zookeeper, tmp_path, settings=LOOKS) as cluster:
        leader, epoch, since = cluster.wait_settled(), cluster.epoch(), clock()
        behind = next(member for member in cluster if member is not leader)
        write(leader, 10)
        wait_fit(cluster, leader, behind)
        behind.signal_redis(signal.SIGSTOP)
        try:
            # Less than what the kernel takes for it: its link stays up.
            write(leader, 300, "more", size_bytes=1_000)
            reached = leader.info()["master_repl_offset"]

            def leader_knows() -> bool:
                presence = cluster.presence(leader.name)
                return presence is not None and presence.offset_bytes >= reached

            cluster.wait_for(leader_knows, "the leader's agent has looked since")
            order = cluster.switchover(behind.name)[1]
        finally:
            behind.signal_redis(signal.SIGCONT)
        assert order.state == OrderState.REFUSED
        assert f"{behind.name} is " in order.detail
        assert f"bytes behind, more than max_lag_bytes = {MAX_LAG_BYTES}" in order.detail
        assert (cluster.serving(), cluster.epoch(), steps(leader, since)) == (leader, epoch, [])

        def acknowledged() -> bool:
            info = leader.info()
            links = (info.get(f"slave{number}", {}) for number in range(int(info.get("connected_slaves", 0))))
            return any(link["port"] == behind.address.port and link["offset"] >= reached for link in links)

        cluster.wait_for(acknowledged, f"{behind.name} has caught up")
        write(leader, 10)
        wait_fit(cluster, leader, behind)
        order = cluster.switchover(behind.name)[1]
        assert order.state == OrderState.DONE, order.detail
        assert cluster.wait_settled() is behind


def dies(member: AgentProcess, what: str) -> None:
    """Its Redis, its agent, or both are killed. Nothing that comes up again meanwhile catches up."""
    if what == "redis":
        member.pause()
    else:
        member.kill()
    if what == "agent":
        member.signal_redis(signal.SIGSTOP)
    else:
        member.kill_redis()


def waiting_writes(member: AgentProcess) -> int:
    with member.redis() as client:
        return sum("b" in each["flags"] for each in client.client_list())


@pytest.mark.parametrize("what", ["redis", "agent", "host"])
def test_the_successor_dies_while_writes_wait_for_it(zookeeper: Ensemble, tmp_path: Path, what: str) -> None:
    """It has not caught up yet when it dies. The leader gives up by itself and says why: it is leader still, the
    writes that waited are acknowledged, and none failed or was lost.

    # case E3
    """
    with lab(zookeeper, tmp_path, settings=LOOKS) as cluster, observer_of(cluster) as observer:
        leader, epoch, since = cluster.wait_settled(), cluster.epoch(), clock()
        chosen = next(member for member in cluster if member is not leader)
        observer.wait_for_leader(10)
        with Load(observer, plain=2, confirmed=2, counters=2, rate_per_s=300) as load:
            cluster.wait_for(lambda: load.acknowledged > 100, "writes are acknowledged")
            wait_fit(cluster, leader, chosen)
            order = ordered_then_killed(cluster, leader, chosen, what, since)
            assert order == OrderState.FAILED
            # Those that wait for a confirmation are blocked, too, for a moment.
            cluster.wait_for(lambda: not waiting_writes(leader), "nobody waits any more")
            assert refusal(leader) == ""
            count = load.acknowledged
            cluster.wait_for(lambda: load.acknowledged > count + 100, "writes go on")
            assert cluster.serving() is leader
            assert cluster.epoch() == epoch
            if what == "redis":
                chosen.resume()
            if what == "agent":
                chosen.signal_redis(signal.SIGCONT)
            if not chosen.running:
                chosen.start()
            assert cluster.wait_settled() is leader
        assert missing(load, leader) == NOTHING
        assert (load.unknown, load.surprises) == (0, [])


def ordered_then_killed(
    cluster: LocalCluster, leader: AgentProcess, chosen: AgentProcess, what: str, since: float
) -> str:
    """The state of the order in the end, which has a reason."""
    chosen.signal_redis(signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(cluster.switchover, chosen.name)
        wait_told(cluster, leader, "transition", since, to="leader.pausing")
        cluster.wait_for(lambda: waiting_writes(leader), "clients wait")
        dies(chosen, what)
        order = answer.result(30)[1]
    assert chosen.name in order.detail
    return order.state
