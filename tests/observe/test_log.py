import io
import json
import re

import pytest

from portguard.observe import log

HOSTILE = 'eve" session=forged\n2026 fake\x1b[31m\u202e\x00'


@pytest.fixture
def text(monkeypatch):
    """What was written since it was last asked for."""
    stderr = io.StringIO()
    monkeypatch.setattr("sys.stderr", stderr)
    log.configure(json_lines=False, level="info")

    def take() -> str:
        written = stderr.getvalue()
        stderr.seek(0)
        stderr.truncate()
        return written

    return take


def test_a_text_line_holds_time_level_event_and_fields(text):
    log.event("info", "session.open", session="9f", received=3, duration=1.23456, role=None)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z info session\.open session=9f received=3 duration=1\.235\n", text()
    )


def test_yes_and_no_are_written_as_in_json(text):
    log.event("info", "gateway.reload", changed=False, kept=True, closed=0, by="False")
    assert text().endswith(" changed=false kept=true closed=0 by=False\n")


def test_a_hostile_value_neither_ends_its_line_nor_starts_a_field_nor_reaches_the_terminal(text):
    log.event("warning", "session.refuse", identity=HOSTILE, reason="denied")
    line = text()
    assert line.count("\n") == 1
    assert line.isascii()
    assert line.removesuffix("\n").isprintable()
    value = line.partition("identity=")[2].removesuffix(" reason=denied\n")
    assert json.loads(value) == HOSTILE


@pytest.mark.parametrize("value", ["", "two words", "a=b", 'q"', "back\\slash"])
def test_a_value_that_is_not_one_plain_word_is_quoted(text, value):
    log.event("info", "x", value=value)
    assert json.loads(text().partition("value=")[2]) == value


def test_json_lines_hold_the_same(capsys):
    log.configure(json_lines=True, level="info")
    log.event("info", "session.close", identity=HOSTILE, sent=5, role=None)
    (line,) = capsys.readouterr().err.splitlines()
    document = json.loads(line)
    assert document.pop("time").endswith("Z")
    assert document == {"level": "info", "event": "session.close", "identity": HOSTILE, "sent": 5}


@pytest.mark.parametrize(("level", "is_on"), [("debug", False), ("info", True), ("error", True)])
def test_it_can_be_asked_which_levels_are_written(text, level, is_on):
    assert log.is_on(level) is is_on
    log.event(level, "x")
    assert bool(text()) is is_on


def test_events_below_the_level_are_not_written(text):
    log.event("debug", "connection.gone")
    assert text() == ""


def test_a_flood_is_let_through_in_part_and_the_rest_is_counted():
    gate = log.FloodGate(burst=3, per_s=1.0)
    assert [gate.admit(0.0) for _ in range(5)] == [0, 0, 0, None, None]
    assert gate.admit(0.5) is None
    assert gate.admit(1.1) == 3
    assert gate.take_held_back() == 0


def test_a_quiet_time_does_not_save_up_more_than_the_burst():
    gate = log.FloodGate(burst=2, per_s=1.0)
    assert gate.admit(0.0) == 0
    assert [gate.admit(1000.0) for _ in range(3)] == [0, 0, None]


def test_floods_of_one_event_do_not_silence_another(text):
    floods = log.Floods()
    for _ in range(100):
        floods.event(0.0, "warning", "handshake.fail", reason="handshake_failed")
    floods.event(0.0, "warning", "session.refuse", reason="denied")
    lines = text().splitlines()
    assert sum("handshake.fail" in line for line in lines) == 20
    assert sum("session.refuse" in line for line in lines) == 1
    floods.report()
    assert "handshake.fail.flood held_back=80" in text()
    floods.report()
    assert text() == ""
