"""For applications: who leads, and safe mode while nobody does.

Nothing here imports the agent's own machinery; the documents that agents publish (``znodes``) are shared.
"""

from __future__ import annotations

from redis_agent.client.errors import ObserverForked, SafeModeError
from redis_agent.client.observer import LeaderObserver
from redis_agent.client.view import LeaderView, ObserverState, ObserverStatus

__all__ = ["LeaderObserver", "LeaderView", "ObserverForked", "ObserverState", "ObserverStatus", "SafeModeError"]
