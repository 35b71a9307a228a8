"""A bed outlives the single test, so who is left behind is looked for at its end (test_bed.py), not after each test."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def no_process_left() -> None:
    """Instead of the general one: a bed ends all that is in it, also what has left its parent."""
