"""Reading the operator's redis.conf and writing the one around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redis_agent.redis_conf import (
    FENCED,
    PINNED,
    SINCE_7_0,
    SOCKET_PATH_MAX_BYTES,
    LaunchPlan,
    LaunchRefused,
    OperatorConf,
    RedisSettings,
    listening_port,
    parse_bytes,
    plan_launch,
    quote,
    read_operator_conf,
    split_arguments,
    write_generated,
)
from redis_agent.replication import Address

ANNOUNCE = Address("10.0.0.1", 7000)


def conf_of(directory: Path, text: str) -> OperatorConf:
    path = directory / "operator.conf"
    path.write_text(text, encoding="utf-8")
    return read_operator_conf(path)


def plan_of(directory: Path, text: str = "", **settings: Any) -> LaunchPlan:
    defaults: dict[str, Any] = {"announce": ANNOUNCE, "run_dir": directory / "run", "data_dir": directory}
    return plan_launch(RedisSettings(**defaults | settings), conf_of(directory, text))


def last_lines(plan: LaunchPlan) -> dict[str, list[str]]:
    """What Redis takes from the generated file itself: of each directive the last one."""
    lines = (split_arguments(line) for line in plan.text.splitlines() if not line.startswith("#"))
    return {words[0]: words[1:] for words in lines if words}


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("port 6379", ["port", "6379"]),
        ("  save   900\t1 ", ["save", "900", "1"]),
        ('requirepass "a \\"b\\" \\x41\\n"', ["requirepass", 'a "b" A\n']),
        ("requirepass 'a \\'b\\' \\x41'", ["requirepass", "a 'b' \\x41"]),
        ('save ""', ["save", ""]),
        ('requirepass "open', None),
        ('requirepass "a"b', None),
    ],
)
def test_lines_are_split_as_redis_does(line: str, words: list[str] | None) -> None:
    """Blanks separate, quotes group, escapes work in double quotes only, unbalanced quotes are an error."""
    assert split_arguments(line) == words


@given(st.text(st.characters(codec="ascii"), max_size=40))
def test_what_is_quoted_is_read_back(value: str) -> None:
    """Any ASCII text survives as one word on one line, whatever quotes, blanks or line ends are in it."""
    assert "\n" not in quote(value)
    assert split_arguments(f"requirepass {quote(value)}") == ["requirepass", value]


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [("0", 0), ("1k", 1000), ("1kb", 1024), ("64MB", 64 << 20), ("2g", 2 * 10**9), ("1.5mb", None), ("mb", None)],
)
def test_sizes(text: str, size_bytes: int | None) -> None:
    """Sizes are read with Redis's units."""
    assert parse_bytes(text) == size_bytes


def test_the_last_directive_counts_also_in_included_files(tmp_path: Path) -> None:
    """Includes are followed in place, aliases are one directive, comments and broken lines are skipped."""
    (tmp_path / "more.conf").write_text("port 7001\nmin-slaves-to-write 2\ninclude more.conf\n", encoding="utf-8")
    conf = conf_of(
        tmp_path,
        f"# port 1\nPort 7000\nmin-replicas-to-write 1\ninclude {tmp_path}/mo*.conf\n"
        'maxmemory "1\nsave 1 2\nsave 3 4\ninclude /nowhere/at/all.conf\n',
    )
    assert conf.value("port") == "7001"
    assert conf.value("min-replicas-to-write") == "2"
    assert conf.all("save") == [("1", "2"), ("3", "4")]
    assert conf.last("maxmemory") is None
    assert conf.value("dir", "nothing") == "nothing"


def test_a_file_that_includes_itself_is_no_trap(tmp_path: Path) -> None:
    """Redis has its own limit and message; reading it here just ends."""
    assert conf_of(tmp_path, f"port 1\ninclude {tmp_path}/operator.conf\n").value("port") == "1"


def test_unusable_files_are_refused_with_their_name(tmp_path: Path) -> None:
    """Missing, or with a name that Redis takes for a pattern."""
    with pytest.raises(LaunchRefused, match=r"missing\.conf: no such file"):
        read_operator_conf(tmp_path / "missing.conf")
    with pytest.raises(LaunchRefused, match="pattern"):
        read_operator_conf(tmp_path / "redis[1].conf")
    assert read_operator_conf(None) == OperatorConf()


# --- the generated file ----------------------------------------------------------------------------------------------


def test_the_operators_file_comes_first(tmp_path: Path) -> None:
    """Everything of ours stands behind the include, so that it wins."""
    plan = plan_of(tmp_path, "", extra=(("maxclients", "100"),))
    lines = [line for line in plan.text.splitlines() if not line.startswith("#")]
    assert lines[0] == f"include {tmp_path}/operator.conf"
    assert lines[1] == "maxclients 100"


def test_it_boots_fenced_and_pinned(tmp_path: Path) -> None:
    """A replica of nowhere, fenced, in the foreground, with every pinned setting."""
    plan = plan_of(tmp_path)
    last = last_lines(plan)
    assert last["replicaof"] == ["127.0.0.1", "1"]
    assert last["min-replicas-to-write"] == [str(FENCED)]
    assert last["daemonize"] == last["supervised"] == ["no"]
    assert last["replica-announce-ip"] == [ANNOUNCE.host]
    assert last["replica-announce-port"] == [str(ANNOUNCE.port)]
    assert tuple(name for name, _ in plan.pinned) == PINNED
    for name, value in plan.pinned:
        assert last.get(name, [value] if name in SINCE_7_0 else []) == [value]


