"""How the thread of a ledger ends: with everything written, in vain, and without ever having begun."""

import threading

import pytest

from portguard.limits.attempts import RETRY_S, Attempts
from portguard.limits.writer_thread import WriterThread
from tests.patience import PATIENCE_S


class Writer:
    """Attempts to write, once it is to end, until one works; `causes` are why those before it do not."""

    def __init__(self, *causes):
        self.attempts = Attempts({}, PATIENCE_S, "stuck")
        self.thread = WriterThread(self.write, self.leave, self.attempts)
        self.causes = list(causes)
        self.written_in, self.left = None, 0

    def write(self):
        with self.thread.wake:
            self.thread.wake.wait_for(lambda: self.thread.close_by_s is not None, PATIENCE_S)
        while True:
            self.attempts.begin()
            cause = self.causes.pop(0) if self.causes else None
            self.attempts.settle(cause)
            if self.thread.may_end(self.thread.close_by_s, cause):
                self.written_in = threading.current_thread() if cause is None else None
                return

    def leave(self):
        self.left += 1


def test_what_waits_is_written_and_the_file_is_left_once():
    writer = Writer()
    writer.thread.start()
    assert writer.thread.flush_and_close(PATIENCE_S)
    assert writer.written_in not in {None, threading.current_thread()}
    assert writer.thread.flush_and_close(0.0)
    assert (writer.left, writer.attempts.failed) == (1, False)


def test_one_that_never_began_is_ended_by_the_caller():
    writer = Writer()
    assert writer.thread.flush_and_close(PATIENCE_S)
    assert writer.written_in is threading.current_thread()


def test_it_is_tried_again_for_as_long_as_there_is_time():
    writer = Writer("a full disk")
    assert writer.thread.flush_and_close(RETRY_S + PATIENCE_S)
    assert writer.left == 1


def test_without_time_for_another_attempt_it_ends_and_is_no_writer_any_more():
    writer = Writer("a full disk")
    assert not writer.thread.flush_and_close(RETRY_S / 2)
    assert (writer.left, writer.causes) == (1, [])
    assert writer.attempts.failed


def test_one_that_breaks_is_told_to_write_no_more_and_leaves_its_file():
    writer = Writer()
    writer.thread = WriterThread(_break, writer.leave, writer.attempts)
    with pytest.raises(ZeroDivisionError):
        writer.thread.flush_and_close(PATIENCE_S)
    assert (writer.left, writer.attempts.failing().message) == (1, "a writer that has ended")


def test_who_is_not_to_end_goes_on():
    assert not Writer().thread.may_end(None, None)


def _break():
    raise ZeroDivisionError
