"""Users of the host are looked up off the loop, once at a time, and forgotten soon."""

import asyncio
import grp
import os
import pwd
import threading

import pytest

from portguard.control import accounts_of_host
from portguard.control.access import Account
from portguard.control.accounts_of_host import DirectoryUnavailable, HostAccounts, look_up
from tests.patience import PATIENCE_S


def test_this_user_is_found_with_its_primary_group():
    user = pwd.getpwuid(os.getuid())
    group = grp.getgrgid(user.pw_gid).gr_name
    assert look_up(user.pw_uid, frozenset({group, "no-such-group"})) == Account(user.pw_name, frozenset({group}))
    assert look_up(user.pw_uid, frozenset()) == Account(user.pw_name, frozenset())


def test_supplementary_groups_count_and_others_do_not(monkeypatch):
    gids = {name: gid for gid, name in enumerate(("users", "audit", "wheel"), start=100)}
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: pwd.struct_passwd(("anna", "x", uid, 100, "", "/", "/")))
    monkeypatch.setattr(os, "getgrouplist", lambda name, gid: [gid, gids["audit"]])
    monkeypatch.setattr(grp, "getgrnam", lambda name: grp.struct_group((name, "x", gids[name], [])))
    assert look_up(1001, frozenset({"audit", "wheel"})) == Account("anna", frozenset({"audit"}))
    assert look_up(1001, frozenset({"users"})) == Account("anna", frozenset({"users"}))


def test_an_unknown_user_is_nobody(monkeypatch):
    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    assert look_up(4_000_000, frozenset({"root"})) is None


class Directory:
    """What is asked for users; each answer waits for `released`."""

    def __init__(self):
        self.asked = []
        self.answer = Account("anna", frozenset())
        self.error = None
        self.released = threading.Event()
        self.released.set()
        self.now_s = 100.0

    def look(self, uid, groups):
        self.asked.append((uid, groups))
        self.released.wait(PATIENCE_S)
        if self.error is not None:
            raise self.error
        return self.answer


@pytest.fixture
def directory():
    directory = Directory()
    yield directory
    directory.released.set()


@pytest.fixture
async def accounts(directory):
    accounts = HostAccounts(frozenset({"audit"}), look=directory.look, clock=lambda: directory.now_s)
    yield accounts
    accounts.close()


async def test_an_answer_is_used_again_for_a_moment_only(accounts, directory):
    assert await accounts.account(7) == Account("anna", frozenset())
    directory.answer = None
    directory.now_s += 1.9
    assert await accounts.account(7) == Account("anna", frozenset())
    directory.now_s += 0.1
    assert await accounts.account(7) is None
    assert directory.asked == [(7, frozenset({"audit"}))] * 2


async def test_callers_at_the_same_time_share_one_question(accounts, directory):
    directory.released.clear()
    callers = [asyncio.create_task(accounts.account(7)) for _ in range(5)]
    await asyncio.sleep(0)
    directory.released.set()
    assert await asyncio.gather(*callers) == [directory.answer] * 5
    assert len(directory.asked) == 1


async def test_a_directory_that_hangs_stops_neither_the_loop_nor_other_users(accounts, directory, monkeypatch):
    monkeypatch.setattr(accounts_of_host, "_PATIENCE_S", 0.05)
    directory.released.clear()
    with pytest.raises(DirectoryUnavailable, match="no answer within"):
        await accounts.account(7)
    directory.released.set()
    monkeypatch.setattr(accounts_of_host, "_PATIENCE_S", 30)
    assert await accounts.account(8) == directory.answer
    assert await accounts.account(7) == directory.answer


async def test_a_caller_that_goes_away_takes_the_answer_from_no_other(accounts, directory):
    directory.released.clear()
    first, second = (asyncio.create_task(accounts.account(7)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    directory.released.set()
    assert await second == directory.answer


async def test_an_error_is_unavailable_and_not_remembered(accounts, directory):
    directory.error = OSError(5, "Input/output error")
    with pytest.raises(DirectoryUnavailable, match="Input/output error"):
        await accounts.account(7)
    directory.error = None
    assert await accounts.account(7) == directory.answer


async def test_what_is_remembered_is_bounded(accounts, directory, monkeypatch):
    monkeypatch.setattr(accounts_of_host, "_MOST_KEPT", 3)
    for uid in range(5):
        await accounts.account(uid)
    await accounts.account(4)
    assert len(directory.asked) == 5
    await accounts.account(0)
    assert len(directory.asked) == 6
    assert len(accounts._known) == 3
