"""The operator's redis.conf, and the configuration that the agent generates around it.

The generated file is the one that redis-server is started with. It includes the operator's file *first*, so that in
every case of doubt ours wins, also after CONFIG REWRITE (which rewrites the generated file, and each start writes it
anew). It makes Redis boot fenced: as a replica of nowhere, with ``min-replicas-to-write`` far above any number of
replicas. Secrets are in this file (mode 0600), never in an argument vector.
"""

from __future__ import annotations

import glob
import os
from dataclasses import dataclass, field
from pathlib import Path

from redis_agent.replication import NOWHERE, Address

FENCED = 1_000_000
"""min-replicas-to-write of a fenced Redis: more replicas than anybody has."""

MAX_LAG_S = 10
"""min-replicas-max-lag. Zero would disable the check of min-replicas-to-write, and with it the fence."""

ROLE_CLIENT_NAME = "redis-agent-role"
MONITOR_CLIENT_NAME = "redis-agent-monitor"
GUARD_CLIENT_NAME = "redis-agent-guard"
REMOTE_CLIENT_NAME = "redis-agent-remote"
OWN_CLIENT_NAMES = frozenset({ROLE_CLIENT_NAME, MONITOR_CLIENT_NAME, GUARD_CLIENT_NAME, REMOTE_CLIENT_NAME})
"""Names (CLIENT SETNAME) of the connections that the local agent, its guard and the other members' agents keep."""

PINNED = (
    "repl-backlog-ttl",
    "repl-backlog-size",
    "repl-diskless-load",
    "replica-read-only",
    "replica-ignore-maxmemory",
    "replica-announce-ip",
    "replica-announce-port",
    "min-replicas-max-lag",
    "replica-ignore-disk-write-errors",
)
"""Settings that the protocol rests on: another value at run time is drift."""

SINCE_7_0 = frozenset({"replica-ignore-disk-write-errors"})
"""Of these, what an older Redis neither needs nor starts with: they are set as soon as it answers."""

SOCKET_PATH_MAX_BYTES = 107
"""What fits into a unix socket's address on Linux, without the terminating zero."""

INCLUDE_DEPTH_MAX = 16

DEFAULT_PORT = 6379

_ALIASES = {
    "slaveof": "replicaof",
    "slave-read-only": "replica-read-only",
    "min-slaves-to-write": "min-replicas-to-write",
    "min-slaves-max-lag": "min-replicas-max-lag",
    "busy-reply-threshold": "lua-time-limit",
}

_UNITS_BYTES = {
    "": 1,
    "b": 1,
    "k": 1000,
    "kb": 1 << 10,
    "m": 1000**2,
    "mb": 1 << 20,
    "g": 1000**3,
    "gb": 1 << 30,
}


class LaunchRefused(Exception):
    """Redis can't be launched like this; the message is one line that names the matter and the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RedisSettings:
    """How to launch the local redis-server, and how to talk to it and to the other members' ones."""

    announce: Address
    """Where other members and clients reach this Redis."""
    run_dir: Path
    """For the generated configuration and the unix socket; made (mode 0700) if it is missing."""
    data_dir: Path | None = None
    """Redis's working directory (``dir``). None: the operator's ``dir``."""
    conf: Path | None = None
    """The operator's redis.conf. None: Redis's defaults. Relative paths in it start at the data directory."""
    binary: str = "redis-server"
    """redis-server or valkey-server: a name that is looked up in PATH, or a path."""
    port: int = 0
    """TCP port. 0: the operator's ``port``, or else 6379."""
    username: str = ""
    """ACL user of the agent and of replication; empty: the default user."""
    password: str = field(default="", repr=False)
    """Empty: the operator's ``requirepass``, if there is one. All members of a cluster share it."""
    backlog_bytes: int = 64 << 20
    """repl-backlog-size; an operator's larger value stays."""
    busy_after_s: float = 1.0
    """A script that runs for longer makes Redis answer BUSY (alive) instead of nothing (hung?).

    Must be well below the time after which a silent Redis counts as hung. An operator's smaller value stays.
    """
    extra: tuple[tuple[str, str], ...] = ()
    """Further directives, behind the operator's file and before ours."""


@dataclass(frozen=True, slots=True)
class OperatorConf:
    """The operator's redis.conf with everything that it includes: the arguments of each directive, in order."""

    path: Path | None = None
    directives: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def last(self, name: str) -> tuple[str, ...] | None:
        """The arguments of the directive that counts, the last one; None if there is none."""
        found = None
        for key, arguments in self.directives:
            if key == name:
                found = arguments
        return found

    def value(self, name: str, default: str = "") -> str:
        """The first argument of the last such directive."""
        arguments = self.last(name)
        return arguments[0] if arguments else default

    def all(self, name: str) -> list[tuple[str, ...]]:
        """The arguments of each such directive, in order."""
        return [arguments for key, arguments in self.directives if key == name]


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchPlan:
    """Everything that follows from the settings and the operator's file. ``text`` is the generated file."""

    conf_path: Path
    operator_path: Path | None
    text: str = field(repr=False)
    socket_path: str
    port: int
    binds: tuple[str, ...]
    data_dir: Path
    log_path: Path | None
    """Where Redis writes its log, if not to its standard output."""
    username: str
    password: str = field(repr=False)
    own_min_replicas: int
    """The operator's min-replicas-to-write."""
    pinned: tuple[tuple[str, str], ...]
    """The value of each setting in PINNED, as CONFIG GET tells it."""
    secrets: tuple[str, ...] = field(repr=False)
    """Never to be logged."""


