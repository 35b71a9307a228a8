"""``redis-agent switchover``: order the leader to hand over, and tell what became of it.

The order is a znode. The leader's agent takes it, hands over, and writes the outcome into it.
"""

from __future__ import annotations

import argparse
import getpass
import os
import queue
import socket
import sys
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, NamedTuple

from kazoo.client import KazooClient, KazooState  # type: ignore[import-untyped]
from kazoo.exceptions import (  # type: ignore[import-untyped]
    BadVersionError,
    ConnectionLoss,
    KazooException,
    NoAuthError,
    NoNodeError,
    SessionExpiredError,
)
from kazoo.handlers.threading import KazooTimeoutError  # type: ignore[import-untyped]
from kazoo.security import CREATOR_ALL_ACL, READ_ACL_UNSAFE  # type: ignore[import-untyped]

from redis_agent import znodes
from redis_agent.cli import cluster_view, target
from redis_agent.cli.apart import apart
from redis_agent.cli.cluster_view import ClusterView, OrderView
from redis_agent.config_file import load
from redis_agent.config_host import zookeeper_auth
from redis_agent.znodes import LeaderPhase, Order, OrderState

KIND = "switchover"
DEFAULT_LIMIT_S = 60.0
STEP_LIMIT_S = 5.0
"""For the connection, and for each step over it."""

EXAMPLES = """\
examples:
  redis-agent switchover --wait --config /etc/redis-agent/cache.toml
      hand over to whoever is furthest, and wait for the outcome
  redis-agent switchover --to redis2 --wait --zookeeper zk1:2181,zk2:2181 --cluster cache
      hand over to redis2, or say why not
  redis-agent switchover --to redis2 --config /etc/redis-agent/cache.toml
      only order it; `redis-agent status` shows the outcome

Clients' writes wait for some milliseconds while it happens; none is lost and none is executed twice.
If the successor cannot take over in time, the leader stays, and the outcome says why.

exit codes: 0 done (without --wait: ordered), 1 refused, failed or not in time, 2 wrong usage or no ZooKeeper,
130 interrupted: the order stays
"""

Tell = Callable[[str], None]


class Refused(Exception):
    """It must not be ordered, or came to nothing. The message says why, and what to do where that is not obvious."""


class Ordered(NamedTuple):
    """What was asked, where."""

    hosts: str
    paths: znodes.Paths
    name: str
    order: Order
    see: str
    """The command that shows what becomes of it."""
    steps: list[str]
    """What an interruption means, the latest last: nothing yet, as long as it is not being written."""

    @property
    def path(self) -> str:
        return self.paths.order(self.name)

    @property
    def stays(self) -> str:
        return f"the order {self.name} stays and may be carried out: {self.see}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EXAMPLES
    parser.add_argument("--to", metavar="MEMBER", type=_member, help="who is to lead; default: the voter that is best")
    parser.add_argument("--wait", action="store_true", help="wait until it is done or has failed, and say which")
    limits = "the order is not begun later than this, and --wait waits no longer"
    target.add_arguments(parser, timeout_s=DEFAULT_LIMIT_S, limits=limits)


