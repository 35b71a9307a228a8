"""What the ZooKeeper contract needs of an implementation, and how its tests talk to it.

An implementation is a `Driver`: a fresh (or shared) ZooKeeper that makes clients. Each client is one ZooKeeper adapter
on a network path of its own. Two exist: the real adapter on a real server, and the simulated ones. In the simulator
the limits are virtual seconds and ``next_event`` runs the world.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, Protocol, TypeVar

from redis_agent.messages import (
    CloseSession,
    Commit,
    CommitDone,
    CommitRefused,
    CommitUnknown,
    Ensure,
    Op,
    OpenSession,
    Read,
    ReadDone,
    ReadFailed,
    SessionClosed,
    SessionUp,
    WatchFired,
    ZkCommand,
    ZkEvent,
)

LIMIT_S = 10.0
"""For what must happen."""

QUIET_S = 0.15
"""For what must not happen: how long the tests wait for it."""


class Adapter(Protocol):
    """A ZooKeeper adapter whose events can be taken one by one."""

    def now(self) -> float:
        """Seconds on the adapter's clock."""

    def execute(self, command: ZkCommand) -> None:
        """Hand a command to the adapter."""

    def next_event(self, limit_s: float) -> ZkEvent | None:
        """The oldest event that was not taken yet, waiting for it if need be; None if there is none in time."""


class Client(Adapter, Protocol):
    """One adapter, and the network between it and ZooKeeper."""

    def cut(self) -> None:
        """From now on nothing gets through in either direction, silently."""

    def cut_replies(self) -> None:
        """From now on nothing comes back, silently; what the client sends arrives."""

    def restore(self) -> None:
        """Let everything through again."""

    def reset(self) -> None:
        """Break the connection; both sides learn at once. What was held back is lost."""

    def expire(self, session: int) -> None:
        """Have ZooKeeper end this (connected) session now."""


class Driver(Protocol):
    """A ZooKeeper."""

    def client(self, timeout_s: float = 4.0) -> Client:
        """A new client that will ask for this session timeout (at least 4 s: two ticks)."""


class ServerClient(Client, Protocol):
    """A client that knows some of an ensemble's servers."""

    def cut_server(self, place: int) -> None:
        """As `cut`, but only from one server (its place among those that the client knows), and no connection to it
        can be made meanwhile.
        """


class Servers(Protocol):
    """Three ZooKeeper servers that are broken one by one. They are numbered from 0."""

    tick_s: float

    def leader(self) -> int:
        """Which server leads, as soon as one does."""

    def client(self, *servers: int, timeout_s: float) -> ServerClient:
        """A new client that knows these servers."""

    def kill(self, index: int) -> None:
        """SIGKILL."""

    def restart(self, index: int) -> None:
        """Start a killed server again."""

    def pause(self, index: int) -> None:
        """SIGSTOP."""

    def resume(self, index: int) -> None:
        """SIGCONT."""

    def cut_off(self, index: int) -> None:
        """This follower and its leader hear nothing of each other; clients reach both."""

    def rejoin(self, index: int) -> None:
        """The end of `cut_off`."""

    def wait_serving(self, count: int) -> None:
        """Wait until so many servers serve."""


Answer = ReadDone | ReadFailed | CommitDone | CommitRefused | CommitUnknown
_E = TypeVar("_E", bound=ZkEvent)


C = TypeVar("C", bound=Adapter)


