"""Which saved tails are deleted."""

from __future__ import annotations

from redis_agent.redis_tail import surplus

NAMES = ["epoch-9-offset-100", "epoch-10-offset-9", "epoch-10-offset-80", "notes", "epoch-10-offset-80-copy"]


def test_the_newest_are_kept_as_numbers_say() -> None:
    """Epoch 10 is newer than 9, offset 80 than 9; the surplus comes newest first."""
    assert surplus(NAMES, "epoch-11-offset-1", 2) == ["epoch-10-offset-9", "epoch-9-offset-100"]
    assert surplus(NAMES, "epoch-11-offset-1", 4) == []


def test_what_was_just_saved_stays() -> None:
    """Also if it is the oldest: it counts among those that are kept."""
    assert surplus([*NAMES, "epoch-1-offset-1"], "epoch-1-offset-1", 1) == [
        "epoch-10-offset-80",
        "epoch-10-offset-9",
        "epoch-9-offset-100",
    ]


def test_other_files_are_left_alone() -> None:
    """Whatever an operator puts beside them."""
    assert not {"notes", "epoch-10-offset-80-copy"} & set(surplus(NAMES, "epoch-11-offset-1", 1))
