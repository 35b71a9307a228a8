"""Which version can load whose RDB."""

from __future__ import annotations

import pytest

from redis_agent.rdb_format import can_load

IN_ORDER = ("6.2.14", "7.0.15", "7.2.4", "7.4.0", "8.6.1", "8.8.0", "9.0.0")


@pytest.mark.parametrize("older", range(len(IN_ORDER)))
@pytest.mark.parametrize("newer", range(len(IN_ORDER)))
def test_redis_reads_what_is_not_newer(older: int, newer: int) -> None:
    """Each of these releases has a format of its own, or is later than what is known here."""
    assert can_load(IN_ORDER[newer], IN_ORDER[older]) == (newer >= older)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("7.0.0", "7.0.15"),
        ("7.4.1", "8.0.2"),
        ("8.0.0", "8.4.0"),
        ("valkey 8.0.1", "valkey 8.1.4"),
        ("valkey 9.0.0", "valkey 9.1.0"),
        ("7.2.4", "valkey 8.1.0"),
    ],
)
def test_releases_of_one_format_read_each_other(one: str, other: str) -> None:
    """A newer release whose format is the same is nothing to hold against anybody."""
    assert can_load(one, other)
    assert can_load(other, one)


@pytest.mark.parametrize(
    ("reader", "writer", "can"),
    [
        ("valkey 8.0.1", "valkey 9.0.0", False),
        ("valkey 9.0.0", "valkey 8.0.1", True),
        ("valkey 9.1.0", "valkey 9.2.0", False),
        ("valkey 9.2.0", "valkey 9.1.0", True),
        # Before the two parted their formats were the same.
        ("valkey 8.0.1", "7.0.15", True),
        ("valkey 9.0.0", "7.2.4", True),
        ("8.0.0", "valkey 8.1.0", True),
        ("7.0.15", "valkey 8.0.1", False),
        # Since then a number says nothing across the border, although 80 is more than 12.
        ("valkey 9.0.3", "7.4.0", False),
        ("valkey 9.0.3", "8.6.1", False),
        ("8.6.1", "valkey 9.0.0", False),
        ("9.9.9", "valkey 8.1.0", True),
        ("valkey 10.0.0", "8.0.0", False),
        ("valkey 8.0.1", "9.9.9", False),
    ],
)
def test_valkey_and_redis(reader: str, writer: str, can: bool) -> None:
    """Each product reads its own older formats, and of the other's those from before they parted."""
    assert can_load(reader, writer) == can


@pytest.mark.parametrize("unknown", ["", "unstable", "255", "valkey"])
def test_nothing_is_held_against_a_version_that_cannot_be_read(unknown: str) -> None:
    """An agent that has not said yet what it runs is not a reason to refuse."""
    assert can_load("6.2.0", unknown)
    assert can_load(unknown, "8.0.0")
