"""What role commands say to Redis, and what is made of the replies."""

from __future__ import annotations

import pytest

from redis_agent.messages import (
    Fence,
    Follow,
    Freeze,
    KickClients,
    LiftFence,
    PauseWrites,
    Promote,
    RoleCommand,
    Unpause,
)
from redis_agent.redis_conf import FENCED
from redis_agent.redis_role import CLIENTS, Weight, judge, kick_steps, role_steps
from redis_agent.redis_wire import ErrorReply, Reply, info_fields
from redis_agent.replication import Address

COMMANDS: tuple[RoleCommand, ...] = (
    Fence(1, 1, 1.0),
    LiftFence(1, 1, 1, 9.0, 1.0),
    Freeze(1, 1, kill_clients=True, limit_s=1.0),
    Promote(1, 1, "run", 9.0, 1.0),
    Follow(1, 1, Address("h", 1), 1.0),
    PauseWrites(1, 1, 0.5, 1.0),
    Unpause(1, 1, 1.0),
)
INFO = (
    b"# Server\r\nrun_id:0000000000000000000000000000000000000007\r\nredis_version:7.2\r\n"
    b"role:master\r\nmaster_replid:1111111111111111111111111111111111111111\r\nmaster_repl_offset:12\r\n"
    b"slave0:ip=10.0.0.1,port=1,state=online,offset=5,lag=0\r\ndb0:keys=3,expires=0,avg_ttl=0\r\n"
)


def requests(command: RoleCommand, repin: dict[str, str] | None = None) -> list[str]:
    return [" ".join(map(str, step.request)) for step in role_steps(command, 0, repin or {})]


def replies(command: RoleCommand, *, errors: dict[str, str]) -> list[Reply]:
    """OK and INFO, but errors for requests that begin with one of these words."""
    found: list[Reply] = []
    for request in requests(command):
        code = next((code for start, code in errors.items() if request.startswith(start)), None)
        found.append(ErrorReply(code, "no") if code else INFO if request == "INFO" else b"OK")
    return found


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: type(command).__name__)
def test_each_has_one_key_step_and_ends_with_info(command: RoleCommand) -> None:
    """So there is one reply that tells whether it was executed, and an INFO read behind it."""
    steps = role_steps(command, 0, {})
    assert [step.weight for step in steps].count(Weight.KEY) == 1
    assert steps[-1].request == ("INFO",)


@pytest.mark.parametrize("command", [COMMANDS[2], COMMANDS[4]], ids=["Freeze", "Follow"])
def test_the_fence_comes_before_any_change_of_role(command: RoleCommand) -> None:
    """Between the two nothing may be writable."""
    told = requests(command)
    fence = told.index(f"CONFIG SET min-replicas-to-write {FENCED}")
    lag = told.index("CONFIG SET min-replicas-max-lag 10")
    role = next(number for number, request in enumerate(told) if request.startswith("REPLICAOF"))
    assert lag < fence < role


def test_clients_are_killed_behind_the_freeze() -> None:
    """Killed before it, they could be back before it."""
    told = requests(COMMANDS[2])
    assert told.index("REPLICAOF 127.0.0.1 1") < told.index("CLIENT KILL TYPE normal")
    assert not any(request.startswith("CLIENT") for request in requests(Freeze(1, 1, kill_clients=False, limit_s=1.0)))


def test_drift_is_put_back_behind_what_matters() -> None:
    """Restoring a pinned setting never delays the fence, and its failure fails nothing."""
    told = requests(COMMANDS[0], {"repl-backlog-ttl": "0"})
    assert told.index(f"CONFIG SET min-replicas-to-write {FENCED}") < told.index("CONFIG SET repl-backlog-ttl 0")
    steps = role_steps(COMMANDS[0], 0, {"repl-backlog-ttl": "0"})
    outcome = judge(steps, [b"OK", b"OK", ErrorReply("ERR", "no"), INFO])
    assert outcome.info is not None
    assert not outcome.error


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: type(command).__name__)
def test_replies_are_weighed(command: RoleCommand) -> None:
    """All well: done. The key step refused: not executed. Only the INFO refused: half done, so unknown."""
    steps = role_steps(command, 0, {})
    key = next(" ".join(map(str, step.request)) for step in steps if step.weight is Weight.KEY)
    done = judge(steps, replies(command, errors={}))
    assert done.info is not None
    assert done.info.keys == 3
    refused = judge(steps, replies(command, errors={key: "BUSY"}))
    assert (refused.info, refused.unknown) == (None, False)
    assert "BUSY" in refused.error
    half = judge(steps, replies(command, errors={"INFO": "BUSY"}))
    assert (half.info, half.unknown) == (None, True)


def test_a_kick_names_each_client_but_our_own() -> None:
    """By id: agents' and guard's connections are spared, and the role connection whatever its name."""
    told = [" ".join(map(str, step.request)) for step in role_steps(KickClients(1, 1, 1.0), 0, {})]
    assert told == [" ".join(map(str, request)) for request in (*CLIENTS, ("INFO",))]
    rows = (
        b"id=3 addr=/run/redis.sock:0 laddr=/run/redis.sock:0 fd=8 name=redis-agent-role age=1 cmd=client|list\n"
        b"id=4 addr=10.0.0.2:1 laddr=10.0.0.1:6379 fd=9 name= age=1 cmd=NULL user=default\n"
        b"id=50 addr=10.0.0.2:2 fd=9 name=redis-agent-guard age=1 cmd=NULL\n"
        b"id=6 addr=10.0.0.2:3 fd=9 name=redis-agent-guard2 age=1 cmd=set user=name=x\n"
        b"id=7 addr=/run/redis.sock:0 fd=9 name= age=1 cmd=NULL\n"
        b"id=8 addr=10.0.0.3:3 fd=9 name=redis-agent-remote age=1 cmd=info\n"
    )
    steps = kick_steps([rows, b"id=9 addr=10.0.0.2:5 name=sub age=0 cmd=subscribe\n", INFO], {7})
    assert [step.request for step in steps] == [
        ("CLIENT", "KILL", "ID", 4),
        ("CLIENT", "KILL", "ID", 6),
        ("CLIENT", "KILL", "ID", 9),
        ("INFO",),
    ]


def test_a_freeze_whose_clients_live_on_is_not_done() -> None:
    """The kill belongs to it: without it the outcome counts as unknown."""
    command = COMMANDS[2]
    outcome = judge(role_steps(command, 0, {}), replies(command, errors={"CLIENT KILL": "NOPERM"}))
    assert outcome.unknown


def test_info_is_read_in_redis_pys_shape() -> None:
    """Numbers are numbers, replicas and databases are mappings, and ids stay text even if all of it is digits."""
    fields = info_fields(INFO)
    assert fields["run_id"] == "0000000000000000000000000000000000000007"
    assert fields["master_replid"] == "1" * 40
    assert fields["redis_version"] == "7.2"
    assert fields["master_repl_offset"] == 12
    assert fields["slave0"] == {"ip": "10.0.0.1", "port": 1, "state": "online", "offset": 5, "lag": 0}
    assert fields["db0"] == {"keys": 3, "expires": 0, "avg_ttl": 0}
