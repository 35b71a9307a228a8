"""The command line: usage, exit codes, and how a cluster is shown and judged."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import redis_agent
from redis_agent import znodes
from redis_agent.cli import COMMANDS, tables
from redis_agent.cli.cluster_view import ClusterView, MemberView, OrderView
from redis_agent.cli.main import main
from redis_agent.cli.status import HEADER, as_json, heading, order_line, row
from redis_agent.cli.switchover import refusal
from redis_agent.election import Mode
from redis_agent.replication import Address, Ledger, LedgerEntry, Position

PATHS = znodes.Paths("redis-agent", "cache")
PRIMARY = Address("10.0.0.1", 6379)


def member(number: int, **changes: Any) -> MemberView:
    """A member of a cluster that is well; number 1 leads."""
    name, address = f"m{number}", Address(f"10.0.0.{number}", 6379)
    leads = number == 1
    presence = znodes.Presence(
        name=name,
        guid=f"guid-{name}",
        state="leader.serving" if leads else "follower",
        epoch=7,
        redis=address,
        redis_up=True,
        redis_version="7.0.15",
        role="primary" if leads else "replica",
        replid="r7",
        offset_bytes=1000 if leads else 990,
        primary=None if leads else PRIMARY,
        link_up=not leads,
        intact=True,
    )
    registration = znodes.Member(name=name, redis=address)
    view = MemberView(name=name, registration=registration, presence=presence, lag_bytes=0 if leads else 10)
    return replace(view, presence=replace(presence, **changes)) if changes else view


def cluster(*members: MemberView) -> ClusterView:
    """Three voters, the first of which leads epoch 7."""
    return ClusterView(
        paths=PATHS,
        exists=True,
        config=znodes.ClusterConfig(cluster_id="c", mode=Mode.QUORUM, voters=("m1", "m2", "m3")),
        ledger=Ledger(epoch=7, entries=(LedgerEntry(epoch=7, member="m1", guid="guid-m1", start=Position(6, 5)),)),
        leader=znodes.Leader(
            name="m1", address=PRIMARY, epoch=7, phase=znodes.LeaderPhase.SERVING, guid="guid-m1", replid="r7", wait=1
        ),
        members=members or (member(1), member(2), member(3)),
    )


def test_a_serving_leader_with_every_voter_in_sync_is_well() -> None:
    """The one case in which there is nothing to say."""
    assert cluster().reasons == ()


@pytest.mark.parametrize(
    ("view", "reason"),
    [
        (ClusterView(paths=PATHS, exists=False), "there is no cluster at /redis-agent/cache"),
        (replace(cluster(), config=znodes.ClusterConfig()), "not bootstrapped yet: 3 members"),
        (replace(cluster(), leader=None), "nobody leads"),
        (replace(cluster(), ledger=Ledger(epoch=8)), "leader says epoch 7, the ledger says 8"),
        (replace(cluster(), corrupt=("/x: what",)), "/x: what"),
        (cluster(member(1), member(2)), "voter m3 is away"),
        (cluster(member(1), replace(member(2), presence=None), member(3)), "voter m2 is away"),
        (cluster(member(1, guid="other"), member(2), member(3)), "the leader m1 has restarted"),
        (cluster(replace(member(1), presence=None), member(2), member(3)), "the leader m1 is not present"),
        (cluster(member(1), member(2, redis_up=False, reason="no disk"), member(3)), "Redis is down (no disk)"),
        (cluster(member(1), member(2, link_up=False), member(3)), "voter m2: no link to its primary"),
        (cluster(member(1), member(2, primary=Address("x", 1)), member(3)), "voter m2: follows x:1"),
        (cluster(member(1), member(2, intact=False), member(3)), "voter m2: has not caught up"),
        (cluster(member(1), replace(member(2), lag_bytes=None), member(3)), "voter m2: its data is of another lineage"),
        (cluster(member(1), replace(member(2), lag_bytes=2 << 20), member(3)), "voter m2: 2097152 bytes behind"),
        (cluster(member(1)), "only 1 of 3 voters are here: nobody can be elected"),
    ],
)
def test_each_trouble_is_told(view: ClusterView, reason: str) -> None:
    """Whatever is wrong with a leader or a voter is a reason, in words."""
    assert any(reason in told for told in view.reasons), view.reasons


@pytest.mark.parametrize("phase", [znodes.LeaderPhase.TAKING_OVER, znodes.LeaderPhase.HANDING_OVER])
def test_a_leader_that_does_not_serve_is_not_well(phase: str) -> None:
    """Only ``serving`` lets clients write."""
    view = cluster()
    assert view.leader
    assert f"the leader m1 is {phase}, not serving" in replace(view, leader=replace(view.leader, phase=phase)).reasons


def test_a_non_voter_in_trouble_does_not_make_the_cluster_unwell() -> None:
    """Nothing is promised of non-voters, but the table shows them."""
    assert member(4).registration
    guest = replace(member(4, redis_up=False), registration=znodes.Member(name="m4", redis=PRIMARY, voter=False))
    view = cluster(member(1), member(2), member(3), guest)
    assert view.reasons == ()
    assert row(view, guest)[:3] == ("m4 (no voter)", "follower", "down")


def test_the_rows_of_the_table() -> None:
    """A leader has no lag and no link; a member that is away has only a name and an address."""
    view = cluster(member(1), member(2), replace(member(3), presence=None))
    leader, follower, away = (dict(zip(HEADER, row(view, one), strict=True)) for one in view.members)
    assert (leader["REDIS"], leader["LAG"], leader["LINK"], leader["HEALTH"]) == ("primary", "-", "-", "ok")
    assert (follower["REDIS"], follower["LAG"], follower["LINK"]) == ("replica", "10", "up")
    assert (away["STATE"], away["ADDRESS"], away["HEALTH"]) == ("away", "10.0.0.3:6379", "not here")
    assert heading(view).startswith("cluster cache: NOT WELL; leader m1 (serving) at 10.0.0.1:6379; epoch 7;")


def test_the_json_form_is_stable() -> None:
    """Scripts rely on these names; a new one may be added, none may go."""
    told = json.loads(json.dumps(as_json(cluster())))
    assert told["schema"] == 1
    assert told["well"] is True
    assert told["quorum"] == {"voters": ["m1", "m2", "m3"], "confirm": 1, "elect": 2}
    assert set(told) == {
        "schema", "cluster", "root", "cluster_id", "mode", "well", "reasons", "epoch", "quorum", "leader", "members",
        "orders",
    }  # fmt: skip
    assert set(told["leader"]) == {
        "name", "address", "epoch", "phase", "replid", "wait", "successor", "by_handover", "at",
    }  # fmt: skip
    assert set(told["members"][0]) == {
        "name", "address", "voter", "priority", "present", "lag_bytes", "primary", "state", "epoch", "redis_up",
        "redis_version", "role", "offset_bytes", "link_up", "intact", "keys", "restarts", "reason", "replid", "run_id",
        "host", "pid", "agent_version", "at", "sick",
    }  # fmt: skip
    told = as_json(replace(cluster(), orders=(asked(),)))
    assert set(told["orders"][0]) == {
        "name", "under_way", "kind", "to", "by", "at", "expires_s", "state", "epoch", "detail",
    }  # fmt: skip
    gone = as_json(replace(cluster(replace(member(1), presence=None)), leader=None))
    assert gone["leader"] is None
    assert gone["members"][0]["state"] is None


# --- orders ---------------------------------------------------------------------------------------------------------


def asked(**changes: Any) -> OrderView:
    """An order to hand over to m2, given at 100, good for 60 s."""
    order = znodes.Order(kind="switchover", to="m2", by="root@op", at=100.0, expires_s=60.0)
    return OrderView(name="switchover-1", order=replace(order, **changes))


@pytest.mark.parametrize(
    ("order", "told"),
    [
        (asked(), "order switchover-1 (switchover to m2, by root@op): pending for 10 s"),
        (asked(to="", by=""), "order switchover-1 (switchover, by somebody): pending for 10 s"),
        (asked(expires_s=5.0), "expired: no leader took it in time"),
        (asked(state="accepted", epoch=7), "accepted by the leader of epoch 7"),
        (asked(state="accepted", epoch=6), "accepted by the leader of epoch 6, but that leadership is over"),
        (asked(state="refused", epoch=7, detail="m2 lags"), "refused: m2 lags"),
        (asked(state="done", epoch=7, detail="m2 leads since epoch 8"), "done: m2 leads since epoch 8"),
    ],
)
def test_an_order_is_shown_with_what_became_of_it(order: OrderView, told: str) -> None:
    """One line for each order that is still there."""
    assert told in order_line(cluster(), order, 110.0)


def test_a_handover_and_a_sick_redis_are_shown() -> None:
    """To whom it hands over; whose Redis refuses writes, and why."""
    view = cluster(member(1, sick="MISCONF: disk full"), member(2), member(3, sick="no space"))
    assert view.leader
    leader = replace(view.leader, phase=znodes.LeaderPhase.HANDING_OVER, successor="m2")
    view = replace(view, leader=leader)
    assert "leader m1 (handing-over to m2)" in heading(view)
    assert "the leader m1 is handing over to m2" in view.reasons
    assert "the leader m1: its Redis refuses writes (MISCONF: disk full)" in view.reasons
    assert "voter m3: its Redis refuses writes (no space)" in view.reasons
    cells = dict(zip(HEADER, row(view, view.members[2]), strict=True))
    assert (cells["HEALTH"], cells["NOTE"]) == ("not writable", "no space")


def with_leader(**changes: Any) -> ClusterView:
    view = cluster()
    assert view.leader
    return replace(view, leader=replace(view.leader, **changes))


GUEST = replace(member(4), registration=znodes.Member(name="m4", redis=PRIMARY, voter=False))


# case E4
@pytest.mark.parametrize(
    ("view", "to", "told"),
    [
        (cluster(), "", ""),
        (cluster(), "m2", ""),
        (ClusterView(paths=PATHS, exists=False), "m2", "there is no cluster at /redis-agent/cache"),
        (replace(cluster(), leader=None), "m2", "nobody leads now"),
        (cluster(), "m9", "there is no member m9; the members are m1, m2, m3"),
        (cluster(), "m1", "m1 leads already"),
        (cluster(member(1), member(2), member(3), GUEST), "m4", "m4 is not a voter (nofailover)"),
        (cluster(member(1), replace(member(2), presence=None), member(3)), "m2", "the agent of m2 is not there"),
        (cluster(member(1), member(2, redis_up=False, reason="no disk")), "m2", "Redis of m2 is down (no disk)"),
        (cluster(member(1), member(2, sick="disk full"), member(3)), "m2", "Redis of m2 refuses writes (disk full)"),
        (cluster(member(1), member(2, redis_up=False)), "", "m1 is the only voter whose agent is there"),
        (cluster(member(1), GUEST), "", "m1 is the only voter whose agent is there"),
        (with_leader(phase="taking-over"), "m2", "m1 is only taking-over; try again in a moment"),
        (with_leader(phase="handing-over", successor="m3"), "m2", "m1 is handing over to m3 already"),
        (replace(cluster(), orders=(asked(),)), "m3", "another order is pending: switchover-1 (switchover to m2, by"),
        (replace(cluster(), orders=(asked(state="accepted", epoch=7),)), "", "another order is accepted"),
        (replace(cluster(), orders=(asked(state="accepted", epoch=6),)), "", ""),
        (replace(cluster(), orders=(asked(expires_s=5.0),)), "", ""),
        (replace(cluster(), orders=(asked(state="failed", epoch=7),)), "", ""),
    ],
)
def test_what_makes_no_sense_is_refused_before_it_is_ordered(view: ClusterView, to: str, told: str) -> None:
    """By what ZooKeeper shows, each with its reason; what is left over of earlier orders is in nobody's way."""
    reason = refusal(view, to, 110.0)
    assert (told in reason) if told else not reason


