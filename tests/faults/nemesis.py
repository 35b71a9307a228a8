"""What goes wrong: single faults with a beginning and an end, and a seeded choice of some that overlap.

Two rules keep a round within what the project promises (docs/faults.md):

- At most a minority of the voters may lose its memory. So of the faults that end a Redis, or may make its agent or its
  guard end it, all of a round hit the same member, the *victim*, or one after the other with everybody in sync between
  (a rolling restart). Networks, clocks and ZooKeeper servers fail anywhere.
- Agent and guard of one member do not hang at once while its Redis runs on: nobody would be left to fence it. The whole
  host may stop.
"""

from __future__ import annotations

import random
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import psutil

from redis_agent.lab.waiting import wait_for
from redis_agent.lab.zookeeper import LabError
from tests.faults.bed import BedError, Cut, Direction, Host
from tests.faults.cluster import CLIENT_PORT, ELECTION_PORT, PEER_PORT, REDIS_PORT, BedCluster, BedMember
from tests.faults.primaries import STOP_GUARD, STOP_REDIS, WHOLE_HOST

JUMPS_S = (-3600.0, -7.0, -0.5, 0.5, 7.0, 30.0, 3600.0)
_SWITCHOVER_LIMIT_S = 8.0
_ROLLING_LIMIT_S = 6.0
_STOPPED_LIMIT_S = 0.5
_ROLLING = "rolling-restart"


class NotDone(Exception):
    """It could not be done now; the message says why."""


Heal = Callable[[], None]


def nothing() -> None:
    """There is nothing to heal."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of fault.

    Args:
        name: as it is told.
        begin: does it to a target and returns what ends it.
        targets: "member", "victim" (a member whose Redis may be lost by it), "zk", "rack" or "cluster".
        longest_s: it is ended after this time at the latest; 0: it is over at once.
    """

    name: str
    begin: Callable[[BedCluster, str, random.Random], Heal]
    targets: str
    longest_s: float = 0.0


@dataclass(slots=True)
class Planned:
    """One fault of a round, in seconds from the beginning of the faults."""

    kind: Kind
    target: str
    at_s: float
    for_s: float


@dataclass(slots=True)
class Plan:
    """The faults of a round."""

    victim: str
    faults: list[Planned] = field(default_factory=list)


# --- processes --------------------------------------------------------------------------------------------------------


def _send(member: BedMember, part: str, number: signal.Signals) -> psutil.Process:
    process = member.part(part)
    if process is None:
        raise NotDone(f"{member.name} has no {part} now")
    with suppress(psutil.NoSuchProcess):
        process.send_signal(number)
    return process


def _kill(part: str) -> Callable[[BedCluster, str, random.Random], Heal]:
    def begin(cluster: BedCluster, target: str, _chance: random.Random) -> Heal:
        _send(cluster.nodes[target], part, signal.SIGKILL)
        return nothing

    return begin


def _stop(part: str) -> Callable[[BedCluster, str, random.Random], Heal]:
    def begin(cluster: BedCluster, target: str, _chance: random.Random) -> Heal:
        process = _send(cluster.nodes[target], part, signal.SIGSTOP)
        # What is noted as a stop is one: another core may have run it for some microseconds more.
        with suppress(LabError):
            wait_for(partial(_stands, process), _STOPPED_LIMIT_S, f"{part} stands still", pause_s=0.001)

        def heal() -> None:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)

        return heal

    return begin


def _stands(process: psutil.Process) -> bool:
    """Stopped, or in a disk's hands, from where it comes back stopped."""
    with suppress(psutil.NoSuchProcess):
        return process.status() in {psutil.STATUS_STOPPED, psutil.STATUS_DISK_SLEEP}
    return True


def _terminate(cluster: BedCluster, target: str, _chance: random.Random) -> Heal:
    _send(cluster.nodes[target], "agent", signal.SIGTERM)
    return nothing


def _upgrade(cluster: BedCluster, target: str, _chance: random.Random) -> Heal:
    _send(cluster.nodes[target], "agent", signal.SIGUSR2)
    return nothing


def _freeze_host(cluster: BedCluster, target: str, _chance: random.Random) -> Heal:
    machine = cluster.nodes[target].machine
    machine.freeze()
    return machine.thaw


def _power_cut(cluster: BedCluster, target: str, _chance: random.Random) -> Heal:
    cluster.nodes[target].power_cut()
    return cluster.nodes[target].power_on


def _lose_disk(cluster: BedCluster, target: str, _chance: random.Random) -> Heal:
    """A power cut, and the machine comes back with an empty disk. The agent's own state is elsewhere, and stays."""
    member = cluster.nodes[target]
    member.power_cut()
    member.disk.wipe()
    return member.power_on


def _kill_zookeeper(cluster: BedCluster, target: str, _chance: random.Random) -> Heal:
    index = _server(cluster, target)
    cluster.servers.kill(index)
    return lambda: cluster.servers.start_again(index)


