"""The core as an ordinary member: what it does not believe, whom it follows, its Redis, and how it leaves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from redis_agent import machine
from redis_agent.messages import (
    CatchUp,
    Command,
    Commit,
    CommitDone,
    Create,
    Delete,
    Ensure,
    Fence,
    Follow,
    Freeze,
    KillRedis,
    LiftFence,
    OpenSession,
    Probe,
    Probed,
    ProbeError,
    ProbeFailed,
    ProbeRemote,
    Promote,
    Read,
    RedisDied,
    RemoteProbed,
    RoleDone,
    SaveState,
    SaveTail,
    ScriptKill,
    SessionClosed,
    SessionExpired,
    SessionFailed,
    StartRedis,
    StopRedis,
    StopRequested,
    Tick,
    WatchFired,
    ZkError,
)
from redis_agent.replication import NOWHERE, Address, Ledger, Position
from redis_agent.state_record import StateRecord
from redis_agent.znodes import ClusterConfig, LeaderPhase, decode_ballot, decode_config, decode_presence
from tests.support.core import (
    ADDRESSES,
    NAMES,
    PATHS,
    RECORD,
    Driver,
    ballot,
    candidate,
    claimant,
    cluster,
    follower,
    info,
    leader,
    ledger,
    presence,
    replid,
    serving,
)


def own_ballot(driver: Driver, round_: int):
    """What m1 testified."""
    return decode_ballot(driver.tree[PATHS.ballot(round_, "m1")].data)


def stop(driver: Driver) -> list[Command]:
    return driver.step(StopRequested())


# --- stale events ---------------------------------------------------------------------------------------------------


def test_events_of_an_older_session_are_dropped() -> None:
    """Whatever an earlier client still says, nothing happens: no trigger, no command, no lease."""
    driver = serving()
    driver.step(SessionExpired(1))
    driver.settle_but(OpenSession)
    before, lease = driver.state, driver.core.lease.until
    for event in (
        SessionExpired(1),
        SessionClosed(1, clean=True),
        SessionFailed(1, "no"),
        WatchFired(1, PATHS.leader),
        CommitDone(1, 1, driver.now, ()),
    ):
        assert driver.step(event) == []
    assert (driver.state, driver.core.lease.until) == (before, lease)


def test_events_of_an_older_process_are_dropped() -> None:
    """A late answer or death of the process before this one touches nothing."""
    driver = follower()
    driver.step(RedisDied(1, -9, "", was_up=True))
    driver.wait(0.1)
    driver.redis_up(keys=5)
    driver.settle_but(Probe)
    before = driver.core.snapshot()
    for event in (
        RedisDied(1, -9, "", was_up=True),
        RoleDone(1, 1, info(is_primary=True, primary=None)),
        ProbeFailed(1, 1, ProbeError.TIMEOUT),
        Probed(1, 1, driver.now, info(keys=99)),
    ):
        assert driver.step(event) == []
    assert driver.core.snapshot() == before


def test_an_answer_that_nobody_waits_for_is_no_news() -> None:
    """A probe's answer of an older request changes nothing."""
    driver = follower()
    driver.wait(1)
    probe = driver.take(Probe)
    driver.step(Probed(1, probe.request - 1, driver.now, info(keys=99)))
    assert driver.core.redis.info is not None
    assert driver.core.redis.info.keys == 5


def test_a_read_from_before_our_own_write_is_read_again() -> None:
    """What was read before a write about leadership is out of date when it arrives."""
    driver = candidate()
    driver.put(PATHS.ballot(3, "m3"), ballot("m3", 3, 190))
    driver.fire_watches()
    read = driver.take(Read)
    driver.core.barrier()
    driver.answer(read)
    assert driver.state == machine.VOTING
    assert "m3" not in driver.core.view.ballots
    driver.settle()
    assert driver.state == machine.SERVING


def test_time_does_not_run_backwards() -> None:
    """A caller whose clock jumps back extends no lease."""
    driver = serving()
    driver.session_down()
    driver.wait(driver.core.lease.until - driver.now)
    driver.now -= 100
    driver.step(Tick())
    assert driver.state == machine.CONNECTING


# --- joining --------------------------------------------------------------------------------------------------------


def test_redis_boots_before_anything_else() -> None:
    """The first commands start Redis and open a session, both at once."""
    driver = Driver()
    driver.start()
    assert [type(command) for command in driver.pending] == [StartRedis, OpenSession]


