"""An agent stands still between any two steps of a handover: nothing that was acknowledged is lost, and one leads."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from redis_agent.lab.agent_process import AgentProcess
from redis_agent.lab.cluster import LocalCluster
from redis_agent.lab.load import Load
from redis_agent.lab.proxy import Cut
from redis_agent.lab.settings import Settings
from redis_agent.lab.zookeeper import Ensemble
from redis_agent.znodes import LeaderPhase, OrderState
from tests.support.cluster import clock, keys, lab, observer_of, refusal, told, wait_told, write
from tests.support.hangs import NOTHING, accepting, log_size, measured, missing, stopped_at, wait_fit

OLD = ("leader.pausing", "leader.sealing", "leader.designating", "leader.handing_over", "leader.handed_over")
NEW = ("candidate.succeeding", "leader.taking_over")
LOOKS = {"probe_s": 0.1, "presence_s": 0.1}
"""It is soon known who is in sync."""
QUICK_STEPS = ("leader.sealing", "leader.handed_over")
"""One is reached as often by aiming at its neighbours; the other one's agent has nothing left to do."""
STEPS = [("old", state) for state in OLD] + [("new", state) for state in NEW]


@contextmanager
def written_to(cluster: LocalCluster) -> Iterator[Load]:
    """Clients write all the time, in all ways; afterwards nothing is missing."""
    with observer_of(cluster) as observer:
        observer.wait_for_leader(10)
        with Load(observer, plain=2, confirmed=2, counters=2, rate_per_s=300) as load:
            cluster.wait_for(lambda: load.acknowledged > 100, "writes are acknowledged")
            yield load
            leader = cluster.wait_settled()
        assert missing(load, leader) == NOTHING
        assert load.surprises == []


@contextmanager
def ordered(cluster: LocalCluster, to: AgentProcess) -> Iterator[None]:
    """A switchover is ordered; whatever becomes of it, it is answered."""
    assert cluster.zk.connected
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(cluster.switchover, to.name)
        yield
        assert answer.result(30)[1].state in OrderState.FINAL


def one_leads(cluster: LocalCluster, load: Load) -> AgentProcess:
    """Everybody is back, one Redis accepts writes, and the clients have found it."""
    leader = cluster.wait_settled()
    cluster.wait_for(lambda: accepting(cluster) == [leader.name], f"{leader.name} alone accepts writes")
    epoch = cluster.epoch()
    cluster.wait_for(lambda: load.resumed(0, after_epoch=epoch - 1), "every client writes to it")
    return leader


def end_the_pause(member: AgentProcess) -> str:
    """As if it had run out. Returns how a write is answered now."""
    try:
        with member.redis() as client:
            client.client_unpause()
        return refusal(member) or "accepted"
    except redis.ConnectionError:
        return "clients are sent away"


@pytest.mark.parametrize("step", STEPS, ids=":".join)
def test_an_agent_is_held_up(zookeeper: Ensemble, tmp_path: Path, step: tuple[str, str]) -> None:
    """Stopped at each step, the pause ends meanwhile, and it goes on within its lease: three times, for it is a race.

    # case E7
    """
    side, state = step
    with lab(zookeeper, tmp_path, settings={"timing": LOOKS}) as cluster, written_to(cluster) as load:
        stood = []
        for _ in range(3):
            old = cluster.wait_settled()
            new = next(member for member in cluster if member is not old)
            wait_fit(cluster, old, new)
            held = old if side == "old" else new
            behind = log_size(held)
            with ordered(cluster, new):
                where = stopped_at(held, state, behind)
                refused = end_the_pause(old)
                held.resume()
            stood.append(f"{where} ({refused})")
            one_leads(cluster, load)
        measured(f"the {side} one's agent, meant to stand in {state}, stood in", ", ".join(stood))


@pytest.mark.parametrize("step", [step for step in STEPS if step[1] not in QUICK_STEPS], ids=":".join)
def test_an_agent_never_goes_on(zookeeper: Ensemble, tmp_path: Path, step: tuple[str, str]) -> None:
    """The same, but it stands still until its guard kills it, or its session ends.

    # case E7
    """
    side, state = step
    with lab(zookeeper, tmp_path, settings={"timing": LOOKS}) as cluster, written_to(cluster) as load:
        old = cluster.wait_settled()
        new = next(member for member in cluster if member is not old)
        wait_fit(cluster, old, new)
        held = old if side == "old" else new
        behind = log_size(held)
        with ordered(cluster, new):
            where = stopped_at(held, state, behind)
            measured(f"the {side} one's agent, meant to stand in {state}, stood in", where)
            end_the_pause(old)
            cluster.wait_for(lambda: cluster.presence(held.name) is None, "its session ends")
            cluster.wait_serving()
        # Only a leader's guard was armed.
        if held.running:
            held.resume()
        else:
            assert held.returncode == -signal.SIGKILL
            held.start()
        one_leads(cluster, load)


# --- held at a step for sure ----------------------------------------------------------------------------------------

LONG_SESSION: Settings = {
    # Longer than the pause, which is twice handover_s and 5 s.
    "zookeeper": {"tick_s": 0.5, "session_timeout_s": 9.5},
    "timing": {"handover_s": 1.0, "designation_s": 0.9, **LOOKS},
}


