"""`portguard ca` and `portguard cert`, through the program's own entry point."""

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

from tests.cli.conftest import Outcome, Portguard

DOMAIN = "bastion.example.com"


@pytest.fixture
def made(portguard: Portguard) -> Portguard:
    """The same, with an authority."""
    assert portguard("ca", "init", "--trust-domain", DOMAIN).code == 0
    return portguard


def _secret(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def _load(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificates(path.read_bytes())[0]


def _failed(outcome: Outcome, code: int, *fragments: str) -> None:
    """The command ended with `code`, one message that holds all `fragments`, and nothing on standard output."""
    assert outcome.code == code, outcome
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    for fragment in fragments:
        assert fragment in outcome.err


# ca init


def test_init_says_what_it_made(portguard: Portguard, tmp_path: Path) -> None:
    outcome = portguard("ca", "init", "--trust-domain", DOMAIN)
    assert outcome.code == 0
    assert outcome.err == ""
    assert "ca/ca.crt" in outcome.out
    assert "ca/ca.key" in outcome.out
    assert "ca/ca.crl" in outcome.out
    assert "root key" not in outcome.out
    assert stat.S_IMODE((tmp_path / "ca").stat().st_mode) == 0o700


def test_init_in_json(portguard: Portguard) -> None:
    outcome = portguard("ca", "init", "--ca", "other", "--trust-domain", DOMAIN, "--root-dir", "stick", "--json")
    assert outcome.json["trust_domain"] == DOMAIN
    assert outcome.json["ca"] == "other/ca.crt"
    assert outcome.json["key"] == "other/issuing.key"
    assert outcome.json["root_key"] == "stick/root.key"


def test_init_twice_is_an_error(made: Portguard, tmp_path: Path) -> None:
    before = (tmp_path / "ca" / "ca.key").read_bytes()
    _failed(made("ca", "init", "--trust-domain", DOMAIN), 1, "ca: expected no authority yet, got one that exists")
    assert (tmp_path / "ca" / "ca.key").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing option '--trust-domain'"),
        (["--trust-domain", "Bastion"], "trust domain: expected"),
        (["--trust-domain", DOMAIN, "--key-type", "dsa"], "'dsa' is not one of 'ec', 'rsa'"),
        (["--trust-domain", DOMAIN, "--root-dir", "ca"], "root directory: expected another one"),
        (["--trust-domain", DOMAIN, "--root-passphrase-file", "x"], "expected --root-dir beside it, got none"),
        (["--trust-domain", DOMAIN, "--passphrase-file", "gone"], "gone: expected a passphrase, got “No such file"),
        (["--trust-domain", "Bastion", "--encrypt-key"], "trust domain: expected"),
        (["--trust-domain", DOMAIN, "--encrypt-key"], "--passphrase-file: expected a file, as there is no terminal"),
        (["--trust-domain", DOMAIN, "--valid-for", "0s"], "validity: expected 1 second to"),
    ],
)
def test_init_called_wrongly_makes_nothing(
    portguard: Portguard, tmp_path: Path, arguments: list[str], message: str
) -> None:
    _failed(portguard("ca", "init", *arguments), 2, message)
    assert os.listdir(tmp_path) == []


def test_init_with_rsa_and_a_shorter_life(portguard: Portguard, tmp_path: Path) -> None:
    portguard("ca", "init", "--trust-domain", DOMAIN, "--key-type", "rsa", "--valid-for", "365d")
    shown = portguard("ca", "show", "--json").json
    assert shown["root"]["key"] == "RSA 3072"
    root = _load(tmp_path / "ca" / "ca.crt")
    assert root.not_valid_after_utc - root.not_valid_before_utc == timedelta(days=365, minutes=5)


def test_init_where_nothing_can_be_written(portguard: Portguard, tmp_path: Path) -> None:
    (tmp_path / "ca").write_text("mine")
    _failed(
        portguard("ca", "init", "--trust-domain", DOMAIN), 1, "ca: expected a directory, or room for one, got a file"
    )


def test_several_commands_that_make_one_authority(tmp_path: Path) -> None:
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", "from portguard.cli.main import main; main()",
             "ca", "init", "--ca", tmp_path / "ca", "--trust-domain", f"d{number}.example"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for number in range(3)
    ]  # fmt: skip
    said = [program.communicate(timeout=60) for program in programs]
    assert sorted(program.returncode for program in programs) == [0, 1, 1]
    assert sum("expected no " in err for _, err in said) == 2


