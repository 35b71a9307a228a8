"""The comparison as a picture: small multiples of bars, one panel for each question, as SVG.

Its colours are readable on white and on black, for nobody knows where it will be shown.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from tests.faults.compare_report import Number, count, duration
from tests.faults.compare_results import MAIN, SYSTEMS, Outcome, Spread, spread

INK = "#7a828e"
OURS = "#2f81d7"
OTHERS = "#d08a4e"
CONFIRMED = "#a34f1c"
RANGE = "#5a6069"
_FONT = "font-family='system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif'"
_WIDTH, _NAMES, _MARGIN, _GAP = 1080, 250, 16, 18
_BAR, _STEP, _HEAD = 11, 20, 44
_VALUE = 76
"""Room right of the longest bar for its number."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One question."""

    title: str
    subtitle: str
    scenario: str
    number: Number
    text: Callable[[float], str]
    part: Number | None = None
    """A part of the number that is shown darker."""


def _lost(outcome: Outcome) -> float:
    return outcome.acknowledged_lost


def _confirmed_lost(outcome: Outcome) -> float:
    return outcome.confirmed.lost


PANELS = (
    (
        Panel("Redis crashed", "time to the first write", "crash", lambda each: each.first_write_ms, duration),
        Panel("Host lost", "time to the first write", "host", lambda each: each.first_write_ms, duration),
        Panel(
            "Planned switchover", "longest time without a write", "switchover", lambda each: each.stopped_ms, duration
        ),
    ),
    (
        Panel("Partition", "acknowledged writes lost", "partition", _lost, count, _confirmed_lost),
        Panel("Partition", "two primaries acknowledge", "partition", lambda each: each.dual_primary_ms, duration),
        Panel("Planned switchover", "acknowledged writes lost", "switchover", _lost, count, _confirmed_lost),
    ),
)


def picture(outcomes: Sequence[Outcome], caption: str) -> str:
    """The whole plot."""
    systems = [key for key in MAIN if any(each.system == key for each in outcomes)]
    columns = max(len(row) for row in PANELS)
    panel_width = (_WIDTH - _NAMES - 2 * _MARGIN - (columns - 1) * _GAP) / columns
    row_height = _HEAD + _STEP * len(systems) + _GAP
    height = _MARGIN + row_height * len(PANELS) + 26
    parts = [
        (
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {_WIDTH} {height:.0f}' "
            f"width='{_WIDTH}' height='{height:.0f}' role='img' {_FONT}>"
        ),
        "<title>redis-agent and Redis Sentinel under the same faults</title>",
    ]
    for number, row in enumerate(PANELS):
        top = _MARGIN + number * row_height
        parts += _names(systems, top + _HEAD)
        for column, panel in enumerate(row):
            left = _MARGIN + _NAMES + column * (panel_width + _GAP)
            parts += _panel(panel, systems, outcomes, left, top, panel_width)
    parts.append(_text(_MARGIN, height - 10, caption, size=11))
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _names(systems: Sequence[str], top: float) -> list[str]:
    return [
        _text(_MARGIN + _NAMES - 12, top + index * _STEP + _BAR - 1, SYSTEMS[system], anchor="end")
        for index, system in enumerate(systems)
    ]


def _panel(
    panel: Panel, systems: Sequence[str], outcomes: Sequence[Outcome], left: float, top: float, width: float
) -> list[str]:
    found = {system: spread(outcomes, system, panel.scenario, panel.number) for system in systems}
    longest = max((each.most for each in found.values() if each is not None), default=0.0)
    scale = (width - _VALUE) / longest if longest else 0.0
    parts = [
        _text(left, top + 14, panel.title, size=14, weight="600"),
        _text(left, top + 31, panel.subtitle, size=12),
    ]
    bottom = top + _HEAD + _STEP * len(systems) - 4
    parts.append(
        f"<line x1='{left:.1f}' y1='{top + _HEAD - 3:.1f}' x2='{left:.1f}' y2='{bottom:.1f}' "
        f"stroke='{INK}' stroke-width='1'/>"
    )
    for index, system in enumerate(systems):
        dark = spread(outcomes, system, panel.scenario, panel.part) if panel.part is not None else None
        parts += _bar(found[system], dark, panel, system, left, top + _HEAD + index * _STEP, scale)
    return parts


def _bar(
    found: Spread | None, dark: Spread | None, panel: Panel, system: str, left: float, top: float, scale: float
) -> list[str]:
    middle = top + _BAR / 2
    if found is None:
        return [_text(left + 6, top + _BAR - 1, "not measured", size=11)]
    colour = OURS if system.startswith("agent") else OTHERS
    end, low, high = (left + scale * value for value in (found.median, found.least, found.most))
    parts = [f"<rect x='{left:.1f}' y='{top:.1f}' width='{end - left:.1f}' height='{_BAR}' fill='{colour}'/>"]
    if dark is not None and dark.median:
        parts.append(
            f"<path d='M{left:.1f} {top:.1f}h{scale * dark.median:.1f}v{_BAR}H{left:.1f}z' fill='{CONFIRMED}'/>"
        )
    if high - low >= 1:
        # From the least to the most; the bar is the median.
        parts.append(
            f"<path d='M{low:.1f} {middle:.1f}H{high:.1f}M{low:.1f} {middle - 3:.1f}v6M{high:.1f} {middle - 3:.1f}v6' "
            f"stroke='{RANGE}' stroke-width='1.5' fill='none'/>"
        )
    parts.append(_text(max(end, high) + 6, top + _BAR - 1, panel.text(found.median)))
    return parts


def _text(x: float, y: float, text: str, *, size: int = 12, anchor: str = "start", weight: str = "400") -> str:
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size}' font-weight='{weight}' text-anchor='{anchor}' "
        f"fill='{INK}'>{escape(text)}</text>"
    )
