"""`portguard cert list` and `cert show`, through the program's own entry point."""

import base64
import shutil
import sqlite3
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from tests.cli.conftest import DOMAIN, Portguard, failed

# cert list


def test_list_in_json_and_as_a_table(made: Portguard) -> None:
    made("cert", "issue", "ci/deploy")
    made("cert", "gateway", f"*.{DOMAIN}")
    client, gateway = made("cert", "list", "--json").json
    assert (client["kind"], client["name"], client["status"]) == ("client", "ci/deploy", "valid")
    assert (gateway["kind"], gateway["name"]) == ("gateway", f"*.{DOMAIN}")
    assert set(client) == {
        "serial",
        "kind",
        "name",
        "not_before",
        "not_after",
        "issued_at",
        "status",
        "revoked_at",
        "reason",
        "revoked_issuer",
        "used_for",
    }
    header, *rows = made("cert", "list").out.splitlines()
    assert header.split() == ["NAME", "KIND", "STATUS", "NOT", "BEFORE", "NOT", "AFTER", "SERIAL"]
    assert [row.split()[0] for row in rows] == ["ci/deploy", f"*.{DOMAIN}"]
    assert rows[0].endswith(client["serial"])


def test_what_an_intermediate_issued_is_revoked_with_it(portguard: Portguard) -> None:
    portguard("ca", "init", "--trust-domain", DOMAIN, "--root-dir", "stick")
    for name in ("alice", "bob", "carol"):
        portguard("cert", "issue", name)
    portguard("cert", "revoke", "carol.crt", "--reason", "superseded")
    old = portguard("ca", "show", "--json").json["issuing"]["subject"]
    portguard("ca", "rotate", "--root-dir", "stick")
    assert portguard("ca", "show", "--json").json["issued"] == {"revoked": 1, "valid": 2}
    assert "REVOKED ISSUER" not in portguard("cert", "list").out
    issuing = portguard("ca", "show", "--json").json["issuing"]["subject"]
    portguard("cert", "issue", "alice", "--force")
    portguard("ca", "rotate", "--root-dir", "stick", "--compromised")
    portguard("cert", "issue", "alice", "--force")

    told = [(row["status"], row["reason"], row["revoked_issuer"]) for row in portguard("cert", "list", "--json").json]
    by_issuer = ("revoked", "cACompromise", issuing)
    assert told == [
        ("valid", None, None),
        ("valid", None, None),
        ("revoked", "superseded", None),
        by_issuer,
        ("valid", None, None),
    ]
    header, *rows = portguard("cert", "list").out.splitlines()
    assert header.endswith("REVOKED AT            REASON        REVOKED ISSUER")
    assert rows[3].endswith(f"Z  cACompromise  {issuing}")
    serial = portguard("cert", "list", "--json").json[3]["serial"]
    shown = portguard("cert", "show", serial, "--json").json
    assert (shown["status"], shown["reason"], shown["revoked_issuer"]) == by_issuer
    assert portguard("cert", "show", "bob.crt", "--json").json["status"] == "valid"
    assert portguard("ca", "show", "--json").json["issued"] == {"revoked": 2, "valid": 3}
    assert old != issuing
    # What is revoked with its issuer is nothing that its client could still use.
    assert "has 1 other certificate that is good" in portguard("cert", "revoke", "alice.crt").err


def test_a_list_of_the_root_that_cannot_be_read_is_an_error(portguard: Portguard, tmp_path: Path) -> None:
    portguard("ca", "init", "--trust-domain", DOMAIN, "--root-dir", "stick")
    portguard("cert", "issue", "alice")
    (tmp_path / "ca" / "root.crl").write_text("nonsense")
    failed(
        portguard("cert", "list"), 1, "ca/root.crl: expected the revocation list that the root signed, got something"
    )
    (tmp_path / "ca" / "root.crl").unlink()  # as of an authority of before there were lists
    assert portguard("cert", "list", "--json").json[0]["status"] == "valid"


def test_list_of_none(made: Portguard) -> None:
    assert made("cert", "list", "--json").json == []
    assert len(made("cert", "list").out.splitlines()) == 1