# passphrases


def test_a_passphrase_from_a_file(portguard: Portguard, tmp_path: Path) -> None:
    secret = _secret(tmp_path / "secret", "correct horse\n")
    assert portguard("ca", "init", "--trust-domain", DOMAIN, "--passphrase-file", secret).code == 0
    assert b"ENCRYPTED" in (tmp_path / "ca" / "ca.key").read_bytes()
    outcome = portguard("cert", "issue", "alice", "--passphrase-file", secret)
    assert outcome.code == 0
    assert "correct horse" not in outcome.out + outcome.err
    assert portguard("ca", "show", "--json").json["key_encrypted"] is True


def test_the_end_of_the_line_is_no_part_of_it(portguard: Portguard, tmp_path: Path) -> None:
    unix, windows, bare = (
        _secret(tmp_path / name, text) for name, text in [("u", "horse\n"), ("w", "horse\r\n"), ("b", "horse")]
    )
    portguard("ca", "init", "--trust-domain", DOMAIN, "--passphrase-file", unix)
    for number, file in enumerate((windows, bare)):
        assert portguard("cert", "issue", f"c{number}", "--passphrase-file", file).code == 0


def test_a_wrong_passphrase_issues_nothing(portguard: Portguard, tmp_path: Path) -> None:
    portguard("ca", "init", "--trust-domain", DOMAIN, "--passphrase-file", _secret(tmp_path / "one", "correct"))
    wrong = _secret(tmp_path / "two", "incorrect")
    outcome = portguard("cert", "issue", "alice", "--passphrase-file", wrong)
    _failed(outcome, 1, "ca/ca.key: expected the passphrase of this key, got another one")
    assert "incorrect" not in outcome.err
    assert portguard("cert", "list", "--json").json == []
    assert not list(tmp_path.glob("alice*"))


def test_without_a_passphrase_and_a_terminal_nothing_is_issued(portguard: Portguard, tmp_path: Path) -> None:
    portguard("ca", "init", "--trust-domain", DOMAIN, "--passphrase-file", _secret(tmp_path / "one", "correct"))
    _failed(
        portguard("cert", "issue", "alice"), 2, "--passphrase-file: expected a file, as there is no terminal to ask"
    )


def test_a_passphrase_for_a_key_that_has_none(made: Portguard, tmp_path: Path) -> None:
    outcome = made("cert", "issue", "alice", "--passphrase-file", _secret(tmp_path / "one", "correct"))
    _failed(outcome, 1, "expected no passphrase, because the key is not encrypted, got one")


@pytest.mark.parametrize(("content", "found"), [("", "nothing"), ("\n", "nothing"), ("one\ntwo\n", "several")])
def test_a_passphrase_file_holds_one_line(portguard: Portguard, tmp_path: Path, content: str, found: str) -> None:
    outcome = portguard("ca", "init", "--trust-domain", DOMAIN, "--passphrase-file", _secret(tmp_path / "s", content))
    _failed(outcome, 2, f"s: expected one line with a passphrase, got {found}")


def test_a_passphrase_file_that_all_can_read_is_remarked_on(portguard: Portguard, tmp_path: Path) -> None:
    secret = _secret(tmp_path / "secret", "correct horse\n")
    secret.chmod(0o644)
    outcome = portguard("ca", "init", "--trust-domain", DOMAIN, "--passphrase-file", secret)
    assert outcome.code == 0
    assert outcome.err == f"portguard: warning: {secret}: expected a file that only its owner can read, got mode 0644\n"
    secret.chmod(0o640)
    assert portguard("cert", "issue", "alice", "--passphrase-file", secret).err == ""


def test_root_and_issuing_key_with_passphrases_of_their_own(portguard: Portguard, tmp_path: Path) -> None:
    outcome = portguard(
        "ca", "init", "--trust-domain", DOMAIN, "--root-dir", "stick",
        "--root-passphrase-file", _secret(tmp_path / "root-secret", "root horse"),
    )  # fmt: skip
    assert outcome.code == 0
    load_pem_private_key((tmp_path / "stick" / "root.key").read_bytes(), b"root horse")
    assert portguard("cert", "issue", "alice").code == 0


