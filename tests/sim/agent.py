"""A member of the simulated cluster, and the agent that runs on it: one real core, bound to the simulated adapters."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from redis_agent.core.agent import Core
from redis_agent.core.settings import CoreSettings
from redis_agent.messages import (
    CatchUp,
    CloseSession,
    Command,
    Commit,
    Ensure,
    Event,
    Exit,
    Log,
    OpenSession,
    ProbeRemote,
    Read,
    Ready,
    SaveState,
    SessionClosed,
    Started,
    StateRecord,
    StateSaved,
    StopRequested,
    Tick,
)
from tests.sim import transcript
from tests.sim.process import Process
from tests.sim.redis import Watcher
from tests.sim.redis_adapter import RedisAdapter
from tests.sim.redis_data import Site, Sites
from tests.sim.world import Network, Timer, Violation
from tests.sim.zk_client import ZkClient, failed
from tests.sim.zookeeper import Ensemble

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_TICKS_PER_MS = 50
"""More than that, and the core asks for a deadline that it never gets past."""


class Member:
    """A host: what survives the agent's death (its state file, Redis's disk), and the agent that runs now."""

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
        self.agent: Agent | None = None
        self.lives = 0
        self.on_exit: list[Callable[[Member, int], None]] = []

    def start(self) -> None:
        """Init starts the agent, unless it runs."""
        if self.agent is None:
            self.lives += 1
            self.agent = Agent(self)

    def kill(self) -> None:
        """SIGKILL to the agent. Its Redis dies with it (PDEATHSIG)."""
        agent, self.agent = self.agent, None
        if agent is not None:
            agent.die()

    def stop(self) -> None:
        """SIGTERM to the agent."""
        if self.agent is not None:
            self.agent.post(StopRequested())

    def exited(self, code: int) -> None:
        agent, self.agent = self.agent, None
        if agent is not None:
            if code == 0 and self.site.redis is not None:
                raise Violation("orderly exit", f"{self.name} exits 0 and leaves its Redis behind")
            agent.die()
        for hook in self.on_exit:
            hook(self, code)


class Agent:
    """One life of the agent's process: the queue, the core, the adapters."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.world = member.world
        self.name = member.name
        self.process = Process(self.world, member.name, member.site.name)
        self.core = Core(member.settings)
        self.redis = RedisAdapter(member.net, member.sites, member.site, member.watcher, self.process, self.post)
        self.ready = False
        self._queue: deque[Event] = deque()
        self._handling = False
        self._timer: Timer | None = None
        self._ticks: deque[float] = deque(maxlen=MAX_TICKS_PER_MS)
        self._sessions: dict[int, ZkClient] = {}
        self._saved_at = 0.0
        self.post(Started(record=member.record, lock_held=True, old_redis_alive=False, wall_offset_s=1.7e9))

    # -- the queue --------------------------------------------------------------------------------------------------

    def post(self, event: Event) -> None:
        """Adapters put events here; the owner's thread takes them a moment later, in order."""
        self._queue.append(event)
        if not self._handling:
            self._handling = True
            self.process.after(0.00002 + 0.0001 * self.world.rng.random(), self._drain)

    def _drain(self) -> None:
        while self._queue and self.process.alive:
            self._step(self._queue.popleft())
        self._handling = False
        self._arm()

    def _arm(self) -> None:
        """Have Tick delivered at the core's next deadline, a little late as threads are."""
        if not self.process.alive:
            return
        deadline = self.core.next_deadline()
        if self._timer is not None:
            if self._timer.fn is not None and self._timer.when == deadline:
                return
            self._timer.cancel()
        if deadline is not None:
            late_s = 0.0003 * self.world.rng.random()
            self._timer = self.world.at(max(deadline, self.world.now) + late_s, self.process.run, self._tick)

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
        try:
            commands = self.core.step(event, world.now)
        except Exception as exc:
            raise Violation("core raised", f"{self.name} on {event}: {type(exc).__name__}: {exc}") from exc
        if world.tracing:
            transcript.step(world, self, event, commands)
        for command in commands:
            if not self.process.alive:
                return
            self._execute(command)

    # -- commands ---------------------------------------------------------------------------------------------------

    def _execute(self, command: Command) -> None:
        match command:
            case Log():
                pass  # the transcript has it
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
                self.member.exited(command.code)
            case ProbeRemote() | CatchUp():
                self.redis.execute(command)
            case _:
                self.redis.execute(command)

    def _save(self, command: SaveState) -> None:
        """On disk after some milliseconds; a crash before that may leave either record."""
        self._saved_at = max(self._saved_at, self.world.now + self.world.uniform(0.0005, 0.006))
        self.world.at(self._saved_at, self._durable, command)

    def _durable(self, command: SaveState) -> None:
        if self.process.alive or (self.member.agent is None and self.world.chance(0.5)):
            self.member.record = command.record
            self.process.run(self.post, StateSaved(command.request))

    # -- the end ----------------------------------------------------------------------------------------------------

    def die(self) -> None:
        """The process is gone: the kernel closes its sockets and kills its child."""
        self.process.kill()
        if self._timer is not None:
            self._timer.cancel()
        for session in self._sessions.values():
            session.abandon()
        redis = self.member.site.redis
        if redis is not None:
            redis.kill()
