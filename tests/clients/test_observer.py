from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from kazoo.client import KazooClient  # type: ignore[import-untyped]
from redis.exceptions import ConnectionError as RedisConnectionError

from redis_agent import LeaderObserver
from redis_agent.client import LeaderView, ObserverForked, ObserverState, ObserverStatus, SafeModeError
from redis_agent.client.view import boottime_s
from redis_agent.lab.waiting import wait_for
from redis_agent.lab.zookeeper import Ensemble
from redis_agent.znodes import LeaderPhase, encode
from tests.clients.conftest import ROOT, Stage

LIMIT_S = 10.0
SERVING, SAFE_MODE = ObserverState.SERVING, ObserverState.SAFE_MODE


@contextmanager
def observing(stage: Stage, **settings: Any) -> Iterator[LeaderObserver]:
    settings = {"session_timeout_s": 1.0} | settings
    with LeaderObserver(stage.hosts, cluster=stage.cluster, root=ROOT, **settings) as observer:
        yield observer


class Heard:
    """What a callback was told, and on which threads."""

    def __init__(self) -> None:
        self.changes: list[ObserverStatus] = []
        self.threads: set[str] = set()

    def __call__(self, status: ObserverStatus) -> None:
        self.threads.add(threading.current_thread().name)
        self.changes.append(status)

    @property
    def epochs(self) -> list[int | None]:
        return [None if status.leader is None else status.leader.epoch for status in self.changes]


def session_of(observer: LeaderObserver) -> int:
    return observer._link._client.zk_session_id  # type: ignore[union-attr]


def connections() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "redis-agent-observer-zk"]


def expire(observer: LeaderObserver) -> int:
    """Have ZooKeeper end the observer's session: another client takes it over and closes it."""
    session = observer._link._client  # type: ignore[union-attr]
    number = session_of(observer)
    thief = KazooClient(",".join(f"{h}:{p}" for h, p in session.hosts), client_id=session.client_id, timeout=1.0)
    thief.start(timeout=5)
    thief.stop()
    thief.close()
    return number


def packets_received(ensemble: Ensemble) -> int:
    with socket.create_connection(ensemble.addresses[0], timeout=5) as connection:
        connection.sendall(b"mntr")
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    return next(int(line.split()[1]) for line in answer.splitlines() if line.startswith(b"zk_packets_received"))


def test_tells_the_serving_leader(stage: Stage) -> None:
    """What the serving leader's agent published is what the application sees."""
    stage.show(epoch=3)
    with observing(stage) as observer:
        view = observer.wait_for_leader(LIMIT_S)
        assert observer.leader == view == LeaderView.of(stage.leader(3))
        assert observer.state is SERVING
        assert observer.require_leader() is observer.leader
        assert observer.status.last_leader == view
        assert 0 <= observer.status.for_s < LIMIT_S


def test_only_serving_counts(stage: Stage) -> None:
    """A leader that is taking over or handing over may not be written to: safe mode, with the reason."""
    with observing(stage) as observer:
        stage.show(1, LeaderPhase.TAKING_OVER)
        wait_for(lambda: "taking-over" in observer.status.reason, LIMIT_S, "the reason is told")
        assert observer.leader is None
        stage.show(1)
        observer.wait_for_leader(LIMIT_S)
        stage.show(1, LeaderPhase.HANDING_OVER)
        wait_for(lambda: observer.leader is None, LIMIT_S, "safe mode while handing over")
        assert "handing-over" in observer.status.reason


def test_started_before_any_leader(stage: Stage) -> None:
    """An observer that starts in an empty cluster, whose znodes do not even exist, learns of the first leader.

    case F2
    """
    stage.zk.delete(stage.path.rpartition("/")[0])
    with observing(stage) as observer:
        wait_for(lambda: observer.status.reason == "no member leads", LIMIT_S, "connected, no leader")
        with pytest.raises(SafeModeError, match="no member leads"):
            observer.require_leader()
        stage.zk.ensure_path(stage.path.rpartition("/")[0])
        stage.show(1)
        assert observer.wait_for_leader(LIMIT_S).epoch == 1


def test_started_before_zookeeper(own_ensemble: Ensemble, own_stage: Stage) -> None:
    """``start`` returns at once while ZooKeeper is down; the leader is known when it comes up."""
    own_stage.zk.create(own_stage.path, encode(own_stage.leader(1)))
    own_ensemble.kill(0)
    with observing(own_stage) as observer:
        with pytest.raises(SafeModeError, match="not connected"):
            observer.wait_for_leader(0.05)
        own_ensemble.restart(0)
        assert observer.wait_for_leader(LIMIT_S).epoch == 1


