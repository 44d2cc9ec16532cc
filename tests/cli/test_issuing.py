"""`portguard cert issue` and `cert gateway`, through the program's own entry point."""

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.cli.conftest import DOMAIN, Portguard, certificate_in, failed, secret_file
from tests.patience import PATIENCE_S

# cert issue


def test_issue_writes_certificate_and_key(made: Portguard, tmp_path: Path) -> None:
    outcome = made("cert", "issue", "alice", "--out", "out", "--json")
    assert outcome.code == 0
    assert outcome.err == ""
    certificate = certificate_in(tmp_path / "out" / "alice.crt")
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
    certificate = certificate_in(tmp_path / "alice.crt")
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc == timedelta(hours=12, minutes=5)
    assert made("cert", "show", "alice.crt", "--json").json["key"] == "RSA 3072"


def test_issue_beyond_the_authority_is_shortened_and_said(made: Portguard, tmp_path: Path) -> None:
    outcome = made("cert", "issue", "alice", "--valid-for", "5000d")
    assert outcome.code == 0
    assert "valid for less than asked: the authority itself ends at" in outcome.err
    root = certificate_in(tmp_path / "ca" / "ca.crt")
    assert certificate_in(tmp_path / "alice.crt").not_valid_after_utc == root.not_valid_after_utc


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
    failed(made("cert", "issue", *arguments), 2, message)
    assert os.listdir(tmp_path) == ["ca"]
    assert made("cert", "list", "--json").json == []


@pytest.mark.parametrize("taken", ["alice.crt", "alice.key"])
def test_issue_overwrites_only_when_asked(made: Portguard, tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).write_text("mine")
    failed(made("cert", "issue", "alice"), 1, f"{taken}: expected no file of this name, got one that exists")
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
    failed(made("cert", *command), 1, f"{stem}.key: expected no file of this name, got one that exists")
    assert (tmp_path / f"{stem}.key").read_text() == "mine"


@pytest.mark.parametrize("command", [["issue", "alice"], ["gateway", "bastion"]])
def test_a_place_that_cannot_be_written_is_found_out_before_anything_is_recorded(
    made: Portguard, tmp_path: Path, command: list[str]
) -> None:
    (tmp_path / "out").write_text("mine")
    failed(made("cert", *command, "--out", "out"), 1, "out: expected a directory, or room for one, got a file")
    assert made("cert", "list", "--json").json == []


def test_issue_with_a_damaged_store(made: Portguard, tmp_path: Path) -> None:
    (tmp_path / "ca" / "certificates.db").write_bytes(b"nonsense" * 100)
    failed(made("cert", "issue", "alice"), 1, "certificates.db: expected the record of issued certificates, got")
    assert not list(tmp_path.glob("alice*"))


def test_issue_as_pkcs12(made: Portguard, tmp_path: Path, real_program: Callable[[str], str]) -> None:
    secret = secret_file(tmp_path / "secret", "correct horse\n")
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
    said = [program.communicate(timeout=PATIENCE_S) for program in programs]
    assert sorted(program.returncode for program in programs) == [0, 1, 1]
    assert sum("expected no file of this name" in err for _, err in said) == 2
    certificate = certificate_in(tmp_path / "alice.crt")
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
    failed(made("cert", "gateway", *names), 2, message)
    assert os.listdir(tmp_path) == ["ca"]
