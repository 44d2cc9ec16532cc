"""What gateways that share a ledger agree on: which lock is the newer one, and how rows are written as text."""

import pytest

from portguard.limits.fleet import (
    KEPT_LOCKS_S,
    StampedLock,
    is_long_over,
    is_newer,
    merge_locks,
    read_counted,
    read_lock,
    read_owner,
    written_counted,
    written_lock,
    written_owner,
)
from portguard.limits.ledger import LockRow, LockTarget, Owner

ANNA = LockTarget("identity", "staff", "anna")
LOCK = LockRow(ANNA, "left", "user:root", 1_795_000_000, None)
AWAY = LOCK._replace(until_s=0)


def test_the_newer_lock_takes_the_place_of_the_older_one():
    held = {ANNA: StampedLock(LOCK, 1000)}
    unlocked = StampedLock(AWAY, 1001)
    assert merge_locks(held, [unlocked]) == [unlocked]
    assert held == {ANNA: unlocked}


def test_the_older_lock_does_not():
    held = {ANNA: StampedLock(AWAY, 1001)}
    assert merge_locks(held, [StampedLock(LOCK, 1000), held[ANNA]]) == []
    assert held == {ANNA: StampedLock(AWAY, 1001)}


def test_of_two_at_the_same_moment_the_one_that_locks_stays():
    lock, away = StampedLock(LOCK, 1000), StampedLock(AWAY, 1000)
    assert is_newer(lock, away)
    assert not is_newer(away, lock)
    assert is_newer(away, None)


@pytest.mark.parametrize("until_s", [0, LOCK.since_s, LOCK.since_s + 60])
def test_that_a_lock_is_over_is_remembered_for_a_month(until_s):
    lock = StampedLock(LOCK._replace(until_s=until_s), LOCK.since_s * 1000)
    over_s = max(until_s, LOCK.since_s)
    assert not is_long_over(lock, over_s + KEPT_LOCKS_S)
    assert is_long_over(lock, over_s + KEPT_LOCKS_S + 1)


def test_a_lock_without_an_end_is_never_over():
    assert not is_long_over(StampedLock(LOCK, LOCK.since_s * 1000), LOCK.since_s + 1000 * KEPT_LOCKS_S)


@pytest.mark.parametrize("name", ["anna", "a b", "Zoë", '"\\', "x\ny"])
def test_what_is_written_is_read_back_and_is_ascii(name):
    owner = Owner("dba", "staff", name)
    lock = StampedLock(LockRow(LockTarget("identity", "staff", name), name, "user:root", 7, 8), 1000)
    assert read_owner(written_owner(owner)) == owner
    assert [read_counted(written_counted(each)) for each in (owner, name)] == [owner, name]
    assert read_lock(*written_lock(lock)) == lock
    assert all(text.isascii() and text.isprintable() for text in (written_owner(owner), *written_lock(lock)))


@pytest.mark.parametrize("text", ["", "{}", "[]", '["a","b"]', '["a","b",1]', "null"])
def test_what_is_no_owner_is_not_read(text):
    for read in (read_owner, read_counted):
        with pytest.raises(ValueError, match=r"."):
            read(text)


@pytest.mark.parametrize(
    ("target", "rest"),
    [
        ('["identity","staff","anna"]', ""),
        ('["identity","staff","anna"]', '1000 0 ["left","root",7,null]'),  # which is it?
        ('["identity","staff","anna"]', '1000 1 ["left","root",7,0]'),
        ('["identity","staff","anna"]', 'x 1 ["left","root",7,null]'),
        ('["identity","staff","anna"]', '1000 1 ["left","root","7",null]'),
        ('["identity","staff","anna"]', '1000 1 ["left","root",-1,null]'),
        ('["identity","staff","anna"]', f'1000 1 ["left","root",7,{10**12}]'),
        ('["person","staff","anna"]', '1000 1 ["left","root",7,null]'),
    ],
)
def test_what_is_no_lock_is_not_read(target, rest):
    with pytest.raises(ValueError, match=r"."):
        read_lock(target, rest)
