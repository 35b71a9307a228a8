"""One run of the comparison: a fresh system, clients, one fault, and what became of what was written."""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec
import redis

from redis_agent.lab.waiting import wait_for
from tests.faults.analysis import Report, analyse
from tests.faults.bed import OPS, Bed, Cut
from tests.faults.compare_clients import PREFIX, Clients
from tests.faults.compare_results import Lost, Outcome
from tests.faults.compare_systems import NAMES, System, make
from tests.faults.history import UNKNOWN, Entry, boottime_ns

RATE_PER_S = 1000.0
WARM_S = 2.0
AFTERWARDS_S = 2.0
LIMIT_S = 90.0
SILENCE_NS = 250_000_000
"""A node that acknowledges nothing for longer takes no writes meanwhile."""
_BATCH = 5000


@dataclass(slots=True, kw_only=True)
class Scene:
    """What a fault works on."""

    bed: Bed
    system: System
    clients: Clients
    primary: str
    fault_s: float
    """How long partitions and pauses last."""
    at_ns: int = 0
    """When the fault began, on CLOCK_BOOTTIME."""
    over_ns: int = 0
    """When it ended; 0: it did not."""
    dead: str = ""
    """A member that is gone for good."""
    note: str = ""

    def begin(self) -> None:
        self.at_ns = boottime_ns()

    def signal_redis(self, number: signal.Signals) -> int:
        """The fault begins with a signal to the primary's Redis. Returns its process id."""
        pid = self.system.redis_pid(self.primary)
        self.begin()
        os.kill(pid, number)
        return pid

    def cut(self) -> list[Cut]:
        """The fault begins with the primary's rack cut off from all others, but for those who look on."""
        rack = self.system.rack(self.primary)
        others = [host for host in self.bed.hosts.values() if host not in rack and host.name != OPS]
        self.begin()
        return [host.cut(others) for host in rack]

    def wait_next(self) -> None:
        """Wait until the majority's clients write to another primary, and have done so for a while."""
        self.clients.wait_written(self.at_ns, LIMIT_S, past_node=self.system.node(self.primary))
        time.sleep(AFTERWARDS_S)

    def settle(self) -> None:
        """The fault is over: wait until everybody follows one primary again."""
        self.over_ns = boottime_ns()
        self.system.wait_settled(NAMES, LIMIT_S)


def _crash(scene: Scene) -> None:
    scene.signal_redis(signal.SIGKILL)
    scene.wait_next()
    if not scene.system.restarts_redis:
        scene.dead = scene.primary


def _restart(scene: Scene) -> None:
    """As ``_crash``, with an init that starts Redis again; an agent does so itself."""
    scene.signal_redis(signal.SIGKILL)
    # systemd's RestartSec.
    time.sleep(0.1)
    if not scene.system.restarts_redis:
        scene.system.init(scene.primary)
    scene.clients.wait_written(scene.at_ns, LIMIT_S)
    scene.settle()
    time.sleep(AFTERWARDS_S)


def _host(scene: Scene) -> None:
    # The network first: the kernel must not tell anybody that the processes ended.
    scene.cut()
    scene.system.power_cut(scene.primary)
    scene.wait_next()
    scene.dead = scene.primary


def _switchover(scene: Scene) -> None:
    scene.begin()
    scene.note = scene.system.switchover()
    if not scene.note:
        scene.wait_next()
    scene.settle()


def _partition(scene: Scene) -> None:
    cuts = scene.cut()
    time.sleep(scene.fault_s)
    for cut in cuts:
        cut.heal()
    scene.settle()
    time.sleep(AFTERWARDS_S)


def _pause(scene: Scene) -> None:
    pid = scene.signal_redis(signal.SIGSTOP)
    time.sleep(scene.fault_s)
    # An agent has killed it by now.
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGCONT)
    scene.settle()
    time.sleep(AFTERWARDS_S)


FAULTS: dict[str, Callable[[Scene], None]] = {
    "crash": _crash,
    "restart": _restart,
    "host": _host,
    "switchover": _switchover,
    "partition": _partition,
    "pause": _pause,
}


def run(
    system_key: str,
    scenario: str,
    number: int,
    directory: Path,
    *,
    fault_s: float = 20.0,
    rate_per_s: float = RATE_PER_S,
    warm_s: float = WARM_S,
) -> Outcome:
    """One fault in one system.

    Args:
        system_key: of ``compare_systems.SETTINGS``.
        scenario: of ``FAULTS``.
        number: of the run; it also decides at which moment of the intervals the fault comes, for all systems alike.
        directory: for everything; short, for unix sockets are below it.
        fault_s: how long partitions and pauses last.
        rate_per_s: writes per second of the clients that look for the primary.
        warm_s: how long they write before the fault.
    """
    chance = random.Random(number)
    histories = directory / "history"
    histories.mkdir(parents=True)
    with ExitStack() as stack:
        bed = stack.enter_context(Bed(directory / "bed"))
        system = make(system_key, bed)
        stack.callback(system.stop)
        primary = system.primary()
        nodes = {name: system.node(name) for name in NAMES}
        with Clients(bed, histories, system.plugin(), nodes, primary, rate_per_s) as clients:
            clients.wait_written(0, LIMIT_S, count=int(0.6 * rate_per_s * warm_s))
            time.sleep(chance.uniform(0, 1))
            scene = Scene(bed=bed, system=system, clients=clients, primary=primary, fault_s=fault_s)
            FAULTS[scenario](scene)
            settled_ns = boottime_ns()
            clients.end()
            history = clients.history()
        if scenario == "host":
            history = [_unheard(each, scene) for each in history]
        alive = [name for name in NAMES if name != scene.dead]
        final = system.wait_settled(alive, LIMIT_S)
        contents = read_all(system, [final, *(name for name in alive if name != final)])
    outcome = measure(history, contents, scene.at_ns, nodes[primary], moved=scenario != "restart")
    outcome.system, outcome.scenario, outcome.run, outcome.note = system_key, scenario, number, scene.note
    if scene.over_ns:
        outcome.settled_ms = (settled_ns - scene.over_ns) / 1e6
    return outcome


