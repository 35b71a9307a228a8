"""Log lines."""

from __future__ import annotations

import io
import json
import logging
import os
import threading

import pytest

from redis_agent import logs, messages
from redis_agent.election import Mode
from redis_agent.replication import Address


def lines(style: str, *commands: messages.Log, level: str = "info") -> list[str]:
    stream = io.StringIO()
    with logs.writing(level, style, stream):
        for command in commands:
            logs.emit(command)
    return stream.getvalue().splitlines()


TRANSITION = messages.Log(
    "info", "transition", (("from", "leader.serving"), ("to", "connecting"), ("epoch", 9), ("why", "cannot prove it"))
)


def test_a_plain_line_is_words_of_key_and_value() -> None:
    """Time, level, event, then the facts; only what needs quotes has them."""
    (line,) = lines("plain", TRANSITION)
    stamp, rest = line.split(" ", 1)
    assert stamp.endswith("Z")
    assert rest == 'info transition from=leader.serving to=connecting epoch=9 why="cannot prove it"'


def test_a_json_line_is_one_object_with_the_same_facts() -> None:
    """Each line can be parsed on its own."""
    (line,) = lines("json", TRANSITION)
    told = json.loads(line)
    del told["at"]
    facts = {"from": "leader.serving", "to": "connecting", "epoch": 9, "why": "cannot prove it"}
    assert told == {"level": "info", "event": "transition"} | facts


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (0.1 + 0.2, "0.3"),
        ("", '""'),
        ("a=b", '"a=b"'),
        ('say "hi"', '"say \\"hi\\""'),
        ("two\nlines\x1b[0m", '"two\\nlines\\u001b[0m"'),
        (("a", "b"), "a,b"),
        (frozenset({"b", "a"}), "a,b"),
        (Address("::1", 6379), "[::1]:6379"),
        (Mode.QUORUM, "quorum"),
        ("größer", "größer"),
    ],
)
def test_values_are_one_word_each(value: object, text: str) -> None:
    """Whatever Redis or an operator wrote, it cannot break a line or forge a field."""
    assert logs.quote(value) == text


def test_levels_are_respected() -> None:
    """A line below the level is not written."""
    quiet = messages.Log("debug", "detail")
    assert lines("plain", quiet) == []
    assert len(lines("plain", quiet, level="debug")) == 1


def test_journald_gets_the_priority_and_no_second_time() -> None:
    """Under systemd the journal has the time already and reads the priority from the line."""
    formatter = logs.PlainFormatter(journal=True)
    record = logging.makeLogRecord({"levelno": logging.WARNING, "msg": "fenced", "fields": {"epoch": 3}})
    assert formatter.format(record) == "<4>fenced epoch=3"


def test_a_library_s_error_is_a_line_like_any_other() -> None:
    """What kazoo or redis-py says arrives as data, too; their chatter does not arrive."""
    stream = io.StringIO()
    with logs.writing("info", "plain", stream):
        logging.getLogger("kazoo.client").warning("connection dropped")
        logging.getLogger("kazoo.client").error("it %s", "broke")
    (line,) = stream.getvalue().splitlines()
    assert line.endswith('error library logger=kazoo.client message="it broke"')


def test_a_hushed_library_is_heard_again_afterwards() -> None:
    """A program that silences a library leaves its logger as it was."""
    kazoo = logging.getLogger("kazoo.client")
    before = kazoo.getEffectiveLevel()
    with logs.hushed("kazoo"):
        assert not kazoo.isEnabledFor(logging.ERROR)
    assert kazoo.getEffectiveLevel() == before


def test_a_stuck_reader_blocks_nobody_and_losses_are_counted() -> None:
    """With a full pipe, events go on; what did not fit into the queue is counted and told when there is room."""
    reader, writer = os.pipe()
    stream = os.fdopen(writer, "w")
    # A pipe holds 64 KiB, so these fill it and the queue, and some do not fit.
    flood = logs.QUEUE_LINES + 5_000
    drained: list[str] = []
    room = threading.Event()

    def drain() -> None:
        with os.fdopen(reader) as source:
            for line in source:
                drained.append(line.split(" ", 2)[2].rstrip("\n"))
                if len(drained) == logs.QUEUE_LINES // 2:
                    room.set()

    thread = threading.Thread(target=drain)
    with logs.writing("info", "plain", stream):
        for number in range(flood):
            logs.event("info", "flood", number=number, padding="x" * 100)
        thread.start()
        assert room.wait(10)
        logs.event("info", "after")
    stream.close()
    thread.join()
    kept = sum(line.startswith("flood") for line in drained)
    lost = sum(int(line.rpartition("=")[2]) for line in drained if line.startswith("log_lost"))
    assert lost > 0
    assert kept + lost == flood
    assert "after" in drained


def test_a_loss_at_the_very_end_is_told() -> None:
    """Also when nothing more is logged after it."""
    reader, writer = os.pipe()
    drained: list[str] = []

    def drain() -> None:
        with os.fdopen(reader) as source:
            drained.extend(source)

    thread = threading.Thread(target=drain)
    with os.fdopen(writer, "w") as stream, logs.writing("info", "plain", stream):
        for _ in range(logs.QUEUE_LINES + 5_000):
            logs.event("info", "flood", padding="x" * 100)
        thread.start()
    thread.join()
    assert "log_lost lines=" in drained[-1]


def test_the_end_restores_what_was_there() -> None:
    """The handlers of an embedding program are left as they were."""
    before = logging.getLogger().handlers[:]
    lines("plain", TRANSITION)
    assert logging.getLogger().handlers == before
