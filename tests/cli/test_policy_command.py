"""`portguard policy check` and `policy explain`: what people and programs get to see, and the exit codes."""

import json
import sys
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from portguard.cli import main as cli
from tests.certificates import Authority, now, spiffe
from tests.gateway_folder import GatewayFolder

POLICY = """
timezone = "Europe/Zurich"

[services.orders-db]
upstream = ["10.0.3.7:5432"]
zones = ["prod"]
aliases = ["orders.example.com"]

[[deny]]
members = ["@local:contractors"]
services = ["zone:prod"]
description = "contractors stay out"

[[roles]]
name = "others"
members = ["bob"]
services = ["*"]

[[roles]]
name = "dba"
members = ["alice", "team/**"]
services = ["orders-db", "web-*"]
hours = ["Mon-Fri 07:00-20:00"]
from = ["10.0.0.0/8"]
max_sessions = 10
quota = ["20GB/day"]
session = "8h"

[[roles]]
name = "last"
members = ["*"]
services = ["*"]
from = ["192.0.2.0/24"]
"""
MONDAY = ("--at", "2026-03-02T09:00+01:00")


@pytest.fixture
def folder(tmp_path):
    made = GatewayFolder(tmp_path)
    made.write("policy.toml", POLICY)
    made.add("portguard.toml", 'groups = "ou"\n')
    return made


@pytest.fixture
def portguard(monkeypatch, capsys):
    """Run the command; returns exit code, standard output and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["portguard", "policy", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        output = capsys.readouterr()
        return caught.value.code or 0, output.out, output.err

    return run


@pytest.fixture
def explain(folder, portguard):
    """`policy explain` with the folder's configuration, at a Monday morning."""
    return lambda *arguments: portguard("explain", *arguments, "-c", folder.configuration)


# check


def test_a_right_policy_is_ok_and_its_oddities_are_warnings(folder, portguard):
    path = folder.path / "policy.toml"
    assert portguard("check", "-c", folder.configuration) == (
        0,
        f"{path}: ok, 1 service, 3 roles, 1 deny, 0 tests, 1 warning\n",
        f"portguard: warning: {path}: roles[1].services[1]: web-* matches no service\n",
    )


def test_the_configuration_is_found_by_the_environment(folder, portguard, monkeypatch):
    monkeypatch.setenv("PORTGUARD_CONFIG", folder.configuration)
    assert portguard("check")[0] == 0
    monkeypatch.setenv("PORTGUARD_CONFIG", str(folder.path / "nothing.toml"))
    assert portguard("check")[0] == 2


def test_every_problem_is_told(folder, portguard):
    path = folder.write("policy.toml", "rolse = 1\n[services.x]\n")
    code, out, err = portguard("check", "-c", folder.configuration)
    assert (code, out) == (2, f"{folder.configuration}: not usable, 2 problems\n")
    assert err.splitlines() == [
        f'portguard: {path}: rolse: expected a known key (did you mean roles?), got "rolse"',
        f"portguard: {path}: services.x.upstream: expected an array, got nothing",
    ]


def test_a_test_that_fails_makes_the_policy_unusable(folder, portguard):
    test = '[[tests]]\nidentity = "{}"\nservice = "orders-db"\nexpect = "allow"\n'
    folder.add("policy.toml", test.format("bob"))
    assert portguard("check", "-c", folder.configuration)[0] == 0
    folder.add("policy.toml", test.format("eve"))
    code, _, err = portguard("check", "-c", folder.configuration)
    assert code == 2
    assert "tests[1]: expected allow for local:eve at orders-db, got deny, source_not_allowed (role last)" in err