@pytest.mark.parametrize(
    ("text", "configured", "port"),
    [("", 0, 6379), ("port 7001", 0, 7001), ("port 7001", 7002, 7002)],
)
def test_the_port(tmp_path: Path, text: str, configured: int, port: int) -> None:
    """The agent's setting, else the operator's, else Redis's default."""
    assert listening_port(conf_of(tmp_path, text), configured) == port
    plan = plan_of(tmp_path, text, port=configured)
    assert plan.port == port
    assert last_lines(plan)["port"] == [str(port)]


def test_a_larger_backlog_of_the_operators_stays(tmp_path: Path) -> None:
    """The setting is a lower limit."""
    assert dict(plan_of(tmp_path, "repl-backlog-size 1mb").pinned)["repl-backlog-size"] == str(64 << 20)
    assert dict(plan_of(tmp_path, "repl-backlog-size 1gb").pinned)["repl-backlog-size"] == str(1 << 30)


@pytest.mark.parametrize(
    ("text", "limit_ms"),
    [("", "1000"), ("lua-time-limit 5000", "1000"), ("busy-reply-threshold 200", "200"), ("lua-time-limit 0", "1000")],
)
def test_a_script_is_told_from_a_hang_in_time(tmp_path: Path, text: str, limit_ms: str) -> None:
    """BUSY is answered early enough; zero would mean never."""
    assert last_lines(plan_of(tmp_path, text))["lua-time-limit"] == [limit_ms]


def test_the_data_directory(tmp_path: Path) -> None:
    """The agent's setting, else the operator's; none at all is refused."""
    assert plan_of(tmp_path, "dir /elsewhere").data_dir == tmp_path
    assert plan_of(tmp_path, "dir /elsewhere", data_dir=None).data_dir == Path("/elsewhere")
    with pytest.raises(LaunchRefused, match="no data directory"):
        plan_of(tmp_path, data_dir=None)


def test_the_unix_socket(tmp_path: Path) -> None:
    """The operator's, with the operator's permissions, else one of ours that nobody else can use."""
    ours = last_lines(plan_of(tmp_path))
    assert (ours["unixsocket"], ours["unixsocketperm"]) == ([f"{tmp_path}/run/redis.sock"], ["700"])
    plan = plan_of(tmp_path, "unixsocket /run/redis/redis.sock")
    assert plan.socket_path == "/run/redis/redis.sock"
    assert "unixsocketperm" not in last_lines(plan)
    with pytest.raises(LaunchRefused, match=f"{SOCKET_PATH_MAX_BYTES} bytes"):
        plan_of(tmp_path, run_dir=tmp_path / ("x" * SOCKET_PATH_MAX_BYTES))


@pytest.mark.parametrize(
    ("text", "settings", "lines"),
    [
        ("", {}, {}),
        ("", {"password": "p w"}, {"requirepass": ["p w"], "masterauth": ["p w"]}),
        ("requirepass old\nmasterauth old", {"password": "new"}, {"requirepass": ["new"], "masterauth": ["new"]}),
        ("requirepass own", {}, {"masterauth": ["own"]}),
        ("requirepass own\nmasterauth other", {}, {}),
        ("", {"username": "agent", "password": "pw"}, {"masteruser": ["agent"], "masterauth": ["pw"]}),
    ],
)
def test_credentials(tmp_path: Path, text: str, settings: dict[str, str], lines: dict[str, list[str]]) -> None:
    """One user and one password for agent, protection and replication, as far as the operator has not decided."""
    last = last_lines(plan_of(tmp_path, text, **settings))
    found = {name: last[name] for name in ("requirepass", "masterauth", "masteruser") if name in last}
    assert found == lines


def test_secrets_show_in_no_representation(tmp_path: Path) -> None:
    """A plan or settings that end up in a log or a traceback tell no password."""
    settings = RedisSettings(announce=ANNOUNCE, run_dir=tmp_path, password="swordfish")
    assert "swordfish" not in repr(settings)
    assert "swordfish" not in repr(plan_of(tmp_path, "requirepass swordfish"))


def test_cluster_mode_is_refused(tmp_path: Path) -> None:
    """``cluster-enabled yes`` is named with the file that has it."""
    with pytest.raises(LaunchRefused, match=r"operator\.conf: cluster-enabled yes"):
        plan_of(tmp_path, "cluster-enabled yes")


def test_the_file_is_replaced_as_a_whole_and_private(tmp_path: Path) -> None:
    """An older generated file, or what CONFIG REWRITE made of it, leaves no trace."""
    plan = plan_of(tmp_path, password="secret")
    plan.conf_path.parent.mkdir()
    plan.conf_path.write_text("min-replicas-to-write 0\n" * 1000, encoding="utf-8")
    write_generated(plan)
    assert plan.conf_path.read_text(encoding="utf-8") == plan.text
    assert plan.conf_path.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in plan.conf_path.parent.iterdir()] == ["redis.conf"]
