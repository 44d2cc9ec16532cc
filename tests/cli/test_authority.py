"""`portguard ca`, and passphrases of an authority, through the program's own entry point."""

import os
import stat
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.cli.conftest import DOMAIN, Portguard, certificate_in, failed, secret_file
from tests.patience import PATIENCE_S

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
    failed(made("ca", "init", "--trust-domain", DOMAIN), 1, "ca: expected no authority yet, got one that exists")
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
    failed(portguard("ca", "init", *arguments), 2, message)
    assert os.listdir(tmp_path) == []


def test_init_with_rsa_and_a_shorter_life(portguard: Portguard, tmp_path: Path) -> None:
    portguard("ca", "init", "--trust-domain", DOMAIN, "--key-type", "rsa", "--valid-for", "365d")
    shown = portguard("ca", "show", "--json").json
    assert shown["root"]["key"] == "RSA 3072"
    root = certificate_in(tmp_path / "ca" / "ca.crt")
    assert root.not_valid_after_utc - root.not_valid_before_utc == timedelta(days=365, minutes=5)


def test_init_where_nothing_can_be_written(portguard: Portguard, tmp_path: Path) -> None:
    (tmp_path / "ca").write_text("mine")
    failed(
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
    said = [program.communicate(timeout=PATIENCE_S) for program in programs]
    assert sorted(program.returncode for program in programs) == [0, 1, 1]
    assert sum("expected no " in err for _, err in said) == 2


# passphrases


def test_a_passphrase_from_a_file(portguard: Portguard, tmp_path: Path) -> None:
    secret = secret_file(tmp_path / "secret", "correct horse\n")
    assert portguard("ca", "init", "--trust-domain", DOMAIN, "--passphrase-file", secret).code == 0
    assert b"ENCRYPTED" in (tmp_path / "ca" / "ca.key").read_bytes()
    outcome = portguard("cert", "issue", "alice", "--passphrase-file", secret)
    assert outcome.code == 0
    assert "correct horse" not in outcome.out + outcome.err
    assert portguard("ca", "show", "--json").json["key_encrypted"] is True


def test_the_end_of_the_line_is_no_part_of_it(portguard: Portguard, tmp_path: Path) -> None:
    unix, windows, bare = (
        secret_file(tmp_path / name, text) for name, text in [("u", "horse\n"), ("w", "horse\r\n"), ("b", "horse")]
    )
    portguard("ca", "init", "--trust-domain", DOMAIN, "--passphrase-file", unix)
    for number, file in enumerate((windows, bare)):
        assert portguard("cert", "issue", f"c{number}", "--passphrase-file", file).code == 0


def test_a_wrong_passphrase_issues_nothing(portguard: Portguard, tmp_path: Path) -> None:
    portguard("ca", "init", "--trust-domain", DOMAIN, "--passphrase-file", secret_file(tmp_path / "one", "correct"))
    wrong = secret_file(tmp_path / "two", "incorrect")
    outcome = portguard("cert", "issue", "alice", "--passphrase-file", wrong)
    failed(outcome, 1, "ca/ca.key: expected the passphrase of this key, got another one")
    assert "incorrect" not in outcome.err
    assert portguard("cert", "list", "--json").json == []
    assert not list(tmp_path.glob("alice*"))


def test_without_a_passphrase_and_a_terminal_nothing_is_issued(portguard: Portguard, tmp_path: Path) -> None:
    portguard("ca", "init", "--trust-domain", DOMAIN, "--passphrase-file", secret_file(tmp_path / "one", "correct"))
    failed(portguard("cert", "issue", "alice"), 2, "--passphrase-file: expected a file, as there is no terminal to ask")


def test_a_passphrase_for_a_key_that_has_none(made: Portguard, tmp_path: Path) -> None:
    outcome = made("cert", "issue", "alice", "--passphrase-file", secret_file(tmp_path / "one", "correct"))
    failed(outcome, 1, "expected no passphrase, because the key is not encrypted, got one")


@pytest.mark.parametrize(("content", "found"), [("", "nothing"), ("\n", "nothing"), ("one\ntwo\n", "several")])
def test_a_passphrase_file_holds_one_line(portguard: Portguard, tmp_path: Path, content: str, found: str) -> None:
    secret = secret_file(tmp_path / "s", content)
    outcome = portguard("ca", "init", "--trust-domain", DOMAIN, "--passphrase-file", secret)
    failed(outcome, 2, f"s: expected one line with a passphrase, got {found}")


def test_a_passphrase_file_that_all_can_read_is_remarked_on(portguard: Portguard, tmp_path: Path) -> None:
    secret = secret_file(tmp_path / "secret", "correct horse\n")
    secret.chmod(0o644)
    outcome = portguard("ca", "init", "--trust-domain", DOMAIN, "--passphrase-file", secret)
    assert outcome.code == 0
    assert outcome.err == f"portguard: warning: {secret}: expected a file that only its owner can read, got mode 0644\n"
    secret.chmod(0o640)
    assert portguard("cert", "issue", "alice", "--passphrase-file", secret).err == ""


def test_root_and_issuing_key_with_passphrases_of_their_own(portguard: Portguard, tmp_path: Path) -> None:
    outcome = portguard(
        "ca", "init", "--trust-domain", DOMAIN, "--root-dir", "stick",
        "--root-passphrase-file", secret_file(tmp_path / "root-secret", "root horse"),
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
            return self.process.wait(timeout=PATIENCE_S)

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
    root = certificate_in(tmp_path / "ca" / "ca.crt")
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
        failed(done, 1, "ca/ca.crt: expected a CA certificate of portguard, got “No such file")
        assert "; `portguard ca init` makes an authority, --ca or $PORTGUARD_CA names another" in done.err


def test_the_hint_at_making_an_authority_is_not_for_one_that_is_damaged(made: Portguard, tmp_path: Path) -> None:
    (tmp_path / "ca" / "ca.crt").write_text("")
    done = made("ca", "show")
    failed(done, 1, "ca/ca.crt: expected a CA certificate of portguard, got something else")
    assert "ca init" not in done.err


def test_the_authority_is_found_by_option_then_environment_then_custom(
    made: Portguard, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert made("ca", "show", "--ca", "ca").code == 0
    failed(made("ca", "show", "--ca", "elsewhere"), 1, "elsewhere/ca.crt: expected")
    monkeypatch.setattr("portguard.cli.opened_authority.DEFAULT_AUTHORITY", "custom")
    for empty in (True, False):
        if empty:
            monkeypatch.setenv("PORTGUARD_CA", "")
        else:
            monkeypatch.delenv("PORTGUARD_CA")
        failed(made("ca", "show"), 1, "custom/ca.crt: expected")
