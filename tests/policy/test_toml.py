"""The reading layer: typed getters, every problem with its key, unknown keys, no secrets in messages."""

from datetime import UTC, datetime

import pytest

from portguard.policy import toml
from portguard.policy.toml import (
    BOOLEAN,
    DURATION,
    DURATION_OR_OFF,
    INSTANT,
    LISTEN_ADDRESS,
    PATH,
    PORT,
    STRING,
    choice,
    integer,
    parse,
    shown,
    text_kind,
)


def read(content, problems=None):
    return parse("f.toml", content.encode(), [] if problems is None else problems)


def problems_of(content, ask):
    """What is reported, as text, when `ask` reads the root table of `content`."""
    problems = []
    root = read(content, problems)
    ask(root)
    root.finish()
    return [str(problem) for problem in problems]


def test_values_are_read_by_their_kind():
    root = read('a = "x"\nb = true\nc = 80\nd = "5m"\ne = 2027-01-31T00:00:00+01:00\nf = ["[::]:1"]\ng = "red"')
    assert root.get("a", STRING) == "x"
    assert root.get("b", BOOLEAN) is True
    assert root.get("c", PORT) == 80
    assert root.get("d", DURATION) == 300.0
    assert root.get("e", INSTANT) == datetime(2027, 1, 30, 23, tzinfo=UTC)
    assert [str(address) for address in root.array("f", LISTEN_ADDRESS)] == ["[::]:1"]
    assert root.get("g", choice("red", "blue")) == "red"
    root.finish()


def test_a_missing_key_is_its_default_or_a_problem():
    assert problems_of("", lambda root: root.get("port", PORT, default=None)) == []
    assert read("").get("port", PORT, default=None) is None
    assert problems_of("", lambda root: root.get("port", PORT)) == [
        "f.toml: port: expected an integer, 1 to 65535, got nothing"
    ]


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        ("k = 0", PORT, "expected 1 to 65535, got 0"),
        ("k = 65536", PORT, "expected 1 to 65535, got 65536"),
        ('k = "80"', PORT, 'expected an integer, 1 to 65535, got "80"'),
        ("k = true", PORT, "expected an integer, 1 to 65535, got true"),
        ("k = 1.0", PORT, "expected an integer, 1 to 65535, got 1.0"),
        ("k = 1", BOOLEAN, "expected true or false, got 1"),
        ("k = 1", STRING, "expected a string, got 1"),
        ('k = ""', STRING, 'expected a string that is not empty, got ""'),
        ("k = 10", DURATION, 'expected a duration such as "10s", got 10'),
        ('k = "0s"', DURATION, 'expected a duration longer than 0s, got "0s"'),
        ('k = "0s"', DURATION_OR_OFF, 'expected a duration longer than 0s, or "off", got "0s"'),
        ('k = "a\\u0000b"', PATH, 'expected the path of a file, got "a\\\\x00b"'.replace("\\\\", "\\")),
        ('k = "green"', choice("red", "blue"), 'expected "red" or "blue", got "green"'),
        ("k = []", STRING, "expected a string, got an empty array"),
        ("k = {}", STRING, "expected a string, got a table"),
        ("k = nan", integer(0, 1), "expected an integer, 0 to 1, got nan"),
        (
            "k = 2027-01-31T00:00:00",
            INSTANT,
            "expected a date and time with an offset such as 2027-01-31T00:00:00Z, without quotes, "
            "got 2027-01-31T00:00:00 without an offset",
        ),
        (
            "k = 2027-01-31",
            INSTANT,
            "expected a date and time with an offset such as 2027-01-31T00:00:00Z, without quotes, got 2027-01-31",
        ),
        (
            "k = 0001-01-01T00:00:00+14:00",
            INSTANT,
            "expected a date and time in the years 1 to 9999 of UTC, got 0001-01-01T00:00:00+14:00",
        ),
    ],
)
def test_a_wrong_value_is_a_problem_in_these_words(content, kind, message):
    assert problems_of(content, lambda root: root.get("k", kind, default=None)) == [f"f.toml: k: {message}"]


