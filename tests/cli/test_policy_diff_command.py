"""`portguard policy diff`: what a reviewer and a program get to see, and the exit code."""

import csv
import io
import json
import sys
from datetime import UTC, datetime

import pytest

from portguard.cli import main as cli
from portguard.gateway.bundle import read_bundle
from portguard.gateway.kept_policies import keep_policy, record_load
from portguard.gateway.snapshot import build
from tests.audit_log import NOON, Log
from tests.gateway_folder import GatewayFolder

OLD = """
[services.orders-db]
upstream = ["10.0.3.7:5432"]
[services.metrics]
upstream = ["10.0.3.8:9090"]

[[roles]]
name = "dba"
members = ["alice"]
services = ["orders-db"]
hours = ["Mon-Fri 07:00-20:00"]

[[roles]]
name = "ops"
members = ["@local:ops"]
services = ["*"]
max_sessions = 4
"""
NEW = (
    OLD.replace('"alice"', '"bob"').replace("= 4", "= 8").replace("10.0.3.8", "192.0.2.66")
    + '[[deny]]\nmembers = ["@local:guests"]\nservices = ["metrics"]\n'
)


@pytest.fixture
def folder(tmp_path):
    made = GatewayFolder(tmp_path)
    text = (tmp_path / "portguard.toml").read_text()
    made.write("portguard.toml", text.replace("[trusts", 'state = "state"\n[trusts', 1))
    made.write("policy.toml", OLD)
    made.write("new.toml", NEW)
    return made


@pytest.fixture
def diff(folder, monkeypatch, capsys):
    """Run `policy diff` in the folder; returns exit code, standard output and standard error."""

    def run(*arguments, config=True):
        configuration = ["-c", folder.configuration] if config else []
        monkeypatch.chdir(folder.path)
        monkeypatch.setattr(sys, "argv", ["portguard", "policy", "diff", *map(str, arguments), *configuration])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        output = capsys.readouterr()
        return caught.value.code or 0, output.out, output.err

    return run


def keep(folder, text):
    """Keep a policy as loaded, and put the other one back."""
    before = (folder.path / "policy.toml").read_text()
    folder.write("policy.toml", text)
    bundle = read_bundle(folder.configuration)
    configuration = build(bundle).configuration
    keep_policy(bundle, configuration)
    record_load(configuration, bundle.revision, datetime(2026, 3, 2, tzinfo=UTC))
    folder.write("policy.toml", before)
    return bundle.revision


@pytest.mark.parametrize("spoiled", ["new.toml", "policy.toml"])
def test_a_program_is_told_which_policy_cannot_be_used(folder, diff, spoiled):
    folder.write(spoiled, "rolse = 1")
    code, out, err = diff("new.toml", "--json")
    verdict = json.loads(out)
    assert (code, verdict["ok"], verdict["warnings"], err) == (2, False, [], "")
    assert [problem for problem in verdict["problems"] if problem["key"] == "rolse"]
    code, out, err = diff("new.toml")
    assert (code, out) == (2, "")
    assert "rolse: expected a known key" in err


def test_a_reviewer_reads_what_changes_for_whom(folder, diff):
    code, out, err = diff("new.toml")
    assert (code, err) == (1, "")
    assert out.splitlines() == [
        f"--- {folder.path}/policy.toml",
        "+++ new.toml",
        "",
        "gained access:",
        "  who      bob",
        "  to       orders-db",
        "  by       dba (hours Mon-Fri 07:00-20:00 UTC)",
        "",
        "access changes:",
        "  who      @local:ops",
        "  to       metrics, orders-db",
        "  role     ops: max_sessions 4 -> 8",
        "",
        "lost access:",
        "  who      alice",
        "  to       orders-db",
        "  by       dba (hours Mon-Fri 07:00-20:00 UTC)",
        "",
        "denied from now on, and had no role by this alone:",
        "  who      @local:guests",
        "  to       metrics",
        "",
        "services:",
        "  changed  metrics",
        "           upstream: 10.0.3.8:9090 -> 192.0.2.66:9090",
    ]


