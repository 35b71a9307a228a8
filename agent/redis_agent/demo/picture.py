"""What the demonstration shows: a sample of all members, as a table or as one line."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from enum import Enum
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from redis_agent.lab.agent_process import AgentProcess
from redis_agent.lab.cluster import LocalCluster
from redis_agent.lab.load import Load
from redis_agent.replication import Ledger

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = ("MEMBER", "AGENT", "ROLE", "REDIS", "EPOCH", "POSITION", "LAG", "WRITES/S")
LIVE_INTERVAL_S = 0.25
PLAIN_INTERVAL_S = 1.0
ROLE_STYLES = {"leader": "bold green", "follower": "cyan", "candidate": "yellow"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A member at one moment. Unknown numbers are None."""

    member: str
    agent: str
    role: str
    redis: str
    epoch: int | None
    position_bytes: int | None
    lag_bytes: int | None
    writes_per_s: float | None

    def cells(self) -> tuple[str, ...]:
        """As text."""
        numbers = (self.epoch, self.position_bytes, self.lag_bytes)
        shown = [f"{number:,}" if number is not None else "-" for number in numbers]
        rate = "-" if self.writes_per_s is None else f"{self.writes_per_s:,.0f}"
        return (self.member, self.agent, self.role, self.redis, *shown, rate)

    def words(self) -> str:
        """In a few words."""
        lag = "" if self.lag_bytes is None else f" lag {self.lag_bytes:,}"
        epoch = "" if self.epoch is None else f" epoch {self.epoch}"
        agent = "" if self.agent == "up" else f" ({self.agent})"
        return f"{self.member} {self.role}{agent}{epoch}{lag}"


class Sampler:
    """Asks every Redis, and ZooKeeper for the agents' own words."""

    def __init__(self, cluster: LocalCluster, load: Load | None) -> None:
        self._cluster = cluster
        self.load = load

    def sample(self) -> list[Row]:
        members = list(self._cluster)
        with ThreadPoolExecutor(max_workers=len(members)) as pool:
            infos = list(pool.map(lambda member: member.info(timeout_s=0.2), members))
        serving = self._cluster.serving()
        name = serving.name if serving is not None else ""
        ledger = self._cluster.ledger()
        offsets = {member.name: _offset(info) for member, info in zip(members, infos, strict=True)}
        return [self._row(member, info, name, offsets, ledger) for member, info in zip(members, infos, strict=True)]

    def _row(
        self,
        member: AgentProcess,
        info: dict[str, Any],
        serving: str,
        offsets: dict[str, int | None],
        ledger: Ledger,
    ) -> Row:
        presence = self._cluster.presence(member.name)
        role = presence.state if presence is not None and member.running else "-"
        # A leader that serves is what one expects; its other phases are worth a word.
        role = role.removesuffix(".serving")
        own, best = offsets[member.name], offsets.get(serving)
        lag = max(0, best - own) if own is not None and best is not None and member.name != serving else None
        rate = self.load.rate_per_s() if self.load is not None and member.name == serving else None
        replid = str(info.get("master_replid", ""))
        epoch = next((entry.epoch for entry in reversed(ledger.entries) if entry.replid == replid), None)
        return Row(
            member=member.name,
            agent="frozen" if member.frozen else "up" if member.running else "down",
            role=role,
            redis={"master": "primary", "slave": "replica"}.get(str(info.get("role")), "down"),
            epoch=epoch if replid else None,
            position_bytes=own,
            lag_bytes=lag,
            writes_per_s=rate,
        )


def _offset(info: dict[str, Any]) -> int | None:
    offset = info.get("slave_repl_offset", info.get("master_repl_offset"))
    return offset if isinstance(offset, int) else None


class Tone(Enum):
    """What kind of news it is; in colours where there are any."""

    PLAIN = ""
    HEADLINE = "bold"
    GOOD = "green"
    BAD = "bold red"


class Screen(Protocol):
    """Where the demonstration tells what it does."""

    def say(self, text: str = "", tone: Tone = Tone.PLAIN) -> None: ...

    def showing(self, sampler: Sampler) -> AbstractContextManager[object]:
        """Show samples while the context lasts."""


class _Every:
    """Calls a function on a thread of its own until the context ends."""

    def __init__(self, interval_s: float, action: Callable[[], None]) -> None:
        self._interval_s = interval_s
        self._action = action
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="demo-picture", daemon=True)

    def _run(self) -> None:
        while not self._over.wait(self._interval_s):
            # What can't be asked now will be in a moment; the picture is for people.
            with suppress(Exception):
                self._action()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(2.0)


class PlainScreen:
    """Lines on standard output, and one with everybody's state per second."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def say(self, text: str = "", tone: Tone = Tone.PLAIN) -> None:  # noqa: ARG002  (plain lines have none)
        for line in text.splitlines() or [""]:
            sys.stdout.write(f"[{time.monotonic() - self._started:6.2f} s] {line}".rstrip() + "\n")
        sys.stdout.flush()

    def showing(self, sampler: Sampler) -> AbstractContextManager[object]:
        def tell() -> None:
            rows = sampler.sample()
            rate = next((f"{row.writes_per_s:,.0f}" for row in rows if row.writes_per_s is not None), "0")
            self.say("    " + " | ".join(row.words() for row in rows) + f" | {rate} writes/s")

        return _Every(PLAIN_INTERVAL_S, tell)


class LiveScreen:
    """A table that stays at the bottom of the terminal while lines scroll above it. Needs rich."""

    def __init__(self) -> None:
        from rich.console import Console  # noqa: PLC0415 - only where it is shown

        self._console = Console(highlight=False)

    def say(self, text: str = "", tone: Tone = Tone.PLAIN) -> None:
        self._console.print(text, markup=False, style=tone.value)

    def showing(self, sampler: Sampler) -> AbstractContextManager[object]:
        from rich.live import Live  # noqa: PLC0415

        live = Live(_table([]), console=self._console, auto_refresh=False, transient=True)

        class _Shown(_Every):
            def __enter__(self) -> Self:
                live.start()
                return super().__enter__()

            def __exit__(
                self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
            ) -> None:
                super().__exit__(kind, exc, trace)
                live.stop()

        return _Shown(LIVE_INTERVAL_S, lambda: live.update(_table(sampler.sample()), refresh=True))


def _table(rows: list[Row]) -> Table:
    from rich import box  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, justify="right" if column in COLUMNS[4:] else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row.cells(), style=ROLE_STYLES.get(row.role.partition(".")[0], "red"))
    return table


def make_screen(*, plain: bool) -> Screen:
    """Live on a terminal that rich can draw on, else plain."""
    if not plain and sys.stdout.isatty():
        with suppress(ImportError):
            return LiveScreen()
    return PlainScreen()
