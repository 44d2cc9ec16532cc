"""What is read of a fleet's rows, and that nothing is made of what portguard has not written."""

import pytest

from portguard.limits.fleet import Others, OthersConnects, SessionsElsewhere, written_owner
from portguard.limits.ledger import Owner, UsageRow
from portguard.limits.redis_texts import (
    NotAFleet,
    connects_from,
    host_from,
    lock_from,
    others_from,
    own_from,
    read_number,
    read_span,
    sessions_from,
)
from portguard.policy.quantities import Period

ANNA = Owner("dba", "staff", "anna")
OWNER = written_owner(ANNA)


def test_what_others_have_is_the_sum_less_ones_own():
    others = others_from(OWNER, "day:7", "100 9 0", "30 4 0")
    assert others == Others(ANNA, Period.DAY, 7, 70, 5, 0)
    assert own_from(others, 99, "30 4 0") == UsageRow(ANNA, Period.DAY, 7, 99, 30, 4)
    assert others_from(OWNER, "day:7", "100 9 0", None).used_bytes == 100


def test_what_was_used_before_a_reset_is_neither_ones_own_nor_of_the_sum():
    others = others_from(OWNER, "day:7", "100 9 1", "30 4 0")
    assert (others.used_bytes, others.resets) == (100, 1)
    own = own_from(others, 99, "30 4 0")
    assert (own.used_bytes, own.granted_bytes, own.resets) == (0, 4, 1)


def test_the_rest_is_read_as_it_was_written():
    assert connects_from(OWNER, "a", "60:7000:0") == OthersConnects(ANNA, "a", "60:7000:0")
    assert sessions_from(OWNER, "a", "3") == SessionsElsewhere(ANNA, "a", 3)
    assert sessions_from('"db"', "a", "0") == SessionsElsewhere("db", "a", 0)
    assert host_from("7 gw 1.example.com") == ("gw 1.example.com", 7)
    assert read_span("month:7", "9") == (Period.MONTH, 7, 9)
    assert lock_from('["identity","staff","anna"]', '1 1 ["left","root",7,null]').at_ms == 1


@pytest.mark.parametrize(
    ("read", "texts"),
    [
        (read_number, ("",)),
        (read_number, ("1e3",)),
        (read_number, ("9" * 19,)),
        (read_number, ("٣",)),
        (read_span, ("day", "9")),
        (read_span, ("century:7", "9")),
        (read_span, ("day:-1", "9")),
        (read_span, ("day:7", str(10**11))),
        (others_from, (OWNER, "day:7", "1 2", None)),
        (others_from, (OWNER, "day:7", "1 2 3 4", None)),
        (others_from, (OWNER, "day:7", "-1 0 0", None)),
        (others_from, (OWNER, "day:7", "1 0 0", "much")),
        (others_from, ("anna", "day:7", "1 0 0", None)),
        (connects_from, (OWNER, "a", "often")),
        (connects_from, ("anna", "a", "60:7000:0")),
        (sessions_from, (OWNER, "a", "-1")),
        (sessions_from, (OWNER, "a", "1000001")),
        (sessions_from, (OWNER, "a", "many")),
        (sessions_from, ("anna", "a", "1")),
        (sessions_from, (f'"{"x" * 3000}"', "a", "1")),
        (sessions_from, ('"\\ud800"', "a", "1")),
        (host_from, ("",)),
        (host_from, ("-1 host",)),
        (host_from, (f"{10**11} host",)),
        (lock_from, ("anna", '1 1 ["left","root",7,null]')),
        (lock_from, ('["identity","staff","anna"]', "soon")),
    ],
)
def test_what_portguard_has_not_written_is_told_as_such(read, texts):
    with pytest.raises(NotAFleet, match=r"expected .* as portguard writes (it|them), got "):
        read(*texts)
