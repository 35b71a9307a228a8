"""What ZooKeeper says of a cluster, read once, and whether all is well. Reads only."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from kazoo.client import KazooClient  # type: ignore[import-untyped]
from kazoo.exceptions import KazooException, NoNodeError  # type: ignore[import-untyped]
from kazoo.handlers.threading import KazooTimeoutError, SequentialThreadingHandler  # type: ignore[import-untyped]

from redis_agent import znodes
from redis_agent.election import Mode, quorum
from redis_agent.replication import Ledger

# One dead server of the list must not use up the whole limit.
CONNECT_LIMIT_S = 0.5


class Unreachable(Exception):
    """ZooKeeper did not answer in time, or refused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberView:
    """A member: registered, present, or both."""

    name: str
    registration: znodes.Member | None = None
    presence: znodes.Presence | None = None
    lag_bytes: int | None = None
    """Behind the leader, as both last said; None if that cannot be compared."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderView:
    """What an operator asked for, and the version of its znode."""

    name: str
    order: znodes.Order
    version: int = 0

    def under_way(self, leader: znodes.Leader | None, now: float) -> bool:
        """Whether something may come of it yet.

        Args:
            leader: who leads now.
            now: wall clock.
        """
        order = self.order
        if order.state == znodes.OrderState.PENDING:
            return now <= order.at + order.expires_s
        # The leadership that accepted it carries it out; a later one only notes what came of it.
        return order.state == znodes.OrderState.ACCEPTED and leader is not None and order.epoch == leader.epoch


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterView:
    """A cluster as ZooKeeper tells it."""

    paths: znodes.Paths
    exists: bool
    config: znodes.ClusterConfig = field(default_factory=znodes.ClusterConfig)
    ledger: Ledger = field(default_factory=Ledger)
    leader: znodes.Leader | None = None
    members: tuple[MemberView, ...] = ()
    orders: tuple[OrderView, ...] = ()
    """Oldest first."""
    corrupt: tuple[str, ...] = ()
    """What could not be decoded."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why the cluster is not well; empty if it is."""
        return tuple(_reasons(self))

    def member(self, name: str) -> MemberView | None:
        """The member of that name."""
        return next((member for member in self.members if member.name == name), None)


class _Handler(SequentialThreadingHandler):  # type: ignore[misc]
    def create_connection(self, *args: Any, **kwargs: Any) -> Any:
        kwargs["timeout"] = min(kwargs.get("timeout") or CONNECT_LIMIT_S, CONNECT_LIMIT_S)
        return super().create_connection(*args, **kwargs)


@contextmanager
def connected(hosts: str, limit_s: float, auth: Sequence[tuple[str, str]] = ()) -> Iterator[KazooClient]:
    """A client of ZooKeeper for one command.

    Args:
        hosts: ZooKeeper's servers, with an optional chroot.
        limit_s: for the connection, and again for what is done with it.
        auth: (scheme, credential) pairs.

    Raises:
        Unreachable: no answer within the limit, or none that the command itself understands.
    """
    # The one line that the command ends with says what is wrong; kazoo would tell of each attempt.
    kazoo = logging.getLogger("kazoo")
    level = kazoo.level
    kazoo.setLevel(logging.CRITICAL)
    retry = {"max_tries": -1, "delay": 0.02, "backoff": 1.5, "max_delay": 0.25}
    client = KazooClient(
        hosts=hosts, timeout=max(limit_s, 2.0), handler=_Handler(), connection_retry=retry, auth_data=list(auth)
    )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="No chroot path exists")
            client.start(timeout=limit_s)
        if client.chroot and client.exists("/") is None:
            raise Unreachable(f"ZooKeeper at {hosts} answers, but its chroot {client.chroot} does not exist")
        yield client
    except (KazooTimeoutError, KazooException, TimeoutError) as error:
        reason = str(error) or type(error).__name__
        raise Unreachable(f"ZooKeeper at {hosts} does not answer within {limit_s:g} s ({reason})") from None
    finally:
        client.stop()
        client.close()
        kazoo.setLevel(level)