def test_list_escapes_what_stands_in_a_tampered_store(made: Portguard, tmp_path: Path) -> None:
    made("cert", "issue", "alice")
    connection = sqlite3.connect(tmp_path / "ca" / "certificates.db")
    connection.execute("UPDATE certificates SET name = ?", ("alice\x1b[2J\u202e",))
    connection.commit()
    connection.close()
    assert "alice\\x1b[2J\\u202e" in made("cert", "list").out
    assert "\x1b" not in made("cert", "list", "--json").out


def test_list_with_a_missing_store(made: Portguard, tmp_path: Path) -> None:
    (tmp_path / "ca" / "certificates.db").unlink()
    failed(made("cert", "list"), 1, "ca/certificates.db: expected the record of issued certificates, got no such file")


# cert show


def test_show_by_file_and_by_serial(made: Portguard, tmp_path: Path) -> None:
    serial = made("cert", "issue", "alice", "--json").json["serial"]
    by_file = made("cert", "show", "alice.crt", "--json").json
    assert by_file["serial"] == serial
    assert by_file["names"] == [f"URI:spiffe://{DOMAIN}/alice"]
    assert by_file["usage"] == ["clientAuth"]
    assert by_file["status"] == "valid"
    assert by_file.pop("followed_by") == []
    colons = ":".join(f"{int(serial, 16):040X}"[start : start + 2] for start in range(0, 40, 2))
    for written in (serial, serial.upper(), f"0x{serial}", colons):
        assert made("cert", "show", written, "--json").json == by_file
    assert made("cert", "show", serial, "--pem").out == (tmp_path / "alice.crt").read_text()
    assert "--pem: expected not to be given beside --json" in made("cert", "show", serial, "--pem", "--json").err
    assert "subject     CN=alice\n" in made("cert", "show", serial).out


def test_show_takes_the_beginning_of_a_serial_that_no_other_has(made: Portguard) -> None:
    serials: list[str] = []
    while len({serial[0] for serial in serials}) == len(serials):  # until two of them begin alike
        serials.append(made("cert", "issue", f"client-{len(serials)}", "--json").json["serial"])
    last = serials[-1]
    [twin] = [serial for serial in serials[:-1] if serial[0] == last[0]]
    differ = next(index for index in range(40) if last[index] != twin[index])
    beginning = last[: differ + 2]  # three digits at least: there is a folder that is called "ca"
    for written in (beginning, beginning.upper(), f"0x{beginning}"):
        assert made("cert", "show", written, "--json").json["serial"] == last
    message = f"serial {last[0]}: expected a certificate that the authority in ca issued, got 2 that begin so"
    failed(made("cert", "show", last[0]), 1, message)
    failed(made("cert", "show", last[1:]), 1, "got none")


def test_show_names_the_certificates_that_follow(portguard: Portguard) -> None:
    portguard("ca", "init", "--trust-domain", DOMAIN, "--root-dir", "stick")
    portguard("cert", "issue", "alice")
    (follower,) = portguard("cert", "show", "alice.crt", "--json").json["followed_by"]
    assert "issuing CA" in follower


def test_show_needs_no_authority_for_a_file(made: Portguard, tmp_path: Path) -> None:
    made("cert", "issue", "alice")
    shutil.rmtree(tmp_path / "ca")
    assert made("cert", "show", "alice.crt").code == 0
    failed(made("cert", "show", "abc"), 1, "ca/ca.crt: expected")


@pytest.mark.parametrize(
    ("what", "code", "message"),
    [
        ("abc", 1, "serial abc: expected a certificate that the authority in ca issued, got none"),
        ("alice", 2, "FILE|SERIAL: expected a file or a serial number in hex, got 'alice'"),
        ("", 2, "FILE|SERIAL: expected a file"),
        ("x" * 300, 2, "FILE|SERIAL: expected a file"),
        ("ca", 2, "ca: expected a certificate, got “Is a directory”"),
        ("ca/ca.key", 2, "ca/ca.key: expected a certificate in PEM or DER, got a private key"),
        ("ca/certificates.db", 2, "expected a certificate in PEM or DER, got something else"),
    ],
)
def test_show_of_what_is_no_certificate(made: Portguard, what: str, code: int, message: str) -> None:
    failed(made("cert", "show", what), code, message)


