"""Everything that the core orders about Redis: the local process, the connections to it, the other members' ones."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from redis_agent.messages import (
    CatchUp,
    Event,
    KillRedis,
    ProbeRemote,
    RedisCommand,
    RedisDied,
    RedisUp,
    StartRedis,
    StopRedis,
)
from redis_agent.process import RedisProcess, check_launch, dies_with_agent, find_binary
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
from redis_agent.redis_start import ProcessGone, StartRefused, open_connections

NOT_LAUNCHED = 127
"""Status of a Redis that could not even be executed, as a shell has it."""


@dataclass(slots=True)
class _Current:
    """The process that runs, or ran last."""

    incarnation: int
    process: RedisProcess | None = None
    link: RedisLink | None = None
    dead: bool = False


class RedisAdapter:
    """Executes Redis commands; answers go to ``post``.

    ``execute`` belongs to one thread, which must live as long as Redis shall: the kernel kills Redis when the thread
    that launched it ends.

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

    def check(self) -> LaunchPlan:
        """Before anything else: can Redis be launched here?

        Raises:
            LaunchRefused: one line that names the matter, who holds it, and a remedy.
        """
        plan = self._plan()
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
        """Leave no Redis behind."""
        if self._current.process is not None:
            self._current.process.kill()
        if self._remote is not None:
            self._remote.close()

    # --- the local process ------------------------------------------------------------------------------------------

    def _process(self, incarnation: int) -> RedisProcess | None:
        """The process to signal; a dead one has been reported already."""
        return self._current.process if self._current.incarnation == incarnation else None

    def _start(self, incarnation: int) -> None:
        if not self._current.dead:
            raise RuntimeError(f"redis-server {self._current.incarnation} still runs")
        current = self._current = _Current(incarnation)
        try:
            plan = self._plan()
            write_generated(plan)
            process = RedisProcess(
                plan,
                find_binary(self._settings.binary),
                on_output=self._on_output,
                on_death=lambda process, status: self._died(current, process, status),
            )
        except (LaunchRefused, OSError) as error:
            current.dead = True
            self._post(RedisDied(incarnation, NOT_LAUNCHED, str(error), was_up=False))
            return
        current.process = process
        if not dies_with_agent():
            self._on_output("no setpriv --pdeathsig here: if the agent is killed, redis-server lives on")
        name = f"redis-start-{incarnation}"
        threading.Thread(target=self._bring_up, args=(current, process, plan), name=name, daemon=True).start()

    def _bring_up(self, current: _Current, process: RedisProcess, plan: LaunchPlan) -> None:
        try:
            opened = open_connections(plan, process.pid, process.dead)
        except ProcessGone:
            return
        except StartRefused as error:
            process.refuse(str(error))
            return
        link = RedisLink(
            plan,
            incarnation=current.incarnation,
            run_id=opened.info.run_id,
            role=opened.role,
            role_id=opened.role_id,
            monitor=opened.monitor,
            post=self._post,
            clock=self._clock,
        )
        with self._lock:
            if current.dead:
                link.close()
                return
            process.answered()
            current.link = link
            self._post(RedisUp(current.incarnation, process.pid, process.create_time, opened.info))

    def _died(self, current: _Current, process: RedisProcess, status: int) -> None:
        with self._lock:
            current.dead = True
            if current.link is not None:
                current.link.close()
            was_up = current.link is not None
            words = process.last_words()
            self._post(RedisDied(current.incarnation, status, words, was_up=was_up, ordered=process.ordered))

    def _plan(self) -> LaunchPlan:
        return plan_launch(self._settings, read_operator_conf(self._settings.conf))

    # --- other members ----------------------------------------------------------------------------------------------

    def _remotes(self) -> RemoteRedis:
        if self._remote is None:
            plan = self._plan()
            self._remote = RemoteRedis(plan.username, plan.password, self._post, self._clock)
        return self._remote