def test_where_nothing_changes_the_exit_code_is_0(folder, diff):
    folder.write("new.toml", "# the same\n" + OLD)
    code, out, err = diff("new.toml")
    assert (code, out.splitlines()[-1], err) == (0, "no difference", "")
    assert json.loads(diff("new.toml", "--json")[1])["differ"] is False
    assert diff("new.toml", "--csv")[1].splitlines() == ['"change","identity","kind","service","old","new"']


def test_a_policy_that_cannot_be_used_is_compared_with_nothing(folder, diff):
    folder.write("new.toml", "rolse = 1")
    code, out, err = diff("new.toml")
    assert (code, out) == (2, "")
    assert "rolse: expected a known key" in err
    folder.write("new.toml", NEW)
    folder.add("policy.toml", "rolse = 1")
    assert diff("new.toml")[0] == 2


def test_no_line_is_wider_than_80_columns(folder, diff):
    members = ", ".join(f'"somebody-{number}"' for number in range(100))
    folder.write("new.toml", NEW.replace('"bob"', members).replace('"Mon-Fri 07:00-20:00"', '"Mon 07:00-20:00", ' * 9))
    _, out, _ = diff("new.toml")
    assert "and 80 more" in " ".join(out.split())
    assert max(len(line) for line in out.splitlines()[2:]) <= 80


def test_a_program_gets_all_of_it(diff):
    code, out, _ = diff("new.toml", "--json")
    found = json.loads(out)
    assert (code, found["differ"], found["new"]) == (1, True, {"policy": "new.toml", "revision": None})
    gained = found["access"][0]
    assert gained["change"] == "gained"
    assert gained["subjects"] == [{"kind": "identity", "trust": "local", "name": "bob", "written": "bob"}]
    assert gained["new"]["roles"] == [
        {
            "role": "dba", "from": None, "hours": ["Mon-Fri 07:00-20:00"], "timezone": "UTC", "expires": None,
            "limits": {},
        }
    ]  # fmt: skip
    assert [row["roles"] for row in found["access"] if row["change"] == "changed"] == [
        [{"role": "ops", "change": "changed", "keys": ["limits"]}]
    ]
    assert found["services"] == [
        {"service": "metrics", "change": "changed", "keys": {"upstream": ["10.0.3.8:9090", "192.0.2.66:9090"]}}
    ]
    assert "replay" not in found


def test_a_spreadsheet_gets_a_row_for_each_identity_and_service(diff):
    code, out, _ = diff("new.toml", "--csv")
    rows = list(csv.reader(io.StringIO(out)))
    assert code == 1
    assert rows[1:] == [
        ["gained", "bob", "identity", "orders-db", "", "dba (hours Mon-Fri 07:00-20:00 UTC)"],
        ["changed", "'@local:ops", "group", "metrics", "ops (max_sessions 4)", "ops (max_sessions 8)"],
        ["changed", "'@local:ops", "group", "orders-db", "ops (max_sessions 4)", "ops (max_sessions 8)"],
        ["lost", "alice", "identity", "orders-db", "dba (hours Mon-Fri 07:00-20:00 UTC)", ""],
        ["denied", "'@local:guests", "group", "metrics", "", "denied"],
        ["service changed", "", "", "metrics", "upstream 10.0.3.8:9090", "upstream 192.0.2.66:9090"],
    ]


def test_roles_that_change_places_are_told(folder, diff):
    roles = '[[roles]]\nname = "{}"\nmembers = ["@local:{}"]\nservices = ["metrics"]\n'
    services = OLD.partition("[[roles]]")[0]
    folder.write("policy.toml", services + roles.format("a", "x") + roles.format("b", "y"))
    folder.write("new.toml", services + roles.format("b", "y") + roles.format("a", "x"))
    code, out, _ = diff("new.toml")
    assert code == 1
    assert out.splitlines()[-2:] == ["  role     b instead of a", "  to       metrics"]
    assert json.loads(diff("new.toml", "--json")[1])["exchanged"] == [
        {"before": "a", "after": "b", "services": ["metrics"]}
    ]
    assert '"exchanged","who has both a and b","roles","metrics","a","b"' in diff("new.toml", "--csv")[1]


