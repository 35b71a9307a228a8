"""How the clients of the comparison find Sentinel's primary."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from redis_agent.lab.wire import LabConnection, pack
from redis_agent.replication import Address
from tests.faults.workload import Target

ASK_EVERY_S = 0.05
LIMIT_S = 0.25


class SentinelFinder:
    """Asks every Sentinel all the time and believes the one that knows the latest configuration.

    Better informed than any client library, on purpose: libraries ask one Sentinel after the other, when they connect;
    some of them (not redis-py) also listen for ``+switch-master``. As all of them, it stays with what it was told last
    when no Sentinel can be reached.

    Args:
        sentinels: host:port of each.
        master: the name by which Sentinel knows the primary.
        need: for WAIT: replicas that make a majority together with the primary.
    """

    def __init__(self, sentinels: Sequence[str], master: str, need: int = 1) -> None:
        # While it carries out a failover, a Sentinel tells the new address in answer to the second question only.
        self._question = pack(("SENTINEL", "MASTER", master), ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", master))
        self._need = need
        self._closing = threading.Event()
        self._lock = threading.Lock()
        self._epoch = -1
        self._target: Target | None = None
        self._threads = [
            threading.Thread(target=self._run, args=(Address(host, int(port)),), daemon=True)
            for host, _, port in (each.rpartition(":") for each in sentinels)
        ]
        for thread in self._threads:
            thread.start()

    def find(self) -> Target | None:
        return self._target

    def close(self) -> None:
        self._closing.set()
        for thread in self._threads:
            thread.join()

    def _run(self, sentinel: Address) -> None:
        connection: LabConnection | None = None
        while not self._closing.wait(ASK_EVERY_S):
            try:
                connection = connection or LabConnection(
                    sentinel, password="", connect_limit_s=LIMIT_S, reply_limit_s=LIMIT_S
                )
                connection.send(self._question)
                self._believe(connection.reply(), connection.reply())
            except OSError:
                if connection is not None:
                    connection.close()
                    connection = None
        if connection is not None:
            connection.close()

    def _believe(self, state: object, address: object) -> None:
        if not (isinstance(state, list) and isinstance(address, list)):
            return
        epoch = int(state[state.index(b"config-epoch") + 1])
        host, port = (each.decode() for each in address)
        with self._lock:
            # A Sentinel that was cut off tells of the past for a while.
            if epoch > self._epoch:
                self._epoch = epoch
                self._target = Target(f"{host}:{port}", self._need)
