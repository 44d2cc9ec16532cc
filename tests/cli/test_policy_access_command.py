"""`portguard policy access` and `policy show`: what an auditor and a program get to see."""

import csv
import io
import json
import sys
from datetime import UTC, datetime, timedelta

import pytest

from portguard.cli import main as cli
from portguard.gateway.bundle import read_bundle
from portguard.gateway.kept_policies import keep_policy, record_load
from portguard.gateway.snapshot import build
from tests.gateway_folder import GatewayFolder

POLICY = """
timezone = "Europe/Zurich"

[services.orders-db]
upstream = ["10.0.3.7:5432"]
[services.metrics]
upstream = ["10.0.3.8:9090"]

[[deny]]
members = ["@local:guests"]
services = ["orders-db"]

[[roles]]
name = "dba"
members = ["alice", "a*"]
services = ["orders-db"]
hours = ["Mon-Fri 07:00-20:00"]
from = ["10.0.0.0/8"]
quota = ["1GB/day"]

[[roles]]
name = "ops"
members = ["@local:ops"]
services = ["*"]
"""
FIRST = datetime(2026, 3, 2, 8, tzinfo=UTC)  # a Monday
SECOND = FIRST + timedelta(hours=2)


@pytest.fixture
def folder(tmp_path):
    made = GatewayFolder(tmp_path)
    text = (tmp_path / "portguard.toml").read_text()
    made.write("portguard.toml", text.replace("[trusts", 'state = "state"\n[trusts', 1))
    made.write("policy.toml", POLICY)
    return made


@pytest.fixture
def portguard(folder, monkeypatch, capsys):
    """Run `policy …`; returns exit code, standard output and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["portguard", "policy", *map(str, arguments), "-c", folder.configuration])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        output = capsys.readouterr()
        return caught.value.code or 0, output.out, output.err

    return run


@pytest.fixture
def loaded(folder):
    """Two policies that were loaded: the first without alice's role. Returns their revisions."""
    without = POLICY.replace('"alice", "a*"', '"bob"')
    return load(folder, without, FIRST), load(folder, POLICY, SECOND, by="user:anna", message="CHG-1 \x1b[2J")


def load(folder, text, at, **people):
    folder.write("policy.toml", text)
    bundle = read_bundle(folder.configuration)
    configuration = build(bundle).configuration
    keep_policy(bundle, configuration)
    record_load(configuration, bundle.revision, at, **people)
    return bundle.revision


# access


def test_everybody_with_access_is_told(folder, portguard):
    code, out, err = portguard("access")
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        f"{folder.path}/policy.toml",
        "",
        "metrics",
        "  who      @local:ops",
        "    role     ops",
        "",
        "orders-db",
        "  who      alice, a*",
        "    role     dba (from 10.0.0.0/8; hours Mon-Fri 07:00-20:00 Europe/Zurich;",
        "             quota 1GB/day Europe/Zurich)",
        "    unless   @local:guests",
        "  who      @local:ops",
        "    role     ops",
        "    unless   @local:guests",
    ]


def test_one_is_told_with_all_that_he_is(portguard):
    _, out, _ = portguard("access", "--identity", "alice", "--group", "ops", "--service", "orders-db")
    assert out.splitlines()[3:] == [
        "  who      alice with @local:ops",
        "    role     dba (from 10.0.0.0/8; hours Mon-Fri 07:00-20:00 Europe/Zurich;",
        "             quota 1GB/day Europe/Zurich)",
        "    unless   @local:guests",
        "    role     ops",
        "    unless   @local:guests",
    ]
    for group in "ops", "@local:ops":
        assert "who      @local:ops" in portguard("access", "--group", group)[1]
    assert portguard("access", "--identity", "eve")[1].splitlines()[1:] == ["nobody"]
    assert portguard("access", "--identity", "alice", "--group", "guests")[1].splitlines()[1:] == ["nobody"]


