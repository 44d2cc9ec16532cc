"""The fixtures of this folder keep their promises: no program outlives its test, none is waited for in vain."""

import os
import select
from collections.abc import Callable

import pytest

from tests.patience import PATIENCE_S


def test_a_program_is_ready_when_it_listens(
    start: Callable, free_port: Callable[[], int], real_program: Callable
) -> None:
    port = free_port()
    redis = start([real_program("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", ""])
    redis.wait_until_it_listens(("127.0.0.1", port))
    assert redis.process.poll() is None


def test_a_program_that_ends_early_fails_the_test_with_what_it_said(start: Callable) -> None:
    program = start(["/bin/sh", "-c", "echo no such option >&2; exit 1"])
    with pytest.raises(pytest.fail.Exception, match=r"ended before[^\n]*\nno such option"):
        program.wait_until_it_says("ready")


def test_what_a_program_started_ends_with_it(start: Callable) -> None:
    program = start(["/bin/sh", "-c", "sleep 1000 & echo child $!; wait"])
    program.wait_until_it_says("child ")
    program.wait_until(lambda: program.said.endswith("\n"), "its line ended")
    child = int(program.said.split()[1])
    watch = os.pidfd_open(child)
    try:
        program.stop()
        assert select.select([watch], [], [], PATIENCE_S)[0] == [watch]
    finally:
        os.close(watch)
