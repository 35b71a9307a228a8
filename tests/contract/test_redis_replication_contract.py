"""Replication, persistence and WAIT where they decide promises. The same tests run on real and on simulated servers."""

from __future__ import annotations

from redis_agent.messages import Follow, Freeze, LiftFence, PauseWrites, Unpause
from tests.contract.redis_driver import RedisDriver, Server, follow

# --- acknowledgements ---------------------------------------------------------------------------------------------


def test_an_acknowledgement_on_its_way_counts_though_its_sender_has_frozen(
    redis_driver: RedisDriver, pair: tuple[Server, Server]
) -> None:
    """The replica had the write when it said so: WAIT confirms it, and the frozen replica's ballot has it."""
    primary, replica = pair
    app = primary.app()
    replica.hang()
    assert app.write() == "OK"
    assert app.begin_wait(1) == ""
    offset_bytes = primary.info().offset_bytes
    primary.hang()
    replica.resume()
    redis_driver.until(lambda: replica.info().offset_bytes >= offset_bytes, "it has the write, and has said so")
    frozen = replica.done(Freeze, kill_clients=True)
    primary.resume()
    assert app.answer() == "WAITED"
    assert (frozen.offset_bytes, frozen.keys) == (offset_bytes, 2)


def test_what_comes_after_the_freeze_is_not_acknowledged(
    redis_driver: RedisDriver, pair: tuple[Server, Server]
) -> None:
    """The write lies in the replica's socket when it freezes: it is never applied, and never counted."""
    primary, replica = pair
    app = primary.app()
    replica.hang()
    assert app.write() == "OK"
    primary.hang()
    replica.resume()
    frozen = replica.done(Freeze, kill_clients=True)
    primary.resume()
    count = app.wait(1)
    assert count == 0 or frozen.keys == 2, "confirmed only if it had it"
    assert replica.info().offset_bytes == frozen.offset_bytes


def test_wait_is_answered_during_a_pause_of_writes(pair: tuple[Server, Server]) -> None:
    """A pause holds back writes, not WAIT: replicas say how far they are once a second."""
    primary, _ = pair
    app = primary.app()
    assert app.write() == "OK"
    primary.done(PauseWrites, for_s=30.0)
    assert app.wait(1) == 1
    primary.done(Unpause)


def test_pings_move_the_offset_during_a_pause(redis_driver: RedisDriver, pair: tuple[Server, Server]) -> None:
    """So a paused primary's position is not final: only a frozen one's is."""
    primary, replica = pair
    primary.ping_replicas_every(1)
    primary.done(PauseWrites, for_s=30.0)
    before = primary.info().offset_bytes
    redis_driver.until(lambda: primary.info().offset_bytes > before, "it has moved")
    frozen = primary.done(Freeze, kill_clients=False)
    redis_driver.until(lambda: replica.info().offset_bytes == frozen.offset_bytes, "the replica has all of it")
    assert primary.info().offset_bytes == frozen.offset_bytes


def test_a_silent_replica_does_not_count_for_long(redis_driver: RedisDriver, pair: tuple[Server, Server]) -> None:
    """min-replicas-max-lag: it stops counting after so many seconds, and counts again when it is heard of."""
    primary, replica = pair
    app = primary.app()
    primary.done(LiftFence, at_least=1)
    primary.set_max_lag(2)
    assert app.write() == "OK"
    replica.hang()
    redis_driver.until(lambda: app.write() == "NOREPLICAS", "it has been silent for too long")
    assert [link.online for link in primary.info().replicas] == [True], "its connection stands all the same"
    replica.resume()
    redis_driver.until(lambda: app.write() == "OK", "it counts again")


# --- the stream ---------------------------------------------------------------------------------------------------


def test_a_frozen_primary_still_sends_what_it_had(redis_driver: RedisDriver, pair: tuple[Server, Server]) -> None:
    """Its replicas get all that was executed before the freeze, and reach the final position."""
    primary, replica = pair
    app = primary.app()
    replica.hang()
    assert [app.write() for _ in range(3)] == ["OK"] * 3
    frozen = primary.done(Freeze, kill_clients=False)
    replica.resume()
    redis_driver.until(lambda: replica.info().keys == 4, "all has arrived")
    info = replica.info()
    assert (info.replid, info.offset_bytes) == (frozen.replid, frozen.offset_bytes)
    assert info.link_up


def test_a_promoted_replica_feeds_who_is_behind_the_promotion(
    redis_driver: RedisDriver, pair: tuple[Server, Server]
) -> None:
    """One that froze earlier asks with the old replid for what came before the promotion, too: a partial resync."""
    primary, replica = pair
    third = redis_driver.server()
    follow(redis_driver, third, primary)
    early = third.done(Freeze, kill_clients=True)
    app = primary.app()
    assert [app.write() for _ in range(3)] == ["OK"] * 3
    redis_driver.until(lambda: replica.info().keys == 4, "the other one has them")
    old = replica.done(Freeze, kill_clients=True)
    promoted = replica.lead()
    assert replica.app().write() == "OK"
    follow(redis_driver, third, replica)
    info = third.info()
    assert early.offset_bytes < old.offset_bytes
    assert (info.keys, info.replid, info.replid2) == (5, promoted.replid, old.replid)
    assert info.second_offset_bytes == early.offset_bytes + 1, "its own offset when it took the new replid"


