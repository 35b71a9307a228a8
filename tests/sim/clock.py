"""Every host's own clocks: CLOCK_BOOTTIME, which begins anywhere and runs at a rate of its own, and the wall clock.

Time in the simulator is true time (`World.now`): the ensemble's, the checker's and the transcript's. What an agent, a
guard or a Redis reads, and how long it waits, is by the clock of its host.

**What a rate may be.** A lease of a session that lasts T seconds ends T - b after its proof was sent (b: the fence
budget), measured by the leader's clock. The guard's deadline lies b/2 behind that, and 0.05 s later it kills
Redis for want of an answer. The session ends T after the proof arrived, or later, measured by ZooKeeper's leader. So a
leader whose clock is slower by a share s of ZooKeeper's is fenced in time as long as ::

    (T - b)              / (1 - s) < T     by itself, softly:   s < 4.1 %
    (T - b + 0.1)        / (1 - s) < T     by itself, hard:     s < 2.5 %
    (T - b / 2 + 0.05)   / (1 - s) < T     by its guard, hard:  s < 1.25 %

with the defaults T = 6 s and b = 0.25 s; and all that an agent's threads and a local socket take goes off that: about
1 % is what is assumed. It is that tight at the beginning of a session, while its creation is the only proof. Later
there is more room: within the 5/8 of a tick behind the answer to the heartbeat that counts, ZooKeeper's leader has
asked for touches an eighth of a tick behind its sending, or again behind a further heartbeat (0.25 s: 5 %). And where
followers are attached the old primary lacks them when they have frozen, whatever any clock says.

A *fast* clock ends the lease earlier. That 5/8 of a tick by the agent's clock are half a tick by that of ZooKeeper's
leader bears a quarter. Nothing that is confirmed by WAIT depends on any clock.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random

    from tests.sim.world import World

WALL_OFFSET_S = 1.7e9
"""The true wall clock minus true time."""

ORDINARY_RATE = 2e-4
"""How far from 1 the rate of an ordinary quartz is, at most."""

ASSUMED_RATE = 0.01
"""The same, as far as the fence budget bears it."""


class Clock:
    """Of one host between two boots. Without anything drawn it shows true time."""

    __slots__ = ("offset_s", "rate", "wall_offset_s", "world")

    def __init__(self, world: World) -> None:
        self.world = world
        self.offset_s = 0.0
        self.rate = 1.0
        self.wall_offset_s = WALL_OFFSET_S

    def draw(self, rng: Random, rate: float) -> None:
        """A boot some time ago, a rate that is at most ``rate`` away from 1, a wall clock that is set about right."""
        self.offset_s = rng.uniform(0.0, 1e6)
        self.rate = 1.0 + rng.uniform(-rate, rate)
        self.wall_offset_s = WALL_OFFSET_S - self.offset_s + rng.uniform(-0.5, 0.5)

    def set_rate(self, rate: float) -> None:
        """From now on it runs at another rate; it does not jump."""
        self.offset_s += (self.rate - rate) * self.world.now
        self.rate = rate

    def rebooted(self) -> Clock:
        """The host's after another boot: CLOCK_BOOTTIME begins again, the rate and the wall clock are as before."""
        clock = Clock(self.world)
        clock.rate = self.rate
        clock.offset_s = 10.0 - self.rate * self.world.now
        clock.wall_offset_s = self.wall - clock.now
        return clock

    @property
    def now(self) -> float:
        """CLOCK_BOOTTIME, in seconds."""
        return self.offset_s + self.rate * self.world.now

    @property
    def wall(self) -> float:
        """CLOCK_REALTIME: what it was set to, and on at the same rate."""
        return self.now + self.wall_offset_s

    def true(self, local: float) -> float:
        """The true time at which this clock shows ``local``."""
        return (local - self.offset_s) / self.rate

    def describe(self) -> str:
        return f"CLOCK_BOOTTIME {self.now:.1f} s, {(self.rate - 1.0) * 1e6:+.0f} ppm"