def _member(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("it is empty; name a member, or leave --to out")
    return text


def execute(options: argparse.Namespace) -> int:
    """Order it: 0 if it is done (or ordered), 1 if it is refused or failed, 2 if ZooKeeper cannot be reached."""
    hosts, paths = target.find(options, "redis-agent switchover")
    # Where only agents may write, this command must be able to prove that it belongs to them.
    auth = zookeeper_auth(load(options.config), options.config) if options.config else ()
    order = Order(kind=KIND, to=options.to or "", by=_who(), at=time.time(), expires_s=options.timeout)
    ordered = Ordered(hosts, paths, f"{KIND}-{uuid.uuid4().hex[:8]}", order, _status_command(options, hosts, paths), [])

    def work() -> str:
        with cluster_view.connected(hosts, min(STEP_LIMIT_S, order.expires_s), auth) as client:
            return _give_and_tell(client, ordered, options, protected=bool(auth))

    try:
        print(apart(work), flush=True)
    except (Refused, znodes.Corrupt) as refused:
        print(f"redis-agent: {refused}", file=sys.stderr)
        return 1
    except cluster_view.Unreachable as error:
        print(f"redis-agent: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        if ordered.steps:
            print(f"redis-agent: interrupted; {ordered.steps[-1]}", file=sys.stderr)
        return 130
    return 0


def _give_and_tell(client: KazooClient, ordered: Ordered, options: argparse.Namespace, *, protected: bool) -> str:
    """What is to be printed.

    Raises:
        Refused: it was not ordered, or not done.
    """
    tell: Tell = _progress if options.wait and sys.stderr.isatty() else _silent
    try:
        _give(client, ordered, tell, protected=protected)
        if options.wait:
            return _Outcome(client, ordered, tell).wait()
        return f"ordered as {ordered.name}; see what becomes of it: {ordered.see}"
    except NoAuthError:
        remedy = "give --config FILE of an agent whose [zookeeper] auth_file is allowed to"
        raise Refused(f"ZooKeeper does not let us write below {ordered.paths.orders}; {remedy}") from None


def _status_command(options: argparse.Namespace, hosts: str, paths: znodes.Paths) -> str:
    if options.config and not (options.zookeeper and options.cluster):
        return f"redis-agent status --config {options.config}"
    root = f" --root {options.root}" if options.root else ""
    return f"redis-agent status --zookeeper {hosts} --cluster {paths.cluster}{root}"


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _silent(_: str) -> None:
    """Nobody watches."""


# --- may it be ordered? ---------------------------------------------------------------------------------------------


def refusal(view: ClusterView, to: str, now: float) -> str:
    """Why it makes no sense to order it, by what ZooKeeper shows; empty if nothing speaks against it.

    Only for a quick and clear answer: the leader's agent decides, by what it knows when it takes the order.

    Args:
        view: the cluster.
        to: who is to lead; empty: anybody.
        now: wall clock.
    """
    if not view.exists:
        return f"there is no cluster at {view.paths.base}: no agent has ever registered there"
    leader = view.leader
    if leader is None:
        return "nobody leads now, so nobody can hand over; `redis-agent status` says why"
    if to and (reason := _unfit(view, to)):
        return reason
    if leader.name == to:
        return f"{to} leads already"
    if leader.phase == LeaderPhase.HANDING_OVER:
        return f"{leader.name} is handing over to {leader.successor or 'another member'} already"
    if leader.phase != LeaderPhase.SERVING:
        return f"{leader.name} is only {leader.phase}; try again in a moment"
    for other in view.orders:
        if other.under_way(leader, now):
            told = f"{other.order.kind}{f' to {other.order.to}' if other.order.to else ''}"
            return f"another order is {other.order.state}: {other.name} ({told}, by {other.order.by or 'somebody'})"
    if not to and not any(not _unfit(view, name) for name in view.config.voters if name != leader.name):
        return f"{leader.name} is the only voter whose agent is there and whose Redis is up: nobody can take over"
    return ""


def _unfit(view: ClusterView, name: str) -> str:
    """Why this member cannot lead; empty if nothing is known against it."""
    member = view.member(name)
    if member is None:
        names = ", ".join(each.name for each in view.members)
        return f"there is no member {name}; the members are {names or 'none yet'}"
    if (member.registration and not member.registration.voter) or name not in view.config.voters:
        return f"{name} is not a voter (nofailover), so it never leads"
    presence = member.presence
    if presence is None:
        return f"the agent of {name} is not there"
    if not presence.redis_up:
        return f"the Redis of {name} is down{f' ({presence.reason})' if presence.reason else ''}"
    if presence.sick:
        return f"the Redis of {name} refuses writes ({presence.sick})"
    return ""


def _give(client: KazooClient, ordered: Ordered, tell: Tell, *, protected: bool) -> None:
    """Write the order, unless something speaks against it.

    Raises:
        Refused: something does, or ZooKeeper does not allow it.
    """
    view = cluster_view.read_with(client, ordered.paths, STEP_LIMIT_S)
    if reason := refusal(view, ordered.order.to, time.time()):
        raise Refused(reason)
    assert view.leader is not None, "refused otherwise"
    # Whoever leads next was not meant.
    ordered = ordered._replace(order=replace(ordered.order, epoch=view.leader.epoch))
    ordered.steps.append(f"if it was written, {ordered.stays}")
    _write(client, ordered, protected=protected)
    ordered.steps.append(ordered.stays)
    to = ordered.order.to or "the best other voter"
    tell(f"{view.leader.name}, the leader of epoch {view.leader.epoch}, is to hand over to {to} ({ordered.name})")


def _write(client: KazooClient, ordered: Ordered, *, protected: bool) -> None:
    acl = [*CREATOR_ALL_ACL, *READ_ACL_UNSAFE] if protected else None
    data = znodes.encode(ordered.order)
    try:
        client.create_async(ordered.path, data, acl=acl).get(timeout=STEP_LIMIT_S)
    except NoNodeError:
        raise Refused(f"{ordered.paths.orders} does not exist: no agent that takes orders has run there") from None
    except (ConnectionLoss, SessionExpiredError, KazooTimeoutError):
        # Its name is ours alone, so it can be looked up.
        client.sync_async(ordered.paths.orders).get(timeout=STEP_LIMIT_S)
        if client.exists_async(ordered.path).get(timeout=STEP_LIMIT_S) is None:
            raise


# --- what became of it? ---------------------------------------------------------------------------------------------


class _Outcome:
    """Waits for the order's end. Nothing polls: answers, the watch on its znode and the connection's return wake us."""

    def __init__(self, client: KazooClient, ordered: Ordered, tell: Tell) -> None:
        self._client = client
        self._ordered = ordered
        self._tell = tell
        self._deadline = time.monotonic() + ordered.order.expires_s
        self._heard: queue.SimpleQueue[Any] = queue.SimpleQueue()
        """The answer to a read; or None, if it is time for another one."""
        self._shown = OrderState.PENDING

    def wait(self) -> str:
        """The outcome in one sentence.

        Raises:
            Refused: the leader refused or failed, or there was no outcome in time.
            Unreachable: ZooKeeper was out of reach at the end.
        """
        self._client.add_listener(self._on_state)
        try:
            self._look()
            while (left_s := self._deadline - time.monotonic()) > 0:
                seen = self._hear(left_s)
                if seen is not None and (outcome := self._judge(seen)):
                    return outcome
            return self._give_up()
        finally:
            self._client.remove_listener(self._on_state)

    def _on_state(self, state: Any) -> None:
        if state == KazooState.CONNECTED:
            self._heard.put(None)

    def _on_watch(self, _: Any) -> None:
        self._heard.put(None)

    def _look(self) -> None:
        """Read the order, with a watch. Not while there is no connection: its return is heard."""
        if self._client.connected:
            self._client.get_async(self._ordered.path, watch=self._on_watch).rawlink(self._heard.put)

    def _hear(self, limit_s: float) -> OrderView | None:
        """The order as it was just read; None if something else happened, or nothing.

        Raises:
            Refused: it is gone.
        """
        try:
            answer = self._heard.get(timeout=limit_s)
        except queue.Empty:
            return None
        if answer is None:
            self._look()
            return None
        return self._seen(answer)

    def _seen(self, answer: Any, limit_s: float = 0.0) -> OrderView | None:
        try:
            data, stat = answer.get(timeout=limit_s)
        except NoNodeError:
            raise Refused(f"somebody removed the order {self._ordered.name}; see {self._ordered.see}") from None
        except (KazooException, KazooTimeoutError):
            return None
        return OrderView(name=self._ordered.name, order=znodes.decode_order(data), version=stat.version)

    def _judge(self, seen: OrderView) -> str:
        """The outcome, or nothing if there is none yet.

        Raises:
            Refused: it was refused, or failed.
        """
        order = seen.order
        if order.state == OrderState.ACCEPTED and self._shown != OrderState.ACCEPTED:
            self._shown = OrderState.ACCEPTED
            self._tell(order.detail or f"accepted by the leader of epoch {order.epoch}")
        if order.state not in OrderState.FINAL:
            return ""
        # Whoever asked knows it now. If this fails, the leader removes it some time later.
        with suppress(KazooException, KazooTimeoutError):
            self._client.delete_async(self._ordered.path, seen.version).get(timeout=STEP_LIMIT_S)
        if order.state == OrderState.REFUSED:
            raise Refused(f"refused: {order.detail or 'the leader gave no reason'}")
        if order.state == OrderState.FAILED:
            raise Refused(f"failed: {order.detail or 'the leader gave no reason'}")
        return order.detail or "done"

    def _give_up(self) -> str:
        """Time is up: withdraw the order, unless it was taken just now."""
        limit_s = self._ordered.order.expires_s
        for _ in range(2):
            seen = self._seen(self._client.get_async(self._ordered.path), STEP_LIMIT_S)
            if seen is None:
                raise cluster_view.Unreachable(
                    f"ZooKeeper at {self._ordered.hosts} does not answer any more; {self._ordered.stays}"
                )
            if outcome := self._judge(seen):
                return outcome
            if seen.order.state != OrderState.PENDING:
                raise Refused(
                    f"accepted, but not done within {limit_s:g} s; it goes on or is given up by itself: "
                    f"{self._ordered.see}"
                )
            try:
                self._client.delete_async(self._ordered.path, seen.version).get(timeout=STEP_LIMIT_S)
            except (BadVersionError, NoNodeError):
                continue  # It was taken, or removed, in this very moment.
            raise Refused(
                f"no leader took the order within {limit_s:g} s, so it was withdrawn; see whether anybody leads: "
                f"{self._ordered.see}"
            )
        raise Refused(f"the order {self._ordered.name} keeps changing; see {self._ordered.see}")
