"""``redis-agent discard`` on real servers: a member that comes with data of unknown lineage."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from redis_agent import znodes
from redis_agent.cli.main import main
from redis_agent.core.considering import DISCARD_COMMAND
from redis_agent.lab.agent_process import AgentProcess
from redis_agent.lab.cluster import LocalCluster
from redis_agent.lab.settings import Settings
from redis_agent.lab.zookeeper import Ensemble
from tests.integration.test_keep import keys, preload
from tests.support.cluster import lab, write

Capture = pytest.CaptureFixture[str]


@contextmanager
def with_stranger(
    zookeeper: Ensemble, directory: Path, settings: Settings | None = None
) -> Iterator[tuple[LocalCluster, AgentProcess]]:
    """A cluster that holds "only-ours", and a member that was set up anew, with another cluster's data on its disk."""
    with lab(zookeeper, directory, settings=settings) as cluster:
        leader = cluster.wait_settled()
        with leader.redis() as client:
            client.set("only-ours", "1")
        write(leader, 10)
        stranger = next(member for member in cluster if member is not leader)
        cluster.wait_settled()
        stranger.stop()
        for path in (stranger.data_dir, stranger.state_dir):
            shutil.rmtree(path)
        preload(stranger, "only-theirs")
        stranger.start()
        cluster.wait_for(lambda: DISCARD_COMMAND in reason(cluster, stranger), "it says what it has")
        yield cluster, stranger


def reason(cluster: LocalCluster, member: AgentProcess) -> str:
    """What `redis-agent status` shows of why it is not following."""
    presence = cluster.presence(member.name)
    return presence.reason if presence is not None else ""


def told_command(cluster: LocalCluster, member: AgentProcess) -> list[str]:
    """The command as the reason has it, and where the cluster is."""
    words = reason(cluster, member).split("`")[1].split()[1:]
    return [*words, "--zookeeper", cluster.ensemble.hosts, "--cluster", cluster.cluster, "--root", cluster.root]


def give_up(cluster: LocalCluster, run_id: str) -> None:
    """What the command writes, of a process that is gone."""
    data, stat = cluster.zk.get(cluster.paths.config)
    changed = replace(znodes.decode_config(data), discard=run_id)
    cluster.zk.set(cluster.paths.config, znodes.merge_config(data, changed), stat.version)


def test_unknown_data_are_kept_until_an_operator_gives_them_up(
    zookeeper: Ensemble, tmp_path: Path, capsys: Capture
) -> None:
    """Refused, and its data are there, until the command that its reason names is given; then it follows with the
    cluster's data, and its own are beside them as a file. Case H2.
    """
    with with_stranger(zookeeper, tmp_path) as (cluster, stranger):
        assert keys(stranger) == {"only-theirs"}
        with stranger.redis() as client:
            run_id = client.info("server")["run_id"]
        command = told_command(cluster, stranger)
        assert main(command) == 0
        said = capsys.readouterr().out
        assert f"the 1 keys of {stranger.name}" in said
        assert "are given up" in said
        cluster.wait_settled()
        assert keys(stranger) == {"only-ours"}
        assert (stranger.data_dir / "diverged" / f"discarded-{run_id[:12]}.rdb").stat().st_size > 0
        assert main(command) == 1
        assert "there is nothing to give up" in capsys.readouterr().err


def test_what_was_given_up_is_this_process_and_no_other(zookeeper: Ensemble, tmp_path: Path) -> None:
    """What its next process has loaded was not meant: that is given up by a command of its own. H2."""
    with with_stranger(zookeeper, tmp_path) as (cluster, stranger):
        earlier = cluster.presence(stranger.name)
        assert earlier is not None
        stranger.kill_redis()
        cluster.wait_for(
            lambda: (told := cluster.presence(stranger.name)) and told.keys == 1 and told.run_id != earlier.run_id,
            "it says what it has now",
        )
        give_up(cluster, earlier.run_id)
        assert keys(stranger) == {"only-theirs"}
        assert DISCARD_COMMAND in reason(cluster, stranger)
        assert main(told_command(cluster, stranger)) == 0
        cluster.wait_settled()
        assert keys(stranger) == {"only-ours"}


def test_who_cannot_be_told_to_discard(zookeeper: Ensemble, tmp_path: Path, capsys: Capture) -> None:
    """The leader, a follower, a stranger to the cluster: exit 1, one line, nothing is written. Case H2."""
    with lab(zookeeper, tmp_path) as cluster:
        leader = cluster.wait_settled()
        follower = next(member for member in cluster if member is not leader)
        where = ["--zookeeper", cluster.ensemble.hosts, "--cluster", cluster.cluster, "--root", cluster.root]
        for name, told in (
            (leader.name, "its data are the cluster's"),
            (follower.name, "there is nothing to give up"),
            ("nobody", "there is no member nobody"),
        ):
            assert main(["discard", name, *where]) == 1
            error = capsys.readouterr().err
            assert told in error
            assert error.count("\n") == 1
        assert cluster.config().discard == ""
