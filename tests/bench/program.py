"""How long a failover takes when the leader's Redis dies, and where the time goes.

Three agents, three ZooKeeper servers with fsync, clients that write all the time. ``python -m tests.bench``.
"""

from __future__ import annotations

import argparse
import datetime as dt
import gc
import json
import logging
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
from kazoo.client import KazooClient  # type: ignore[import-untyped]

from redis_agent.client import LeaderObserver
from redis_agent.demo import requirements
from redis_agent.lab.agent_process import Settings
from redis_agent.lab.cluster import LocalCluster
from redis_agent.lab.load import Load
from redis_agent.lab.zookeeper import Ensemble
from tests.bench.statistics import machine, markdown_table, replace_section, summary

STAGES = (
    # Event in the log, whose log (of the old or the new leader), what the time up to it is called in the table.
    ("redis_died", "old", "death of the child noticed"),
    ("resigned", "old", "`leader` deleted"),
    ("frozen", "new", "frozen"),
    ("ballot_cast", "new", "ballot cast"),
    ("claimed", "new", "claimed"),
    ("promoted", "new", "promoted"),
    ("served", "new", "served"),
    ("fence_lifted", "new", "fence lifted"),
)
FIRST_WRITE = "first acknowledged write"
STAMP = "clock"
SETTLE_LIMIT_S = 60.0
TARGET_MS = {"p50": 25.0, "p99": 80.0}


@dataclass(slots=True, kw_only=True)
class Failover:
    """One of them. Times in milliseconds after the kill."""

    old: str
    new: str
    epoch: int
    killed_at_s: float
    """On CLOCK_BOOTTIME."""
    first_ms: float
    first_confirmed_ms: float | None
    gap_ms: float
    stages_ms: dict[str, float] = field(default_factory=dict)
    """When each stage was reached; those that the logs tell of."""


@dataclass(slots=True, kw_only=True)
class Idle:
    """An agent with nothing to do."""

    member: str
    role: str
    cpu_percent: float
    rss_mb: float