def split_arguments(line: str) -> list[str] | None:
    r"""Split a line as Redis does: blanks separate, quotes group, ``"\x41\n"`` escapes. None if quotes don't match."""
    words: list[str] = []
    position, end = 0, len(line)
    while True:
        while position < end and line[position].isspace():
            position += 1
        if position >= end:
            return words
        word = ""
        while position < end and not line[position].isspace():
            char = line[position]
            if char in "\"'":
                quoted = _quoted(line, position)
                if quoted is None:
                    return None
                text, position = quoted
                word += text
                # Redis wants a blank behind a closing quote.
                if position < end and not line[position].isspace():
                    return None
            else:
                word += char
                position += 1
        words.append(word)


def _quoted(line: str, start: int) -> tuple[str, int] | None:
    quote = line[start]
    escapes = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "a": "\a"}
    text, position = "", start + 1
    while position < len(line):
        char = line[position]
        if char == quote:
            return text, position + 1
        if char == "\\" and position + 1 < len(line):
            follower = line[position + 1]
            code = line[position + 2 : position + 4]
            if quote == "'":
                text, position = (text + "'", position + 2) if follower == "'" else (text + char, position + 1)
            elif follower == "x" and len(code) == 2 and all(c in "0123456789abcdefABCDEF" for c in code):
                text, position = text + chr(int(code, 16)), position + 4
            else:
                text, position = text + escapes.get(follower, follower), position + 2
        else:
            text, position = text + char, position + 1
    return None


def quote(value: str) -> str:
    """A value as Redis reads it back, whatever is in it."""
    plain = all(c.isalnum() or c in "-_./:@%+,=" for c in value) and value.isascii()
    if value and plain:
        return value
    quoted = ""
    for byte in value.encode():
        char = chr(byte)
        quoted += f"\\{char}" if char in '"\\' else char if 32 <= byte < 127 else f"\\x{byte:02x}"
    return f'"{quoted}"'


def parse_bytes(text: str) -> int | None:
    """A size as in redis.conf (``64mb``, ``1k``), in bytes; None if it isn't one."""
    digits = text.rstrip("bkmgBKMG")
    unit = text[len(digits) :].lower()
    return int(digits) * _UNITS_BYTES[unit] if digits.isdigit() and unit in _UNITS_BYTES else None


def read_operator_conf(path: Path | None) -> OperatorConf:
    """Read the operator's redis.conf and what it includes.

    Lines that Redis would not understand are skipped here: Redis complains of them in its own words.

    Raises:
        LaunchRefused: the file itself is missing or unreadable, or a glob character is in its name.
    """
    if path is None:
        return OperatorConf()
    path = path.absolute()
    if any(c in str(path) for c in "*?[\n"):
        raise LaunchRefused(f"redis.conf {path}: Redis would take '*', '?' and '[' for a pattern; rename it")
    directives: list[tuple[str, tuple[str, ...]]] = []
    try:
        _read_into(directives, path, 0)
    except OSError as error:
        raise LaunchRefused(
            f"redis.conf {path}: {(error.strerror or str(error)).lower()}; correct the path or its permissions"
        ) from error
    return OperatorConf(path, tuple(directives))


def _read_into(directives: list[tuple[str, tuple[str, ...]]], path: Path, depth: int) -> None:
    for line in path.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        words = split_arguments(line.strip()) if not line.lstrip().startswith("#") else None
        if not words:
            continue
        name = words[0].lower()
        directives.append((_ALIASES.get(name, name), tuple(words[1:])))
        if name == "include" and len(words) == 2 and depth < INCLUDE_DEPTH_MAX:
            for included in sorted(glob.glob(words[1])):  # noqa: PTH207 - a pattern of the operator's, absolute or not
                try:
                    _read_into(directives, Path(included), depth + 1)
                except OSError:
                    continue  # Redis can't read it either, and says so.


