"""The configuration: what is accepted, what is refused, and in which words."""

from __future__ import annotations

import importlib.util
import re
import socket
import sys
import tomllib
from dataclasses import fields
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from redis_agent.config import ConfigError, Section, Settings, Timing
from redis_agent.config_check import MAX_RUN_DIR_BYTES
from redis_agent.config_file import load
from redis_agent.config_host import check_host, read_secret, redis_settings, zookeeper_auth
from redis_agent.core.settings import CoreSettings
from redis_agent.replication import Address

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "systemd" / "redis-agent.toml"
SHORTEST = """
[cluster]
name = "cache"
bootstrap_expect = 3
[zookeeper]
hosts = "zk1:2181,zk2:2181"
[redis]
announce_host = "10.0.0.1"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The shortest useful configuration."""
    path = tmp_path / "cache.toml"
    path.write_text(SHORTEST)
    return path


def refusal(file: Path, more: str = "", environ: dict[str, str] | None = None) -> str:
    """The one line by which a configuration is refused."""
    file.write_text(SHORTEST + more)
    with pytest.raises(ConfigError) as caught:
        load(file, environ or {})
    line = str(caught.value)
    assert "\n" not in line
    return line


def all_keys() -> list[tuple[str, str]]:
    return [
        (section.name, key.name)
        for section in msgspec.structs.fields(Settings)
        for key in msgspec.structs.fields(section.type)
    ]


def test_the_shortest_file_has_the_defaults_of_the_core(file: Path) -> None:
    """What the file leaves out has the core's own default, so the two cannot drift apart."""
    core = load(file, {}).core(announce=Address("10.0.0.1", 6379))
    for field in fields(CoreSettings):
        if field.name not in {"root", "cluster", "name", "host", "pid", "agent_version", "redis", "bootstrap_expect"}:
            assert getattr(core, field.name) == field.default, field.name
    assert (core.root, core.cluster, core.bootstrap_expect) == ("redis-agent", "cache", 3)
    assert core.name == socket.gethostname().partition(".")[0]


def test_every_interval_of_the_core_can_be_set() -> None:
    """No time of the core's settings is out of the operator's reach."""
    reachable = {key for _, key in all_keys()}
    assert {field.name for field in fields(CoreSettings) if field.name.endswith("_s")} <= reachable


def test_the_example_parses_and_has_every_key() -> None:
    """The commented example is a valid configuration, and so it stays with every comment sign before a key removed."""
    text = EXAMPLE.read_text()
    load(EXAMPLE, {})
    uncommented = re.sub(r"^# ([a-z_]+ = )", r"\1", text, flags=re.MULTILINE)
    raw = tomllib.loads(uncommented)
    assert [(section, key) for section, table in raw.items() for key in table] == all_keys()
    settings = msgspec.convert(raw, Settings)
    for section in msgspec.structs.fields(Settings):
        for key in msgspec.structs.fields(section.type):
            line = rf"^# {key.name} = "
            table = text.partition(f"[{section.name}]\n")[2].partition("\n[")[0]
            if re.search(line, table, flags=re.MULTILINE):
                assert getattr(getattr(settings, section.name), key.name) == key.default, key.name


def test_generated_documents_are_up_to_date() -> None:
    """The reference and the example are what the settings say."""
    spec = importlib.util.spec_from_file_location("generate_docs", ROOT / "scripts" / "generate_docs.py")
    assert spec
    assert spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    for path, text in script.wanted().items():
        assert path.read_text() == text, f"{path} is out of date: make docs"
    reference = (ROOT / "docs" / "configuration.md").read_text()
    assert all(f"| `{key}` |" in reference for _, key in all_keys())