def test_nothing_is_done_about_leadership_before_the_cluster_has_voters() -> None:
    """A new cluster waits for `bootstrap_expect` members, then they become its voters. Case B1."""
    driver = Driver(bootstrap_expect=2)
    driver.start()
    driver.redis_up()
    driver.session_up()
    driver.settle()
    assert driver.state == machine.CONNECTING
    assert "waiting for 2 members, 1 are here" in driver.core.reason
    assert len(driver.ready) == 1
    driver.put(PATHS.member("m2"), driver.core.view.members["m1"])
    driver.put(PATHS.presence("m2"), presence("m2"), owner=900)
    driver.fire_watches()
    driver.settle()
    assert set(decode_config(driver.tree[PATHS.config].data).voters) == {"m1", "m2"}
    assert driver.state == machine.VOTING


def test_a_leftover_of_our_own_is_replaced_at_once() -> None:
    """Presence and `leader` of the life before, proved by lock, guid and a dead Redis: one transaction. Case A13."""
    driver = cluster(Driver(), "m3", epochs=ledger("m2", "m1"))
    driver.put(PATHS.presence("m1"), presence("m1", guid="guid-m1-earlier"), owner=800)
    driver.put(PATHS.leader, leader("m1", 2, guid="guid-m1-earlier"), owner=800)
    driver.start(RECORD)
    driver.session_up()
    driver.settle_but("join")
    join = driver.take(Commit, "join")
    assert {op.path for op in join.ops if isinstance(op, Delete)} == {PATHS.presence("m1"), PATHS.leader}
    assert PATHS.epoch in {op.path for op in join.ops}


@pytest.mark.parametrize("guid", ["", "guid-of-somebody-else"])
def test_a_foreign_leader_of_our_name_is_left_alone(guid: str) -> None:
    """Without the guid in the state file nothing is deleted: a replacement host waits. Case A13."""
    driver = cluster(Driver(), "m3", epochs=ledger("m2", "m1"))
    driver.put(PATHS.presence("m1"), presence("m1", guid="guid-m1-earlier"), owner=800)
    driver.put(PATHS.leader, leader("m1", 2, guid="guid-m1-earlier"), owner=800)
    driver.start(replace(RECORD, guid=guid))
    driver.session_up()
    driver.settle()
    assert not driver.core.session.registered
    assert driver.core.reason.startswith("waiting for the session of an earlier agent of this name")
    assert PATHS.leader in driver.tree


def test_a_name_in_use_ends_the_program() -> None:
    """A presence of our name that is rewritten is alive: exit 2, Redis stopped. Case A13."""
    driver = cluster(Driver(), "m3")
    driver.put(PATHS.presence("m1"), presence("m1", host="elsewhere"), owner=800)
    driver.start()
    driver.redis_up()
    driver.session_up()
    driver.settle()
    driver.put(PATHS.presence("m1"), presence("m1", host="elsewhere"), owner=800)
    driver.wait(1.1)
    driver.settle_but(StopRedis)
    driver.step(RedisDied(1, 0, "", was_up=True, ordered=True))
    driver.step(SessionClosed(1, clean=True))
    assert driver.exit is not None
    assert driver.exit.code == 2
    assert 'the name "m1" is in use by a live agent on elsewhere' in driver.exit.reason


def test_zookeeper_that_refuses_us_ends_the_program() -> None:
    """A person must act: exit 2 with ZooKeeper's own words, also for writes that it refuses."""
    for refused in (False, True):
        driver = Driver()
        driver.start()
        driver.redis_up()
        if refused:
            driver.session_up()
            ensure = driver.take(Ensure)
            driver.refuse(ensure, ZkError.NO_AUTH)  # type: ignore[arg-type]
        else:
            driver.step(SessionFailed(1, "authentication failed"))
        driver.step(RedisDied(1, 0, "", was_up=True, ordered=True))
        driver.step(SessionClosed(1, clean=True))
        assert driver.exit is not None
        assert driver.exit.code == 2
        assert "ZooKeeper refuses" in driver.exit.reason


