"""One round: clients write, something goes wrong, it heals, everybody converges, and every node is read."""

from __future__ import annotations

import gzip
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import redis

from redis_agent.client import LeaderObserver
from redis_agent.lab.waiting import wait_for
from redis_agent.lab.zookeeper import LabError
from tests.faults import history
from tests.faults.analysis import Report, analyse
from tests.faults.bed import BedError, Host, environment
from tests.faults.cluster import CLUSTER, BedCluster, BedMember
from tests.faults.history import Contents, Fault, Sight, boottime_ns
from tests.faults.nemesis import NotDone, Plan, Planned
from tests.faults.workload import Plugin, Role, Spec

STEADY_S = 1.5
AFTER_S = 1.0
CONVERGE_LIMIT_S = 60.0
_LOOK_S = 0.1
_ANSWER_LIMIT_S = 30.0
_OPERATOR_S = 3.0


# --- clients ----------------------------------------------------------------------------------------------------------


class Clients:
    """One process of clients on a host."""

    def __init__(self, machine: Host, spec: Spec) -> None:
        self.name = spec.client
        self._machine = machine
        self._lines: list[str] = []
        self._process = machine.popen(
            [sys.executable, "-m", "tests.faults.workload", msgspec.json.encode(spec).decode()],
            guest=True,
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self._expect("ready")

    def begin(self, prefix: str, directory: Path) -> Path:
        """Start to write. Returns where everything is noted."""
        path = directory / f"{prefix}-{self.name}.jsonl"
        self._order(f"begin {prefix} {path}")
        self._expect("begun")
        return path

    def end(self) -> None:
        """Ask them to finish. Does not wait."""
        self._order("end")

    def wait_ended(self) -> None:
        self._expect("ended")

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _order(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")

    def _expect(self, word: str) -> None:
        assert self._process.stdout is not None
        # The test's own time limit bounds this; the clients' are shorter.
        if self._process.stdout.readline().strip() != word:
            raise LabError(f"the clients {self.name} ended with {self._process.wait(_ANSWER_LIMIT_S)}")


def everywhere(cluster: BedCluster, finder: Plugin, *, load: float = 1.0) -> list[Clients]:
    """Clients in each rack, and some beside each Redis: whatever is cut, some are on either side.

    Args:
        cluster: with its hosts for clients.
        finder: how they find the primary.
        load: times the usual rates.
    """
    nodes = [member.node for member in cluster.nodes.values()]
    found = []
    for member, (_, _, machine) in zip(cluster.nodes.values(), cluster.racks, strict=True):
        roles = [
            Role(op="set", rate_per_s=30 * load),
            Role(op="set", wait=True, rate_per_s=30 * load),
            Role(op="incr", wait=True, rate_per_s=15 * load),
            Role(op="incr", rate_per_s=10 * load),
            Role(op="rpush", wait=True, rate_per_s=15 * load),
            Role(op="rpush", rate_per_s=10 * load),
            Role(op="get", rate_per_s=10 * load),
            *(Role(op="set", rate_per_s=30 * load, stubborn=node) for node in nodes),
            Role(op="set", rate_per_s=250 * load, stubborn=member.node, pipelined=True),
        ]
        found.append(Clients(machine, Spec(client=machine.name, roles=roles, finder=finder)))
        beside = [
            Role(op="set", wait=True, rate_per_s=15 * load, stubborn=member.node),
            Role(op="rpush", rate_per_s=10 * load, stubborn=member.node),
            Role(op="set", wait=True, rate_per_s=10 * load),
            Role(op="incr", rate_per_s=10 * load),
        ]
        found.append(Clients(member.machine, Spec(client=member.name, roles=beside, finder=finder)))
    return found


def agent_finder(cluster: BedCluster) -> Plugin:
    """How redis-agent's clients find the primary."""
    members = {member.name: member.node for member in cluster.nodes.values()}
    timeout_s = 3 * cluster.servers.tick_ms / 1000
    arguments = {"hosts": cluster.servers.hosts, "cluster": CLUSTER, "members": members}
    return Plugin(arguments={**arguments, "session_timeout_s": timeout_s})


# --- what one sees meanwhile ------------------------------------------------------------------------------------------


class Watcher:
    """Looks at every node all the time, for the plot and for nothing else."""

    def __init__(self, cluster: BedCluster) -> None:
        self.sights: list[Sight] = []
        self._ending = threading.Event()
        self._observer = LeaderObserver(cluster.servers.hosts, cluster=CLUSTER).start()
        members = cluster.nodes.values()
        self._threads = [threading.Thread(target=self._watch, args=(each,), daemon=True) for each in members]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join()
        self._observer.close()

    def _watch(self, member: BedMember) -> None:
        client = member.redis(timeout_s=_LOOK_S)
        while not self._ending.wait(_LOOK_S):
            role = "down"
            with suppress(redis.RedisError, OSError):
                said: object = client.execute_command("ROLE")
                role = "primary" if isinstance(said, list) and said[0] == "master" else "replica"
            view = self._observer.leader
            leads = view is not None and view.name == member.name
            epoch = view.epoch if view is not None else 0
            self.sights.append(Sight(t=boottime_ns(), node=member.name, role=role, leads=leads, epoch=epoch))
        client.close()


# --- the round --------------------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a round was like."""

    number: int
    plan: Plan | None = None
    faults: list[Fault] = field(default_factory=list)
    not_done: list[str] = field(default_factory=list)
    report: Report = field(default_factory=Report)
    began: int = 0
    ended: int = 0
    converged_s: float = 0.0
    """From the end of the last fault until all were in sync."""
    repaired: list[str] = field(default_factory=list)
    """Members whose operator had to repair Redis' file."""
    history: Path | None = None
    """All entries, compressed."""
    sights: list[Sight] = field(default_factory=list)
    persistence: str = ""
    restarted: list[str] = field(default_factory=list)
    """Members whose Redis is another process in the end: they have lost their memory."""


class Rounds:
    """Runs rounds, one after the other.

    Args:
        cluster: started.
        clients: of all hosts.
        directory: for histories.
    """

    def __init__(self, cluster: BedCluster, clients: Sequence[Clients], directory: Path) -> None:
        self._cluster = cluster
        self._clients = clients
        self._directory = directory
        self._watcher = Watcher(cluster)

    def close(self) -> None:
        self._watcher.close()

    def run(self, number: int, plan: Plan, chance: random.Random) -> Outcome:
        """One round. What it found is in the outcome, also that it did not converge."""
        outcome = Outcome(number=number, plan=plan, began=boottime_ns())
        prefix = f"r{number:04}"
        self._watcher.sights.clear()
        before = {name: member.redis_pid for name, member in self._cluster.nodes.items()}
        with self._writing(prefix, outcome) as paths:
            time.sleep(STEADY_S)
            self._suffer(plan, outcome, chance)
            converged = self._converge(outcome)
            time.sleep(AFTER_S)
        outcome.ended = boottime_ns()
        outcome.restarted = [name for name, member in self._cluster.nodes.items() if member.redis_pid != before[name]]
        outcome.sights = list(self._watcher.sights)
        finals = self._read(outcome) if converged else {}
        by_address = {member.name: member.address.host for member in self._cluster.nodes.values()}
        faults = [msgspec.structs.replace(each, target=by_address.get(each.target, "")) for each in outcome.faults]
        violations = outcome.report.violations
        outcome.report = analyse(history.read(paths), _only(finals, prefix), faults)
        outcome.report.violations += violations
        outcome.history = _packed(paths, self._directory / f"{prefix}.jsonl.gz")
        for member in self._cluster.nodes.values():
            outcome.report.violations += [f"{member.name}'s agent gave up: {each}" for each in member.refusals]
        if converged and not outcome.report.violations:
            self._cluster.remove(prefix)
        return outcome

    @contextmanager
    def _writing(self, prefix: str, outcome: Outcome) -> Iterator[list[Path]]:
        paths = [each.begin(prefix, self._directory) for each in self._clients]
        try:
            yield paths
        finally:
            for each in self._clients:
                each.end()
            for each in self._clients:
                each.wait_ended()

    def _suffer(self, plan: Plan, outcome: Outcome, chance: random.Random) -> None:
        """Each fault on a thread of its own: one that takes its time does not hold up another."""
        begin = time.monotonic()
        # A generator of its own for each: threads would take turns as they please.
        threads = [
            threading.Thread(target=self._strike, args=(each, begin, outcome, random.Random(chance.random())))
            for each in plan.faults
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _strike(self, planned: Planned, begin: float, outcome: Outcome, chance: random.Random) -> None:
        kind = planned.kind
        time.sleep(max(0.0, begin + planned.at_s - time.monotonic()))
        fault = Fault(t0=boottime_ns(), kind=kind.name, target=planned.target)
        try:
            heal = kind.begin(self._cluster, planned.target, chance)
        except (NotDone, LabError, BedError) as reason:
            outcome.not_done.append(f"{kind.name} {planned.target}: {reason}")
            return
        fault.held_from = boottime_ns()
        outcome.faults.append(fault)
        time.sleep(planned.for_s)
        fault.held_until = boottime_ns()
        try:
            heal()
        except Exception as error:  # noqa: BLE001  (told, and the round goes on to its verdict)
            outcome.report.violations.append(f"{kind.name} of {planned.target} could not be healed: {error!r}")
        fault.t1 = boottime_ns()

    def _converge(self, outcome: Outcome) -> bool:
        healed = time.monotonic()
        over = threading.Event()
        operator = threading.Thread(target=self._operate, args=(over, outcome))
        operator.start()
        try:
            self._cluster.wait_settled(CONVERGE_LIMIT_S, members=self._cluster.nodes)
        except LabError as error:
            outcome.report.violations.append(f"no convergence within {CONVERGE_LIMIT_S:g} s")
            (self._directory / f"r{outcome.number:04}-not-converged.txt").write_text(str(error), encoding="utf-8")
            return False
        finally:
            over.set()
            operator.join()
            outcome.converged_s = time.monotonic() - healed
        return True

    def _operate(self, over: threading.Event, outcome: Outcome) -> None:
        """A person looks in now and then, and does what only a person may."""
        while not over.wait(_OPERATOR_S):
            for member in self._cluster.nodes.values():
                if member.repair():
                    outcome.repaired.append(member.name)

    def _read(self, outcome: Outcome) -> dict[str, Contents]:
        """Every node, when all have everything."""
        try:
            wait_for(self._cluster.barrier, CONVERGE_LIMIT_S, "WAIT is answered by everybody")
            return {member.name: member.contents() for member in self._cluster.nodes.values()}
        except (LabError, redis.RedisError) as error:
            outcome.report.violations.append(f"the nodes could not be read: {error}")
            return {}


def _only(finals: Mapping[str, Contents], prefix: str) -> dict[str, Contents]:
    def mine(contents: Contents) -> Contents:
        return {key: value for key, value in contents.items() if key.startswith((prefix, "bed"))}

    return {name: mine(contents) for name, contents in finals.items()}


def _packed(paths: Sequence[Path], target: Path) -> Path:
    with gzip.open(target, "wb", compresslevel=3) as packed:
        for path in paths:
            if path.exists():
                with path.open("rb") as lines:
                    shutil.copyfileobj(lines, packed)
                path.unlink()
    return target
