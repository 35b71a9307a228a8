"""A picture of a run, as SVG: for each node its role and the writes that it acknowledged, and the faults as bands."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from tests.faults.history import Entry, Fault, Sight

_LEFT, _RIGHT, _TOP = 110, 20, 58
_ROW, _GAP, _BAND, _TICK = 70, 14, 13, 22
_SIGHT_NS = 400_000_000
"""A node that nobody has looked at for so long is unknown, unless the picture is too coarse to show that."""
_BLIND_SHARE = 1 / 200
_TICKS_S = (1, 2, 5, 10, 30, 60, 120, 300, 600, 1200)
_MAX_TICKS = 20
_BUCKETS = 900
_LONG_NS = 180_000_000_000
"""In a longer picture there is no room for names."""
ROLES = {
    "leads": ("#cfe8cf", "leads (ZooKeeper says so)"),
    "primary": ("#fbe6b4", "primary, and does not serve"),
    "replica": ("#e9edf2", "replica"),
    "down": ("#f7c9c9", "does not answer"),
}
_PLAIN, _CONFIRMED, _STUBBORN = "#4878a8", "#1f9d55", "#c0392b"
_FAULTS = ("#8e5ea2", "#d35400", "#16748c", "#a23b5e", "#5d6d1e", "#34495e")


class Picture:
    """Collects what is drawn. Times are nanoseconds of CLOCK_BOOTTIME; drawn are seconds from the beginning.

    Args:
        nodes: names of the rows, and the address (address:port) of each.
        begin: left edge.
        end: right edge.
        title: above it all.
        width: in pixels.
    """

    def __init__(self, nodes: dict[str, str], begin: int, end: int, title: str, *, width: int = 1400) -> None:
        self._nodes = nodes
        self._begin, self._end = begin, max(end, begin + 1)
        self._width = width
        self._title = title
        self._parts: list[str] = []
        self._bottom = _TOP

    def draw(self, entries: Iterable[Entry], sights: Sequence[Sight], faults: Sequence[Fault]) -> str:
        """The whole file."""
        for name in self._nodes:
            self._roles(name, [sight for sight in sights if sight.node == name])
            self._bottom += _ROW + _GAP
        self._writes(entries)
        self._faults(faults)
        self._axis()
        height = self._bottom + _TICK + 14
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{self._width}" height="{height}" '
            f'viewBox="0 0 {self._width} {height}" font-family="sans-serif" font-size="11">'
        )
        return "\n".join([head, f'<rect width="{self._width}" height="{height}" fill="white"/>', *self._legend()]) + (
            "\n" + "\n".join(self._parts) + "\n</svg>\n"
        )

    # --- parts --------------------------------------------------------------------------------------------------------

    def _x(self, at: float) -> float:
        share = (at - self._begin) / (self._end - self._begin)
        return _LEFT + min(max(share, 0.0), 1.0) * (self._width - _LEFT - _RIGHT)

    def _row(self, name: str) -> int:
        return _TOP + list(self._nodes).index(name) * (_ROW + _GAP)

    def _box(self, x0: float, y: float, x1: float, height: float, colour: str, more: str = "", told: str = "") -> None:
        width = max(x1 - x0, 0.6)
        end = f"><title>{escape(told)}</title></rect>" if told else "/>"
        self._parts.append(
            f'<rect x="{x0:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"{more}{end}'
        )

    def _text(self, x: float, y: float, text: str, more: str = "") -> None:
        self._parts.append(f'<text x="{x:.1f}" y="{y:.1f}"{more}>{escape(text)}</text>')

    def _roles(self, name: str, sights: list[Sight]) -> None:
        row = self._row(name)
        self._text(8, row + 16, name, ' font-weight="bold" font-size="14"')
        self._text(8, row + 32, self._nodes[name], ' fill="#555"')
        spans: list[tuple[str, int, int, int]] = []
        blind_ns = max(_SIGHT_NS, (self._end - self._begin) * _BLIND_SHARE)
        for sight in sights:
            role = "leads" if sight.leads and sight.role == "primary" else sight.role
            if spans and spans[-1][0] == role and sight.t - spans[-1][2] < blind_ns:
                spans[-1] = (role, spans[-1][1], sight.t, sight.epoch)
            else:
                begin = spans[-1][2] if spans and sight.t - spans[-1][2] < blind_ns else sight.t
                spans.append((role, begin, sight.t, sight.epoch))
        for role, begin, end, epoch in spans:
            told = f"{name}: {ROLES[role][1]}" + (f", epoch {epoch}" if role == "leads" else "")
            self._box(self._x(begin), row, self._x(end), _ROW, ROLES[role][0], told=told)

    def _writes(self, entries: Iterable[Entry]) -> None:
        """Bars of acknowledged writes, square root of the rate: a few where none should be must be seen."""
        rows = {address: name for name, address in self._nodes.items()}
        step = max((self._end - self._begin) / _BUCKETS, 1.0)
        counts: dict[tuple[str, int], list[int]] = defaultdict(lambda: [0, 0, 0])
        for entry in entries:
            if entry.ok and entry.is_write and entry.node in rows and self._begin <= entry.t1 <= self._end:
                bar = counts[rows[entry.node], int((entry.t1 - self._begin) / step)]
                bar[0] += 1
                bar[1] += entry.confirmed
                bar[2] += entry.stubborn
        most = max((bar[0] for bar in counts.values()), default=1)
        scale = (_ROW - 6) / math.sqrt(most)
        for (name, bucket), (written, confirmed, stubborn) in sorted(counts.items()):
            x0 = self._x(self._begin + bucket * step)
            x1 = self._x(self._begin + (bucket + 1) * step)
            foot = self._row(name) + _ROW
            # Of stubborn clients alone: nobody who looked for the leader wrote there.
            colour = _STUBBORN if stubborn == written else _PLAIN
            high = scale * math.sqrt(written)
            self._box(x0, foot - high, x1, high, colour)
            if confirmed:
                low = high * confirmed / written
                self._box(x0, foot - low, x1, low, _CONFIRMED)

    def _faults(self, faults: Sequence[Fault]) -> None:
        in_order = sorted(faults, key=lambda each: each.t0)
        kinds = sorted({fault.kind for fault in in_order})
        colours = {kind: _FAULTS[number % len(_FAULTS)] for number, kind in enumerate(kinds)}
        for fault in in_order:
            if fault.target in self._nodes:
                x0, x1 = self._x(fault.t0), self._x(fault.t1 or self._end)
                row = self._row(fault.target)
                self._box(x0, row, x1, _ROW, colours[fault.kind], ' fill-opacity="0.12"')
                self._box(x0, row - 4, x1, 3, colours[fault.kind])
        if self._end - self._begin > _LONG_NS:
            self._faults_by_kind(in_order, kinds, colours)
        else:
            self._faults_by_name(in_order, colours)

    def _faults_by_kind(self, faults: list[Fault], kinds: list[str], colours: dict[str, str]) -> None:
        """A line for each kind: there is no room for names."""
        for kind in kinds:
            self._text(8, self._bottom + 10, kind, ' fill="#333"')
            for fault in faults:
                if fault.kind == kind:
                    self._band(fault, self._bottom, colours[kind])
            self._bottom += _BAND + 1
        self._bottom += 6

    def _faults_by_name(self, faults: list[Fault], colours: dict[str, str]) -> None:
        """Where there is room, with names."""
        ends: list[float] = []
        self._text(8, self._bottom + 11, "faults", ' font-weight="bold"')
        for fault in faults:
            label = f"{fault.kind} {fault.target}"
            x0, x1 = self._x(fault.t0), self._x(fault.t1 or self._end)
            lane = next((number for number, end in enumerate(ends) if end < x0), len(ends))
            ends[lane : lane + 1] = [max(x1, x0 + 6 * len(label)) + 4]
            y = self._bottom + lane * (_BAND + 3)
            self._band(fault, y, colours[fault.kind])
            self._text(x0 + 2, y + 10, label, ' font-size="9.5"')
        self._bottom += len(ends) * (_BAND + 3) + 6

    def _band(self, fault: Fault, y: float, colour: str) -> None:
        end = fault.t1 or self._end
        told = f"{fault.kind} {fault.target}: {(end - fault.t0) / 1e9:.2f} s"
        self._box(self._x(fault.t0), y, self._x(end), _BAND - 1, colour, ' fill-opacity="0.85"', told)

    def _axis(self) -> None:
        seconds = (self._end - self._begin) / 1e9
        step = next((tick for tick in _TICKS_S if seconds / tick <= _MAX_TICKS), _TICKS_S[-1])
        y = self._bottom
        self._parts.append(f'<line x1="{_LEFT}" x2="{self._width - _RIGHT}" y1="{y}" y2="{y}" stroke="#888"/>')
        for tick in range(0, int(seconds) + 1, step):
            x = self._x(self._begin + tick * 1e9)
            self._parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{y + 4}" stroke="#888" stroke-opacity="0.25"/>'
            )
            self._text(x, y + 16, f"{tick} s", ' text-anchor="middle" fill="#555"')

    def _legend(self) -> list[str]:
        marks = [*ROLES.values(), (_PLAIN, "acknowledged"), (_CONFIRMED, "confirmed by WAIT")]
        marks.append((_STUBBORN, "by stubborn clients alone"))
        parts = [f'<text x="8" y="20" font-size="15" font-weight="bold">{escape(self._title)}</text>']
        x = float(_LEFT)
        for colour, text in marks:
            parts.append(f'<rect x="{x:.0f}" y="32" width="12" height="12" fill="{colour}" stroke="#999"/>')
            parts.append(f'<text x="{x + 16:.0f}" y="42">{escape(text)}</text>')
            x += 34 + 6.2 * len(text)
        return parts


def write(
    path: Path,
    nodes: dict[str, str],
    entries: Iterable[Entry],
    sights: Sequence[Sight],
    faults: Sequence[Fault],
    *,
    span: tuple[int, int],
    title: str,
) -> None:
    """Draw a picture into a file."""
    path.write_text(Picture(nodes, *span, title).draw(entries, sights, faults), encoding="utf-8")