def read(hosts: str, paths: znodes.Paths, limit_s: float = 5.0) -> ClusterView:
    """Read a cluster.

    Args:
        hosts: ZooKeeper's servers, with an optional chroot.
        paths: where the cluster is.
        limit_s: for everything together.

    Raises:
        Unreachable: no answer within the limit.
    """
    deadline = time.monotonic() + limit_s
    with connected(hosts, limit_s) as client:
        return read_with(client, paths, deadline - time.monotonic())


def read_with(client: KazooClient, paths: znodes.Paths, limit_s: float) -> ClusterView:
    """Read a cluster over a connection that is there already.

    Raises:
        TimeoutError: no answer within the limit.
        KazooException: ZooKeeper refused, or the connection broke.
    """
    return _Reader(client, time.monotonic() + limit_s).cluster(paths)


class _Reader:
    def __init__(self, client: KazooClient, deadline: float) -> None:
        self._client, self._deadline = client, deadline
        self._corrupt: list[str] = []

    def _wait(self, answer: Any) -> Any:
        return answer.get(timeout=max(0.01, self._deadline - time.monotonic()))

    def _get(self, path: str) -> bytes | None:
        found = self._get_with_version(path)
        return None if found is None else found[0]

    def _get_with_version(self, path: str) -> tuple[bytes, int] | None:
        try:
            data, stat = self._wait(self._client.get_async(path))
        except NoNodeError:
            return None
        return data, stat.version

    def _children(self, path: str) -> dict[str, bytes]:
        try:
            names: list[str] = self._wait(self._client.get_children_async(path))
        except NoNodeError:
            return {}
        found = {name: self._get(f"{path}/{name}") for name in sorted(names)}
        return {name: data for name, data in found.items() if data is not None}

    def _orders(self, paths: znodes.Paths) -> tuple[OrderView, ...]:
        try:
            names: list[str] = self._wait(self._client.get_children_async(paths.orders))
        except NoNodeError:
            return ()
        found = []
        for name in names:
            read_ = self._get_with_version(paths.order(name))
            order = self._decode(znodes.decode_order, read_ and read_[0], paths.order(name))
            if read_ is not None and order is not None:
                found.append(OrderView(name=name, order=order, version=read_[1]))
        return tuple(sorted(found, key=lambda each: (each.order.at, each.name)))

    def _decode(self, decode: Any, data: bytes | None, path: str) -> Any:
        if data is None:
            return None
        try:
            return decode(data)
        except znodes.Corrupt as error:
            self._corrupt.append(f"{path}: {error}")
            return None

    def cluster(self, paths: znodes.Paths) -> ClusterView:
        try:
            self._wait(self._client.sync_async(paths.base))
        except NoNodeError:
            return ClusterView(paths=paths, exists=False)
        config_data = self._get(paths.config)
        registered = {
            name: self._decode(znodes.decode_member, data, paths.member(name))
            for name, data in self._children(paths.members).items()
        }
        present = {
            name: self._decode(znodes.decode_presence, data, paths.presence(name))
            for name, data in self._children(paths.presences).items()
        }
        orders = self._orders(paths)
        # The leader last: what it says is then not older than what was said of it.
        leader = self._decode(znodes.decode_leader, self._get(paths.leader), paths.leader)
        return ClusterView(
            paths=paths,
            exists=config_data is not None or bool(registered),
            config=self._decode(znodes.decode_config, config_data, paths.config) or znodes.ClusterConfig(),
            ledger=self._decode(znodes.decode_ledger, self._get(paths.epoch), paths.epoch) or Ledger(),
            leader=leader,
            members=_members(registered, present, leader),
            orders=orders,
            corrupt=tuple(self._corrupt),
        )


