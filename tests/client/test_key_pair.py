"""A certificate and its key in files: replaced so that no crash leaves a pair that does not fit, or none."""

import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from portguard.client import key_pair
from portguard.client.key_pair import expect_room, finish_replacing, replace_pair
from portguard.errors import PortguardError
from tests.certificates import Authority, Holder

ROOT = Authority.root()


class Pair:
    """Files with a certificate and its key."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.certificate, self.key = folder / "alice.crt", folder / "alice.key"
        self.old, self.new = ROOT.issue("alice"), ROOT.issue("alice")
        self.write(self.old)

    def write(self, holder: Holder) -> None:
        self.certificate.write_bytes(holder.pem)
        self.key.write_bytes(holder.key_pem)
        self.key.chmod(0o600)

    def replace(self) -> None:
        replace_pair(self.certificate, self.key, self.new.pem, self.new.key_pem)

    def finish(self) -> bytes:
        return finish_replacing(self.certificate, self.certificate.read_bytes(), self.key.read_bytes(), None)

    @property
    def content(self) -> tuple[bytes, bytes]:
        return self.certificate.read_bytes(), self.key.read_bytes()

    def holds(self, holder: Holder) -> bool:
        return self.content == (holder.pem, holder.key_pem)

    @property
    def names(self) -> list[str]:
        return sorted(os.listdir(self.folder))


@pytest.fixture
def pair(tmp_path):
    return Pair(tmp_path)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_both_are_replaced_and_stay_as_readable_as_they_were(pair):
    pair.certificate.chmod(0o644)
    pair.replace()
    assert pair.holds(pair.new)
    assert (mode(pair.key), mode(pair.certificate)) == (0o600, 0o644)
    assert pair.names == ["alice.crt", "alice.key"]


@pytest.mark.parametrize(("before", "after"), [(0o400, 0o600), (0o600, 0o600), (0o640, 0o640), (0o666, 0o640)])
def test_a_key_is_never_opened_to_more(pair, before, after):
    pair.key.chmod(before)
    pair.replace()
    assert mode(pair.key) == after


def test_a_certificate_alone_is_replaced_where_the_key_stays(pair):
    renewed = ROOT.issue("alice", key=pair.old.key)
    replace_pair(pair.certificate, pair.key, renewed.pem, None)
    assert pair.content == (renewed.pem, pair.old.key_pem)


def test_both_in_one_file_are_replaced_at_once(pair):
    both = pair.folder / "alice.pem"
    both.write_bytes(pair.old.key_pem + pair.old.pem)
    both.chmod(0o600)
    replace_pair(both, pair.folder / "." / "alice.pem", pair.new.pem, pair.new.key_pem)
    assert both.read_bytes() == pair.new.key_pem + pair.new.pem
    assert mode(both) == 0o600
    assert pair.names == ["alice.crt", "alice.key", "alice.pem"]


def test_a_symbolic_link_stays_one(pair):
    link = pair.folder / "link.crt"
    link.symlink_to(pair.certificate)
    replace_pair(link, pair.key, pair.new.pem, pair.new.key_pem)
    assert link.is_symlink()
    assert pair.holds(pair.new)


def test_an_owner_stays_the_owner(pair, monkeypatch):
    if os.geteuid() != 0:
        pytest.skip("os.chown: expected root, who may give files away, got another user")
    for path in (pair.certificate, pair.key):
        os.chown(path, 12345, 23456)
    pair.replace()
    for path in (pair.certificate, pair.key):
        assert (path.stat().st_uid, path.stat().st_gid) == (12345, 23456)


def test_a_group_that_cannot_be_kept_does_not_read_the_key(pair, monkeypatch):
    pair.key.chmod(0o640)
    before = pair.key.stat()

    def fchown(descriptor, uid, gid):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", fchown)
    monkeypatch.setattr(Path, "stat", lambda path: os.stat_result([*os.stat(path)[:5], before.st_gid + 1, *before[6:]]))
    pair.replace()
    monkeypatch.undo()
    assert mode(pair.key) == 0o600
    assert pair.holds(pair.new)


# Crashes.


class Crash(BaseException):
    pass


def crash(monkeypatch, function, number):
    """Have the so-many-th call of a function of `os` be the last thing that the process does."""
    real, calls = getattr(os, function), []

    def crashing(*arguments, **keywords):
        calls.append(arguments)
        if len(calls) == number:
            raise Crash
        return real(*arguments, **keywords)

    monkeypatch.setattr(os, function, crashing)
    # A process that is no more cleans nothing up.
    monkeypatch.setattr(Path, "unlink", lambda path, missing_ok=False: None)


@pytest.mark.parametrize(
    ("function", "number", "finished"),
    [("fsync", 1, False), ("fsync", 2, False), ("fsync", 3, False), ("replace", 1, False), ("replace", 2, True)],
)
def test_after_a_crash_the_pair_is_the_old_one_or_is_finished(pair, monkeypatch, function, number, finished):
    crash(monkeypatch, function, number)
    with pytest.raises(Crash):
        pair.replace()
    monkeypatch.undo()
    whole = pair.new if finished else pair.old
    assert pair.finish() == whole.pem
    assert pair.holds(whole)
    # And what is left is in nobody's way.
    pair.new = ROOT.issue("alice")
    pair.replace()
    assert pair.holds(pair.new)
    assert pair.names == ["alice.crt", "alice.key"]


def test_what_goes_wrong_after_the_first_change_is_finished_later(pair, monkeypatch):
    real, calls = os.replace, []

    def replace(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(PortguardError, match="expected to replace it, got “Input/output error”"):
        pair.replace()
    assert calls == [pair.key, pair.certificate]
    assert pair.finish() == pair.new.pem
    assert pair.holds(pair.new)


def test_without_the_right_to_finish_what_fits_is_used(pair, monkeypatch):
    crash(monkeypatch, "replace", 2)
    with pytest.raises(Crash):
        pair.replace()
    monkeypatch.undo()

    def replace(source, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "replace", replace)
    assert pair.finish() == pair.new.pem
    assert pair.content == (pair.old.pem, pair.new.key_pem)


@pytest.mark.parametrize("left", [b"", b"hello", ROOT.issue("alice").pem])
def test_what_does_not_fit_is_not_used(pair, left):
    (pair.folder / "alice.crt.new").write_bytes(left)
    assert pair.finish() == pair.old.pem
    other = ROOT.issue("mallory").pem
    pair.certificate.write_bytes(other)  # nor when the one in place does not fit either
    assert pair.finish() == other == pair.certificate.read_bytes()


def test_what_fits_is_not_used_where_the_one_in_place_fits_too(pair):
    (pair.folder / "alice.crt.new").write_bytes(ROOT.issue("alice", key=pair.old.key).pem)
    assert pair.finish() == pair.old.pem == pair.certificate.read_bytes()


def test_an_encrypted_key_is_compared_too(pair):
    form = Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"correct horse")
    key_pem = pair.new.key.private_bytes(*form)
    (pair.folder / "alice.crt.new").write_bytes(pair.new.pem)
    for passphrase, expected in ((b"battery", pair.old), (None, pair.old), (b"correct horse", pair.new)):
        assert finish_replacing(pair.certificate, pair.old.pem, key_pem, passphrase) == expected.pem
    assert pair.certificate.read_bytes() == pair.new.pem


def test_what_goes_wrong_before_the_first_change_leaves_the_old_pair_alone(pair, monkeypatch):
    def write(path, data, most):
        if path == pair.certificate:
            raise OSError(28, "No space left on device")
        real(path, data, most)

    real = key_pair._write_beside
    monkeypatch.setattr(key_pair, "_write_beside", write)
    with pytest.raises(PortguardError, match=r"alice\.crt: expected to replace it, got “No space left on device”"):
        pair.replace()
    assert pair.holds(pair.old)
    assert pair.names == ["alice.crt", "alice.key"]


def test_a_folder_that_cannot_be_written_is_found_out_before(pair, monkeypatch):
    expect_room(pair.certificate, pair.key)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PortguardError, match=r"alice\.crt: expected a folder that can be written, got "):
        expect_room(pair.certificate, pair.key)