class Terminal:
    """A command that has a terminal, and what it wrote there so far."""

    # The command gets the pseudo-terminal as its controlling one: getpass opens /dev/tty.
    _BOOT = (
        "import fcntl, os, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
        "from portguard.cli.main import main; main()"
    )

    def __init__(self, *arguments: object):
        self._ours, theirs = os.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", self._BOOT, *map(str, arguments)], stdin=theirs, stdout=theirs, stderr=theirs
        )
        os.close(theirs)
        self.said = ""

    def answer(self, question: str, text: str) -> None:
        # getpass writes the last space after it has switched the echo off and thrown away what was typed before.
        seen = len(self.said)
        while not self.said[seen:].endswith(f"{question}: "):
            self._read()
        os.write(self._ours, text.encode() + b"\n")

    def end(self) -> int:
        try:
            while True:
                self._read()
        except OSError:  # EIO: the other side is closed
            os.close(self._ours)
            return self.process.wait(timeout=60)

    def _read(self) -> None:
        self.said += os.read(self._ours, 4096).decode()


def test_a_terminal_is_asked_twice_for_a_new_passphrase_and_once_for_an_old_one(tmp_path: Path) -> None:
    init = Terminal("ca", "init", "--ca", tmp_path / "ca", "--trust-domain", DOMAIN, "--encrypt-key")
    init.answer("Passphrase for the key", "correct horse")
    init.answer("Repeat for confirmation", "correct horse")
    assert init.end() == 0, init.said
    issue = Terminal("cert", "issue", "alice", "--ca", tmp_path / "ca", "--out", tmp_path, "--pkcs12")
    issue.answer(f"Passphrase of {tmp_path}/ca/ca.key", "correct horse")
    issue.answer("Passphrase for the .p12 file", "battery staple")
    issue.answer("Repeat for confirmation", "battery staple")
    assert issue.end() == 0, issue.said
    assert (tmp_path / "alice.p12").exists()
    assert "horse" not in init.said + issue.said
    assert "staple" not in issue.said


def test_a_terminal_that_answers_wrongly_gets_nothing(tmp_path: Path) -> None:
    init = Terminal("ca", "init", "--ca", tmp_path / "ca", "--trust-domain", DOMAIN, "--encrypt-key")
    init.answer("Passphrase for the key", "correct horse")
    init.answer("Repeat for confirmation", "correct house")
    init.answer("Passphrase for the key", "correct horse")
    init.answer("Repeat for confirmation", "correct horse")
    assert init.end() == 0, init.said
    issue = Terminal("cert", "issue", "alice", "--ca", tmp_path / "ca", "--out", tmp_path)
    issue.answer(f"Passphrase of {tmp_path}/ca/ca.key", "battery staple")
    assert issue.end() == 1
    assert "expected the passphrase of this key, got another one" in issue.said
    assert not list(tmp_path.glob("alice*"))


# ca show


def test_show_describes_root_issuing_ca_and_what_was_issued(portguard: Portguard) -> None:
    portguard("ca", "init", "--trust-domain", DOMAIN, "--root-dir", "stick")
    portguard("cert", "issue", "alice")
    text = portguard("ca", "show").out
    for fragment in (DOMAIN, "root certificate", "issuing certificate", "1 valid", "EC secp256r1"):
        assert fragment in text
    shown = portguard("ca", "show", "--json").json
    assert shown["trust_domain"] == DOMAIN
    assert shown["key_encrypted"] is False
    assert shown["issued"] == {"valid": 1}
    assert shown["issuing"]["issuer"] == shown["root"]["subject"] == shown["root"]["issuer"]
    assert shown["root"]["ca"] is True


def test_show_of_a_single_certificate(made: Portguard, tmp_path: Path) -> None:
    shown = made("ca", "show", "--json").json
    assert shown["issuing"] is None
    assert shown["issued"] == {}
    root = _load(tmp_path / "ca" / "ca.crt")
    assert shown["root"]["sha256"] == root.fingerprint(hashes.SHA256()).hex()
    assert made("ca", "show", "--pem").out == (tmp_path / "ca" / "ca.crt").read_text()
    both = made("ca", "show", "--pem", "--json")
    assert (both.code, both.out, both.err) == (2, "", "portguard: --pem: expected not to be given beside --json\n")
    text = made("ca", "show").out
    assert "none yet" in text
    assert "issuing certificate" not in text