def test_a_lost_presence_is_made_again() -> None:
    """Somebody deleted it: the heartbeat says so, and we register again before anything else."""
    driver = follower()
    driver.remove(PATHS.presence("m1"))
    driver.wait(1)
    driver.settle_but(Probe)
    driver.wait(0.3)
    driver.settle_but(Probe)
    assert PATHS.presence("m1") in driver.tree
    assert driver.state == machine.FOLLOWER


def test_a_znode_that_cannot_be_read_changes_nothing() -> None:
    """It is said, the view is out of date, and nobody acts on half of it."""
    driver = follower()
    node = driver.tree[PATHS.leader]
    driver.tree[PATHS.leader] = replace(node, data=b"not json", version=node.version + 1)
    driver.read_again()
    assert driver.state == machine.FOLLOWER
    assert "cannot be read" in driver.core.reason
    driver.tree[PATHS.leader] = node
    driver.wait(10)
    driver.settle_but(Probe)
    assert driver.core.view.fresh


# --- following ------------------------------------------------------------------------------------------------------


def test_no_replicaof_where_it_is_followed_already() -> None:
    """The same leader again, after a disconnection or a lease that ended: not one role command. Case B11."""
    driver = follower()
    driver.session_down()
    driver.wait(10)
    assert driver.state == machine.CONNECTING
    driver.session_back()
    for _ in range(4):
        driver.settle_but(Probe, Follow, Freeze, Fence)
        driver.wait(1)
    assert driver.state == machine.FOLLOWER
    assert not [command for command in driver.pending if isinstance(command, Follow | Freeze | Fence)]


def test_another_leader_is_followed_by_one_replicaof() -> None:
    """Repointing is one command, without a freeze in between if nobody was seen missing. Case B11."""
    driver = follower()
    driver.put(PATHS.leader, leader("m3", 3), owner=901)
    driver.put(PATHS.epoch, ledger("m1", "m2", "m3"))
    driver.fire_watches()
    driver.settle_but(Follow, Freeze)
    assert driver.take(Follow).primary == ADDRESSES["m3"]
    assert not driver.find(Freeze)
    assert driver.core.epoch == 3


def test_a_takeover_is_awaited_frozen() -> None:
    """Clients and replicas connect on `serving` only."""
    driver = follower()
    driver.put(PATHS.leader, leader("m3", 3, LeaderPhase.TAKING_OVER), owner=901)
    driver.put(PATHS.epoch, ledger("m1", "m2", "m3", served=False))
    driver.read_again()
    assert driver.state == machine.VOTING
    assert driver.info.primary == NOWHERE
    assert not [path for path in driver.tree if path.startswith(f"{PATHS.ballots}/4-")], "no vote against it"


def test_a_promised_round_is_honoured() -> None:
    """After a ballot for round 3 a leader of epoch 2 that turns up again is not followed, nor in our next life."""
    driver = candidate()
    driver.put(PATHS.leader, leader("m2", 2), owner=900)
    driver.read_again()
    assert driver.state == machine.VOTING
    assert not driver.find(Follow)
    assert "this member voted for 3" in driver.core.reason
    reborn = cluster(Driver(), "m2", "m3", epochs=ledger("m1", "m2"))
    reborn.put(PATHS.leader, leader("m2", 2), owner=900)
    reborn.put(PATHS.ballot(3, "m1"), ballot("m1", 3, 200))
    reborn.start(RECORD)
    reborn.redis_up(keys=5)
    reborn.session_up()
    reborn.settle()
    assert reborn.state == machine.CONNECTING
    assert reborn.info.primary == NOWHERE


def test_a_follower_that_somebody_repointed_is_put_back() -> None:
    """Drift of `replicaof`, and of a promotion by hand, is corrected and said. Cases C1, C7."""
    for found in (None, Address("10.9.9.9", 6379)):
        driver = follower()
        driver.info = replace(driver.info, primary=found, is_primary=found is None)
        driver.wait(1)
        driver.answer(driver.take(Probe))
        assert driver.take(Follow).primary == ADDRESSES["m2"]
        assert [line.event for line in driver.log].count("drift") == 1


@pytest.mark.parametrize("late_redis", [True, False])
def test_unknown_data_are_not_overwritten(late_redis: bool) -> None:
    """Keys of unknown lineage, no state file: no REPLICAOF, whichever comes first, Redis or the leader. Case H1."""
    driver = cluster(Driver(), "m2", "m3", epochs=ledger("m1", "m2"))
    driver.put(PATHS.leader, leader("m2", 2), owner=900)
    driver.start()
    if late_redis:
        driver.session_up()
        driver.settle_but(StartRedis, Follow)
    driver.redis_up(keys=7, replid="e" * 40)
    if not late_redis:
        driver.session_up()
    for _ in range(30):
        driver.settle_but(Follow)
        driver.wait(0.5)
    assert not driver.find(Follow)
    assert "unknown lineage" in driver.core.reason
    assert driver.info.keys == 7