def test_a_program_gets_json_of_a_policy_that_is_right_and_of_one_that_is_not(folder, portguard):
    code, out, err = portguard("check", "--json", "-c", folder.configuration)
    verdict = json.loads(out)
    assert (code, err, verdict["ok"], verdict["trusts_checked"]) == (0, "", True, True)
    assert (verdict["services"], verdict["roles"], verdict["denies"], verdict["tests"]) == (1, 3, 1, 0)
    assert len(verdict["warnings"]) == 1
    path = folder.write("policy.toml", "rolse = 1")
    code, out, err = portguard("check", "--json", "-c", folder.configuration)
    assert (code, err) == (2, "")
    problem = {"file": str(path), "key": "rolse", "expected": "a known key (did you mean roles?)", "found": '"rolse"'}
    assert json.loads(out) == {"ok": False, "problems": [problem], "warnings": []}


def test_a_file_is_checked_without_any_configuration(folder, portguard, monkeypatch):
    monkeypatch.setenv("PORTGUARD_CONFIG", "/nowhere/portguard.toml")
    path = folder.write("other.toml", POLICY.replace('"bob"', '"corp:bob@example.com", "spiffe://example.org/bob"'))
    code, out, err = portguard("check", path)
    assert (code, out) == (0, f"{path}: ok, 1 service, 3 roles, 1 deny, 0 tests, 1 warning\n")
    assert err.endswith("portguard: trusts are taken as the policy names them; with -c they are checked too\n")
    assert json.loads(portguard("check", "--json", path)[1])["trusts_checked"] is False


def test_a_file_is_checked_as_the_policy_of_a_configuration(folder, portguard):
    other = folder.write("other.toml", POLICY.replace('"bob"', '"corp:bob@example.com"'))
    code, _, err = portguard("check", other, "-c", folder.configuration)
    assert code == 2
    assert f'{other}: roles[0].members[0]: expected a trust before the first ":" (known: local)' in err
    folder.write("other.toml", POLICY + "[services.bastion]\nupstream = ['10.0.0.1:1']\nlisten = ['127.0.0.1:9847']\n")
    code, _, err = portguard("check", other, "-c", folder.configuration)
    assert "services.bastion.listen[0]: expected an address that nothing else listens on" in err
    assert portguard("check", other)[0] == 0
    folder.write("other.toml", POLICY)
    assert portguard("check", other, "-c", folder.configuration)[0] == 0


def test_a_file_is_not_checked_against_a_configuration_that_is_wrong(folder, portguard):
    folder.add("portguard.toml", "[log]\nlevel = 1\n")
    code, _, err = portguard("check", folder.path / "policy.toml", "-c", folder.configuration)
    assert code == 2
    assert "log.level: expected" in err


def test_a_folder_is_checked_as_one_policy(folder, portguard):
    services, roles = POLICY.split("[[deny]]")
    folder.write("policies/2.toml", "[[deny]]" + roles)
    folder.write("policies/1.toml", services)
    folder.write("policies/.hidden.toml", "nonsense")
    path = folder.path / "policies"
    code, out, _ = portguard("check", path)
    assert (code, out) == (0, f"{path}: ok, 1 service, 3 roles, 1 deny, 0 tests, 1 warning\n")


@pytest.mark.parametrize(
    ("name", "found"), [("nothing.toml", "no such file"), ("empty", "at least one *.toml, got none")]
)
def test_what_is_not_there_cannot_be_checked(folder, portguard, name, found):
    (folder.path / "empty").mkdir()
    code, out, err = portguard("check", folder.path / name)
    assert (code, out) == (2, f"{folder.path / name}: not usable, 1 problem\n")
    assert found in err


# explain


def test_who_is_allowed_is_told_by_which_role_and_under_which_limits(folder, explain):
    path = folder.path / "policy.toml"
    code, out, err = explain("alice", "orders-db", "--from", "10.1.2.3", *MONDAY)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "alice to orders-db from 10.1.2.3, Mon 2026-03-02 09:00:00 Europe/Zurich",
        f"deny 1, contractors stay out ({path}: deny[0])",
        "  member   no   not a member",
        f"role others ({path}: roles[0])",
        "  member   no   not a member",
        f"role dba ({path}: roles[1])",
        "  member   yes  as local:alice",
        "  service  yes  by orders-db",
        "  source   yes  from 10.0.0.0/8; it is 10.1.2.3",
        "  hours    yes  Mon-Fri 07:00-20:00; it is Mon 2026-03-02 09:00 Europe/Zurich",
        "  expiry   yes  never expires",
        "not looked at: 1 more",
        "allowed by role dba until 2026-03-02T19:00:00Z",
        "  max_sessions 10",
        "  quota 20GB/day",
        "  session 8h",
    ]