def test_two_files_are_compared_without_a_configuration(folder, diff, monkeypatch):
    monkeypatch.setenv("PORTGUARD_CONFIG", "/nowhere/portguard.toml")
    assert diff("new.toml", "--against", "policy.toml", config=False)[0] == 1
    assert diff("new.toml", "--against", "new.toml", config=False)[0] == 0
    assert diff("new.toml", config=False)[0] == 2
    # A trust that only one of the two names is one of the other too.
    folder.write("new.toml", NEW.replace('"bob"', '"corp:bob"'))
    assert "corp:bob" in diff("new.toml", "--against", "policy.toml", config=False)[1]
    assert diff("new.toml", "--against", "policy.toml")[0] == 2


@pytest.mark.parametrize("missing", ["new.toml", "old.toml"])
def test_a_file_that_is_missing_is_told_whatever_the_configuration(folder, diff, monkeypatch, missing):
    monkeypatch.setenv("PORTGUARD_CONFIG", "/nowhere/portguard.toml")
    folder.write("old.toml", OLD)
    (folder.path / missing).unlink()
    code, out, err = diff("new.toml", "--against", "old.toml", config=False)
    assert (code, out, err) == (
        2,
        "",
        f"portguard: {folder.path}/{missing}: expected a file that can be read, got no such file or directory\n",
    )


def test_a_file_that_is_called_like_a_revision_is_a_file(folder, diff):
    folder.write("abcdef01", OLD)
    assert diff("abcdef01")[0] == 0
    assert diff("abcdef02")[0] == 2


def test_a_role_that_has_expired_may_go(folder, diff):
    expires = '[[roles]]\nname = "old"\nmembers = ["eve"]\nservices = ["*"]\nexpires = {}-01-01T00:00:00Z\n'
    folder.write("new.toml", OLD)
    folder.write("policy.toml", OLD + expires.format(2026))
    assert diff("new.toml")[0] == 0
    folder.write("policy.toml", OLD + expires.format(2999))
    assert diff("new.toml")[0] == 1


def test_a_deny_that_takes_or_took_access_is_told(folder, diff):
    deny = '[[deny]]\nmembers = ["alice"]\nservices = ["orders-db"]\n'
    folder.write("new.toml", OLD + deny)
    lost = ["lost access:", "  who      alice", "  to       orders-db"]
    by = "  by       dba (hours Mon-Fri 07:00-20:00 UTC)"
    assert diff("new.toml")[1].splitlines()[3:] == [*lost, by, "           a deny takes it"]
    folder.write("policy.toml", OLD + deny)
    folder.write("new.toml", OLD)
    assert diff("new.toml")[1].splitlines()[3:] == [
        "gained access:", *lost[1:], by, "           a deny took it"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("term", "change"),
    [
        ('hours = ["00:00-22:27"]', "hours 00:00-22:27 UTC -> any"),
        ('from = ["10.0.0.0/8"]', "from 10.0.0.0/8 -> any"),
        ("expires = 2999-01-01T00:00:00Z", "expires 2999-01-01T00:00:00Z -> never"),
        ('session = "2h"', "session 2h -> none"),
    ],
)
def test_a_condition_that_goes_is_not_told_as_one_that_nobody_meets(folder, diff, term, change):
    text = OLD.replace("max_sessions = 4", term)
    folder.write("policy.toml", text)
    folder.write("new.toml", text.replace(term, ""))
    assert f"  role     ops: {change}" in diff("new.toml")[1].splitlines()
    before, after = change.removeprefix(change.partition(" ")[0] + " ").split(" -> ")
    out = diff("policy.toml", "--against", "new.toml")[1]
    assert f"  role     ops: {change.partition(' ')[0]} {after} -> {before}" in out.splitlines()


def test_a_service_of_all_ports_is_told_as_that(folder, diff):
    folder.write("new.toml", OLD)
    folder.write("policy.toml", OLD.replace("[services.metrics]", "[services.metrics]\nlocal_port = 90"))
    assert "           local_port: 90 -> any" in diff("new.toml")[1].splitlines()
    folder.write("policy.toml", OLD.partition("[services.metrics]")[0] + "[[roles]]" + OLD.partition("[[roles]]")[2])
    assert "           upstream: none -> 10.0.3.8:9090" in diff("new.toml")[1].splitlines()


