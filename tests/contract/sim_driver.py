"""The contract's driver for the simulated ZooKeeper and its adapter, in virtual time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from redis_agent.messages import CloseSession, Event, OpenSession, SessionClosed, ZkCommand, ZkEvent
from tests.sim.process import Process
from tests.sim.world import Link, Network, World, both
from tests.sim.zk_client import ZkClient, failed
from tests.sim.zookeeper import Ensemble

SERVING_LIMIT_S = 30.0


class SimClient:
    """One simulated adapter on a host of its own."""

    def __init__(
        self, net: Network, ensemble: Ensemble, host: str, timeout_s: float, servers: Sequence[int] = ()
    ) -> None:
        self._net = net
        self._world = net.world
        self._ensemble = ensemble
        self._process = Process(net.world, host, host)
        self._timeout_s = timeout_s
        self._servers = [ensemble.servers[index] for index in servers] or ensemble.servers
        self._events: deque[ZkEvent] = deque()
        self._sessions: dict[int, ZkClient] = {}
        self._cuts: list[tuple[Link, ...]] = []

    def now(self) -> float:
        return self._world.now

    def execute(self, command: ZkCommand) -> None:
        match command:
            case OpenSession():
                for older in self._sessions.values():
                    older.retire()
                client = ZkClient(
                    self._net, self._ensemble, self._process, command, self._timeout_s, self._post, self._servers
                )
                self._sessions = {command.session: client}
            case CloseSession():
                session = self._sessions.pop(command.session, None)
                if session is None:
                    self._post(SessionClosed(command.session, clean=False))
                else:
                    session.close(command)
            case _:
                open_session = self._sessions.get(command.session)
                if open_session is None:
                    self._post(failed(command, "no such session"))
                else:
                    open_session.execute(command)

    def _post(self, event: Event) -> None:
        assert isinstance(event, ZkEvent)
        self._events.append(event)

    def next_event(self, limit_s: float) -> ZkEvent | None:
        if not self._events:
            self._world.run(self._world.now + limit_s, lambda: bool(self._events))
        return self._events.popleft() if self._events else None

    def cut(self) -> None:
        self._cut([*self._to_us(), *((self._process.host, name) for name in self._ensemble.names)])

    def cut_server(self, place: int) -> None:
        self._cut(both([self._process.host], [self._servers[place].name]))

    def cut_replies(self) -> None:
        self._cut(self._to_us())

    def _to_us(self) -> list[Link]:
        return [(name, self._process.host) for name in self._ensemble.names]

    def _cut(self, links: list[Link]) -> None:
        self._cuts.append(self._net.cut(links))

    def restore(self) -> None:
        cuts, self._cuts = self._cuts, []
        for cut in cuts:
            self._net.heal(cut)

    def reset(self) -> None:
        self._net.lose(self._process.host)
        for session in self._sessions.values():
            session.reset()

    def expire(self, session: int) -> None:
        self._ensemble.end_session(self._sessions[session].session_id, "expired by the test")


class SimZooKeeper:
    """A simulated ensemble of three servers; the same seed plays out the same way."""

    def __init__(self, seed: int = 1) -> None:
        self._world = World(seed)
        self._net = Network(self._world)
        self._ensemble = Ensemble(self._world, self._net)
        self._clients = 0

    def client(self, timeout_s: float = 4.0) -> SimClient:
        self._clients += 1
        return SimClient(self._net, self._ensemble, f"host{self._clients}", timeout_s)

    def close(self) -> None:
        """Nothing outlives the test."""


class SimServers:
    """A simulated ensemble that is broken server by server."""

    def __init__(self, tick_s: float, seed: int = 1) -> None:
        self.tick_s = tick_s
        self._world = World(seed)
        self._net = Network(self._world)
        self._ensemble = Ensemble(self._world, self._net, tick_s=tick_s)
        self._cuts: dict[int, tuple[Link, ...]] = {}
        self._clients = 0

    def leader(self) -> int:
        self._until(lambda: self._ensemble.reign() is not None)
        reign = self._ensemble.reign()
        assert reign is not None
        return self._ensemble.servers.index(reign.server)

    def client(self, *servers: int, timeout_s: float) -> SimClient:
        self._clients += 1
        return SimClient(self._net, self._ensemble, f"host{self._clients}", timeout_s, servers)

    def kill(self, index: int) -> None:
        self._ensemble.servers[index].crash()

    def restart(self, index: int) -> None:
        self._ensemble.servers[index].restart()

    def pause(self, index: int) -> None:
        self._ensemble.servers[index].pause()

    def resume(self, index: int) -> None:
        self._ensemble.servers[index].resume()

    def cut_off(self, index: int) -> None:
        names = [name for place, name in enumerate(self._ensemble.names) if place != index]
        self._cuts[index] = self._net.cut(both([self._ensemble.names[index]], names))

    def rejoin(self, index: int) -> None:
        self._net.heal(self._cuts.pop(index))

    def wait_serving(self, count: int) -> None:
        self._until(lambda: sum(server.up for server in self._ensemble.servers) >= count)

    def _until(self, condition: Callable[[], bool]) -> None:
        assert condition() or self._world.run(self._world.now + SERVING_LIMIT_S, condition)

    def close(self) -> None:
        """Nothing outlives the test."""