def offset_s() -> float:
    """CLOCK_BOOTTIME minus the monotonic clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.monotonic()


def warm_up(ensemble: Ensemble, rounds: int) -> None:
    """Let each server do what it will have to do, until its virtual machine has compiled it.

    A ZooKeeper in use has been up for weeks; one that has just been started needs several times as long for a request.
    """
    for host, port in ensemble.addresses:
        client = KazooClient(f"{host}:{port}")
        client.start()
        client.ensure_path("/warm/up")
        for _ in range(rounds):
            transaction = client.transaction()
            transaction.check("/warm", -1)
            transaction.set_data("/warm/up", b"x" * 500)
            transaction.create("/warm/leader", b"x" * 500, ephemeral=True)
            transaction.delete("/warm/leader")
            transaction.commit()
            answers = [client.sync_async("/"), client.exists_async("/warm/up", watch=_ignore)]
            answers += [client.get_children_async("/warm", watch=_ignore), client.get_async("/warm/up")]
            for answer in answers:
                answer.get(timeout=SETTLE_LIMIT_S)
        client.delete("/warm", recursive=True)
        client.stop()
        client.close()


def _ignore(_event: object) -> None:
    """A watch that only has to fire."""


def measure_idle(cluster: LocalCluster, seconds: float) -> list[Idle]:
    leader = cluster.wait_settled(SETTLE_LIMIT_S).name
    agents = {member.name: psutil.Process(member.pid) for member in cluster if member.pid is not None}
    before = {name: sum(agent.cpu_times()[:2]) for name, agent in agents.items()}
    started = time.monotonic()
    time.sleep(seconds)
    elapsed = time.monotonic() - started
    return [
        Idle(
            member=name,
            role="leader" if name == leader else "follower",
            cpu_percent=(sum(agent.cpu_times()[:2]) - before[name]) / elapsed * 100,
            rss_mb=agent.memory_info().rss / 2**20,
        )
        for name, agent in agents.items()
    ]


def fail_over(cluster: LocalCluster, load: Load, chance: random.Random) -> Failover:
    old = cluster.wait_settled(SETTLE_LIMIT_S)
    # At any moment of the heartbeats' and the replication's intervals.
    time.sleep(chance.uniform(0.2, 1.2))
    leader = cluster.leader()
    assert leader is not None
    epoch = leader.epoch
    at_ns = old.kill_redis()
    cluster.wait_for(lambda: load.first_ack(at_ns, after_epoch=epoch), "an acknowledged write", SETTLE_LIMIT_S)
    new = cluster.wait_serving(after_epoch=epoch)
    cluster.wait_for(lambda: load.first_ack(at_ns, after_epoch=epoch, confirmed=True), "a confirmed write")
    first = load.first_ack(at_ns, after_epoch=epoch)
    confirmed = load.first_ack(at_ns, after_epoch=epoch, confirmed=True)
    assert first is not None
    return Failover(
        old=old.name,
        new=new.name,
        epoch=first.epoch,
        killed_at_s=at_ns / 1e9 + offset_s(),
        first_ms=(first.at_ns - at_ns) / 1e6,
        first_confirmed_ms=None if confirmed is None else (confirmed.at_ns - at_ns) / 1e6,
        gap_ms=load.gap(at_ns - 50_000_000).seconds * 1000,
    )


def attribute(failovers: Sequence[Failover], cluster: LocalCluster) -> None:
    """Find out from the agents' logs when each stage was reached."""
    events: dict[str, list[tuple[str, float]]] = {
        member.name: [(str(event["event"]), float(event[STAMP])) for event in member.log_events() if STAMP in event]
        for member in cluster
    }
    for failover in failovers:
        for name, whose, _ in STAGES:
            member = failover.old if whose == "old" else failover.new
            after_ms = [(at_s - failover.killed_at_s) * 1000 for event, at_s in events[member] if event == name]
            # Stamped before the write was acknowledged to the agent or the client, and after the kill.
            fitting = [ms for ms in after_ms if 0 <= ms <= failover.first_ms + 50]
            if fitting:
                failover.stages_ms[name] = fitting[0]


def parts(failovers: Sequence[Failover]) -> dict[str, list[float]]:
    """How long each stage took after the one before it."""
    found: dict[str, list[float]] = {}
    for failover in failovers:
        reached = 0.0
        for name, _, title in STAGES:
            if name in failover.stages_ms:
                found.setdefault(title, []).append(failover.stages_ms[name] - reached)
                reached = failover.stages_ms[name]
        found.setdefault(FIRST_WRITE, []).append(failover.first_ms - reached)
    return found


def report(failovers: Sequence[Failover], idle: Sequence[Idle], losses: str, options: argparse.Namespace) -> str:
    def row(title: str, values: Sequence[float]) -> list[str]:
        return [title, *(f"{value:.1f}" for value in summary(values).values())]

    header = ("milliseconds", "p50", "p95", "p99", "max")
    confirmed = [each.first_confirmed_ms for each in failovers if each.first_confirmed_ms is not None]
    whole = [
        row("kill to the first acknowledged write on the new leader", [each.first_ms for each in failovers]),
        row("kill to the first write confirmed by WAIT", confirmed),
        row("longest time without an acknowledged write", [each.gap_ms for each in failovers]),
    ]
    setting = (
        f"{len(failovers)} times SIGKILL to the leader's Redis; 3 agents, 3 ZooKeeper servers (fsync on), "
        f"{options.rate:g} writes per second, all on one machine: {machine()}. {dt.datetime.now(dt.UTC):%Y-%m-%d}."
    )
    targets = ", ".join(f"{name} at most {limit:g} ms" for name, limit in TARGET_MS.items())
    lines = [
        setting,
        "",
        markdown_table(header, whole),
        "",
        f"Target of the first line: {targets}. {losses}",
        "",
        "Where the time goes (each from the stage before it):",
        "",
        markdown_table(header, [row(title, values) for title, values in parts(failovers).items()]),
    ]
    if idle:
        rows = [[each.member, each.role, f"{each.cpu_percent:.2f}", f"{each.rss_mb:.1f}"] for each in idle]
        lines += [
            "",
            f"Agents without load, over {options.idle:g} s (targets: 1 % of a core, 60 MB):",
            "",
            markdown_table(("agent", "role", "CPU, % of a core", "RSS, MB"), rows),
        ]
    return "\n".join(lines)


