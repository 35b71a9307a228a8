"""``redis-agent status``: a cluster, read from ZooKeeper directly, so that it also works where no agent runs."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from typing import Any

from redis_agent import znodes
from redis_agent.cli import tables, target
from redis_agent.cli.apart import apart
from redis_agent.cli.cluster_view import ClusterView, MemberView, OrderView, Unreachable, needed, read

JSON_SCHEMA = 1
HEADER = ("MEMBER", "STATE", "REDIS", "ADDRESS", "EPOCH", "LAG", "LINK", "HEALTH", "VERSION", "NOTE")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    target.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")


def execute(options: argparse.Namespace) -> int:
    """Print the cluster: 0 if it is well, 1 if not, 2 if ZooKeeper cannot be reached."""
    hosts, paths = target.find(options, "redis-agent status")
    try:
        view = apart(lambda: read(hosts, paths, options.timeout))
    except Unreachable as error:
        print(f"redis-agent: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(as_json(view), indent=2))
    else:
        print(heading(view))
        if view.members:
            print()
            styles = ["" if not _health(view, member).startswith("not") else "red" for member in view.members]
            tables.show(HEADER, [row(view, member) for member in view.members], styles=styles)
        for order in view.orders:
            print(order_line(view, order, time.time()))
        for reason in view.reasons:
            print(f"! {reason}")
    return 1 if view.reasons else 0


def heading(view: ClusterView) -> str:
    """The cluster in one line."""
    wait, ballots = needed(view)
    leader = view.leader
    phase = f"{leader.phase} to {leader.successor}" if leader and leader.successor else leader and leader.phase
    who = f"leader {leader.name} ({phase}) at {leader.address}" if leader else "no leader"
    voters = len(view.config.voters)
    if not view.config.voters and not view.members:
        return f"cluster {view.paths.cluster}: NOT WELL"
    elect = "1 ballot elects" if ballots == 1 else f"{ballots} ballots elect"
    confirm = "acknowledgement confirms" if wait == 1 else "acknowledgements confirm"
    return (
        f"cluster {view.paths.cluster}: {'well' if not view.reasons else 'NOT WELL'}; {who}; "
        f"epoch {view.ledger.epoch}; mode {view.config.mode.value}; "
        f"{voters} {'voter' if voters == 1 else 'voters'}, {wait} {confirm}, {elect}"
    )


def row(view: ClusterView, member: MemberView) -> tuple[str, ...]:
    """A member's cells."""
    presence, registration = member.presence, member.registration
    address = presence.redis if presence else registration.redis if registration else None
    name = member.name if registration is None or registration.voter else f"{member.name} (no voter)"
    if presence is None:
        return name, "away", "-", str(address or "-"), "-", "-", "-", _health(view, member), "-", ""
    role = presence.role or "-" if presence.redis_up else "down"
    is_leader = view.leader is not None and view.leader.name == member.name
    link = "-" if is_leader or not presence.redis_up else "up" if presence.link_up else "down"
    lag = "-" if is_leader or member.lag_bytes is None else str(member.lag_bytes)
    return (
        name,
        presence.state,
        role,
        str(address),
        str(presence.epoch),
        lag,
        link,
        _health(view, member),
        presence.redis_version or "-",
        "; ".join(filter(None, (presence.reason, presence.sick))),
    )


def order_line(view: ClusterView, asked: OrderView, now: float) -> str:
    """An order and what became of it, in one line.

    Args:
        view: the cluster.
        asked: the order.
        now: wall clock.
    """
    order = asked.order
    to = f" to {order.to}" if order.to else ""
    state = order.state
    if state == znodes.OrderState.PENDING:
        left_s = order.at + order.expires_s - now
        state = f"pending for {max(0.0, now - order.at):.0f} s" if left_s >= 0 else "expired: no leader took it in time"
    elif state == znodes.OrderState.ACCEPTED:
        over = "" if asked.under_way(view.leader, now) else ", but that leadership is over"
        state = f"accepted by the leader of epoch {order.epoch}{over}"
    detail = f": {order.detail}" if order.detail else ""
    return f"order {asked.name} ({order.kind}{to}, by {order.by or 'somebody'}): {state}{detail}"


def _health(view: ClusterView, member: MemberView) -> str:
    presence = member.presence
    if presence is None:
        return "not here"
    if not presence.redis_up:
        return "not up"
    if presence.sick:
        return "not writable"
    is_leader = view.leader is not None and view.leader.name == member.name
    return "ok" if is_leader or presence.intact else "not intact"


def as_json(view: ClusterView) -> dict[str, Any]:
    """The stable form: fields are added, never renamed or removed, within one ``schema``."""
    wait, ballots = needed(view)
    leader = view.leader
    return {
        "schema": JSON_SCHEMA,
        "cluster": view.paths.cluster,
        "root": view.paths.root,
        "cluster_id": view.config.cluster_id,
        "mode": view.config.mode.value,
        "well": not view.reasons,
        "reasons": list(view.reasons),
        "epoch": view.ledger.epoch,
        "quorum": {"voters": list(view.config.voters), "confirm": wait, "elect": ballots},
        "leader": leader
        and {
            "name": leader.name,
            "address": str(leader.address),
            "epoch": leader.epoch,
            "phase": leader.phase,
            "replid": leader.replid,
            "wait": leader.wait,
            "successor": leader.successor,
            "by_handover": leader.by_handover,
            "at": leader.at,
        },
        "members": [_member_json(member) for member in view.members],
        "orders": [_order_json(view, order) for order in view.orders],
    }


def _order_json(view: ClusterView, asked: OrderView) -> dict[str, Any]:
    told = asdict(asked.order)
    shown = ("kind", "to", "by", "at", "expires_s", "state", "epoch", "detail")
    return {
        "name": asked.name,
        "under_way": asked.under_way(view.leader, time.time()),
        **{key: told[key] for key in shown},
    }


def _member_json(member: MemberView) -> dict[str, Any]:
    registration, presence = member.registration, member.presence
    address = presence.redis if presence else registration.redis if registration else None
    told = asdict(presence) if presence else {}
    shown = ("state", "epoch", "redis_up", "redis_version", "role", "offset_bytes", "link_up", "intact", "keys")
    more = ("restarts", "reason", "sick", "replid", "run_id", "host", "pid", "agent_version", "at")
    return {
        "name": member.name,
        "address": str(address) if address else None,
        "voter": registration.voter if registration else None,
        "priority": registration.priority if registration else None,
        "present": presence is not None,
        "lag_bytes": member.lag_bytes,
        "primary": str(presence.primary) if presence and presence.primary else None,
        **{key: told.get(key) for key in (*shown, *more)},
    }
