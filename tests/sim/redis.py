"""A simulated redis-server, 7.0 in manner: roles, fence, pause, WAIT. See `redis_replication` and `redis_saving`, too.

It boots as our generated configuration says: fenced, a replica of nowhere. What the agent reads as INFO is made here.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from redis_agent.replication import NOWHERE, Address, RedisInfo, ReplicaLink
from tests.sim.process import Message, Process
from tests.sim.redis_data import FENCE, MAX_LAG_S, WRITE_BYTES, RedisConn, Site, Sites
from tests.sim.redis_saving import Saving
from tests.sim.watcher import Watcher
from tests.sim.world import Network

READ_COMMANDS = 16 * 1024 // WRITE_BYTES
"""How many commands of one connection a single read takes up."""


class Refused(Exception):
    """Redis answered with an error."""


class _Waiting:
    """A client that waits in WAIT."""

    __slots__ = ("conn", "number", "woff")

    def __init__(self, conn: RedisConn, number: int) -> None:
        self.conn = conn
        self.number = number
        self.woff = conn.woff


class SimRedis(Saving):
    """One process. ``status`` is what ``wait`` gives once it is gone; ``on_exit`` is called then."""

    def __init__(self, net: Network, sites: Sites, site: Site, watcher: Watcher, pid: int) -> None:
        super().__init__()
        self.net = net
        self.world = net.world
        self.sites = sites
        self.site = site
        self.host = site.name
        self.watcher = watcher
        self.pid = pid
        self.run_id = self.new_replid()
        self.process = Process(self.world, f"redis-{site.name}", site.name, site.clock)
        self.process.reads = self._first_read
        self.started_at = self.process.now
        self.status = 0
        self.dies_late_s = 0.0  # how long the kernel takes to end it behind a SIGKILL
        self.ended = False
        self.on_exit: list[Callable[[SimRedis], None]] = []
        self.role_generation = 0  # role commands of an older connection are no longer executed
        self.min_replicas = FENCE
        self.paused_until = 0.0
        self.silent_until = 0.0
        self.clients: dict[RedisConn, None] = {}
        self._postponed: deque[tuple[RedisConn, int]] = deque()
        self._unread: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._acks_wanted = False
        self._waiting: list[_Waiting] = []
        self._second = 0
        self.primary_address = NOWHERE
        self.replid = self.new_replid()
        site.redis = self
        loads = self.open_disk()
        self.process.after(self.world.uniform(0.0, 1.0), self._cron)
        if loads:
            self.loading = True
            self.process.after(watcher.load_s(len(loads)) + site.disk.slow_s, self._booted, loads)
        else:
            self._booted([])

    # -- the process ------------------------------------------------------------------------------------------------

    def _booted(self, data: list[int]) -> None:
        self.loading = False
        self.data = list(data)
        if self.site.disk.mode == "aof":
            self.site.disk.aof = self.data
        elif self.offset:
            self.cached = True  # but there is no backlog yet
        self.watcher.booted(self)
        self.watcher.changed(self)

    def _cron(self) -> None:
        self._second += 1
        if not self.loading:
            self.replication_cron(self._second)
            if self.site.disk.mode == "rdb" and self.world.chance(0.05):
                self.bgsave()
        self.process.after(1.0, self._cron)

    def _first_read(self, waiting: list[Message]) -> list[Message]:
        """Of a server that was stopped: one read of each connection may be executed before it frees the links that
        replicas have closed meanwhile, and so before it lacks them. What does not fit into the read comes behind that.
        """
        gone = [message for message in waiting if message[0] == self._on_replica_gone]
        if not gone or self.world.chance(0.3):
            return waiting
        taken: Counter[RedisConn] = Counter()
        first: list[Message] = []
        later: list[Message] = []
        for message in waiting:
            fn, args = message
            if fn in (self.write, self.wait):
                taken[args[0]] += 1
                (first if taken[args[0]] <= READ_COMMANDS else later).append(message)
            elif fn != self._on_replica_gone:
                first.append(message)
        return [*first, *gone, *later]

    def shut_down(self) -> None:
        """SHUTDOWN: saves what its configuration says."""
        if not self.loading and self.site.disk.mode == "rdb":
            self.save()
        self._exit(0)

    def kill(self, *, at_once: bool = False) -> None:
        """SIGKILL, to the whole process group. It executes nothing any more; its end may take the kernel a while.

        Until then nobody is told of its death, and its connections, its port and its data directory stay taken.
        ``at_once``: the kernel ends, too.
        """
        if self.process.alive:
            if self.site.disk.mode == "aof":
                self.site.disk.aof = list(self.site.disk.aof)
                self.site.disk.lose_tail(self.world.rng)
            self._die(-9)
            if self.dies_late_s and not at_once:
                self.world.after(self.dies_late_s, self._end)
                return
        elif not at_once:
            return
        self._end()

    def _exit(self, status: int) -> None:
        self._die(status)
        self._end()

    def _die(self, status: int) -> None:
        self.process.kill()
        self.status = status
        self.watcher.died(self)
        self.watcher.changed(self)

    def _end(self) -> None:
        if self.ended:
            return
        self.ended = True
        if self.site.redis is self:
            self.site.redis = None
        for hook in self.on_exit:
            hook(self)
        for conn in list(self.clients):
            self.close_client(conn)
        self.drop_replicas()
        self.close_uplink()
        self.watcher.changed(self)

    # -- what others ask --------------------------------------------------------------------------------------------

    @property
    def paused(self) -> bool:
        return self.process.clock.wall < self.paused_until

    @property
    def silent(self) -> bool:
        """CLIENT PAUSE for all commands: it lives and answers nobody."""
        return self.process.clock.wall < self.silent_until

    @property
    def fenced(self) -> bool:
        return self.min_replicas > 0 and self.good < self.min_replicas

    @property
    def open(self) -> bool:
        """The fence is lifted: nothing but a lack of replicas keeps a primary from taking writes."""
        return self.min_replicas < FENCE

    @property
    def writable(self) -> bool:
        """A client's write would be executed. A stopped process counts: it may be continued at any time."""
        able = self.process.alive and self.is_primary and not self.loading and not self.sick
        return able and not self.fenced and not self.paused

    def info(self) -> RedisInfo:
        replica_offset = None
        if not self.is_primary:
            replica_offset = self.offset if self.link_up or self.cached else 1
        return RedisInfo(
            run_id=self.run_id,
            version="7.0.15",
            is_primary=self.is_primary,
            replid=self.replid,
            replid2=self.replid2,
            second_offset_bytes=self.second + 1 if self.replid2 else -1,
            offset_bytes=self.offset,
            replica_offset_bytes=replica_offset,
            primary=None if self.is_primary else self.primary_address,
            link_up=self.link_up,
            syncing=self.syncing,
            loading=self.loading,
            keys=len(self.data),
            backlog=self.stream is not None,
            replicas=tuple(
                ReplicaLink(address=link.replica.site.address, online=link.online, offset_bytes=link.acked)
                for link in self.links
            ),
        )

    # -- roles ------------------------------------------------------------------------------------------------------

    def _may_change_role(self) -> None:
        if self.loading:
            raise Refused("LOADING Redis is loading the dataset in memory")

    def fence(self) -> None:
        self.min_replicas = FENCE
        self.watcher.changed(self)

    def lift_fence(self, at_least: int) -> None:
        self.min_replicas = at_least
        self.watcher.changed(self)

    def replicaof(self, address: Address) -> None:
        """REPLICAOF host port."""
        self._may_change_role()
        if not self.is_primary and self.primary_address == address:
            return  # already connected, or connecting, to it
        was_primary, self.is_primary = self.is_primary, False
        self.close_uplink()
        self.primary_address = address
        self.cached = self.cached or was_primary
        for waiting in self._waiting[:]:  # but a write that waits for the end of a pause goes on waiting
            waiting.conn.down.send(waiting.conn.client.on_reply, waiting.conn, ("UNBLOCKED", 0))
            self.close_client(waiting.conn)
        self.watcher.changed(self)
        self.process.after(self.world.uniform(0.0001, 0.001), self._connect)

    def replicaof_no_one(self) -> None:
        self._may_change_role()
        if self.is_primary:
            return
        self.close_uplink()
        self.is_primary, self.cached, self.primary_address = True, False, None
        self.replid2, self.second, self.replid = self.replid, self.offset, self.new_replid()
        self.drop_replicas()
        self.watcher.changed(self)

    def make_backlog(self) -> None:
        """A ``PSYNC ? -1`` that is closed at once: without a backlog it makes one, and a new replid."""
        if self.is_primary and self.stream is None:
            self.replid, self.replid2, self.second = self.new_replid(), "", -1
            self.make_stream()

    def pause_writes(self, for_s: float) -> None:
        self.paused_until = max(self.paused_until, self.process.clock.wall + for_s)
        self.watcher.changed(self)
        self.process.after(for_s, self._pause_over)

    def pause_all(self, for_s: float) -> None:
        """An operator's CLIENT PAUSE for all commands; UNPAUSE waits for its end, like any other."""
        self.silent_until = max(self.silent_until, self.process.clock.wall + for_s)
        self.pause_writes(for_s)

    def unpause(self) -> None:
        self.paused_until = self.silent_until = 0.0
        self._pause_over()

    def _pause_over(self) -> None:
        if self.paused:  # the wall clock was turned back meanwhile
            self.process.after(self.paused_until - self.process.clock.wall + 1e-6, self._pause_over)
        else:
            self.watcher.changed(self)
            if self._acks_wanted:
                self._acks_wanted = False
                if self._waiting:
                    self.ask_for_acks()
        while self._unread and not self.silent:
            fn, args = self._unread.popleft()
            fn(*args)
        while self._postponed and not self.paused:
            self._execute(*self._postponed.popleft())

    def clock_set(self) -> None:
        """The wall clock has jumped: the pause, and how long replicas have been silent, go by it."""
        self.refresh_good()
        self.watcher.changed(self)
        self._pause_over()

    def obey(self, fn: Callable[..., Any], *args: Any) -> None:
        """Execute a command of anybody's, the agent's too: while all are paused it waits."""
        if self.silent:
            self._unread.append((fn, args))
        else:
            fn(*args)

    def fall_ill(self, reason: str) -> None:
        """It can't save any more (or can again: an empty reason), and refuses writes to say so."""
        self.sick = reason
        self.watcher.changed(self)

    # -- clients ----------------------------------------------------------------------------------------------------

    def accept(self, conn: RedisConn) -> None:
        self.clients[conn] = None

    def close_client(self, conn: RedisConn) -> None:
        """The server closes the connection; what the client waits for has no answer."""
        if conn.open:
            conn.open = False
            self.clients.pop(conn, None)
            self._waiting = [waiting for waiting in self._waiting if waiting.conn is not conn]
            conn.down.send(conn.client.on_closed, conn)

    def client_gone(self, conn: RedisConn) -> None:
        conn.open = False
        self.clients.pop(conn, None)
        self._waiting = [waiting for waiting in self._waiting if waiting.conn is not conn]

    def kill_clients(self) -> None:
        """CLIENT KILL TYPE normal and pubsub; the agent's own connections are spared."""
        for conn in list(self.clients):
            self.close_client(conn)

    def kick_clients(self) -> None:
        """CLIENT KILL of each, by id. Here that is the same: the agent's own connections are none of ``clients``."""
        self.kill_clients()

    def write(self, conn: RedisConn, write_id: int) -> None:
        if conn.open:
            self._execute(conn, write_id)

    def _execute(self, conn: RedisConn, write_id: int) -> None:
        if not conn.open:
            return
        if self.sick:
            reply = "MISCONF"
        elif self.is_primary and self.fenced:
            reply = "NOREPLICAS"
        elif not self.is_primary:
            reply = "READONLY"
        elif self.loading:
            reply = "LOADING"
        elif self.paused:
            self._postponed.append((conn, write_id))
            return
        else:
            self.append(write_id, WRITE_BYTES)
            conn.woff, conn.wrote_in = self.offset, self.replid
            self.watcher.wrote(self, write_id)
            reply = "OK"
        conn.down.send(conn.client.on_reply, conn, (reply, write_id))

    def wait(self, conn: RedisConn, number: int, timeout_s: float) -> None:
        """WAIT, with a ROLE in the same round trip: (count, addresses that have the client's last write)."""
        if self.silent:
            self.obey(self.wait, conn, number, timeout_s)
            return
        if not conn.open:
            return
        if not self.is_primary:
            conn.down.send(conn.client.on_reply, conn, ("READONLY", 0))
            return
        waiting = _Waiting(conn, number)
        if not self._answer_wait(waiting):
            self._waiting.append(waiting)
            self.process.after(timeout_s, self._wait_over, waiting)
            if self.paused:
                self._acks_wanted = True
            else:
                self.ask_for_acks()

    def _answer_wait(self, waiting: _Waiting, *, late: bool = False) -> bool:
        holders = [link for link in self.links if link.online and link.acked >= waiting.woff]
        if len(holders) < waiting.number and not late:
            return False
        self.watcher.waited(self, waiting.conn, len(holders))
        addresses = tuple(sorted({link.replica.site.address for link in holders}))
        waiting.conn.down.send(waiting.conn.client.on_reply, waiting.conn, ("WAITED", len(holders), addresses))
        return True

    def acknowledged(self) -> None:
        if self._waiting:
            self._waiting = [waiting for waiting in self._waiting if not self._answer_wait(waiting)]

    def _wait_over(self, waiting: _Waiting) -> None:
        if waiting in self._waiting:
            self._waiting.remove(waiting)
            self._answer_wait(waiting, late=True)


__all__ = ["FENCE", "MAX_LAG_S", "Refused", "SimRedis", "Watcher"]
