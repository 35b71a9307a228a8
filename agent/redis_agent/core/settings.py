"""What the core must know of the settings. Times are in seconds."""

from __future__ import annotations

from dataclasses import dataclass

from redis_agent.election import Mode
from redis_agent.replication import Address


@dataclass(frozen=True, slots=True, kw_only=True)
class CoreSettings:
    """See the configuration reference for what each one does; the names are the same there."""

    root: str
    cluster: str
    name: str
    host: str = ""
    pid: int = 0
    agent_version: str = ""
    redis: Address
    """The address that other members and clients use."""
    voter: bool = True
    priority: int = 100
    bootstrap_expect: int = 1
    mode: Mode = Mode.QUORUM
    max_lag_bytes: int = 1 << 20
    session_timeout_s: float = 6.0
    tick_s: float = 2.0
    heartbeat_s: float = 0.5
    presence_s: float = 1.0
    fence_budget_s: float = 0.25
    fence_timeout_s: float = 0.1
    guard_timeout_s: float = 1.0
    min_claim_lease_s: float = 0.5
    grace_s: float = 0.25
    stagger_s: float = 0.1
    takeover_s: float = 3.0
    handover_s: float = 5.0
    designation_s: float = 1.0
    unfollowed_s: float = 5.0
    tail_limit_s: float = 60.0
    probe_s: float = 0.5
    hang_s: float = 2.0
    busy_s: float = 5.0
    role_limit_s: float = 1.0
    restart_first_s: float = 0.05
    restart_max_s: float = 30.0
    stop_redis_s: float = 30.0
    close_session_s: float = 1.0
    reread_s: float = 10.0
    save_state_s: float = 5.0
    keep_diverged: int = 3
    """How many saved tails of a diverged Redis to keep; 0: none are saved."""
    name_taken_s: float = 30.0
    """How long a foreign presence of our name may stand unchanged before we refuse to start."""
