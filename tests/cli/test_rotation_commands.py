"""`portguard ca rotate` and `ca revoke`, through the program's own entry point."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from portguard.pki.authority import Authority
from tests.cli.conftest import DOMAIN, Portguard, failed


@pytest.fixture
def made(portguard: Portguard, tmp_path: Path) -> Portguard:
    """With an authority of yesterday, `ca`, that issued to alice; and `two`, whose root's key is in `stick`."""
    at = datetime.now(UTC) - timedelta(days=1)
    Authority.create(tmp_path / "ca", trust_domain=DOMAIN, at=at)
    Authority.create(tmp_path / "two", trust_domain=DOMAIN, at=at, root_directory=tmp_path / "stick")
    portguard("cert", "issue", "alice")
    return portguard


def test_each_stage_is_told_with_what_comes_next(made: Portguard) -> None:
    before = made("ca", "show", "--json").json
    assert (before["rotation"], before["other_root"], before["retired"]) == (None, None, [])
    assert made("ca", "show").err == ""
    done = made("ca", "rotate")
    assert done.out.startswith("rotation   prepared\nissuing    CN=portguard root CA ")
    prepare_next = "portguard: take ca/ca.crt to every gateway and client, and ca/ca.crl to every gateway; then "
    assert done.err == f"{prepare_next}`portguard ca rotate --switch`\n" == made("ca", "show").err
    shown = made("ca", "show", "--json").json
    assert (shown["rotation"], shown["root"]) == ("prepared", before["root"])
    assert "\nother root certificate\n" in made("ca", "show").out
    assert made("ca", "show", "--pem").out.count("BEGIN CERTIFICATE") == 2

    done = made("ca", "rotate", "--switch")
    assert "1 certificate of the old root still to replace, or to end; then `portguard ca rotate --finish`" in done.err
    after = made("ca", "show", "--json").json
    assert (after["rotation"], after["root"], after["other_root"]) == ("switched", shown["other_root"], shown["root"])
    refused = made("ca", "rotate", "--finish")
    failed(refused, 1, "portguard: client alice, serial ", "is good until ", "ca/ca.crt: expected nothing that the old")
    made("cert", "revoke", "alice.crt")
    assert "nothing that the old root issued is good any more" in made("ca", "show").err
    done = made("ca", "rotate", "--finish", "--json")
    assert done.json["rotation"] is None
    assert done.json["issuing"] == after["root"]["subject"]
    assert done.err.endswith("; ca/ca.key is of no more use, destroy it\n")
    assert made("ca", "show").err == ""


def test_force_finishes_and_tells_what_is_no_longer_trusted(made: Portguard) -> None:
    made("ca", "rotate")
    made("ca", "rotate", "--switch")
    done = made("ca", "rotate", "--finish", "--force")
    assert done.code == 0
    assert "portguard: client alice, serial " in done.err


def test_what_was_prepared_can_be_taken_back(made: Portguard) -> None:
    before = made("ca", "show", "--pem").out
    made("ca", "rotate")
    done = made("ca", "rotate", "--abort")
    assert (done.code, made("ca", "show", "--pem").out) == (0, before)
    assert done.err == (
        "portguard: take ca/ca.crt to every gateway and client, and ca/ca.crl to every gateway, "
        "if the other ones went there\n"
    )


def test_with_the_root_elsewhere_a_new_issuing_ca_takes_over(made: Portguard) -> None:
    before = made("ca", "show", "--ca", "two", "--json").json
    done = made("ca", "rotate", "--ca", "two", "--root-dir", "stick", "--json")
    assert done.json["key"].startswith("two/issuing-")
    assert done.err == (
        "portguard: take two/ca.crl to every gateway that names it, before the first new certificate comes there\n"
    )
    after = made("ca", "show", "--ca", "two", "--json").json
    assert after["root"] == before["root"]
    assert after["retired"] == [before["issuing"]["subject"]]
    assert after["issuing"]["subject"] == done.json["issuing"] != before["issuing"]["subject"]