def measure(options: argparse.Namespace, directory: Path) -> tuple[list[Failover], list[Idle], str, bool]:
    # A fixed seed: two runs kill at the same moments of their own time.
    chance = random.Random(options.seed)
    failovers: list[Failover] = []
    with Ensemble(directory / "zk", 3) as ensemble:
        warm_up(ensemble, options.warm_up)
        # A hundred deaths of Redis within minutes are a crash loop, and its pauses would be all that is waited for.
        settings: Settings = {"log": {"format": "json", "level": "info"}, "timing": {"restart_max_s": 0.5}}
        with LocalCluster(ensemble, directory, 3, cluster="bench", settings=settings) as cluster:
            idle = measure_idle(cluster, options.idle) if options.idle > 0 else []
            with LeaderObserver(ensemble.hosts, cluster="bench") as observer:
                observer.wait_for_leader(SETTLE_LIMIT_S)
                with Load(observer, rate_per_s=options.rate) as load:
                    for number in range(1, options.failovers + 1):
                        failover = fail_over(cluster, load, chance)
                        failovers.append(failover)
                        told = (
                            f"{number}/{options.failovers} {failover.old} -> {failover.new}: {failover.first_ms:.1f} ms"
                        )
                        print(told, file=sys.stderr, flush=True)
                leader = cluster.wait_settled(SETTLE_LIMIT_S)
                with leader.redis(timeout_s=30.0) as client:
                    found = load.verify(client, everything=True)
            attribute(failovers, cluster)
    losses = (
        f"Of {found.confirmed:,} writes confirmed by WAIT {found.confirmed_lost} were lost, "
        f"of {found.plain:,} others that were acknowledged {found.plain_lost}."
    )
    return failovers, idle, losses, found.sound


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--failovers", type=int, default=100, metavar="N")
    parser.add_argument("--rate", type=float, default=1000.0, metavar="N", help="writes per second; default: 1000")
    parser.add_argument("--idle", type=float, default=30.0, metavar="SECONDS", help="measure idle agents; 0: don't")
    parser.add_argument("--warm-up", type=int, default=1000, metavar="N", help="requests to each ZooKeeper beforehand")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path, metavar="FILE", help="replace the section of this Markdown file")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers to this file")
    options = parser.parse_args(arguments)
    requirements.prepare_path()
    if lacking := requirements.missing():
        print(lacking, file=sys.stderr)
        return 2
    logging.getLogger("kazoo").setLevel(logging.CRITICAL)
    # Our own threads must not disturb what they measure: quick turns, no collector's pauses.
    sys.setswitchinterval(0.0005)
    gc.disable()
    with tempfile.TemporaryDirectory(prefix="redis-agent-bench-") as directory:
        failovers, idle, losses, sound = measure(options, Path(directory))
    text = report(failovers, idle, losses, options)
    print(text)
    if options.output is not None:
        replace_section(options.output, "failover", text)
    if options.json is not None:
        numbers = {
            "machine": machine(),
            "first_ms": summary([each.first_ms for each in failovers]),
            "parts_ms": {title: summary(values) for title, values in parts(failovers).items()},
            "failovers": [asdict(each) for each in failovers],
            "idle": [asdict(each) for each in idle],
            "losses": losses,
        }
        options.json.write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    return 0 if sound else 1


if __name__ == "__main__":
    sys.exit(main())