def test_show_without_an_authority(portguard: Portguard) -> None:
    for command in (("ca", "show"), ("cert", "list"), ("cert", "issue", "alice"), ("cert", "show", "abc")):
        done = portguard(*command)
        _failed(done, 1, "ca/ca.crt: expected a CA certificate of portguard, got “No such file")
        assert "; `portguard ca init` makes an authority, --ca or $PORTGUARD_CA names another" in done.err


def test_the_hint_at_making_an_authority_is_not_for_one_that_is_damaged(made: Portguard, tmp_path: Path) -> None:
    (tmp_path / "ca" / "ca.crt").write_text("")
    done = made("ca", "show")
    _failed(done, 1, "ca/ca.crt: expected a CA certificate of portguard, got something else")
    assert "ca init" not in done.err


def test_the_authority_is_found_by_option_then_environment_then_custom(
    made: Portguard, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert made("ca", "show", "--ca", "ca").code == 0
    _failed(made("ca", "show", "--ca", "elsewhere"), 1, "elsewhere/ca.crt: expected")
    monkeypatch.setattr("portguard.cli.opened_authority.DEFAULT_AUTHORITY", "custom")
    for empty in (True, False):
        if empty:
            monkeypatch.setenv("PORTGUARD_CA", "")
        else:
            monkeypatch.delenv("PORTGUARD_CA")
        _failed(made("ca", "show"), 1, "custom/ca.crt: expected")


# cert issue


def test_issue_writes_certificate_and_key(made: Portguard, tmp_path: Path) -> None:
    outcome = made("cert", "issue", "alice", "--out", "out", "--json")
    assert outcome.code == 0
    assert outcome.err == ""
    certificate = _load(tmp_path / "out" / "alice.crt")
    key = load_pem_private_key((tmp_path / "out" / "alice.key").read_bytes(), None)
    assert key.public_key() == certificate.public_key()
    assert stat.S_IMODE((tmp_path / "out" / "alice.key").stat().st_mode) == 0o600
    assert outcome.json == {
        "identity": f"spiffe://{DOMAIN}/alice",
        "certificate": "out/alice.crt",
        "key": "out/alice.key",
        "ca": "ca/ca.crt",
        "not_after": certificate.not_valid_after_utc.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "serial": f"{certificate.serial_number:x}",
    }
    remaining = certificate.not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=29) < remaining <= timedelta(days=30)


def test_issue_says_what_it_made_and_shows_no_key(made: Portguard, tmp_path: Path) -> None:
    outcome = made("cert", "issue", "alice")
    assert f"identity     spiffe://{DOMAIN}/alice\n" in outcome.out
    assert "certificate  alice.crt\n" in outcome.out
    assert (tmp_path / "alice.key").read_text().splitlines()[1] not in outcome.out + outcome.err


def test_a_slash_in_a_name_is_a_plus_in_its_files(made: Portguard, tmp_path: Path) -> None:
    made("cert", "issue", "ci/deploy", "--out", "out")
    made("cert", "issue", "ci.deploy", "--out", "out")
    assert sorted(os.listdir(tmp_path / "out")) == ["ci+deploy.crt", "ci+deploy.key", "ci.deploy.crt", "ci.deploy.key"]


def test_issue_for_hours_and_with_another_key(made: Portguard, tmp_path: Path) -> None:
    made("cert", "issue", "alice", "--valid-for", "12h", "--key-type", "rsa")
    certificate = _load(tmp_path / "alice.crt")
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc == timedelta(hours=12, minutes=5)
    assert made("cert", "show", "alice.crt", "--json").json["key"] == "RSA 3072"