def test_a_program_gets_all_of_it(portguard):
    code, out, _ = portguard("access", "--identity", "alice", "--at", "2999-03-04T09:00", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["at"], found["revision"], [each["written"] for each in found["asked"]]) == (
        "2999-03-04T08:00:00Z",
        None,
        ["alice"],
    )
    assert found["access"] == [
        {
            "subjects": [{"kind": "identity", "trust": "local", "name": "alice", "written": "alice"}],
            "services": ["orders-db"], "role": "dba", "from": ["10.0.0.0/8"], "hours": ["Mon-Fri 07:00-20:00"],
            "timezone": "Europe/Zurich", "expires": None, "limits": {"quota": ["1GB/day"]},
            "until": "2999-03-04T19:00:00Z",
            "unless": [{"kind": "group", "trust": "local", "name": "guests", "written": "@local:guests"}],
        }
    ]  # fmt: skip


def test_a_spreadsheet_gets_a_row_for_each_identity_and_service(portguard):
    _, out, _ = portguard("access", "--csv")
    rows = list(csv.reader(io.StringIO(out)))
    assert rows[0] == ["identity", "kind", "service", "role", "from", "hours", "expires", "until", "limits", "unless"]
    assert [row[:4] for row in rows[1:]] == [
        ["'@local:ops", "group", "metrics", "ops"],
        ["alice", "identity", "orders-db", "dba"],
        ["a*", "pattern", "orders-db", "dba"],
        ["'@local:ops", "group", "orders-db", "ops"],
    ]
    assert rows[2][4:] == [
        "10.0.0.0/8",
        "Mon-Fri 07:00-20:00 Europe/Zurich",
        "",
        "",
        "quota 1GB/day Europe/Zurich",
        "'@local:guests",
    ]
    out = portguard("access", "--identity", "alice", "--group", "ops", "--csv")[1]
    assert '"alice with @local:ops","identity","metrics","ops"' in out


def test_the_past_is_answered_by_the_policy_of_then(loaded, portguard):
    asked = ("access", "--identity", "alice", "--service", "orders-db", "--at")
    code, out, _ = portguard(*asked, "2026-03-02T10:00+01:00")
    assert (code, out.splitlines()) == (0, [f"revision {loaded[0][:12]}, 2026-03-02T09:00:00Z", "nobody"])
    _, out, _ = portguard(*asked, "2026-03-02T11:00:00")
    assert out.splitlines()[0] == f"revision {loaded[1][:12]}, 2026-03-02T10:00:00Z"
    assert "role     dba" in out
    assert "until    2026-03-02T19:00:00Z" in out
    assert portguard(*asked, "2026-03-08T11:00")[1].splitlines()[1:] == ["nobody"], "expected none on a Sunday"


def test_a_policy_that_is_broken_today_says_nothing_of_the_past(folder, loaded, portguard):
    folder.write("policy.toml", "rolse = 1")
    assert portguard("access", "--at", "2026-03-02T10:30Z")[0] == 0
    assert portguard("access")[0] == 2


def test_before_the_first_load_nothing_is_known(folder, portguard):
    code, out, err = portguard("access", "--at", "2026-03-02T08:00Z")
    assert (code, out) == (2, "")
    assert "no load is recorded" in err
    load(folder, POLICY, FIRST)
    assert portguard("access", "--at", "2026-03-02T08:00Z")[0] == 0
    code, out, err = portguard("access", "--at", "2026-03-02T07:59Z")
    assert (code, out) == (2, "")
    assert "the first was loaded at 2026-03-02T08:00:00+00:00" in err


def test_any_policy_that_was_loaded_can_be_asked(loaded, portguard):
    for revision, found in zip(loaded, ([], ["dba"]), strict=True):
        out = portguard("access", "--revision", revision[:9], "--identity", "alice", "--json")[1]
        assert json.loads(out)["revision"] == revision
        assert [row["role"] for row in json.loads(out)["access"]] == found
    sunday = ("--at", "2026-03-08T11:00")
    assert "nobody" in portguard("access", "--revision", loaded[1], "--identity", "alice", *sunday)[1]


