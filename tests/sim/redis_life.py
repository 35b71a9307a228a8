"""The simulated Redis adapter's care for the process: launched under a guard, or found and attached to; its end."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from redis_agent.messages import (
    ArmGuard,
    DisarmGuard,
    Event,
    GuardDone,
    GuardFailed,
    KillRedis,
    LeaveRedis,
    ProbeError,
    RedisAwaited,
    RedisDied,
    RedisLeft,
    RedisUp,
    StartRedis,
    StopRedis,
)
from redis_agent.replication import RedisInfo
from tests.sim.guard import Guard, Link
from tests.sim.process import Process
from tests.sim.redis import SimRedis, Watcher
from tests.sim.redis_data import Site, Sites
from tests.sim.world import Network

if TYPE_CHECKING:
    from collections.abc import Iterable

HELLO_LIMIT_S = 0.5
"""A guard that does not answer a new life's hello is killed, and its Redis with it."""

ATTEMPT_S = 1.0
"""How long one attempt to attach waits for an answer."""

GUARD_REPORT_S = 0.1
"""How long a guard has to tell of Redis's death, which the agent sees by itself."""


PORT_AGAIN_S = 0.1
"""While a killed server still has the port, the launch is tried again."""


class RedisLife:
    """The half of the adapter that owns the process. ``kill_agent`` is what the guard's SIGKILL does."""

    def __init__(
        self,
        net: Network,
        sites: Sites,
        site: Site,
        watcher: Watcher,
        process: Process,
        post: Callable[[Event], None],
        kill_agent: Callable[[], None] | None = None,
    ) -> None:
        self.net = net
        self.world = net.world
        self.sites = sites
        self.site = site
        self.watcher = watcher
        self.process = process
        self.post = post
        self.kill_agent = kill_agent or process.kill
        self.redis: SimRedis | None = None
        self.guard: Guard | None = None
        self.incarnation = 0
        self.ordered = False
        self.up_since: float | None = None
        self.role_generation = 0
        self._link: Link | None = None
        self._first = True
        self._attaching: StartRedis | None = None
        self._guard_requests: dict[int, ArmGuard | DisarmGuard] = {}

    @property
    def is_up(self) -> bool:
        return self.up_since is not None

    def local_s(self) -> float:
        """One way between two processes of the host."""
        return self.net.delay(self.site.name, self.site.name)

    def of(self, incarnation: int) -> SimRedis | None:
        return self.redis if incarnation == self.incarnation else None

    # -- the beginning ----------------------------------------------------------------------------------------------

    def start(self, command: StartRedis) -> None:
        self.process.after(self.world.uniform(0.002, 0.010), self._begin, command)

    def _begin(self, command: StartRedis) -> None:
        guard = self.site.guard
        first, self._first = self._first, False
        if first and guard is not None:
            self._attaching = command
            self._link = link = Link(self.net, self.process, self.kill_agent)
            self.guard = guard
            guard.connect(link, partial(self._greeted, command, guard))
            self.process.after(HELLO_LIMIT_S, self._not_greeted, command, guard)
        else:
            self._launch(command)

    def _launch(self, command: StartRedis) -> None:
        old = self.site.redis
        if old is not None:
            assert not old.process.alive, "two servers on one data directory"
            self.process.after(PORT_AGAIN_S, self._launch, command)
            return
        self._attaching = None
        pid = self.world.rng.randrange(1000, 30000)
        redis = SimRedis(self.net, self.sites, self.site, self.watcher, pid)
        guard = Guard(self.net, redis)
        guard.link = self._link = Link(self.net, self.process, self.kill_agent)
        self._adopt(command, guard)
        if self.world.tracing:
            self.world.log(
                f"{self.site.name}.redis", f"started: replid={redis.replid[:6]} offset={redis.offset} {redis.loading=}"
            )
        redis.process.after(self.world.uniform(0.003, 0.02), self._answers, redis)

    def _adopt(self, command: StartRedis, guard: Guard) -> None:
        self.guard, self.redis = guard, guard.redis
        guard.redis.on_exit.append(self._exited)
        self.incarnation = command.incarnation
        self.ordered = False
        self.up_since = None
        self.role_generation = guard.new_generation()
        self.begin_roles()

    def _answers(self, redis: SimRedis) -> None:
        self.process.run(self._up, redis, redis.info(), False)

    def _up(self, redis: SimRedis, info: RedisInfo, attached: bool) -> None:
        if redis is self.redis and redis.process.alive:
            self._attaching = None
            self.up_since = self.world.now
            self.post(RedisUp(self.incarnation, redis.pid, redis.started_at, info, attached))

    # -- attaching --------------------------------------------------------------------------------------------------

    def _not_greeted(self, command: StartRedis, guard: Guard) -> None:
        if self._attaching is command and self.redis is None:
            guard.kill()
            self._launch(command)

    def _greeted(self, command: StartRedis, guard: Guard) -> None:
        if self._attaching is not command or self.redis is not None:
            return
        redis = guard.redis
        if redis.ended:
            self._launch(command)
            return
        self._adopt(command, guard)
        redis.process.after(self.local_s(), redis.obey, self._take_over, redis, self.role_generation)
        self.process.after(ATTEMPT_S, self._attempt_failed, redis)

    def _take_over(self, redis: SimRedis, generation: int) -> None:
        """The last life's connections are closed by name, and the fence is up, before anything is read."""
        redis.role_generation = generation
        redis.fence()
        if self.world.tracing:
            self.world.log(f"{self.site.name}.redis", "fenced by the next life, which attaches")
        self.process.after(self.local_s(), self._up, redis, redis.info(), True)

    def _attempt_failed(self, redis: SimRedis) -> None:
        """No answer: but one that is only paused says that it is awake."""
        if redis is not self.redis or self.is_up or not redis.process.alive:
            return
        if redis.silent and not redis.process.stopped:
            self.post(RedisAwaited(self.incarnation, ProbeError.PAUSED))
        self.process.after(ATTEMPT_S, self._attempt_failed, redis)

    # -- the guard --------------------------------------------------------------------------------------------------

    def tell_guard(self, command: ArmGuard | DisarmGuard) -> None:
        if self.of(command.incarnation) is None or self.guard is None or self._link is None:
            failed = GuardFailed(command.incarnation, command.request, "there is no guard")
            self.process.after(0.0, self.post, failed)
            return
        self._guard_requests[command.request] = command
        until = command.until if isinstance(command, ArmGuard) else None
        self.guard.arm(self._link, until, partial(self._guard_done, command))

    def _guard_done(self, command: ArmGuard | DisarmGuard) -> None:
        if self._guard_requests.pop(command.request, None) is not None:
            self.post(GuardDone(command.incarnation, command.request))

    # -- the end ----------------------------------------------------------------------------------------------------

    def _exited(self, redis: SimRedis) -> None:
        """The guard tells; if it is stopped, the agent sees the death all the same, kills it and goes on."""
        guard = self.guard
        if guard is not None and guard.process.stopped:
            self.world.after(GUARD_REPORT_S, guard.process.kill)
            self.world.after(GUARD_REPORT_S + 0.001, self.process.run, self._died, redis)
        else:
            self.world.after(self.world.uniform(0.0002, 0.001), self.process.run, self._died, redis)

    def _died(self, redis: SimRedis) -> None:
        if redis is not self.redis:
            return
        # One that is being attached to had come up in the last life.
        was_up = self.is_up or self._attaching is not None
        self._attaching = None
        self.redis, self.guard, self._link, self.up_since = None, None, None, None
        event = RedisDied(self.incarnation, redis.status, "", was_up=was_up, ordered=self.ordered)
        failures = [*self.fail_roles("it is dead"), *self._fail_guard()]
        news: list[Event] = [event, *failures] if self.world.chance(0.5) else [*failures, event]
        for each in news:  # two threads learn of it, in any order
            self.post(each)

    def _fail_guard(self) -> Iterable[Event]:
        waiting, self._guard_requests = self._guard_requests, {}
        return [GuardFailed(each.incarnation, each.request, "the guard is gone") for each in waiting.values()]

    def stop(self, command: StopRedis) -> None:
        redis = self.of(command.incarnation)
        if redis is not None:
            self.ordered = True
            redis.process.after(self.world.uniform(0.002, 0.05), redis.shut_down)
            self.process.after(command.limit_s, redis.kill)

    def kill(self, command: KillRedis) -> None:
        redis = self.of(command.incarnation)
        if redis is not None:
            redis.kill()

    def leave(self, command: LeaveRedis) -> None:
        """Let go: what is on its way to Redis still arrives."""
        if self.of(command.incarnation) is not None:
            news = [*self.fail_roles("let go"), *self._fail_guard()]
            self.close()
            self.redis = self.guard = None
            for each in news:
                self.process.after(0.0, self.post, each)
        self.process.after(self.world.uniform(0.0001, 0.001), self.post, RedisLeft(command.incarnation))

    def close(self) -> None:
        """The agent's ends of the connections are closed, by itself or by its death."""
        if self.guard is not None and self._link is not None:
            self.guard.hang_up(self._link)
        self._link = None

    # -- the other half ---------------------------------------------------------------------------------------------

    def begin_roles(self) -> None:
        """A new process: no role command was sent yet."""
        raise NotImplementedError

    def fail_roles(self, why: str) -> list[Event]:
        """What role commands have no answer yet: theirs now."""
        raise NotImplementedError