def stranger() -> Driver:
    """m1 comes with data of unknown lineage to a cluster that m2 leads."""
    driver = cluster(Driver(), "m2", "m3", epochs=ledger("m1", "m2"))
    driver.put(PATHS.leader, leader("m2", 2), owner=900)
    driver.start()
    driver.session_up()
    driver.redis_up(keys=7, replid="e" * 40, offset_bytes=77)
    driver.settle_but(Follow, SaveTail)
    return driver


def gives_up(driver: Driver, run_id: str) -> None:
    """An operator gives up the data of a process."""
    known = decode_config(driver.tree[PATHS.config].data)
    driver.put(PATHS.config, replace(known, discard=run_id))
    driver.fire_watches()
    driver.settle_but(Follow, SaveTail)


def test_the_reason_names_the_command_that_gives_up_unknown_data() -> None:
    """For this member. Case H2."""
    assert "`redis-agent discard m1`" in stranger().core.reason


def test_data_that_an_operator_gave_up_are_saved_and_replaced() -> None:
    """Of this very process: first saved, then the leader is followed. Case H2."""
    driver = stranger()
    gives_up(driver, driver.info.run_id)
    assert not driver.find(Follow)
    saving = driver.take(SaveTail)
    assert saving.name == f"discarded-{driver.info.run_id}"
    driver.answer(saving)
    assert driver.take(Follow).primary == ADDRESSES["m2"]
    assert driver.state == machine.FOLLOWER


def test_data_of_another_process_are_not_given_up() -> None:
    """It was restarted meanwhile, with what is on its disk now: nothing is overwritten. Case H2."""
    driver = stranger()
    driver.step(RedisDied(1, -9, "", was_up=True, ordered=False))
    driver.wait(1)
    driver.redis_up(keys=9, replid="d" * 40)
    gives_up(driver, "run-1")
    assert driver.info.run_id == "run-2"
    assert not driver.find(Follow)
    assert not driver.find(SaveTail)


@pytest.mark.parametrize(
    ("record", "data"),
    [
        (StateRecord(), {"keys": 0}),
        (StateRecord(), {"keys": 5, "replid": replid(1), "offset_bytes": 50}),
        (RECORD, {"keys": 5, "replid": "e" * 40}),
    ],
    ids=["empty", "of the ledger's lineage", "by the state file"],
)
def test_known_data_follow(record: StateRecord, data: dict) -> None:
    """Nothing to lose, a replid of the ledger, or the state file's word."""
    driver = cluster(Driver(), "m2", "m3", epochs=ledger("m1", "m2"))
    driver.put(PATHS.leader, leader("m2", 2), owner=900)
    driver.start(record)
    driver.session_up()
    driver.settle_but(StartRedis)
    driver.redis_up(**data)
    driver.settle_but(Probe)
    assert driver.info.primary == ADDRESSES["m2"]


@pytest.mark.parametrize(
    ("keep", "voters", "voted", "epochs", "follows"),
    [
        ("m2", NAMES, True, ledger("m2"), True),
        ("", NAMES, True, ledger("m2"), False),
        ("m1", NAMES, True, ledger("m2"), False),
        ("m2", ("m2", "m3"), False, ledger("m2"), False),
        ("m2", NAMES, False, ledger("m2"), False),
        ("m2", NAMES, False, ledger("m2", "m2"), False),
    ],
    ids=["chosen", "no choice", "ours was chosen", "a later comer", "a later process", "a later leader"],
)
def test_what_an_operator_gave_up_is_replaced(
    keep: str, voters: tuple[str, ...], voted: bool, epochs: Ledger, follows: bool
) -> None:
    """After `redis-agent keep` the other voters follow the first leader, whatever they showed in its election. What
    begins later, while that leader serves, is not meant. Case H2.
    """
    driver = cluster(Driver(), "m2", "m3", epochs=Ledger() if voted else epochs)
    driver.put(PATHS.config, ClusterConfig(cluster_id="c", voters=voters, keep=keep))
    if not voted:
        driver.put(PATHS.leader, leader("m2", epochs.epoch), owner=900)
    driver.start()
    driver.redis_up(keys=5, replid="e" * 40)
    driver.session_up()
    driver.settle_but(Follow)
    if voted:
        assert driver.core.state == "candidate.voting"
        driver.put(PATHS.epoch, epochs)
        driver.put(PATHS.leader, leader("m2", epochs.epoch), owner=900)
        driver.fire_watches()
        driver.settle_but(Follow)
    assert bool(driver.find(Follow)) == follows


