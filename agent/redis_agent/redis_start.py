"""From a redis-server that was launched or attached to, to one that the agent rules: connections, rights, fence."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from redis_agent.messages import ProbeError
from redis_agent.redis_conf import FENCED, MAX_LAG_S, MONITOR_CLIENT_NAME, ROLE_CLIENT_NAME, SINCE_7_0, LaunchPlan
from redis_agent.redis_role import INFO, read_info
from redis_agent.redis_wire import (
    ErrorReply,
    Reply,
    Request,
    Wire,
    WireDenied,
    WireError,
    WireTimeout,
    info_fields,
    is_awake,
)
from redis_agent.replication import NOWHERE, RedisInfo

RETRY_FIRST_S = 0.002
RETRY_MAX_S = 0.05
ANSWER_LIMIT_S = 5.0
"""While it loads, Redis answers between two pieces of its dump only."""
AWAKE_LIMIT_S = 0.1
LIFE_TOLD_S = 0.1
"""Signs of life are told no more often."""

OLDEST = (6, 2)

NO_CLIENT = (1 << 63) - 1
"""An id that no connection has."""

# What a Redis that runs already may be asked to do: it fences, and follows whom it follows.
ATTACH_RIGHTS: tuple[Request, ...] = (
    ("CONFIG", "SET", "min-replicas-max-lag", MAX_LAG_S),
    ("CONFIG", "SET", "min-replicas-to-write", FENCED),
    ("CONFIG", "GET", "min-replicas-to-write"),
    ("CLIENT", "KILL", "ID", NO_CLIENT),
    ("CLIENT", "LIST", "ID", NO_CLIENT),
    ("ROLE",),
)

# Each of them changes nothing: Redis boots fenced and as a replica of nowhere. The answers tell whether it obeys.
RIGHTS: tuple[Request, ...] = (
    *ATTACH_RIGHTS,
    ("REPLICAOF", NOWHERE.host, NOWHERE.port),
    ("CLIENT", "UNPAUSE"),
)

NAME: Request = ("CLIENT", "SETNAME", ROLE_CLIENT_NAME)
"""By it guard and next life find the connection, to end it."""

_LEFTOVER = re.compile(
    rf"^id=([0-9]+) (?:.* )?name=(?:{ROLE_CLIENT_NAME}|{MONITOR_CLIENT_NAME}) ".encode(), re.MULTILINE
)


class StartRefused(Exception):
    """This Redis can't be ruled by the agent: one line with the remedy."""


class ProcessGone(Exception):
    """It died before it was up."""


@dataclass(frozen=True, slots=True)
class Opened:
    """What is open once Redis is up."""

    role: Wire
    role_id: int
    monitor: Wire
    info: RedisInfo


def open_connections(
    plan: LaunchPlan,
    pid: int,
    over: threading.Event,
    on_life: Callable[[ProbeError], None],
    *,
    attach_limit_s: float | None = None,
) -> Opened:
    """Wait until Redis answers (loading counts), make sure that it obeys, and open the agent's connections.

    There is no limit but ``over``: how long Redis may be silent is for others to decide.

    Args:
        plan: how to connect.
        pid: the process that must answer; another one that has the operator's socket is not ours.
        over: set when the process is gone, or nobody wants it any more.
        on_life: told BUSY, PAUSED or REFUSED (all slots taken) of a Redis that lives, and can't be worked with yet.
        attach_limit_s: it was left by our last life. What that life has sent and Redis has not read yet is never
            executed; Redis is fenced, and its role stays. For so long one attempt waits for answers, so that a sign of
            life comes more often than a hang takes.

    Raises:
        StartRefused: it answers, but the agent can't work with it.
        ProcessGone: it died, or we have let go of it.
    """
    pause_s = RETRY_FIRST_S
    told_s = 0.0
    awake = False
    while not over.is_set():
        opened: list[Wire] = []
        life: ProbeError | None = None
        try:
            return _open(plan, pid, opened, attach_limit_s)
        except WireDenied as error:
            raise StartRefused(_denied(plan, str(error))) from error
        except ValueError as error:
            _close(opened)
            raise StartRefused(f"redis-server tells nothing about itself that makes sense: {error}") from error
        except StartRefused:
            _close(opened)
            raise
        except _BusyError:
            life = ProbeError.BUSY
        except WireTimeout:
            # Awake, and answers nobody.
            if is_awake(plan.socket_path, time.monotonic() + AWAKE_LIMIT_S):
                life = ProbeError.PAUSED
        except WireError:
            # Clients have all slots, and Redis says so; unless it has just begun to listen, since we tried.
            awake_before, awake = awake, is_awake(plan.socket_path, time.monotonic() + AWAKE_LIMIT_S)
            if awake and awake_before:
                life = ProbeError.REFUSED
        except _NotOursError:
            pass
        _close(opened)
        if life is not None and time.monotonic() - told_s > LIFE_TOLD_S:
            told_s = time.monotonic()
            on_life(life)
        over.wait(pause_s)
        pause_s = min(pause_s * 1.5, RETRY_MAX_S)
    raise ProcessGone


