"""The simulated guard: a process of its own, Redis's parent, told by the agent until when Redis may serve.

Single-threaded, as the real one: it takes what waits in its queue before it acts on a deadline, and hears nothing while
it waits for Redis's answer to the fence.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from tests.sim.process import Process
from tests.sim.redis import SimRedis
from tests.sim.world import Network, Pipe, Violation

FENCE_ANSWER_S = 0.05
"""Redis has to confirm the guard's fence within this, or is killed."""


class Link:
    """The local connection between one life of the agent and a guard. ``kill_agent`` is SIGKILL, by pidfd."""

    __slots__ = ("agent", "down", "kill_agent", "up")

    def __init__(self, net: Network, agent: Process, kill_agent: Callable[[], None]) -> None:
        self.agent = agent
        self.kill_agent = kill_agent
        self.up = Pipe(net, agent.host, agent.host)
        self.down = Pipe(net, agent.host, agent.host)


class Guard:
    """One process, for as long as its Redis lives. ``until``: armed, and up to when; None: not armed."""

    def __init__(self, net: Network, redis: SimRedis) -> None:
        self.net = net
        self.world = net.world
        self.redis = redis
        self.process = Process(self.world, f"guard-{redis.site.name}", redis.host, redis.site.clock)
        self.link: Link | None = None
        self.until: float | None = None
        self._generation = 0
        self._inbox: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._alarm_at: float | None = None
        self._firing = False
        redis.site.guard = self
        redis.on_exit.append(self._redis_gone)

    @property
    def watches(self) -> bool:
        """It is armed, or about to fence."""
        return self.until is not None or self._firing

    def _log(self, text: str) -> None:
        if self.world.tracing:
            self.world.log(f"{self.redis.site.name}.guard", text)

    # -- the agent's side -------------------------------------------------------------------------------------------

    def new_generation(self) -> int:
        """Number of the next role connection to this Redis: a kill by name takes all of lower numbers."""
        self._generation += 1
        return self._generation

    def connect(self, link: Link, answer: Callable[[], None]) -> None:
        """The agent connects and says hello; ``answer()`` happens in the agent."""
        link.up.send(self._deliver, self._hello, link, answer)

    def arm(self, link: Link, until: float | None, answer: Callable[[], None]) -> None:
        """Have it armed until then, or disarmed (None); ``answer()`` happens in the agent."""
        link.up.send(self._deliver, self._set, link, until, answer)

    def hang_up(self, link: Link) -> None:
        """The agent's end of the connection is closed, by the agent or by its death."""
        link.up.send(self._deliver, self._end, link)

    # -- its own side -----------------------------------------------------------------------------------------------

    def _deliver(self, fn: Callable[..., None], *args: Any) -> None:
        """The kernel has it, also while the guard is stopped."""
        if self.process.alive:
            self._inbox.append((fn, args))
            self.process.run(self._wake)

    def _wake(self) -> None:
        while self._inbox and not self._firing:
            fn, args = self._inbox.popleft()
            fn(*args)
        if self.until is not None and not self._firing and self.process.now >= self.until:
            self._fire("the deadline has passed", late=True)

    def _hello(self, link: Link, answer: Callable[[], None]) -> None:
        if self.link is not None and not self.link.agent.alive:
            self._end(self.link)  # its pidfd tells of its death before its connection does
        if self._firing:
            self._inbox.appendleft((self._hello, (link, answer)))
            return
        self.link = link
        link.down.send(link.agent.run, answer)

    def _set(self, link: Link, until: float | None, answer: Callable[[], None]) -> None:
        if link is not self.link:
            return
        redis = self.redis
        if until is None and self.until is not None and redis.process.alive and redis.is_primary and redis.open:
            raise Violation("guard", f"{redis.site.name}: disarmed while its Redis accepts writes")
        self.until = until
        link.down.send(link.agent.run, answer)
        if until is not None:
            redis.watcher.armed(redis, until)
        if until is not None and (self._alarm_at is None or until < self._alarm_at):
            self._set_alarm(until)

    def _end(self, link: Link) -> None:
        if link is self.link:
            self.link = None
            if self.until is not None:
                self._fire("the agent is dead", late=False)

    def _set_alarm(self, when: float) -> None:
        self._alarm_at = when
        self.world.at(
            self.process.clock.true(when) + self.world.uniform(1e-6, 0.001), self.process.run, self._alarm, when
        )

    def _alarm(self, when: float) -> None:
        if when != self._alarm_at:
            return
        self._alarm_at = None
        self._wake()
        if self.until is not None and not self._firing:
            self._set_alarm(self.until)

    # -- the fence --------------------------------------------------------------------------------------------------

    def _fire(self, why: str, *, late: bool) -> None:
        self._log(f"FENCES: {why}")
        self.redis.watcher.guard_fires(self.redis)
        self.until = None
        self._firing = True
        redis, link = self.redis, self.link
        local_s = self.net.delay(redis.host, redis.host)
        redis.process.after(local_s, redis.obey, self._at_redis, self._generation)
        self.process.after(FENCE_ANSWER_S, self._no_answer)
        if late and link is not None:
            self.link = None
            link.kill_agent()

    def _at_redis(self, generation: int) -> None:
        """First the dead agent's role connection, then the fence: what it left in its socket is never executed."""
        redis = self.redis
        redis.role_generation = max(redis.role_generation, generation + 1)
        redis.fence()
        self.process.after(self.net.delay(redis.host, redis.host), self._over)

    def _over(self) -> None:
        if self._firing:
            self._firing = False
            self._wake()

    def _no_answer(self) -> None:
        if self._firing:
            self._log("no answer from Redis: kills it")
            self.redis.kill()
            self._over()

    # -- ends -------------------------------------------------------------------------------------------------------

    def _redis_gone(self, redis: SimRedis) -> None:
        """It tells the agent, which takes its time if the guard is stopped, and exits."""
        self.until = None
        if redis.site.guard is self:
            redis.site.guard = None
        if not self.process.stopped:
            self.process.kill()

    def kill(self) -> None:
        """SIGKILL. Redis dies with it (PDEATHSIG)."""
        self.process.kill()
        self.redis.kill()
