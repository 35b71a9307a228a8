"""What a guard must offer to be asked whether it keeps its contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol


class GuardDriver(Protocol):
    """A host with a guard, its Redis, and one life of an agent, which has launched both and not armed anything."""

    def lead(self, lease_s: float) -> None:
        """The agent arms the guard with a deadline so far ahead, hears its acknowledgement, and lets writes in."""

    def renew(self, lease_s: float) -> None:
        """A deadline so far ahead is sent. Nobody waits for the acknowledgement."""

    def disarm(self) -> None:
        """And hear the acknowledgement."""

    def die(self) -> None:
        """The agent is killed."""

    def stop_agent(self) -> None: ...

    def stop_guard(self) -> None: ...

    def continue_guard(self) -> None: ...

    def kill_guard(self) -> None: ...

    def stop_redis(self) -> None: ...

    def writable(self) -> bool:
        """Redis executes a write now."""

    def redis_alive(self) -> bool:
        """The Redis of the beginning."""

    def agent_alive(self) -> bool: ...

    def told_of_death(self) -> bool:
        """The agent knows that Redis is dead, or that nobody is left who would tell."""

    def attached(self) -> bool:
        """A new life of the agent begins. Whether it found the Redis of the beginning, and keeps it."""

    def run(self, for_s: float) -> None:
        """Let time pass."""

    def within(self, limit_s: float, condition: Callable[[], bool]) -> bool:
        """Wait for it. Whether it came true."""

    def close(self) -> None: ...
