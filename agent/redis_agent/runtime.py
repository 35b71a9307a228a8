"""The running agent: one queue, one owner, and adapters that only put events into the queue.

The owner is the main thread. It takes an event, lets the core decide, hands the commands to the adapters, and never
blocks on anything but the queue.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path

from msgspec import structs

from redis_agent import __version__, logs
from redis_agent.config import ConfigError, Settings
from redis_agent.config_host import redis_settings, zookeeper_auth
from redis_agent.coordination import Coordination
from redis_agent.core.agent import Core
from redis_agent.messages import (
    ClockSet,
    CloseSession,
    Command,
    Commit,
    Ensure,
    Event,
    Exit,
    Log,
    OpenSession,
    Read,
    Ready,
    SaveState,
    Started,
    StopRequested,
    Tick,
    UpgradeRequested,
)
from redis_agent.process_host import end_process, is_alive
from redis_agent.redis_adapter import RedisAdapter
from redis_agent.redis_conf import LaunchRefused
from redis_agent.replication import NOWHERE
from redis_agent.runtime_init import Init
from redis_agent.state_file import LockHeld, StateFile, acquire_lock, load

BROKEN_INVARIANT = 70
NICE = -10
"""Where it is allowed: the agent needs little of the processor, but that little at once."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
"""Handled here; whoever starts us may have held them back until then."""
STOP_VARIABLE = "_REDIS_AGENT_STOP"
"""Set over an upgrade by an agent that was told to stop when it had left Redis to its next life already."""
FROZEN_NOISE = (
    f"Connecting to MASTER {NOWHERE}",
    "MASTER <-> REPLICA sync started",
    "Error condition on socket for SYNC: Connection refused",
)
RELOADABLE = frozenset({"log.level"})
OLD_REDIS_LIMIT_S = 10.0
CLOCK_STEP_S = 0.5
"""What the wall clock may differ by from what the core knows of it."""