class Peer(Generic[C]):
    """A client with the bookkeeping of a core: request numbers, and events kept until somebody asks for them."""

    def __init__(self, client: C, session: int = 1) -> None:
        self.client = client
        self.session = session
        self.events: list[ZkEvent] = []
        self.up: SessionUp
        """How the session began."""
        self._request = 0

    def open(self) -> SessionUp:
        """Open the session and wait until it is up."""
        self.client.execute(OpenSession(self.session))
        self.up = self.wait(SessionUp)
        return self.up

    def close(self, limit_s: float = 2.0) -> SessionClosed:
        self.client.execute(CloseSession(self.session, limit_s))
        return self.wait(SessionClosed)

    def commit(self, *ops: Op) -> CommitDone | CommitRefused | CommitUnknown:
        answer = self.answer(self.send_commit(*ops))
        assert isinstance(answer, (CommitDone, CommitRefused, CommitUnknown))
        return answer

    def committed(self, *ops: Op) -> CommitDone:
        """Commit what must succeed."""
        answer = self.commit(*ops)
        assert isinstance(answer, CommitDone), answer
        return answer

    def refused(self, *ops: Op) -> CommitRefused:
        """Commit what must be refused."""
        answer = self.commit(*ops)
        assert isinstance(answer, CommitRefused), answer
        return answer

    def ensure(self, *nodes: tuple[str, bytes]) -> CommitDone | CommitRefused | CommitUnknown:
        self._request += 1
        self.client.execute(Ensure(self.session, self._request, nodes))
        answer = self.answer(self._request)
        assert isinstance(answer, (CommitDone, CommitRefused, CommitUnknown))
        return answer

    def read(
        self, *paths: str, lists: Iterable[str] = (), trees: Iterable[str] = (), sync: bool = True
    ) -> ReadDone | ReadFailed:
        answer = self.answer(self.send_read(*paths, lists=lists, trees=trees, sync=sync))
        assert isinstance(answer, (ReadDone, ReadFailed))
        return answer

    def found(self, *paths: str, lists: Iterable[str] = (), trees: Iterable[str] = (), sync: bool = True) -> ReadDone:
        """Read what must be readable."""
        answer = self.read(*paths, lists=lists, trees=trees, sync=sync)
        assert isinstance(answer, ReadDone), answer
        return answer

    def send_commit(self, *ops: Op, not_after: float | None = None) -> int:
        """Without waiting for the answer: the number of the request."""
        self._request += 1
        self.client.execute(Commit(self.session, self._request, "test", ops, not_after))
        return self._request

    def send_read(self, *paths: str, lists: Iterable[str] = (), trees: Iterable[str] = (), sync: bool = True) -> int:
        """Without waiting for the answer: the number of the request."""
        self._request += 1
        self.client.execute(Read(self.session, self._request, paths, tuple(lists), tuple(trees), sync))
        return self._request

    def answer(self, request: int, limit_s: float = LIMIT_S) -> Answer:
        """The answer to a request."""
        event = self._take(lambda event: getattr(event, "request", None) == request, limit_s)
        assert event is not None, f"no answer to request {request}; heard {self.events}"
        assert isinstance(event, Answer)
        return event

    def wait(self, kind: type[_E], limit_s: float = LIMIT_S) -> _E:
        """The oldest event of this kind that nobody asked for yet."""
        event = self._take(lambda event: isinstance(event, kind), limit_s)
        assert isinstance(event, kind), f"no {kind.__name__} within {limit_s} s; heard {self.events}"
        return event

    def quiet(self, kind: type[ZkEvent]) -> bool:
        """No (further) event of this kind comes."""
        return self._take(lambda event: isinstance(event, kind), QUIET_S) is None

    def watched(self, path: str) -> bool:
        """A watch on this path fires, or has fired; True at most once for each time it fires."""
        return self._take(lambda event: event == WatchFired(self.session, path), LIMIT_S) is not None

    def unwatched(self, path: str) -> bool:
        """No watch on this path fires."""
        return self._take(lambda event: event == WatchFired(self.session, path), QUIET_S) is None

    def _take(self, wanted: Callable[[ZkEvent], bool], limit_s: float) -> ZkEvent | None:
        deadline = self.client.now() + limit_s
        while True:
            for index, event in enumerate(self.events):
                if wanted(event):
                    return self.events.pop(index)
            news = self.client.next_event(deadline - self.client.now())
            if news is None:
                return None
            self.events.append(news)
