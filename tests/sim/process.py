"""A process of the simulated host: it runs, is stopped by SIGSTOP and continued, and dies."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappush
from typing import Any

from tests.sim.clock import Clock
from tests.sim.world import World

Message = tuple[Callable[..., Any], tuple[Any, ...]]
"""What happens in a process, as a call."""


class Process:
    """One life of a process. What happens inside it waits while it is stopped and never happens once it is dead.

    It reads ``clock``, its host's, and waits by it; without one it goes by true time. ``reads``: in which order what
    waited is taken up when it is continued; without it, as it came.
    """

    __slots__ = (
        "_waiting",
        "alive",
        "clock",
        "host",
        "name",
        "reads",
        "running_since",
        "stopped",
        "was_stopped",
        "world",
    )

    def __init__(self, world: World, name: str, host: str, clock: Clock | None = None) -> None:
        self.world = world
        self.clock = clock or Clock(world)
        self.name = name
        self.host = host
        self.alive = True
        self.stopped = False
        self.running_since = world.now
        self.was_stopped = False
        self.reads: Callable[[list[Message]], list[Message]] | None = None
        self._waiting: list[Message] = []

    @property
    def now(self) -> float:
        """CLOCK_BOOTTIME of its host."""
        return self.clock.now

    def run(self, fn: Callable[..., Any], *args: Any) -> None:
        """Do ``fn(*args)`` as part of this process."""
        if self.stopped:
            self._waiting.append((fn, args))
        elif self.alive:
            fn(*args)

    def after(self, delay_s: float, fn: Callable[..., Any], *args: Any) -> None:
        """Do ``fn(*args)`` as part of this process, later."""
        world = self.world
        world.scheduled += 1
        heappush(world.heap, [world.now + delay_s / self.clock.rate, world.scheduled, self.run, (fn, *args)])

    def stop(self) -> None:
        self.stopped = self.alive
        self.was_stopped = True

    def cont(self) -> None:
        """Continue: what waited happens now, in the order in which it came, or in which it is read."""
        if self.stopped:
            self.stopped = False
            self.running_since = self.world.now
            waiting, self._waiting = self._waiting, []
            if self.reads is not None:
                waiting = self.reads(waiting)
            for number, (fn, args) in enumerate(waiting):
                if self.stopped:  # stopped again by what it did
                    self._waiting.extend(waiting[number:])
                    return
                self.run(fn, *args)

    def kill(self) -> None:
        self.alive = False
        self.stopped = False
        self._waiting.clear()
