"""What is revoked, what stands in which list, and what happens when something comes between the two."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from portguard.errors import UsageError
from portguard.identity.revocation import parse_revocation_lists
from portguard.pki.authority import Authority
from portguard.pki.errors import PkiError, WrongPassphrase
from portguard.pki.issued import IssuedCertificate
from portguard.pki.profiles import CLOCK_SKEW, RevocationReason
from portguard.pki.revocation import ListStatus, published_lists, revoke, write_lists

DOMAIN = "bastion.example.com"
DAY = timedelta(days=1)
COMPROMISED = RevocationReason.KEY_COMPROMISE


@pytest.fixture
def two_tiers(tmp_path: Path, now: datetime) -> Authority:
    return Authority.create(tmp_path / "two", trust_domain=DOMAIN, at=now, root_directory=tmp_path / "stick")


def _lists(authority: Authority) -> list[x509.CertificateRevocationList]:
    """The lists of the file, in its order."""
    begin = b"-----BEGIN X509 CRL-----"
    _, *bodies = authority.crl_path.read_bytes().split(begin)
    return [x509.load_pem_x509_crl(begin + body) for body in bodies]


def _number(crl: x509.CertificateRevocationList) -> int:
    return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number


def _serials(authority: Authority) -> set[int]:
    return {entry.serial_number for crl in _lists(authority) for entry in crl}


# the list


def test_a_new_authority_has_an_empty_list_signed_by_its_key(authority: Authority, now: datetime) -> None:
    [crl] = _lists(authority)
    assert list(crl) == []
    assert _number(crl) == 1
    assert crl.issuer == authority.anchor.subject
    assert crl.is_signature_valid(authority.anchor.public_key())
    assert not crl.is_signature_valid(ec.generate_private_key(ec.SECP256R1()).public_key())
    assert published_lists(authority, now).status is ListStatus.CURRENT


def test_every_extension_of_a_list(authority: Authority, now: datetime) -> None:
    write_lists(authority, at=now)
    [crl] = _lists(authority)
    assert {type(each.value): each.critical for each in crl.extensions} == {
        x509.AuthorityKeyIdentifier: False,
        x509.CRLNumber: False,
    }
    key_id = crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
    own = authority.anchor.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
    assert key_id == own
    assert isinstance(crl.signature_hash_algorithm, hashes.SHA256)


def test_a_list_begins_a_little_early_for_clocks_that_are_behind(authority: Authority, now: datetime) -> None:
    write_lists(authority, at=now + DAY, valid_for=7 * DAY)
    [crl] = _lists(authority)
    assert (crl.last_update_utc, crl.next_update_utc) == (now + DAY - CLOCK_SKEW, now + 8 * DAY)


def test_a_list_is_valid_for_as_long_as_the_one_before(authority: Authority, now: datetime) -> None:
    assert write_lists(authority, at=now).next_update == now + 30 * DAY
    assert write_lists(authority, at=now, valid_for=90 * DAY).next_update == now + 90 * DAY
    assert write_lists(authority, at=now + DAY).next_update == now + 91 * DAY
    serial = authority.issue_client("alice", at=now).serial
    revoked = revoke(authority, [serial], reason=None, at=now + 2 * DAY)
    assert revoked.lists.next_update == now + 92 * DAY


def test_a_list_ends_with_its_authority_and_the_next_is_as_long_as_was_asked(tmp_path: Path, now: datetime) -> None:
    authority = Authority.create(tmp_path / "ca", trust_domain=DOMAIN, at=now, valid_for=10 * DAY)
    assert write_lists(authority, at=now).next_update == now + 10 * DAY
    assert authority.store.last_valid_for() == 30 * DAY
    with pytest.raises(PkiError, match="validity of the authority: expected a time from"):
        write_lists(authority, at=now + 11 * DAY)


@pytest.mark.parametrize("valid_for", [timedelta(0), timedelta(days=40_000)])
def test_a_length_that_cannot_be_writes_nothing(authority: Authority, now: datetime, valid_for: timedelta) -> None:
    before = authority.crl_path.read_bytes()
    with pytest.raises(UsageError, match="validity: expected 1 second to"):
        write_lists(authority, at=now, valid_for=valid_for)
    assert authority.crl_path.read_bytes() == before
    assert write_lists(authority, at=now).number == 2


def test_the_reason_is_in_the_entry_unless_it_is_unspecified(authority: Authority, now: datetime) -> None:
    reasons = {authority.issue_client(f"c{each}", at=now).serial: each for each in RevocationReason}
    for serial, reason in reasons.items():
        revoke(authority, [serial], reason=reason, at=now)
    [crl] = _lists(authority)
    assert {entry.serial_number for entry in crl} == set(reasons)
    for entry in crl:
        assert entry.revocation_date_utc == now
        reason = reasons[entry.serial_number]
        if reason is RevocationReason.UNSPECIFIED:
            assert len(entry.extensions) == 0
        else:
            [extension] = entry.extensions
            assert not extension.critical
            assert extension.value == x509.CRLReason(x509.ReasonFlags(reason.value))


def test_a_list_that_all_can_read_replaces_the_one_before(authority: Authority, now: datetime) -> None:
    previous = os.umask(0)
    try:
        write_lists(authority, at=now)
    finally:
        os.umask(previous)
    assert authority.crl_path.stat().st_mode & 0o777 == 0o644


# two tiers


def test_with_a_root_elsewhere_the_file_has_lists_of_both_and_a_gateway_reads_them(
    two_tiers: Authority, now: datetime
) -> None:
    serial = two_tiers.issue_client("alice", at=now).serial
    revoke(two_tiers, [serial], reason=COMPROMISED, at=now)
    issuing, root = _lists(two_tiers)
    assert issuing.is_signature_valid(two_tiers.issuer.public_key())
    assert root.is_signature_valid(two_tiers.anchor.public_key())
    assert ([entry.serial_number for entry in issuing], list(root)) == ([serial], [])
    assert root.next_update_utc == two_tiers.anchor.not_valid_after_utc
    assert published_lists(two_tiers, now).next_update == now + 30 * DAY
    read = parse_revocation_lists(two_tiers.crl_path.read_bytes())
    assert [each.serials for each in read] == [{serial}, frozenset()]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (None, "no such file; `portguard ca rotate --root-dir` makes it"),
        (b"", "something else"),
        (b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n", "something else"),
        ("ca.crt", "something else"),
    ],
)
def test_without_the_roots_list_no_list_is_written(
    two_tiers: Authority, now: datetime, content: bytes | str | None, found: str
) -> None:
    path = two_tiers.directory / "root.crl"
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content if isinstance(content, bytes) else (two_tiers.directory / content).read_bytes())
    before = two_tiers.crl_path.read_bytes()
    serial = two_tiers.issue_client("alice", at=now).serial
    with pytest.raises(PkiError, match="root"):
        revoke(two_tiers, [serial], reason=None, at=now)
    assert two_tiers.store.unsettled() == []
    with pytest.raises(PkiError, match=f"root.crl: expected the revocation list that the root signed, got {found}"):
        write_lists(two_tiers, at=now)
    assert two_tiers.crl_path.read_bytes() == before


def test_a_roots_list_that_another_signed_is_not_taken(two_tiers: Authority, authority: Authority, now) -> None:
    (two_tiers.directory / "root.crl").write_bytes(authority.crl_path.read_bytes())
    with pytest.raises(PkiError, match=r"root\.crl: expected .*, got one with another signature"):
        write_lists(two_tiers, at=now)


# revoking


def test_a_revoked_certificate_is_in_the_record_and_in_the_list_and_others_are_not(
    authority: Authority, now: datetime
) -> None:
    alice, bob = (authority.issue_client(name, at=now).serial for name in ("alice", "bob"))
    revoked = revoke(authority, [alice], reason=COMPROMISED, at=now + DAY)
    [record] = revoked.now
    assert revoked.before == ()
    assert record.revocation is not None
    assert (record.revocation.at, record.revocation.reason) == (now + DAY, COMPROMISED)
    assert (revoked.lists.number, revoked.lists.entries) == (2, 1)
    assert _serials(authority) == {alice}
    assert [each.revocation is not None for each in authority.store.records()] == [True, False]
    assert bob not in _serials(authority)


def test_all_certificates_of_an_identity_go_but_for_those_that_are_expired(authority: Authority, now: datetime) -> None:
    authority.issue_client("alice", at=now, valid_for=DAY)
    current = authority.issue_client("alice", at=now).serial
    gone = authority.issue_client("alice", at=now).serial
    authority.issue_client("alice/laptop", at=now)
    authority.issue_gateway(["alice"], at=now)
    later = now + 2 * DAY
    revoke(authority, [gone], reason=COMPROMISED, at=now)
    revoked = revoke(authority, identities=["alice", "alice"], reason=RevocationReason.SUPERSEDED, at=later)
    assert [record.serial for record in revoked.now] == [current]
    assert _serials(authority) == {current, gone}
    again = revoke(authority, identities=["alice"], reason=None, at=later)
    assert (again.now, again.before) == ((), ())


def test_a_certificate_named_twice_is_revoked_once(authority: Authority, now: datetime) -> None:
    serial = authority.issue_client("alice", at=now).serial
    revoked = revoke(authority, [serial, serial], ["alice"], reason=None, at=now)
    assert [record.serial for record in revoked.now] == [serial]


def test_what_is_revoked_stays_as_it_was(authority: Authority, now: datetime) -> None:
    alice, bob = (authority.issue_client(name, at=now).serial for name in ("alice", "bob"))
    revoke(authority, [alice], reason=COMPROMISED, at=now)
    for reason in (None, COMPROMISED):
        revoked = revoke(authority, [alice], reason=reason, at=now + DAY)
        assert revoked.now == ()
        [before] = revoked.before
        assert before.revocation is not None
        assert before.revocation.at == now
    message = f"serial {alice:x}: expected .* for the reason superseded, got one revoked since 2026-.* keyCompromise"
    with pytest.raises(PkiError, match=message):
        revoke(authority, [bob, alice], reason=RevocationReason.SUPERSEDED, at=now + DAY)
    assert _serials(authority) == {alice}
    assert authority.store.get(bob).revocation is None


@pytest.mark.parametrize(("serials", "identities"), [([7], []), ([], ["carol"])])
def test_when_one_of_several_was_never_issued_none_is_revoked(
    authority: Authority, now: datetime, serials: list[int], identities: list[str]
) -> None:
    alice = authority.issue_client("alice", at=now).serial
    with pytest.raises(PkiError, match=r"(serial 7|identity carol): expected .* issued"):
        revoke(authority, [alice, *serials], identities, reason=None, at=now)
    assert authority.store.unsettled() == []
    assert _serials(authority) == set()


def test_with_a_locked_key_nothing_is_recorded(tmp_path: Path, now: datetime) -> None:
    Authority.create(tmp_path / "ca", trust_domain=DOMAIN, at=now, passphrase=b"correct horse")
    serial = Authority.open(tmp_path / "ca", passphrase=b"correct horse").issue_client("alice", at=now).serial
    with pytest.raises(WrongPassphrase):
        revoke(Authority.open(tmp_path / "ca"), [serial], reason=None, at=now)
    authority = Authority.open(tmp_path / "ca", passphrase=b"correct horse")
    assert authority.store.unsettled() == []
    revoke(authority, [serial], reason=None, at=now)
    assert _serials(authority) == {serial}


# certificates that end


def test_an_entry_leaves_after_one_list_that_was_made_past_its_certificates_end(
    authority: Authority, now: datetime
) -> None:
    short = authority.issue_client("short", at=now, valid_for=DAY).serial
    long = authority.issue_client("long", at=now).serial
    revoke(authority, [short, long], reason=None, at=now)
    # Its list begins a little early, and at that moment the certificate is not over yet.
    write_lists(authority, at=now + DAY + CLOCK_SKEW)
    assert _serials(authority) == {short, long}
    for at in (2, 3):
        assert write_lists(authority, at=now + at * DAY).entries == 4 - at
        assert published_lists(authority, now + at * DAY).status is ListStatus.CURRENT
    assert _serials(authority) == {long}
    assert authority.store.get(short).revocation is not None


def test_a_certificate_that_is_over_may_be_revoked_all_the_same(authority: Authority, now: datetime) -> None:
    serial = authority.issue_client("alice", at=now, valid_for=DAY).serial
    revoke(authority, [serial], reason=None, at=now + 2 * DAY)
    assert _serials(authority) == {serial}
    write_lists(authority, at=now + 2 * DAY)
    assert _serials(authority) == set()


# what comes between record and list


def _interrupted(authority: Authority, serial: int, before: str, now: datetime) -> None:
    """Revoke in a process that dies when it is about to call `before`."""
    script = (
        "import datetime, os, sys\n"
        "from portguard.pki import revocation, files, store\n"
        "from portguard.pki.authority import Authority\n"
        f"{before} = lambda *a, **k: os._exit(9)\n"
        "at = datetime.datetime.fromisoformat(sys.argv[3])\n"
        "revocation.revoke(Authority.open(sys.argv[1]), [int(sys.argv[2])], reason=None, at=at)\n"
    )
    argv = [sys.executable, "-c", script, str(authority.directory), str(serial), now.isoformat()]
    assert subprocess.run(argv, check=False).returncode == 9


@pytest.mark.parametrize(
    ("before", "heal"),
    [("store.Store.begin_list", "revoke"), ("revocation.list_pem", "crl"), ("os.replace", "revoke")],
)
def test_a_crash_before_the_list_is_told_and_made_up_for(
    authority: Authority, now: datetime, before: str, heal: str
) -> None:
    serial = authority.issue_client("alice", at=now).serial
    _interrupted(authority, serial, before, now)
    assert authority.store.get(serial).revocation is not None
    assert _serials(authority) == set()
    assert published_lists(authority, now).status is ListStatus.BEHIND
    if heal == "crl":
        written = write_lists(Authority.open(authority.directory), at=now)
    else:
        written = revoke(Authority.open(authority.directory), [serial], reason=None, at=now).lists
    assert _serials(authority) == {serial}
    assert written.number == (2 if before == "store.Store.begin_list" else 3)
    assert published_lists(authority, now).status is ListStatus.CURRENT


def test_a_crash_after_the_list_leaves_nothing_to_make_up_for(authority: Authority, now: datetime) -> None:
    serial = authority.issue_client("alice", at=now).serial
    _interrupted(authority, serial, "store.Store.settle", now)
    assert _serials(authority) == {serial}
    assert published_lists(authority, now).status is ListStatus.CURRENT


def test_a_list_that_cannot_be_written_says_that_the_revocation_is_recorded(authority: Authority, now) -> None:
    serial = authority.issue_client("alice", at=now).serial
    authority.crl_path.unlink()
    authority.crl_path.mkdir()
    with pytest.raises(PkiError, match=r"ca\.crl: expected .*; what was revoked is recorded, and `portguard ca crl`"):
        revoke(authority, [serial], reason=None, at=now)
    assert authority.store.get(serial).revocation is not None
    assert published_lists(authority, now).status is ListStatus.UNREADABLE
    authority.crl_path.rmdir()
    assert published_lists(authority, now).status is ListStatus.MISSING
    write_lists(authority, at=now)
    assert _serials(authority) == {serial}


def test_many_that_revoke_at_once_lose_nothing_and_share_no_number(authority: Authority, now: datetime) -> None:
    serials = [authority.issue_client(f"c{number}", at=now).serial for number in range(6)]
    barrier = threading.Barrier(len(serials))
    numbers: list[int] = []

    def run(serial: int) -> None:
        mine = Authority.open(authority.directory)
        barrier.wait()
        numbers.append(revoke(mine, [serial], reason=None, at=now).lists.number)

    threads = [threading.Thread(target=run, args=(serial,)) for serial in serials]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers) == [2, 3, 4, 5, 6, 7]
    [crl] = _lists(authority)
    assert {entry.serial_number for entry in crl} == set(serials)
    assert _number(crl) == 7


# looking at the list


@pytest.mark.parametrize("content", [b"", b"hello", b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n"])
def test_a_list_that_is_none_is_told(authority: Authority, now: datetime, content: bytes) -> None:
    authority.crl_path.write_bytes(content)
    assert published_lists(authority, now).status is ListStatus.UNREADABLE


def test_the_list_of_another_authority_is_behind(authority: Authority, two_tiers: Authority, now: datetime) -> None:
    authority.crl_path.write_bytes(two_tiers.crl_path.read_bytes())
    assert published_lists(authority, now).status is ListStatus.BEHIND


def test_without_the_roots_part_the_list_is_behind(two_tiers: Authority, now: datetime) -> None:
    whole = two_tiers.crl_path.read_text()
    issuing, root = (part for part in whole.split("-----BEGIN X509 CRL-----") if part)
    for part in (issuing, root):
        two_tiers.crl_path.write_text(f"-----BEGIN X509 CRL-----{part}")
        assert published_lists(two_tiers, now).status is ListStatus.BEHIND
    two_tiers.crl_path.write_text(whole)
    assert published_lists(two_tiers, now).status is ListStatus.CURRENT


def test_a_list_is_out_of_date_after_its_end(authority: Authority, now: datetime) -> None:
    assert published_lists(authority, now + 30 * DAY).status is ListStatus.CURRENT
    assert published_lists(authority, now + 30 * DAY + timedelta(seconds=1)).status is ListStatus.OUT_OF_DATE


# what openssl says


def _verified(openssl: Callable, authority: Authority, issued: IssuedCertificate, path: Path, now: datetime) -> str:
    (path / "leaf.crt").write_bytes(issued.certificate_pem)
    checks = ["-crl_check"] if authority.root_crl_path is None else ["-crl_check_all", "-untrusted", path / "leaf.crt"]
    done = openssl(
        "verify", "-x509_strict", *checks, "-attime", int(now.timestamp()),
        "-CAfile", authority.directory / "ca.crt", "-CRLfile", authority.crl_path, path / "leaf.crt",
    )  # fmt: skip
    return done.stdout + done.stderr


@pytest.mark.parametrize("tiers", ["authority", "two_tiers"])
def test_openssl_refuses_the_revoked_one_only(
    request: pytest.FixtureRequest, openssl: Callable, tmp_path: Path, now: datetime, tiers: str
) -> None:
    authority: Authority = request.getfixturevalue(tiers)
    alice, bob = (authority.issue_client(name, at=now) for name in ("alice", "bob"))
    assert _verified(openssl, authority, alice, tmp_path, now).endswith(": OK\n")
    revoke(authority, [alice.serial], reason=COMPROMISED, at=now)
    assert "certificate revoked" in _verified(openssl, authority, alice, tmp_path, now)
    assert _verified(openssl, authority, bob, tmp_path, now).endswith(": OK\n")
    write_lists(authority, at=now, valid_for=DAY)
    assert "CRL has expired" in _verified(openssl, authority, bob, tmp_path, now + 2 * DAY)


def test_openssl_reads_the_list(authority: Authority, openssl: Callable, now: datetime) -> None:
    serial = authority.issue_client("alice", at=now).serial
    revoke(authority, [serial], reason=COMPROMISED, at=now)
    read = openssl("crl", "-in", authority.crl_path, "-noout", "-text", "-CAfile", authority.directory / "ca.crt")
    assert read.returncode == 0
    assert "verify OK" in read.stdout + read.stderr
    assert f"{serial:040X}"[-36:] in read.stdout.replace(":", "")
    assert "Key Compromise" in read.stdout


# a record that is older than the list


def test_what_was_revoked_after_a_backup_that_was_put_back_stays_revoked(authority: Authority, now: datetime) -> None:
    alice = authority.issue_client("alice", at=now)
    backup = authority.store.path.read_bytes()
    bob = authority.issue_client("bob", at=now)
    revoke(authority, [alice.serial], reason=COMPROMISED, at=now)
    revoke(authority, [bob.serial], reason=None, at=now)
    [before] = _lists(authority)
    authority.store.path.write_bytes(backup)
    written = write_lists(authority, at=now + DAY)
    [crl] = _lists(authority)
    assert _serials(authority) == {alice.serial, bob.serial}
    assert (written.number, written.entries) == (_number(before) + 1, 2) == (_number(crl), 2)
    [entry] = [each for each in crl if each.serial_number == alice.serial]
    assert entry.extensions.get_extension_for_class(x509.CRLReason).value.reason is x509.ReasonFlags.key_compromise
    assert entry.revocation_date_utc == now
    revoke(authority, [alice.serial], reason=COMPROMISED, at=now + DAY)
    assert _serials(authority) == {alice.serial, bob.serial}


def test_what_the_record_has_settled_does_not_stay_for_ever(authority: Authority, now: datetime) -> None:
    serial = authority.issue_client("alice", at=now, valid_for=DAY).serial
    revoke(authority, [serial], reason=None, at=now)
    write_lists(authority, at=now + 2 * DAY)
    assert _serials(authority) == {serial}  # one list after its end has it
    write_lists(authority, at=now + 3 * DAY)
    assert _serials(authority) == set()


def test_a_list_of_another_s_making_adds_nothing(authority: Authority, tmp_path: Path, now: datetime) -> None:
    other = Authority.create(tmp_path / "other", trust_domain=DOMAIN, at=now)
    revoke(other, [other.issue_client("bob", at=now).serial], reason=None, at=now)
    high = other.store.begin_list(now, DAY, above=2**62)
    write_lists(other, at=now)
    authority.crl_path.write_bytes(other.crl_path.read_bytes())
    assert write_lists(authority, at=now).number == 2 < high
    assert _serials(authority) == set()
