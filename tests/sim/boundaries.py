"""Every command boundary, one after the other: ``python -m tests.sim.boundaries``.

A scenario is played once undisturbed, and the commands of every member are counted that change anything (`HARMLESS`
has the others). Then it is played again for each of them, up to there exactly as before, and a fault strikes right
before that command, right behind it, or when it has had its effect. Everything is mended, and the checker has looked
all the time; a case is named by scenario, seed, member, number of the command, moment and strike.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from redis_agent import machine
from redis_agent.messages import Command
from tests.sim.agent import Agent, Member
from tests.sim.cluster import Cluster, Shape
from tests.sim.scenario import with_init
from tests.sim.world import Violation

PAUSE_S = 9.0
"""Past the session's end."""
EFFECT_S = 0.003
"""By then a command that goes to Redis or to ZooKeeper has mostly had its effect."""
DOWN_S = 0.4
AT_LEAST_S = {"lease-lost": 6.2, "host-lost": 11.0}
"""Until then nothing of the scenario may have begun to show; of others it does at once."""
SCENARIO_LIMIT_S = 30.0
HEAL_LIMIT_S = 90.0
TAIL_LINES = 200

MOMENTS = ("before", "behind", "later")


# -- scenarios: each begins something with a cluster that is well --------------------------------------------------


def _leader(cluster: Cluster) -> Member:
    leader = cluster.serving()
    assert leader is not None
    return leader


def failover(cluster: Cluster) -> None:
    """The leader's Redis dies."""
    redis = _leader(cluster).site.redis
    assert redis is not None
    redis.kill()


def host_lost(cluster: Cluster) -> None:
    """The leader's host dies, and comes back when another one serves."""
    leader = _leader(cluster)
    leader.crash()
    cluster.world.after(10.0, leader.start)


def switchover(cluster: Cluster) -> None:
    cluster.order_switchover()


def sigterm(cluster: Cluster) -> None:
    """The leader is stopped in order; init starts it again."""
    _leader(cluster).stop()


def lease_lost(cluster: Cluster) -> None:
    """ZooKeeper does not hear the leader, which fences; heard again within the session, it resumes."""
    leader = _leader(cluster)
    cut = cluster.cut_zookeeper(leader.name)

    def look() -> None:
        agent = leader.agent
        if agent is None or agent.core.snapshot().state == machine.CONNECTING:
            cluster.net.heal(cut)
        else:
            cluster.world.after(0.01, look)

    look()


def attach(cluster: Cluster) -> None:
    """The leader's agent is killed; its next life attaches."""
    leader = _leader(cluster)
    leader.kill_agent()
    cluster.world.after(DOWN_S, leader.start)


def attach_follower(cluster: Cluster) -> None:
    follower = cluster.others(_leader(cluster))[-1]
    follower.kill_agent()
    cluster.world.after(DOWN_S, follower.start)


def upgrade(cluster: Cluster) -> None:
    _leader(cluster).upgrade()


def cold_start(cluster: Cluster) -> None:
    """Nothing is there yet; the only scenario that begins with agents that do not run."""
    cluster.start()


SCENARIOS: dict[str, Callable[[Cluster], None]] = {
    "failover": failover,
    "host-lost": host_lost,
    "switchover": switchover,
    "sigterm": sigterm,
    "lease-lost": lease_lost,
    "attach": attach,
    "attach-follower": attach_follower,
    "upgrade": upgrade,
    "cold-start": cold_start,
}


# -- strikes -------------------------------------------------------------------------------------------------------


def _kill_agent(cluster: Cluster, member: Member) -> None:
    member.kill_agent()
    cluster.world.after(DOWN_S, member.start)


def _kill_redis(cluster: Cluster, member: Member) -> None:
    del cluster
    if member.site.redis is not None:
        member.site.redis.kill()


def _cut_power(cluster: Cluster, member: Member) -> None:
    member.crash()
    cluster.world.after(DOWN_S, member.start)


def _pause_agent(cluster: Cluster, member: Member) -> None:
    if member.agent is not None:
        member.agent.process.stop()
        cluster.world.after(PAUSE_S, member.agent.process.cont)


def _freeze_host(cluster: Cluster, member: Member) -> None:
    frozen = member.processes()
    member.freeze()
    for process in frozen:
        cluster.world.after(PAUSE_S, process.cont)


def _cut_off(cluster: Cluster, member: Member) -> None:
    """ZooKeeper hears what it sends, but its answers are lost until the session is over."""
    links = cluster.net.cut([(name, member.name) for name in cluster.ensemble.names])
    cluster.world.after(PAUSE_S, cluster.net.heal, links)


STRIKES: dict[str, Callable[[Cluster, Member], None]] = {
    "agent": _kill_agent,
    "redis": _kill_redis,
    "host": _cut_power,
    "pause": _pause_agent,
    "freeze": _freeze_host,
    "answers": _cut_off,
}


# -- a case --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Case:
    """One strike at one boundary."""

    scenario: str
    seed: int
    member: str
    number: int
    moment: str
    strike: str

    def __str__(self) -> str:
        return f"{self.scenario}/{self.seed}/{self.member}/{self.number}/{self.moment}/{self.strike}"

    @classmethod
    def parse(cls, text: str) -> Case:
        scenario, seed, member, number, moment, strike = text.split("/")
        return cls(scenario, int(seed), member, int(number), moment, strike)