def test_a_new_replid_is_taken_before_any_of_its_data(pair: tuple[Server, Server]) -> None:
    """# case B13 (part): at +CONTINUE a replica has the new replid at its old offset: a replid alone proves nothing."""
    _, replica = pair
    before = replica.done(Freeze, kill_clients=True)
    replid = replica.continue_without_data()
    info = replica.info()
    assert (info.replid, info.replid2) == (replid, before.replid)
    assert (info.offset_bytes, info.second_offset_bytes) == (before.offset_bytes, before.offset_bytes + 1)
    assert info.link_up
    assert info.keys == before.keys


def test_a_resync_that_cannot_be_loaded_leaves_it_empty_at_its_old_position(pair: tuple[Server, Server]) -> None:
    """Replid and offset as before, and no data: a position alone proves nothing."""
    _, replica = pair
    before = replica.done(Freeze, kill_clients=True)
    assert before.keys == 1
    replica.fail_to_load()
    info = replica.info()
    assert info.empty
    assert not info.link_up
    assert (info.replid, info.offset_bytes) == (before.replid, before.offset_bytes)
    assert info.replica_offset_bytes != before.offset_bytes, "what it would ask to go on from is gone"


# --- restarts -----------------------------------------------------------------------------------------------------


def test_a_restart_from_an_aof_keeps_the_data_and_no_position(redis_driver: RedisDriver) -> None:
    """All data, another replid, offset 0: only the state file can tell whose data these are."""
    server = redis_driver.server(aof=True)
    before = server.lead()
    app = server.app()
    assert [app.write() for _ in range(2)] == ["OK"] * 2
    server.stop()
    server.start()
    redis_driver.until(lambda: not server.info().loading, "it has loaded")
    info = server.info()
    assert (info.keys, info.offset_bytes, info.replica_offset_bytes) == (2, 0, 1)
    assert info.replid not in (before.replid, before.replid2)
    assert not info.backlog


def test_a_primary_that_restarts_from_an_rdb_has_its_position(redis_driver: RedisDriver) -> None:
    """Stopped in order, it boots as a replica of nowhere at its old replid and offset."""
    server = redis_driver.server(saves=True)
    server.lead()
    assert server.app().write() == "OK"
    before = server.info()
    server.stop()
    server.start()
    redis_driver.until(lambda: not server.info().loading, "it has loaded")
    info = server.info()
    assert (info.is_primary, info.keys, info.backlog) == (False, 1, False)
    assert (info.replid, info.offset_bytes, info.replica_offset_bytes) == (
        before.replid,
        before.offset_bytes,
        before.offset_bytes,
    )


def test_killed_while_it_saves_it_has_the_file_before(redis_driver: RedisDriver) -> None:
    """The child dies with it: the old dump, and the position of that one, though it had more."""
    server = redis_driver.server(saves=True)
    server.lead()
    assert server.app().write() == "OK"
    saved = server.info()
    server.stop()
    server.start()
    redis_driver.until(lambda: not server.info().loading, "it has loaded")
    server.lead()
    assert [server.app().write() for _ in range(2)] == ["OK"] * 2
    server.bgsave(for_s=30.0)
    server.kill()
    server.start()
    redis_driver.until(lambda: not server.info().loading, "it has loaded")
    info = server.info()
    assert (info.keys, info.replid, info.offset_bytes) == (1, saved.replid, saved.offset_bytes)


def test_a_freeze_that_kills_clients_ends_a_pause(pair: tuple[Server, Server]) -> None:
    """What was paused for a handover must not be paused when the same server is elected again."""
    primary, _ = pair
    primary.done(PauseWrites, for_s=30.0)
    assert primary.app().write() == ""
    keys = primary.info().keys
    primary.lead()
    assert primary.info().keys == keys, "what waited was not executed"
    assert primary.app().write() == "OK"


def test_a_replica_that_follows_forgets_its_pause(redis_driver: RedisDriver, pair: tuple[Server, Server]) -> None:
    """Follow ends the pause: what waited is refused, and new writes are refused at once."""
    primary, replica = pair
    app = primary.app()
    primary.done(PauseWrites, for_s=30.0)
    assert app.write() == ""
    replica.done(Freeze, kill_clients=True)
    primary.done(Freeze, kill_clients=False)
    replica.lead()
    primary.done(Follow, primary=replica.address)
    assert app.answer() == "READONLY"
    assert primary.app().write() == "READONLY"
    redis_driver.until(lambda: primary.info().link_up, "it follows")
