"""Clients hold every slot that a Redis has: the agents still rule it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Self

from redis_agent.lab.agent_process import AgentProcess
from redis_agent.lab.cluster import LocalCluster
from redis_agent.lab.wire import LabConnection, ReplyError, pack
from redis_agent.lab.zookeeper import Ensemble
from redis_agent.znodes import OrderState
from tests.support.cluster import STILL, clock, lab, steps, wait_told

MAXCLIENTS = 30
FULL = "max number of clients reached"


class Crowd:
    """Clients of one Redis that hold every slot there is. One of them talks."""

    def __init__(self, member: AgentProcess) -> None:
        self.member = member
        self._connections: list[LabConnection] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for connection in self._connections:
            connection.close()

    def fill(self) -> int:
        """Take what is free, until Redis refuses a connection; how many of them are in."""
        gone = [each for each in self._connections if not each.usable()]
        for each in gone:
            each.close()
            self._connections.remove(each)
        while (connection := self._enter()) is not None:
            self._connections.append(connection)
            assert len(self._connections) <= MAXCLIENTS
        return len(self._connections)

    def leave(self, count: int) -> None:
        """So many of them leave."""
        for _ in range(min(count, len(self._connections))):
            self._connections.pop().close()

    def _enter(self) -> LabConnection | None:
        connection = LabConnection(self.member.address, password="", connect_limit_s=1.0, reply_limit_s=5.0)
        answer: object = None
        with suppress(OSError):
            connection.send(pack(("PING",)))
            answer = connection.reply()
        if answer == b"PONG":
            return connection
        connection.close()
        assert answer is None or FULL in str(answer), answer
        return None

    def ask(self, *words: str) -> object:
        """What Redis answers to one of them; None if it lets nobody in."""
        if not any(each.usable() for each in self._connections) and (new := self._enter()) is not None:
            self._connections.append(new)
        for connection in self._connections:
            with suppress(OSError):
                connection.send(pack(words))
                return connection.reply()
        return None


@contextmanager
def crowds(cluster: LocalCluster) -> Iterator[dict[str, Crowd]]:
    """Every Redis of the cluster is full."""
    with ExitStack() as stack:
        found = {member.name: stack.enter_context(Crowd(member)) for member in cluster}
        fill(cluster, found)
        yield found


def fill(cluster: LocalCluster, found: dict[str, Crowd]) -> AgentProcess:
    """As soon as everybody follows the leader and is in sync, every slot is taken again.

    To Redis its replicas are clients, too: until then some of the crowd leave, so that there is room for them.
    """
    for crowd in found.values():
        crowd.leave(len(found))
    leader = cluster.wait_for(lambda: agreed(cluster, found), "all are in sync")
    assert all(crowd.fill() > MAXCLIENTS / 2 for crowd in found.values())
    return leader


def agreed(cluster: LocalCluster, found: dict[str, Crowd]) -> AgentProcess | None:
    """By their agents' word, and by Redis's as one of the crowd reads it."""
    leader, presences = cluster.serving(), cluster.presences()
    epoch = cluster.epoch()
    fit = [each for each in presences.values() if each.intact and each.epoch == epoch]
    if leader is None or len(fit) < len(cluster.members):
        return None
    link = f"master_port:{leader.address.port}\r\nmaster_link_status:up".encode()
    told = {name: crowd.ask("INFO", "replication") for name, crowd in found.items() if name != leader.name}
    return leader if all(isinstance(text, bytes) and link in text for text in told.values()) else None


def writes(crowd: Crowd, value: str) -> bool:
    """It is acknowledged, and both followers have it."""
    return crowd.ask("SET", "full", value) == b"OK" and crowd.ask("WAIT", "2", "5000") == 2


def test_a_full_house_fails_over_hands_over_and_is_fenced(zookeeper: Ensemble, tmp_path: Path) -> None:
    """No client could connect to any Redis when its leader's Redis dies, when it is asked to hand over, and when its
    lease ends: each is done as ever, and nothing is lost.

    # case D3
    """
    full = f"{STILL}\nmaxclients {MAXCLIENTS}"
    with lab(zookeeper, tmp_path, redis_conf=full, proxied=True) as cluster, crowds(cluster) as found:
        first = fill(cluster, found)
        assert writes(found[first.name], "first")
        first.kill_redis()
        second = cluster.wait_serving(after_epoch=1)
        assert second is not first

        assert fill(cluster, found) is second
        assert writes(found[second.name], "second")
        assert cluster.switchover()[1].state == OrderState.DONE
        third = cluster.wait_serving(after_epoch=2)
        assert third is not second

        assert fill(cluster, found) is third
        assert writes(found[third.name], "third")
        since, epoch = clock(), cluster.epoch()
        third.cut_zookeeper()
        wait_told(cluster, third, "transition", since, trigger="lease_ended")
        # The fence may have sent them away.
        cluster.wait_for(lambda: refused(found[third.name]), "it refuses writes")
        fourth = cluster.wait_serving(after_epoch=epoch)
        assert fourth is not third
        third.restore_zookeeper()
        assert fill(cluster, found) is fourth
        assert {name: crowd.ask("GET", "full") for name, crowd in found.items()} == dict.fromkeys(found, b"third")
        assert "lease_ended>connecting" in steps(third, since)
        assert third.starts == 1


def refused(crowd: Crowd) -> bool:
    crowd.fill()
    answer = crowd.ask("SET", "other", "1")
    return isinstance(answer, ReplyError) and str(answer).split()[0] in ("NOREPLICAS", "READONLY")
