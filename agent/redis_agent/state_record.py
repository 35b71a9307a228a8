"""What an agent leaves on disk for its next life (state_file.py writes it)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StateRecord:
    """What the agent keeps on disk for its next incarnation, beside the data directory.

    ``guid`` is that of the latest session; ``promotions`` maps replids that this member made by promotion to the epoch
    they were made in; ``epoch`` and ``offset_bytes`` are the position last known.

    About the very process ``run_id``: ``loaded`` is replid and offset as they were when its data had been loaded from
    disk (empty: not yet); ``intact_replid`` the replid under which it was intact (empty: it was not); ``followed`` that
    it was told to follow somebody.
    """

    cluster_id: str = ""
    member: str = ""
    guid: str = ""
    promised_round: int = 0
    epoch: int = 0
    offset_bytes: int = -1
    promotions: tuple[tuple[str, int], ...] = ()
    redis_pid: int = 0
    redis_create_time: float = 0.0
    run_id: str = ""
    loaded: tuple[str, int] | None = None
    intact_replid: str = ""
    followed: bool = False
