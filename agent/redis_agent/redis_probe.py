"""What a probe asks, and what the answers say: INFO, drift, whether Redis can save. And what silence means."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence

from redis_agent.messages import Event, Probe, Probed, ProbeError, ProbeFailed
from redis_agent.redis_conf import MONITOR_CLIENT_NAME, LaunchPlan
from redis_agent.redis_role import INFO, read_info
from redis_agent.redis_wire import (
    ErrorReply,
    Reply,
    Request,
    Wire,
    WireClosed,
    WireDenied,
    WireError,
    WireTimeout,
    info_fields,
    is_awake,
    settings_of,
)

# Patterns, because Redis 6.2 takes one argument only.
QUESTIONS: tuple[Request, ...] = (INFO, ("CONFIG", "GET", "min-replicas-*"), ("CONFIG", "GET", "repl*"))

AWAKE_S = 0.1
"""The end of a probe's time, at most, that goes into telling an operator's pause from a hang."""

_SAVE_QUESTIONS: tuple[Request, ...] = (("CONFIG", "GET", "stop-writes-on-bgsave-error"), ("CONFIG", "GET", "save"))

_DENIALS = ("NOAUTH", "WRONGPASS", "NOPERM", "DENIED", "ERR")


class Monitor:
    """The connection for probes. It belongs to one worker, but for ``drifted`` and ``read_answers``.

    Args:
        plan: how to connect, and what is pinned.
        wire: open, with its name.
        clock: CLOCK_BOOTTIME in seconds.
    """

    def __init__(self, plan: LaunchPlan, wire: Wire, clock: Callable[[], float]) -> None:
        self._plan = plan
        self._wire: Wire | None = wire
        self._clock = clock
        self._owed = 0
        """Answers to an earlier probe that are still to come: a pause holds them back."""
        self.drifted: Mapping[str, str] = {}
        """The pinned settings that had another value when last seen, with what they should be. Replaced as a whole."""

    def probe(self, command: Probe, deadline: float) -> Event:
        """Ask. Raises WireError; the connection is closed then."""
        # What is left of the time when there was no answer goes into asking whether Redis is awake.
        patience = deadline - min(AWAKE_S, command.limit_s / 3)
        paused = ProbeFailed(command.incarnation, command.request, ProbeError.PAUSED, "CLIENT PAUSE of all commands")
        try:
            with contextlib.suppress(WireClosed):
                return self._probe(command, patience, deadline) or paused
            # A freeze kills it with all other clients: that says nothing about Redis.
            self.drop()
            return self._probe(command, patience, deadline) or paused
        except WireError:
            self.drop()
            raise

    def _probe(self, command: Probe, patience: float, deadline: float) -> Event | None:
        """None if Redis is awake and answers nobody."""
        if not self._usable():
            self.drop()
        wire = self._wire or self._open(patience, deadline)
        if wire is None:
            return None
        self._wire = wire
        if self._owed:
            # What a pause held back is as old as its end: ask again.
            if not self._answers(wire, patience, deadline):
                return None
            self._clear(wire, deadline)
        sent_at = self._clock()
        wire.send(QUESTIONS)
        self._owed = len(QUESTIONS)
        if not self._answers(wire, patience, deadline):
            # Kept until the pause is over: others might take its slot.
            return None
        replies = [wire.read(deadline) for _ in QUESTIONS]
        self._owed = 0
        return self.read_answers(wire, replies, command, sent_at, deadline)

    def _open(self, patience: float, deadline: float) -> Wire | None:
        """None if Redis is awake and answers nobody, not even AUTH."""
        for limit in (patience, deadline):
            try:
                return open_local(self._plan, limit, MONITOR_CLIENT_NAME)
            except WireTimeout:
                if not is_awake(self._plan.socket_path, (patience + deadline) / 2):
                    raise
        return None

    def _answers(self, wire: Wire, patience: float, deadline: float) -> bool:
        """There is something to read. False: Redis is awake and answers nobody. Raises WireTimeout if it sleeps."""
        if wire.wait(patience):
            return True
        awake = is_awake(self._plan.socket_path, (patience + deadline) / 2)
        # Awake, it has read what came before that, and has answered it but for a pause.
        if wire.wait(deadline):
            return True
        if not awake:
            raise WireTimeout("no answer in time", sent=True)
        return False

    def _clear(self, wire: Wire, deadline: float) -> None:
        """Read what is still owed."""
        while self._owed:
            wire.read(deadline)
            self._owed -= 1

    def _usable(self) -> bool:
        return self._wire is not None and (self._owed > 0 or self._wire.usable())

    def read_answers(
        self, wire: Wire, replies: Sequence[Reply], command: Probe, sent_at: float, deadline: float
    ) -> Event:
        """Make an event of the replies to QUESTIONS; asks once more if Redis has trouble with saving.

        Raises:
            WireError: when asking once more.
        """
        raw, *settings = replies
        if not isinstance(raw, bytes):
            error = _reply_error(raw) if isinstance(raw, ErrorReply) else ProbeError.DENIED
            return ProbeFailed(command.incarnation, command.request, error, str(raw))
        found = settings_of(settings)
        drift = tuple((name, found[name]) for name, value in self._plan.pinned if _differs(name, value, found))
        names = {name for name, _ in drift}
        self.drifted = {name: value for name, value in self._plan.pinned if name in names}
        fence = found.get("min-replicas-to-write")
        told = drift if fence is None else (*drift, ("min-replicas-to-write", fence))
        sick = _sickness(wire, info_fields(raw), deadline)
        try:
            return Probed(command.incarnation, command.request, sent_at, read_info(raw), told, sick)
        except ValueError as failure:
            return ProbeFailed(command.incarnation, command.request, ProbeError.DENIED, str(failure))

    def ask(self, request: Request, deadline: float) -> Reply:
        """Something else, over the slot that this connection has. Raises WireError."""
        if self._wire is None:
            raise WireClosed("no connection", sent=False)
        try:
            self._clear(self._wire, deadline)
            return self._wire.ask([request], deadline)[0]
        except WireError:
            self.drop()
            raise

    def keep(self, limit_s: float) -> None:
        """Have it open again. If that fails the next probe tries again, or goes another way."""
        if self._usable():
            return
        self.drop()
        with contextlib.suppress(WireError):
            self._wire = open_local(self._plan, time.monotonic() + limit_s, MONITOR_CLIENT_NAME)

    def drop(self) -> None:
        """Close the connection."""
        if self._wire is not None:
            self._wire.close()
            self._wire = None
        self._owed = 0


def open_local(plan: LaunchPlan, deadline: float, name: str) -> Wire:
    """A connection to the local Redis with this name (empty: none). Raises WireError."""
    wire = Wire.open_unix(plan.socket_path, plan.username, plan.password, max(deadline - time.monotonic(), 0.001))
    if name:
        wire.ask([("CLIENT", "SETNAME", name)], deadline)
    return wire


def _sickness(wire: Wire, info: Mapping[str, object], deadline: float) -> str:
    """Why Redis refuses every write (MISCONF) or would as a primary; the rule is its own."""
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        settings = settings_of(wire.ask(_SAVE_QUESTIONS, deadline))
        if settings.get("stop-writes-on-bgsave-error") == "yes" and settings.get("save"):
            return "MISCONF: the last RDB save failed (disk full?)"
    if info.get("aof_enabled") == 1 and info.get("aof_last_write_status", "ok") != "ok":
        return "MISCONF: the last write to the append-only file failed (disk full?)"
    return ""


def _differs(name: str, value: str, found: Mapping[str, str]) -> bool:
    actual = found.get(name)
    if actual is None:
        return False
    if name == "repl-backlog-size":
        return actual.isdigit() and int(actual) < int(value)
    return actual != value


def probe_error(error: WireError) -> ProbeError:
    """What a failed connection says about Redis."""
    if isinstance(error, WireTimeout):
        return ProbeError.TIMEOUT
    return ProbeError.DENIED if isinstance(error, WireDenied) else ProbeError.REFUSED


def _reply_error(reply: ErrorReply) -> ProbeError:
    if reply.code == "BUSY":
        return ProbeError.BUSY
    return ProbeError.DENIED if reply.code in _DENIALS else ProbeError.REFUSED
