"""The settings and this host: paths, secrets, the operator's redis.conf; and what the adapters are made from."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Iterable
from pathlib import Path

from redis_agent import redis_conf
from redis_agent.config import ConfigError, Settings
from redis_agent.config_mounts import Mount, is_shared, mount_of, mounts
from redis_agent.redis_conf import LaunchRefused, RedisSettings
from redis_agent.replication import Address

DEFAULT_PORT = 6379


def check_host(settings: Settings, source: str) -> list[str]:
    """Make and check the paths that ``run`` needs.

    Returns:
        Warnings: secrets that others can read.

    Raises:
        ConfigError: a path is missing, unreadable or not writable, or the lock would be on a network file system.
    """
    redis = settings.redis
    if find_binary(redis.binary) is None:
        raise ConfigError(
            source, "[redis] binary", f"{redis.binary} is not an executable in PATH", "install it or give its path"
        )
    if redis.conf and not os.access(redis.conf, os.R_OK):
        problem = "is not readable by this user" if Path(redis.conf).exists() else "does not exist"
        raise ConfigError(source, "[redis] conf", f"{redis.conf} {problem}", "give the path of your redis.conf")
    for key in ("state_dir", "run_dir"):
        _check_directory(getattr(settings.agent, key), f"[agent] {key}", source, make=True)
    check_local(settings.agent.state_dir, "[agent] state_dir", source, mounts())
    _check_launch(settings, source)
    zookeeper_auth(settings, source)
    warnings = []
    for key, path in (
        ("[redis] password_file", redis.password_file),
        ("[zookeeper] auth_file", settings.zookeeper.auth_file),
    ):
        if path and stat.S_IMODE(Path(path).stat().st_mode) & 0o077:
            warnings.append(f"{source}: {key}: {path} can be read by others; chmod 600 {path}")
    return warnings


def _check_launch(settings: Settings, source: str) -> None:
    """Refuse what follows from the agent's settings and the operator's redis.conf together."""
    redis = settings.redis
    try:
        plan = redis_conf.plan_launch(
            redis_settings(settings, source), redis_conf.read_operator_conf(Path(redis.conf) if redis.conf else None)
        )
    except LaunchRefused as refused:
        text = str(refused)
        problem, found, remedy = text.rpartition("; ") if "; " in text else text.partition(": ")
        key = "[redis] data_dir" if "data directory" in problem else "[redis] conf"
        raise ConfigError(source, key, problem, remedy if found else "correct it") from None
    _check_directory(str(plan.data_dir), "[redis] data_dir" if redis.data_dir else f"dir of {redis.conf}", source)


def redis_settings(settings: Settings, source: str = "configuration") -> RedisSettings:
    """How to launch Redis.

    Args:
        settings: the agent's.
        source: the configuration file, for messages.

    Raises:
        ConfigError: the password's file cannot be read.
        LaunchRefused: redis.conf cannot be read.
    """
    redis = settings.redis
    conf = Path(redis.conf) if redis.conf else None
    in_conf = redis_conf.read_operator_conf(conf).value("port")
    port = redis.port or (int(in_conf) if in_conf.isdigit() and int(in_conf) else DEFAULT_PORT)
    return RedisSettings(
        announce=Address(redis.announce_host, redis.announce_port or port),
        run_dir=Path(settings.agent.run_dir),
        data_dir=Path(redis.data_dir) if redis.data_dir else None,
        conf=conf,
        binary=find_binary(redis.binary) or redis.binary,
        port=port,
        username=redis.username,
        password=read_secret(redis.password_file, "[redis] password_file", source) if redis.password_file else "",
        backlog_bytes=redis.backlog_bytes,
        # A script must be known for what it is before it is taken for a hang.
        busy_after_s=min(1.0, settings.timing.hang_s / 2),
    )


def zookeeper_auth(settings: Settings, source: str = "configuration") -> tuple[tuple[str, str], ...]:
    """Scheme and credential, if there is one.

    Raises:
        ConfigError: the file cannot be read, or has no "user:password".
    """
    path, key = settings.zookeeper.auth_file, "[zookeeper] auth_file"
    if not path:
        return ()
    secret = read_secret(path, key, source)
    if ":" not in secret:
        raise ConfigError(source, key, f"{path} has no colon", 'write "user:password" into its first line')
    return (("digest", secret),)


def find_binary(name: str) -> str | None:
    """The path of a program in PATH, or beside our own interpreter; None if there is none."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.prefix) / "bin"))


def check_local(name: str, key: str, source: str, table: Iterable[Mount]) -> None:
    """The lock in a directory tells that no other agent of this name lives: not so if another host has the directory.

    Args:
        name: the directory.
        key: its name in the configuration.
        source: the configuration file, for messages.
        table: of the mounts.

    Raises:
        ConfigError: other hosts may share it.
    """
    mount = mount_of(Path(name).resolve(), table)
    if mount is not None and is_shared(mount.kind):
        raise ConfigError(
            source,
            key,
            f"{name} is on a network file system ({mount.kind} at {mount.point}), where its lock proves nothing",
            "choose a directory on a local disk",
        )


def _check_directory(name: str, key: str, source: str, *, make: bool = False) -> None:
    path = Path(name)
    if make:
        try:
            path.mkdir(mode=0o750, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                source,
                key,
                f"{name} cannot be made ({error.strerror})",
                "make it, owned by this user, or choose another",
            ) from None
    if not path.is_dir():
        raise ConfigError(source, key, f"{name} is not a directory", "make it, owned by this user, or choose another")
    if not os.access(name, os.W_OK | os.X_OK):
        raise ConfigError(source, key, f"{name} is not writable by this user", "change its owner or choose another")


def read_secret(path: str, key: str, source: str) -> str:
    """The first line of a secret's file. The secret appears in no message.

    Raises:
        ConfigError: the file cannot be read or is empty.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise ConfigError(
            source, key, f"{path} cannot be read ({reason})", "give a file that this user can read"
        ) from None
    lines = text.splitlines()
    if not lines or not lines[0]:
        raise ConfigError(source, key, f"{path} is empty", "write the secret into its first line")
    return lines[0]
