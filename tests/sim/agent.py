"""A member of the simulated cluster, and the agent that runs on it: one real core, bound to the simulated adapters."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from redis_agent.core.agent import Core
from redis_agent.core.settings import CoreSettings
from redis_agent.messages import (
    ClockSet,
    CloseSession,
    Command,
    Commit,
    Ensure,
    Event,
    Exit,
    Log,
    OpenSession,
    Probe,
    ProbeRemote,
    Read,
    Ready,
    RedisUp,
    SaveState,
    SessionClosed,
    Started,
    StateSaved,
    StopRequested,
    Tick,
    UpgradeRequested,
)
from redis_agent.state_record import StateRecord
from tests.sim import transcript
from tests.sim.process import Process
from tests.sim.redis import Watcher
from tests.sim.redis_adapter import RedisAdapter
from tests.sim.redis_data import Site, Sites
from tests.sim.world import Network, Timer, Violation
from tests.sim.zk_client import ZkClient, failed
from tests.sim.zookeeper import Ensemble

MAX_TICKS_PER_MS = 50
"""More than that, and the core asks for a deadline that it never gets past."""


SIGKILLED = -9


HARMLESS = (Log, Probe, ProbeRemote, Read, Ready)
"""Commands that change nothing but what the agent knows: a fault at one of them is a fault at any other moment."""

Trap = Callable[["Agent", Command, bool], None]
"""Called at the boundaries of every other command: before it, and behind it (True, False)."""


class Member:
    """A host: what survives the agent's death (Redis and its guard, state file, disk), and the agent that runs now."""

    def __init__(
        self, net: Network, ensemble: Ensemble, sites: Sites, site: Site, watcher: Watcher, settings: CoreSettings
    ) -> None:
        self.net = net
        self.world = net.world
        self.ensemble = ensemble
        self.sites = sites
        self.site = site
        self.watcher = watcher
        self.settings = settings
        self.name = settings.name
        self.record = StateRecord()
        self.older_record = StateRecord()
        self.state_damaged = False
        self.agent: Agent | None = None
        self.lives = 0
        self.attached = 0
        self.on_exit: list[Callable[[Member, int], None]] = []
        self.trap: Trap | None = None

    def start(self) -> None:
        """Init starts the agent, unless it runs."""
        if self.agent is None:
            self.lives += 1
            self.agent = Agent(self)

    # -- signals, and worse -----------------------------------------------------------------------------------------

    def kill_agent(self) -> None:
        """SIGKILL to the agent alone. Its guard fences if it was armed; Redis lives on."""
        agent, self.agent = self.agent, None
        if agent is not None:
            agent.die()

    def guard_kills(self, agent: Agent) -> None:
        """The guard's SIGKILL. Init learns of it."""
        if agent is self.agent:
            self.kill_agent()
            self._exited(SIGKILLED)

    def crash(self) -> None:
        """The host loses its power: everything on it is gone."""
        self.kill_agent()
        if self.site.guard is not None:
            self.site.guard.kill()
        if self.site.redis is not None:
            self.site.redis.kill(at_once=True)
        self.site.clock = self.site.clock.rebooted()

    def freeze(self) -> None:
        """All processes of the host are stopped, as a hypervisor or a dead disk does it."""
        for process in self.processes():
            process.stop()

    def processes(self) -> list[Process]:
        """Those that live, the agent's first."""
        found = [] if self.agent is None else [self.agent.process]
        if self.site.guard is not None:
            found.append(self.site.guard.process)
        if self.site.redis is not None:
            found.append(self.site.redis.process)
        return found

    def cont(self) -> None:
        for process in self.processes():
            process.cont()

    def stop(self) -> None:
        """SIGTERM to the agent."""
        if self.agent is not None:
            self.agent.post(StopRequested())

    def upgrade(self) -> None:
        """SIGUSR2 to the agent."""
        if self.agent is not None:
            self.agent.post(UpgradeRequested())

    # -- the state file ---------------------------------------------------------------------------------------------

    def saved(self, record: StateRecord) -> None:
        self.older_record, self.record = self.record, record

    def lose_state(self) -> None:
        """Lost, or torn, which is the same."""
        self.state_damaged = True
        self.record = StateRecord()

    def age_state(self) -> None:
        """Somebody's backup: the record before the last one."""
        self.state_damaged = True
        self.record = self.older_record

    # -- the end of an agent ----------------------------------------------------------------------------------------

    def leave(self, order: Exit) -> None:
        """The agent ends by itself."""
        agent, self.agent = self.agent, None
        assert agent is not None
        redis = self.site.redis
        # One that was killed, and that the kernel does not let end, is left to it.
        if order.code == 0 and not order.again and redis is not None and redis.process.alive:
            raise Violation("orderly exit", f"{self.name} exits 0 and leaves its Redis behind")
        agent.die()
        if order.again:
            self.world.after(self.world.uniform(0.1, 0.4), self.start)
        else:
            self._exited(order.code)

    def _exited(self, code: int) -> None:
        for hook in self.on_exit:
            hook(self, code)

    @property
    def old_redis_alive(self) -> bool:
        """What the state file names still runs."""
        redis, record = self.site.redis, self.record
        return redis is not None and (redis.pid, redis.started_at) == (record.redis_pid, record.redis_create_time)