def test_after_a_compromise_it_is_told_what_is_of_no_more_use(made: Portguard) -> None:
    two = ["--ca", "two"]
    made("cert", "gateway", "gw.localhost", *two)
    made("invite", "bob", "--gateway", "gw.localhost:8443", *two)
    made("cert", "issue", "carol", *two)
    made("cert", "revoke", "--identity", "carol", *two)
    done = made("ca", "rotate", *two, "--root-dir", "stick", "--compromised")
    gateway, invitation, then = done.err.splitlines()
    assert re.fullmatch(
        r"portguard: gateway gw\.localhost, serial [0-9a-f]+, was good until now: issue it anew", gateway
    )
    assert re.fullmatch(r"portguard: invitation bob, serial [0-9a-f]+, was good until now: invite anew", invitation)
    assert then == "portguard: take two/ca.crl to every gateway at once, named in crl"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--ca", "two"], "--root-dir: expected the directory with the root's key, got none"),
        (["--root-dir", "stick"], "--root-dir: expected an authority whose root is kept elsewhere"),
        (["--switch", "--finish"], "--switch: expected not to be given beside --finish"),
        (["--switch", "--root-dir", "stick"], "--switch: expected not to be given beside --root-dir"),
        (["--force"], "--force: expected --finish beside it, got none"),
        (["--switch", "--force"], "--force: expected --finish beside it, got none"),
        (["--compromised"], "--compromised: expected --root-dir beside it, got none"),
        (["--root-passphrase-file", "x"], "--root-passphrase-file: expected --root-dir beside it, got none"),
        (["--key-type", "dsa"], "'dsa' is not one of"),
        (["--valid-for", "0s"], "expected "),
    ],
)
def test_called_wrongly_it_changes_nothing(made: Portguard, arguments: list[str], message: str) -> None:
    before = made("ca", "show").out
    failed(made("ca", "rotate", *arguments), 2, message)
    assert made("ca", "show").out == before


def test_passphrases_of_both_keys_come_from_files(portguard: Portguard, tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(f"{name} horse\n")
        (tmp_path / name).chmod(0o600)
    files = ["--passphrase-file", "one", "--root-passphrase-file", "two"]
    portguard("ca", "init", "--trust-domain", DOMAIN, "--root-dir", "stick", *files)
    failed(portguard("ca", "rotate", "--root-dir", "stick", *files[:2]), 1, "stick/root.key: expected the passphrase")
    done = portguard("ca", "rotate", "--root-dir", "stick", *files)
    assert done.code == 0
    assert "horse" not in done.out + done.err
    assert portguard("cert", "issue", "alice", "--passphrase-file", "one").code == 0


def test_a_locked_root_without_a_terminal_rotates_nothing(portguard: Portguard, tmp_path: Path) -> None:
    (tmp_path / "two").write_text("two horse\n")
    (tmp_path / "two").chmod(0o600)
    portguard("ca", "init", "--trust-domain", DOMAIN, "--root-dir", "stick", "--root-passphrase-file", "two")
    message = "--root-passphrase-file: expected a file, as there is no terminal to ask"
    failed(portguard("ca", "rotate", "--root-dir", "stick"), 2, message)
    assert portguard("ca", "show", "--json").json["retired"] == []


# ca revoke


def test_an_intermediate_that_was_replaced_is_revoked_by_its_name_or_file(made: Portguard) -> None:
    two = ["--ca", "two"]
    made("cert", "issue", "bob", *two)
    made("ca", "rotate", *two, "--root-dir", "stick")
    made("cert", "issue", "carol", *two)
    [name] = made("ca", "show", *two, "--json").json["retired"]
    digits = name.partition(",")[0].split()[-1]
    done = made("ca", "revoke", digits, *two, "--root-dir", "stick", "--json")
    told = done.json
    assert (told["revoked"], told["reason"], told["crl"], told["entries"]) == (name, "cACompromise", "two/ca.crl", 1)
    fallen, then = done.err.splitlines()
    assert fallen.startswith("portguard: client bob, serial ")
    assert fallen.endswith(", was good until now: issue it anew")
    assert then == "portguard: take two/ca.crl to every gateway at once, named in crl"
    assert made("ca", "show", *two, "--json").json["revoked_intermediates"] == [name]
    assert [row["status"] for row in made("cert", "list", *two, "--json").json] == ["revoked", "valid"]
    for same in (name, f"two/issuing-{digits}.crt"):
        again = made("ca", "revoke", same, *two, "--root-dir", "stick")
        assert (again.code, again.err) == (0, f"{then}\n")


def test_what_is_no_intermediate_that_was_replaced_is_not_revoked(made: Portguard, tmp_path: Path) -> None:
    before = (tmp_path / "two" / "ca.crl").read_bytes()
    made("cert", "issue", "bob", "--ca", "two")
    for what, found in {
        "two/issuing.crt": "got the one that issues; `portguard ca rotate --root-dir DIR --compromised` replaces and",
        "two/ca.crt": "got the root, which only a new authority replaces",
        "ca/ca.crt": "ca/ca.crt: expected a CA that ca.crt signed, got another one",
        "bob.crt": "bob.crt: expected a CA certificate of portguard, got the certificate of no CA",
        "00000000": "00000000: expected an intermediate of the authority in two, or its file, got neither",
    }.items():
        failed(made("ca", "revoke", what, "--ca", "two", "--root-dir", "stick"), 1, found)
    failed(made("ca", "revoke", "two/issuing.crt", "--ca", "two"), 2, "--root-dir")
    failed(
        made("cert", "revoke", "two/issuing.crt", "--ca", "two"),
        1,
        "got an intermediate, which `portguard ca revoke` takes",
    )
    assert (tmp_path / "two" / "ca.crl").read_bytes() == before
