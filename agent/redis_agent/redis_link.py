"""The agent's connections to its own Redis: one for role commands, one for watching. One RedisLink per process.

Role commands run one after the other over one connection and one worker. When the outcome of one is unknown, its
connection is killed *from Redis's side* before anything else is sent: else a REPLICAOF that Redis has not read yet
could be executed later and undo what came after it. Watching has a connection and a worker of its own, so that a hang
is noticed while a role command waits, and the other way round.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from redis_agent.messages import (
    Event,
    Freeze,
    KickClients,
    LiftFence,
    Probe,
    ProbeError,
    ProbeFailed,
    Promote,
    RoleCommand,
    RoleDone,
    RoleFailed,
    SaveTail,
    ScriptKill,
)
from redis_agent.redis_conf import MONITOR_CLIENT_NAME, ROLE_CLIENT_NAME, LaunchPlan
from redis_agent.redis_probe import QUESTIONS, Monitor, open_local, probe_error
from redis_agent.redis_role import INFO, Outcome, answer, gone, judge, kick_steps, read_info, role_steps
from redis_agent.redis_tail import save_tail
from redis_agent.redis_wire import ErrorReply, Reply, Request, Wire, WireClosed, WireError
from redis_agent.workers import Worker

SETTLE_S = 0.05
"""After a failed role command: how long its answer waits for the old connection to be killed."""

KEEP_ALIVE_S = 15.0
"""Redis's ``timeout`` closes idle connections, and a new one might find all slots taken."""

BACKLOG_POLL_S = 0.0005

_SCRIPT_KILLS: tuple[Request, ...] = (("SCRIPT", "KILL"), ("FUNCTION", "KILL"))

Post = Callable[[Event], None]
Clock = Callable[[], float]


class _NotSentError(Exception):
    """A role command can't be sent now; nothing was."""