def test_a_wrong_value_reads_as_a_blank_of_its_type():
    root = read('a = 1\nb = "x"\nc = 1')
    assert root.get("a", STRING) == ""
    assert root.get("b", PORT) == 1
    assert root.get("c", INSTANT).utcoffset() is not None


def test_off_is_taken_where_it_makes_sense():
    assert read('a = "off"').get("a", DURATION_OR_OFF) is None
    assert problems_of('a = "off"', lambda root: root.get("a", DURATION, default=None)) != []


def test_problems_name_the_whole_way_to_the_key():
    def ask(root):
        for service in root.tables_by_name("services").values():
            service.array("upstream", toml.HOST_PORT)
            service.table("tls").get("ca", PATH, default=None)
        for role in root.tables("roles"):
            role.get("name", STRING)

    content = (
        '[services.db]\nupstream = ["a:1", "b"]\ntls = { ca = 1 }\n'
        '[services."odd name"]\nupstream = "x:1"\n[[roles]]\nname = "x"\n[[roles]]\n'
    )
    assert problems_of(content, ask) == [
        "f.toml: services.db.upstream[1]: expected a host and a port such as "
        '"10.0.3.7:5432", "[::1]:5432" or "db.internal:5432", got "b"',
        "f.toml: services.db.tls.ca: expected the path of a file, got 1",
        'f.toml: services."odd name".upstream: expected an array, got "x:1"',
        "f.toml: roles[1].name: expected a string, got nothing",
    ]


def test_an_array_may_have_a_minimum_and_a_default():
    assert problems_of("", lambda root: root.array("k", STRING)) == []
    assert problems_of("", lambda root: root.array("k", STRING, minimum=1)) == [
        "f.toml: k: expected an array, got nothing"
    ]
    assert problems_of("", lambda root: root.array("k", STRING, minimum=1, default=["x"])) == []
    assert problems_of("k = []", lambda root: root.array("k", STRING, minimum=1, default=["x"])) == [
        "f.toml: k: expected an array of at least 1, got an empty one"
    ]
    assert read("").array("k", STRING, default=["x"]) == ("x",)


def test_a_table_of_the_wrong_type_is_one_problem():
    def ask(root):
        gateway = root.table("gateway")
        gateway.get("name", STRING)
        gateway.array("listen", STRING, minimum=1)
        gateway.table("inner").get("x", STRING)

    assert problems_of("gateway = 1", ask) == ["f.toml: gateway: expected a table, got 1"]


def test_a_missing_table_reports_its_required_keys():
    root = read("")
    assert not root.table("gateway").present
    assert problems_of("", lambda root: root.table("gateway").get("name", STRING)) == [
        "f.toml: gateway.name: expected a string, got nothing"
    ]


def test_a_table_may_be_asked_for_twice():
    def ask(root):
        root.table("gateway").get("name", STRING)
        root.table("gateway").get("port", PORT)

    assert problems_of('[gateway]\nname = "x"\nport = 1\n', ask) == []
    assert problems_of("gateway = 1", ask) == ["f.toml: gateway: expected a table, got 1"]


def test_an_array_of_tables_needs_double_brackets():
    assert problems_of("[roles]\n", lambda root: root.tables("roles")) == [
        "f.toml: roles: expected an array of tables, [[roles]], got a table"
    ]
    assert problems_of("roles = [1]\n", lambda root: root.tables("roles")) == [
        "f.toml: roles[0]: expected a table, got 1"
    ]


def test_an_unknown_key_is_reported_with_the_nearest_known_one():
    def ask(root):
        gateway = root.table("gateway")
        gateway.get("name", STRING, default=None)
        gateway.array("listen", STRING)

    assert problems_of('[gateway]\nnmae = "x"\nzzz = 1\n["Gate.way"]\n', ask) == [
        'f.toml: "Gate.way": expected a known key (did you mean gateway?), got "Gate.way"',
        'f.toml: gateway.nmae: expected a known key (did you mean name?), got "nmae"',
        'f.toml: gateway.zzz: expected one of the keys name, listen, got "zzz"',
    ]
    assert problems_of('[gateway]\nname = "x"\nlisten = []\n', ask) == []