def _members(
    registered: Mapping[str, znodes.Member | None],
    present: Mapping[str, znodes.Presence | None],
    leader: znodes.Leader | None,
) -> tuple[MemberView, ...]:
    first = present.get(leader.name) if leader else None
    members = []
    for name in sorted(registered.keys() | present.keys()):
        presence = present.get(name)
        lag = None
        if first and presence and first.replid == presence.replid and presence.offset_bytes >= 0:
            # The two accounts are of different moments, so the difference may be slightly below zero.
            lag = max(0, first.offset_bytes - presence.offset_bytes)
        members.append(MemberView(name=name, registration=registered.get(name), presence=presence, lag_bytes=lag))
    return tuple(members)


def _reasons(view: ClusterView) -> list[str]:
    if not view.exists:
        return [f"there is no cluster at {view.paths.base}: no agent has ever registered there"]
    reasons = list(view.corrupt)
    voters = view.config.voters
    if not voters:
        present = sum(member.presence is not None for member in view.members)
        reasons.append(f"not bootstrapped yet: {present} members are here, bootstrap_expect says how many it takes")
    reasons += _leader_reasons(view)
    for name in voters:
        reasons += _voter_reasons(view, name)
        reasons += _sickness(view, name)
    here = sum(1 for name in voters if (member := view.member(name)) is not None and member.presence)
    confirming, electing = quorum(len(voters))
    if voters and view.config.mode is Mode.QUORUM:
        if here < electing:
            reasons.append(f"only {here} of {len(voters)} voters are here: nobody can be elected")
        if here - 1 < confirming:
            reasons.append(f"only {here} of {len(voters)} voters are here: WAIT {confirming} can confirm no write")
    return reasons


def _leader_reasons(view: ClusterView) -> list[str]:
    leader = view.leader
    if leader is None:
        return ["nobody leads"]
    reasons = []
    if leader.phase == znodes.LeaderPhase.HANDING_OVER and leader.successor:
        reasons.append(f"the leader {leader.name} is handing over to {leader.successor}")
    elif leader.phase != znodes.LeaderPhase.SERVING:
        reasons.append(f"the leader {leader.name} is {leader.phase}, not serving")
    if leader.epoch != view.ledger.epoch:
        reasons.append(f"leader says epoch {leader.epoch}, the ledger says {view.ledger.epoch}")
    member = view.member(leader.name)
    presence = member.presence if member else None
    if presence is None:
        reasons.append(f"the leader {leader.name} is not present")
    elif presence.guid != leader.guid:
        reasons.append(f"the leader {leader.name} has restarted; its leadership is of a session before")
    return reasons


def _voter_reasons(view: ClusterView, name: str) -> list[str]:
    member = view.member(name)
    presence = member.presence if member else None
    if member is None or presence is None:
        return [f"voter {name} is away"]
    because = f" ({presence.reason})" if presence.reason else ""
    if not presence.redis_up:
        return [f"voter {name}: its Redis is down{because}"]
    if view.leader is None or view.leader.name == name:
        return []
    if not presence.link_up:
        return [f"voter {name}: no link to its primary{because}"]
    if presence.primary != view.leader.address:
        return [f"voter {name}: follows {presence.primary}, not the leader{because}"]
    if not presence.intact:
        return [f"voter {name}: has not caught up since it (re)started{because}"]
    if member.lag_bytes is None:
        return [f"voter {name}: its data is of another lineage than the leader's{because}"]
    if member.lag_bytes > view.config.max_lag_bytes:
        return [f"voter {name}: {member.lag_bytes} bytes behind{because}"]
    return []


def _sickness(view: ClusterView, name: str) -> list[str]:
    member = view.member(name)
    sick = member.presence.sick if member and member.presence else ""
    who = f"the leader {name}" if view.leader is not None and view.leader.name == name else f"voter {name}"
    return [f"{who}: its Redis refuses writes ({sick})"] if sick else []


def needed(view: ClusterView) -> tuple[int, int]:
    """Acknowledgements that confirm a write, and ballots that elect."""
    return quorum(len(view.config.voters)) if view.config.voters else (0, 0)
