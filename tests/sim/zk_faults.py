"""Single faults of the ZooKeeper ensemble: its servers, their disks, and the links between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.sim.world import Link, both

if TYPE_CHECKING:
    from tests.sim.cluster import Cluster
    from tests.sim.world import Network, World
    from tests.sim.zk_server import Server


class ZooKeeperFaults:
    """What `faults.Faults` does to ZooKeeper. Each method breaks one thing and sees to it that it is mended."""

    cluster: Cluster
    world: World
    net: Network
    over: bool

    def _log(self, text: str) -> None:
        raise NotImplementedError

    def _time(self, *choices: tuple[float, float]) -> float:
        raise NotImplementedError

    def _cut(self, links: list[Link], for_s: float, what: str) -> None:
        raise NotImplementedError

    # -- choices ----------------------------------------------------------------------------------------------------

    def _server(self, *, prefer_leader: float = 0.4) -> Server:
        leader = self._zk_leader()
        if leader is not None and self.world.chance(prefer_leader):
            return leader
        return self.world.rng.choice(self.cluster.ensemble.servers)

    def _zk_leader(self) -> Server | None:
        reign = self.cluster.ensemble.reign()
        return None if reign is None else reign.server

    # -- processes and disks ----------------------------------------------------------------------------------------

    def crash_server(self, server: Server | None = None) -> None:
        """Now and then it comes back with an empty disk: a new machine under the old name."""
        server = server or self._server()
        if server.process.alive:
            self._log(f"kills {server.name}")
            server.crash()
            blank = self.world.chance(0.1)
            self.world.after(self._time((0.1, 5.0)), self._start_server, server, blank)

    def _start_server(self, server: Server, blank: bool) -> None:
        """Nobody gives a server an empty disk unless the others work without it."""
        blank = blank and self._zk_leader() is not None
        if not server.process.alive:
            self._log(f"starts {server.name} again{' with an empty disk' if blank else ''}")
        server.restart(blank=blank)

    def crash_zookeeper_leader(self) -> None:
        leader = self._zk_leader()
        if leader is not None:
            self.crash_server(leader)

    def zookeeper_down(self) -> None:
        servers = self.cluster.ensemble.servers
        if all(server.process.alive for server in servers):
            for_s = self._time((0.1, 0.5), (0.5, 12.0))
            self._log(f"all of ZooKeeper is down for {for_s:.3f} s")
            for server in servers:
                server.crash()
                self.world.after(for_s + self.world.uniform(0.0, 0.5), server.restart)

    def restart_zookeeper(self) -> None:
        """One server after the other, as for an upgrade."""
        for number, server in enumerate(self.cluster.ensemble.servers):
            self.world.after(4.0 * number, self._bounce, server)

    def _bounce(self, server: Server) -> None:
        if not self.over and all(each.up for each in self.cluster.ensemble.servers):
            self._log(f"restarts {server.name}")
            server.crash()
            self.world.after(self.world.uniform(0.3, 2.0), server.restart)

    def pause_server(self, server: Server | None = None, for_s: float | None = None) -> None:
        """A long garbage collection."""
        server = server or self._server()
        if server.process.alive and not server.process.stopped:
            for_s = self._time((0.05, 1.0), (1.0, 15.0)) if for_s is None else for_s
            self._log(f"stops {server.name} for {for_s:.3f} s")
            server.pause()
            self.world.after(for_s, server.resume)

    def stall_disks(self) -> None:
        """A majority's disks stall: nothing is committed. Or one server's, and nobody should notice."""
        servers = list(self.cluster.ensemble.servers)
        self.world.rng.shuffle(servers)
        for server in servers[: self.world.rng.choice((1, 2, 3))]:
            for_s = self._time((0.1, 3.0))
            self._log(f"the disk of {server.name} stalls for {for_s:.3f} s")
            server.stall_disk(for_s)

    # -- links ------------------------------------------------------------------------------------------------------

    def _others(self, server: Server) -> list[str]:
        return [name for name in self.cluster.ensemble.names if name != server.name]

    def cut_server(self, server: Server | None = None, for_s: float | None = None) -> None:
        """From the other servers; its clients reach it."""
        server = server or self._server(prefer_leader=0.0)
        for_s = self._time((0.1, 2.0), (2.0, 20.0)) if for_s is None else for_s
        self._cut(both([server.name], self._others(server)), for_s, f"cuts {server.name} off from the other servers")

    def isolate_zookeeper_leader(self) -> None:
        leader = self._zk_leader()
        if leader is not None:
            self.cut_server(leader)

    def cut_server_link(self) -> None:
        """Two servers do not hear each other, or one of them does not hear the other."""
        one = self._server()
        other = self.world.rng.choice(self._others(one))
        links = both([one.name], [other]) if self.world.chance(0.6) else [(one.name, other)]
        what = f"cuts {' and '.join(f'{source} > {target}' for source, target in links)}"
        self._cut(links, self._time((0.1, 3.0), (3.0, 20.0)), what)

    def partition_zookeeper(self) -> None:
        """One server on one side, two on the other; each member and client is on either side, or reaches all."""
        alone = self._server(prefer_leader=0.6)
        rest = self._others(alone)
        links = both([alone.name], rest)
        hosts = [*self.cluster.members, *(client.name for client in self.cluster.clients)]
        for host in hosts:
            links += both([host], self.world.rng.choice((rest, [alone.name], [], [])))
        self._cut(links, self._time((0.1, 3.0), (3.0, 20.0)), f"cuts ZooKeeper apart: {alone.name} and {rest}")
