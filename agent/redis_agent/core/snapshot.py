"""What the agent shows of itself to whoever asks: an immutable picture."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The agent at one moment. ``lease_until`` is on CLOCK_BOOTTIME."""

    name: str
    state: str
    epoch: int
    round: int
    leader: str
    """Name of the leader as last read, or empty."""
    lease_until: float
    connected: bool
    redis_up: bool
    run_id: str
    role: str
    replid: str
    offset_bytes: int
    intact: bool
    fence_lifted: bool
    restarts: int
    reason: str
