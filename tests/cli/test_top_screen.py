"""What `portguard top` makes of two answers, on terminals of any size."""

import unicodedata

import pytest

from portguard.cli.tables import fitted
from portguard.cli.top_screen import Rates, Sample


def sample(at_s, *sessions, verdict="SERVING"):
    listed = [
        {"session": number, "identity": identity, "service": service, "received": received, "sent": sent}
        for number, identity, service, received, sent in sessions
    ]
    return Sample.of(at_s, {"verdict": verdict}, {"sessions": listed})


def lines(before, after, columns=80, rows=24):
    return list(Rates.between(before, after).lines(columns, rows))


BEFORE = sample(10.0, ("a1", "alice", "db", 1000, 0), ("b1", "bob", "db", 0, 0), ("g1", "gone", "db", 5, 5))
AFTER = sample(
    12.0,
    ("a1", "alice", "db", 3000, 500),
    ("a2", "alice", "db", 400, 0),  # new
    ("b1", "bob", "db", 0, 9_000_000),
    ("c1", "carol", "web", 0, 0),
)


def test_sessions_and_rates_are_summed_by_identity_and_service_the_busiest_first():
    assert lines(BEFORE, AFTER) == [
        "SERVING",
        "4 sessions of 3 identities; 1.2 kB/s from clients, 4.5 MB/s to them",
        "",
        "IDENTITY  SERVICE  SESSIONS  FROM/S    TO/S   MOVED",
        "bob       db              1     0 B  4.5 MB    9 MB",
        "alice     db              2  1.2 kB   250 B  3.9 kB",
        "carol     web             1     0 B     0 B     0 B",
        "q quits",
    ]


def test_programs_are_told_all_of_it_in_bytes():
    document = Rates.between(BEFORE, AFTER).document()
    groups = [tuple(each.values()) for each in document["groups"]]
    assert (document["verdict"], document["seconds"]) == ("SERVING", 2.0)
    assert groups == [
        ("bob", "db", 1, 0, 4_500_000, 9_000_000),
        ("alice", "db", 2, 1200, 250, 3900),
        ("carol", "web", 1, 0, 0, 0),
    ]


def test_the_first_screen_has_no_rates_and_no_sessions_are_none():
    assert lines(sample(1.0), sample(1.0)) == [
        "SERVING",
        "0 sessions of 0 identities",
        "",
        "IDENTITY  SERVICE  SESSIONS  FROM/S  TO/S  MOVED",
        "q quits",
    ]
    one = sample(1.0, ("a", "alice", "db", 1, 1))
    assert lines(one, one)[1] == "1 session of 1 identity"
    assert lines(one, one)[4].split() == ["alice", "db", "1", "2", "B"]


def test_a_session_whose_slot_was_counted_anew_has_no_negative_rate():
    after = sample(12.0, ("a1", "alice", "db", 10, 0))
    assert lines(BEFORE, after)[4].split() == ["alice", "db", "1", "0", "B", "0", "B", "10", "B"]


def width(text):
    return sum((unicodedata.east_asian_width(c) in "WF") + (unicodedata.combining(c) == 0) for c in text)


@pytest.mark.parametrize("columns", [20, 40, 80, 200])
@pytest.mark.parametrize("rows", [1, 4, 6, 24])
def test_it_fits_into_the_terminal_whatever_identities_are_called(columns, rows):
    names = ["x" * 300, "名" * 40, "\x1b[2J\x1b]0;evil\x07", "a\u0301" * 60, "\u202eright"]
    sessions = [(f"{n}{k}", name, name[::-1], 10**14 * k, 10**14) for n, name in enumerate(names) for k in range(3)]
    drawn = lines(sample(1.0), sample(2.0, *sessions, verdict="REFUSING ALL since 02:51: " + "x" * 300), columns, rows)
    assert len(drawn) <= rows
    assert all(width(line) <= columns for line in drawn)
    assert all(line.isprintable() for line in drawn)


def test_at_80_columns_the_numbers_of_a_busy_gateway_are_all_there():
    sessions = [
        (f"{n}", "someone@a-long-domain.example", "a-service-with-a-name", 999_000_000_000, 1) for n in range(8000)
    ]
    [row] = lines(sample(1.0), sample(2.0, *sessions))[4:5]
    assert row.split()[2:] == ["8000", "7990", "TB", "8", "kB", "7990", "TB"]
    assert row.startswith("someone@a-long-d…  a-service-with-a…")


def test_that_some_do_not_fit_is_said():
    sessions = [(f"{n}", f"user{n}", "db", 0, n) for n in range(50)]
    drawn = lines(sample(1.0), sample(2.0, *sessions), rows=10)
    assert drawn[-1] == "and 45 more; q quits"
    assert drawn[4].startswith("user49 ")
    assert len(drawn) == 10
    assert len(lines(sample(1.0), sample(2.0, *sessions), rows=None)) == 54


@pytest.mark.parametrize(
    ("text", "columns", "expected"),
    [
        ("short", 5, "short"),
        ("longer", 5, "long…"),
        ("名名名", 6, "名名名"),
        ("名名名", 5, "名名…"),
        ("a\x1bb", 4, "a\\x…"),
    ],
)
def test_a_text_is_cut_by_the_columns_that_it_takes(text, columns, expected):
    assert fitted(text, columns) == expected
