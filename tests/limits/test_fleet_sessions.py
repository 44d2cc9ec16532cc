"""Which counts of sessions others are told, and how many there are at other gateways."""

import pytest

from portguard.limits.fleet import SessionsElsewhere, SessionsRow
from portguard.limits.fleet_sessions import FleetSessions
from portguard.limits.ledger import Owner

ANNA, BEN = Owner("dba", "staff", "anna"), Owner("dba", "staff", "ben")


@pytest.fixture
def bounded():
    return {ANNA, "db"}


@pytest.fixture
def sessions(bounded):
    return FleetSessions(bounded.__contains__)


def hear(sessions, *news, gone=(), all_there_is=False):
    sessions.hear([SessionsElsewhere(*each) for each in news], gone, all_there_is=all_there_is)


def test_what_has_a_bound_is_told_as_often_as_it_changes_and_nothing_else(sessions):
    sessions.began(ANNA, "db")
    sessions.began(BEN, "db")
    assert set(sessions.take_rows()) == {SessionsRow(ANNA, 1), SessionsRow("db", 2)}
    assert sessions.take_rows() == []
    sessions.ended(ANNA, "db")
    sessions.ended(BEN, "web")
    assert set(sessions.take_rows()) == {SessionsRow(ANNA, 0), SessionsRow("db", 1)}


def test_what_gets_a_bound_is_told_then(sessions, bounded):
    sessions.began(BEN, "web")
    assert sessions.take_rows() == []
    bounded.add(BEN)
    sessions.bounds_changed()
    assert sessions.take_rows() == [SessionsRow(BEN, 1)]


def test_what_loses_its_bound_is_told_to_be_none_and_is_told_anew_with_another(sessions, bounded):
    sessions.began(ANNA)
    sessions.take_rows()
    bounded.clear()
    sessions.bounds_changed()
    assert sessions.take_rows() == [SessionsRow(ANNA, 0)]
    sessions.began(ANNA)
    assert sessions.take_rows() == []
    bounded.add(ANNA)
    sessions.bounds_changed()
    assert sessions.take_rows() == [SessionsRow(ANNA, 2)]


def test_counts_elsewhere_are_those_that_were_told_last_by_each(sessions):
    assert sessions.elsewhere(ANNA) == 0
    hear(sessions, (ANNA, "a", 2), (ANNA, "b", 3), ("anna", "a", 7))
    assert (sessions.elsewhere(ANNA), sessions.elsewhere("anna"), sessions.elsewhere(BEN)) == (5, 7, 0)
    hear(sessions, (ANNA, "a", 1))
    assert sessions.elsewhere(ANNA) == 4
    hear(sessions, (ANNA, "a", 0), (ANNA, "b", 0))
    assert sessions.elsewhere(ANNA) == 0


def test_who_is_gone_has_none_and_others_keep_theirs(sessions):
    hear(sessions, (ANNA, "a", 2), (ANNA, "b", 3), (BEN, "a", 1))
    hear(sessions, gone={"a"})
    assert (sessions.elsewhere(ANNA), sessions.elsewhere(BEN)) == (3, 0)


def test_what_is_not_among_all_there_is_is_nothing(sessions):
    hear(sessions, (ANNA, "a", 2), (BEN, "b", 3))
    hear(sessions, (ANNA, "a", 4), all_there_is=True)
    assert (sessions.elsewhere(ANNA), sessions.elsewhere(BEN)) == (4, 0)
