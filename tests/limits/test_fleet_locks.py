"""The locks that one gateway of a fleet knows: decided here, heard of from others, and kept in its folder."""

import errno

import pytest

from portguard.limits import fleet_locks
from portguard.limits.fleet import KEPT_LOCKS_S, StampedLock
from portguard.limits.fleet_folder import FleetFolder
from portguard.limits.fleet_locks import FleetLocks
from portguard.limits.ledger import LockRow, LockTarget

NOW_S = 1_795_000_000
LOCK = LockRow(LockTarget("identity", "staff", "anna"), "left", "user:root", NOW_S, None)
AWAY = LOCK._replace(until_s=0)
FAR_MS = 4_000_000_000_000  # long after any clock of a test


@pytest.fixture
def folder(tmp_path):
    folder = FleetFolder(str(tmp_path / "fleet"))
    yield folder
    folder.close()


@pytest.fixture
def events(monkeypatch):
    events = []
    monkeypatch.setattr(fleet_locks.log, "event", lambda level, name, **fields: events.append((name, fields)))
    return events


@pytest.fixture
def kept(folder, monkeypatch):
    """What the folder was given to keep, a list for each time."""
    kept = []
    monkeypatch.setattr(folder, "keep", kept.append)
    return kept


def test_what_is_decided_later_is_newer_whatever_the_clock_says(folder):
    locks = FleetLocks(folder)
    locks.merge([StampedLock(LOCK, FAR_MS)])
    assert locks.decide(AWAY) == StampedLock(AWAY, FAR_MS + 1)


def test_to_decide_the_same_again_changes_nothing(folder, kept):
    locks = FleetLocks(folder)
    first = locks.decide(LOCK)
    locks.keep()
    assert locks.decide(LOCK) == first
    locks.keep()
    assert kept == [[first]]


def test_only_what_is_newer_is_taken_over(folder):
    locks = FleetLocks(folder)
    assert locks.merge([StampedLock(LOCK, 2)]) == [LOCK]
    assert locks.merge([StampedLock(AWAY, 1)]) == []
    assert locks.in_force(NOW_S) == (LOCK,)


def test_what_was_heard_is_kept_and_what_was_known_is_not_kept_again(folder, kept):
    locks = FleetLocks(folder)
    heard = StampedLock(LOCK, 2)
    for _ in range(2):
        locks.merge([heard])
        locks.keep()
    assert kept == [[heard]]


def test_what_is_over_or_was_taken_away_is_known_and_not_in_force(folder):
    locks = FleetLocks(folder)
    locks.merge([StampedLock(LOCK._replace(until_s=NOW_S), 1)])
    assert locks.in_force(NOW_S - 1) != ()
    assert locks.in_force(NOW_S) == ()
    assert len(locks.all()) == 1
    locks.forget(NOW_S + KEPT_LOCKS_S)
    assert len(locks.all()) == 1
    locks.forget(NOW_S + KEPT_LOCKS_S + 1)
    assert locks.all() == []


def test_they_are_there_again_after_a_restart(tmp_path):
    for known in (0, 1):
        folder = FleetFolder(str(tmp_path / "fleet"))
        locks = FleetLocks(folder)
        assert len(locks.all()) == known
        locks.decide(LOCK)
        locks.keep()
        folder.close()


def test_a_folder_that_does_not_take_them_is_told_of_once_and_tried_again(folder, monkeypatch, events):
    locks = FleetLocks(folder)
    first = locks.decide(LOCK)
    kept, full = [], True

    def keep(some):
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        kept.append(some)

    monkeypatch.setattr(folder, "keep", keep)
    locks.keep()
    locks.keep()
    assert events == [("ledger.locks_not_kept", {"file": folder.path, "message": "no space left on device"})]
    full = False
    locks.keep()
    assert kept == [[first]]
