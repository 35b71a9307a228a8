"""Breaks things, and mends them. Which kinds of fault occur, and how often, differs from seed to seed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

from redis_agent.znodes import LeaderPhase, decode_leader
from tests.sim.aimed import Aimed
from tests.sim.faults_aimed import AimedFaults

if TYPE_CHECKING:
    from tests.sim.agent import Member
    from tests.sim.cluster import Cluster
    from tests.sim.zk_tree import Txn

EXACT_S = 0.012
"""Faults that are aimed at a handover strike within this time of one of its steps."""

PATIENCE_S = 15.0
"""How long after healing a person looks at it."""

UNPLACED = re.compile(r"the data set of ([a-z, ]+) is of unknown lineage")
OWN_UNPLACED = "this member's data set is of unknown lineage"


class Nemesis(Aimed, AimedFaults):
    """Draws faults. ``only``: of these kinds alone."""

    def __init__(self, cluster: Cluster, *, long_pauses: bool = True, only: tuple[str, ...] = ()) -> None:
        super().__init__(cluster, long_pauses=long_pauses)
        rng = self.world.rng
        kinds: dict[str, Callable[[], None]] = {
            "crash redis": self.crash_redis,
            "crash leader's redis": self.crash_leader_redis,
            "crash agent": self.crash_agent,
            "crash all agents": self.crash_all_agents,
            "crash host": self.crash_host,
            "power loss": self.power_loss,
            "cut zookeeper": self.cut_zookeeper,
            "cut zookeeper's replies": self.cut_replies,
            "isolate host": self.isolate_host,
            "partition": self.partition,
            "hang redis": self.hang_redis,
            "redis hangs in the kernel": self.hang_in_kernel,
            "pause agent": self.pause_agent,
            "kill guard": self.kill_guard,
            "stop guard": self.stop_guard,
            "freeze host": self.freeze_host,
            "freeze some": self.freeze_some,
            "slow": self.slow,
            "stop agent": self.stop_agent,
            "upgrade agent": self.upgrade_agent,
            "rolling restart": self.rolling_restart,
            "switchover": self.order_switchover,
            "sabotaged handover": self.sabotage,
            "state file": self.lose_state,
            "disk full": self.disk_full,
            "delete leader": self.delete_leader,
            "zookeeper server dies": self.crash_server,
            "zookeeper server cut off": self.cut_server,
            "zookeeper down": self.zookeeper_down,
            "zookeeper leader dies": self.crash_zookeeper_leader,
            "zookeeper leader isolated": self.isolate_zookeeper_leader,
            "zookeeper link cut": self.cut_server_link,
            "zookeeper partition": self.partition_zookeeper,
            "zookeeper server paused": self.pause_server,
            "zookeeper disks stall": self.stall_disks,
            "zookeeper restart": self.restart_zookeeper,
            "load fails": self.load_fails,
            "hand": self.meddle,
            **self.aimed(),
            "one way": self.cut_one_way,
            "held messages": self.hold_messages,
            "wall clock": self.jump_clock,
            "slow disk": self.slow_disk,
            "several": self.several,
            "at a command": self.strike_at_command,
        }
        self.all_kinds = kinds
        chosen = {name: fn for name, fn in kinds.items() if rng.random() < 0.4}
        if only:
            chosen = {name: kinds[name] for name in only}
        self.kinds = chosen or kinds
        self.weights = [rng.choice((1, 1, 2, 4)) for _ in self.kinds]
        self.mean_s = rng.choice((0.5, 1.5, 3.0, 6.0))
        self.traps = 0
        for member in cluster.members.values():
            member.on_exit.append(self._exited)
        cluster.ensemble.on_commit.append(self._committed)

    def start(self) -> None:
        self.world.after(self.world.rng.expovariate(1 / self.mean_s), self._strike)

    def _strike(self) -> None:
        if self.over:
            return
        name = self.world.rng.choices(list(self.kinds), self.weights)[0]
        self.world.count("fault", name)
        self.kinds[name]()
        self.start()

    def heal(self) -> None:
        """Stop, and mend everything."""
        self.over = True
        self._log("heals everything")
        self.net.heal_all()
        self.cluster.ensemble.start()
        for member in self.cluster.members.values():
            member.trap = None
            self.mend_disk(member)
            member.cont()
            redis = member.site.redis
            if redis is not None:
                redis.dies_late_s = 0.0
                if not redis.process.alive:
                    redis.kill(at_once=True)
                redis.load_fails = False
                redis.fall_ill("")
            member.start()
        self.world.after(PATIENCE_S, self._help)

    def _help(self) -> None:
        """A person reads what the agents complain of: data that nobody can place are to be thrown away by hand."""
        for member in self.cluster.members.values():
            reason = member.agent.core.snapshot().reason if member.agent is not None else ""
            found = UNPLACED.search(reason)
            names = found[1].split(", ") if found else [member.name] if OWN_UNPLACED in reason else []
            for name in names:
                self._give_up_data(self.cluster.members[name])
        self.world.after(PATIENCE_S, self._help)

    def _give_up_data(self, member: Member) -> None:
        """Only where it is known why: the state file was broken."""
        redis = member.site.redis
        if member.state_damaged and redis is not None and redis.data:
            self._log(f"somebody throws away the data set of {member.name}")
            redis.kill()
            member.site.disk.wipe()

    def _exited(self, member: Member, code: int) -> None:
        """Init starts an agent again that ended by itself, that was stopped, or that its guard killed."""
        self._log(f"{member.name} exited with {code}")
        self.busy.pop(member.name, None)
        self.world.after(self.world.uniform(0.1, 3.0), self._restart, member)

    # -- handovers that are interrupted -----------------------------------------------------------------------------

    def sabotage(self) -> None:
        """Have the leader hand over, and strike at one of its steps."""
        leader = self.cluster.leader()
        if leader is None or leader.phase != LeaderPhase.SERVING:
            return
        member = self.cluster.members[leader.name]
        dice = self.world.rng.random()
        if dice < 0.5:
            self.order_switchover()
        elif dice < 0.8:
            self.stop_agent(member)
        else:
            self.upgrade_agent(member)
        self.traps = self.world.rng.choice((1, 1, 2))
        if self.world.chance(0.3):
            self.world.after(self.world.uniform(0.0, 0.03), self._spring, "while it begins")

    def _committed(self, txn: Txn) -> None:
        """The steps of a handover show in ``leader``."""
        if not self.traps:
            return
        for change in txn.changes:
            if change.path == self.cluster.leader_path and change.new is not None:
                leader = decode_leader(change.new.data)
                steps = leader.phase == LeaderPhase.HANDING_OVER or leader.by_handover
                if steps and self.world.chance(0.6):
                    after_s = self.world.uniform(0.0, EXACT_S)
                    self.world.after(after_s, self._spring, f"after {leader.phase} by {leader.name}")

    def _spring(self, when: str) -> None:
        if self.over or not self.traps:
            return
        self.traps -= 1
        self._log(f"strikes {when}")
        self.world.count("fault", "(at a step of a handover)")
        leader = self.cluster.leader()
        names = [leader.name, leader.successor] if leader is not None else []
        involved = [self.cluster.members[name] for name in names if name]
        member = self.world.rng.choice([*involved, *involved, *self.cluster.members.values()])
        self.strike(member)
