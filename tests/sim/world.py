"""Virtual time, and a network that delays, holds back and never reorders within one connection.

Everything that happens is an entry of one heap, ordered by time and then by the order in which it was scheduled, and
every choice is drawn from one ``random.Random``: the same seed gives the same run, event by event.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from typing import Any

START_S = 100.0
"""Virtual time begins here."""

Link = tuple[str, str]
"""(from host, to host)."""


def both(ones: Iterable[str], others: Iterable[str]) -> list[Link]:
    """Both directions between any of these and any of those."""
    there = list(others)
    return [link for one in ones for other in there for link in ((one, other), (other, one))]


class Violation(Exception):
    """An invariant does not hold. ``rule`` is its short name, the rest is for people."""

    def __init__(self, rule: str, detail: str) -> None:
        super().__init__(f"{rule}: {detail}")
        self.rule = rule
        self.detail = detail


class Timer(list[Any]):
    """Something that will happen, unless it is cancelled."""

    __slots__ = ()

    @property
    def when(self) -> float:
        when: float = self[0]
        return when

    @property
    def fn(self) -> Callable[..., Any] | None:
        """None: it was cancelled."""
        fn: Callable[..., Any] | None = self[2]
        return fn

    def cancel(self) -> None:
        self[2] = None
        self[3] = ()


class World:
    """The clock (CLOCK_BOOTTIME, in seconds), the heap of what will happen, the dice, and the transcript."""

    def __init__(self, seed: int, *, trace: bool = False) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.now = START_S
        self.events = 0
        self.counts: Counter[tuple[str, str]] = Counter()
        """What happened how often, by kind (fault, step, invariant) and name: shows what a run has reached."""
        self.tracing = trace
        self.lines: list[str] = []
        self._logged_at = START_S
        self.heap: list[list[Any]] = []
        """``[when, number, fn, args]``: lists, since millions are made, and are compared without a call into Python."""
        self.scheduled = 0

    def at(self, when: float, fn: Callable[..., Any], *args: Any) -> Timer:
        """Call ``fn(*args)`` at ``when``, or at once (as an event of its own) if that has passed."""
        self.scheduled += 1
        timer = Timer((max(when, self.now), self.scheduled, fn, args))
        heappush(self.heap, timer)
        return timer

    def after(self, delay_s: float, fn: Callable[..., Any], *args: Any) -> None:
        self.scheduled += 1
        heappush(self.heap, [self.now + delay_s, self.scheduled, fn, args])

    def run(self, until: float, stop: Callable[[], bool] | None = None) -> bool:
        """Let things happen until the time ``until``, or until ``stop()`` holds (then True is returned)."""
        heap = self.heap
        while heap and heap[0][0] <= until:
            when, _, fn, args = heappop(heap)
            if fn is None:
                continue
            self.now = when
            self.events += 1
            fn(*args)
            if stop is not None and stop():
                return True
        self.now = max(self.now, until)
        return False

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * self.rng.random()

    def count(self, kind: str, name: str) -> None:
        self.counts[kind, name] += 1

    def log(self, who: str, text: str) -> None:
        """One line of the transcript. Callers look at ``tracing`` first: formatting costs more than simulating."""
        passed_s = self.now - self._logged_at
        since = f"+{passed_s:.5f}" if passed_s else ""
        self._logged_at = self.now
        self.lines.append(f"{self.now:10.5f} {since:>10}  {who:<8} {text}")


class Network:
    """Who reaches whom, one direction at a time, and how long a message takes.

    A cut holds messages back, as TCP retransmits: they arrive once the cut is healed, if anybody still listens on
    that connection. Connections are not broken by a cut: both ends must find out by themselves.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.cuts: dict[Link, int] = {}
        self.slow: dict[str, float] = {}
        self._dice = world.rng.random
        self._held: dict[Link, list[tuple[Pipe, Callable[..., Any], tuple[Any, ...]]]] = {}

    def open(self, a: str, b: str) -> bool:
        """Both directions work, as a TCP handshake needs."""
        return a == b or ((a, b) not in self.cuts and (b, a) not in self.cuts)

    def cut(self, links: Iterable[Link]) -> tuple[Link, ...]:
        """Cut these directions; cuts count, so that overlapping ones heal independently. Returns them, for heal()."""
        done = tuple(links)
        for link in done:
            self.cuts[link] = self.cuts.get(link, 0) + 1
        return done

    def heal(self, links: Iterable[Link]) -> None:
        for link in links:
            left = self.cuts.get(link, 0) - 1
            if left > 0:
                self.cuts[link] = left
                continue
            self.cuts.pop(link, None)
            for pipe, fn, args in self._held.pop(link, []):
                pipe.send(fn, *args)

    def lose(self, host: str) -> None:
        """What cuts hold back from and for this host never arrives."""
        for link in list(self._held):
            if host in link:
                del self._held[link]

    def heal_all(self) -> None:
        self.slow.clear()
        for link in list(self.cuts):
            self.cuts[link] = 1
            self.heal([link])

    def delay(self, source: str, target: str) -> float:
        """Of one message, in seconds: mostly a fraction of a millisecond, now and then much more."""
        dice = self._dice()
        delay_s = 0.00005 + 0.0004 * dice
        if dice > 0.985:
            delay_s *= 25.0
        if self.slow and source != target:
            delay_s *= self.slow.get(source, 1.0) * self.slow.get(target, 1.0)
        return delay_s

    def hold(self, link: Link, pipe: Pipe, fn: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self._held.setdefault(link, []).append((pipe, fn, args))


class Pipe:
    """One direction of one connection: first in, first out."""

    __slots__ = ("_last", "link", "net")

    def __init__(self, net: Network, source: str, target: str) -> None:
        self.net = net
        self.link: Link = (source, target)
        self._last = 0.0

    def send(self, fn: Callable[..., Any], *args: Any) -> None:
        """``fn(*args)`` happens at the far end once the message is there."""
        net = self.net
        link = self.link
        if link in net.cuts:
            net.hold(link, self, fn, args)
            return
        world = net.world
        self._last = when = max(world.now + net.delay(link[0], link[1]), self._last)
        world.scheduled += 1
        heappush(world.heap, [when, world.scheduled, fn, args])