def test_callbacks_tell_every_change_on_one_thread_of_the_observer(stage: Stage) -> None:
    """Changes are delivered in order, on a thread that is neither ZooKeeper's nor the caller's."""
    heard = Heard()
    with observing(stage) as observer:
        observer.on_change(heard)
        for epoch in (1, 2, 3):
            stage.show(epoch)
            assert observer.wait_for_leader(LIMIT_S, not_epoch=epoch - 1).epoch == epoch
            stage.clear()
            wait_for(lambda: observer.leader is None, LIMIT_S, "safe mode")
    wait_for(lambda: len(heard.changes) == 6, LIMIT_S, lambda: f"six changes, got {heard.epochs}")
    assert heard.epochs == [1, None, 2, None, 3, None]
    assert heard.threads == {"redis-agent-callbacks"}
    assert [status.last_leader.epoch for status in heard.changes if status.last_leader] == [1, 1, 2, 2, 3, 3]


def test_a_rewritten_leader_is_no_change(stage: Stage) -> None:
    """The same content written again to the same znode calls nobody; another content does.

    case A12
    """
    heard = Heard()
    with observing(stage) as observer:
        observer.on_change(heard)
        stage.show(1)
        observer.wait_for_leader(LIMIT_S)
        for at in range(1, 51):
            stage.show(1, at=float(at))
        stage.show(1, wait=2)
        wait_for(lambda: observer.require_leader().wait == 2, LIMIT_S, "the new content is seen")
        wait_for(lambda: len(heard.changes) >= 2, LIMIT_S, "the change is told")
    assert [status.leader.wait for status in heard.changes if status.leader] == [1, 2]


def test_the_final_view_is_right_after_a_thousand_quick_changes(stage: Stage) -> None:
    """However many changes are seen as one, the last one is seen.

    case A12
    """
    heard = Heard()
    with observing(stage) as observer:
        observer.on_change(heard)
        for epoch in range(1, 1001):
            transaction = stage.zk.transaction()
            if epoch > 1:
                transaction.delete(stage.path)
            transaction.create(stage.path, encode(stage.leader(epoch)), ephemeral=True)
            transaction.commit_async()
        wait_for(lambda: observer.leader and observer.leader.epoch == 1000, LIMIT_S, lambda: repr(observer.status))
        wait_for(lambda: heard.epochs[-1:] == [1000], LIMIT_S, lambda: f"the last change is told: {heard.epochs[-3:]}")
    told = [epoch for epoch in heard.epochs if epoch is not None]
    assert told == sorted(set(told))


def test_safe_mode_when_zookeeper_is_silent(own_ensemble: Ensemble, own_stage: Stage) -> None:
    """A cut-off observer stops believing its view before its session can end, and believes again afterwards.

    case F2
    """
    heard = Heard()
    own_stage.show(1)
    with observing(own_stage) as observer:
        observer.on_change(heard)
        observer.wait_for_leader(LIMIT_S)
        own_ensemble.pause(0)
        paused_at = boottime_s()
        wait_for(lambda: observer.leader is None, LIMIT_S, "safe mode")
        assert boottime_s() - paused_at < 1.0
        assert observer.status.last_leader is not None
        with pytest.raises(SafeModeError, match="could not be reached"):
            observer.require_leader()
        own_ensemble.resume(0)
        wait_for(lambda: own_stage.zk.connected, LIMIT_S, "the other client is back")
        own_stage.show(2)
        assert observer.wait_for_leader(LIMIT_S, not_epoch=1).epoch == 2
        wait_for(lambda: heard.epochs[-1:] == [2], LIMIT_S, lambda: f"the changes are told: {heard.epochs}")
    # Whether its own session or the other client's outlived the pause is left to chance.
    assert None in heard.epochs[1:-1] or heard.epochs[:1] == [None]


def test_expired_three_times(stage: Stage) -> None:
    """After each expiry a fresh session takes over, and its watches work.

    case A3
    """
    sessions = set()
    stage.show(1)
    with observing(stage) as observer:
        observer.wait_for_leader(LIMIT_S)
        for epoch in (2, 3, 4):
            sessions.add(expire(observer))
            wait_for(lambda: session_of(observer) not in sessions | {0}, LIMIT_S, "a new session")
            observer.wait_for_leader(LIMIT_S)
            stage.show(epoch)
            assert observer.wait_for_leader(LIMIT_S, not_epoch=epoch - 1).epoch == epoch
        sessions.add(session_of(observer))
        wait_for(lambda: len(connections()) == 1, LIMIT_S, "the old clients' threads have ended")
    assert len(sessions) == 4