def test_who_is_refused_is_told_how_far_each_entry_got(folder, explain):
    code, out, err = explain("alice", "orders-db", "--from", "11.1.2.3", *MONDAY)
    assert (code, err) == (3, "")
    lines = out.splitlines()
    position = lines.index(f"role dba ({folder.path}/policy.toml: roles[1])")
    assert lines[position + 1 : position + 4] == [
        "  member   yes  as local:alice",
        "  service  yes  by orders-db",
        "  source   no   from 10.0.0.0/8; it is 11.1.2.3",
    ]
    assert lines[position + 4].startswith("role last")
    assert lines[-1] == "refused: source_not_allowed, the role does not allow this source address (role dba)"


@pytest.mark.parametrize("arguments", [("::ffff:11.1.2.3",), ("::ffff:b01:203",)])
def test_a_mapped_address_is_shown_as_what_it_is_compared_as(explain, arguments):
    code, out, _ = explain("alice", "orders-db", "--from", *arguments, *MONDAY)
    assert code == 3
    assert "from 10.0.0.0/8; it is 11.1.2.3" in out
    assert out.splitlines()[0].startswith("alice to orders-db from 11.1.2.3, ")
    assert "; it is 2001:db8::1\n" in explain("alice", "orders-db", "--from", "2001:db8::1", *MONDAY)[1]


@pytest.mark.parametrize(
    ("arguments", "code", "verdict"),
    [
        (("bob", "orders-db"), 0, "allowed by role others"),
        (("local:bob", "ORDERS-DB."), 0, "allowed by role others"),
        (("spiffe://gateway.test/bob", "orders.example.com"), 0, "allowed by role others"),
        (("bob", "orders-db.bastion.example.com"), 0, "allowed by role others"),
        (("eve", "orders-db", "--from", "192.0.2.9"), 0, "allowed by role last"),
        (("eve", "orders-db", "--from", "::ffff:192.0.2.9"), 0, "allowed by role last"),
        (("eve", "orders-db"), 3, "refused: source_not_allowed"),
        (("x/y", "orders-db"), 3, "refused: no_role"),
        (("bob", "orders-db", "--group", "contractors"), 3, "refused: denied"),
        (("bob", "orders-db", "--group", "@local:other", "--group", "@local:contractors"), 3, "refused: denied"),
        (("bob", "orders-db", "--group", "other"), 0, "allowed by role others"),
        (("alice", "orders-db", "--from", "10.1.1.1", "--at", "2026-03-02T06:59:59"), 3, "refused: outside_hours"),
        (("alice", "orders-db", "--from", "10.1.1.1", "--at", "2026-03-02T07:00"), 0, "allowed by role dba"),
        (("alice", "orders-db", "--from", "10.1.1.1", "--at", "2026-03-02T06:00Z"), 0, "allowed by role dba"),
        (("alice", "orders-db", "--from", "10.1.1.1", "--at", "2026-03-02T05:59Z"), 3, "refused: outside_hours"),
    ],
)
def test_the_verdict_and_the_exit_code_are_those_of_the_decision(explain, arguments, code, verdict):
    found, out, _ = explain(*arguments)
    assert found == code
    assert any(line.startswith(verdict) for line in out.splitlines())


def test_an_unknown_service_is_refused_with_a_guess(explain):
    code, out, err = explain("bob", "order-db", *MONDAY)
    assert code == 3
    assert out.splitlines() == [
        "bob to order-db from an unknown address, Mon 2026-03-02 09:00:00 Europe/Zurich",
        "refused: unknown_service, there is no such service",
    ]
    assert err == "portguard: did you mean orders-db?\n"