def test_roles_that_have_expired_are_not_told_without_a_time(folder, portguard):
    folder.add("policy.toml", "expires = 2026-01-01T00:00:00Z\n")
    assert portguard("access", "--service", "metrics")[1].splitlines()[1:] == ["nobody"]
    folder.write("policy.toml", POLICY + "expires = 2999-01-01T00:00:00Z\n")
    assert "role     ops (expires 2999-01-01T00:00:00Z)" in portguard("access", "--service", "metrics")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--json", "--csv"), "--csv: expected not to be given beside --json"),
        (("--service", "order-db"), "--service: expected services of"),
        (("--identity", "a*"), "--identity: expected a name without"),
        (("--identity", "corp:alice"), "--identity: expected a trust"),
        (("--group", "@corp:dba"), "--group: expected a trust"),
        (("--identity", "alice", "--group", "@corp:dba"), "--group: expected a trust"),
        (("--at", "yesterday"), "--at: expected a date and time such as"),
        (("--revision", "HEAD"), "REVISION: expected at least 6 hexadecimal digits, got HEAD"),
    ],
)
def test_a_question_that_makes_no_sense_is_not_answered(portguard, arguments, message):
    code, out, err = portguard("access", *arguments)
    assert (code, out) == (2, "")
    assert message in err


# show


def test_a_loaded_policy_is_shown_as_it_was_and_is_a_policy_again(folder, loaded, portguard):
    code, out, err = portguard("show", loaded[1][:6])
    assert (code, err) == (0, "")
    path = f"{folder.path}/state/policies/{loaded[1]}/policy.toml"
    head = [
        f"# revision {loaded[1]}",
        "# in force from 2026-03-02T10:00:00Z until now, loaded by user:anna: CHG-1 \\x1b[2J",
        f"# file {path}",
    ]
    assert out.splitlines() == [*head, *POLICY.splitlines()]
    folder.write("again.toml", out)
    assert portguard("check", folder.path / "again.toml")[0] == 0
    assert portguard("show")[1] == out
    assert "until 2026-03-02T10:00:00Z" in portguard("show", loaded[0])[1]


def test_what_a_kept_policy_holds_is_escaped(folder, portguard):
    load(folder, POLICY + "# \u202e\t\x7f\n".replace("\x7f", "\u009b"), FIRST)
    _, out, _ = portguard("show")
    assert out.splitlines()[-1] == "# \\u202e     \\x9b"


def test_all_loads_are_listed(loaded, portguard):
    code, out, _ = portguard("show", "--list")
    assert (code, [line.split("  ") for line in out.splitlines()][1][0]) == (0, loaded[0][:12])
    assert out.splitlines()[2].endswith("2026-03-02T10:00:00Z  now                   user:anna  CHG-1 \\x1b[2J")
    found = json.loads(portguard("show", "--list", "--json")[1])
    assert found == [
        {"revision": loaded[0], "from": "2026-03-02T08:00:00Z", "until": "2026-03-02T10:00:00Z", "by": None,
         "message": None},
        {"revision": loaded[1], "from": "2026-03-02T10:00:00Z", "until": None, "by": "user:anna",
         "message": "CHG-1 \x1b[2J"},
    ]  # fmt: skip
    document = json.loads(portguard("show", loaded[1], "--json")[1])
    assert (document["revision"], document["loads"]) == (loaded[1], found[1:])
    assert [file["text"] for file in document["files"]] == [POLICY]


def test_where_nothing_was_loaded_nothing_is_shown(portguard):
    assert portguard("show", "--list")[1].split() == ["REVISION", "FROM", "UNTIL", "BY", "MESSAGE"]
    code, out, err = portguard("show")
    assert (code, out) == (2, "")
    assert "no load is recorded" in err
    assert portguard("show", "abcdef")[0] == 2


def test_a_list_takes_no_revision(loaded, portguard):
    code, out, err = portguard("show", loaded[0], "--list")
    assert (code, out) == (2, "")
    assert "expected none beside --list" in err