def test_a_state_file_of_another_cluster_proves_nothing() -> None:
    """The data that it vouches for are not this cluster's."""
    driver = cluster(Driver(), "m2", "m3", epochs=ledger("m1", "m2"))
    driver.put(PATHS.leader, leader("m2", 2), owner=900)
    driver.start(replace(RECORD, cluster_id="another"))
    driver.redis_up(keys=5, replid="e" * 40)
    driver.session_up()
    driver.settle_but(Follow)
    assert not driver.find(Follow)


def test_loading_is_waited_out() -> None:
    """A Redis that still loads is neither judged nor told to follow anybody. Case D2."""
    driver = cluster(Driver(), "m2", "m3", epochs=ledger("m1", "m2"))
    driver.put(PATHS.leader, leader("m2", 2), owner=900)
    driver.start(RECORD)
    driver.session_up()
    driver.settle_but(StartRedis)
    driver.redis_up(keys=5, loading=True)
    for _ in range(5):
        driver.settle_but(Follow)
        driver.wait(0.5)
    if driver.find(Follow):
        pytest.fail("it was told to follow while it loads")
    driver.info = replace(driver.info, loading=False)
    for _ in range(5):
        driver.wait(0.5)
        driver.settle()
    assert driver.info.primary == ADDRESSES["m2"]


def test_intact_is_proved_against_the_leader() -> None:
    """Only after it has reached an offset of the serving leader that was read after the link came up. Case B6."""
    driver = follower()
    driver.core.redis.intact = False
    driver.wait(1)
    driver.answer(driver.take(Probe))
    asked = driver.take(ProbeRemote)
    assert asked.address == ADDRESSES["m2"]
    told = info(is_primary=True, primary=None, replid=replid(2), offset_bytes=250)
    driver.step(RemoteProbed(asked.request, asked.address, told))
    driver.wait(0)
    driver.answer(driver.take(Probe))
    assert not driver.core.redis.intact, "200 of 250"
    driver.info = replace(driver.info, offset_bytes=250, replica_offset_bytes=250)
    driver.wait(1)
    driver.answer(driver.take(Probe))
    assert driver.core.redis.intact


# --- the local Redis ------------------------------------------------------------------------------------------------


def test_a_redis_that_never_came_up_is_a_wrong_configuration() -> None:
    """Exit 2 with Redis's own words, and no crash loop that hides them. Case D6."""
    driver = Driver()
    driver.start()
    driver.session_up()
    driver.settle_but(StartRedis)
    driver.step(RedisDied(1, 1, "Bad directive at line 7", was_up=False))
    driver.settle_but(StartRedis)
    driver.step(SessionClosed(1, clean=True))
    assert driver.exit is not None
    assert driver.exit.code == 2
    assert "Bad directive at line 7" in driver.exit.reason
    assert len(driver.find(StartRedis)) == 1, "the first one"


def test_restarts_back_off_and_never_stop() -> None:
    """Each crash doubles the pause up to its limit; a Redis that ran for long starts again at once. Case D1."""
    driver = follower()
    pauses = []
    for _ in range(14):
        driver.step(RedisDied(driver.core.redis.incarnation, -11, "", was_up=True))
        pauses.append(round(driver.core.timers["restart"] - driver.now, 3))
        driver.wait(31)
        assert driver.find(StartRedis)
        driver.redis_up(keys=5)
        driver.settle_but(Probe)
        driver.pending.clear()
    assert pauses[:4] == [0.05, 0.1, 0.2, 0.4]
    assert pauses[-1] == driver.core.settings.restart_max_s
    driver.wait(61)
    driver.step(RedisDied(driver.core.redis.incarnation, -11, "", was_up=True))
    assert driver.core.timers["restart"] == driver.now


