"""The servers that integration tests share, and clients of ZooKeeper."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Protocol

import pytest

from redis_agent.lab.zookeeper import Ensemble
from tests.contract.driver import Peer
from tests.support.zookeeper import ProxiedClient, session_threads, zk_ensemble, zk_root, zk_single

__all__ = ["MakePeer", "make_peer", "zk_ensemble", "zk_root", "zk_single"]


class MakePeer(Protocol):
    """Makes a client of the real adapter that is not open yet; all are closed at the end of the test."""

    def __call__(
        self,
        ensemble: Ensemble,
        timeout_s: float = 4.0,
        *,
        addresses: list[tuple[str, int]] | None = None,
        chroot: str = "",
        auth: tuple[tuple[str, str], ...] = (),
        protected: bool = False,
    ) -> Peer[ProxiedClient]: ...


@pytest.fixture
def make_peer() -> Iterator[MakePeer]:
    """Peers whose connections can be cut; none leaves a thread behind."""
    with ExitStack() as stack:

        def make(
            ensemble: Ensemble,
            timeout_s: float = 4.0,
            *,
            addresses: list[tuple[str, int]] | None = None,
            chroot: str = "",
            auth: tuple[tuple[str, str], ...] = (),
            protected: bool = False,
        ) -> Peer[ProxiedClient]:
            client = ProxiedClient(
                ensemble, timeout_s, addresses=addresses, chroot=chroot, auth=auth, protected=protected
            )
            return Peer(stack.enter_context(closing(client)))

        yield make
    assert [name for name in session_threads() if name.startswith("zk-session")] == []
