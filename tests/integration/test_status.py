"""``redis-agent status`` against a real ZooKeeper."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from kazoo.client import KazooClient  # type: ignore[import-untyped]

from redis_agent import znodes
from redis_agent.cli.main import main
from redis_agent.lab.ports import free_port
from redis_agent.replication import Address, Ledger, LedgerEntry, Position

PATHS = znodes.Paths("redis-agent", "cache")
ADDRESS = Address("10.0.0.1", 6379)


@pytest.fixture
def client(zookeeper_hosts: str) -> Iterator[KazooClient]:
    """A client of the test's own corner of ZooKeeper."""
    client = KazooClient(zookeeper_hosts)
    client.start(timeout=10)
    yield client
    client.stop()
    client.close()


def arguments(hosts: str) -> list[str]:
    return ["status", "--zookeeper", hosts, "--cluster", "cache"]


def write_cluster(client: KazooClient) -> None:
    """A cluster of one member, which leads."""
    payloads: dict[str, znodes.ClusterConfig | Ledger | znodes.Member | znodes.Presence | znodes.Leader] = {
        PATHS.config: znodes.ClusterConfig(cluster_id="c", voters=("m1",)),
        PATHS.epoch: Ledger(epoch=1, entries=(LedgerEntry(epoch=1, member="m1", guid="g", start=Position(0, 0)),)),
        PATHS.member("m1"): znodes.Member(name="m1", redis=ADDRESS),
        PATHS.presence("m1"): znodes.Presence(
            name="m1", guid="g", state="leader.serving", epoch=1, redis=ADDRESS, redis_up=True, role="primary"
        ),
        PATHS.leader: znodes.Leader(
            name="m1", address=ADDRESS, epoch=1, phase=znodes.LeaderPhase.SERVING, guid="g", replid="r"
        ),
    }
    for path, payload in payloads.items():
        client.create(path, znodes.encode(payload), makepath=True)


def test_a_cluster_that_is_well(client: KazooClient, zookeeper_hosts: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 0, the heading and one line for each member."""
    write_cluster(client)
    assert main(arguments(zookeeper_hosts)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("cluster cache: well; leader m1 (serving) at 10.0.0.1:6379; epoch 1; mode quorum")
    assert lines[2].split()[:3] == ["MEMBER", "STATE", "REDIS"]
    assert lines[3].split()[:4] == ["m1", "leader.serving", "primary", "10.0.0.1:6379"]


def test_a_cluster_that_is_not_well(
    client: KazooClient, zookeeper_hosts: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit 1, and the reasons; the cluster may also come from an agent's configuration, and JSON says the same."""
    write_cluster(client)
    client.delete(PATHS.leader)
    client.set(PATHS.member("m1"), b"not json")
    config = tmp_path / "cache.toml"
    config.write_text(
        f'[cluster]\nname = "cache"\nbootstrap_expect = 1\n[zookeeper]\nhosts = "{zookeeper_hosts}"\n'
        '[redis]\nannounce_host = "10.0.0.1"\n'
    )
    assert main(["status", "--config", str(config)]) == 1
    out = capsys.readouterr().out
    assert "! nobody leads" in out
    assert f"! {PATHS.member('m1')}: " in out
    assert main(["status", "--config", str(config), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["well"] is False
    assert "nobody leads" in told["reasons"]
    assert told["members"][0]["name"] == "m1"


def test_a_cluster_that_does_not_exist(zookeeper_hosts: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 1: ZooKeeper answers, but no agent has ever been there."""
    assert main(arguments(zookeeper_hosts)) == 1
    assert "! there is no cluster at /redis-agent/cache" in capsys.readouterr().out


def test_zookeeper_out_of_reach(capsys: pytest.CaptureFixture[str]) -> None:
    """Exit 2 within the limit, in one line."""
    started = time.monotonic()
    assert main([*arguments(f"127.0.0.1:{free_port()}"), "--timeout", "0.5"]) == 2
    assert time.monotonic() - started < 5
    error = capsys.readouterr().err
    assert "does not answer within 0.5 s" in error
    assert error.count("\n") == 1