def test_issue_beyond_the_authority_is_shortened_and_said(made: Portguard, tmp_path: Path) -> None:
    outcome = made("cert", "issue", "alice", "--valid-for", "5000d")
    assert outcome.code == 0
    assert "valid for less than asked: the authority itself ends at" in outcome.err
    assert _load(tmp_path / "alice.crt").not_valid_after_utc == _load(tmp_path / "ca" / "ca.crt").not_valid_after_utc


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["../alice"], "client name: expected a SPIFFE path"),
        (["alice\x1b[31m"], r"got 'alice\x1b[31m'"),
        (["x" * 201], "client name: expected at most 200 characters, got 201"),
        (["alice", "--valid-for", "30"], "Invalid value for '--valid-for': expected a duration"),
        (["alice", "--valid-for", "0s"], "validity: expected 1 second to"),
        (["alice", "--valid-for", "0d"], "validity: expected 1 second to 36525 days, got 0s"),
        (["alice", "--valid-for", "20ms"], "validity: expected 1 second to 36525 days, got 20ms"),
        (["alice", "--pkcs12-passphrase-file", "x"], "expected --pkcs12 beside it, got none"),
        (["alice", "--pkcs12"], "--pkcs12-passphrase-file: expected a file, as there is no terminal"),
        ([], "Missing argument 'NAME'"),
    ],
)
def test_issue_called_wrongly_records_nothing(
    made: Portguard, tmp_path: Path, arguments: list[str], message: str
) -> None:
    _failed(made("cert", "issue", *arguments), 2, message)
    assert os.listdir(tmp_path) == ["ca"]
    assert made("cert", "list", "--json").json == []


@pytest.mark.parametrize("taken", ["alice.crt", "alice.key"])
def test_issue_overwrites_only_when_asked(made: Portguard, tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).write_text("mine")
    _failed(made("cert", "issue", "alice"), 1, f"{taken}: expected no file of this name, got one that exists")
    assert (tmp_path / taken).read_text() == "mine"
    assert made("cert", "list", "--json").json == []
    assert made("cert", "issue", "alice", "--force").code == 0
    assert (tmp_path / taken).read_text().startswith("-----BEGIN")


@pytest.mark.parametrize(("command", "stem"), [(["issue", "alice"], "alice"), (["gateway", "bastion"], "gateway")])
def test_a_file_that_appears_meanwhile_is_not_overwritten(
    made: Portguard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], stem: str
) -> None:
    (tmp_path / f"{stem}.key").write_text("mine")
    monkeypatch.setattr("portguard.pki.files.refuse_existing", lambda _paths: None)
    _failed(made("cert", *command), 1, f"{stem}.key: expected no file of this name, got one that exists")
    assert (tmp_path / f"{stem}.key").read_text() == "mine"


@pytest.mark.parametrize("command", [["issue", "alice"], ["gateway", "bastion"]])
def test_a_place_that_cannot_be_written_is_found_out_before_anything_is_recorded(
    made: Portguard, tmp_path: Path, command: list[str]
) -> None:
    (tmp_path / "out").write_text("mine")
    _failed(made("cert", *command, "--out", "out"), 1, "out: expected a directory, or room for one, got a file")
    assert made("cert", "list", "--json").json == []


def test_issue_with_a_damaged_store(made: Portguard, tmp_path: Path) -> None:
    (tmp_path / "ca" / "certificates.db").write_bytes(b"nonsense" * 100)
    _failed(made("cert", "issue", "alice"), 1, "certificates.db: expected the record of issued certificates, got")
    assert not list(tmp_path.glob("alice*"))


def test_issue_as_pkcs12(made: Portguard, tmp_path: Path, real_program: Callable[[str], str]) -> None:
    secret = _secret(tmp_path / "secret", "correct horse\n")
    outcome = made("cert", "issue", "alice", "--pkcs12", "--pkcs12-passphrase-file", secret, "--json")
    assert outcome.json["pkcs12"] == "alice.p12"
    assert sorted(path.name for path in tmp_path.glob("alice*")) == ["alice.p12"]
    openssl = [real_program("openssl"), "pkcs12", "-in", "alice.p12", "-nodes", "-passin"]
    read = subprocess.run([*openssl, f"file:{secret}"], check=True, capture_output=True, text=True)
    assert "subject=CN = alice" in read.stdout
    assert subprocess.run([*openssl, "pass:wrong"], check=False, capture_output=True).returncode != 0


