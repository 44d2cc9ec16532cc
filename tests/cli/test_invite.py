"""`portguard invite`, and what `cert` makes of invitations, through the program's own entry point."""

import re
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from portguard.client.invitation import read_invitation
from portguard.pki.authority import Authority
from portguard.pki.enrolment import enroll
from tests.cli.conftest import DOMAIN, Portguard, failed, secret_file

GATEWAY = ("--gateway", "bastion.example.com:8443")


def _kinds(portguard: Portguard) -> list[tuple[str, str, str]]:
    return [(row["kind"], row["name"], row["status"]) for row in portguard("cert", "list", "--json").json]


def test_an_invitation_is_one_file_for_its_owner_alone(made: Portguard, tmp_path: Path) -> None:
    done = made("invite", "ci/deploy", *GATEWAY, "--valid-for", "8h", "--json")
    path = tmp_path / "ci+deploy.invitation"
    assert done.json == {
        "identity": f"spiffe://{DOMAIN}/ci/deploy",
        "invitation": "ci+deploy.invitation",
        "gateway": "bastion.example.com:8443",
        "server_name": "bastion.example.com",
        "not_after": done.json["not_after"],
        "serial": done.json["serial"],
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "`portguard cert revoke ci+deploy.invitation` takes it back" in done.err
    invitation = read_invitation(path)
    assert (str(invitation.gateway), invitation.server_name) == ("bastion.example.com:8443", "bastion.example.com")
    assert invitation.identity == done.json["identity"]
    [record] = Authority.open("ca").store.records()
    assert (record.kind, record.name, f"{record.serial:x}") == ("invitation", "ci/deploy", done.json["serial"])
    assert (record.not_after - record.issued_at).total_seconds() == 8 * 3600
    key = re.sub("-----.*-----|\n", "", invitation.key_pem)
    assert key not in done.out + done.err


def test_where_it_goes_and_what_the_gateway_is_called_can_be_said(made: Portguard, tmp_path: Path) -> None:
    done = made(
        "invite", "alice", "--gateway", "[2001:db8::7]:443", "--server-name", "GW.example.com", "--out", "out/for alice"
    )
    assert done.code == 0
    assert "invitation   out/for alice\n" in done.out
    assert read_invitation(tmp_path / "out" / "for alice").server_name == "gw.example.com"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["../alice", *GATEWAY], 2, "client name: expected a SPIFFE path"),
        (["ca", *GATEWAY], 2, "client name: expected another one than that of ca.crt, got 'ca'"),
        (["alice"], 2, "Missing option '--gateway'"),
        (["alice", "--gateway", "bastion"], 2, "expected a host and a port such as"),
        (["alice", *GATEWAY, "--server-name", "a b"], 2, "expected a host name such as"),
        (["alice", *GATEWAY, "--out", "ca"], 2, "--out: expected a file, got the directory 'ca'"),
        (["alice", *GATEWAY, "--out", "there"], 1, "there: expected no file of this name, got one that exists"),
        (["alice", *GATEWAY, "--ca", "nowhere"], 1, "`portguard ca init` makes an authority"),
    ],
)
def test_who_cannot_be_invited_so_is_told_and_nothing_is_recorded(
    made: Portguard, tmp_path: Path, arguments: list[str], code: int, message: str
) -> None:
    (tmp_path / "there").write_text("mine")
    failed(made("invite", *arguments), code, message)
    assert _kinds(made) == []
    assert (tmp_path / "there").read_text() == "mine"


def test_one_that_outlives_the_authority_is_told_of(portguard: Portguard) -> None:
    portguard("ca", "init", "--trust-domain", DOMAIN, "--valid-for", "1d")
    done = portguard("invite", "alice", *GATEWAY)
    assert done.code == 0
    assert "portguard: valid for less than asked: the authority itself ends at " in done.err


def test_an_authority_with_a_passphrase_takes_it(portguard: Portguard, tmp_path: Path) -> None:
    secret = secret_file(tmp_path / "secret", "correct horse\n")
    portguard("ca", "init", "--trust-domain", DOMAIN, "--passphrase-file", secret)
    failed(portguard("invite", "alice", *GATEWAY), 2, "--passphrase-file: expected a file")
    assert portguard("invite", "alice", *GATEWAY, "--passphrase-file", secret).code == 0


def test_invitations_are_listed_shown_and_taken_back(made: Portguard) -> None:
    for name in ("alice", "bob", "carol"):
        made("invite", name, *GATEWAY)
    assert _kinds(made) == [("invitation", name, "open") for name in ("alice", "bob", "carol")]
    shown = made("cert", "show", "alice.invitation")
    assert "subject      O=portguard invitation\n" in shown.out
    assert "status       open\n" in shown.out
    assert "invites      alice\n" in shown.out
    assert "used for" not in shown.out
    assert "PRIVATE" not in shown.out
    done = made("cert", "revoke", "alice.invitation")
    assert "revoked      invitation alice, serial " in done.out
    assert made("cert", "revoke", made("cert", "list", "--json").json[1]["serial"]).code == 0
    assert "revoked      invitation carol, serial " in made("cert", "revoke", "--identity", "carol").out
    assert {status for *_, status in _kinds(made)} == {"revoked"}
    assert "issued         3 revoked\n" in made("ca", "show").out


def test_of_an_invitation_that_was_used_it_is_shown_for_what_and_of_other_certificates_nothing(made: Portguard) -> None:
    now = datetime.now(UTC)
    authority = Authority.open("ca")
    authority.unlock(None)
    issued = authority.invite("alice", at=now)
    invitation = x509.load_der_x509_certificate(issued.record.der)
    key = ec.generate_private_key(ec.SECP256R1()).public_key()
    signed = enroll(authority, invitation, key, "alice", at=now, valid_for=timedelta(days=1))
    shown = made("cert", "show", f"{issued.serial:x}")
    assert "status      used\n" in shown.out
    assert f"invites     alice\nused for    {signed.serial:x}\n" in shown.out
    other = made("cert", "show", f"{signed.serial:x}", "--json").json
    assert (other["invites"], other["used_for"]) == (None, None)
