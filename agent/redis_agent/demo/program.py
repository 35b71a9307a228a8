"""The demonstration from beginning to end."""

from __future__ import annotations

import logging
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TypeVar

import redis_agent
from redis_agent.client import LeaderObserver, SafeModeError
from redis_agent.demo import requirements, steps
from redis_agent.demo.picture import Sampler, Screen, Tone, make_screen
from redis_agent.lab import janitor
from redis_agent.lab.agent_process import AgentProcess
from redis_agent.lab.cluster import LocalCluster
from redis_agent.lab.load import Load
from redis_agent.lab.zookeeper import Ensemble, LabError
from redis_agent.logs import hushed

T = TypeVar("T")
CLUSTER = "demo"
MEMBERS = 3
START_LIMIT_S = 30.0
RECOVER_LIMIT_S = 15.0
SETTLE_LIMIT_S = 30.0
RESTART_PAUSE_S = 1.0
TICK_MS = 1000
"""Half of ZooKeeper's default, and so is the session timeout: one need not wait so long for a host that freezes."""
LONGEST_TMP = 60
"""A unix socket's path has 107 bytes; a longer TMPDIR leaves too little for ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """See ``redis-agent demo --help``."""

    rounds: int = 1
    duration_s: float = 2.0
    rate_per_s: float = 1000.0
    plain: bool = False
    keep: bool = False


class _Stopped(BaseException):
    """A signal asked us to end."""

    def __init__(self, number: int) -> None:
        self.number = number


def run(options: Options) -> int:
    """Show everything, clean up, whatever happens.

    Returns:
        The exit status.
    """
    requirements.prepare_path()
    lacking = requirements.missing()
    if lacking:
        sys.stderr.write(f"redis-agent demo: {lacking}\n")
        return 2
    logging.getLogger("redis_agent").addHandler(logging.NullHandler())
    # Threads that wake up get their turn soon, so that drawing does not show up in what is measured.
    sys.setswitchinterval(0.0005)
    screen = make_screen(plain=options.plain)
    try:
        # The clients lose their leader on purpose: kazoo's warnings about it would be noise.
        with hushed("kazoo"), _signals_raise(), _workspace(keep=options.keep) as directory:
            return _Demo(options, screen, directory).run()
    except _Stopped as stopped:
        left = "its files are kept" if options.keep else "everything is cleaned up"
        screen.say(f"stopped by {signal.Signals(stopped.number).name}; {left}")
        return 128 + stopped.number
    except LabError as error:
        screen.say(f"FAILED: {error}", Tone.BAD)
        return 1


@contextmanager
def _signals_raise() -> Iterator[None]:
    """SIGINT, SIGTERM and SIGHUP end the demonstration once; a second one does not disturb the cleaning up."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def handle(number: int, _: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        raise _Stopped(number)

    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _workspace(*, keep: bool) -> Iterator[Path]:
    """A directory of our own, cleaned up at the end, also if we are killed."""
    parent = tempfile.gettempdir()
    directory = Path(tempfile.mkdtemp(prefix="redis-agent-demo-", dir=parent if len(parent) <= LONGEST_TMP else "/tmp"))  # noqa: S108
    with janitor.cleaning(directory, keep=keep):
        yield directory


def _tone(line: str) -> Tone:
    """Of a line about an outcome."""
    if line.startswith(steps.WRONG):
        return Tone.BAD
    return Tone.GOOD if "writes stopped" in line or line.startswith("all ") else Tone.PLAIN


