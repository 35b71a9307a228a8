"""One agent on this machine as a child process, with its guard and its Redis, and all they own below one directory."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import psutil
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

import redis_agent
from redis_agent.lab import host
from redis_agent.lab.proxy import Cut, TcpProxy
from redis_agent.lab.settings import Settings, merged, toml
from redis_agent.lab.waiting import wait_for
from redis_agent.lab.zookeeper import LabError
from redis_agent.replication import Address

_SOURCES = Path(redis_agent.__file__).resolve().parents[1]
_LAST_LINES = 25


class AgentProcess:
    """An agent and its Redis. It is written to disk at once and started by ``start``.

    Should this process die, the kernel kills the agent (where ``setpriv`` is installed); to the kernel the parent is
    the *thread* that called ``start``, so call it from one that lives as long as the agent should. Guard and Redis
    outlive the agent on purpose: ``destroy`` ends them, and where we may be killed, ``janitor.cleaning``.

    Args:
        name: the member's name.
        directory: for configuration, state, data and logs; made if missing, left as it is.
        settings: of the configuration file.
        port: of Redis.
        redis_conf: further lines of the operator's redis.conf.
        password: of Redis, if it shall have one.
        proxies: what stands between this agent and ZooKeeper; they are closed with it.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        settings: Settings,
        *,
        port: int,
        redis_conf: str = "",
        password: str = "",
        proxies: Sequence[TcpProxy] = (),
    ) -> None:
        self.name = name
        self.directory = directory
        self.address = Address("127.0.0.1", port)
        self.password = password
        self.proxies = tuple(proxies)
        self.settings = settings
        self.redis_conf = redis_conf
        self.process: subprocess.Popen[bytes] | None = None
        self.starts = 0
        for part in ("data", "state", "run"):
            (directory / part).mkdir(parents=True, exist_ok=True)
        self.configure()

    # --- files --------------------------------------------------------------------------------------------------------

    @property
    def config_path(self) -> Path:
        return self.directory / "agent.toml"

    @property
    def log_path(self) -> Path:
        return self.directory / "agent.log"

    @property
    def data_dir(self) -> Path:
        return self.directory / "data"

    @property
    def state_dir(self) -> Path:
        return self.directory / "state"

    @property
    def run_dir(self) -> Path:
        return self.directory / "run"

    @property
    def unix_socket(self) -> Path | None:
        """Where Redis listens for its agent; None while there is none."""
        path = self.run_dir / "redis.sock"
        return path if path.exists() else None

    def configure(self, settings: Settings | None = None, *, redis_conf: str | None = None) -> None:
        """Write the two configuration files (again, with changes). Effective at the next start."""
        self.settings = merged(self.settings, settings or {})
        self.redis_conf = self.redis_conf if redis_conf is None else redis_conf
        lines = [
            "bind 127.0.0.1",
            f"port {self.address.port}",
            f"dir {self.data_dir}",
            'save ""',
            "appendonly no",
            # By default a primary waits 5 s for more replicas before it sends a copy.
            "repl-diskless-sync-delay 0",
            *([f"requirepass {self.password}", f"masterauth {self.password}"] if self.password else []),
            self.redis_conf,
        ]
        conf = self.directory / "redis.conf"
        conf.write_text("\n".join(lines) + "\n", encoding="utf-8")
        own: Settings = {
            "agent": {"name": self.name, "state_dir": str(self.state_dir), "run_dir": str(self.run_dir)},
            "redis": {"announce_host": self.address.host, "conf": str(conf)},
        }
        self.config_path.write_text(toml(merged(own, self.settings)), encoding="utf-8")

    def log_text(self) -> str:
        """All that this member's agents have said so far."""
        with suppress(OSError):
            return self.log_path.read_text(encoding="utf-8", errors="replace")
        return ""

    def log_events(self) -> Iterator[dict[str, Any]]:
        """The lines of a log in JSON (setting ``log.format``)."""
        for line in self.log_text().splitlines():
            with suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict):
                    yield event

    # --- the agent ----------------------------------------------------------------------------------------------------

    @property
    def pid(self) -> int | None:
        """Of the agent; None if it does not run."""
        return self.process.pid if self.process is not None and self.process.poll() is None else None

    @property
    def running(self) -> bool:
        return self.pid is not None

    @property
    def frozen(self) -> bool:
        """The agent is stopped (SIGSTOP)."""
        with suppress(psutil.Error):
            return self.pid is not None and psutil.Process(self.pid).status() == psutil.STATUS_STOPPED
        return False

    @property
    def returncode(self) -> int | None:
        """Of the latest agent that ended, negative for a signal."""
        return None if self.process is None else self.process.poll()

    def start(self) -> None:
        """Start the agent. Does not wait for anything.

        Raises:
            LabError: it runs already.
        """
        if self.running:
            raise LabError(f"{self.name} runs already")
        setpriv = shutil.which("setpriv")
        # setpriv becomes the agent, so the process id is the agent's.
        dies_with_us = [setpriv, "--pdeathsig", "KILL", "--"] if setpriv else []
        run = [sys.executable, "-m", "redis_agent.cli.main", "run", "--config", str(self.config_path)]
        with self.log_path.open("ab") as log:
            self.process = self.popen([*dies_with_us, *run], _environment(), log)
        self.starts += 1

    def popen(self, argv: Sequence[str], env: dict[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        """How the agent's program is run: here. Other laboratories have other hosts."""
        return subprocess.Popen(
            argv,
            cwd=self.directory,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Ctrl-C in a terminal is for the one who started them.
            start_new_session=True,
        )

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the agent.

        Raises:
            LabError: it does not run.
        """
        if self.process is None or self.process.poll() is not None:
            raise LabError(f"the agent of {self.name} does not run")
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL to the agent, and reap it."""
        self.send_signal(signal.SIGKILL)
        self.wait(10.0)

    def terminate(self) -> None:
        """SIGTERM; does not wait."""
        self.send_signal(signal.SIGTERM)

    def stop(self, limit_s: float = 30.0) -> int:
        """SIGTERM, and wait for the end.

        Returns:
            The exit status.
        """
        self.terminate()
        return self.wait(limit_s)

    def pause(self) -> None:
        """SIGSTOP."""
        self.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self.send_signal(signal.SIGCONT)

    def wait(self, limit_s: float) -> int:
        """Wait for the end of the agent.

        Returns:
            The exit status, negative for a signal.

        Raises:
            LabError: it still runs.
        """
        if self.process is None:
            raise LabError(f"the agent of {self.name} was never started")
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise LabError(f"the agent of {self.name} still runs after {limit_s:g} s{self.last_words()}") from None

    def upgrade(self) -> None:
        """SIGUSR2: the agent executes its program again, and leaves Redis running meanwhile."""
        self.send_signal(signal.SIGUSR2)

    # --- its guard, and the whole host --------------------------------------------------------------------------------

    @property
    def guard_pid(self) -> int | None:
        """Of the guard, also if the agent is gone; None if there is none."""
        guard = host.guard_of(self.directory, self.redis_process())
        return None if guard is None else guard.pid

    def signal_guard(self, number: signal.Signals) -> int:
        """Send a signal to the guard.

        Returns:
            When, in nanoseconds of time.monotonic_ns(), taken before the signal was sent.

        Raises:
            LabError: there is none.
        """
        return self._signal_host(number, ("guard",))

    def kill_guard(self) -> int:
        """SIGKILL to the guard: Redis dies with it. Returns when."""
        return self.signal_guard(signal.SIGKILL)

    def stop_guard(self) -> int:
        """SIGSTOP to the guard; Redis runs on. Returns when."""
        return self.signal_guard(signal.SIGSTOP)

    def freeze_host(self, order: Sequence[str] = host.HOST) -> int:
        """SIGSTOP to agent, guard and Redis, as if the whole host stood still. Returns when it began.

        Raises:
            LabError: one of them does not run.
        """
        return self._signal_host(signal.SIGSTOP, order)

    def thaw_host(self, order: Sequence[str] = host.HOST) -> int:
        """SIGCONT to those that still are there. Returns when it began."""
        return self._signal_host(signal.SIGCONT, order, missing_ok=True)

    def _signal_host(self, number: signal.Signals, order: Sequence[str], *, missing_ok: bool = False) -> int:
        redis_server = self.redis_process()
        found: dict[str, Sequence[psutil.Process]] = {
            "agent": (psutil.Process(self.pid),) if self.pid is not None else (),
            "guard": host.family(host.guard_of(self.directory, redis_server))[:1],
            "redis": host.family(redis_server),
        }
        if not missing_ok and (missing := [each for each in order if not found[each]]):
            raise LabError(f"{self.name} has no {' and no '.join(missing)}{self.last_words()}")
        at_ns = time.monotonic_ns()
        for each in order:
            for process in found[each]:
                with suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
        return at_ns

    # --- its Redis ----------------------------------------------------------------------------------------------------

    def redis_process(self) -> psutil.Process | None:
        """The redis-server that works in our data directory, also if its agent is gone; None if there is none."""
        found = None
        with suppress(psutil.Error):
            if (pid := self.pid) is not None:
                found = host.redis_of(self.data_dir, psutil.Process(pid).children(recursive=True))
        return found or host.redis_of(self.data_dir, psutil.process_iter())

    @property
    def redis_pid(self) -> int | None:
        process = self.redis_process()
        return None if process is None else process.pid

    def kill_redis(self) -> int:
        """SIGKILL to Redis.

        Returns:
            When, in nanoseconds of time.monotonic_ns(), taken before the signal was sent.
        """
        return self.signal_redis(signal.SIGKILL)

    def signal_redis(self, number: signal.Signals) -> int:
        """Send a signal to Redis.

        Returns:
            When, in nanoseconds of time.monotonic_ns(), taken before the signal was sent.

        Raises:
            LabError: there is none.
        """
        process = self.redis_process()
        if process is None:
            raise LabError(f"no redis-server of {self.name} runs{self.last_words()}")
        at_ns = time.monotonic_ns()
        process.send_signal(number)
        return at_ns

    def redis(self, *, timeout_s: float = 1.0, **settings: Any) -> redis.Redis:
        """A client of this Redis that retries nothing. Close it (``with``)."""
        return redis.Redis(
            host=self.address.host,
            port=self.address.port,
            password=self.password or None,
            socket_timeout=timeout_s,
            socket_connect_timeout=timeout_s,
            single_connection_client=True,
            retry=Retry(NoBackoff(), 0),
            **({"decode_responses": True} | settings),
        )

    def info(self, timeout_s: float = 0.5) -> dict[str, Any]:
        """INFO of this Redis; empty if it does not answer."""
        try:
            with self.redis(timeout_s=timeout_s) as client:
                answer: dict[str, Any] = client.info()
                return answer
        except (redis.RedisError, OSError):
            return {}

    def wait_redis(self, limit_s: float = 10.0) -> dict[str, Any]:
        """Wait until Redis answers.

        Returns:
            Its INFO.
        """
        return wait_for(self.info, limit_s, lambda: f"Redis of {self.name} answers{self.last_words()}")

    # --- its ZooKeeper ------------------------------------------------------------------------------------------------

    def cut_zookeeper(self, what: Cut = Cut.BOTH) -> None:
        """This agent alone hears nothing of ZooKeeper any more. Needs proxies."""
        self._need_proxies()
        for proxy in self.proxies:
            proxy.cut(what)

    def restore_zookeeper(self) -> None:
        """End the cut."""
        self._need_proxies()
        for proxy in self.proxies:
            proxy.restore()

    def _need_proxies(self) -> None:
        if not self.proxies:
            raise LabError("no proxies: make the cluster with proxied=True")

    # --- the end ------------------------------------------------------------------------------------------------------

    def destroy(self) -> None:
        """Kill whatever is left of this member, paused or not, also behind a dead agent. Files stay."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

        def nobody_left() -> bool:
            left = host.workers(self.directory)
            for process in left:
                with suppress(psutil.Error):
                    process.kill()
            return not left

        wait_for(nobody_left, 5.0, lambda: f"the end of {host.workers(self.directory)}")
        for proxy in self.proxies:
            proxy.close()

    def last_words(self, lines: int = _LAST_LINES) -> str:
        """The end of the log, for messages."""
        tail = self.log_text().splitlines()[-lines:]
        return "".join(f"\n  {self.name}| {line}" for line in tail)


def _environment() -> dict[str, str]:
    """Ours, without what would change the agent's settings or make it believe that systemd started it."""
    unwanted = ("REDIS_AGENT_", "NOTIFY_SOCKET", "WATCHDOG_", "JOURNAL_STREAM")
    env = {key: value for key, value in os.environ.items() if not key.startswith(unwanted)}
    # Runs from a checkout as well as installed.
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(_SOURCES), env.get("PYTHONPATH", "")]))
    return env
