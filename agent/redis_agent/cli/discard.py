"""``redis-agent discard MEMBER``: let a member with data of unknown lineage follow, which replaces them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

from kazoo.client import KazooClient  # type: ignore[import-untyped]
from kazoo.exceptions import (  # type: ignore[import-untyped]
    BadVersionError,
    NoAuthError,
    NoNodeError,
)

from redis_agent import znodes
from redis_agent.cli import cluster_view, target
from redis_agent.cli.changing import ATTEMPTS, Refused, carry_out
from redis_agent.znodes import LeaderPhase


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("member", metavar="MEMBER", help="whose data are given up")
    target.add_arguments(parser)


def execute(options: argparse.Namespace) -> int:
    """Give them up: 0 if it is written, 1 if it is refused, 2 if ZooKeeper cannot be reached."""
    return carry_out(options, "redis-agent discard", discard)


def discard(
    hosts: str, paths: znodes.Paths, member: str, *, auth: Sequence[tuple[str, str]] = (), limit_s: float = 5.0
) -> str:
    """Write into ``config`` that what this member's redis-server has now may be replaced by the leader's data.

    The process is named by its run id. So the permission is for this very data set: a server that is started later,
    with other data, is not meant by it.

    Args:
        hosts: ZooKeeper's servers, with an optional chroot.
        paths: where the cluster is.
        member: whose data to give up.
        auth: (scheme, credential) pairs for ZooKeeper.
        limit_s: for each step.

    Returns:
        What was done, in one sentence.

    Raises:
        Refused: there is nothing to give up, or ZooKeeper does not allow it.
        Unreachable: no answer within the limit.
    """
    with cluster_view.connected(hosts, limit_s, auth) as client:
        for _ in range(ATTEMPTS):
            try:
                return _discard(client, paths, member, limit_s)
            except BadVersionError:
                continue  # Somebody else has changed it meanwhile.
            except NoAuthError:
                remedy = "give --config FILE of an agent whose [zookeeper] auth_file is allowed to"
                raise Refused(f"ZooKeeper does not let us write {paths.config}; {remedy}") from None
            except NoNodeError:
                raise Refused(f"there is no cluster at {paths.base}: no agent has ever registered there") from None
    raise Refused(f"{paths.config} was changed by somebody else {ATTEMPTS} times in a row; try again")


def _discard(client: KazooClient, paths: znodes.Paths, member: str, limit_s: float) -> str:
    client.sync_async(paths.base).get(timeout=limit_s)
    data, stat = client.get_async(paths.config).get(timeout=limit_s)
    _, ledger_stat = client.get_async(paths.epoch).get(timeout=limit_s)
    view = cluster_view.read_with(client, paths, limit_s)
    presence = _presence(view, member)
    what = f"the {presence.keys} keys of {member} (redis-server {presence.run_id[:12]})"
    if view.config.discard == presence.run_id:
        return f"{what} are given up already"
    transaction = client.transaction()
    # A leader that serves now: whose data replace these is settled.
    transaction.check(paths.epoch, ledger_stat.version)
    transaction.set_data(
        paths.config, znodes.merge_config(data, replace(view.config, discard=presence.run_id)), stat.version
    )
    for answer in transaction.commit_async().get(timeout=limit_s):
        if isinstance(answer, BadVersionError | NoAuthError | NoNodeError):
            raise answer
    assert view.leader is not None
    return f"{what} are given up: it follows {view.leader.name}, whose data replace them"


def _presence(view: cluster_view.ClusterView, member: str) -> znodes.Presence:
    """Of a member that has data, and does not follow.

    Raises:
        Refused: it is another one.
    """
    if view.corrupt:
        raise Refused(f"a znode below {view.paths.base} cannot be read: {view.corrupt[0]}")
    found = {each.name: each for each in view.members}.get(member)
    if found is None:
        names = ", ".join(each.name for each in view.members)
        raise Refused(f"there is no member {member}; the members are {names or 'none yet'}")
    leader, presence = view.leader, found.presence
    if leader is None or leader.phase != LeaderPhase.SERVING:
        raise Refused("no leader serves whose data could replace those of a member")
    if leader.name == member:
        raise Refused(f"{member} leads: its data are the cluster's")
    if presence is None:
        raise Refused(f"the agent of {member} is not there, and it must say what it has")
    if not presence.redis_up or not presence.run_id:
        raise Refused(f"the Redis of {member} is down, so it does not say what it has")
    if presence.intact or presence.primary == leader.address:
        raise Refused(f"{member} follows the leader: there is nothing to give up")
    if presence.keys == 0:
        raise Refused(f"{member} has no data: there is nothing to give up")
    return presence
