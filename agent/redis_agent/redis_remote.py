"""Questions to other members' Redis, over TCP. One silent host holds up only the questions about itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from redis_agent.messages import CatchUp, CaughtUp, Event, ProbeRemote, RemoteProbed
from redis_agent.redis_conf import REMOTE_CLIENT_NAME
from redis_agent.redis_role import INFO, read_info
from redis_agent.redis_wire import Request, Wire, WireError, info_fields
from redis_agent.replication import Address
from redis_agent.workers import Worker

NAME: Request = ("CLIENT", "SETNAME", REMOTE_CLIENT_NAME)
"""So that a member that kicks its clients spares it."""

CATCH_UP_PAUSE_S = 0.0005
RECONNECT_PAUSE_S = 0.01
CATCH_UP_ANSWER_S = 1.0

Post = Callable[[Event], None]
Clock = Callable[[], float]


class RemoteRedis:
    """Executes ProbeRemote and CatchUp. Members of a cluster share user and password.

    Args:
        username: empty for the default user.
        password: empty for none.
        post: takes the events, on any thread.
        clock: CLOCK_BOOTTIME in seconds.
    """

    def __init__(self, username: str, password: str, post: Post, clock: Clock) -> None:
        self._username = username
        self._password = password
        self._post = post
        self._clock = clock
        self._workers: dict[Address, Worker] = {}

    def probe(self, command: ProbeRemote) -> None:
        """Never blocks; for the owner's thread only."""
        deadline = time.monotonic() + command.limit_s
        worker = self._workers.setdefault(command.address, Worker(f"redis-remote-{command.address}"))
        if not worker.submit(lambda: self._probe(command, deadline)):
            self._post(RemoteProbed(command.request, command.address, None))

    def catch_up(self, command: CatchUp) -> None:
        """Never blocks."""
        threading.Thread(target=self._catch_up, args=(command,), name="redis-catch-up", daemon=True).start()

    def close(self) -> None:
        for worker in self._workers.values():
            worker.close()

    def _probe(self, command: ProbeRemote, deadline: float) -> None:
        info = None
        try:
            wire = self._open(command.address, deadline - time.monotonic())
            info = read_info(wire.ask([INFO], deadline)[0])
            wire.close()
        except (WireError, ValueError):
            info = None
        self._post(RemoteProbed(command.request, command.address, info))

    def _catch_up(self, command: CatchUp) -> None:
        """Ask all of them at once: the first that has everything ends it for all."""
        done = threading.Event()
        found: list[str] = []
        for member, address in command.successors:
            threading.Thread(
                target=self._follow_one,
                args=(command, member, address, found, done),
                name=f"redis-catch-up-{member}",
                daemon=True,
            ).start()
        while not done.is_set() and (left_s := command.not_after - self._clock()) > 0:
            done.wait(left_s)
        done.set()
        self._post(CaughtUp(command.request, found[0] if found else None))

    def _follow_one(
        self, command: CatchUp, member: str, address: Address, found: list[str], done: threading.Event
    ) -> None:
        wire: Wire | None = None
        while not done.is_set() and (left_s := command.not_after - self._clock()) > 0:
            limit_s = min(left_s, CATCH_UP_ANSWER_S)
            try:
                name = () if wire is not None else (NAME,)
                wire = wire or self._open(address, limit_s)
                reply = wire.ask([*name, ("INFO", "replication")], time.monotonic() + limit_s)[-1]
            except WireError:
                wire = None
                done.wait(RECONNECT_PAUSE_S)
                continue
            if isinstance(reply, bytes) and _has(info_fields(reply), command.replid, command.offset):
                found.append(member)
                done.set()
            else:
                done.wait(CATCH_UP_PAUSE_S)
        if wire is not None:
            wire.close()

    def _open(self, address: Address, limit_s: float) -> Wire:
        return Wire.open_tcp(address, self._username, self._password, max(limit_s, 0.001))


def _has(fields: dict[str, object], replid: str, offset_bytes: int) -> bool:
    """It has this history up to that offset: received is not enough, so the smaller of its two offsets counts."""
    offsets = [fields.get("master_repl_offset"), fields.get("slave_repl_offset")]
    known = [offset for offset in offsets if isinstance(offset, int)]
    return fields.get("master_replid") == replid and bool(known) and min(known) >= offset_bytes