def test_a_program_gets_every_condition(folder, explain):
    code, out, _ = explain("alice", "orders-db", "--from", "10.1.2.3", *MONDAY, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["entries"][2]["conditions"][0] == {"condition": "member", "held": True, "detail": "as local:alice"}
    assert [entry["kind"] for entry in found["entries"]] == ["deny", "role", "role"]
    assert [entry["fits"] for entry in found["entries"]] == [False, False, True]
    assert found["entries"][0]["key"] == "deny[0]"
    del found["entries"]
    assert found == {
        "identity": "alice", "trust": "local", "name": "alice", "groups": [], "service": "orders-db",
        "source": "10.1.2.3", "at": "2026-03-02T08:00:00Z", "allowed": True, "role": "dba", "reason": None,
        "until": "2026-03-02T19:00:00Z",
        "limits": {"max_sessions": 10, "quota": ["20GB/day"], "session": "8h"},
    }  # fmt: skip
    code, out, _ = explain("alice", "orders-db", *MONDAY, "--json")
    found = json.loads(out)
    assert code == 3
    assert (found["allowed"], found["role"], found["reason"]) == (False, "dba", "source_not_allowed")
    assert len(found["entries"][2]["conditions"]) == 5


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("orders-db",), "expected IDENTITY and SERVICE, or --cert and SERVICE, got 1 word"),
        (("alice", "orders-db", "more"), "got 3 words"),
        (("al*", "orders-db"), 'IDENTITY: expected a name without "*"'),
        (("@local:dba", "orders-db"), "IDENTITY: expected an identity, not a group"),
        (("corp:alice", "orders-db"), "IDENTITY: expected a trust before the first"),
        (("alice", "orders-db", "--group", "@corp:dba"), "--group: expected a trust between"),
        (("alice", "orders-db", "--at", "yesterday"), "--at: expected a date and time such as"),
        (("alice", "orders-db", "--at", "9999-12-31T23:59Z"), "--at: expected a date in the years 1970 to 9000"),
        (("alice", "orders-db", "--from", "localhost"), "--from: expected an IP address"),
        (("alice", "orders-db", "--from", "fe80::1%eth0"), "--from: expected an IP address without a zone id"),
    ],
)
def test_a_question_that_makes_no_sense_is_not_answered(explain, arguments, message):
    code, out, err = explain(*arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_a_policy_that_is_wrong_explains_nothing(folder, explain):
    folder.add("policy.toml", "rolse = 1\n")
    code, out, err = explain("alice", "orders-db")
    assert (code, out) == (2, "")
    assert "rolse" in err


def test_what_files_hold_is_escaped(folder, explain, portguard):
    folder.write("policy.toml", POLICY.replace("contractors stay out", "\\u001b[2J\\u202e"))
    _, out, _ = explain("bob", "orders-db")
    assert "\\x1b[2J\\u202e" in out
    assert "\x1b" not in out
    folder.add("policy.toml", '[services."\\u001b"]\nupstream = ["10.0.0.1:1"]\n')
    _, _, err = portguard("check", "-c", folder.configuration)
    assert "\\x1b" in err
    assert "\x1b" not in err


# explain --cert


@pytest.fixture
def certificate(folder):
    """Write a client certificate of the folder's authority and return its path."""

    def write(name="bob", authority: Authority = folder.authority, **keywords):
        return folder.write(f"{name}.crt", authority.issue(name, **keywords).pem)

    return write


def test_a_certificate_tells_the_identity(explain, certificate):
    code, out, err = explain("orders-db", "--cert", certificate("bob"))
    assert (code, err) == (0, "")
    assert out.startswith("bob to orders-db")


def test_a_certificate_tells_the_groups(explain, certificate):
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "contractors")])
    code, out, _ = explain("orders-db", "--cert", certificate("bob", subject=subject))
    assert code == 3
    assert out.startswith("bob, in @local:contractors to orders-db")
    assert "refused: denied" in out