def test_environment_overrides_the_file(file: Path) -> None:
    """Each type can be given as text: words, numbers, truth values."""
    environ = {
        "REDIS_AGENT_REDIS_ANNOUNCE_HOST": "::1",
        "REDIS_AGENT_REDIS_PORT": "7000",
        "REDIS_AGENT_REDIS_KEEP_DIVERGED": "0",
        "REDIS_AGENT_TIMING_HEARTBEAT_S": "0.25",
        "REDIS_AGENT_MEMBER_NOFAILOVER": "true",
        "REDIS_AGENT_CONFIG": "/not/a/setting",
        "UNRELATED": "x",
    }
    settings = load(file, environ)
    assert settings.redis.announce_host == "::1"
    assert settings.redis.port == 7000
    assert settings.timing.heartbeat_s == 0.25
    core = settings.core(announce=Address("::1", 7000))
    assert core.voter is False
    assert core.keep_diverged == 0


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ("[timing]\nhartbeat_s = 1", ["[timing] hartbeat_s", "unknown key", "did you mean heartbeat_s?"]),
        ("[timming]\nheartbeat_s = 1", ["[timming]", "unknown section", "did you mean timing?"]),
        ("[member]\nport = 1", ["[member] port", "it belongs into [redis]"]),
        ("[timing]\nheartbeat_s = '1'", ["[timing] heartbeat_s", "got str", "without quotes"]),
        ("[timing]\nheartbeat_s = 0", ["[timing] heartbeat_s", "> 0"]),
        ("[timing]\nheartbeat_s = nan", ["[timing] heartbeat_s", "> 0"]),
        ("keep_diverged = -1", ["[redis] keep_diverged", ">= 0"]),
        ("[log]\nlevel = 'loud'", ["[log] level", "'loud' is no choice", "debug, info, warning, error"]),
        ("[agent]\nname = 'a/b'", ["[agent] name", "not allowed"]),
        ("port", ["is not TOML", "line"]),
    ],
)
def test_a_mistake_in_the_file_is_one_line_with_file_key_and_remedy(file: Path, more: str, words: list[str]) -> None:
    """An operator need not look anything up to correct it."""
    line = refusal(file, more)
    assert line.startswith(f"{file}: ")
    assert "; " in line
    for word in words:
        assert word in line


def test_a_missing_key_is_named(file: Path) -> None:
    """What has no default must be set, and the line says which key."""
    file.write_text(SHORTEST.replace('name = "cache"', ""))
    with pytest.raises(ConfigError, match=re.escape("[cluster] name: is missing")):
        load(file, {})


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """The reason is the system's own."""
    with pytest.raises(ConfigError, match=r"none\.toml: cannot be read \(No such file"):
        load(tmp_path / "none.toml", {})


def test_a_mistake_in_the_environment_names_the_variable(file: Path) -> None:
    """A typing error in a variable is no less an error than one in the file."""
    line = refusal(file, environ={"REDIS_AGENT_TIMING_HARTBEAT_S": "1"})
    assert "REDIS_AGENT_TIMING_HARTBEAT_S: unknown setting; did you mean REDIS_AGENT_TIMING_HEARTBEAT_S?" in line
    line = refusal(file, environ={"REDIS_AGENT_TIMING_HEARTBEAT_S": "often"})
    assert "REDIS_AGENT_TIMING_HEARTBEAT_S: expected float" in line
    line = refusal(file, environ={"REDIS_AGENT_ZOOKEEPER_HOSTS": "zk:port"})
    assert line.startswith("environment variable REDIS_AGENT_ZOOKEEPER_HOSTS: [zookeeper] hosts")


def test_no_lease_left_is_refused_with_the_arithmetic(file: Path) -> None:
    """A session of two ticks leaves nothing to lead with, and the line shows the sum."""
    line = refusal(
        file, environ={"REDIS_AGENT_ZOOKEEPER_SESSION_TIMEOUT_S": "4", "REDIS_AGENT_TIMING_HEARTBEAT_S": "0.9"}
    )
    assert "session_timeout_s 4 - fence_budget_s 0.25 - 0.625 x tick_s 2 - 3 x heartbeat_s 0.9 = -0.2 s" in line
    assert "raise session_timeout_s to 4.7" in line


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        ("zookeeper", "tick_s", 3.5, "less than two ticks (2 x 3.5 s)"),
        ("zookeeper", "session_timeout_s", 41.0, "more than twenty ticks (20 x 2 s)"),
        ("timing", "fence_timeout_s", 0.25, "0.25 s is not below fence_budget_s = 0.25 s"),
        ("timing", "probe_s", 2.0, "2 s is not below hang_s = 2 s"),
        ("timing", "role_limit_s", 3.0, "not below takeover_s"),
        ("timing", "restart_first_s", 30.0, "not below restart_max_s"),
        ("timing", "name_taken_s", 8.0, "not above session_timeout_s + tick_s = 6 + 2 s"),
    ],
)
def test_contradicting_times_are_refused(file: Path, section: str, key: str, value: float, words: str) -> None:
    """Each relation between two settings is checked, at its very border."""
    assert words in refusal(
        file,
        f"[{section}]\n{key} = {value}" if section != "zookeeper" else "",
        {f"REDIS_AGENT_{section}_{key}".upper(): str(value)},
    )


