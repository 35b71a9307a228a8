"""Real ZooKeeper for tests: shared servers, names of their own for each test, and a client that can be cut off.

`tests/conftest.py` imports the fixtures. Tests that kill or pause a server make an `Ensemble` of their own.
"""

from __future__ import annotations

import queue
import threading
import time
import uuid
from collections.abc import Iterator

import pytest
from kazoo.client import KazooClient  # type: ignore[import-untyped]

from redis_agent.coordination import Coordination
from redis_agent.coordination_client import SessionClient
from redis_agent.lab.proxy import Cut, TcpProxy
from redis_agent.lab.zookeeper import Ensemble
from redis_agent.messages import CloseSession, SessionClosed, ZkCommand, ZkEvent


@pytest.fixture(scope="session")
def zk_single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ensemble]:
    """One server with ZooKeeper's usual tick of 2 s: sessions between 4 and 40 s."""
    with Ensemble(tmp_path_factory.mktemp("zk-single"), 1) as ensemble:
        yield ensemble


@pytest.fixture(scope="session")
def zk_ensemble(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ensemble]:
    """Three servers with a tick of 0.5 s: sessions between 1 and 10 s. Leave it with all three running."""
    with Ensemble(tmp_path_factory.mktemp("zk-ensemble"), 3, tick_ms=500) as ensemble:
        yield ensemble


@pytest.fixture
def zk_root() -> str:
    """A path that no other test uses. It does not exist yet."""
    return f"/t-{uuid.uuid4().hex[:12]}"


def boottime() -> float:
    """The agent's clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class ZkClient:
    """The real adapter with its events in a queue. Its connections are direct, so they can't be cut.

    :param addresses: the servers.
    """

    def __init__(
        self,
        addresses: list[tuple[str, int]],
        timeout_s: float = 4.0,
        *,
        chroot: str = "",
        auth: tuple[tuple[str, str], ...] = (),
        protected: bool = False,
    ) -> None:
        self._events: queue.SimpleQueue[ZkEvent] = queue.SimpleQueue()
        self._sessions: set[int] = set()
        self.coordination = Coordination(
            hosts=",".join(f"{host}:{port}" for host, port in addresses) + chroot,
            session_timeout_s=timeout_s,
            post=self._events.put,
            clock=boottime,
            auth=auth,
            protected=protected,
        )

    def now(self) -> float:
        return boottime()

    def execute(self, command: ZkCommand) -> None:
        self._sessions.add(command.session)
        if isinstance(command, CloseSession):
            self._sessions.discard(command.session)
        self.coordination.execute(command)

    def next_event(self, limit_s: float) -> ZkEvent | None:
        try:
            return self._events.get(timeout=max(limit_s, 0.0))
        except queue.Empty:
            return None

    def kazoo(self, session: int) -> SessionClient:
        """The library's client behind a session."""
        return self.coordination._sessions[session].client

    def close(self) -> None:
        """End what the test left open, and wait until its threads are gone."""
        for session in self._sessions:
            self.coordination.execute(CloseSession(session, limit_s=1.0))
        for _ in self._sessions:
            while not isinstance(event := self.next_event(5.0), SessionClosed):
                assert event is not None, "a session was not closed in time"


class ProxiedClient(ZkClient):
    """The same with a proxy of its own in front of each server.

    :param addresses: some of the ensemble's servers; all of them by default.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        timeout_s: float = 4.0,
        *,
        addresses: list[tuple[str, int]] | None = None,
        chroot: str = "",
        auth: tuple[tuple[str, str], ...] = (),
        protected: bool = False,
    ) -> None:
        self._ensemble = ensemble
        self.proxies = [TcpProxy(address) for address in addresses or ensemble.addresses]
        proxied = [proxy.address for proxy in self.proxies]
        super().__init__(proxied, timeout_s, chroot=chroot, auth=auth, protected=protected)

    def cut(self) -> None:
        for proxy in self.proxies:
            proxy.cut()

    def cut_server(self, place: int) -> None:
        self.proxies[place].cut(refusing=True)

    def cut_replies(self) -> None:
        for proxy in self.proxies:
            proxy.cut(Cut.REPLIES)

    def restore(self) -> None:
        for proxy in self.proxies:
            proxy.restore()

    def reset(self) -> None:
        for proxy in self.proxies:
            proxy.reset()

    def expire(self, session: int) -> None:
        """Have ZooKeeper end the session now: whoever knows its id and password may close it."""
        client_id = self.kazoo(session).client_id
        assert client_id is not None, "expire() needs the session to be connected"
        thief = KazooClient(hosts=self._ensemble.hosts, client_id=client_id, timeout=10.0)
        thief.start()
        thief.stop()
        thief.close()

    def close(self) -> None:
        super().close()
        for proxy in self.proxies:
            proxy.close()


def session_threads() -> list[str]:
    """The threads of the adapter that are alive now."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith(("zk-session", "zk-close"))]