class Agent:
    """One life of the agent's process: the queue, the core, the adapters."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.world = member.world
        self.name = member.name
        self.process = Process(self.world, member.name, member.site.name, member.site.clock)
        self.core = Core(member.settings)
        self.redis = RedisAdapter(
            member.net, member.sites, member.site, member.watcher, self.process, self.post, self._guard_kills
        )
        self.ready = False
        self._queue: deque[Event] = deque()
        self._handling = False
        self._timer: Timer | None = None
        self._due = 0.0
        self._ticks: deque[float] = deque(maxlen=MAX_TICKS_PER_MS)
        self._sessions: dict[int, ZkClient] = {}
        self._saved_at = 0.0
        started = Started(
            record=member.record,
            lock_held=True,
            old_redis_alive=member.old_redis_alive,
            wall_offset_s=self.process.clock.wall_offset_s,
        )
        if self.world.tracing:
            self.world.log(self.name, f"starts: {self.process.clock.describe()}")
        self.post(started)

    # -- the queue --------------------------------------------------------------------------------------------------

    def post(self, event: Event) -> None:
        """Adapters put events here; the owner's thread takes them a moment later, in order."""
        self._queue.append(event)
        if not self._handling:
            self._handling = True
            self.process.after(0.00002 + 0.0001 * self.world.rng.random(), self._drain)

    def clock_set(self) -> None:
        """The owner notices it behind the next event."""
        self.post(ClockSet(self.process.clock.wall_offset_s))

    def _drain(self) -> None:
        while self._queue and self.process.alive:
            if self.process.stopped:  # by a fault that was aimed at one of its commands
                self.process.run(self._drain)
                return
            self._step(self._queue.popleft())
        self._handling = False
        self._arm()

    def _arm(self) -> None:
        """Have Tick delivered at the core's next deadline, a little late as threads are."""
        if not self.process.alive:
            return
        deadline = self.core.next_deadline()
        if self._timer is not None:
            if self._timer.fn is not None and self._due == deadline:
                return
            self._timer.cancel()
        if deadline is not None:
            late_s = 1e-6 + 0.0003 * self.world.rng.random()
            when = max(self.process.clock.true(deadline), self.world.now) + late_s
            self._timer, self._due = self.world.at(when, self.process.run, self._tick), deadline

    def _tick(self) -> None:
        self._timer = None
        if self._handling:  # what waits in the queue comes first; the deadline is looked at again behind it
            return
        ticks = self._ticks
        ticks.append(self.world.now)
        if len(ticks) == MAX_TICKS_PER_MS and ticks[-1] - ticks[0] < 0.015:
            raise Violation("progress", f"{self.name}: the core asks for a Tick again and again")
        self._step(Tick())
        self._arm()

    def _step(self, event: Event) -> None:
        world = self.world
        if isinstance(event, RedisUp) and event.attached:
            self.member.attached += 1
        try:
            commands = self.core.step(event, self.process.now)
        except Exception as exc:
            raise Violation("core raised", f"{self.name} on {event}: {type(exc).__name__}: {exc}") from exc
        if world.tracing:
            transcript.step(world, self, event, commands)
        for command in commands:
            self.process.run(self._carry_out, command)

    # -- commands ---------------------------------------------------------------------------------------------------

    def _carry_out(self, command: Command) -> None:
        """Execute it. A trap may strike right before it, or when it is out of our hands."""
        trap = self.member.trap
        if trap is None or isinstance(command, HARMLESS):
            self._execute(command)
            return
        trap(self, command, True)
        if self.process.stopped:
            self.process.run(self._execute, command)  # decided before, and executed when it is continued
        elif self.process.alive:
            self._execute(command)
            trap(self, command, False)

    def _execute(self, command: Command) -> None:
        match command:
            case Log():  # the transcript has it
                if command.event == "transition":
                    step = dict(command.fields)
                    self.world.count("step", f"{step['from']} {step['trigger']}")
            case Read() | Commit() | Ensure():
                session = self._sessions.get(command.session)
                if session is None:
                    self.post(failed(command, "no such session"))
                else:
                    session.execute(command)
            case OpenSession():
                for older in self._sessions.values():
                    older.retire()
                member = self.member
                client = ZkClient(
                    member.net, member.ensemble, self.process, command, member.settings.session_timeout_s, self.post
                )
                self._sessions = {command.session: client}
            case CloseSession():
                closing = self._sessions.pop(command.session, None)
                if closing is None:
                    self.post(SessionClosed(command.session, clean=False))
                else:
                    closing.close(command)
            case SaveState():
                self._save(command)
            case Ready():
                self.ready = True
            case Exit():
                self.member.leave(command)
            case _:
                self.redis.execute(command)

    def _save(self, command: SaveState) -> None:
        """On disk after some milliseconds; a crash before that may leave either record."""
        slow_s = self.member.site.disk.slow_s
        if slow_s:
            slow_s = self.world.uniform(0.0, slow_s)
        self._saved_at = max(self._saved_at, self.world.now + self.world.uniform(0.0005, 0.006) + slow_s)
        self.world.at(self._saved_at, self._durable, command)

    def _durable(self, command: SaveState) -> None:
        if self.process.alive or (self.member.agent is None and self.world.chance(0.5)):
            self.member.saved(command.record)
            self.process.run(self.post, StateSaved(command.request))

    # -- the end ----------------------------------------------------------------------------------------------------

    def _guard_kills(self) -> None:
        self.member.guard_kills(self)

    def die(self) -> None:
        """The process is gone: the kernel closes its sockets. Redis is not its child, but its guard's."""
        self.process.kill()
        if self._timer is not None:
            self._timer.cancel()
        for session in self._sessions.values():
            session.abandon()
        self.redis.close()
