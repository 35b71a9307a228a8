"""Redis Sentinel, deployed as its documentation says: a redis-server and a Sentinel on each of three hosts, quorum 2.

It is steered through unix sockets, which any network namespace reaches.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from redis import Redis, RedisError
from redis.backoff import NoBackoff
from redis.retry import Retry

from redis_agent.lab.waiting import wait_for

MASTER = "main"
REDIS_PORT = 6379
SENTINEL_PORT = 26379
QUORUM = 2
START_LIMIT_S = 15.0
SETTLE_LIMIT_S = 60.0
_SENTINEL_ERRORS = (RedisError, OSError)


class Place(Protocol):
    """A host: where a process can be started."""

    name: str
    address: str
    directory: Path

    def popen(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a process there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SentinelSettings:
    """What an operator would set. Everything else has Redis's default."""

    down_after_ms: int = 5000
    min_replicas: int = 0
    """min-replicas-to-write of every Redis."""
    max_lag_s: int = 10
    """min-replicas-max-lag, of which 10 is Redis's default."""
    failover_timeout_ms: int = 10_000
    """Of which 180,000 is the default. A vote that was split is repeated after twice this time."""
    appendonly: bool = False

    def redis_lines(self, address: str) -> list[str]:
        return [
            f"bind {address}",
            "protected-mode no",
            f"port {REDIS_PORT}",
            'save ""',
            f"appendonly {'yes' if self.appendonly else 'no'}",
            # As an agent sets them: a primary sends its copy at once, and a replica that was away gets what it missed.
            "repl-diskless-sync-delay 0",
            "repl-backlog-size 64mb",
            f"min-replicas-to-write {self.min_replicas}",
            f"min-replicas-max-lag {self.max_lag_s}",
            f"replica-announce-ip {address}",
        ]

    def sentinel_lines(self, address: str, primary: str) -> list[str]:
        return [
            f"bind {address}",
            "protected-mode no",
            f"port {SENTINEL_PORT}",
            f"sentinel announce-ip {address}",
            f"sentinel monitor {MASTER} {primary} {REDIS_PORT} {QUORUM}",
            f"sentinel down-after-milliseconds {MASTER} {self.down_after_ms}",
            f"sentinel failover-timeout {MASTER} {self.failover_timeout_ms}",
            # Both replicas may turn to the new primary at once: theirs are partial resyncs.
            f"sentinel parallel-syncs {MASTER} 2",
        ]