def _stop_zookeeper(cluster: BedCluster, target: str, _chance: random.Random) -> Heal:
    index = _server(cluster, target)
    if cluster.servers.pid(index) is None:
        raise NotDone(f"{target} does not run")
    cluster.servers.pause(index)

    def heal() -> None:
        # It may have been killed meanwhile.
        with suppress(LabError):
            cluster.servers.resume(index)

    return heal


def _server(cluster: BedCluster, target: str) -> int:
    return [machine.name for machine in cluster.servers.machines].index(target)


# --- networks ---------------------------------------------------------------------------------------------------------


def _healing(cuts: list[Cut]) -> Heal:
    def heal() -> None:
        for cut in cuts:
            cut.heal()

    return heal


def _others(cluster: BedCluster, host: Host) -> list[Host]:
    return [each for rack in cluster.racks for each in rack if each is not host]


def _cut_rack(cluster: BedCluster, target: str, _chance: random.Random) -> Heal:
    """A rack on its own: member, ZooKeeper server and clients see each other and nobody else."""
    rack = next(rack for rack in cluster.racks if rack[0].name == target)
    outside = [host for host in _others(cluster, rack[0]) if host not in rack]
    return _healing([host.cut(outside) for host in rack])


def _cut_member(cluster: BedCluster, target: str, chance: random.Random) -> Heal:
    """A member and the clients beside it see nobody else; at times in one direction only."""
    directions: tuple[Direction, ...] = ("both", "in", "out")
    return _healing([cluster.nodes[target].machine.cut(direction=chance.choice(directions))])


def _cut_agent(cluster: BedCluster, target: str, chance: random.Random) -> Heal:
    """The agent loses ZooKeeper; its Redis is reached by everybody."""
    directions: tuple[Direction, ...] = ("both", "in", "out")
    cut = cluster.nodes[target].machine.cut(cluster.servers.machines, chance.choice(directions), [CLIENT_PORT])
    return _healing([cut])


def _cut_redis(cluster: BedCluster, target: str, chance: random.Random) -> Heal:
    """The other members don't reach this Redis, nor does it reach theirs; clients and ZooKeeper do."""
    machine = cluster.nodes[target].machine
    members = [each.machine for each in cluster.nodes.values() if each.machine is not machine]
    directions: tuple[Direction, ...] = ("both", "in", "out")
    return _healing([machine.cut(members, chance.choice(directions), [REDIS_PORT])])


def _cut_clients(cluster: BedCluster, target: str, _chance: random.Random) -> Heal:
    """Clients elsewhere don't reach this Redis; the members do."""
    clients = [rack[2] for rack in cluster.racks]
    return _healing([cluster.nodes[target].machine.cut(clients, "both", [REDIS_PORT])])


def _cut_pair(cluster: BedCluster, target: str, chance: random.Random) -> Heal:
    """Two members don't see each other; everybody else does."""
    machine = cluster.nodes[target].machine
    other = chance.choice([each.machine for each in cluster.nodes.values() if each.machine is not machine])
    return _healing([machine.cut([other])])


def _lose_packets(cluster: BedCluster, target: str, chance: random.Random) -> Heal:
    return _healing([cluster.nodes[target].machine.cut(loss_percent=chance.choice((10, 30)))])


def _cut_zookeeper_peers(cluster: BedCluster, target: str, _chance: random.Random) -> Heal:
    """A ZooKeeper server loses its peers, and goes on to hear its clients."""
    machine = cluster.servers.machines[_server(cluster, target)]
    others = [each for each in cluster.servers.machines if each is not machine]
    return _healing([machine.cut(others, "both", [PEER_PORT, ELECTION_PORT])])


def _cut_zookeeper_clients(cluster: BedCluster, target: str, _chance: random.Random) -> Heal:
    """A ZooKeeper server hears its peers alone."""
    machine = cluster.servers.machines[_server(cluster, target)]
    return _healing([machine.cut(None, "both", [CLIENT_PORT])])


# --- machines and orders ----------------------------------------------------------------------------------------------


def _fill_disk(cluster: BedCluster, target: str, _chance: random.Random) -> Heal:
    disk = cluster.nodes[target].disk
    try:
        disk.fill()
    except BedError as error:
        raise NotDone(str(error)) from error
    return disk.empty


def _stall_disk(cluster: BedCluster, target: str, _chance: random.Random) -> Heal:
    disk = cluster.nodes[target].disk
    try:
        disk.stall()
    except BedError as error:
        raise NotDone(str(error)) from error
    return disk.resume


def _jump_clock(cluster: BedCluster, target: str, chance: random.Random) -> Heal:
    clock = cluster.nodes[target].clock
    if not clock.jumps:
        raise NotDone(cluster.why_no_jumps)
    clock.jump(chance.choice(JUMPS_S))
    return lambda: clock.jump(0.0)


