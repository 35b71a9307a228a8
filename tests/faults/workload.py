"""Clients as a process of its own, to be put into any host: ``python -m tests.faults.workload SPEC``.

SPEC is a JSON object (``Spec``). Orders come on standard input, a line each: ``begin PREFIX FILE`` (write keys of this
prefix, note everything in this file) and ``end`` (finish what is under way, then say ``ended``). How a client finds the
primary is a plug-in, so that another system gets the very same clients; stubborn ones stay on one node whoever leads.

A confirmed write follows the rule that the project publishes: write, ROLE, WAIT w, ROLE in one round trip, and count
distinct registered voters at or past the offset of the first ROLE. The replication id is asked for before and behind
the write: whatever happens in between, an acknowledged write has one.
"""

from __future__ import annotations

import importlib
import itertools
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

from redis_agent.client import LeaderObserver
from redis_agent.lab.wire import LabConnection, Part, ReplyError, pack
from tests.faults.history import COUNTER_BASE, COUNTER_STEPS, OK, REFUSED, UNKNOWN, Entry, boottime_ns
from tests.faults.pipelining import Pipeliner
from tests.faults.talk import ABOUT, NOT_EXECUTED, Round, connect, replid_of

WAIT_LIMIT_MS = 1000
_PAUSE_S = 0.02


class Target(NamedTuple):
    """Where to write, and when a write counts as confirmed."""

    node: str
    """address:port."""
    need: int = 1
    """For WAIT."""
    voters: frozenset[str] | None = None
    """Who counts (address:port); None: every replica."""


class Finder(Protocol):
    """Knows where the primary is. Used by many threads."""

    def find(self) -> Target | None:
        """At once; None while there is none."""

    def close(self) -> None: ...


class AgentFinder:
    """Redis-agent's own: the observer of ZooKeeper's ``leader``.

    Args:
        hosts: of ZooKeeper.
        cluster: its name.
        members: of each member's name, where its Redis is (address:port).
        session_timeout_s: of the observer's session.
    """

    def __init__(self, hosts: str, cluster: str, members: Mapping[str, str], session_timeout_s: float = 6.0) -> None:
        self._members = members
        self._observer = LeaderObserver(hosts, cluster=cluster, session_timeout_s=session_timeout_s).start()

    def find(self) -> Target | None:
        view = self._observer.leader
        if view is None:
            return None
        voters = frozenset(self._members[name] for name in view.voters if name in self._members)
        return Target(f"{view.address.host}:{view.address.port}", view.wait, voters)

    def close(self) -> None:
        self._observer.close()


class FixedFinder:
    """One node for ever: for stubborn clients, and for tests of the checker."""

    def __init__(self, node: str, need: int = 1) -> None:
        self._target = Target(node, need)

    def find(self) -> Target | None:
        return self._target

    def close(self) -> None:
        """There is nothing to close."""


class Role(msgspec.Struct, kw_only=True):
    """One client, which is one thread with one connection at a time."""

    op: str
    """set, incr, rpush or get."""
    rate_per_s: float
    wait: bool = False
    stubborn: str = ""
    """The node (address:port) that it stays on."""
    pipelined: bool = False
    """Does not wait for answers (pipelining.py)."""


class Plugin(msgspec.Struct, kw_only=True):
    """A Finder: "module:class" and its keyword arguments."""

    name: str = "tests.faults.workload:AgentFinder"
    arguments: dict[str, Any] = {}

    def make(self) -> Finder:
        module, _, kind = self.name.partition(":")
        finder: Finder = getattr(importlib.import_module(module), kind)(**self.arguments)
        return finder


class Spec(msgspec.Struct, kw_only=True):
    """The clients of one process."""

    client: str
    """Their name's beginning, unique in a run."""
    roles: list[Role]
    finder: Plugin | None = None
    """None: stubborn ones only."""


class _Refused(Exception):
    """Certainly not executed."""


