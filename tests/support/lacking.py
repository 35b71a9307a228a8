"""A machine that lacks something: a developer's tests are skipped with the reason, CI's fail."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest


def required() -> bool:
    """Nothing may be skipped because of the machine: REQUIRE_ROOT=1, as .ci/run sets it."""
    return os.environ.get("REQUIRE_ROOT", "") not in {"", "0"}


def lacks(reason: str) -> NoReturn:
    """The running test cannot run here."""
    if required():
        pytest.fail(f"cannot run here, and REQUIRE_ROOT is set: {reason}", pytrace=False)
    pytest.skip(reason)
