"""`portguard cert revoke` and `portguard ca crl`, through the program's own entry point."""

import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from portguard.pki.authority import Authority
from tests.cli.conftest import DOMAIN, Portguard, failed


@pytest.fixture
def made(portguard: Portguard) -> Portguard:
    """The same, with an authority that has issued to alice, twice, and to bob."""
    portguard("ca", "init", "--trust-domain", DOMAIN)
    for name, out in (("alice", "."), ("alice", "second"), ("bob", ".")):
        assert portguard("cert", "issue", name, "--out", out).code == 0
    return portguard


def _serials(portguard: Portguard) -> list[str]:
    return [row["serial"] for row in portguard("cert", "list", "--json").json]


def _statuses(portguard: Portguard) -> list[str]:
    return [row["status"] for row in portguard("cert", "list", "--json").json]


def _listed(path: Path) -> set[str]:
    return {f"{entry.serial_number:x}" for entry in x509.load_pem_x509_crl(path.read_bytes())}


# cert revoke

TAKE_IT = "portguard: gateways refuse what was revoked once they have ca/ca.crl\n"


def test_a_certificate_is_revoked_by_its_file(made: Portguard, tmp_path: Path) -> None:
    serial, *_ = _serials(made)
    done = made("cert", "revoke", "alice.crt", "--reason", "keyCompromise")
    assert done.code == 0
    assert (
        f"revoked      client alice, serial {serial}\nreason       keyCompromise\ncrl          ca/ca.crl\n" in done.out
    )
    assert "number       2\nentries      1\n" in done.out
    assert _statuses(made) == ["revoked", "valid", "valid"]
    assert _listed(tmp_path / "ca" / "ca.crl") == {serial}


def test_a_certificate_is_revoked_by_its_serial_or_the_beginning_of_it(made: Portguard) -> None:
    first, second, _ = _serials(made)
    assert made("cert", "revoke", first.upper()).code == 0
    assert made("cert", "revoke", f"0x{second[:20]}").code == 0
    assert _statuses(made) == ["revoked", "revoked", "valid"]


def test_who_revokes_one_is_told_of_others_that_the_client_could_go_on_with(made: Portguard) -> None:
    """Whoever has found a key may have renewed its certificate."""
    told = "portguard: client alice has 1 other certificate that is good; --identity alice revokes all\n"
    first, second, bob = _serials(made)
    assert made("cert", "revoke", first).err == told + TAKE_IT
    assert made("cert", "revoke", first, bob).err == told + TAKE_IT  # again, and nobody else of whom to tell
    assert made("cert", "revoke", first).err == told  # the list has nothing new
    assert made("cert", "revoke", second).err == TAKE_IT
    assert made("cert", "issue", "alice", "--out", "third").code == 0
    assert made("cert", "revoke", second).err == told
    assert made("cert", "revoke", "--identity", "alice").err == TAKE_IT


def test_who_revokes_one_is_told_of_invitations_too_and_takes_them_back_by_name(made: Portguard) -> None:
    for _ in range(2):
        Authority.open("ca").invite("bob", at=datetime.now(UTC))
    *_, bob, first, second = _serials(made)
    told = "portguard: client bob has 2 open invitations that are good; --identity bob revokes all\n"
    assert made("cert", "revoke", bob).err == told + TAKE_IT
    one = made("cert", "revoke", first)
    assert one.err == "portguard: client bob has 1 open invitation that is good; --identity bob revokes all\n"
    assert made("cert", "issue", "bob", "--out", "again").code == 0
    both = "1 other certificate and 1 open invitation"
    told = f"portguard: client bob has {both} that are good; --identity bob revokes all\n"
    assert made("cert", "revoke", first).err == told
    done = made("cert", "revoke", "--identity", "bob")
    assert f"revoked      invitation bob, serial {second}\n             client bob, serial " in done.out
    assert done.err == TAKE_IT
    assert set(_statuses(made)[2:]) == {"revoked"}


