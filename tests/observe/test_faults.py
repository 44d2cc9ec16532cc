import asyncio
import gc
import io
import json
import sys
import threading

import pytest

from portguard.observe import log
from portguard.observe.faults import Faults


@pytest.fixture
def lines(monkeypatch):
    """What was logged, one JSON object a line."""
    stderr = io.StringIO()
    monkeypatch.setattr("sys.stderr", stderr)
    log.configure(json_lines=True, level="info")
    return lambda: [json.loads(line) for line in stderr.getvalue().splitlines()]


@pytest.fixture
def faults():
    return Faults(log.Floods())


@pytest.fixture
def process(faults, monkeypatch):
    """As if this were the gateway's process."""
    for owner, name in ((sys, "excepthook"), (sys, "unraisablehook"), (threading, "excepthook")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    faults.watch_process()


def fail():
    raise ValueError("two\nlines \x1b[31m")


def test_a_fault_is_one_line_with_its_traceback_inside(lines, faults):
    with pytest.raises(ValueError, match="two") as caught:
        fail()
    faults.report("something failed", caught.value)
    (line,) = lines()
    assert (line["level"], line["event"], line["message"]) == ("error", "gateway.fault", "something failed")
    assert line["error"] == "ValueError"
    assert line["traceback"].startswith("Traceback (most recent call last):\n")
    assert line["traceback"].endswith("ValueError: two\nlines \x1b[31m\n")


def test_in_text_too_it_is_one_line_without_control_characters(monkeypatch, faults):
    stderr = io.StringIO()
    monkeypatch.setattr("sys.stderr", stderr)
    log.configure(json_lines=False, level="info")
    with pytest.raises(ValueError, match="two") as caught:
        fail()
    faults.report("something failed", caught.value)
    text = stderr.getvalue()
    assert text.count("\n") == 1
    assert text.removesuffix("\n").isprintable()


def test_of_a_long_traceback_the_end_is_kept(lines, faults):
    def chained():
        try:
            fail()
        except ValueError as error:
            raise RuntimeError("y" * 100_000 + " the end") from error

    with pytest.raises(RuntimeError) as caught:
        chained()
    faults.report("something failed", caught.value)
    (line,) = lines()
    assert len(line["traceback"]) == 8000
    assert line["traceback"].endswith("the end\n")


def test_faults_that_come_in_floods_are_counted_instead(lines, faults):
    for _ in range(1000):
        faults.report("again", ValueError())
    assert 20 <= len(lines()) <= 25


async def test_a_callback_that_raises_is_a_fault_and_the_loop_goes_on(lines, faults):
    loop = asyncio.get_running_loop()
    faults.watch_loop(loop)
    after = asyncio.Event()
    loop.call_soon(fail)
    loop.call_soon(after.set)
    await after.wait()
    (line,) = lines()
    assert line["error"] == "ValueError"
    assert "fail" in line["traceback"]


async def test_a_task_that_nobody_asked_is_a_fault(lines, faults):
    loop = asyncio.get_running_loop()
    faults.watch_loop(loop)

    async def work():
        fail()

    task = asyncio.create_task(work())
    await asyncio.wait([task])
    del task
    gc.collect()
    (line,) = lines()
    assert line["message"] == "Task exception was never retrieved"
    assert line["error"] == "ValueError"


async def test_a_complaint_without_an_exception_is_told_as_well(lines, faults):
    loop = asyncio.get_running_loop()
    faults.watch_loop(loop)
    loop.call_exception_handler({"message": "something is odd"})
    (line,) = lines()
    assert line["message"] == "something is odd"
    assert "error" not in line


@pytest.mark.usefixtures("process")
def test_a_thread_that_ends_by_an_exception_is_a_fault(lines):
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    (line,) = lines()
    assert line["message"] == "a thread ended"
    assert line["error"] == "ValueError"


@pytest.mark.usefixtures("process")
def test_an_exception_that_cannot_be_raised_is_a_fault_without_what_it_came_from(lines):
    class Secretive:
        def __del__(self):
            fail()

        def __repr__(self):
            raise AssertionError("expected nobody to ask")

    Secretive()
    gc.collect()
    (line,) = lines()
    assert line["message"].startswith("exception ignored in function")
    assert line["error"] == "ValueError"


@pytest.mark.usefixtures("process")
def test_the_exception_that_ends_the_process_is_a_fault(lines):
    with pytest.raises(ValueError, match="two") as caught:
        fail()
    sys.excepthook(type(caught.value), caught.value, caught.value.__traceback__)
    (line,) = lines()
    assert line["message"] == "the process ends"


@pytest.mark.usefixtures("process")
def test_a_keyboard_s_interrupt_is_no_fault(lines, monkeypatch):
    told = []
    monkeypatch.setattr(sys, "__excepthook__", lambda *arguments: told.append(arguments))
    error = KeyboardInterrupt()
    sys.excepthook(KeyboardInterrupt, error, None)
    assert told == [(KeyboardInterrupt, error, None)]
    assert lines() == []
