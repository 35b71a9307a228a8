"""Clients that write to every node all the time and ask nobody who leads: so it shows who accepts writes."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import NamedTuple, Self

import redis

from redis_agent.lab.agent_process import AgentProcess
from redis_agent.lab.cluster import LocalCluster
from tests.support.cluster import clock

WAIT_MS = 100


class NodeAck(NamedTuple):
    """An acknowledged write; times are on the agents' clock."""

    begun: float
    """Before it was sent."""
    at: float
    """After its acknowledgement was read."""
    node: str
    key: str
    confirmed: bool
    """WAIT counted enough replicas."""


class NodeClient:
    """One thread that writes to one node: a key of its own each time.

    Args:
        member: the node.
        wait: replicas to WAIT for, in the same round trip; 0: a plain client.
        interval_s: between two writes.
        limit_s: it hangs up on a node that does not answer for so long.
    """

    _numbers = itertools.count()
    """Of all: no two clients write the same key."""

    def __init__(self, member: AgentProcess, wait: int = 0, interval_s: float = 0.003, *, limit_s: float = 0.5) -> None:
        self.member = member
        self.acks: list[NodeAck] = []
        self._wait = wait
        self._interval_s = interval_s
        self._limit_s = limit_s
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"client-of-{member.name}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(5.0)

    def _run(self) -> None:
        while not self._stopping.is_set():
            with suppress(redis.RedisError, OSError), self.member.redis(timeout_s=self._limit_s) as client:
                while not self._stopping.is_set():
                    self._write(client)
                    self._stopping.wait(self._interval_s)
            self._stopping.wait(self._interval_s)

    def _write(self, client: redis.Redis) -> None:
        key = f"node:{self.member.name}:{self._wait}:{next(self._numbers)}"
        begun = clock()
        with client.pipeline(transaction=False) as pipe:
            pipe.set(key, key)
            if self._wait:
                pipe.execute_command("WAIT", self._wait, WAIT_MS)
            replies = pipe.execute(raise_on_error=False)
        if replies[0] is True:
            confirmed = bool(self._wait) and isinstance(replies[1], int) and replies[1] >= self._wait
            self.acks.append(NodeAck(begun, clock(), self.member.name, key, confirmed))


class NodeLoad:
    """Two clients of every node, a plain one and one that waits."""

    def __init__(self, clients: Iterable[NodeClient]) -> None:
        self.clients = tuple(clients)

    def acks(self, node: str = "", *, since: float = 0.0, confirmed: bool = False) -> list[NodeAck]:
        """What was acknowledged, by this node or by any, in its order."""
        return sorted(
            (
                ack
                for client in self.clients
                for ack in tuple(client.acks)
                if node in ("", ack.node) and ack.begun >= since and (ack.confirmed or not confirmed)
            ),
            key=lambda ack: ack.at,
        )

    def turns(self) -> list[str]:
        """The nodes that acknowledged, one after the other: one that comes twice has had another in between."""
        return [node for node, _ in itertools.groupby(self.acks(), key=lambda ack: ack.node)]

    def lost(self, member: AgentProcess) -> list[str]:
        """The keys of confirmed writes that this node does not have."""
        keys = [ack.key for ack in self.acks(confirmed=True)]
        with member.redis(timeout_s=5.0) as client:
            values = client.mget(keys) if keys else []
        return [key for key, value in zip(keys, values, strict=True) if value != key]


@contextmanager
def on_every_node(cluster: LocalCluster, wait: int = 1) -> Iterator[NodeLoad]:
    """Write to every node, in both ways."""
    load = NodeLoad(NodeClient(member, each) for member in cluster for each in (0, wait))
    for client in load.clients:
        client.__enter__()
    try:
        yield load
    finally:
        for client in load.clients:
            client.__exit__()
