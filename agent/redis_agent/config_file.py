"""Settings from a TOML file and the environment, and what is wrong with them in one line."""

from __future__ import annotations

import difflib
import os
import socket
import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, get_args

import msgspec

from redis_agent.config import ConfigError, Section, Settings
from redis_agent.config_check import relations

ENVIRONMENT_PREFIX = "REDIS_AGENT_"
# Not a setting: the command line's default for --config.
ENVIRONMENT_FILE = "REDIS_AGENT_CONFIG"


def load(path: Path | str, environ: Mapping[str, str] | None = None) -> Settings:
    """Read the file, apply the environment, fill in what depends on the host, check the relations.

    Args:
        path: the TOML file.
        environ: ``REDIS_AGENT_<SECTION>_<KEY>`` overrides the file; default: the process's environment.

    Raises:
        ConfigError: something is unreadable, unknown, of the wrong type or contradicts something else.
    """
    environ = os.environ if environ is None else environ
    source = str(path)
    raw = _read(source)
    origins = _apply_environment(raw, environ)
    settings = _complete(_convert(raw, source, origins), Path(path), environ)
    for key, problem, remedy in relations(settings):
        raise ConfigError(origins.get(key.replace("[", "").replace("] ", "."), source), key, problem, remedy)
    return settings


def _read(source: str) -> dict[str, dict[str, Any]]:
    try:
        with open(source, "rb") as file:  # noqa: PTH123 - the path is a string for the message
            raw = tomllib.load(file)
    except OSError as error:
        raise ConfigError(
            source, "", f"cannot be read ({error.strerror})", "give a readable file to --config"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(source, "", f"is not TOML: {error}", "correct that line") from None
    sections = {section: _section_type(section) for section in Settings.__struct_fields__}
    for name, table in raw.items():
        if name not in sections:
            raise ConfigError(source, f"[{name}]", "unknown section", _suggest(name, sections))
        if not isinstance(table, dict):
            raise ConfigError(source, name, "is a section, not a key", f"write [{name}] and its keys below it")
        for key in table:
            known = sections[name].__struct_fields__
            if key not in known:
                raise ConfigError(source, f"[{name}] {key}", "unknown key", _suggest(key, known, others=sections))
    return raw


def _section_type(section: str) -> type[Section]:
    from redis_agent import config  # noqa: PLC0415 - by name: annotations are strings

    found: type[Section] = getattr(config, Settings.__annotations__[section])
    return found


def _suggest(word: str, known: Collection[str], others: Mapping[str, type[Section]] | None = None) -> str:
    elsewhere = [name for name, section in (others or {}).items() if word in section.__struct_fields__]
    if elsewhere:
        return f"it belongs into [{elsewhere[0]}]"
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return "known are: " + ", ".join(known)


def _apply_environment(raw: dict[str, dict[str, Any]], environ: Mapping[str, str]) -> dict[str, str]:
    """Put the overrides into ``raw``, converted; return where each came from."""
    keys = {
        f"{ENVIRONMENT_PREFIX}{section}_{key}".upper(): (section, key)
        for section in Settings.__struct_fields__
        for key in _section_type(section).__struct_fields__
    }
    origins = {}
    for variable, value in sorted(environ.items()):
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable == ENVIRONMENT_FILE:
            continue
        if variable not in keys:
            raise ConfigError("environment", variable, "unknown setting", _suggest(variable, keys))
        section, key = keys[variable]
        raw.setdefault(section, {})[key] = _from_text(section, key, value, variable)
        origins[f"{section}.{key}"] = f"environment variable {variable}"
    return origins


def _from_text(section: str, key: str, text: str, variable: str) -> Any:
    field_type = _field_type(section, key)
    try:
        return msgspec.convert(text, field_type, strict=False)
    except msgspec.ValidationError as error:
        problem, remedy = _explain(str(error), field_type)
        raise ConfigError("environment", variable, problem, remedy) from None


def _convert(raw: dict[str, Any], source: str, origins: Mapping[str, str]) -> Settings:
    for section in Settings.__struct_fields__:
        fields = msgspec.structs.fields(_section_type(section))
        for field in fields:
            if field.required and field.name not in raw.get(section, {}):
                raise ConfigError(source, f"[{section}] {field.name}", "is missing", "it has no default: set it")
    try:
        return msgspec.convert(raw, Settings)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$.")
        dotted = place.rstrip("`")
        section, _, key = dotted.partition(".")
        problem, remedy = _explain(message, _field_type(section, key))
        raise ConfigError(origins.get(dotted, source), f"[{section}] {key}", problem, remedy) from None


def _field_type(section: str, key: str) -> Any:
    return next(field.type for field in msgspec.structs.fields(_section_type(section)) if field.name == key)


def _explain(message: str, field_type: Any) -> tuple[str, str]:
    """What msgspec says, as problem and remedy."""
    problem = message.replace("`", "").replace("Expected ", "expected ").split(" - at ")[0]
    if "matching regex" in problem:
        return "has characters that are not allowed", "use letters, digits, dots, dashes and underscores"
    if problem.startswith("Invalid enum value"):
        choices = get_args(get_args(field_type)[0])
        return f"{problem.removeprefix('Invalid enum value ')} is no choice", "choose one of " + ", ".join(choices)
    if problem.startswith(("expected float,", "expected int,", "expected int | ", "expected float | ")):
        return problem, "write a number, without quotes"
    return problem, "correct the value"


def _complete(settings: Settings, path: Path, environ: Mapping[str, str]) -> Settings:
    """Fill in what depends on the host, and make paths absolute: relative ones start at the file's directory."""
    base = path.resolve().parent
    cluster = settings.cluster.name
    agent, redis, zookeeper = settings.agent, settings.redis, settings.zookeeper

    def absolute(name: str) -> str:
        return str(base / name) if name else ""

    def secret(name: str) -> str:
        credentials = environ.get("CREDENTIALS_DIRECTORY", "")
        if name and credentials and (Path(credentials) / name).exists():
            return str(Path(credentials) / name)
        return absolute(name)

    def directory(given: str, variable: str, parent: str) -> str:
        # systemd separates several directories by colons; ours has one.
        return absolute(given) or environ.get(variable, "").split(":")[0] or f"{parent}/{cluster}"

    replace = msgspec.structs.replace
    return replace(
        settings,
        agent=replace(
            agent,
            name=agent.name or socket.gethostname().partition(".")[0],
            state_dir=directory(agent.state_dir, "STATE_DIRECTORY", "/var/lib/redis-agent"),
            run_dir=directory(agent.run_dir, "RUNTIME_DIRECTORY", "/run/redis-agent"),
        ),
        redis=replace(
            redis,
            binary=absolute(redis.binary) if "/" in redis.binary else redis.binary,
            conf=absolute(redis.conf),
            data_dir=absolute(redis.data_dir),
            password_file=secret(redis.password_file),
        ),
        zookeeper=replace(zookeeper, auth_file=secret(zookeeper.auth_file)),
    )
