"""``redis-agent keep`` against a real ZooKeeper."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from kazoo.client import KazooClient  # type: ignore[import-untyped]
from kazoo.security import make_digest_acl  # type: ignore[import-untyped]

from redis_agent import znodes
from redis_agent.cli.main import main
from redis_agent.electability import KEEP_COMMAND
from redis_agent.lab.agent_process import AgentProcess
from redis_agent.lab.ports import free_port
from redis_agent.lab.waiting import wait_for
from redis_agent.lab.zookeeper import Ensemble
from redis_agent.replication import Address, Ledger, LedgerEntry, Position
from tests.support.cluster import lab, unstarted, wait_told

PATHS = znodes.Paths("redis-agent", "cache")


@pytest.fixture
def client(zookeeper_hosts: str) -> Iterator[KazooClient]:
    """A client of the test's own corner of ZooKeeper, with a cluster of two members that has no leader yet."""
    client = KazooClient(zookeeper_hosts)
    client.start(timeout=10)
    payloads: dict[str, znodes.ClusterConfig | Ledger | znodes.Member] = {
        PATHS.config: znodes.ClusterConfig(cluster_id="c", voters=("m1", "m2")),
        PATHS.epoch: Ledger(),
    }
    for name, voter in (("m1", True), ("m2", True), ("m3", False)):
        payloads[PATHS.member(name)] = znodes.Member(name=name, redis=Address("10.0.0.1", 6379), voter=voter)
    for path, payload in payloads.items():
        client.create(path, znodes.encode(payload), makepath=True)
    yield client
    client.stop()
    client.close()


def keep(hosts: str, member: str, *more: str) -> int:
    # The command as the agent's log names it.
    words = KEEP_COMMAND.replace("MEMBER", member).split()[1:]
    return main([*words, "--zookeeper", hosts, "--cluster", "cache", *more])


def config(client: KazooClient) -> znodes.ClusterConfig:
    return znodes.decode_config(client.get(PATHS.config)[0])