def test_a_certificate_and_an_identity_must_agree(explain, certificate):
    path = certificate("bob")
    assert explain("bob", "orders-db", "--cert", path)[0] == 0
    code, out, err = explain("alice", "orders-db", "--cert", path)
    assert (code, out) == (2, "")
    assert err == f"portguard: {path}: expected a certificate of alice, got one of bob\n"


def test_groups_are_not_given_beside_a_certificate(explain, certificate):
    code, _, err = explain("orders-db", "--cert", certificate("bob"), "--group", "dba")
    assert code == 2
    assert "--group: expected none beside --cert" in err


def test_a_certificate_of_an_intermediate_authority_needs_it_in_the_file(folder, explain):
    issuing = folder.authority.intermediate()
    leaf = issuing.issue("bob")
    path = folder.write("bob.crt", leaf.pem + issuing.pem)
    assert explain("orders-db", "--cert", path)[0] == 0
    folder.write("bob.crt", leaf.pem)
    code, out, _ = explain("orders-db", "--cert", path)
    assert code == 3
    assert "refused before the policy is asked: certificate_untrusted" in out


def test_a_certificate_that_is_no_authority_has_issued_nothing(folder, explain):
    fake = folder.authority.issue("mallory")
    leaf = Authority(fake.certificate, fake.key).issue("bob")
    path = folder.write("bob.crt", leaf.pem + fake.pem)
    code, out, _ = explain("orders-db", "--cert", path)
    assert code == 3
    assert "certificate_untrusted" in out


@pytest.mark.parametrize(
    ("keywords", "reason"),
    [
        ({"authority": Authority.root("Elsewhere")}, "certificate_untrusted"),
        ({"not_after": now() - timedelta(minutes=1)}, "certificate_expired"),
        ({"not_before": now() + timedelta(days=1)}, "certificate_not_yet_valid"),
        ({"sans": [spiffe("bob"), spiffe("alice")]}, "ambiguous_identity"),
        ({"sans": ()}, "no_identity"),
        ({"key_uses": ("key_cert_sign",)}, "certificate_usage"),
    ],
)
def test_a_certificate_that_the_gateway_refuses_is_refused_here(explain, certificate, keywords, reason):
    path = certificate("bob", **keywords)
    code, out, err = explain("orders-db", "--cert", path)
    assert (code, err) == (3, "")
    assert out.startswith(f"refused before the policy is asked: {reason}, ")
    code, out, _ = explain("orders-db", "--cert", path, "--json")
    found = json.loads(out)
    assert (code, found["allowed"], found["reason"], found["entries"]) == (3, False, reason, [])


def test_a_certificate_is_looked_at_as_of_the_time_asked_about(explain, certificate):
    later = (now() + timedelta(days=31)).isoformat()
    code, out, _ = explain("orders-db", "--cert", certificate("bob"), "--at", later)
    assert code == 3
    assert "certificate_expired" in out


def test_a_revoked_certificate_is_refused_here_too(folder, explain):
    holder = folder.authority.issue("bob")
    path = folder.write("bob.crt", holder.pem)
    folder.add("portguard.toml", 'crl = ["ca.crl"]\n')
    for revoked, code in ([], 0), ([holder.certificate.serial_number], 3):
        folder.write("ca.crl", folder.authority.crl(revoked).public_bytes(Encoding.PEM))
        assert explain("orders-db", "--cert", path)[0] == code


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "expected a certificate that can be read, got no such file"),
        (b"", "got an empty file"),
        (b"text", "expected a certificate"),
    ],
)
def test_a_file_that_is_no_certificate_is_told(folder, explain, content, message):
    path = folder.path / "bob.crt"
    if content is not None:
        path.write_bytes(content)
    code, out, err = explain("orders-db", "--cert", path)
    assert (code, out) == (2, "")
    assert message in err


def test_trusts_whose_files_are_missing_identify_nobody(folder, explain, certificate):
    path = certificate("bob")
    (folder.path / "ca.crt").unlink()
    code, out, err = explain("orders-db", "--cert", path)
    assert (code, out) == (2, "")
    assert f"{folder.path}/ca.crt: expected a file that can be read" in err