class SentinelMember:
    """The redis-server and the Sentinel of one host."""

    def __init__(self, place: Place, settings: SentinelSettings, primary: str) -> None:
        self.place = place
        self.name = place.name
        self.address = place.address
        self.settings = settings
        self.directory = place.directory / "sentinel"
        self.redis_process: subprocess.Popen[bytes] | None = None
        self.sentinel_process: subprocess.Popen[bytes] | None = None
        (self.directory / "data").mkdir(parents=True, exist_ok=True)
        common = [f"dir {self.directory / 'data'}"]
        lines = [*settings.redis_lines(self.address), *common, f"unixsocket {self._socket('redis')}"]
        if self.address != primary:
            lines.append(f"replicaof {primary} {REDIS_PORT}")
        # Both rewrite their file: a Redis that is started again is what it was told to be last.
        self._write("redis.conf", lines)
        lines = [*settings.sentinel_lines(self.address, primary), *common, f"unixsocket {self._socket('sentinel')}"]
        self._write("sentinel.conf", lines)

    def _write(self, name: str, lines: Sequence[str]) -> None:
        (self.directory / name).write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _socket(self, what: str) -> Path:
        return self.directory / f"{what}.sock"

    def start_redis(self) -> None:
        self.redis_process = self._popen("redis", "redis-server", str(self.directory / "redis.conf"))

    def start_sentinel(self) -> None:
        argv = ("redis-server", str(self.directory / "sentinel.conf"), "--sentinel")
        self.sentinel_process = self._popen("sentinel", *argv)

    def _popen(self, what: str, *argv: str) -> subprocess.Popen[bytes]:
        with (self.directory / f"{what}.log").open("ab") as log:
            return self.place.popen(argv, cwd=self.directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def start_missing(self) -> None:
        """What init does after a reboot."""
        if self.redis_process is None or self.redis_process.poll() is not None:
            self.start_redis()
        if self.sentinel_process is None or self.sentinel_process.poll() is not None:
            self.start_sentinel()

    @property
    def redis_pid(self) -> int:
        assert self.redis_process is not None
        return self.redis_process.pid

    def redis(self, timeout_s: float = 2.0) -> Redis:
        """A client of this Redis that retries nothing. Close it (``with``)."""
        return _client(self._socket("redis"), timeout_s)

    def sentinel(self, timeout_s: float = 2.0) -> Redis:
        """The same of its Sentinel."""
        return _client(self._socket("sentinel"), timeout_s)

    def info(self) -> dict[str, Any]:
        """INFO of this Redis; empty if it does not answer."""
        try:
            with self.redis(timeout_s=0.5) as client:
                answer: dict[str, Any] = client.info("replication")
                return answer
        except _SENTINEL_ERRORS:
            return {}

    def sentinel_view(self) -> dict[str, Any]:
        """What this Sentinel says of the primary; empty if it does not answer."""
        try:
            with self.sentinel(timeout_s=0.5) as client:
                answer: dict[str, Any] = client.sentinel_master(MASTER)
                return answer
        except _SENTINEL_ERRORS:
            return {}

    def destroy(self) -> None:
        """Kill both."""
        for process in (self.redis_process, self.sentinel_process):
            if process is not None:
                process.kill()
                process.wait()

    def last_words(self, lines: int = 12) -> str:
        told = []
        for what in ("redis", "sentinel"):
            with suppress(OSError):
                text = (self.directory / f"{what}.log").read_text(encoding="utf-8", errors="replace")
                told += [f"\n  {self.name} {what}| {line}" for line in text.splitlines()[-lines:]]
        return "".join(told)


def _client(path: Path, timeout_s: float) -> Redis:
    return Redis(
        unix_socket_path=str(path),
        socket_timeout=timeout_s,
        socket_connect_timeout=timeout_s,
        single_connection_client=True,
        retry=Retry(NoBackoff(), 0),
        decode_responses=True,
    )


class SentinelCluster:
    """All members. The first one begins as the primary."""

    def __init__(self, places: Sequence[Place], settings: SentinelSettings) -> None:
        self.settings = settings
        self.members = {place.name: SentinelMember(place, settings, places[0].address) for place in places}

    def start(self) -> None:
        """Start all, and wait until every Sentinel knows everybody."""
        for member in self.members.values():
            member.start_redis()
        self._wait(self._replicates, START_LIMIT_S, "every replica is in sync")
        for member in self.members.values():
            member.start_sentinel()
        self.wait_settled(START_LIMIT_S)

    def stop(self) -> None:
        for member in self.members.values():
            member.destroy()

    @property
    def sentinels(self) -> list[tuple[str, int]]:
        return [(member.address, SENTINEL_PORT) for member in self.members.values()]

    # --- who leads ----------------------------------------------------------------------------------------------------

    def primaries(self) -> list[SentinelMember]:
        """Who says of itself that it is one."""
        return [member for member in self.members.values() if member.info().get("role") == "master"]

    def _replicates(self, names: Sequence[str] = ()) -> SentinelMember | None:
        """The only primary of these members (default: all), if everybody else follows it."""
        infos = {self.members[name]: self.members[name].info() for name in names or self.members}
        primaries = [member for member, info in infos.items() if info.get("role") == "master"]
        if len(primaries) != 1:
            return None
        [primary] = primaries
        followers = [info for member, info in infos.items() if member is not primary]
        in_sync = all(
            info.get("master_host") == primary.address and info.get("master_link_status") == "up" for info in followers
        )
        return primary if in_sync else None

    def wait_replicates(self, names: Sequence[str], limit_s: float = SETTLE_LIMIT_S) -> SentinelMember:
        """Wait until these members are one primary and its replicas, whatever the Sentinels know. Returns it."""
        return self._wait(lambda: self._replicates(names), limit_s, f"one primary of {names}, everybody in sync")

    def _settled(self) -> SentinelMember | None:
        primary = self._replicates()
        others = str(len(self.members) - 1)
        for member in self.members.values() if primary is not None else ():
            view = member.sentinel_view()
            known = {"num-slaves": others, "num-other-sentinels": others, "flags": "master"}
            if any(str(view.get(key)) != value for key, value in known.items()):
                return None
            if primary is None or view.get("ip") != primary.address:
                return None
        return primary

    def wait_settled(self, limit_s: float = SETTLE_LIMIT_S) -> SentinelMember:
        """Wait until all replicate one primary and every Sentinel has noticed. Returns it."""
        return self._wait(self._settled, limit_s, "one primary, everybody in sync, all Sentinels agree")

    def _wait(self, condition: Any, limit_s: float, what: str) -> SentinelMember:
        found = wait_for(condition, limit_s, lambda: f"{what}{self._account()}", pause_s=0.05)
        assert isinstance(found, SentinelMember)
        return found

    def _account(self) -> str:
        views = [f"\n  {each.name}: {each.info()} {each.sentinel_view()}" for each in self.members.values()]
        return "".join(views) + "".join(each.last_words() for each in self.members.values())

    # --- orders -------------------------------------------------------------------------------------------------------

    def switchover(self, limit_s: float = SETTLE_LIMIT_S) -> SentinelMember:
        """``SENTINEL FAILOVER`` at the first Sentinel; waits until it names another primary. Returns that one."""
        member = next(iter(self.members.values()))
        before = member.sentinel_view().get("ip")
        begun = time.monotonic()
        with member.sentinel() as client:
            client.execute_command("SENTINEL", "FAILOVER", MASTER)

        def named() -> SentinelMember | None:
            now = member.sentinel_view().get("ip")
            return next((each for each in self.members.values() if each.address == now != before), None)

        return self._wait(named, limit_s - (time.monotonic() - begun), "another primary after SENTINEL FAILOVER")