def plan_launch(settings: RedisSettings, conf: OperatorConf) -> LaunchPlan:
    """Work out the generated configuration.

    Raises:
        LaunchRefused: cluster mode, no data directory, or a run directory whose path is too long for a socket.
    """
    if conf.value("cluster-enabled").lower() == "yes":
        raise LaunchRefused(f"redis.conf {conf.path}: cluster-enabled yes is not supported; remove it")
    data_dir = settings.data_dir or (Path(conf.value("dir")) if conf.value("dir") else None)
    if data_dir is None:
        raise LaunchRefused("no data directory: set it in the agent's configuration, or 'dir' in redis.conf")
    data_dir = data_dir.absolute()
    own_socket = conf.value("unixsocket")
    socket_path = str((Path(own_socket) if own_socket else settings.run_dir / "redis.sock").absolute())
    if len(os.fsencode(socket_path)) > SOCKET_PATH_MAX_BYTES:
        raise LaunchRefused(f"{socket_path}: longer than the {SOCKET_PATH_MAX_BYTES} bytes of a socket's name; shorten")
    operator_password = conf.value("requirepass")
    password = settings.password or operator_password
    pinned = _pinned(settings, conf)
    port = listening_port(conf, settings.port)
    lines = [*_preamble(settings, conf), f"port {port}", f"dir {quote(str(data_dir))}"]
    lines += [f"replicaof {NOWHERE.host} {NOWHERE.port}", f"min-replicas-to-write {FENCED}"]
    lines += [f"{name} {quote(value)}" for name, value in pinned if name not in SINCE_7_0]
    lines += ["daemonize no", "supervised no", f"lua-time-limit {_busy_after_ms(settings, conf)}"]
    if not own_socket:
        lines += [f"unixsocket {quote(socket_path)}", "unixsocketperm 700"]
    lines += _credentials(settings, conf, password)
    logfile = conf.value("logfile")
    return LaunchPlan(
        conf_path=settings.run_dir.absolute() / "redis.conf",
        operator_path=conf.path,
        text="\n".join(lines) + "\n",
        socket_path=socket_path,
        port=port,
        binds=conf.last("bind") or (),
        data_dir=data_dir,
        log_path=data_dir / logfile if logfile else None,
        username=settings.username,
        password=password,
        own_min_replicas=_number(conf.value("min-replicas-to-write")),
        pinned=pinned,
        secrets=tuple({s for s in (password, operator_password, conf.value("masterauth")) if s}),
    )


def _preamble(settings: RedisSettings, conf: OperatorConf) -> list[str]:
    lines = ["# Generated at each start of redis-server; edit the file that is included instead."]
    if conf.path is not None:
        lines.append(f"include {quote(str(conf.path))}")
    lines += [f"{name} {quote(value)}" for name, value in settings.extra]
    lines.append("# From here on the agent's own settings, which win.")
    return lines


def _pinned(settings: RedisSettings, conf: OperatorConf) -> tuple[tuple[str, str], ...]:
    backlog_bytes = max(settings.backlog_bytes, parse_bytes(conf.value("repl-backlog-size")) or 0)
    values = {
        # Without a backlog a primary takes a new replid when its first replica attaches.
        "repl-backlog-ttl": "0",
        "repl-backlog-size": str(backlog_bytes),
        # Loaded from the socket, a failed full resync leaves an empty Redis with the old replid and offset.
        "repl-diskless-load": "disabled",
        "replica-read-only": "yes",
        "replica-ignore-maxmemory": "yes",
        "replica-announce-ip": settings.announce.host,
        "replica-announce-port": str(settings.announce.port),
        "min-replicas-max-lag": str(MAX_LAG_S),
        # Otherwise a replica that can't save ends itself at the next write of its primary's, and its memory with it.
        "replica-ignore-disk-write-errors": "yes",
    }
    return tuple((name, values[name]) for name in PINNED)


def listening_port(conf: OperatorConf, configured: int = 0) -> int:
    """The TCP port that Redis will listen on: the one configured, else the operator's, else Redis's default."""
    operators = conf.value("port")
    return configured or (int(operators) if operators.isdigit() else DEFAULT_PORT)


def _busy_after_ms(settings: RedisSettings, conf: OperatorConf) -> int:
    ours = max(1, round(settings.busy_after_s * 1000))
    # Zero means "never BUSY" to Redis.
    operators = _number(conf.value("lua-time-limit"))
    return min(ours, operators) if operators > 0 else ours


def _credentials(settings: RedisSettings, conf: OperatorConf, password: str) -> list[str]:
    """Members share their credentials: what protects this Redis also opens the primary's."""
    lines = []
    if settings.username:
        lines.append(f"masteruser {quote(settings.username)}")
    elif settings.password:
        lines.append(f"requirepass {quote(settings.password)}")
    if settings.password or (password and not conf.value("masterauth")):
        lines.append(f"masterauth {quote(password)}")
    return lines


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0


def write_generated(plan: LaunchPlan) -> None:
    """Write the generated file (mode 0600), replacing an older one at once or not at all. Raises OSError."""
    plan.conf_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = plan.conf_path.with_name(f"{plan.conf_path.name}.{os.getpid()}.tmp")
    draft.unlink(missing_ok=True)
    draft.touch(mode=0o600, exist_ok=False)
    draft.write_text(plan.text, encoding="utf-8")
    draft.replace(plan.conf_path)
