"""A read of the simulated ZooKeeper adapter: several requests, at several moments."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from redis_agent.messages import Read, ReadDone, Znode
from tests.sim.zk_server import Connection, Request, Server

if TYPE_CHECKING:
    from tests.sim.zk_client import ZkClient


class Reading:
    """A Read under way: sync, paths, lists and trees in one wave, the data of the trees' children in a second.

    A path's watch is armed before its data are read, and that of a list that is missing in the second wave.

    A session's requests are answered in order, but not at one moment: other clients' transactions may come between.
    """

    def __init__(self, client: ZkClient, conn: Connection, call: int, command: Read) -> None:
        self.client = client
        self.call = call
        self.command = command
        self.sent_at = client.process.now
        self.paths: dict[str, Znode | None] = {}
        self.lists: dict[str, frozenset[str]] = {}
        self.names: dict[str, list[str]] = {}
        self.missing: list[str] = []
        wave: list[Request] = []
        if command.sync:
            wave.append(self._sync)
        wave += [self._path(path) for path in command.paths]
        wave += [self._list(path, self._take_list) for path in command.lists]
        wave += [self._list(path, self._take_tree) for path in command.trees]
        conn.up.send(self._arrive, conn, wave)

    def _arrive(self, conn: Connection, wave: list[Request]) -> None:
        for request in wave:
            conn.server.on_request(conn, request)
        conn.server.on_request(conn, self._end_of_wave)

    def _pass(self, done: Callable[[], None]) -> None:
        """Now and then something else gets in between two requests."""
        world = self.client.world
        if world.chance(0.1):
            world.after(world.uniform(0.0, 0.003), done)
        else:
            done()

    def _sync(self, server: Server, conn: Connection, done: Callable[[], None]) -> None:
        del conn
        server.sync(done)

    def _path(self, path: str) -> Request:
        def request(server: Server, conn: Connection, done: Callable[[], None]) -> None:
            server.data_watches.setdefault(path, {})[conn] = None

            def read() -> None:
                self.paths[path] = server.tree.nodes.get(path)
                self._pass(done)

            self._pass(read)

        return request

    def _list(self, path: str, take: Callable[[str, Iterable[str]], None]) -> Request:
        def request(server: Server, conn: Connection, done: Callable[[], None]) -> None:
            children = server.tree.children.get(path)
            if children is None:
                self.missing.append(path)
            else:
                server.child_watches.setdefault(path, {})[conn] = None
            take(path, children or ())
            self._pass(done)

        return request

    def _take_list(self, path: str, names: Iterable[str]) -> None:
        self.lists[path] = frozenset(names)

    def _take_tree(self, path: str, names: Iterable[str]) -> None:
        self.names[path] = list(names)

    def _end_of_wave(self, server: Server, conn: Connection, done: Callable[[], None]) -> None:
        if self.missing or any(self.names.values()):
            conn.down.send(self._second_wave, conn)
        else:
            self._finish(server, conn, {path: {} for path in self.names})
        done()

    def _second_wave(self, conn: Connection) -> None:
        self.client.process.run(self._send_second_wave, conn)

    def _send_second_wave(self, conn: Connection) -> None:
        if conn is self.client.conn and not self.client.over:
            conn.up.send(conn.server.on_request, conn, self._children)

    def _children(self, server: Server, conn: Connection, done: Callable[[], None]) -> None:
        nodes = server.tree.nodes
        trees: dict[str, dict[str, Znode]] = {}
        for path, names in self.names.items():
            found = {name: nodes.get(f"{path.rstrip('/')}/{name}") for name in names}
            trees[path] = {name: node for name, node in found.items() if node is not None}
        for path in self.missing:  # what was not there is watched for its creation, unless it came about meanwhile
            if path in nodes:
                conn.down.send(self.client.on_watch, conn, path)
            else:
                server.data_watches.setdefault(path, {})[conn] = None
        self._finish(server, conn, trees)
        done()

    def _finish(self, server: Server, conn: Connection, trees: dict[str, dict[str, Znode]]) -> None:
        client = self.client
        event = ReadDone(
            session=client.number,
            request=self.command.request,
            sent_at=self.sent_at,
            paths=self.paths,
            lists=self.lists,
            trees=trees,
        )
        conn.down.send(client.finished, conn, self.call, event, server.applied)