def test_a_dead_redis_casts_an_empty_ballot_at_once() -> None:
    """Nobody waits for it. Case B9."""
    driver = follower()
    driver.step(RedisDied(1, -9, "", was_up=True))
    driver.remove(PATHS.leader)
    driver.read_again()
    assert driver.state == machine.FREEZING
    assert not own_ballot(driver, 3).up


def test_a_restarted_redis_is_not_intact() -> None:
    """Its memory is what the quorum rests on; a new process has proved nothing yet. Case B6."""
    driver = follower()
    driver.step(RedisDied(1, -9, "", was_up=True))
    driver.wait(0.1)
    driver.redis_up(keys=5)
    driver.remove(PATHS.leader)
    driver.settle_but(Probe, ProbeRemote)
    driver.read_again()
    assert not own_ballot(driver, 3).intact


def test_the_state_file_does_not_outlive_the_data_that_it_counts() -> None:
    """Redis restarts from an older RDB, which names its position, and then saves one that names none, since a full
    resync has begun: the ballot's word is the older position, not that of the process before. Case B6.
    """
    driver = cluster(Driver(), "m2", "m3", epochs=ledger("m1", "m2"))
    driver.put(PATHS.leader, leader("m2", 2), owner=900)
    driver.start(replace(RECORD, epoch=2, offset_bytes=500))
    driver.redis_up(keys=5, replid=replid(1), offset_bytes=50)
    driver.session_up()
    driver.settle_but(Probe, ProbeRemote)
    assert driver.core.record.offset_bytes == 50
    driver.step(RedisDied(1, 0, "", was_up=True))
    driver.wait(0.1)
    driver.redis_up(keys=5, replid="e" * 40, offset_bytes=0)
    driver.remove(PATHS.leader)
    driver.settle_but(Probe, ProbeRemote)
    driver.read_again()
    assert own_ballot(driver, 3).recorded == Position(1, 50)


def silence(driver: Driver, error: ProbeError, for_s: float) -> None:
    """Probes are answered by an error for so long."""
    until = driver.now + for_s
    while driver.now < until:
        driver.wait(0.1)
        driver.settle_but(Probe, ScriptKill)
        for probe in driver.find(Probe):
            driver.pending.remove(probe)
            driver.step(ProbeFailed(probe.incarnation, probe.request, error))


def test_a_hung_leader_is_killed() -> None:
    """No answer for longer than the limit. Case D2."""
    driver = serving()
    silence(driver, ProbeError.TIMEOUT, 1.5)
    assert not driver.killed
    silence(driver, ProbeError.TIMEOUT, 1.5)
    assert [type(kill) for kill in driver.killed] == [KillRedis]


def test_a_hung_follower_is_not_killed_while_nobody_leads() -> None:
    """Its memory may be what the next election needs."""
    driver = candidate()
    silence(driver, ProbeError.TIMEOUT, 10)
    assert not driver.killed


def test_a_long_script_is_alive_up_to_its_limit() -> None:
    """BUSY is not a hang: SCRIPT KILL after the limit, SIGKILL only if that does not help. Case D2."""
    driver = serving()
    silence(driver, ProbeError.BUSY, 4.5)
    assert not driver.find(ScriptKill)
    silence(driver, ProbeError.BUSY, 1)
    assert driver.find(ScriptKill)
    assert not driver.killed
    silence(driver, ProbeError.BUSY, 3)
    assert driver.killed


def test_a_lost_fence_setting_is_put_back() -> None:
    """Somebody opened a follower's fence by hand. Case C7."""
    driver = follower()
    driver.wait(1)
    probe = driver.take(Probe)
    driver.step(Probed(1, probe.request, driver.now, driver.info, (("min-replicas-to-write", "0"),)))
    assert driver.find(Fence)


# --- ballots --------------------------------------------------------------------------------------------------------


def test_a_ballot_is_cast_behind_a_confirmed_freeze() -> None:
    """First the freeze, which kicks the clients, then the position read behind it, then the ballot. Case B15."""
    driver = follower()
    driver.remove(PATHS.leader)
    driver.fire_watches()
    driver.settle_but(Freeze)
    assert driver.find(Freeze)[0].kill_clients
    assert not driver.find(Commit, "ballot")
    assert PATHS.ballot(3, "m1") not in driver.tree
    driver.settle()
    cast = own_ballot(driver, 3)
    assert (cast.round, cast.up, cast.intact, cast.offset_bytes, cast.run_id) == (3, True, True, 200, "run-1")


