"""Processes, and whole hosts, that stand still and go on while clients write to every node all the time.

Of single processes nothing gets through. A whole host that goes on may acknowledge what lay in its sockets (DESIGN:
the residue) until the first of its own processes fences it; it is counted here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from redis_agent.lab.agent_process import AgentProcess
from redis_agent.lab.cluster import LocalCluster
from redis_agent.lab.wire import LabConnection, ReplyError, pack
from redis_agent.lab.zookeeper import Ensemble
from tests.support.cluster import clock, lab, told, wait_told
from tests.support.hangs import let_in, measured
from tests.support.node_load import NodeClient, NodeLoad

PATIENCE_S = 30.0
"""Clients that wait for a node that stands still: what they have sent lies in its sockets."""
TELLING_S = 0.05
"""A reply that was sent in time may be read this much later: clients and servers share two cores."""


@contextmanager
def patient_clients(cluster: LocalCluster, of_each: int = 4) -> Iterator[NodeLoad]:
    """Clients of every node, half of them plain, half with WAIT, which do not hang up on one that stands still."""
    with ExitStack() as stack:
        clients = [NodeClient(member, wait, limit_s=PATIENCE_S) for member in cluster for wait in (0, 1) * of_each]
        yield NodeLoad([stack.enter_context(client) for client in clients])


def writing(cluster: LocalCluster, load: NodeLoad, member: AgentProcess) -> None:
    """Wait until it has acknowledged and confirmed some more."""
    since = clock()

    def written() -> bool:
        return len(load.acks(member.name, since=since, confirmed=True)) > 10

    cluster.wait_for(written, f"{member.name} acknowledges and confirms writes")


def residue(cluster: LocalCluster, load: NodeLoad, old: AgentProcess, new: AgentProcess, since: float) -> int:
    """How many writes the old one acknowledged after the new one had been let serve."""
    served = let_in(cluster, new, since)
    return sum(ack.at > served + TELLING_S for ack in load.acks(old.name))


def nothing_confirmed_is_lost(cluster: LocalCluster, load: NodeLoad) -> None:
    cluster.wait_settled()
    for member in cluster:
        cluster.wait_for(partial(has_all, load, member), f"{member.name} has all that was confirmed", 2.0)


def has_all(load: NodeLoad, member: AgentProcess) -> bool:
    return not load.lost(member)


def restart_if_dead(member: AgentProcess) -> None:
    """As init does."""
    if not member.running:
        member.start()


# --- one process at a time ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("process", ["redis", "agent", "guard"])
def test_one_process_stands_still_for_long(zookeeper: Ensemble, tmp_path: Path, process: str) -> None:
    """Until another one serves, then it is continued, if it still is there: the old one acknowledges nothing any more.

    Twice in a row.

    # case C6
    """
    with lab(zookeeper, tmp_path) as cluster:
        with patient_clients(cluster) as load:
            for _ in range(2):
                old, epoch, since = cluster.wait_settled(), cluster.epoch(), clock()
                writing(cluster, load, old)
                old.freeze_host((process,))
                new = cluster.wait_serving(after_epoch=epoch)
                writing(cluster, load, new)
                old.thaw_host()
                restart_if_dead(old)
                cluster.wait_settled()
                writing(cluster, load, new)
                assert new is not old
                assert residue(cluster, load, old, new, since) == 0
        nothing_confirmed_is_lost(cluster, load)


@pytest.mark.parametrize("process", ["redis", "agent", "guard"])
def test_one_process_stands_still_for_a_moment(zookeeper: Ensemble, tmp_path: Path, process: str) -> None:
    """Shorter than any limit: the leader leads on, in its epoch, and every client goes on.

    # case C6
    """
    with lab(zookeeper, tmp_path) as cluster:
        leader, since = cluster.wait_settled(), clock()
        others = [member for member in cluster if member is not leader]
        with patient_clients(cluster) as load:
            writing(cluster, load, leader)
            leader.freeze_host((process,))
            if process != "redis":
                writing(cluster, load, leader)
            else:
                cluster.wait_for(lambda: load.acks(leader.name)[-1].at < clock() - 0.1, "nothing is acknowledged")
            leader.thaw_host()
            writing(cluster, load, leader)
        assert cluster.wait_settled() is leader
        assert told(leader, "transition", since) == []
        assert not any(load.acks(member.name) for member in others)
        nothing_confirmed_is_lost(cluster, load)


# --- the whole host -------------------------------------------------------------------------------------------------

ORDERS = [
    ("agent", "guard", "redis"),
    ("guard", "agent", "redis"),
    ("redis", "guard", "agent"),
]


PILE = 2000
"""Writes that are sent at once, in one piece, to a host that stands still."""


class Pile:
    """Many writes in the socket of a node that stands still.

    Args:
        member: the node, still running.
        name: of the keys.
    """

    def __init__(self, member: AgentProcess, name: str) -> None:
        self._connection = LabConnection(member.address, password="", connect_limit_s=1.0, reply_limit_s=5.0)
        self._message = pack(*(("SET", f"{name}:{number}", number) for number in range(PILE)))

    def send(self) -> None:
        self._connection.send(self._message)

    def acknowledged(self) -> int:
        """How many of them were, now that the node goes on; it may hang up before it has answered all."""
        count = 0
        with suppress(OSError):
            for _ in range(PILE):
                count += not isinstance(self._connection.reply(), ReplyError)
        self._connection.close()
        return count


@pytest.mark.parametrize("order", ORDERS, ids="-".join)
def test_a_whole_host_stands_still(zookeeper: Ensemble, tmp_path: Path, order: tuple[str, ...]) -> None:
    """Past its session, and then goes on, in this order: nothing that was confirmed is lost. The residue is counted.

    Redis executes what a read or two of each connection bring before it looks after replicas that have left, and before
    anybody can fence it. What it confirms late was executed, and reached a replica, before it stood still.

    # case C6
    """
    with lab(zookeeper, tmp_path) as cluster:
        with patient_clients(cluster) as load:
            old = cluster.wait_settled()
            wait_told(cluster, old, "writes_need_replicas")
            writing(cluster, load, old)
            early, late = Pile(old, "early"), Pile(old, "late")
            old.freeze_host(tuple(reversed(order)))
            early.send()
            new = cluster.wait_serving(after_epoch=1)
            writing(cluster, load, new)
            late.send()
            thawed = clock()
            old.thaw_host(order)
            counts = (early.acknowledged(), late.acknowledged())
            # Its guard may kill the agent before that learns of its session's end.
            cluster.wait_for(lambda: not old.running or told(old, "transition", thawed, to="follower"), "it gives way")
            restart_if_dead(old)
            assert cluster.wait_settled() is new
            writing(cluster, load, new)
        single = [ack for ack in load.acks(old.name) if ack.at >= thawed]
        # WAIT takes its time to say that nobody has it.
        read_ms = max((1000 * (ack.at - thawed) for ack in single if ack.key.split(":")[2] == "0"), default=0.0)
        clients = sum(client.member is old for client in load.clients)
        measured(f"of {clients} clients with one write each, acknowledged late", f"{len(single)}, in {read_ms:.0f} ms")
        measured(f"of {PILE} writes sent at once, before its followers froze and after", f"{counts} acknowledged late")
        assert load.turns()[-1] == new.name
        nothing_confirmed_is_lost(cluster, load)


def test_a_whole_host_stands_still_for_a_moment(zookeeper: Ensemble, tmp_path: Path) -> None:
    """Within its lease it is the leader as before.

    # case C6
    """
    with lab(zookeeper, tmp_path) as cluster:
        leader, since = cluster.wait_settled(), clock()
        with patient_clients(cluster) as load:
            writing(cluster, load, leader)
            leader.freeze_host()
            cluster.wait_for(lambda: load.acks(leader.name)[-1].at < clock() - 0.1, "nothing is acknowledged")
            leader.thaw_host()
            writing(cluster, load, leader)
        assert cluster.wait_settled() is leader
        assert told(leader, "transition", since) == []
        nothing_confirmed_is_lost(cluster, load)


def test_a_followers_host_stands_still(zookeeper: Ensemble, tmp_path: Path) -> None:
    """Past its session: the leader leads on, and the follower joins again; what was confirmed meanwhile is there.

    # case C6
    """
    with lab(zookeeper, tmp_path) as cluster:
        leader, since = cluster.wait_settled(), clock()
        follower = next(member for member in cluster if member is not leader)
        with patient_clients(cluster) as load:
            writing(cluster, load, leader)
            follower.freeze_host()
            cluster.wait_for(lambda: cluster.presence(follower.name) is None, "its session ends")
            writing(cluster, load, leader)
            follower.thaw_host()
            cluster.wait_for(lambda: told(follower, "session_expired", since), "it knows")
            assert cluster.wait_settled() is leader
            writing(cluster, load, leader)
        assert told(leader, "transition", since) == []
        assert {ack.node for ack in load.acks()} == {leader.name}
        assert follower.returncode is None
        nothing_confirmed_is_lost(cluster, load)
