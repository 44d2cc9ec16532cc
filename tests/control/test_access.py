"""Who gets which level, and who gets none."""

import pytest

from portguard.control.access import Access, Account, Level, Peer, Principal

ACCESS = Access(
    own_uid=990,
    viewers=(Principal("group", "audit"), Principal("user", "vera")),
    operators=(Principal("group", "portguard"),),
    admins=(Principal("user", "root"), Principal("group", "wheel")),
)


@pytest.mark.parametrize(
    ("uid", "account", "level"),
    [
        (0, Account("root", frozenset()), Level.ADMIN),
        (1001, Account("ada", frozenset({"wheel"})), Level.ADMIN),
        (1001, Account("otto", frozenset({"portguard"})), Level.OPERATOR),
        (1001, Account("vera", frozenset()), Level.VIEWER),
        (1001, Account("anna", frozenset({"audit"})), Level.VIEWER),
        (1001, Account("anna", frozenset({"audit", "portguard"})), Level.OPERATOR),
        (1001, Account("vera", frozenset({"wheel"})), Level.ADMIN),
    ],
)
def test_the_highest_level_counts(uid, account, level):
    assert ACCESS.level(uid, account) is level


def test_the_gateways_own_user_is_an_admin_even_without_a_name():
    assert ACCESS.level(990, None) is Level.ADMIN


@pytest.mark.parametrize(
    "account",
    [
        None,
        Account("mallory", frozenset()),
        Account("wheel", frozenset()),  # a user that is called like a group
        Account("mallory", frozenset({"root", "vera", "users"})),  # groups that are called like users
    ],
)
def test_nobody_else_has_one(account):
    assert ACCESS.level(1001, account) is None
    assert Access(own_uid=990).level(0, Account("root", frozenset({"root"}))) is None


def test_only_groups_that_matter_are_looked_up():
    assert ACCESS.groups == {"audit", "portguard", "wheel"}


def test_a_level_includes_those_below_it():
    assert Level.VIEWER < Level.OPERATOR < Level.ADMIN
    assert [str(level) for level in Level] == ["viewer", "operator", "admin"]


def test_a_peer_is_written_with_its_name_where_it_has_one():
    assert str(Peer(1001, 100, 7, "anna")) == "uid 1001 (anna)"
    assert str(Peer(1001, 100, 7, None)) == "uid 1001"