def test_a_freeze_of_unknown_outcome_is_repeated_not_believed() -> None:
    """No ballot without it."""
    driver = follower()
    driver.remove(PATHS.leader)
    driver.fire_watches()
    driver.settle_but(Freeze)
    driver.fail(driver.take(Freeze), unknown=True)
    assert driver.state == machine.FREEZING
    assert not driver.find(Commit, "ballot")
    driver.wait(0.3)
    assert driver.find(Freeze)


def test_a_broken_resync_does_not_count() -> None:
    """A full resync that could not be loaded: replid and offset are of data that are gone. It abstains."""
    driver = follower()
    driver.core.redis.intact = False
    driver.remove(PATHS.leader)
    driver.fire_watches()
    driver.settle_but(Freeze)
    freeze = driver.take(Freeze)
    driver.info = replace(driver.info, primary=NOWHERE, link_up=False, keys=0, replica_offset_bytes=-1)
    driver.step(RoleDone(1, freeze.request, driver.info))
    driver.settle()
    cast = own_ballot(driver, 3)
    assert (cast.up, cast.intact, cast.abstains, cast.offset_bytes) == (True, False, True, -1)


def test_a_non_voter_votes_for_nobody() -> None:
    """nofailover never leads: its ballot is evidence only. Case B3."""
    driver = candidate(voter=False)
    assert own_ballot(driver, 3).abstains


def test_a_round_that_is_over_needs_a_new_ballot() -> None:
    """Somebody claimed and is gone: freeze again, and testify for the next round. Case B8."""
    driver = candidate()
    driver.put(PATHS.epoch, ledger("m1", "m2", "m3", served=False))
    driver.read_again()
    assert "round_over" in driver.transitions()
    assert PATHS.ballot(4, "m1") in driver.tree


def test_a_lost_ballot_is_cast_again() -> None:
    """The outcome is unknown, the round is the same: once more, replacing what may be there."""
    driver = follower()
    driver.remove(PATHS.leader)
    driver.remove(PATHS.presence("m2"))
    driver.fire_watches()
    driver.settle_but("ballot")
    lost = driver.take(Commit, "ballot")
    driver.commit(lost)
    driver.lose(lost)
    driver.settle()
    driver.wait(0.3)
    driver.settle_but("ballot")
    again = driver.take(Commit, "ballot")
    assert [type(op) for op in again.ops[1:]] == [Delete, Create]
    driver.answer(again)
    assert driver.core.round.cast_at == driver.now


# --- reading --------------------------------------------------------------------------------------------------------


def test_who_leads_is_read_behind_a_sync_unless_a_watch_asked() -> None:
    """Our server may be behind, but not behind what it has told us of; a new connection may be to another one."""
    driver = follower()
    driver.put(PATHS.leader, leader("m2", 2), owner=900)
    driver.fire_watches()
    assert not driver.take(Read).sync
    driver.session_down()
    driver.session_back()
    again = driver.take(Read)
    assert PATHS.leader in again.paths
    assert again.sync


# --- leaving --------------------------------------------------------------------------------------------------------


def test_a_leader_alone_does_not_wait() -> None:
    """No other voter is there: resign, stop Redis in order, exit. Case E5."""
    driver = serving()
    driver.remove(PATHS.presence("m3"))
    driver.fire_watches()
    driver.settle_but(Probe)
    stop(driver)
    before = driver.now
    driver.settle_but(StopRedis, Probe)
    assert driver.find(StopRedis)
    assert driver.now - before < 0.1


def test_nobody_catches_up() -> None:
    """The wait for a successor is bounded, and so is the wait for one that takes over."""
    driver = serving()
    stop(driver)
    driver.settle_but(CatchUp, Probe)
    for _ in range(40):
        driver.wait(0.5)
        driver.settle_but(CatchUp, Probe, StopRedis)
    assert driver.find(StopRedis)


@pytest.mark.parametrize("start", [follower, candidate], ids=["follower", "candidate"])
def test_whoever_does_not_serve_stops_at_once(start) -> None:
    """Nothing to hand over: stop Redis in order. Case E5."""
    driver = start()
    stop(driver)
    assert driver.find(StopRedis)