def test_all_certificates_of_an_identity_are_revoked(made: Portguard) -> None:
    done = made("cert", "revoke", "--identity", "alice", "--reason", "affiliation-changed", "--json")
    assert [(row["name"], row["status"], row["reason"]) for row in done.json["revoked"]] == [
        ("alice", "revoked", "affiliationChanged")
    ] * 2
    assert done.json["revoked_before"] == []
    assert set(done.json["crl"]) == {"file", "number", "entries", "next_update"}
    assert (done.json["crl"]["file"], done.json["crl"]["entries"]) == ("ca/ca.crl", 2)
    assert _statuses(made) == ["revoked", "revoked", "valid"]
    again = made("cert", "revoke", "--identity", "alice")
    assert again.code == 0
    assert "revoked      nothing that was not revoked or expired before\n" in again.out


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("keyCompromise", "keyCompromise"),
        ("KEYCOMPROMISE", "keyCompromise"),
        ("key-compromise", "keyCompromise"),
        ("affiliationChanged", "affiliationChanged"),
        ("superseded", "superseded"),
        ("Cessation-Of-Operation", "cessationOfOperation"),
        ("privilegewithdrawn", "privilegeWithdrawn"),
        ("unspecified", "unspecified"),
    ],
)
def test_reasons_are_written_as_openssl_writes_them_or_with_hyphens(made: Portguard, written: str, reason: str) -> None:
    assert made("cert", "revoke", "bob.crt", "--reason", written, "--json").json["revoked"][0]["reason"] == reason


@pytest.mark.parametrize("written", ["", "stolen", "certificateHold", "CACompromise", "key compromise"])
def test_other_reasons_revoke_nothing(made: Portguard, written: str) -> None:
    failed(made("cert", "revoke", "bob.crt", "--reason", written), 2, "expected unspecified, keyCompromise, ")
    assert _statuses(made) == ["valid"] * 3


def test_what_is_revoked_already_is_told_with_its_time_and_is_no_error(made: Portguard) -> None:
    made("cert", "revoke", "alice.crt", "--reason", "superseded")
    since = made("cert", "list", "--json").json[0]["revoked_at"]
    for more in ([], ["--reason", "superseded"]):
        done = made("cert", "revoke", "alice.crt", *more)
        assert done.code == 0
        assert f"since {since}, superseded\n" in done.out
    assert made("cert", "revoke", "alice.crt", "--json").json["revoked_before"][0]["revoked_at"] == since


def test_another_reason_for_what_is_revoked_is_told_and_changes_nothing(made: Portguard) -> None:
    made("cert", "revoke", "alice.crt", "--reason", "superseded")
    before = made("cert", "list").out
    done = made("cert", "revoke", "alice.crt", "bob.crt", "--reason", "keyCompromise")
    failed(done, 1, "or for the reason keyCompromise, got one revoked since ", "for the reason superseded, which stays")
    assert made("cert", "list").out == before


@pytest.mark.parametrize(
    ("wrong", "code", "message"),
    [
        (
            "foreign/alice.crt",
            1,
            "foreign/alice.crt: expected a certificate that the authority in ca issued, got another",
        ),
        ("abc", 1, "serial abc: expected a certificate that the authority in ca issued, got none"),
        ("carol", 2, "FILE|SERIAL: expected a file or a serial number in hex, got 'carol'; all that"),
        ("ca/ca.crt", 1, "ca/ca.crt: expected a certificate that the authority in ca issued, got another one"),
        ("ca/ca.key", 2, "ca/ca.key: expected a certificate in PEM or DER, got a private key"),
        ("--identity=carol", 1, "identity carol: expected a client to whom the authority in ca issued"),
        ("--identity=\x1b[2J", 1, "identity \\x1b[2J: expected a client"),
    ],
)
def test_when_one_of_several_is_wrong_none_is_revoked(made: Portguard, wrong: str, code: int, message: str) -> None:
    made("ca", "init", "--ca", "other", "--trust-domain", DOMAIN)
    made("cert", "issue", "alice", "--ca", "other", "--out", "foreign")
    failed(made("cert", "revoke", "alice.crt", wrong), code, message)
    assert _statuses(made) == ["valid"] * 3
    assert made("ca", "show", "--json").json["crl"]["number"] == 1