def test_a_stopped_process_does_not_believe_its_old_view(own_ensemble: Ensemble, own_stage: Stage) -> None:
    """After SIGSTOP and SIGCONT the first answer is safe mode, although no timer has run meanwhile."""
    own_stage.show(1)
    script = f"""
import sys
from redis_agent import LeaderObserver
observer = LeaderObserver({own_stage.hosts!r}, cluster={own_stage.cluster!r}, root={ROOT!r}, session_timeout_s=1.0)
with observer:
    observer.wait_for_leader(10)
    print("ready", flush=True)
    for _ in sys.stdin:
        print(observer.state.value, flush=True)
"""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGSTOP)
        stopped_at = boottime_s()
        own_ensemble.pause(0)
        wait_for(lambda: boottime_s() - stopped_at > 1.0, LIMIT_S, "a second has passed")
        process.stdin.write("what now?\n")
        process.stdin.flush()
        process.send_signal(signal.SIGCONT)
        assert process.stdout.readline() == "safe-mode\n"
        process.stdin.close()
        assert process.wait(LIMIT_S) == 0


def test_safe_mode_error_says_state_since_when_and_who_led(stage: Stage) -> None:
    """The error is a redis ConnectionError that tells the state, since when, why, and the last leader.

    case F1
    """
    stage.show(7)
    with observing(stage) as observer:
        observer.wait_for_leader(LIMIT_S)
        stage.clear()
        wait_for(lambda: observer.leader is None, LIMIT_S, "safe mode")
        with pytest.raises(RedisConnectionError) as caught:
            observer.wait_for_leader(0.05)
    error = caught.value
    assert isinstance(error, SafeModeError)
    assert error.state is SAFE_MODE
    assert error.last_leader == LeaderView.of(stage.leader(7))
    assert 0.05 <= error.for_s < LIMIT_S
    assert "safe-mode since" in str(error)
    assert "no member leads" in str(error)
    assert "n7 (127.0.0.1:7007), epoch 7" in str(error)


def test_wait_for_another_leader(stage: Stage) -> None:
    """``not_epoch`` waits past the leader that has just failed."""
    stage.show(1)
    with observing(stage) as observer:
        observer.wait_for_leader(LIMIT_S)
        with pytest.raises(SafeModeError) as caught:
            observer.wait_for_leader(0.02, not_epoch=1)
        assert caught.value.state is SERVING
        threading.Timer(0.05, lambda: stage.show(2)).start()
        assert observer.wait_for_leader(LIMIT_S, not_epoch=1).epoch == 2


@pytest.mark.parametrize("data", [b"", b"\xff\xfe", b"[]", b'{"v": 1}'])
def test_an_unreadable_leader_is_safe_mode(stage: Stage, data: bytes) -> None:
    """Nonsense in ``leader`` ends nothing: safe mode, the reason named, and a good leader is seen afterwards."""
    with observing(stage) as observer:
        stage.show_raw(data)
        wait_for(lambda: "cannot be read" in observer.status.reason, LIMIT_S, lambda: observer.status.reason)
        assert observer.leader is None
        stage.show(1)
        assert observer.wait_for_leader(LIMIT_S).epoch == 1