@pytest.mark.parametrize("won", [True, False])
def test_a_claimant_waits_for_the_outcome(won: bool) -> None:
    """Were it to stop Redis at once, a claim that is committed would stand in everybody's way as long. Case E5."""
    driver = claimant()
    stop(driver)
    assert not driver.find(StopRedis)
    claim = driver.take(Commit, "claim")
    if won:
        driver.answer(claim)
    else:
        driver.refuse(claim, ZkError.BAD_VERSION)
    driver.settle_but(StopRedis, Probe)
    assert driver.the_leader() is None
    for _ in range(12):  # Nobody takes over.
        driver.wait(0.5)
        driver.settle_but(StopRedis, Probe)
    assert driver.find(StopRedis)


def test_stopping_without_zookeeper() -> None:
    """Bounded: Redis is stopped in order, the session's end is not waited for for ever. Case E5."""
    driver = Driver()
    driver.start()
    driver.redis_up()
    stop(driver)
    driver.step(RedisDied(1, 0, "", was_up=True, ordered=True))
    driver.wait(5)
    assert driver.exit is not None
    assert driver.exit.code == 0


def test_a_second_sigterm_skips_the_waiting_not_the_fencing() -> None:
    """While handing over: freeze at once; while Redis stops: kill it; while the session closes: go. Case E5."""
    driver = serving()
    stop(driver)
    driver.settle_but(CatchUp, Probe)
    stop(driver)
    assert driver.state == machine.RESIGNING
    assert driver.find(Freeze)
    driver.settle_but(Probe, StopRedis, CatchUp)
    assert driver.state == machine.YIELDING
    stop(driver)
    assert driver.state == machine.STOPPING_REDIS
    stop(driver)
    assert [kill.reason for kill in driver.killed] == ["told to stop again"]
    driver.step(RedisDied(1, -9, "", was_up=True, ordered=True))
    stop(driver)
    assert driver.exit is not None
    assert driver.exit.code == 0


def test_a_leaver_that_loses_its_lease_stops_redis() -> None:
    """A stopped Redis is a fenced one; nothing is lifted on the way."""
    driver = serving(handover_s=60)
    stop(driver)
    driver.settle_but(CatchUp, Probe)
    driver.session_down()
    driver.wait(driver.core.lease.until - driver.now)
    assert driver.state == machine.STOPPING_REDIS
    assert driver.find(Fence)
    assert driver.find(StopRedis)
    assert not driver.find(LiftFence)


def test_no_role_is_taken_once_told_to_stop() -> None:
    """Whatever is read afterwards, nobody is followed, promoted or frozen for a vote."""
    driver = follower()
    stop(driver)
    driver.remove(PATHS.leader)
    driver.fire_watches()
    driver.settle_but(StopRedis, Probe)
    driver.wait(3)
    kinds = (Follow, Promote, Freeze, LiftFence)
    assert not [command for command in driver.pending if isinstance(command, kinds)]
    assert driver.state == machine.STOPPING_REDIS


# --- what it tells --------------------------------------------------------------------------------------------------


def test_the_presence_is_an_account_of_oneself() -> None:
    """State, epoch, role and reason, as people see them in `status`."""
    driver = serving()
    for _ in range(10):
        driver.wait(0.5)
        driver.settle()
    told = decode_presence(driver.tree[PATHS.presence("m1")].data)
    assert (told.state, told.epoch, told.role, told.intact) == ("leader.serving", 3, "primary", True)
    assert set(NAMES) >= {told.name}


def test_a_transition_is_logged_once_as_data() -> None:
    """With its reason."""
    driver = serving()
    lines = [dict(line.fields) for line in driver.log if line.event == "transition"]
    assert lines[-1] | {"clock": 0} == {
        "from": "leader.taking_over",
        "to": "leader.serving",
        "trigger": "served",
        "epoch": 3,
        "round": 3,
        "why": "committed: let writes in",
        "clock": 0,
    }


def test_the_guid_is_saved_before_it_is_used() -> None:
    """The state file names our session as soon as we have joined, for our next life."""
    driver = cluster(Driver(), "m3")
    driver.start()
    driver.redis_up()
    driver.session_up()
    driver.settle_but(SaveState, Probe)
    assert "guid-m1-1" in [command.record.guid for command in driver.find(SaveState)]
    assert not driver.core.session.guid_saved