def _unheard(entry: Entry, scene: Scene) -> Entry:
    """Clients on the lost host are gone, too: what Redis told them in its last moments reached nobody."""
    if entry.ok and entry.t1 > scene.at_ns and entry.client.startswith(("near", f"stays-{scene.primary}")):
        return msgspec.structs.replace(entry, outcome=UNKNOWN)
    return entry


def read_all(system: System, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """What every node has, the primary first, as soon as the replicas have everything."""
    found: dict[str, dict[str, str]] = {}
    with ExitStack() as stack:
        clients = {name: stack.enter_context(system.redis(name)) for name in names}

        def offsets() -> list[int]:
            return [int(client.info("replication")["master_repl_offset"]) for client in clients.values()]

        wait_for(lambda: len(set(offsets())) == 1, LIMIT_S, lambda: f"equal offsets: {offsets()}", pause_s=0.05)
        for name, client in clients.items():
            found[name] = _contents(client)
    return found


def _contents(client: redis.Redis) -> dict[str, str]:
    keys: list[str] = [*client.scan_iter(f"{PREFIX}:*", count=_BATCH)]
    contents: dict[str, str] = {}
    for begun in range(0, len(keys), _BATCH):
        some = keys[begun : begun + _BATCH]
        values: list[str | None] = client.mget(some)  # type: ignore[assignment]
        contents |= {key: value for key, value in zip(some, values, strict=True) if value is not None}
    return contents


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(
    history: Sequence[Entry], contents: dict[str, dict[str, str]], at_ns: int, old_node: str, *, moved: bool = True
) -> Outcome:
    """The numbers of one run.

    Args:
        history: of all clients, sorted by t0.
        contents: of every node in the end, the primary first.
        at_ns: when the fault began.
        old_node: who was the primary then.
        moved: the next write that counts is one on another node.
    """
    primary, final = next(iter(contents.items()))
    looking = [entry for entry in history if not entry.stubborn]
    far = [entry for entry in looking if entry.client.startswith("far")]
    report = analyse(looking, {primary: final})
    outcome = Outcome(system="", scenario="", run=0, dual_primary_ms=dual_primary_ms(history))
    outcome.first_write_ms = _first_ms(far, at_ns, old_node if moved else "")
    outcome.stopped_ms = _longest_gap_ms(far, at_ns)
    outcome.equal = all(other == final for other in contents.values())
    _count(outcome, report, history, final)
    return outcome


def dual_primary_ms(history: Sequence[Entry]) -> float:
    """For so long two nodes acknowledged writes, as a lower bound: a node does from the first acknowledgement to the
    sending of the last acknowledged write, and whenever it acknowledged nothing for a while, it did not.
    """
    spans: dict[str, list[tuple[int, int]]] = {}
    for entry in sorted((each for each in history if each.ok and each.is_write), key=lambda each: each.t1):
        known = spans.setdefault(entry.node, [])
        if known and entry.t1 - known[-1][1] <= SILENCE_NS:
            known[-1] = (known[-1][0], max(known[-1][1], entry.t0))
        else:
            known.append((entry.t1, entry.t1))
    overlaps = [
        (max(one[0], other[0]), min(one[1], other[1]))
        for first, second in itertools.combinations(spans.values(), 2)
        for one in first
        for other in second
    ]
    total = until = 0
    for begin, end in sorted(overlaps):
        total += max(0, end - max(begin, until))
        until = max(until, end)
    return total / 1e6


def _count(outcome: Outcome, report: Report, history: Sequence[Entry], final: dict[str, str]) -> None:
    total = report.total
    outcome.refused, outcome.unknown = total.refused, total.unknown
    for entry in history:
        if entry.ok and entry.op == "set":
            tally = _kind(outcome, entry)
            tally.acknowledged += 1
            tally.lost += final.get(entry.key) != entry.value
    increments = report.tallies["incr"]
    outcome.increments = Lost(acknowledged=increments.acknowledged, lost=increments.lost + increments.confirmed_lost)
    outcome.doubled = sum(" is doubled" in violation for violation in report.violations)


def _kind(outcome: Outcome, entry: Entry) -> Lost:
    if entry.stubborn:
        return outcome.stayers
    if entry.need is None:
        return outcome.plain
    return outcome.confirmed if entry.confirmed else outcome.unconfirmed


def _first_ms(history: Sequence[Entry], at_ns: int, old_node: str) -> float | None:
    """To the first acknowledgement of another node; without an old node: of a write that was sent after the fault."""
    good = (each.t1 for each in history if each.ok and each.t0 > at_ns and each.node != old_node)
    first = min(good, default=None)
    return None if first is None else (first - at_ns) / 1e6


def _longest_gap_ms(history: Sequence[Entry], at_ns: int) -> float:
    """Without an acknowledgement, among those that begin shortly before the fault or later. The end counts as one: it
    is where the attempts end that were under way.
    """
    stamps = [*sorted(each.t1 for each in history if each.ok), max((each.t1 for each in history), default=0)]
    since = [stamp for stamp in stamps if stamp >= at_ns - 50_000_000]
    return max((after - before for before, after in itertools.pairwise(since)), default=0) / 1e6