def test_a_certificate_with_the_serial_of_another_is_not_taken_for_it(made: Portguard, tmp_path: Path) -> None:
    made("ca", "init", "--ca", "other", "--trust-domain", DOMAIN)
    made("cert", "issue", "mallory", "--ca", "other", "--out", "foreign")
    serial = made("cert", "show", "foreign/mallory.crt", "--json").json["serial"]
    connection = sqlite3.connect(tmp_path / "ca" / "certificates.db")
    connection.execute("UPDATE certificates SET serial = ? WHERE name = 'bob'", (serial,))
    connection.commit()
    connection.close()
    failed(made("cert", "revoke", "foreign/mallory.crt"), 1, "got another one")
    assert _statuses(made) == ["valid"] * 3
    made("cert", "revoke", serial)
    assert _statuses(made) == ["valid", "valid", "revoked"]
    assert made("cert", "show", "foreign/mallory.crt", "--json").json["status"] == "valid"


def test_nothing_to_revoke_is_told(made: Portguard) -> None:
    failed(made("cert", "revoke"), 2, "FILE|SERIAL: expected a certificate, or --identity, got none")


def test_an_encrypted_key_takes_its_passphrase_and_a_wrong_one_revokes_nothing(
    portguard: Portguard, tmp_path: Path
) -> None:
    for name, text in (("right", "correct horse\n"), ("wrong", "battery staple\n")):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    portguard("ca", "init", "--trust-domain", DOMAIN, "--passphrase-file", "right")
    portguard("cert", "issue", "alice", "--passphrase-file", "right")
    for command in (("cert", "revoke", "alice.crt"), ("ca", "crl")):
        failed(portguard(*command, "--passphrase-file", "wrong"), 1, "expected the passphrase of this key")
        failed(portguard(*command), 2, "--passphrase-file: expected a file, as there is no terminal")
    assert _statuses(portguard) == ["valid"]
    assert portguard("cert", "revoke", "alice.crt", "--passphrase-file", "right").code == 0
    assert portguard("ca", "crl", "--passphrase-file", "right").code == 0
    assert _statuses(portguard) == ["revoked"]


def test_a_chain_in_a_file_stands_for_its_first_certificate(portguard: Portguard) -> None:
    portguard("ca", "init", "--trust-domain", DOMAIN, "--root-dir", "stick")
    portguard("cert", "issue", "alice")
    assert portguard("cert", "revoke", "alice.crt").code == 0
    assert _statuses(portguard) == ["revoked"]


# ca crl


def test_a_new_list_is_told_with_its_number_and_end(made: Portguard, tmp_path: Path) -> None:
    made("cert", "revoke", "bob.crt")
    before = datetime.now(UTC).replace(microsecond=0)
    done = made("ca", "crl", "--valid-for", "7d", "--json")
    assert set(done.json) == {"crl", "copy", "number", "entries", "next_update"}
    assert (done.json["crl"], done.json["copy"]) == ("ca/ca.crl", None)
    assert (done.json["number"], done.json["entries"]) == (3, 1)
    crl = x509.load_pem_x509_crl((tmp_path / "ca" / "ca.crl").read_bytes())
    assert before <= crl.next_update_utc - timedelta(days=7) <= datetime.now(UTC)
    assert done.json["next_update"] == f"{crl.next_update_utc:%Y-%m-%dT%H:%M:%SZ}"
    text = made("ca", "crl").out
    assert text.startswith("crl          ca/ca.crl\nnumber       4\nentries      1\nnext update  ")


def test_a_list_goes_to_another_file_too_and_replaces_it(made: Portguard, tmp_path: Path) -> None:
    (tmp_path / "copy.crl").write_text("old")
    done = made("ca", "crl", "--out", "copy.crl")
    assert "copy         copy.crl\n" in done.out
    assert (tmp_path / "copy.crl").read_bytes() == (tmp_path / "ca" / "ca.crl").read_bytes()
    failed(made("ca", "crl", "--out", "gone/copy.crl"), 1, "gone/copy.crl: expected a place that can be written")


