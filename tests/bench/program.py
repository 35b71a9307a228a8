"""How long clients wait when the leader's Redis dies, when it hands over, and when its agent is killed; and where the
time goes. Three agents, three ZooKeeper servers with fsync, clients that write all the time. ``python -m tests.bench``.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
from kazoo.client import KazooClient  # type: ignore[import-untyped]

from redis_agent.client import LeaderObserver
from redis_agent.demo import requirements
from redis_agent.lab import janitor
from redis_agent.lab.cluster import LocalCluster
from redis_agent.lab.load import Load
from redis_agent.lab.settings import Settings
from redis_agent.lab.zookeeper import Ensemble
from redis_agent.logs import hushed
from tests.bench.events import SETTLE_LIMIT_S, Kind, NotDone, attribute, happen
from tests.bench.report import Idle, Lost, Results, markdown, numbers
from tests.bench.statistics import replace_section

CLIENTS_NICE = 5
"""Elsewhere clients have hosts of their own: here they must not take the processor from what they wait for."""
BLOCK = 50
"""So many events with one load; then everything it wrote is looked up and removed, so that Redis stays small."""
_REMOVED_AT_ONCE = 5000


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
    pids = {(member.name, "agent"): member.pid for member in cluster}
    pids |= {(member.name, "guard"): member.guard_pid for member in cluster}
    processes = {key: psutil.Process(pid) for key, pid in sorted(pids.items()) if pid is not None}
    before = {key: sum(process.cpu_times()[:2]) for key, process in processes.items()}
    started = time.monotonic()
    time.sleep(seconds)
    elapsed = time.monotonic() - started
    return [
        Idle(
            member=name,
            role="leader" if name == leader else "follower",
            process=what,
            cpu_percent=(sum(process.cpu_times()[:2]) - before[name, what]) / elapsed * 100,
            rss_mb=process.memory_info().rss / 2**20,
        )
        for (name, what), process in processes.items()
    ]


def blocks(options: argparse.Namespace) -> Iterator[tuple[Kind, int]]:
    """What happens how often with one load."""
    times = {Kind.CRASH: options.failovers, Kind.HANDOVER: options.handovers, Kind.RESTART: options.restarts}
    for kind, count in times.items():
        for begun in range(0, count, BLOCK):
            yield kind, min(BLOCK, count - begun)


def run_block(
    kind: Kind, times: int, number: int, cluster: LocalCluster, observer: LeaderObserver, options: argparse.Namespace
) -> Results:
    """One load, so many events, and the verdict about everything that was written."""
    results = Results()
    # A fixed seed: two runs kill at the same moments of their own time.
    chance = random.Random(options.seed * 1000 + number)
    with Load(observer, rate_per_s=options.rate, prefix=f"load{number}", nice=CLIENTS_NICE) as load:
        for _ in range(times):
            try:
                measured = happen(kind, cluster, load, chance)
            except NotDone as reason:
                results.not_done.append(str(reason))
                print(f"{kind.value} was not done: {reason}", file=sys.stderr, flush=True)
                continue
            results.measured.append(measured)
            told = f"{kind.value} {measured.old} -> {measured.new}: first write after {measured.first_ms:.1f} ms, "
            print(f"{told}longest write {measured.longest_ms:.1f} ms", file=sys.stderr, flush=True)
            gc.collect()
        cluster.wait_settled(SETTLE_LIMIT_S)
    for surprise in load.surprises[:5]:
        print(f"unexpected answer: {surprise}", file=sys.stderr)
    with cluster.wait_settled(SETTLE_LIMIT_S).redis(timeout_s=30.0) as client:
        lost = results.lost[kind] = Lost()
        lost.add(load.verify(client, everything=True))
        # The cluster is never empty: one key stays.
        client.set("bench", "1")
        names = [name for name in client.scan_iter(f"{load.prefix}:*", count=1000) if ":counter" not in name]
        for begun in range(0, len(names), _REMOVED_AT_ONCE):
            client.unlink(*names[begun : begun + _REMOVED_AT_ONCE])
    return results


def measure(options: argparse.Namespace, directory: Path) -> Results:
    results = Results()
    with Ensemble(directory / "zk", 3) as ensemble:
        warm_up(ensemble, options.warm_up)
        # A hundred deaths of Redis within minutes are a crash loop, and its pauses would be all that is waited for.
        settings: Settings = {"log": {"format": "json", "level": "info"}, "timing": {"restart_max_s": 0.5}}
        with LocalCluster(ensemble, directory, 3, cluster="bench", settings=settings) as cluster:
            results.idle = measure_idle(cluster, options.idle) if options.idle > 0 else []
            with LeaderObserver(ensemble.hosts, cluster="bench") as observer:
                observer.wait_for_leader(SETTLE_LIMIT_S)
                for number, (kind, times) in enumerate(blocks(options)):
                    block = run_block(kind, times, number, cluster, observer, options)
                    results.measured += block.measured
                    results.not_done += block.not_done
                    total = results.lost.setdefault(kind, Lost())
                    total.add(block.lost[kind])
            attribute(results.measured, cluster)
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--failovers", type=int, default=300, metavar="N", help="SIGKILL to the leader's Redis")
    parser.add_argument("--handovers", type=int, default=300, metavar="N", help="planned switchovers")
    parser.add_argument("--restarts", type=int, default=30, metavar="N", help="SIGKILL to the leader's agent")
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
    # Our own threads must not disturb what they measure: quick turns, no collector's pauses.
    sys.setswitchinterval(0.0005)
    gc.disable()
    directory = Path(tempfile.mkdtemp(prefix="redis-agent-bench-"))
    with hushed("kazoo"), janitor.cleaning(directory):
        results = measure(options, directory)
    text = markdown(results, options)
    print(text)
    if options.output is not None:
        replace_section(options.output, "failover", text)
    if options.json is not None:
        options.json.write_text(json.dumps(numbers(results), indent=2) + "\n", encoding="utf-8")
    return 0 if results.sound else 1


if __name__ == "__main__":
    sys.exit(main())