@pytest.fixture(scope="module")
def slow_zookeeper(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ensemble]:
    """One that grants sessions that are longer than a pause."""
    with Ensemble(tmp_path_factory.mktemp("zookeeper"), servers=1, tick_ms=500) as ensemble:
        yield ensemble


def waiting(member: AgentProcess) -> bool:
    """Whether clients wait there for the end of a pause."""
    with member.redis() as client:
        return any("b" in each["flags"] for each in client.client_list())


@pytest.mark.parametrize("state", ["leader.pausing", "leader.handing_over"])
def test_the_pause_runs_out(slow_zookeeper: Ensemble, tmp_path: Path, state: str) -> None:
    """The old leader's agent hangs for longer than the pause lasts, and not as long as its lease.

    Before it froze its Redis, the writes that waited are executed there, and not lost; afterwards they are refused.

    # case E7
    """
    with lab(slow_zookeeper, tmp_path, settings=LONG_SESSION) as cluster, written_to(cluster) as load:
        old = cluster.wait_settled()
        new = next(member for member in cluster if member is not old)
        wait_fit(cluster, old, new)
        behind, epoch = log_size(old), cluster.epoch()
        # It does not have everything yet, and will not take over.
        new.signal_redis(signal.SIGSTOP)
        new.pause()
        with ordered(cluster, new):
            began = clock()
            cluster.wait_for(lambda: waiting(old), "clients wait")
            if state != "leader.pausing":
                new.signal_redis(signal.SIGCONT)
            assert stopped_at(old, state, behind) == state
            cluster.wait_for(lambda: not waiting(old), "they wait no more")
            ended = clock()
            refused = refusal(old)
            measured(f"the pause of one that stood in {state} ran out after", f"{ended - began:.1f} s")
            assert old.frozen
            assert cluster.epoch() == epoch
            assert refused == ("" if state == "leader.pausing" else "READONLY")
            new.signal_redis(signal.SIGCONT)
            new.resume()
            if state != "leader.pausing":
                assert cluster.wait_serving(after_epoch=epoch) is new
            old.resume()
        one_leads(cluster, load)
        assert old.starts == 1


def test_the_designation_is_not_answered(zookeeper: Ensemble, tmp_path: Path) -> None:
    """The old leader's agent does not learn that its designation was committed, and hangs; its successor takes over,
    and the old one follows when it goes on.

    # case E7
    """
    with lab(zookeeper, tmp_path, settings={"timing": LOOKS}, proxied=True) as cluster, written_to(cluster) as load:
        old, epoch, since = cluster.wait_settled(), cluster.epoch(), clock()
        new = next(member for member in cluster if member is not old)
        wait_fit(cluster, old, new)
        new.signal_redis(signal.SIGSTOP)
        with ordered(cluster, new):
            wait_told(cluster, old, "transition", since, to="leader.pausing")
            old.cut_zookeeper(Cut.REPLIES)
            new.signal_redis(signal.SIGCONT)
            wait_told(cluster, old, "transition", since, to="leader.designating")
            old.pause()
            assert cluster.wait_serving(after_epoch=epoch) is new
            assert refusal(old) == "READONLY"
            assert not told(old, "designated", since)
            old.restore_zookeeper()
            old.resume()
        assert one_leads(cluster, load) is new
        assert (old.starts, cluster.epoch()) == (1, epoch + 1)


# --- the successor's Redis ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("back", [True, False])
def test_the_successor_restarts_empty(zookeeper: Ensemble, tmp_path: Path, *, back: bool) -> None:
    """Its Redis dies right after the designation, before it took over: it does not lead, for what it has is nothing.

    Back: it is up again, empty, while the designation still stands; else its agent takes notice only later.

    # case E7
    """
    settings: Settings = {"timing": {"designation_s": 1.5 if back else 0.3, **LOOKS}}
    with lab(zookeeper, tmp_path, settings=settings) as cluster, written_to(cluster) as load:
        old = cluster.wait_settled()
        new = next(member for member in cluster if member is not old)
        wait_fit(cluster, old, new)
        write(old, 100)
        epoch, since, before = cluster.epoch(), clock(), new.redis_pid
        new.pause()
        with ordered(cluster, new):
            cluster.wait_for(lambda: designated(cluster, new), f"{new.name} is designated")
            new.kill_redis()
            if not back:
                wait_told(cluster, old, "transition", since, to="leader.reclaiming")
            new.resume()
            wait_told(cluster, new, "redis_died", since)
            if back:
                cluster.wait_for(lambda: new.redis_pid not in (None, before), "its Redis is back")
        assert one_leads(cluster, load) is old
        assert {entry.member for entry in cluster.ledger().entries if entry.epoch > epoch} == {old.name}
        assert [keys(member) for member in cluster] == [100, 100, 100]


def designated(cluster: LocalCluster, member: AgentProcess) -> bool:
    leader = cluster.leader()
    return leader is not None and (leader.phase, leader.successor) == (LeaderPhase.HANDING_OVER, member.name)