def test_unknown_keys_are_found_in_every_table_that_was_asked_for():
    def ask(root):
        for service in root.tables_by_name("services").values():
            service.table("tls")
        root.tables("roles")

    assert problems_of("[services.a.tls]\nx = 1\n[[roles]]\ny = 1\n", ask) == [
        'f.toml: services.a.tls.x: expected no keys, got "x"',
        'f.toml: roles[0].y: expected no keys, got "y"',
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a = \n", "expected TOML, got an error at line 1, column 5: Invalid value"),
        (b"a = 1\nb = ", "expected TOML, got an error at the end of the file: Invalid value"),
        (b"a = 1\na = 2\n", "expected TOML, got an error at line 2, column 6: Cannot overwrite a value"),
        (b"a = 1\n\nb = '\xff'\n", "expected UTF-8, got byte 0xff at line 3"),
        (b"a = " + b"[" * 100_000, "expected TOML, got arrays or tables nested too deeply"),
    ],
)
def test_what_is_no_toml_is_one_problem_with_its_line(content, message):
    problems = []
    root = parse("f.toml", content, problems)
    root.table("gateway").get("name", STRING)
    root.get("x", STRING)
    root.finish()
    assert [str(problem) for problem in problems] == [f"f.toml: {message}"]


def test_a_decimal_integer_of_thousands_of_digits_is_a_problem():
    problems = []
    parse("f.toml", b"a = " + b"1" * 5000, problems)
    assert len(problems) == 1


def test_a_hexadecimal_integer_of_thousands_of_digits_is_a_problem():
    content = "k = 0x" + "f" * 5000
    assert problems_of(content, lambda root: root.get("k", PORT)) == [
        "f.toml: k: expected 1 to 65535, got a huge number"
    ]


def test_a_byte_order_mark_is_ignored():
    assert parse("f.toml", b"\xef\xbb\xbfa = 1\n", []).get("a", PORT) == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("x" * 200, f'"{"x" * 60}…"'),
        ("a\x1b[31m\u202eb", '"a\\x1b[31m\\u202eb"'),
        ('say "hi"', '"say \\"hi\\""'),
        (float("inf"), "inf"),
        ([1], "an array"),
        (None, "nothing"),
    ],
)
def test_a_found_value_is_shown_short_and_printable(value, text):
    assert shown(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("redis://:s3cret@host:6379/0", '"redis://(hidden)@host:6379/0"'),
        ("redis://user:s3/c@re?t@host/0", '"redis://(hidden)@host/0"'),
        ("rediss://host/0?password=s3cret", '"rediss://host/0"'),
        ("-----BEGIN PRIVATE KEY-----\ns3cret", '"(a private key)"'),
        ("corp:anna@example.com", '"corp:anna@example.com"'),
        ("spiffe://example.com/alice", '"spiffe://example.com/alice"'),
    ],
)
def test_a_found_value_is_shown_without_its_secret(value, text):
    assert shown(value) == text


@pytest.mark.parametrize("value", ["redis:s3cret@host", "s3cret?x", "x:s3cret", "a:s3cret@b://c"])
def test_a_value_of_a_secret_kind_is_not_shown_where_it_could_hold_a_password(value):
    def refuse(_):
        raise toml.Unexpected("a URL")

    secret = text_kind(refuse, "a URL", "", secret=True)
    assert problems_of(f'k = "{value}"', lambda root: root.get("k", secret)) == [
        "f.toml: k: expected a URL, got a value that is not shown"
    ]
    assert problems_of('k = "sqllite"', lambda root: root.get("k", secret)) == [
        'f.toml: k: expected a URL, got "sqllite"'
    ]


def test_no_key_can_break_a_message():
    long_key = "k" * 1000
    (problem,) = problems_of(f'"{long_key}" = 1\n', lambda root: None)
    assert len(problem) < 250
    (problem,) = problems_of('"a[\\u001b" = 1\n', lambda root: None)
    assert "\x1b" not in problem
