import os

import pytest

from portguard.errors import ConfigurationError
from portguard.observe.audit.keys import fingerprint, read_public_key, signing_key


def mode(path):
    return path.stat().st_mode & 0o777


def test_the_key_is_made_once_private_and_its_public_half_beside_it(tmp_path):
    key = signing_key(tmp_path)
    assert (mode(tmp_path / "audit.key"), mode(tmp_path / "audit.pub")) == (0o600, 0o644)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audit.key", "audit.pub"]
    assert fingerprint(read_public_key(tmp_path / "audit.pub")) == fingerprint(key.public_key())
    assert signing_key(tmp_path).private_bytes_raw() == key.private_bytes_raw()


def test_a_lost_public_half_is_written_again(tmp_path):
    key = signing_key(tmp_path)
    (tmp_path / "audit.pub").unlink()
    signing_key(tmp_path)
    assert fingerprint(read_public_key(tmp_path / "audit.pub")) == fingerprint(key.public_key())


def test_a_lost_private_half_is_not_silently_replaced(tmp_path):
    signing_key(tmp_path)
    (tmp_path / "audit.key").unlink()
    with pytest.raises(ConfigurationError, match=r"audit\.key: expected the private half of audit\.pub .*got none"):
        signing_key(tmp_path)


def test_a_key_that_others_may_read_is_refused(tmp_path):
    signing_key(tmp_path)
    (tmp_path / "audit.key").chmod(0o640)
    with pytest.raises(ConfigurationError, match="expected a private key of mode 0600 or less, got mode 0640"):
        signing_key(tmp_path)


@pytest.fixture
def handed_over(tmp_path):
    """A private key in a folder of its own, as systemd leaves it there."""
    (tmp_path / "credentials").mkdir()
    signing_key(tmp_path / "credentials")
    (tmp_path / "credentials" / "audit.key").chmod(0o400)
    (tmp_path / "audit").mkdir()
    return (tmp_path / "credentials" / "audit.key").rename(tmp_path / "credentials" / "portguard.audit-key")


def test_a_key_that_is_handed_over_signs_and_only_its_public_half_is_kept(tmp_path, handed_over):
    key = signing_key(tmp_path / "audit", handed_over)
    assert [path.name for path in (tmp_path / "audit").iterdir()] == ["audit.pub"]
    assert fingerprint(read_public_key(tmp_path / "audit" / "audit.pub")) == fingerprint(key.public_key())
    assert signing_key(tmp_path / "audit", handed_over).private_bytes_raw() == key.private_bytes_raw()


def test_a_key_that_is_handed_over_must_be_the_one_that_signed_before(tmp_path, handed_over):
    signing_key(tmp_path / "audit")
    with pytest.raises(ConfigurationError, match=r"expected the public half of portguard\.audit-key, got another key"):
        signing_key(tmp_path / "audit", handed_over)


@pytest.mark.parametrize(
    ("mode", "uid", "allowed"),
    [(0o440, 0, True), (0o400, 1000, True), (0o440, 1000, False), (0o444, 0, False), (0o460, 0, False)],
)
def test_an_access_list_may_let_the_gateway_read_a_credential_of_root(tmp_path, handed_over, mode, uid, allowed):
    os.chown(handed_over, uid, -1)
    handed_over.chmod(mode)
    if allowed:
        signing_key(tmp_path / "audit", handed_over)
        return
    with pytest.raises(ConfigurationError, match=f"mode {mode:04o}"):
        signing_key(tmp_path / "audit", handed_over)


def test_two_halves_that_do_not_belong_together_are_refused(tmp_path):
    signing_key(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    signing_key(other)
    (other / "audit.pub").replace(tmp_path / "audit.pub")
    with pytest.raises(ConfigurationError, match=r"expected the public half of audit\.key, got another key"):
        signing_key(tmp_path)


@pytest.mark.parametrize("name", ["audit.key", "audit.pub"])
def test_a_file_that_is_no_key_is_named(tmp_path, name):
    signing_key(tmp_path)
    (tmp_path / name).write_text("hello")
    with pytest.raises(ConfigurationError, match=rf"{name}: expected an Ed25519 .* key in PEM.*, got something else"):
        signing_key(tmp_path)


def test_a_missing_folder_and_a_missing_file_are_errors_of_one_line(tmp_path):
    with pytest.raises(ConfigurationError, match="no such file"):
        signing_key(tmp_path / "nowhere")
    with pytest.raises(ConfigurationError, match="no such file"):
        read_public_key(tmp_path / "nowhere")