class Client:
    """One thread."""

    def __init__(self, name: str, role: Role, finder: Finder, round_: Round) -> None:
        self.name = name
        self._role = role
        self._finder = finder
        self._round = round_
        self._connection: LabConnection | None = None
        self._target: Target | None = None
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)

    def _run(self) -> None:
        next_at = time.monotonic()
        interval_s = 1 / self._role.rate_per_s
        for number in itertools.count(1):
            pause_s = max(0.0, next_at - time.monotonic())
            if self._round.stopping.wait(pause_s):
                break
            # After an outage there is no catching up.
            next_at = max(next_at + interval_s, time.monotonic())
            target = self._finder.find()
            if target is None:
                self._drop()
                next_at = time.monotonic() + _PAUSE_S
            elif not self._attempt(target, number):
                # Who knows the leader tries again soon; it is how outages are measured.
                next_at = time.monotonic() + (interval_s if self._role.stubborn else _PAUSE_S)
        self._drop()

    def _attempt(self, target: Target, number: int) -> bool:
        key, value, command = self._command(number)
        entry = Entry(
            t0=boottime_ns(),
            t1=0,
            client=self.name,
            op=self._role.op,
            key=key,
            value=value,
            node=target.node,
            outcome=UNKNOWN,
            need=target.need if self._role.wait else None,
            stubborn=bool(self._role.stubborn),
        )
        try:
            self._execute(target, entry, command)
        except _Refused as error:
            entry.outcome, entry.error = REFUSED, str(error)[:80]
        except OSError as error:
            entry.error = entry.error or f"{type(error).__name__}: {error}"[:80]
            self._drop()
        entry.t1 = entry.t1 or boottime_ns()
        self._round.note(entry)
        if entry.ok and self._role.op == "set":
            self._round.recent.append(key)
        return entry.ok

    def _command(self, number: int) -> tuple[str, str, tuple[Part, ...]]:
        prefix, value = self._round.prefix, f"{self.name}.{number}"
        if self._role.op == "set":
            key = f"{prefix}:s:{value}"
            return key, value, ("SET", key, value)
        if self._role.op == "incr":
            # Each adds a number of its own, so that the sum tells which of them were executed.
            counter, step = divmod(number - 1, COUNTER_STEPS)
            value = str(COUNTER_BASE**step)
            key = f"{prefix}:c:{self.name}.{counter}"
            return key, value, ("INCRBY", key, value)
        if self._role.op == "rpush":
            # One list for all, so that the order of different clients can be checked, too.
            key = f"{prefix}:l"
            return key, value, ("RPUSH", key, value)
        with suppress(IndexError):
            return (key := self._round.recent[-1]), "", ("GET", key)
        return (key := f"{prefix}:nothing"), "", ("GET", key)

    def _execute(self, target: Target, entry: Entry, command: tuple[Part, ...]) -> None:
        connection = self._connected(target)
        commands: list[tuple[Part, ...]] = [ABOUT, command, ABOUT]
        if self._role.wait:
            commands += [("ROLE",), ("WAIT", target.need, WAIT_LIMIT_MS), ("ROLE",)]
        entry.t0 = boottime_ns()
        connection.send(pack(*commands))
        before = connection.reply(self._worth_waiting)
        reply = connection.reply(self._worth_waiting)
        entry.t1 = boottime_ns()
        if isinstance(reply, ReplyError):
            if self._role.wait:
                # WAIT would make us wait for what else was in this round trip.
                self._drop()
            else:
                connection.reply(self._worth_waiting)
            if str(reply).startswith(NOT_EXECUTED):
                raise _Refused(str(reply))
            entry.error = str(reply)[:80]
            return
        entry.outcome = OK
        entry.result = reply.decode() if isinstance(reply, bytes) else reply if isinstance(reply, int) else None
        entry.replid = replid_of(before)
        try:
            entry.replid = replid_of(connection.reply(self._worth_waiting)) or entry.replid
            if self._role.wait:
                self._confirm(connection, target, entry)
        except OSError as error:
            # The write itself was acknowledged.
            entry.error = f"{type(error).__name__}: {error}"[:80]
            self._drop()

    def _confirm(self, connection: LabConnection, target: Target, entry: Entry) -> None:
        before, waited, after = (connection.reply(self._worth_waiting) for _ in range(3))
        entry.tw = boottime_ns()
        if isinstance(waited, int):
            entry.acked_by = waited
        entry.voters = _voters(before, after, target.voters)
        if isinstance(waited, ReplyError):
            entry.error = str(waited)[:80]

    def _connected(self, target: Target) -> LabConnection:
        if target != self._target:
            self._drop()
        if self._connection is not None and not self._connection.usable():
            # Closed while it was idle: it has executed nothing.
            self._drop()
        if self._connection is None:
            try:
                self._connection = connect(target.node)
            except OSError as error:
                raise _Refused(f"connect: {error}") from error
            self._target = target
        return self._connection

    def _worth_waiting(self) -> bool:
        """A stubborn client waits for ever: what a stopped host answers when it goes on is what it is there for. Any
        other gives up as soon as somebody else leads.
        """
        if self._round.stopping.is_set():
            return False
        if self._role.stubborn:
            return True
        found = self._finder.find()
        return found is None or self._target is None or found.node == self._target.node

    def _drop(self) -> None:
        self._target = None
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _voters(before: object, after: object, registered: frozenset[str] | None) -> int | None:
    """How many distinct registered voters have what the primary had before; None: that was no primary."""
    if not (isinstance(before, list) and isinstance(after, list) and before[0] == after[0] == b"master"):
        return None
    found = {f"{host.decode()}:{port.decode()}" for host, port, offset in after[2] if int(offset) >= before[1]}
    return len(found if registered is None else found & registered)


def _client(name: str, role: Role, finder: Finder, round_: Round) -> Client | Pipeliner:
    if role.pipelined:
        return Pipeliner(name, role.stubborn, role.rate_per_s, round_)
    return Client(name, role, finder, round_)


class Process:
    """What this program does."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._finder = spec.finder.make() if spec.finder is not None else None
        self._round: Round | None = None
        self._clients: list[Client | Pipeliner] = []

    def begin(self, prefix: str, path: Path) -> None:
        self.end()
        self._round = Round(prefix, path)
        for number, role in enumerate(self._spec.roles):
            finder = FixedFinder(role.stubborn) if role.stubborn else self._finder
            assert finder is not None
            self._clients.append(_client(f"{self._spec.client}.{role.op}{number}", role, finder, self._round))
        for client in self._clients:
            client.thread.start()

    def end(self) -> None:
        if self._round is None:
            return
        self._round.stopping.set()
        for client in self._clients:
            client.thread.join()
        self._round.close()
        self._round = None
        self._clients.clear()

    def close(self) -> None:
        self.end()
        if self._finder is not None:
            self._finder.close()


def main() -> int:
    process = Process(msgspec.json.decode(sys.argv[1], type=Spec))
    sys.setswitchinterval(0.001)
    print("ready", flush=True)
    for line in sys.stdin:
        match line.split():
            case ["begin", prefix, path]:
                process.begin(prefix, Path(path))
                print("begun", flush=True)
            case ["end"]:
                process.end()
                print("ended", flush=True)
    process.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