def _foreign(*names: x509.GeneralName, subject: str = "mallory", days: int = 1) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, subject)])
    now = datetime.now(UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now - timedelta(days=9))
    builder = builder.not_valid_after(now + timedelta(days=days))
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256())


def test_show_of_a_foreign_certificate_escapes_it(portguard: Portguard, tmp_path: Path) -> None:
    other = x509.OtherName(x509.ObjectIdentifier("1.3.6.1.4.1.311.20.2.3"), b"\x0c\x05alice")
    directory = x509.DirectoryName(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "d")]))
    names = [x509.RFC822Name("a@example.com"), x509.UniformResourceIdentifier("https://x\x1b[2J"), other, directory]
    certificate = _foreign(*names, subject="mallory\x1b]0;owned\x07\u202e", days=-1)
    (tmp_path / "foreign.der").write_bytes(certificate.public_bytes(Encoding.DER))
    text = portguard("cert", "show", "foreign.der").out
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "expired" in text
    shown = portguard("cert", "show", "foreign.der", "--json")
    assert "\x1b" not in shown.out
    assert shown.json["names"] == [
        "email:a@example.com",
        "URI:https://x\x1b[2J",
        "other 1.3.6.1.4.1.311.20.2.3:0c05616c696365",
        "directory:CN=d",
    ]
    assert shown.json["usage"] == []


@pytest.mark.parametrize(
    ("part", "broken", "message"),
    [
        ("3006870401020304", "3006870301020304", "by RFC 5280, got a malformed one"),
        ("0603551d11", "0603551d11", ""),
        ("0603551d0e", "0603551d11", "by RFC 5280, got a malformed one (Duplicate"),
        ("a003020102", "a003020107", "in PEM or DER, got something else"),
    ],
)
def test_show_of_a_malformed_certificate(
    portguard: Portguard, tmp_path: Path, part: str, broken: str, message: str
) -> None:
    der = _foreign(x509.IPAddress(ip_address("1.2.3.4"))).public_bytes(Encoding.DER)
    assert der.count(bytes.fromhex(part)) == 1
    (tmp_path / "x.der").write_bytes(der.replace(bytes.fromhex(part), bytes.fromhex(broken)))
    if message:
        failed(portguard("cert", "show", "x.der"), 2, f"x.der: expected a certificate {message}")
    else:
        assert portguard("cert", "show", "x.der", "--json").json["names"] == ["IP:1.2.3.4"]


def test_show_of_one_that_a_malformed_certificate_follows(portguard: Portguard, tmp_path: Path) -> None:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mallory")]).public_bytes()
    good = _foreign()
    der = good.public_bytes(Encoding.DER).replace(name, name.replace(b"\x0c\x07", b"\x01\x07"))
    with pytest.raises(ValueError, match="subject"):
        x509.load_der_x509_certificate(der).subject.rfc4514_string()
    pem = f"-----BEGIN CERTIFICATE-----\n{base64.encodebytes(der).decode()}-----END CERTIFICATE-----\n"
    (tmp_path / "x.pem").write_text(good.public_bytes(Encoding.PEM).decode() + pem)
    failed(portguard("cert", "show", "x.pem"), 2, "x.pem: expected a certificate by RFC 5280, got a malformed one")


@pytest.mark.parametrize(
    ("part", "other", "field", "shown"),
    [
        ("020101", "020185", "serial", "-7b"),
        ("2a8648ce3d030107", "2a8648ce3d030109", "key", "unknown, 1.2.840.10045.2.1"),
    ],
)
def test_show_of_an_odd_certificate_shows_what_it_can(
    portguard: Portguard, tmp_path: Path, part: str, other: str, field: str, shown: str
) -> None:
    der = _foreign().public_bytes(Encoding.DER)
    (tmp_path / "odd.der").write_bytes(der.replace(bytes.fromhex(part), bytes.fromhex(other), 1))
    outcome = portguard("cert", "show", "odd.der", "--json")
    assert outcome.json[field] == shown
    assert outcome.err == ""