def test_roles_in_another_order_are_told_to_those_who_have_both(folder, diff):
    services, _, roles = OLD.partition("[[roles]]")
    one, _, other = roles.replace("@local:ops", "alice").partition("[[roles]]")
    folder.write("policy.toml", services + "[[roles]]" + one + "[[roles]]" + other)
    folder.write("new.toml", services + "[[roles]]" + other + "[[roles]]" + one)
    assert diff("new.toml")[1].splitlines()[3:] == [
        "access changes:",
        "  who      alice",
        "  to       orders-db",
        "  role     - dba",
    ]
    swapped = one.replace("hours", "max_sessions = 1\nhours").replace("Mon-Fri", "Mon")
    other = other.replace("max_sessions = 4", 'from = ["10.0.0.0/8"]')
    folder.write("policy.toml", services + "[[roles]]" + swapped + "[[roles]]" + other)
    folder.write("new.toml", services + "[[roles]]" + other + "[[roles]]" + swapped)
    assert diff("new.toml")[1].splitlines()[6:] == [
        "  roles    in another order: ops (from 10.0.0.0/8), then dba (hours Mon",
        "           07:00-20:00 UTC; max_sessions 1)",
    ]


def test_folders_are_compared_too(folder, diff):
    services, roles = OLD.split("[[roles]]", 1)
    folder.write("policy.d/1.toml", services)
    folder.write("policy.d/2.toml", "[[roles]]" + roles)
    assert diff("policy.d", "--against", "policy.toml", config=False)[0] == 0
    assert diff("policy.d")[0] == 0


def test_a_policy_is_compared_with_one_that_was_loaded(folder, diff):
    revision = keep(folder, NEW)
    code, out, _ = diff("policy.toml", "--against", revision[:8])
    assert (code, out.splitlines()[:2]) == (1, [f"--- revision {revision[:12]}", "+++ policy.toml"])
    assert diff("new.toml", "--against", revision)[0] == 0
    assert json.loads(diff(revision[:6], "--json")[1])["new"]["revision"] == revision
    code, out, err = diff("new.toml", "--against", "0" * 12)
    assert (code, out) == (2, "")
    assert "expected the revision of one kept policy, got that of 0" in err


def test_names_of_a_loaded_policy_are_read_as_they_were_then(folder, diff):
    revision = keep(folder, OLD)
    text = (folder.path / "portguard.toml").read_text()
    other = text.replace("[trusts.local]", "[trusts.staff]")
    folder.write("portguard.toml", other)
    folder.write("new.toml", OLD.replace('"alice"', '"bob"').replace("@local", "@staff"))
    _, out, _ = diff("new.toml", "--against", revision)
    assert "who      local:alice" in out
    assert "who      bob" in out


def test_what_files_hold_is_escaped(folder, diff):
    folder.write("new.toml", OLD + '[services.x]\nupstream = ["10.0.0.1:1"]\ndescription = "\\u001b[2J\\u202e"\n')
    folder.write("policy.toml", OLD + '[services.x]\nupstream = ["10.0.0.1:1"]\n')
    for option in (), ("--csv",), ("--json",):
        _, out, _ = diff("new.toml", *option)
        assert "\x1b" not in out
        assert "\u202e" not in out
    assert "\\x1b[2J\\u202e" in diff("new.toml")[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--json", "--csv"), "--csv: expected not to be given beside --json"),
        (("--since", "2h"), "--since: expected --audit beside it"),
        (("--audit", "audit.jsonl", "--since", "yesterday"), "--since: expected a time with an offset"),
        (("--audit", "nowhere/audit.jsonl"), "expected an audit log that can be read, got no such file"),
        (("--audit", "audti.jsonl"), "portguard: audti.jsonl: expected an audit log, got no such file, nor one that"),
        (("--audit", "policy.toml"), "policy.toml: expected an audit log, got a file that does not begin with"),
    ],
)
def test_a_question_that_makes_no_sense_is_not_answered(diff, arguments, message):
    code, out, err = diff("new.toml", *arguments)
    assert (code, out) == (2, "")
    assert message in err


# --audit


def test_a_log_without_a_line_has_nothing_to_replay(diff, folder):
    (folder.path / "audit.jsonl").touch()
    assert json.loads(diff("new.toml", "--audit", "audit.jsonl", "--json")[1])["replay"]["sessions"] == 0


