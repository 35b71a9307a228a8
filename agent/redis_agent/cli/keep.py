"""``redis-agent keep MEMBER``: choose between unrelated data sets, before a cluster has its first leader."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from kazoo.client import KazooClient  # type: ignore[import-untyped]
from kazoo.exceptions import BadVersionError, NoAuthError, NoNodeError  # type: ignore[import-untyped]

from redis_agent import znodes
from redis_agent.ballots import never_served
from redis_agent.cli import cluster_view, target
from redis_agent.cli.changing import ATTEMPTS, Refused, carry_out


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("member", metavar="MEMBER", help="whose data the cluster starts with; the others' are lost")
    target.add_arguments(parser)


def execute(options: argparse.Namespace) -> int:
    """Choose: 0 if it is written, 1 if it is refused, 2 if ZooKeeper cannot be reached."""
    return carry_out(options, "redis-agent keep", keep)


def keep(
    hosts: str, paths: znodes.Paths, member: str, *, auth: Sequence[tuple[str, str]] = (), limit_s: float = 5.0
) -> str:
    """Write the choice into ``config``, unless a leader has served already.

    Args:
        hosts: ZooKeeper's servers, with an optional chroot.
        paths: where the cluster is.
        member: whose data to keep.
        auth: (scheme, credential) pairs for ZooKeeper.
        limit_s: for each step.

    Returns:
        What was done, in one sentence.

    Raises:
        Refused: there is nothing to choose, or ZooKeeper does not allow it.
        Unreachable: no answer within the limit.
    """
    with cluster_view.connected(hosts, limit_s, auth) as client:
        try:
            return _keep(client, paths, member, limit_s)
        except NoNodeError:
            raise Refused(f"there is no cluster at {paths.base}: no agent has ever registered there") from None
        except NoAuthError:
            remedy = "give --config FILE of an agent whose [zookeeper] auth_file is allowed to"
            raise Refused(f"ZooKeeper does not let us write {paths.config}; {remedy}") from None
        except znodes.Corrupt as error:
            raise Refused(f"a znode below {paths.base} cannot be read: {error}") from None


def _keep(client: KazooClient, paths: znodes.Paths, member: str, limit_s: float) -> str:
    def wait(answer: Any) -> Any:
        return answer.get(timeout=limit_s)

    for _ in range(ATTEMPTS):
        wait(client.sync_async(paths.base))
        ledger_data, ledger_stat = wait(client.get_async(paths.epoch))
        config_data, config_stat = wait(client.get_async(paths.config))
        config, ledger = znodes.decode_config(config_data), znodes.decode_ledger(ledger_data)
        if not never_served(ledger):
            raise Refused(
                f"cluster {paths.cluster} has had a leader (epoch {ledger.epoch}): its data are settled; "
                f"`redis-agent discard` gives up those of a member that has others"
            )
        _check_member(client, paths, config, member, wait)
        if config.keep == member:
            return f"cluster {paths.cluster} keeps the data of {member} already"
        transaction = client.transaction()
        transaction.check(paths.epoch, ledger_stat.version)
        data = znodes.merge_config(config_data, replace(config, keep=member))
        transaction.set_data(paths.config, data, config_stat.version)
        outcome = wait(transaction.commit_async())
        failed = [answer for answer in outcome if isinstance(answer, BadVersionError | NoAuthError | NoNodeError)]
        if not failed:
            return f"cluster {paths.cluster} keeps the data of {member}; those of the other members will be replaced"
        if not isinstance(failed[0], BadVersionError):
            raise failed[0]
    raise Refused(f"{paths.config} was changed by somebody else {ATTEMPTS} times in a row; try again")


def _check_member(
    client: KazooClient, paths: znodes.Paths, config: znodes.ClusterConfig, member: str, wait: Any
) -> None:
    names = sorted(wait(client.get_children_async(paths.members)))
    if member not in names:
        raise Refused(f"there is no member {member}; the members are {', '.join(names) or 'none yet'}")
    data, _ = wait(client.get_async(paths.member(member)))
    if not znodes.decode_member(data).voter or (config.voters and member not in config.voters):
        raise Refused(f"{member} is not a voter, so it cannot lead with its data")