def test_the_choice_is_written(client: KazooClient, zookeeper_hosts: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Into `config`, with everything else there left as it was, also what this version does not know. Case H2."""
    known = json.loads(client.get(PATHS.config)[0])
    client.set(PATHS.config, json.dumps({**known, "v": 9, "of_the_future": [1]}).encode())
    assert keep(zookeeper_hosts, "m2") == 0
    assert "keeps the data of m2; those of the other members will be replaced" in capsys.readouterr().out
    assert json.loads(client.get(PATHS.config)[0]) == {**known, "keep": "m2", "v": 9, "of_the_future": [1]}


def test_the_same_choice_again_writes_nothing(client: KazooClient, zookeeper_hosts: str) -> None:
    """Exit 0, and no watch fires for nothing; another choice replaces it."""
    assert keep(zookeeper_hosts, "m2") == 0
    version = client.get(PATHS.config)[1].version
    assert keep(zookeeper_hosts, "m2") == 0
    assert client.get(PATHS.config)[1].version == version
    assert keep(zookeeper_hosts, "m1") == 0
    assert config(client).keep == "m1"


@pytest.mark.parametrize(
    ("member", "told"),
    [("nobody", "there is no member nobody; the members are m1, m2, m3"), ("m3", "m3 is not a voter")],
)
def test_a_member_that_cannot_be_chosen(
    client: KazooClient, zookeeper_hosts: str, capsys: pytest.CaptureFixture[str], member: str, told: str
) -> None:
    """Exit 1, one line, nothing written."""
    assert keep(zookeeper_hosts, member) == 1
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1
    assert config(client).keep == ""


def test_a_cluster_that_has_had_a_leader(
    client: KazooClient, zookeeper_hosts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Too late: whose data it has is settled. A claim that never served does not count."""
    entry = LedgerEntry(epoch=1, member="m1", guid="g", start=Position(0, 0))
    client.set(PATHS.epoch, znodes.encode(Ledger(epoch=1, entries=(entry,))))
    assert keep(zookeeper_hosts, "m1") == 0
    served = LedgerEntry(epoch=2, member="m1", guid="g", start=Position(0, 0), replid="r", served=True)
    client.set(PATHS.epoch, znodes.encode(Ledger(epoch=2, entries=(entry, served))))
    assert keep(zookeeper_hosts, "m2") == 1
    assert "has had a leader (epoch 2)" in capsys.readouterr().err
    assert config(client).keep == "m1"


def test_no_cluster(zookeeper_hosts: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 1 and a plain sentence; nothing is created."""
    assert keep(zookeeper_hosts, "m1") == 1
    assert "there is no cluster at /redis-agent/cache" in capsys.readouterr().err


def test_a_config_that_cannot_be_read(
    client: KazooClient, zookeeper_hosts: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is not overwritten."""
    client.set(PATHS.config, b"not json")
    assert keep(zookeeper_hosts, "m1") == 1
    assert "cannot be read" in capsys.readouterr().err
    assert client.get(PATHS.config)[0] == b"not json"


def test_only_agents_may_write(
    client: KazooClient, zookeeper_hosts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused without the agents' credentials, with the remedy; done with their configuration."""
    client.set_acls(PATHS.config, [make_digest_acl("agent", "secret", all=True), make_digest_acl("x", "y", read=True)])
    assert keep(zookeeper_hosts, "m1") == 1
    assert "auth_file" in capsys.readouterr().err
    secret = tmp_path / "zookeeper-auth"
    secret.write_text("agent:secret\n")
    secret.chmod(0o600)
    file = tmp_path / "cache.toml"
    file.write_text(
        f'[cluster]\nname = "cache"\nbootstrap_expect = 2\n[zookeeper]\nhosts = "{zookeeper_hosts}"\n'
        f'auth_file = "{secret}"\n[redis]\nannounce_host = "10.0.0.1"\n'
    )
    assert main(["keep", "m1", "--config", str(file)]) == 0


def test_zookeeper_out_of_reach(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2 within the limit, in one line."""
    assert keep(f"127.0.0.1:{free_port()}", "m1", "--timeout", "0.5") == 2
    error = capsys.readouterr().err
    assert "does not answer within 0.5 s" in error
    assert error.count("\n") == 1


# --- a whole cluster ------------------------------------------------------------------------------------------------


def preload(member: AgentProcess, key: str) -> None:
    """Give a member that has never run a data set of its own, as an earlier redis-server would have left it."""
    member.data_dir.mkdir(parents=True, exist_ok=True)
    binary = shutil.which("redis-server")
    assert binary
    socket = member.data_dir / "s"
    arguments = ["--port", "0", "--unixsocket", str(socket), "--dir", str(member.data_dir), "--save", ""]
    with subprocess.Popen([binary, *arguments], stdout=subprocess.DEVNULL) as process:
        try:
            wait_for(socket.exists, 10.0, lambda: "redis-server listens")
            with redis.Redis(unix_socket_path=str(socket)) as client:
                client.set(key, "1")
                client.save()
        finally:
            process.terminate()


def keys(member: AgentProcess) -> set[str]:
    with member.redis() as client:
        found: set[str] = set(client.keys("only-*"))
    return found


def test_unrelated_data_sets_wait_for_an_operator(
    zookeeper: Ensemble, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody leads and nothing is lost until `keep` names one; then everybody has that one's data. Case H2."""
    with unstarted(lab(zookeeper, tmp_path)) as cluster:
        first, second, third = cluster
        preload(first, "only-first")
        preload(second, "only-second")
        for member in cluster:
            member.start()
        blocked = wait_told(cluster, third, "verdict", outcome="blocked")
        assert KEEP_COMMAND in str(blocked["reason"])
        assert (keys(first), keys(second), keys(third)) == ({"only-first"}, {"only-second"}, set())
        words = KEEP_COMMAND.replace("MEMBER", second.name).split()[1:]
        where = ["--zookeeper", cluster.ensemble.hosts, "--cluster", cluster.cluster, "--root", cluster.root]
        assert main([*words, *where]) == 0
        assert cluster.wait_settled().name == second.name
        assert [keys(member) for member in cluster] == [{"only-second"}] * 3
        assert main([*words, *where]) == 1
