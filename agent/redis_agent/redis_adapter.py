"""Everything that the core orders about Redis: the local process with its guard, the connections, the other members."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from redis_agent.guard_link import GREETING_LIMIT_S, SOCKET_NAME, Greeting, GuardGone, GuardLink, check_path
from redis_agent.messages import (
    ArmGuard,
    CatchUp,
    DisarmGuard,
    Event,
    GuardDone,
    GuardFailed,
    KillRedis,
    LeaveRedis,
    ProbeError,
    ProbeRemote,
    RedisAwaited,
    RedisCommand,
    RedisDied,
    RedisLeft,
    RedisRefused,
    RedisUp,
    StartRedis,
    StopRedis,
)
from redis_agent.process import RedisProcess, digest
from redis_agent.process_host import check_launch, end_lost_guards, exit_status, find_binary, is_alive
from redis_agent.redis_conf import (
    LaunchPlan,
    LaunchRefused,
    RedisSettings,
    plan_launch,
    read_operator_conf,
    write_generated,
)
from redis_agent.redis_link import RedisLink
from redis_agent.redis_remote import RemoteRedis
from redis_agent.redis_role import gone
from redis_agent.redis_start import Opened, ProcessGone, StartRefused, open_connections

NOT_LAUNCHED = 127
"""Status of a Redis that could not even be executed, as a shell has it."""

JOIN_LIMIT_S = 2.0
LINES_LIMIT_S = 0.1


@dataclass(slots=True)
class _Current:
    """The process that runs, or ran last."""

    incarnation: int
    process: RedisProcess | None = None
    link: RedisLink | None = None
    dead: bool = False
    """It is, or we have let go of it."""


class RedisAdapter:
    """Executes Redis commands; answers go to ``post``.

    ``execute`` belongs to one thread. Redis is the child of a guard of its own (guard.py), which outlives the agent.

    Args:
        settings: how to launch Redis, and how to talk to it.
        post: takes the events, on any thread.
        clock: CLOCK_BOOTTIME in seconds.
        on_output: takes each line that Redis prints, without secrets, on any thread; must not block.
    """

    def __init__(
        self,
        settings: RedisSettings,
        *,
        post: Callable[[Event], None],
        clock: Callable[[], float],
        on_output: Callable[[str], None] = lambda _line: None,
    ) -> None:
        self._settings = settings
        self._post = post
        self._clock = clock
        self._on_output = on_output
        self._current = _Current(0, dead=True)
        # Orders the two threads of a process, the one that brings it up and the one that waits for its death.
        self._lock = threading.Lock()
        self._remote: RemoteRedis | None = None
        self._looked = False
        self._old: tuple[GuardLink, Greeting] | None = None

    def find_old(self) -> tuple[int, float] | None:
        """Look for the guard that our last life left: process id and start of the live Redis that it holds, or None.

        The first StartRedis attaches to it. Blocks for a moment, once.

        Raises:
            LaunchRefused: another agent has it.
        """
        if not self._looked:
            self._old = self._look(self._guard_path())
            self._looked = True
        return None if self._old is None else (self._old[1].redis_pid, self._old[1].create_time)

    def _look(self, path: Path) -> tuple[GuardLink, Greeting] | None:
        link = GuardLink.find(path)
        if link is None:
            return None
        try:
            greeting = link.greeting(GREETING_LIMIT_S)
        except LaunchRefused:
            link.close()
            raise
        except GuardGone as gone:
            # One that can't be talked to can't be left to itself either: it may be armed.
            self._on_output(f"{gone}: killed, and redis-server with it")
            link.kill()
            link.end(JOIN_LIMIT_S)
            return None
        status = greeting.status
        if status is None:
            if is_alive(greeting.redis_pid, greeting.create_time):
                return link, greeting
            # Its guard has not noticed it yet.
            status = exit_status(greeting.redis_pid, greeting.create_time)
        for line in link.waiting_lines(LINES_LIMIT_S):
            self._on_output(line)
        self._on_output(f"redis-server has died while it had no agent (status {status})")
        link.end(JOIN_LIMIT_S)
        return None

    def _guard_path(self) -> Path:
        return self._settings.run_dir.absolute() / SOCKET_NAME

    def check(self) -> LaunchPlan:
        """Before anything else: can Redis be launched here?

        Raises:
            LaunchRefused: one line that names the matter, who holds it, and a remedy.
        """
        plan = self._plan()
        check_path(self._guard_path())
        if self.find_old() is None:
            try:
                check_launch(plan, self._settings.binary)
            except LaunchRefused:
                # Somebody removed our guard's socket, so it can be found by its arguments only.
                if not end_lost_guards(self._guard_path()):
                    raise
                check_launch(plan, self._settings.binary)
        return plan

    def execute(self, command: RedisCommand | ProbeRemote | CatchUp) -> None:
        """Carry out a command; does not block (a launch takes some milliseconds)."""
        match command:
            case StartRedis():
                self._start(command.incarnation)
            case StopRedis():
                if process := self._process(command.incarnation):
                    process.terminate(command.limit_s)
            case KillRedis():
                if process := self._process(command.incarnation):
                    process.kill()
            case ArmGuard():
                if process := self._guarded(command):
                    process.arm(command.request, command.until)
            case DisarmGuard():
                if process := self._guarded(command):
                    process.disarm(command.request)
            case LeaveRedis():
                self._leave(command.incarnation)
            case ProbeRemote():
                self._remotes().probe(command)
            case CatchUp():
                self._remotes().catch_up(command)
            case _:
                link = self._current.link if self._current.incarnation == command.incarnation else None
                if link is None:
                    self._post(gone(command, "redis-server is not up"))
                else:
                    link.execute(command)

    def close(self) -> None:
        """Let go of everything. An armed guard takes it as our death; where Redis is dead, nothing is left behind."""
        current, old = self._current, self._old
        if current.process is not None:
            if not current.dead:
                self._let_go(current)
            current.process.join(JOIN_LIMIT_S)
        if old is not None:
            old[0].close()
        if self._remote is not None:
            self._remote.close()

    # --- the local process ------------------------------------------------------------------------------------------

    def _process(self, incarnation: int) -> RedisProcess | None:
        """The process to signal; a dead one has been reported already."""
        return self._current.process if self._current.incarnation == incarnation else None

    def _guarded(self, command: ArmGuard | DisarmGuard) -> RedisProcess | None:
        process = self._process(command.incarnation)
        if process is None:
            self._post(GuardFailed(command.incarnation, command.request, "there is no redis-server"))
        return process

    def _start(self, incarnation: int) -> None:
        if not self._current.dead:
            raise RuntimeError(f"redis-server {self._current.incarnation} still runs")
        current = self._current = _Current(incarnation)
        try:
            self.find_old()
            plan = self._plan()
            link, greeting = self._attach() or (self._launch(plan), None)
        except (LaunchRefused, OSError) as error:
            current.dead = True
            self._post(RedisDied(incarnation, NOT_LAUNCHED, str(error), was_up=False))
            return
        if greeting is not None and digest(plan) != greeting.note:
            self._on_output("redis.conf or our settings have changed: that takes effect at the next start of Redis")
        # The threads of the process find it in ``current``.
        with self._lock:
            current.process = RedisProcess(
                plan,
                link,
                greeting,
                on_output=self._on_output,
                on_known=lambda process: self._known(current, process, plan, greeting),
                on_guard=lambda request, problem: self._guard_answers(incarnation, request, problem),
                on_death=lambda process, status: self._died(current, process, status),
            )

    def _attach(self) -> tuple[GuardLink, Greeting] | None:
        """The guard of our last life, once, if its Redis still lives."""
        old, self._old = self._old, None
        if old is not None and not is_alive(old[1].redis_pid, old[1].create_time):
            old[0].end(JOIN_LIMIT_S)
            return None
        return old

    def _launch(self, plan: LaunchPlan) -> GuardLink:
        binary = find_binary(self._settings.binary)
        write_generated(plan)
        return GuardLink.launch(self._guard_path(), binary, plan.conf_path, plan.data_dir)

    def _guard_answers(self, incarnation: int, request: int, problem: str) -> None:
        done = GuardFailed(incarnation, request, problem) if problem else GuardDone(incarnation, request)
        self._post(done)

    def _known(self, current: _Current, process: RedisProcess, plan: LaunchPlan, greeting: Greeting | None) -> None:
        name = f"redis-start-{current.incarnation}"
        threading.Thread(target=self._bring_up, args=(current, process, plan, greeting), name=name, daemon=True).start()

    def _bring_up(self, current: _Current, process: RedisProcess, plan: LaunchPlan, greeting: Greeting | None) -> None:
        try:
            plan, opened = self._opened(current, process, plan, greeting)
        except ProcessGone:
            return
        except StartRefused as error:
            self._refuse(current, process, str(error))
            return
        process.introduce(plan)
        link = RedisLink(
            plan,
            incarnation=current.incarnation,
            run_id=opened.info.run_id,
            role=opened.role,
            role_id=opened.role_id,
            monitor=opened.monitor,
            tell_guard=process.tell_lift,
            post=self._post,
            clock=self._clock,
        )
        with self._lock:
            if current.dead:
                link.close()
                return
            process.answered()
            current.link = link
            attached = process.attached
            self._post(RedisUp(current.incarnation, process.pid, process.create_time, opened.info, attached=attached))

    def _opened(
        self, current: _Current, process: RedisProcess, plan: LaunchPlan, greeting: Greeting | None
    ) -> tuple[LaunchPlan, Opened]:
        """Open the connections; also tells the plan by which that was possible. Raises ProcessGone, StartRefused."""

        def awaited(error: ProbeError) -> None:
            self._post(RedisAwaited(current.incarnation, error))

        if greeting is None:
            return plan, open_connections(plan, process.pid, process.over, awaited)
        # It was started with another configuration, perhaps: the socket's path can't have changed since.
        plan = replace(plan, socket_path=greeting.socket_path or plan.socket_path)
        old = replace(plan, username=greeting.username, password=greeting.password)
        limit_s = self._settings.busy_after_s
        try:
            return plan, open_connections(plan, process.pid, process.over, awaited, attach_limit_s=limit_s)
        except StartRefused:
            if old == plan:
                raise
            try:
                return old, open_connections(old, process.pid, process.over, awaited, attach_limit_s=limit_s)
            except StartRefused:
                # What is configured now is what a person can mend.
                pass
            raise

    def _refuse(self, current: _Current, process: RedisProcess, reason: str) -> None:
        """One that was launched for nothing is ended. One that runs has what the cluster may need."""
        if not process.attached:
            process.refuse(reason)
            return
        with self._lock:
            if not current.dead:
                reason = f"redis-server {process.pid} is left running, fenced: {reason}"
                self._post(RedisRefused(current.incarnation, reason))

    def _died(self, current: _Current, process: RedisProcess, status: int) -> None:
        with self._lock:
            if current.dead:
                return
            current.dead = True
            if current.link is not None:
                current.link.close()
            # One that we attached to had come up in our last life.
            was_up = current.link is not None or process.attached
            words = process.last_words()
            self._post(RedisDied(current.incarnation, status, words, was_up=was_up, ordered=process.ordered))

    def _leave(self, incarnation: int) -> None:
        if self._current.incarnation == incarnation:
            self._let_go(self._current)
        self._post(RedisLeft(incarnation))

    def _let_go(self, current: _Current) -> None:
        with self._lock:
            if current.dead:
                return
            current.dead = True
            link, current.link = current.link, None
        if link is not None:
            link.close()
        if current.process is not None:
            current.process.leave()

    def _plan(self) -> LaunchPlan:
        return plan_launch(self._settings, read_operator_conf(self._settings.conf))

    # --- other members ----------------------------------------------------------------------------------------------

    def _remotes(self) -> RemoteRedis:
        if self._remote is None:
            plan = self._plan()
            self._remote = RemoteRedis(plan.username, plan.password, self._post, self._clock)
        return self._remote