def test_several_commands_that_issue_to_one_place(made: Portguard, tmp_path: Path) -> None:
    programs = [
        subprocess.Popen(
            [sys.executable, "-c", "from portguard.cli.main import main; main()", "cert", "issue", "alice"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(3)
    ]  # fmt: skip
    said = [program.communicate(timeout=60) for program in programs]
    assert sorted(program.returncode for program in programs) == [0, 1, 1]
    assert sum("expected no file of this name" in err for _, err in said) == 2
    certificate = _load(tmp_path / "alice.crt")
    key = load_pem_private_key((tmp_path / "alice.key").read_bytes(), None)
    assert key.public_key() == certificate.public_key()
    assert f"{certificate.serial_number:x}" in {row["serial"] for row in made("cert", "list", "--json").json}


# cert gateway


def test_gateway_writes_a_certificate_for_its_names(made: Portguard, tmp_path: Path) -> None:
    names = [DOMAIN, f"*.{DOMAIN}", "127.0.0.1", "::1"]
    outcome = made("cert", "gateway", *names, "--out", "tls", "--json")
    assert outcome.json["names"] == names
    shown = made("cert", "show", "tls/gateway.crt", "--json").json
    assert shown["names"] == [f"DNS:{DOMAIN}", f"DNS:*.{DOMAIN}", "IP:127.0.0.1", "IP:::1"]
    assert shown["usage"] == ["serverAuth"]
    assert stat.S_IMODE((tmp_path / "tls" / "gateway.key").stat().st_mode) == 0o600


@pytest.mark.parametrize("names", [[DOMAIN], ["127.0.0.1", DOMAIN.upper(), "orders.example.com"]])
def test_gateway_says_which_wildcard_services_need(made: Portguard, names: list[str]) -> None:
    outcome = made("cert", "gateway", *names)
    assert outcome.code == 0
    assert outcome.err == (
        f"portguard: services that clients name by SNI need *.{DOMAIN} too; "
        "those by CONNECT or on ports of their own do not\n"
    )


@pytest.mark.parametrize("names", [[DOMAIN, f"*.{DOMAIN}"], ["*.example.com"], ["127.0.0.1"], ["localhost"]])
def test_gateway_says_nothing_where_no_wildcard_is_missing(made: Portguard, names: list[str]) -> None:
    outcome = made("cert", "gateway", *names)
    assert (outcome.code, outcome.err) == (0, "")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "Missing argument 'NAME...'"),
        (["bad_name"], "gateway name: expected a DNS name"),
        (["*.localhost"], "gateway name: expected two labels or more after '*.'"),
    ],
)
def test_gateway_called_wrongly_writes_nothing(made: Portguard, tmp_path: Path, names: list[str], message: str) -> None:
    _failed(made("cert", "gateway", *names), 2, message)
    assert os.listdir(tmp_path) == ["ca"]


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
    }
    header, *rows = made("cert", "list").out.splitlines()
    assert header.split() == ["NAME", "KIND", "STATUS", "NOT", "BEFORE", "NOT", "AFTER", "SERIAL"]
    assert [row.split()[0] for row in rows] == ["ci/deploy", f"*.{DOMAIN}"]
    assert rows[0].endswith(client["serial"])


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
    _failed(made("cert", "list"), 1, "ca/certificates.db: expected the record of issued certificates, got no such file")


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
    _failed(made("cert", "show", last[0]), 1, message)
    _failed(made("cert", "show", last[1:]), 1, "got none")


def test_show_names_the_certificates_that_follow(portguard: Portguard) -> None:
    portguard("ca", "init", "--trust-domain", DOMAIN, "--root-dir", "stick")
    portguard("cert", "issue", "alice")
    (follower,) = portguard("cert", "show", "alice.crt", "--json").json["followed_by"]
    assert "issuing CA" in follower


def test_show_needs_no_authority_for_a_file(made: Portguard, tmp_path: Path) -> None:
    made("cert", "issue", "alice")
    shutil.rmtree(tmp_path / "ca")
    assert made("cert", "show", "alice.crt").code == 0
    _failed(made("cert", "show", "abc"), 1, "ca/ca.crt: expected")


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
    _failed(made("cert", "show", what), code, message)


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
        _failed(portguard("cert", "show", "x.der"), 2, f"x.der: expected a certificate {message}")
    else:
        assert portguard("cert", "show", "x.der", "--json").json["names"] == ["IP:1.2.3.4"]


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
