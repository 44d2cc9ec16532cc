import os
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from portguard.client.credentials import read_credentials
from portguard.client.profile import Profile, read_profile
from portguard.errors import ConfigurationError
from portguard.pki.authority import Authority


def nobody(path: Path) -> str:
    raise AssertionError(f"asked for the passphrase of {path}")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    now = datetime.now(UTC)
    authority = Authority.create(tmp_path / "ca", trust_domain="gateway.test", at=now)
    for name in ("alice", "other"):
        authority.issue_client(name, at=now).write(tmp_path, name)
    return tmp_path


def profile(folder: Path, more: str = "", key: str = "alice.key", certificate: str = "alice.crt") -> Profile:
    path = folder / "alice.toml"
    path.write_text(
        f'gateway = "gateway.test:1"\nca = "ca/ca.crt"\ncertificate = "{certificate}"\nkey = "{key}"\n{more}'
    )
    return read_profile(path)


def encrypt(folder: Path, form: PrivateFormat = PrivateFormat.PKCS8) -> None:
    path = folder / "alice.key"
    key = load_pem_private_key(path.read_bytes(), None)
    path.write_bytes(key.private_bytes(Encoding.PEM, form, BestAvailableEncryption(b"open sesame")))


def secret(folder: Path, content: bytes) -> str:
    path = folder / "word"
    path.write_bytes(content)
    path.chmod(0o600)
    return 'key_passphrase_file = "word"'


def test_the_files_of_a_profile_make_a_context(folder: Path) -> None:
    credentials = read_credentials(profile(folder), nobody)
    assert credentials.context().get_ca_certs()
    assert credentials.certificate.not_valid_after_utc > datetime.now(UTC)


def test_nothing_secret_is_in_the_repr(folder: Path) -> None:
    encrypt(folder)
    credentials = read_credentials(profile(folder, secret(folder, b"open sesame\n")), nobody)
    assert "PRIVATE" not in repr(credentials)
    assert "sesame" not in repr(credentials)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_key_that_others_can_read_is_refused(folder: Path, mode: int) -> None:
    (folder / "alice.key").chmod(mode)
    with pytest.raises(ConfigurationError) as caught:
        read_credentials(profile(folder), nobody)
    path = folder / "alice.key"
    assert str(caught.value) == (
        f"{folder}/alice.toml: key: expected a file that only its owner can read at {path}, "
        f"got mode {mode:04o} (chmod 600 {path})"
    )


@pytest.mark.parametrize(("mode", "accepted"), [(0o640, True), (0o604, False)])
def test_of_a_key_that_somebody_else_owns_the_group_may_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch, mode: int, accepted: bool
) -> None:
    (folder / "alice.key").chmod(mode)
    somebody = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: somebody)
    if accepted:
        read_credentials(profile(folder), nobody)
    else:
        with pytest.raises(ConfigurationError, match="only its owner can read"):
            read_credentials(profile(folder), nobody)


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
def test_the_passphrase_of_an_encrypted_key_is_asked_for(folder: Path, form: PrivateFormat) -> None:
    encrypt(folder, form)
    asked: list[Path] = []

    def ask(path: Path) -> str:
        asked.append(path)
        return "open sesame"

    read_credentials(profile(folder), ask).context()
    assert asked == [folder / "alice.key"]


@pytest.mark.parametrize("content", [b"open sesame", b"open sesame\n", b"open sesame\r\n"])
def test_the_passphrase_comes_from_its_file(folder: Path, content: bytes) -> None:
    encrypt(folder)
    read_credentials(profile(folder, secret(folder, content)), nobody).context()


def test_a_wrong_passphrase_is_named_and_not_shown(folder: Path) -> None:
    encrypt(folder)
    credentials = read_credentials(profile(folder, secret(folder, b"abracadabra")), nobody)
    with pytest.raises(ConfigurationError, match=r"that the passphrase opens in .*alice\.key, got another") as caught:
        credentials.context()
    assert "abracadabra" not in str(caught.value)


@pytest.mark.parametrize(("content", "found"), [(b"", "nothing"), (b"\n", "nothing"), (b"a\nb\n", "several")])
def test_a_passphrase_file_has_one_line(folder: Path, content: bytes, found: str) -> None:
    encrypt(folder)
    with pytest.raises(ConfigurationError, match=f"expected one line with a passphrase .*, got {found}"):
        read_credentials(profile(folder, secret(folder, content)), nobody)


def test_a_passphrase_file_that_others_can_read_is_refused(folder: Path) -> None:
    encrypt(folder)
    more = secret(folder, b"open sesame")
    (folder / "word").chmod(0o644)
    with pytest.raises(ConfigurationError, match="key_passphrase_file: expected a file that only its owner can read"):
        read_credentials(profile(folder, more), nobody)


def test_a_passphrase_for_a_key_without_one_is_an_error(folder: Path) -> None:
    more = secret(folder, b"open sesame")
    with pytest.raises(ConfigurationError, match=r"expected an encrypted key in .*, got one without a passphrase"):
        read_credentials(profile(folder, more), nobody)


def test_the_key_of_another_certificate_is_refused(folder: Path) -> None:
    credentials = read_credentials(profile(folder, key="other.key"), nobody)
    with pytest.raises(ConfigurationError, match=r"key: expected the certificate's key in .*other.key, got the key of"):
        credentials.context()


@pytest.mark.parametrize(("key", "name"), [("ca", "ca/ca.crt"), ("certificate", "alice.crt")])
def test_what_is_no_certificate_is_refused(folder: Path, key: str, name: str) -> None:
    (folder / name).write_text("hello")
    with pytest.raises(
        ConfigurationError, match=f"{key}: expected certificates in PEM in .*{name}, got something else"
    ):
        read_credentials(profile(folder), nobody)


@pytest.mark.parametrize(("key", "name"), [("ca", "ca/ca.crt"), ("certificate", "alice.crt"), ("key", "alice.key")])
def test_a_missing_file_is_named_with_its_key(folder: Path, key: str, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(
        ConfigurationError, match=f": {key}: expected a file that can be read at .*{name}, got “No such"
    ):
        read_credentials(profile(folder), nobody)


def test_the_keys_of_the_authority_pass(folder: Path) -> None:
    assert stat.S_IMODE((folder / "alice.key").stat().st_mode) == 0o600