@pytest.mark.parametrize("hosts", ["zk1", "zk1:2181", "[::1]:2181,[::1]", "a:1,b:2/chroot/deep", "10.0.0.1:2181, zk2"])
def test_zookeeper_hosts_that_are_accepted(file: Path, hosts: str) -> None:
    """Names, IPv4 and IPv6 addresses, with and without a port, with a chroot."""
    assert load(file, {"REDIS_AGENT_ZOOKEEPER_HOSTS": hosts}).zookeeper.hosts == hosts


@pytest.mark.parametrize(
    "hosts",
    ["zk:x", "zk:0", "zk:65536", ",", "zk1,,zk2", "::1", "[::1", "[::1]x", "[zk]:1", "zk/", "zk//a", "zk/a/", "a b:1"],
)
def test_zookeeper_hosts_that_are_refused(file: Path, hosts: str) -> None:
    """A list that ZooKeeper's client would misread is refused here."""
    assert "[zookeeper] hosts" in refusal(file, environ={"REDIS_AGENT_ZOOKEEPER_HOSTS": hosts})


@given(st.builds(dict, st.dictionaries(st.sampled_from(Timing.__struct_fields__), st.floats(0.001, 100), max_size=4)))
def test_what_is_accepted_leaves_a_lease(timing: dict[str, float]) -> None:
    """Whatever the times: a configuration that is accepted leaves the leader a lease to lead with."""
    environ = {f"REDIS_AGENT_TIMING_{key}".upper(): repr(value) for key, value in timing.items()}
    try:
        settings = load(EXAMPLE, environ)
    except ConfigError:
        return
    assert settings.steady_lease()[0] >= settings.timing.min_claim_lease_s > 0
    assert settings.timing.fence_timeout_s < settings.timing.fence_budget_s


def test_relative_paths_start_at_the_file(file: Path) -> None:
    """Not at the directory that the agent happens to be started in; a bare binary is looked up in PATH."""
    file.write_text(SHORTEST + "conf = 'redis.conf'\ndata_dir = '/abs'\n")
    settings = load(file, {})
    assert settings.redis.conf == str(file.parent / "redis.conf")
    assert settings.redis.data_dir == "/abs"
    assert settings.redis.binary == "redis-server"


def test_directories_come_from_systemd_where_it_gives_them(file: Path) -> None:
    """Without a setting, systemd's directories; without systemd, one per cluster at the usual place."""
    assert load(file, {}).agent.state_dir == "/var/lib/redis-agent/cache"
    assert load(file, {}).agent.run_dir == "/run/redis-agent/cache"
    environ = {"STATE_DIRECTORY": "/var/lib/x", "RUNTIME_DIRECTORY": "/run/x"}
    assert load(file, environ).agent.state_dir == "/var/lib/x"
    assert load(file, environ).agent.run_dir == "/run/x"


def test_a_run_dir_too_long_for_a_socket_is_refused(file: Path) -> None:
    """The kernel's limit for unix sockets is told before Redis stumbles over it."""
    longest = "/" + "r" * (MAX_RUN_DIR_BYTES - 1)
    assert load(file, {"REDIS_AGENT_AGENT_RUN_DIR": longest}).agent.run_dir == longest
    assert "too long for a unix socket" in refusal(file, environ={"REDIS_AGENT_AGENT_RUN_DIR": longest + "r"})


def test_secrets_come_from_the_credentials_directory_first(file: Path, tmp_path: Path) -> None:
    """A relative secret is systemd's if it has one of that name, else a file beside the configuration."""
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "redis").write_text("s3cret\n")
    file.write_text(SHORTEST + "password_file = 'redis'\n")
    environ = {"CREDENTIALS_DIRECTORY": str(credentials)}
    assert load(file, environ).redis.password_file == str(credentials / "redis")
    assert load(file, {}).redis.password_file == str(tmp_path / "redis")
    assert read_secret(str(credentials / "redis"), "[redis] password_file", "x") == "s3cret"


def host_settings(tmp_path: Path, file: Path, more: str = "") -> Settings:
    (tmp_path / "data").mkdir(exist_ok=True)
    conf = tmp_path / "redis.conf"
    conf.touch()
    agent = f"[agent]\nstate_dir = '{tmp_path}/state'\nrun_dir = '{tmp_path}/run'\n"
    paths = f"binary = '{sys.executable}'\nconf = '{conf}'\ndata_dir = '{tmp_path}/data'\n"
    file.write_text(SHORTEST + paths + more + agent)
    return load(file, {})


def test_a_fit_host_is_accepted_and_directories_are_made(tmp_path: Path, file: Path) -> None:
    """State and run directory are made, not readable by everyone; the data directory must be there already."""
    assert check_host(host_settings(tmp_path, file), str(file)) == []
    for name in ("state", "run"):
        assert (tmp_path / name).stat().st_mode & 0o007 == 0