class RedisLink:
    """Executes role commands, Probe, ScriptKill and SaveTail on one redis-server process; each has one answer.

    Args:
        plan: how to connect, and what is pinned.
        incarnation: the process's number.
        run_id: Redis's own name of the process; a connection to any other is refused.
        role: open connection for role commands, with the name of one.
        role_id: its id, as CLIENT ID says.
        monitor: open connection for probes, with the name of one.
        tell_guard: tells it the id of a connection over which the fence may be lifted; False if that can't be.
        post: takes the events, on any thread.
        clock: CLOCK_BOOTTIME in seconds.
    """

    def __init__(
        self,
        plan: LaunchPlan,
        *,
        incarnation: int,
        run_id: str,
        role: Wire,
        role_id: int,
        monitor: Wire,
        tell_guard: Callable[[int], bool],
        post: Post,
        clock: Clock,
    ) -> None:
        self._plan = plan
        self._incarnation = incarnation
        self._run_id = run_id
        self._tell_guard = tell_guard
        self._post = post
        self._clock = clock
        # Touched by the role worker only:
        self._role: Wire | None = role
        self._role_id = role_id
        self._unsettled: int | None = None
        """Id of an old role connection that may still hold commands which Redis has not read."""
        self._role_used = time.monotonic()
        # For the monitor's worker only, but for what it says of itself:
        self._monitor = Monitor(plan, monitor, clock)
        self._role_worker = Worker(f"redis-role-{incarnation}")
        self._monitor_worker = Worker(f"redis-monitor-{incarnation}")

    def execute(self, command: RoleCommand | Probe | ScriptKill | SaveTail) -> None:
        """Queue a command; never blocks. Its limit counts from here."""
        deadline = time.monotonic() + command.limit_s
        if isinstance(command, ScriptKill | SaveTail):
            job = self._kill_script if isinstance(command, ScriptKill) else self._save_tail
            name = f"redis-{type(command).__name__}-{self._incarnation}"
            threading.Thread(target=job, args=(command, deadline), name=name, daemon=True).start()
            return
        if isinstance(command, Probe):
            taken = self._monitor_worker.submit(lambda: self._probe(command, deadline))
            if time.monotonic() - self._role_used > KEEP_ALIVE_S:
                self._role_worker.submit(self._keep_role)
        else:
            taken = self._role_worker.submit(lambda: self._run_role(command, deadline))
        if not taken:
            self._post(gone(command, "redis-server is dead"))

    def close(self) -> None:
        """The process is dead: what is queued fails by itself."""
        self._role_worker.close(self._drop_role)
        self._monitor_worker.close(self._monitor.drop)

    # --- role commands, on the role worker ------------------------------------------------------------------------

    def _run_role(self, command: RoleCommand, deadline: float) -> None:
        try:
            wire = self._ready_role(deadline)
        except _NotSentError as error:
            self._post(gone(command, f"not sent: {error}"))
            return
        if isinstance(command, Promote) and command.run_id != self._run_id:
            self._post(gone(command, f"not sent: this is process {self._run_id}, not {command.run_id}"))
            return
        # First: what the guard finds out later might be too late.
        if isinstance(command, LiftFence) and not self._tell_guard(self._role_id):
            self._post(gone(command, "not sent: the guard can't be told over which connection"))
            return
        # Looked at again behind everything that could have taken time: right before it is sent.
        if isinstance(command, Promote | LiftFence) and self._clock() >= command.not_after:
            late = RoleFailed(command.incarnation, command.request, "not sent: too late", unknown=False, late=True)
            self._post(late)
            return
        try:
            event = answer(command, self._over(wire, command, deadline))
        except WireError as error:
            event = RoleFailed(command.incarnation, command.request, self._settle(error), unknown=True)
        except ValueError as error:
            event = RoleFailed(command.incarnation, command.request, str(error), unknown=True)
        self._post(event)

    def _over(self, wire: Wire, command: RoleCommand, deadline: float) -> Outcome:
        steps = role_steps(command, self._plan.own_min_replicas, self._monitor.drifted)
        replies = wire.ask([step.request for step in steps], deadline)
        outcome = judge(steps, replies)
        if isinstance(command, KickClients) and not outcome.error:
            steps = kick_steps(replies, {self._role_id})
            outcome = judge(steps, wire.ask([step.request for step in steps], deadline))
        self._role_used = time.monotonic()
        if isinstance(command, Freeze) and command.kill_clients:
            # It was killed with the others: have it back before they take all slots.
            self._monitor_worker.submit(lambda: self._monitor.keep(SETTLE_S))
        if isinstance(command, Promote) and outcome.info is not None and not outcome.info.backlog:
            return self._make_backlog(wire, deadline)
        return outcome

    def _make_backlog(self, wire: Wire, deadline: float) -> Outcome:
        """Without a backlog a primary would take a *new* replid when its first replica attaches.

        A PSYNC of our own makes one at once. ``capa eof`` lets Redis put off the dump, which we do not want: where the
        operator has switched diskless transfer off, it forks, and gives up when we hang up.
        """
        try:
            replica = self._open_replica(wire, deadline)
        except WireError as error:
            return Outcome(None, f"promoted, but no backlog: {error}", unknown=True)
        try:
            replica.send([("PSYNC", "?", "-1")])
            while time.monotonic() < deadline:
                info = read_info(wire.ask([INFO], deadline)[0])
                if info.backlog:
                    return Outcome(info)
                if not replica.usable():
                    # FULLRESYNC makes the backlog before it is said: an error is all that can be read without one.
                    return Outcome(None, f"promoted, but no backlog: {replica.read(deadline)!r}", unknown=True)
                time.sleep(BACKLOG_POLL_S)
        except WireError as error:
            return Outcome(None, f"promoted, but no backlog: {error}", unknown=True)
        finally:
            replica.close()
        return Outcome(None, "promoted, but no backlog in time", unknown=True)

    def _open_replica(self, wire: Wire, deadline: float) -> Wire:
        while True:
            try:
                replica = open_local(self._plan, deadline, "")
                # PSYNC is refused while a reply to the same connection is pending, so this one is waited for.
                replica.ask([("REPLCONF", "capa", "eof")], deadline)
                return replica
            except WireClosed:
                # Others hold all slots. Fenced as Redis is, they lose no more than a connection.
                if time.monotonic() >= deadline:
                    raise
                wire.ask([("CLIENT", "KILL", "TYPE", "normal")], deadline)

    def _ready_role(self, deadline: float) -> Wire:
        if time.monotonic() >= deadline:
            raise _NotSentError("its time was up while others were waited for")
        if self._unsettled is not None:
            self._settle_old(deadline)
        if self._role is not None and not self._role.usable():
            # Closed by the other side while nothing was under way: nothing is unknown.
            self._drop_role()
        if self._role is None:
            self._reopen_role(deadline)
        assert self._role is not None
        return self._role

    def _settle(self, error: WireError) -> str:
        """After a command whose outcome is unknown: what became of its connection."""
        self._unsettled = self._role_id
        self._drop_role()
        try:
            self._settle_old(time.monotonic() + SETTLE_S)
        except _NotSentError as unsettled:
            return f"{error}; it may yet be executed: {unsettled}"
        return f"{error}; its connection is killed, so if it was not executed by now, it never will be"

    def _settle_old(self, deadline: float) -> None:
        """CLIENT KILL of the old connection, answered by Redis: what it has not read of it by then, it never reads."""
        kill = ("CLIENT", "KILL", "ID", self._unsettled or 0)
        try:
            self._reopen_role(deadline)
            assert self._role is not None
            reply = self._role.ask([kill], deadline)[0]
        except WireError as error:
            self._drop_role()
            raise _NotSentError(f"connection {self._unsettled} can't be killed: {error}") from error
        except _NotSentError as error:
            if not isinstance(error.__cause__, WireClosed):
                raise
            # Others hold all slots: the monitor has one.
            reply = self._kill_over_monitor(kill, deadline)
        if isinstance(reply, ErrorReply):
            raise _NotSentError(f"connection {self._unsettled} can't be killed: {reply}")
        self._unsettled = None

    def _kill_over_monitor(self, kill: tuple[str, str, str, int], deadline: float) -> Reply:
        result: Future[Reply] = Future()

        def job() -> None:
            try:
                result.set_result(self._monitor.ask(kill, deadline))
            except WireError as error:
                result.set_exception(error)

        if not self._monitor_worker.submit(job):
            raise _NotSentError("redis-server is dead")
        try:
            return result.result(timeout=max(0.0, deadline - time.monotonic()))
        except (WireError, TimeoutError) as error:
            raise _NotSentError(f"connection {self._unsettled} can't be killed: {error}") from error

    def _reopen_role(self, deadline: float) -> None:
        try:
            wire = open_local(self._plan, deadline, "")
            _, number, raw = wire.ask([("CLIENT", "SETNAME", ROLE_CLIENT_NAME), ("CLIENT", "ID"), INFO], deadline)
            info = read_info(raw)
        except (WireError, ValueError) as error:
            raise _NotSentError(f"no connection: {error}") from error
        if not isinstance(number, int) or info.run_id != self._run_id:
            wire.close()
            raise _NotSentError(f"process {info.run_id} answers, not {self._run_id}")
        self._role, self._role_id = wire, number
        self._role_used = time.monotonic()

    def _keep_role(self) -> None:
        try:
            deadline = time.monotonic() + 1.0
            if time.monotonic() - self._role_used > KEEP_ALIVE_S:
                self._ready_role(deadline).ask([("PING",)], deadline)
                self._role_used = time.monotonic()
        except WireError:
            # A PING leaves nothing unsettled.
            self._drop_role()
        except _NotSentError:
            return  # The next role command tries again, and says what is wrong.

    def _drop_role(self) -> None:
        if self._role is not None:
            self._role.close()
            self._role = None

    # --- watching, on the monitor's worker ------------------------------------------------------------------------

    def _probe(self, command: Probe, deadline: float) -> None:
        try:
            event = self._monitor.probe(command, deadline)
        except WireClosed:
            # Dead, or others hold all slots, which is not always said: the role connection keeps its own.
            if not self._role_worker.submit(lambda: self._probe_over_role(command, deadline)):
                self._post(gone(command, "redis-server is dead"))
            return
        except WireError as error:
            event = ProbeFailed(command.incarnation, command.request, probe_error(error), str(error))
        self._post(event)

    def _probe_over_role(self, command: Probe, deadline: float) -> None:
        try:
            wire = self._ready_role(deadline)
            sent_at = self._clock()
            event = self._monitor.read_answers(wire, wire.ask(QUESTIONS, deadline), command, sent_at, deadline)
        except WireError as error:
            # Only questions were asked, so nothing is unsettled.
            self._drop_role()
            event = ProbeFailed(command.incarnation, command.request, probe_error(error), str(error))
        except _NotSentError as error:
            event = ProbeFailed(command.incarnation, command.request, ProbeError.REFUSED, str(error))
        self._post(event)

    # --- over connections of their own ----------------------------------------------------------------------------

    def _kill_script(self, command: ScriptKill, deadline: float) -> None:
        try:
            wire = open_local(self._plan, deadline, "")
            # Redis 7 has functions beside scripts; of the two errors the first is the one that matters.
            replies = wire.ask(_SCRIPT_KILLS, deadline)
            wire.close()
        except WireClosed:
            # Others hold all slots: the monitor has one.
            if not self._monitor_worker.submit(lambda: self._kill_script_over_monitor(command, deadline)):
                self._post(gone(command, "redis-server is dead"))
            return
        except WireError as error:
            self._post(RoleFailed(command.incarnation, command.request, str(error), unknown=error.sent))
            return
        self._post(_killed(command, replies))

    def _kill_script_over_monitor(self, command: ScriptKill, deadline: float) -> None:
        try:
            event = _killed(command, [self._monitor.ask(request, deadline) for request in _SCRIPT_KILLS])
        except WireError as error:
            event = RoleFailed(command.incarnation, command.request, str(error), unknown=error.sent)
        self._post(event)

    def _save_tail(self, command: SaveTail, deadline: float) -> None:
        self._post(save_tail(command, lambda: open_local(self._plan, deadline, MONITOR_CLIENT_NAME), deadline))


def _killed(command: ScriptKill, replies: Sequence[Reply]) -> Event:
    if all(isinstance(reply, ErrorReply) for reply in replies):
        return RoleFailed(command.incarnation, command.request, str(replies[0]), unknown=False)
    return RoleDone(command.incarnation, command.request, None)