class _Demo:
    def __init__(self, options: Options, screen: Screen, directory: Path) -> None:
        self._options = options
        self._screen = screen
        self._directory = directory
        self._last_start: dict[str, float] = {}
        self._unexpected = 0
        self._late: set[str] = set()
        """Whose agents may have been ended by their guards."""

    def run(self) -> int:
        say = self._screen.say
        say(f"redis-agent {redis_agent.__version__}: everything runs below {self._directory}")
        say("starting 3 ZooKeeper servers")
        ensemble = Ensemble(self._directory / "zk", 3, tick_ms=TICK_MS)
        cluster: LocalCluster | None = None
        try:
            ensemble.start()
            say(f"starting {MEMBERS} agents, each with its Redis")
            cluster = LocalCluster(ensemble, self._directory, MEMBERS, cluster=CLUSTER)
            cluster.start()
            leader = cluster.wait_started(START_LIMIT_S)
            say(f"{leader.name} leads, the others follow")
            return self._with_clients(ensemble, cluster)
        finally:
            if cluster is not None:
                cluster.stop()
            ensemble.stop()

    def _with_clients(self, ensemble: Ensemble, cluster: LocalCluster) -> int:
        with LeaderObserver(ensemble.hosts, cluster=CLUSTER) as observer:
            observer.wait_for_leader(START_LIMIT_S)
            with (
                Load(observer, rate_per_s=self._options.rate_per_s) as load,
                self._screen.showing(Sampler(cluster, load)),
            ):
                say = self._screen.say
                say(f"5 clients write {self._options.rate_per_s:g} times a second: SET, SET with WAIT, INCR")
                self._linger(cluster)
                outcomes = []
                for number in range(self._options.rounds * len(steps.STEPS)):
                    step = steps.STEPS[number % len(steps.STEPS)]
                    outcomes.append(self._step(number + 1, step, cluster, load, observer))
                load.stop()
                return self._finish(outcomes, cluster, load)

    def _step(
        self, number: int, step: steps.Step, cluster: LocalCluster, load: Load, observer: LeaderObserver
    ) -> steps.Outcome:
        say = self._screen.say
        try:
            epoch = observer.wait_for_leader(RECOVER_LIMIT_S).epoch
        except SafeModeError as error:
            raise LabError(f"{error}\n{cluster.describe()}") from None
        old = cluster.wait_serving(RECOVER_LIMIT_S)
        say()
        say(f"{number}. {step.title.format(name=old.name)}, the leader of epoch {epoch}", Tone.HEADLINE)
        self._late.clear()
        at_ns = step.act(cluster, old)
        self._wait(
            cluster, lambda: load.first_ack(at_ns, after_epoch=epoch), "the next leader acknowledges", RECOVER_LIMIT_S
        )
        undone_ns = self._undo(step, old, at_ns)
        new = self._wait(cluster, lambda: self._settled(cluster), "everybody is in sync again", SETTLE_LIMIT_S)
        self._linger(cluster)
        with new.redis(timeout_s=10.0) as client:
            losses = load.verify(client)
        outcome = steps.measure(
            load, step, old=old.name, new=new.name, old_epoch=epoch, at_ns=at_ns, undone_ns=undone_ns, losses=losses
        )
        for line in steps.describe(outcome):
            say(f"   {line}", _tone(line))
        return outcome

    def _undo(self, step: steps.Step, old: AgentProcess, at_ns: int) -> int | None:
        if step.undo is None:
            return None
        # Its guard finds the deadline missed: it fences Redis and ends the agent.
        self._late.add(old.name)
        undone_ns = step.undo(old)
        self._screen.say(f"   {step.undone.format(name=old.name, late_s=(undone_ns - at_ns) / 1e9)}")
        return undone_ns

    def _finish(self, outcomes: list[steps.Outcome], cluster: LocalCluster, load: Load) -> int:
        say = self._screen.say
        leader = cluster.wait_serving(RECOVER_LIMIT_S)
        with leader.redis(timeout_s=10.0) as client:
            losses = load.verify(client, everything=True)
        say()
        say(f"{'what happened':<24} {'writes stopped':>16} {'first write after':>18}", Tone.HEADLINE)
        for outcome in outcomes:
            say(f"{outcome.title:<24} {outcome.stopped_s * 1000:>13.1f} ms {outcome.first_s * 1000:>15.1f} ms")
        say(f"{load.acknowledged:,} writes acknowledged, {losses.confirmed:,} of them confirmed by WAIT")
        for surprise in load.surprises[:5]:
            say(f"unexpected answer: {surprise}")
        if self._unexpected:
            say(f"FAILED: agents ended {self._unexpected} times without being told to", Tone.BAD)
        if losses.sound and not self._unexpected:
            say("nothing confirmed was lost", Tone.GOOD)
            return 0
        if losses.confirmed_lost:
            examples = ", ".join(losses.examples)
            say(f"FAILED: {losses.confirmed_lost} confirmed writes are lost, among them {examples}", Tone.BAD)
        if losses.counters_doubled:
            say(f"FAILED: {losses.counters_doubled} increments were executed twice", Tone.BAD)
        return 1

    # --- being init ---------------------------------------------------------------------------------------------------

    def _wait(self, cluster: LocalCluster, condition: Callable[[], T | None], what: str, limit_s: float) -> T:
        def look() -> T | None:
            self._supervise(cluster)
            return condition()

        return cluster.wait_for(look, what, limit_s)

    def _settled(self, cluster: LocalCluster) -> AgentProcess | None:
        leader = cluster.leader()
        if leader is None or not all(cluster.in_sync(member.name, leader) for member in cluster):
            return None
        return cluster[leader.name]

    def _linger(self, cluster: LocalCluster) -> None:
        """Let the clients write."""
        until = time.monotonic() + self._options.duration_s
        while time.monotonic() < until:
            self._supervise(cluster)
            time.sleep(0.02)

    def _supervise(self, cluster: LocalCluster) -> None:
        """As init would: start again what has ended, not too often."""
        for member in cluster:
            now = time.monotonic()
            if member.running or now - self._last_start.get(member.name, -RESTART_PAUSE_S) < RESTART_PAUSE_S:
                continue
            if member.returncode == -signal.SIGKILL and member.name in self._late:
                self._late.discard(member.name)
                self._screen.say(f"   {member.name}'s guard fenced its Redis and ended the late agent")
            elif member.returncode != 0:
                self._unexpected += 1
                self._screen.say(f"   {member.name}'s agent ended with {member.returncode}:{member.last_words(5)}")
            self._last_start[member.name] = now
            member.start()