@pytest.mark.parametrize("wrong", ["soon", "0s", "-1d"])
def test_a_length_that_cannot_be_is_told(made: Portguard, wrong: str) -> None:
    failed(made("ca", "crl", f"--valid-for={wrong}"), 2, "expected ")
    assert made("ca", "show", "--json").json["crl"]["number"] == 1


# what is shown of it


def test_list_and_show_tell_when_and_why(made: Portguard) -> None:
    header, *rows = made("cert", "list").out.splitlines()
    assert "REVOKED" not in header
    made("cert", "revoke", "alice.crt", "--reason", "keyCompromise")
    serial, *_ = _serials(made)
    header, *rows = made("cert", "list").out.splitlines()
    assert header.split()[-3:] == ["REVOKED", "AT", "REASON"]
    assert rows[0].split()[2] == "revoked"
    assert rows[0].endswith("  keyCompromise")
    assert rows[1].split()[2] == "valid"
    for what in ("alice.crt", serial):
        shown = made("cert", "show", what, "--json").json
        assert (shown["status"], shown["reason"]) == ("revoked", "keyCompromise")
        assert shown["revoked_at"].endswith("Z")
        assert "status      revoked\n" in made("cert", "show", what).out
        assert "reason      keyCompromise\n" in made("cert", "show", what).out
    other = made("cert", "show", "bob.crt", "--json").json
    assert (other["status"], other["revoked_at"], other["reason"]) == ("valid", None, None)
    assert "revoked" not in made("cert", "show", "bob.crt").out


def test_a_file_is_shown_without_the_record_where_that_is_not_for_ones_eyes(
    made: Portguard, monkeypatch: pytest.MonkeyPatch
) -> None:
    made("cert", "revoke", "alice.crt")
    monkeypatch.setenv("PORTGUARD_CA", "elsewhere")
    assert made("cert", "show", "alice.crt", "--json").json["status"] == "valid"


def test_a_record_that_is_damaged_is_told(made: Portguard, tmp_path: Path) -> None:
    (tmp_path / "ca" / "certificates.db").write_text("damaged")
    failed(made("cert", "show", "alice.crt"), 1, "ca/certificates.db: expected the record")


def test_ca_show_tells_of_the_list_and_warns_when_it_is_behind(made: Portguard, tmp_path: Path) -> None:
    list_path = tmp_path / "ca" / "ca.crl"
    before = list_path.read_bytes()
    made("cert", "revoke", "alice.crt")
    shown = made("ca", "show")
    assert shown.err == ""
    assert "issued         1 revoked, 2 valid\n" in shown.out
    assert "crl            ca/ca.crl, number 2, 1 revoked, next update " in shown.out
    assert made("ca", "show", "--json").json["crl"]["status"] == "current"
    list_path.write_bytes(before)
    shown = made("ca", "show")
    assert "crl            ca/ca.crl, behind, number 1, 0 revoked, next update " in shown.out
    message = "behind the record, something that was revoked is not in it; `portguard ca crl` writes it"
    assert shown.err == f"portguard: ca/ca.crl: {message}\n"
    assert made("ca", "show", "--json").json["crl"]["status"] == "behind"
    list_path.unlink()
    assert "ca/ca.crl: missing; `portguard ca crl` writes it" in made("ca", "show").err
    assert made("ca", "show", "--json").json["crl"] == {
        "file": "ca/ca.crl", "status": "missing", "number": None, "entries": None, "next_update": None
    }  # fmt: skip
    made("ca", "crl")
    assert made("ca", "show").err == ""


def test_ca_show_warns_of_a_list_that_is_out_of_date(portguard: Portguard, tmp_path: Path) -> None:
    Authority.create(tmp_path / "ca", trust_domain=DOMAIN, at=datetime.now(UTC) - timedelta(days=31))
    shown = portguard("ca", "show")
    assert "crl            ca/ca.crl, out of date, number 1, 0 revoked" in shown.out
    assert "ca/ca.crl: out of date, and gateways that have it refuse everybody; `portguard ca crl`" in shown.err
    portguard("ca", "crl")
    assert portguard("ca", "show").err == ""