def _begin(scenario: str, seed: int, *, trace: bool) -> Cluster:
    """A cluster that is well (or has not begun), with clients."""
    members = (3, 3, 5, 2)[seed % 4]
    disks = (("none",), ("rdb",), ("aof",))[seed % 3]
    cluster = Cluster(seed, Shape(members=members, disks=disks, writers=2, pace_s=0.05), trace=trace)
    with_init(cluster, after_s=DOWN_S)
    if scenario == "cold-start":
        cluster.start_clients()
        return cluster
    cluster.start()
    cluster.start_clients()
    cluster.until("the first leader serves, and all know that they are intact", cluster.settled)
    cluster.run(1.5)
    cluster.until("all are well", cluster.settled)
    return cluster


def commands_of(scenario: str, seed: int) -> dict[str, list[str]]:
    """Undisturbed: each member's commands, by name, from the beginning of the scenario until all is well again."""
    cluster = _begin(scenario, seed, trace=False)
    heard: dict[str, list[str]] = {name: [] for name in cluster.members}

    def trap(agent: Agent, command: Command, is_before: bool) -> None:
        if is_before:
            heard[agent.name].append(type(command).__name__)

    for member in cluster.members.values():
        member.trap = trap
    SCENARIOS[scenario](cluster)
    cluster.run(AT_LEAST_S.get(scenario, 0.3))
    cluster.until("the scenario ends well", cluster.settled, SCENARIO_LIMIT_S)
    return heard


def cases_of(scenario: str, seed: int) -> Iterator[Case]:
    """All of them, in order."""
    for name, commands in commands_of(scenario, seed).items():
        for number in range(len(commands)):
            for moment in MOMENTS:
                for strike in STRIKES:
                    yield Case(scenario, seed, name, number, moment, strike)


def play(case: Case, *, trace: bool = False) -> tuple[Cluster, Violation | None]:
    """Play it, mend everything, and see that all is well."""
    cluster = _begin(case.scenario, case.seed, trace=trace)
    member = cluster.members[case.member]
    try:
        _set_trap(cluster, member, case)
        SCENARIOS[case.scenario](cluster)
        cluster.run(AT_LEAST_S.get(case.scenario, 0.3))
        cluster.until("it is struck", lambda: member.trap is None, SCENARIO_LIMIT_S)
        cluster.run(PAUSE_S + 1.0 if case.strike in ("pause", "freeze", "answers") else 2.0 * DOWN_S)
        cluster.stop_clients()
        cluster.until("after healing one leader serves and all others are in sync", cluster.in_sync, HEAL_LIMIT_S)
        cluster.run(1.0)
        cluster.until("it stays so", cluster.in_sync, 1.0)
        cluster.until("every order has its answer", cluster.orders_answered)
    except Violation as violation:
        return cluster, violation
    except AssertionError:  # the fakes' own
        return cluster, Violation("simulator", traceback.format_exc())
    return cluster, None


def _set_trap(cluster: Cluster, member: Member, case: Case) -> None:
    count = 0
    strike = STRIKES[case.strike]

    def trap(agent: Agent, command: Command, is_before: bool) -> None:
        nonlocal count
        count += is_before
        if count <= case.number or is_before != (case.moment == "before"):
            return
        member.trap = None
        if cluster.world.tracing:
            cluster.world.log("boundary", f"*** {case.strike} {case.moment} {type(command).__name__} of {agent.name}")
        if case.moment == "later":
            cluster.world.after(EFFECT_S, strike, cluster, member)
        else:
            strike(cluster, member)

    member.trap = trap


def explain(case: Case) -> str:
    """Play it again with the transcript on: its end, and the violation."""
    cluster, violation = play(case, trace=True)
    again = f"again with: python -m tests.sim.boundaries --case {case}"
    return "\n".join([*cluster.world.lines[-TAIL_LINES:], f"{case}: {violation}", again])


def sampled(cases: Iterable[Case], count: int, seed: int = 1) -> list[Case]:
    """So many of them, always the same; 0: all."""
    found = list(cases)
    return found if not count or count >= len(found) else random.Random(seed).sample(found, count)


def _sweep(cases: list[Case], totals: Counter[str], *, keep_going: bool) -> list[Case]:
    failed: list[Case] = []
    for case in cases:
        cluster, violation = play(case)
        totals.update(runs=1, virtual_s=int(cluster.world.now), confirmed=len(cluster.checker.confirmed))
        if violation is None:
            continue
        failed.append(case)
        sys.stdout.write(f"{case}: {str(violation).splitlines()[0]}\n" if keep_going else explain(case) + "\n")
        if not keep_going:
            break
    return failed


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenario", metavar="NAME,...", default=",".join(SCENARIOS), help=", ".join(SCENARIOS))
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="play every scenario with seeds 1..N")
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="so many cases of each scenario and seed")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at the first violation")
    parser.add_argument("--case", default="", help="play this one, with its transcript")
    options = parser.parse_args(arguments)
    if options.case:
        sys.stdout.write(explain(Case.parse(options.case)) + "\n")
        return 0
    failed: list[Case] = []
    for scenario in options.scenario.split(","):
        totals: Counter[str] = Counter()
        began = time.process_time()
        for seed in range(1, options.seeds + 1):
            failed += _sweep(sampled(cases_of(scenario, seed), options.sample), totals, keep_going=options.keep_going)
            if failed and not options.keep_going:
                return 1
        shown = ", ".join(f"{count:,} {name}" for name, count in totals.items())
        sys.stdout.write(f"{scenario}: {shown}, {time.process_time() - began:.0f} CPU seconds\n")
        sys.stdout.flush()
    sys.stdout.write(f"{len(failed)} with a violation\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