@pytest.fixture
def log(folder):
    log = Log(folder.path / "audit.jsonl")
    alice = {"trust": "local", "identity": "alice", "groups": [], "service": "orders-db", "source": "10.1.2.3"}
    log.add("gateway.start")
    for _ in range(3):
        log.add("session.open", role="dba", **alice)
    log.add("session.open", role="ops", **alice | {"identity": "eve", "groups": ["ops"], "service": "metrics"})
    log.add("session.refuse", reason="no_role", held_back=2, **alice | {"identity": "bob"})
    log.add("session.refuse", reason="connect_rate", **alice | {"identity": "bob"})
    log.add("session.open", role="dba", **alice | {"groups": ["a", "… and 7 more"]})
    log.add("session.close", role="dba", **alice)
    return log


def test_past_sessions_are_replayed(log, diff):
    code, out, _ = diff("new.toml", "--audit", "audit.jsonl")
    assert code == 1
    _, _, told = out.partition("replayed ")
    assert told.splitlines() == [
        "from the audit: 4 sessions, 1 refusal",
        "  passed over, as they do not tell all: 1 record",
        "  not known, as they have no record of their own: 2 refusals",
        "would have been refused: 3",
        "  3 x      alice to orders-db: role dba -> deny, no_role, last",
        "           2026-11-23T12:00:03Z",
        "would have been let in: 1",
        "  1 x      bob to orders-db: no_role -> allow (role dba), last",
        "           2026-11-23T12:00:05Z",
    ]


def test_who_asked_for_a_wrong_port_gains_nothing(folder, log, diff):
    folder.write("new.toml", OLD)
    for _ in range(2):
        log.add("session.refuse", reason="unknown_service", trust="local", identity="alice", service="orders-db")
    code, out, _ = diff("new.toml", "--audit", "audit.jsonl")
    assert (code, out.splitlines()[-1]) == (0, "would have been let in: 0")
    assert "  passed over, as they do not tell all: 3 records" in out


def test_a_program_gets_what_was_replayed(log, diff):
    replay = json.loads(diff("new.toml", "--audit", "audit.jsonl", "--json")[1])["replay"]
    outcomes = replay.pop("outcomes")
    assert replay == {"sessions": 4, "refusals": 1, "unclear": 1, "held_back": 2}
    assert outcomes[0] == {
        "identity": "alice", "trust": "local", "name": "alice", "service": "orders-db", "outcome": "refused",
        "reason": "no_role", "old": "role dba", "new": "deny, no_role", "count": 3, "last": "2026-11-23T12:00:03Z",
    }  # fmt: skip
    assert [row["outcome"] for row in outcomes] == ["refused", "allowed"]
    out = diff("new.toml", "--audit", "audit.jsonl", "--csv")[1]
    assert '"replay refused","alice","identity","orders-db","role dba","deny, no_role, 3 times"' in out
    assert '"replay allowed","bob","identity","orders-db","no_role","allow (role dba), 1 time"' in out


def test_only_what_came_since_is_replayed(log, diff):
    since = NOON.replace(second=3).isoformat()
    replay = json.loads(diff("new.toml", "--audit", "audit.jsonl", "--since", since, "--json")[1])["replay"]
    assert [row["count"] for row in replay["outcomes"]] == [1, 1]


def test_a_session_that_nothing_changes_for_is_no_difference(folder, log, diff):
    folder.write("new.toml", OLD)
    code, out, _ = diff("new.toml", "--audit", "audit.jsonl")
    assert code == 0
    assert "would have been refused: 0\nwould have been let in: 0\n" in out
    # The policy in place refuses today what it let in then.
    folder.write("new.toml", NEW)
    folder.write("policy.toml", NEW)
    assert diff("new.toml", "--audit", "audit.jsonl")[0] == 1


def test_rotated_files_are_replayed_too(log, diff):
    log.rotate(".1").with_name("audit.jsonl").unlink()  # which may be all that there is for a moment
    replay = json.loads(diff("new.toml", "--audit", "audit.jsonl", "--json")[1])["replay"]
    assert replay["sessions"] == 4