def boottime_s() -> float:
    """The one clock: it does not jump, and goes on while the machine sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class _Reload:
    """SIGHUP: the owner reads the settings again."""


@dataclass(frozen=True, slots=True)
class Ending:
    """How it ended: the exit code, and whether the process is to execute itself ``again``, everything being closed.

    ``stop``: and be told to stop then.
    """

    code: int
    again: bool = False
    stop: bool = False


def run(settings: Settings, reread: Callable[[], Settings], source: str) -> Ending:
    """Run the agent until it is told to stop, or must.

    Args:
        settings: as checked.
        reread: reads the settings again, for SIGHUP; raises ConfigError.
        source: the file that they come from, for messages.

    Returns:
        The exit code, or that it is to be run again; the lock is released.

    Raises:
        ConfigError: this host cannot run it as configured.
    """
    state_dir = Path(settings.agent.state_dir)
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    try:
        # Held for the life of the process: it proves that no other agent of this name runs on this host.
        lock = acquire_lock(state_dir / "lock")
    except LockHeld as held:
        raise ConfigError(source, "[agent] state_dir", str(held), "stop it, or use another state_dir") from None
    try:
        return _Agent(settings, reread, source, state_dir / "state.json").run()
    finally:
        lock.release()


class _Agent:
    """Wires core and adapters together."""

    def __init__(self, settings: Settings, reread: Callable[[], Settings], source: str, state_path: Path) -> None:
        self._queue: queue.SimpleQueue[Event | _Reload] = queue.SimpleQueue()
        self._settings = settings
        self._reread = reread
        self._source = source
        post = self._queue.put
        redis = redis_settings(settings)
        self._core = Core(settings.core(announce=redis.announce, host=socket.gethostname(), agent_version=__version__))
        self._coordination = Coordination(
            hosts=settings.zookeeper.hosts,
            session_timeout_s=settings.zookeeper.session_timeout_s,
            post=post,
            clock=boottime_s,
            auth=zookeeper_auth(settings),
        )
        self._redis = RedisAdapter(redis, post=post, clock=boottime_s, on_output=_tell_redis_line)
        self._state_path = state_path
        self._state_file = StateFile(state_path, post)
        self._init = Init(os.environ, os.getpid())
        self._wall_offset_s = 0.0
        self._ending: Ending | None = None

    def run(self) -> Ending:
        # After an upgrade init has been waiting since our last life's latest sign.
        self._init.beat(boottime_s())
        try:
            started = self._recover()
            self._redis.check()
        except LaunchRefused as refused:
            self._redis.close()
            problem, _, remedy = str(refused).rpartition("; ")
            raise ConfigError(self._source, "[redis]", problem or remedy, remedy if problem else "correct it") from None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: self._queue.put(StopRequested()))
        signal.signal(signal.SIGHUP, lambda *_: self._queue.put(_Reload()))
        signal.signal(signal.SIGUSR2, lambda *_: self._queue.put(UpgradeRequested()))
        if os.environ.pop(STOP_VARIABLE, ""):
            self._queue.put(StopRequested())
        try:
            return self._loop(started)
        except BaseException as error:
            # A broken invariant: nobody may go on trusting this process. The guard takes its end for its death: armed,
            # it fences Redis; and if it is not armed, Redis is fenced. The data are needed whatever is wrong here.
            self._redis.close()
            logs.event("error", "broken_invariant", problem=f"{type(error).__name__}: {error}")
            if isinstance(error, Exception):
                logs.LOGGER.exception("broken_invariant")
                return Ending(BROKEN_INVARIANT)
            raise
        finally:
            self._redis.close()
            self._state_file.close()

    def _recover(self) -> Started:
        """What the agent's last life left behind."""
        record, problem = load(self._state_path)
        if problem:
            logs.event("warning", "state_file", problem=problem)
        recorded = (record.redis_pid, record.redis_create_time)
        held = self._redis.find_old()
        alive = held is not None
        if held != recorded and is_alive(*recorded):
            # It has lost its guard, and was to die with it; it holds the port until it has.
            alive = not end_process(*recorded, OLD_REDIS_LIMIT_S) or alive
        self._wall_offset_s = time.time() - boottime_s()
        return Started(record=record, lock_held=True, old_redis_alive=alive, wall_offset_s=self._wall_offset_s)

    def _loop(self, started: Started) -> Ending:
        event: Event = started
        while self._ending is None:
            self._init.beat(boottime_s())
            self._step(event)
            if self._ending is None:
                event = self._next()
                self._look_at_wall_clock()
        return self._held_back(self._ending) if self._ending.again else self._ending

    def _held_back(self, ending: Ending) -> Ending:
        """Signals wait for the program's next life from here on; a stop that was let in before is told to it."""
        with contextlib.suppress(queue.Empty):
            while not ending.stop:
                ending = replace(ending, stop=isinstance(self._queue.get_nowait(), StopRequested))
        return ending

    def _step(self, event: Event) -> None:
        for command in self._core.step(event, boottime_s()):
            self._execute(command)

    def _look_at_wall_clock(self) -> None:
        """It may be set at any time: orders are given and shown in its terms."""
        offset_s = time.time() - boottime_s()
        if abs(offset_s - self._wall_offset_s) > CLOCK_STEP_S:
            self._wall_offset_s = offset_s
            self._step(ClockSet(offset_s))

    def _next(self) -> Event:
        deadline = min(self._core.next_deadline() or inf, self._init.due)
        timeout_s = None if deadline == inf else max(0.0, deadline - boottime_s())
        # Only here are signals let in, and so by this thread alone: what our threads take over an upgrade is lost.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        try:
            event = self._queue.get(timeout=timeout_s)
        except queue.Empty:
            return Tick()
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        if isinstance(event, _Reload):
            self._reload()
            return Tick()
        return event

    def _reload(self) -> None:
        """Apply what can be changed while running, and say what can't be. Wrong settings change nothing."""
        try:
            settings = self._reread()
        except ConfigError as error:
            logs.event("error", "reload_refused", problem=str(error), clock=round(boottime_s(), 6))
            return
        changed = self._settings.changed_keys(settings)
        logs.event(
            "info",
            "reloaded",
            applied=[key for key in changed if key in RELOADABLE],
            needs_restart=[key for key in changed if key not in RELOADABLE],
            clock=round(boottime_s(), 6),
        )
        # Behind that line, which the new level may hide.
        logs.set_level(settings.log.level)
        # The other keys still are what they were when this process started.
        log = structs.replace(self._settings.log, level=settings.log.level)
        self._settings = structs.replace(self._settings, log=log)

    def _execute(self, command: Command) -> None:
        match command:
            case Log():
                logs.emit(command)
            case OpenSession() | CloseSession() | Ensure() | Read() | Commit():
                self._coordination.execute(command)
            case SaveState():
                self._state_file.execute(command)
            case Ready():
                self._init.ready(command.status)
            case Exit():
                self._ending = Ending(command.code, command.again, command.stop)
            case _:
                self._redis.execute(command)


def _tell_redis_line(line: str) -> None:
    # A frozen Redis tries its primary, which is nowhere, once a second, and tells of it in three lines.
    level = "debug" if any(noise in line for noise in FROZEN_NOISE) else "info"
    logs.event(level, "redis", line=line)
