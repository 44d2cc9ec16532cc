"""Ladders: the roles that could grant, in order, without those that an earlier one covers."""

import pytest

from portguard.identity.names import Group, Identity, Namespace
from portguard.identity.patterns import Pattern
from portguard.policy.ladder import Ladders, bits, exclusive, in_order, may_overlap, named_subjects, parted
from portguard.policy.read import read_policy

NAMESPACE = Namespace({"local": "cn", "corp": "cn"}, "local", {})


def ladders(*roles, deny=""):
    text = '[services.db]\nupstream = ["10.0.0.1:1"]\n' + deny
    for number, more in enumerate(roles):
        text += f'[[roles]]\nname = "r{number}"\nmembers = ["alice"]\nservices = ["db"]\n{more}\n'
    return Ladders(read_policy([("/etc/p.toml", text.encode())], NAMESPACE))


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        (["", ""], ["r0"]),
        (['hours = ["Mon"]', ""], ["r0", "r1"]),
        (['hours = ["Mon-Tue"]', 'hours = ["Tue"]', 'hours = ["Wed"]'], ["r0", "r2"]),
        (['from = ["10.0.0.0/8"]', 'from = ["10.1.0.0/16"]', 'from = ["192.0.2.0/24"]'], ["r0", "r2"]),
        (['hours = ["Mon"]', 'from = ["10.0.0.0/8"]', 'hours = ["Mon"]\nmax_sessions = 1'], ["r0", "r1"]),
        (["expires = 2030-01-01T00:00:00Z", "expires = 2029-01-01T00:00:00Z"], ["r0"]),
        (["expires = 2029-01-01T00:00:00Z", "expires = 2030-01-01T00:00:00Z"], ["r0", "r1"]),
    ],
)
def test_a_role_that_an_earlier_one_covers_is_left_out(roles, expected):
    made = ladders(*roles)
    ladder = made.ladder(made.member_mask(Identity("local", "alice")))
    assert ([rung.terms.role for rung in ladder.rungs], ladder.denied, ladder.reaches) == (expected, False, True)


def test_where_a_deny_holds_there_is_no_role():
    made = ladders("", deny='[[deny]]\nmembers = ["alice"]\nservices = ["db"]\n')
    ladder = made.ladder(made.member_mask(Identity("local", "alice")))
    assert (ladder.rungs, ladder.denied, ladder.reaches) == ((), True, False)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ('hours = ["Mon"]', 'hours = ["Tue"]', True),
        ('hours = ["Mon"]', 'hours = ["Mon-Tue"]', False),
        ('hours = ["Mon"]', "", False),
        ('from = ["10.0.0.0/8"]', 'from = ["11.0.0.0/8"]', True),
        ('from = ["10.0.0.0/8"]', 'from = ["::/0"]', True),
        ('from = ["10.0.0.0/8", "2001:db8::/32"]', 'from = ["::/0"]', False),
        ('from = ["10.0.0.0/8"]', "", False),
        ("expires = 2029-01-01T00:00:00Z", "expires = 2030-01-01T00:00:00Z", False),
    ],
)
def test_roles_that_never_hold_together_are_known(one, other, expected):
    made = ladders(one, other)
    assert exclusive(*made.rungs) is exclusive(*made.rungs[::-1]) is expected


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("a*", "*b", True),
        ("a*", "ab*", True),
        ("a*", "b*", False),
        ("*a", "*b", False),
        ("*@a", "x*@a", True),
        ("n/**", "n/a*", True),
        ("n/**", "m/**", False),
    ],
)
def test_patterns_that_no_name_matches_both_of_are_known(one, other, expected):
    p, q = Pattern("local", one), Pattern("local", other)
    assert may_overlap(p, q) is may_overlap(q, p) is expected
    assert not may_overlap(p, Pattern("corp", other))


def test_services_are_parted_by_the_entries_that_have_them():
    masks = [0b0011, 0b0110, 0b0000]
    assert sorted(parted(0b1111, [0, 1, 2], masks)) == [(0b0001, 0b01), (0b0010, 0b11), (0b0100, 0b10), (0b1000, 0)]
    assert parted(0, [0], masks) == []
    assert list(bits(0b1010)) == [1, 3]


def test_all_whom_a_policy_names_are_found_in_order():
    text = """
    [groups]
    one = ["zoe", "corp:*"]
    unused = ["nobody"]
    [services.db]
    upstream = ["10.0.0.1:1"]
    [[deny]]
    members = ["mallory"]
    services = ["db"]
    [[roles]]
    name = "a"
    members = ["@one", "@corp:ops"]
    services = ["db"]
    [[tests]]
    identity = "eve"
    service = "db"
    expect = "deny"
    """
    found = named_subjects(read_policy([("/etc/p.toml", text.encode())], NAMESPACE))
    names = [Identity("local", name) for name in ("eve", "mallory", "zoe")]
    assert in_order(found) == (*names, Pattern("corp", "*"), Group("corp", "ops"))