@pytest.mark.parametrize(
    ("section", "change", "words"),
    [
        ("redis", {"binary": "no-such-redis-server"}, "[redis] binary: no-such-redis-server is not an executable"),
        ("redis", {"conf": "/no/such.conf"}, "[redis] conf: /no/such.conf does not exist"),
        ("redis", {"data_dir": "/no/such"}, "[redis] data_dir: /no/such is not a directory"),
        ("agent", {"run_dir": "/dev/null/x"}, "[agent] run_dir: /dev/null/x cannot be made (Not a directory)"),
        ("redis", {"password_file": "/no/such"}, "[redis] password_file: /no/such cannot be read"),
    ],
)
def test_an_unfit_host_is_refused(tmp_path: Path, file: Path, section: str, change: dict[str, str], words: str) -> None:
    """Each path that cannot be used is named with its key, before anything is started."""
    settings = host_settings(tmp_path, file)
    part: Section = getattr(settings, section)
    settings = msgspec.structs.replace(settings, **{section: msgspec.structs.replace(part, **change)})
    with pytest.raises(ConfigError) as caught:
        check_host(settings, str(file))
    assert str(caught.value).startswith(f"{file}: {words}")


def test_a_secret_is_never_shown_and_its_mode_is_warned_of(tmp_path: Path, file: Path) -> None:
    """A file that others can read is used, but warned of; no message contains what is in it."""
    secret = tmp_path / "password"
    secret.write_text("hunter2\n")
    secret.chmod(0o644)
    settings = host_settings(tmp_path, file, f"password_file = '{secret}'\n")
    (warning,) = check_host(settings, str(file))
    assert "chmod 600" in warning
    assert "hunter2" not in warning
    assert "hunter2" not in repr(settings)
    secret.chmod(0o600)
    assert check_host(settings, str(file)) == []
    secret.write_text("")
    with pytest.raises(ConfigError, match="is empty"):
        check_host(settings, str(file))


def test_redis_is_launched_from_both_files(tmp_path: Path, file: Path) -> None:
    """Port, data directory and password come from redis.conf, unless the agent's configuration has its own."""
    secret = tmp_path / "password"
    secret.write_text("hunter2\n")
    conf = tmp_path / "redis.conf"
    file.write_text(SHORTEST + "conf = 'redis.conf'\n")
    conf.write_text("port 7001\n")
    from_conf = redis_settings(load(file, {}), str(file))
    assert (from_conf.port, from_conf.announce) == (7001, Address("10.0.0.1", 7001))
    assert (from_conf.data_dir, from_conf.password) == (None, "")
    file.write_text(SHORTEST + f"conf = 'redis.conf'\nport = 7002\nannounce_port = 17002\npassword_file = '{secret}'\n")
    own = redis_settings(load(file, {}), str(file))
    assert (own.port, own.announce, own.password) == (7002, Address("10.0.0.1", 17002), "hunter2")
    file.write_text(SHORTEST)
    assert redis_settings(load(file, {}), str(file)).port == 6379


@pytest.mark.parametrize(
    ("conf", "words"),
    [
        ("cluster-enabled yes\ndir /tmp\n", "[redis] conf: redis.conf"),
        ("port 7000\n", "[redis] data_dir: no data directory"),
        ("dir /no/such/dir\n", "is not a directory"),
    ],
)
def test_an_unfit_redis_conf_is_refused(tmp_path: Path, file: Path, conf: str, words: str) -> None:
    """What only shows when both files are seen together is refused before Redis is started."""
    settings = host_settings(tmp_path, file)
    settings = msgspec.structs.replace(settings, redis=msgspec.structs.replace(settings.redis, data_dir=""))
    Path(settings.redis.conf).write_text(conf)
    with pytest.raises(ConfigError) as caught:
        check_host(settings, str(file))
    assert words in str(caught.value)
    assert "; " in str(caught.value)


def test_zookeeper_s_credential_comes_from_its_file(tmp_path: Path, file: Path) -> None:
    """A digest of user and password; anything else is refused without showing it."""
    secret = tmp_path / "auth"
    file.write_text(SHORTEST.replace("[redis]", f"auth_file = '{secret}'\n[redis]"))
    secret.write_text("agent:hunter2\n")
    assert zookeeper_auth(load(file, {}), str(file)) == (("digest", "agent:hunter2"),)
    secret.write_text("hunter2\n")
    with pytest.raises(ConfigError, match="no colon") as caught:
        zookeeper_auth(load(file, {}), str(file))
    assert "hunter2" not in str(caught.value)