def _switch_over(cluster: BedCluster, target: str, _chance: random.Random) -> Heal:
    # Refused or unanswered is an answer, too: something else goes wrong at the same time.
    with suppress(Exception):
        cluster.switchover(target, _SWITCHOVER_LIMIT_S)
    return nothing


def _is_over(process: psutil.Process | None) -> bool:
    return process is None or not process.is_running()


def _restart_all(cluster: BedCluster, _target: str, _chance: random.Random) -> Heal:
    """One agent after the other, as long as all are in sync in between."""
    for member in cluster.nodes.values():
        old = member.part("agent")
        with suppress(Exception):
            cluster.wait_settled(_ROLLING_LIMIT_S, members=cluster.nodes)
            _send(member, "agent", signal.SIGTERM)
            wait_for(partial(_is_over, old), _ROLLING_LIMIT_S, "the old agent has ended")
            continue
        break
    return nothing


KINDS = (
    Kind("redis-kill", _kill("redis"), "victim"),
    Kind("agent-kill", _kill("agent"), "victim"),
    Kind("guard-kill", _kill("guard"), "victim"),
    Kind(STOP_REDIS, _stop("redis"), "victim", 8.0),
    Kind("agent-stop", _stop("agent"), "victim", 8.0),
    Kind(STOP_GUARD, _stop("guard"), "victim", 8.0),
    Kind("agent-term", _terminate, "victim"),
    Kind("agent-upgrade", _upgrade, "victim"),
    Kind(WHOLE_HOST, _freeze_host, "victim", 8.0),
    Kind("host-kill", _power_cut, "victim", 8.0),
    Kind("disk-loss", _lose_disk, "victim", 3.0),
    Kind("disk-full", _fill_disk, "victim", 8.0),
    Kind("disk-stall", _stall_disk, "victim", 6.0),
    Kind("clock-jump", _jump_clock, "member", 10.0),
    Kind("rack-cut", _cut_rack, "member", 10.0),
    Kind("member-cut", _cut_member, "member", 10.0),
    Kind("agent-cut", _cut_agent, "member", 10.0),
    Kind("redis-cut", _cut_redis, "member", 10.0),
    Kind("clients-cut", _cut_clients, "member", 8.0),
    Kind("pair-cut", _cut_pair, "member", 10.0),
    Kind("packet-loss", _lose_packets, "member", 8.0),
    Kind("zk-kill", _kill_zookeeper, "zk", 8.0),
    Kind("zk-stop", _stop_zookeeper, "zk", 8.0),
    Kind("zk-peers-cut", _cut_zookeeper_peers, "zk", 8.0),
    Kind("zk-clients-cut", _cut_zookeeper_clients, "zk", 8.0),
    Kind("switchover", _switch_over, "member"),
    Kind("rolling-restart", _restart_all, "victim"),
)
BY_NAME = {kind.name: kind for kind in KINDS}
_HANGS = {"agent-stop", STOP_GUARD}


def plan(chance: random.Random, members: list[str], servers: list[str], leader: str, *, length_s: float) -> Plan:
    """Some faults that overlap. The leader is hit more often than chance would have it: it is the interesting one.

    Args:
        chance: the round's own.
        members: their names.
        servers: the ZooKeeper servers' names.
        leader: who leads at the moment.
        length_s: all is healed after this time.
    """
    made = Plan(victim=leader if chance.random() < 0.7 else chance.choice(members))
    count = chance.choice((1, 1, 2, 2, 3, 4))
    for kind in chance.sample(KINDS, count):
        if not _goes_with(kind, made.faults):
            continue
        at_s = round(chance.uniform(0.0, length_s * 0.4), 2)
        for_s = round(chance.uniform(0.3, max(0.4, min(kind.longest_s, length_s - at_s))), 2) if kind.longest_s else 0.0
        made.faults.append(Planned(kind, _target(chance, kind, made.victim, members, servers, leader), at_s, for_s))
    made.faults.sort(key=lambda each: each.at_s)
    return made


def _goes_with(kind: Kind, others: list[Planned]) -> bool:
    names = {other.kind.name for other in others}
    victims = [other for other in others if other.kind.targets == "victim"]
    if kind.name == _ROLLING:
        return not victims
    if kind.targets == "victim" and _ROLLING in names:
        return False
    return not (kind.name in _HANGS and names & _HANGS)


def _target(chance: random.Random, kind: Kind, victim: str, members: list[str], servers: list[str], leader: str) -> str:
    if kind.targets == "victim":
        return victim
    if kind.targets == "zk":
        return chance.choice(servers)
    if kind.name == "switchover":
        return chance.choice([name for name in members if name != leader])
    return leader if chance.random() < 0.5 else chance.choice(members)