def test_slow_and_failing_callbacks_harm_nobody(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """A callback that blocks for longer than the lease costs neither the session nor a later change.

    case A9
    """
    heard = Heard()
    go_on = threading.Event()

    def blocks(status: ObserverStatus) -> None:
        go_on.wait(LIMIT_S)

    def fails(status: ObserverStatus) -> None:
        raise ValueError("my own mistake")

    with observing(stage, session_timeout_s=0.4) as observer, caplog.at_level(logging.ERROR, "redis_agent.client"):
        for callback in (blocks, fails, heard):
            observer.on_change(callback)
        stage.show(1)
        observer.wait_for_leader(LIMIT_S)
        session = session_of(observer)
        since_s = observer.status.since_s
        wait_for(lambda: boottime_s() - since_s > 1.2, LIMIT_S, "three session timeouts have passed")
        stage.show(2)
        assert observer.wait_for_leader(LIMIT_S, not_epoch=1).epoch == 2
        assert session_of(observer) == session
        go_on.set()
        wait_for(lambda: heard.epochs == [1, 2], LIMIT_S, lambda: f"both changes are told: {heard.epochs}")
    assert "my own mistake" in caplog.text


def test_unsubscribe_and_close_from_a_callback(stage: Stage) -> None:
    """A callback may end its own subscription, and close the observer."""
    heard = Heard()
    with observing(stage) as observer:
        unsubscribe = observer.on_change(heard)
        observer.on_change(lambda status: observer.close())
        stage.show(1)
        wait_for(lambda: heard.changes, LIMIT_S, "the change is told")
        unsubscribe()
        unsubscribe()
        wait_for(lambda: observer.status.reason == "the observer is closed", LIMIT_S, "closed")
        assert observer.leader is None


def test_closing_ends_every_thread_and_the_session(stage: Stage) -> None:
    """``close`` leaves no thread behind, and does so quickly."""
    before = set(threading.enumerate())
    with observing(stage) as observer:
        stage.show(1)
        observer.wait_for_leader(LIMIT_S)
        started = boottime_s()
    assert boottime_s() - started < 1.0
    wait_for(lambda: not set(threading.enumerate()) - before, LIMIT_S, "no thread is left")
    observer.close()
    with pytest.raises(RuntimeError, match="started once"):
        observer.start()


def test_closing_is_bounded_while_zookeeper_is_silent(own_ensemble: Ensemble, own_stage: Stage) -> None:
    """``close`` does not wait for a server that does not answer.

    case A8
    """
    own_stage.show(1)
    with observing(own_stage) as observer:
        observer.wait_for_leader(LIMIT_S)
        own_ensemble.pause(0)
        started = boottime_s()
    assert boottime_s() - started < 2.5


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_is_told(stage: Stage) -> None:
    """In a forked child the observer says that it belongs to its parent, instead of telling an old view for ever.

    case F2
    """
    stage.show(1)
    with observing(stage) as observer:
        observer.wait_for_leader(LIMIT_S)
        child = os.fork()
        if child == 0:
            status = 1
            try:
                for use in (lambda: observer.leader, lambda: observer.wait_for_leader(1), observer.start):
                    with pytest.raises(ObserverForked, match=str(os.getppid())):
                        use()
                observer.close()
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        assert observer.leader is not None


def test_asking_asks_zookeeper_nothing(ensemble: Ensemble, stage: Stage) -> None:
    """Ten thousand questions cause no ZooKeeper request: only the heartbeats of that time.

    case F3
    """
    stage.show(1)
    with observing(stage, session_timeout_s=4.0) as observer:
        observer.wait_for_leader(LIMIT_S)
        before = packets_received(ensemble)
        for _ in range(10_000):
            observer.require_leader()
        # A heartbeat is three requests; the two other clients may ping.
        assert packets_received(ensemble) - before < 20


def test_an_application_s_own_kazoo_client_is_used_and_left_alone(stage: Stage) -> None:
    """A borrowed client serves as the connection, and is neither stopped nor left with a listener."""
    stage.show(1)
    theirs = KazooClient(stage.hosts, timeout=1.0)
    theirs.start(timeout=10)
    try:
        with LeaderObserver(cluster=stage.cluster, root=ROOT, client=theirs, session_timeout_s=1.0) as observer:
            assert observer.wait_for_leader(LIMIT_S).epoch == 1
            stage.show(2)
            assert observer.wait_for_leader(LIMIT_S, not_epoch=1).epoch == 2
            stage.clear()
            wait_for(lambda: observer.leader is None, LIMIT_S, "safe mode")
        assert theirs.connected
        assert not theirs.state_listeners
    finally:
        theirs.stop()
        theirs.close()


def test_importing_the_client_loads_nothing_of_the_agent() -> None:
    """Applications pay for kazoo and redis-py only: no psutil, no transitions, no adapters."""
    script = """
import sys
from redis_agent import LeaderObserver
unwanted = {"psutil", "transitions", "rich", "redis_agent.core", "redis_agent.machine", "redis_agent.runtime",
            "redis_agent.coordination", "redis_agent.redis_link", "redis_agent.process", "redis_agent.config"}
print(sorted(unwanted & set(sys.modules)))
"""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=env)
    assert done.stdout.strip() == "[]"


def test_wrong_arguments_are_refused() -> None:
    """Neither servers nor a client: there is nothing to observe."""
    with pytest.raises(ValueError, match="hosts"):
        LeaderObserver(cluster="c")
