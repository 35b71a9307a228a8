"""The state file survives what may happen to it, and its lock keeps a second agent out."""

from __future__ import annotations

import os
import queue
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redis_agent.messages import Event, SaveState, StateSaved
from redis_agent.state_file import LockHeld, StateFile, acquire_lock, load, save
from redis_agent.state_record import StateRecord

RECORD = StateRecord(
    cluster_id="c",
    member="n1",
    guid="g",
    promised_round=7,
    epoch=6,
    offset_bytes=123,
    promotions=(("a" * 40, 5), ("b" * 40, 6)),
    redis_pid=4711,
    redis_create_time=12345.67,
)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    """Every field, with its type, and no draft is left."""
    path = tmp_path / "state"
    save(path, RECORD)
    assert load(path) == (RECORD, "")
    assert [entry.name for entry in tmp_path.iterdir()] == ["state"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_missing_file_is_an_empty_record_and_says_so(tmp_path: Path) -> None:
    """The first start of a member."""
    record, problem = load(tmp_path / "state")
    assert record == StateRecord()
    assert "none yet" in problem


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "{}", "{", '{"version": 2, "checksum": 0, "record": {}}', "\x00" * 4096, "�", "[" * 5000],
)
def test_nonsense_is_an_empty_record_and_says_so(tmp_path: Path, text: str) -> None:
    """Torn, zeroed or foreign: never an exception, never half a record."""
    path = tmp_path / "state"
    path.write_text(text, encoding="utf-8")
    record, problem = load(path)
    assert record == StateRecord()
    assert str(path) in problem
    path.write_bytes(b"\xff\xfe")
    assert load(path)[0] == StateRecord()


@given(data=st.data())
def test_damage_is_noticed_wherever_it_is(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """One changed or missing byte: the file is not believed, or says the same as before."""
    path = tmp_path_factory.mktemp("state") / "state"
    save(path, RECORD)
    whole = path.read_bytes()
    position = data.draw(st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        path.write_bytes(whole[:position])
    else:
        byte = data.draw(st.integers(0, 255))
        path.write_bytes(whole[:position] + bytes([byte]) + whole[position + 1 :])
    record, problem = load(path)
    assert record == (StateRecord() if problem else RECORD)


def test_an_unreadable_file_is_an_empty_record_and_says_so(tmp_path: Path) -> None:
    """A directory in its place, for example."""
    (tmp_path / "state").mkdir()
    record, problem = load(tmp_path / "state")
    assert record == StateRecord()
    assert "unreadable" in problem


def test_a_failed_save_leaves_the_old_file(tmp_path: Path) -> None:
    """The disk refuses: the answer says why, and what was there is still there."""
    path = tmp_path / "state"
    save(path, RECORD)
    (tmp_path / "state.tmp").mkdir()
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    states = StateFile(path, events.put)
    states.execute(SaveState(1, StateRecord(epoch=9)))
    saved = events.get(timeout=5)
    assert isinstance(saved, StateSaved)
    assert str(path) in saved.error
    assert load(path) == (RECORD, "")
    states.close()


def test_each_save_is_answered_once_and_the_newest_stays(tmp_path: Path) -> None:
    """However many queue up while the disk is busy; after the close, too."""
    path = tmp_path / "state"
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    states = StateFile(path, events.put)
    for request in range(1, 101):
        states.execute(SaveState(request, StateRecord(epoch=request)))
    answered = [events.get(timeout=5) for _ in range(100)]
    assert answered == [StateSaved(request) for request in range(1, 101)]
    assert load(path)[0].epoch == 100
    states.close()
    states.execute(SaveState(101, RECORD))
    late = events.get(timeout=5)
    assert isinstance(late, StateSaved)
    assert late.error
    assert events.empty()


def test_the_lock_keeps_a_second_agent_out_and_names_the_first(tmp_path: Path) -> None:
    """Held until it is released; the file of the lock stays, so that all agents lock the same one."""
    path = tmp_path / "state"
    lock = acquire_lock(path)
    with pytest.raises(LockHeld, match=rf"process {os.getpid()}"):
        acquire_lock(path)
    lock.release()
    acquire_lock(path).release()
    assert (tmp_path / "state.lock").exists()
