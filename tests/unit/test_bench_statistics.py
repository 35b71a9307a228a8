from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.statistics import markdown_table, percentile, replace_section, summary


@pytest.mark.parametrize(
    ("share", "expected"), [(0.0, 1.0), (0.5, 50.0), (0.95, 95.0), (0.951, 96.0), (0.99, 99.0), (1.0, 100.0)]
)
def test_a_percentile_is_one_of_the_measured_values(share: float, expected: float) -> None:
    """Nearest rank, whatever the order of the values."""
    assert percentile([float(value) for value in range(100, 0, -1)], share) == expected


def test_a_single_value_is_every_percentile() -> None:
    """Nothing is interpolated or made up from one value."""
    assert set(summary([7.0]).values()) == {7.0}


def test_a_section_is_added_once_and_then_replaced(tmp_path: Path) -> None:
    """What people wrote around a section stays; the section is what was measured last."""
    page = tmp_path / "benchmarks.md"
    replace_section(page, "failover", "first")
    page.write_text(page.read_text() + "\nby hand\n")
    replace_section(page, "failover", r"second \1")
    replace_section(page, "idle", "other")
    assert page.read_text() == (
        "# Benchmarks\n\n<!-- failover: begin -->\nsecond \\1\n<!-- failover: end -->\n\nby hand\n\n"
        "<!-- idle: begin -->\nother\n<!-- idle: end -->\n"
    )


def test_a_table_is_markdown() -> None:
    """Header, alignment, one line per row."""
    assert markdown_table(("a", "b"), [("x", "1")]) == "| a | b |\n|---|---:|\n| x | 1 |"