def test_plain_tables_are_aligned() -> None:
    """Columns are as wide as their widest cell, and no line ends in spaces."""
    assert tables.plain(("A", "B"), [("long", "x"), ("s", "")]) == "A     B\nlong  x\ns"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """``--help`` says what it does and exits 0."""
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert COMMANDS[command][1] in " ".join(capsys.readouterr().out.split())


TARGET = ["--zookeeper", "zk:2181", "--cluster", "cache"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["dance"],
        ["status", "--colour"],
        ["fsm", "extra"],
        *(["status", "--timeout", wrong, *TARGET] for wrong in ("nan", "inf", "0", "soon")),
        ["switchover", "--timeout=-3", *TARGET],
        ["switchover", "--to", "", *TARGET],
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """No usage dump: what is wrong, and how to get help."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], "redis-agent run: --config: is missing"),
        (["run", "--config", "/no/such.toml"], "/no/such.toml: cannot be read"),
        (["status"], "redis-agent status: --zookeeper: is missing"),
        (["status", "--zookeeper", "zk"], "redis-agent status: --cluster: is missing"),
        (["switchover", "--to", "m2"], "redis-agent switchover: --zookeeper: is missing"),
        (
            ["status", "--zookeeper", "bad:host:1", "--cluster", "c"],
            'redis-agent status: --zookeeper: "bad:host:1" is not',
        ),
        (["keep", "m1", "--zookeeper", "zz:zz", "--cluster", "c"], 'redis-agent keep: --zookeeper: "zz:zz" is not'),
        (["status", "--zookeeper", "zk", "--cluster", "a/b"], 'redis-agent status: --cluster: "a/b" is no'),
    ],
)
def test_wrong_configuration_is_one_line_and_exit_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line names the culprit and the remedy."""
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(words if words.startswith("redis-agent") else f"redis-agent: {words}")
    assert error.count("\n") == 1


def test_version_tells_ours_and_the_libraries(capsys: pytest.CaptureFixture[str]) -> None:
    """What a bug report needs; the distribution's version is the package's."""
    assert main(["version"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"redis-agent {redis_agent.__version__}"
    assert any(line.startswith("kazoo 2.") for line in lines)
    pyproject = (Path(__file__).resolve().parents[2] / "pyproject.toml").read_text()
    assert f'\nversion = "{redis_agent.__version__}"\n' in pyproject


def test_the_state_machine_is_shown_with_its_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    """Every row of the table appears with its trigger and its reason; ``--mermaid`` prints the diagram."""
    from redis_agent import machine  # noqa: PLC0415

    assert main(["fsm"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for row_ in machine.TRANSITIONS:
        assert f"{row_.trigger} -> {row_.dest}" in text
        assert " ".join(row_.why.split()) in text
    assert main(["fsm", "--mermaid"]) == 0
    assert capsys.readouterr().out.strip() == machine.mermaid().strip()


def test_a_reader_that_goes_away_is_no_traceback() -> None:
    """``redis-agent version | head -0`` ends quietly."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "redis_agent.cli.main", "version"],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=30,
        )
    finally:
        os.close(writer)
    assert done.returncode == 1
    assert done.stderr == ""