def _close(opened: list[Wire]) -> None:
    for wire in opened:
        wire.close()


class _NotOursError(Exception):
    """Another process answers at the socket, or this one is not ready to tell."""


class _BusyError(Exception):
    """A script runs, which somebody may end."""


def _open(plan: LaunchPlan, pid: int, opened: list[Wire], attach_limit_s: float | None) -> Opened:
    attach, limit_s = attach_limit_s is not None, attach_limit_s or ANSWER_LIMIT_S
    role = Wire.open_unix(plan.socket_path, plan.username, plan.password, limit_s)
    opened.append(role)
    deadline = time.monotonic() + limit_s
    if attach:
        _end_leftovers(plan, role, deadline)
    requests = (NAME, *(ATTACH_RIGHTS if attach else RIGHTS), ("CLIENT", "ID"), INFO)
    replies = role.ask(requests, deadline)
    number, raw = replies[-2:]
    if isinstance(raw, bytes):
        _check_server(raw, pid)
    for request, reply in zip(requests, replies, strict=True):
        _check_right(plan, request, reply)
    if not isinstance(number, int):
        raise _NotOursError
    monitor = Wire.open_unix(plan.socket_path, plan.username, plan.password, limit_s)
    opened.append(monitor)
    # An older Redis does not know these settings, which is why they are not in its file; nor does it need them.
    newer: list[Request] = [("CONFIG", "SET", name, value) for name, value in plan.pinned if name in SINCE_7_0]
    monitor.ask([("CLIENT", "SETNAME", MONITOR_CLIENT_NAME), *newer], time.monotonic() + limit_s)
    return Opened(role, number, monitor, read_info(raw))


def _end_leftovers(plan: LaunchPlan, role: Wire, deadline: float) -> None:
    """Close our last life's connections from Redis's side; this one has no name yet."""
    request = ("CLIENT", "LIST")
    reply = role.ask([request], deadline)[0]
    _check_right(plan, request, reply)
    if not isinstance(reply, bytes):
        raise _NotOursError
    kills: list[Request] = [("CLIENT", "KILL", "ID", int(number)) for number in _LEFTOVER.findall(reply)]
    # One that Redis has found closed by itself is no error.
    if kills:
        role.ask(kills, deadline)


def _check_server(raw: bytes, pid: int) -> None:
    fields = info_fields(raw)
    if fields.get("process_id") != pid:
        raise _NotOursError
    if fields.get("cluster_enabled") == 1:
        raise StartRefused("redis-server runs in cluster mode, which is not supported: remove cluster-enabled")
    version = str(fields.get("redis_version", ""))
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST:
        raise StartRefused(f"redis-server {version} is too old: 6.2 or later is needed")


def _check_right(plan: LaunchPlan, request: Request, reply: Reply) -> None:
    if isinstance(reply, ErrorReply) and reply.code == "BUSY":
        raise _BusyError
    if not isinstance(reply, ErrorReply) or reply.code == "LOADING" or "during loading" in reply.text:
        # These come behind the checks for the command's existence and the user's rights. The second one is how
        # Redis 6.2 refuses CONFIG SET.
        return
    if reply.code in ("NOAUTH", "WRONGPASS"):
        raise StartRefused(_denied(plan, str(reply)))
    words = " ".join(str(part) for part in request[:2])
    where = plan.operator_path or plan.conf_path
    user = plan.username or "default"
    raise StartRefused(
        f"redis-server refuses {words} to the agent ({reply}): it needs CONFIG, REPLICAOF, CLIENT, ROLE and INFO; "
        f"remove rename-command from {where}, or allow them to user {user}"
    )


def _denied(plan: LaunchPlan, error: str) -> str:
    user = plan.username or "default"
    given = "the password that was given" if plan.password else "no password"
    where = plan.operator_path or plan.conf_path
    return (
        f"redis-server does not accept {given} for user {user} ({error}): "
        f"give the agent the password that is valid there ({where}: requirepass, user, aclfile), or redis-server the "
        "agent's"
    )
