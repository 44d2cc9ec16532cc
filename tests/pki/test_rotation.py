"""A new CA in the place of an old one: every stage, what may come between, and who is trusted meanwhile."""

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from portguard.errors import UsageError
from portguard.identity.revocation import parse_revocation_lists
from portguard.pki import keys
from portguard.pki.authority import Authority
from portguard.pki.errors import PkiError, WrongPassphrase
from portguard.pki.issued import IssuedCertificate
from portguard.pki.keys import KeyType
from portguard.pki.revocation import ListStatus, published_lists, revoke, revoked_issuers, write_lists
from portguard.pki.rotation import (
    Stage,
    abort,
    finish,
    prepare,
    replace_issuing,
    revoke_replaced,
    stage,
    still_good,
    switch,
)

DOMAIN = "bastion.example.com"
DAY = timedelta(days=1)


@pytest.fixture
def later(now: datetime) -> datetime:
    return now + DAY


@pytest.fixture
def stick(tmp_path: Path) -> Path:
    return tmp_path / "stick"


@pytest.fixture
def two_tiers(tmp_path: Path, stick: Path, now: datetime) -> Authority:
    return Authority.create(tmp_path / "two", trust_domain=DOMAIN, at=now, root_directory=stick)


def _issuer(issued: IssuedCertificate) -> x509.Name:
    return x509.load_pem_x509_certificates(issued.certificate_pem)[0].issuer


def _revoked(authority: Authority) -> list[set[int]]:
    """The serials of each list of the file, as a gateway reads it."""
    return [set(each.serials) for each in parse_revocation_lists(authority.crl_path.read_bytes())]


@pytest.fixture
def verified(openssl: Callable, tmp_path: Path) -> Callable[[Authority, IssuedCertificate, datetime], str]:
    """What openssl says of a certificate, by the authority's ca.crt and ca.crl."""

    def verify(authority: Authority, issued: IssuedCertificate, at: datetime) -> str:
        leaf = tmp_path / "leaf.crt"
        leaf.write_bytes(issued.certificate_pem)
        done = openssl(
            "verify", "-x509_strict", "-crl_check_all", "-attime", int(at.timestamp()), "-untrusted", leaf,
            "-CAfile", authority.directory / "ca.crt", "-CRLfile", authority.crl_path, leaf,
        )  # fmt: skip
        return done.stdout + done.stderr

    return verify


# a root that issues


def test_a_root_is_replaced_in_three_steps(authority: Authority, now: datetime, later: datetime, verified) -> None:
    old = authority.issue_client("old", at=now)
    assert stage(authority) is None

    prepared = prepare(authority, at=later)
    assert stage(prepared) is Stage.PREPARED
    assert prepared.issuer == prepared.anchor == authority.anchor
    assert prepared.certificate_pem == (authority.directory / "ca.crt").read_bytes()
    assert len(x509.load_pem_x509_certificates(prepared.certificate_pem)) == 2
    between = prepared.issue_client("between", at=later)
    assert _issuer(between) == authority.anchor.subject
    assert between.anchor_pem == prepared.certificate_pem

    switched = switch(prepared, at=later)
    assert stage(switched) is Stage.SWITCHED
    assert switched.issuer == switched.anchor == prepared.anchors[1]
    new = switched.issue_client("new", at=later)
    assert _issuer(new) == switched.issuer.subject != authority.anchor.subject
    for issued in (old, between, new):
        assert verified(switched, issued, later).endswith(": OK\n")
    assert [record.name for record in still_good(switched, later)] == ["old", "between"]

    revoke(switched, identities=["old", "between"], reason=None, at=later)
    assert "certificate revoked" in verified(switched, old, later)
    assert verified(switched, new, later).endswith(": OK\n")
    finished = finish(switched, at=later)
    assert stage(finished) is None
    assert finished.anchors == (switched.issuer,)
    assert finished.certificate_pem == (authority.directory / "ca.crt").read_bytes()
    assert verified(finished, new, later).endswith(": OK\n")
    assert "unable to get local issuer" in verified(finished, between, later)
    assert _revoked(finished) == [set()]
    assert published_lists(finished, later).status is ListStatus.CURRENT


def test_the_file_has_a_list_of_each_root_and_each_has_its_own(authority: Authority, now, later) -> None:
    old = authority.issue_client("old", at=now).serial
    assert _revoked(prepare(authority, at=later)) == [set(), set()]
    switched = switch(authority, at=later)
    new = switched.issue_client("new", at=later).serial
    revoke(switched, [old, new], reason=None, at=later)
    assert _revoked(switched) == [{new}, {old}]
    assert published_lists(switched, later).entries == 2
    read = parse_revocation_lists(switched.crl_path.read_bytes())
    assert [each.issuer_name for each in read] == [each.subject.rfc4514_string() for each in switched.anchors]


def test_one_that_was_opened_before_writes_the_lists_of_both(authority: Authority, now: datetime, later) -> None:
    serial = authority.issue_client("old", at=now).serial
    before = Authority.open(authority.directory)
    prepare(authority, at=later)
    revoke(before, [serial], reason=None, at=later)
    assert _revoked(authority) == [{serial}, set()]
    write_lists(before, at=later)
    assert _revoked(authority) == [{serial}, set()]


def test_the_old_root_stays_while_anything_it_issued_is_good(authority: Authority, now: datetime, later) -> None:
    authority.issue_client("alice", at=now)
    prepare(authority, at=later)
    switch(authority, at=later)
    before = (authority.directory / "ca.crt").read_bytes()
    with pytest.raises(
        PkiError, match=r"ca\.crt: expected nothing that the old root .*, got 1, such as that of 'alice'"
    ):
        finish(authority, at=later)
    assert (authority.directory / "ca.crt").read_bytes() == before
    assert still_good(Authority.open(authority.directory), now + 31 * DAY) == []
    assert len(finish(authority, at=later, force=True).anchors) == 1


def test_what_ended_keeps_no_old_root(authority: Authority, now: datetime, later: datetime) -> None:
    authority.issue_client("alice", at=now, valid_for=DAY / 2)
    prepare(authority, at=later)
    switch(authority, at=later)
    assert len(finish(authority, at=later).anchors) == 1


def test_a_new_root_that_issued_nothing_is_taken_back(authority: Authority, now: datetime, later: datetime) -> None:
    before = {path.name: path.read_bytes() for path in authority.directory.glob("ca.[ck]*") if path.suffix != ".crl"}
    prepare(authority, at=later)
    aborted = abort(authority, at=later)
    assert stage(aborted) is None
    assert sorted(os.listdir(authority.directory)) == ["ca.crl", "ca.crt", "ca.key", "certificates.db"]
    assert {name: (authority.directory / name).read_bytes() for name in before} == before
    assert _revoked(aborted) == [set()]


def test_a_second_rotation_replaces_the_root_of_the_first(authority: Authority, now: datetime, later, verified) -> None:
    for step in range(1, 3):
        at = now + step * DAY
        prepare(authority, at=at)
        switch(authority, at=at)
        finish(authority, at=at)
    last = Authority.open(authority.directory)
    issued = last.issue_client("alice", at=now + 3 * DAY)
    assert verified(last, issued, now + 3 * DAY).endswith(": OK\n")
    assert last.key_path.name.startswith("ca-")


@pytest.mark.parametrize(
    ("steps", "wrong", "message"),
    [
        ([], switch, "expected a new root that is prepared, got no new root"),
        ([], finish, "expected a new root that issues, got no new root"),
        ([], abort, "expected a new root that is prepared, got no new root"),
        ([prepare], prepare, "expected no new root, got a new root that is prepared"),
        ([prepare], finish, "expected a new root that issues, got a new root that is prepared"),
        ([prepare, switch], prepare, "expected no new root, got a new root that issues"),
        ([prepare, switch], switch, "expected a new root that is prepared, got a new root that issues"),
        ([prepare, switch], abort, "expected a new root that is prepared, got a new root that issues"),
    ],
)
def test_a_step_that_is_not_the_next_changes_nothing(
    authority: Authority, later: datetime, steps: list[Callable], wrong: Callable, message: str
) -> None:
    for step in steps:
        step(authority, at=later)
    before = {path: path.read_bytes() for path in authority.directory.iterdir()}
    with pytest.raises(PkiError, match=rf"ca\.crt: {message}"):
        wrong(authority, at=later)
    assert {path: path.read_bytes() for path in authority.directory.iterdir()} == before


def test_a_new_root_begins_after_the_old_one(authority: Authority, now: datetime) -> None:
    with pytest.raises(PkiError, match="validity of the new root: expected a time after that of the root"):
        prepare(authority, at=now)
    assert stage(prepare(authority, at=now + timedelta(seconds=1))) is Stage.PREPARED


def test_the_new_key_has_the_passphrase_and_the_type_of_the_old_one(tmp_path: Path, now, later) -> None:
    Authority.create(tmp_path / "ca", trust_domain=DOMAIN, at=now, passphrase=b"horse", key_type=KeyType.RSA)
    with pytest.raises(WrongPassphrase):
        prepare(Authority.open(tmp_path / "ca"), at=later)
    authority = prepare(Authority.open(tmp_path / "ca", passphrase=b"horse"), at=later)
    path = authority.key_path_of(authority.anchors[1])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    key = keys.from_pem(path.read_bytes(), b"horse", "key")
    assert isinstance(key, rsa.RSAPrivateKey)
    switch(authority, at=later)
    Authority.open(tmp_path / "ca", passphrase=b"horse").issue_client("alice", at=later)


def test_two_roots_of_different_domains_are_no_authority(authority: Authority, tmp_path: Path, now: datetime) -> None:
    other = Authority.create(tmp_path / "other", trust_domain="other.example", at=now)
    same = Authority.create(tmp_path / "same", trust_domain=DOMAIN, at=now)
    path = authority.directory / "ca.crt"
    for content in (
        authority.certificate_pem + other.certificate_pem,
        authority.certificate_pem + 2 * same.certificate_pem,
    ):
        path.write_bytes(content)
        with pytest.raises(PkiError, match=r"ca\.crt: expected one CA certificate of portguard, or two of one trust"):
            Authority.open(authority.directory)


def _crash(step: str, directory: Path, before: str, at: datetime, *more: object, **options: bool) -> None:
    """Take a step in a process that dies when it is about to do `before` with a file of this name."""
    script = (
        "import datetime, os, sys\n"
        "from portguard.pki import rotation\n"
        "from portguard.pki.authority import Authority\n"
        "link, replace = os.link, os.replace\n"
        f"dies = lambda path: {before}\n"
        "os.link = lambda a, b, **k: os._exit(9) if dies(b.name) else link(a, b, **k)\n"
        "os.replace = lambda a, b: os._exit(9) if dies(b.name) else replace(a, b)\n"
        "at = datetime.datetime.fromisoformat(sys.argv[2])\n"
        f"rotation.{step}(Authority.open(sys.argv[1]), *sys.argv[3:], at=at, **{options!r})\n"
    )
    argv = [sys.executable, "-c", script, str(directory), at.isoformat(), *map(str, more)]
    assert subprocess.run(argv, check=False).returncode == 9


@pytest.mark.parametrize(
    ("step", "before", "found", "status"),
    [
        ("prepare", "path.endswith('.key')", None, ListStatus.CURRENT),
        ("prepare", "path == 'ca.crt'", None, ListStatus.CURRENT),
        ("prepare", "path == 'ca.crl'", Stage.PREPARED, ListStatus.BEHIND),
        ("switch", "path == 'ca.crt'", Stage.PREPARED, ListStatus.CURRENT),
        ("switch", "path == 'ca.crl'", Stage.SWITCHED, ListStatus.CURRENT),
        ("finish", "path == 'ca.crt'", Stage.SWITCHED, ListStatus.CURRENT),
        ("finish", "path == 'ca.crl'", None, ListStatus.CURRENT),
    ],
)
def test_a_crash_leaves_one_stage_or_the_other_and_an_authority_that_works(
    authority: Authority, later: datetime, step: str, before: str, found: Stage | None, status: ListStatus, verified
) -> None:
    steps = [prepare, switch, finish]
    names = [each.__name__ for each in steps]
    for each in steps[: names.index(step)]:
        each(authority, at=later)
    _crash(step, authority.directory, before, later)
    opened = Authority.open(authority.directory)
    assert stage(opened) is found
    assert published_lists(opened, later).status is status
    write_lists(opened, at=later)
    assert published_lists(opened, later).status is ListStatus.CURRENT
    issued = opened.issue_client("alice", at=later)
    assert verified(opened, issued, later).endswith(": OK\n")
    revoke(opened, [issued.serial], reason=None, at=later)
    for each in steps[{None: 0 if step == "prepare" else 3, Stage.PREPARED: 1, Stage.SWITCHED: 2}[found] :]:
        opened = each(opened, at=later)
    assert (stage(opened), len(opened.anchors)) == (None, 1)


# a root whose key is elsewhere


def test_a_new_issuing_ca_takes_over_and_the_old_ones_certificates_stay_good(
    two_tiers: Authority, stick: Path, now: datetime, later: datetime, verified
) -> None:
    old = two_tiers.issue_client("old", at=now)
    rotated = replace_issuing(two_tiers, stick, at=later)
    shutil.rmtree(stick)
    rotated = Authority.open(two_tiers.directory)
    assert rotated.anchors == two_tiers.anchors
    assert rotated.retired == (two_tiers.issuer,)
    new = rotated.issue_client("new", at=later)
    assert _issuer(new) == rotated.issuer.subject != _issuer(old)
    for issued in (old, new):
        assert verified(rotated, issued, later).endswith(": OK\n")
    revoke(rotated, [old.serial], reason=None, at=later)
    assert "certificate revoked" in verified(rotated, old, later)
    assert verified(rotated, new, later).endswith(": OK\n")
    assert _revoked(rotated) == [set(), {old.serial}, set()]


def test_the_list_of_the_old_issuing_ca_stays_while_a_certificate_of_it_may_be_shown(
    two_tiers: Authority, stick: Path, now: datetime, later: datetime
) -> None:
    old = two_tiers.issue_client("old", at=now, valid_for=5 * DAY).serial
    revoke(two_tiers, [old], reason=None, at=now)
    rotated = replace_issuing(two_tiers, stick, at=later)
    assert _revoked(rotated) == [set(), {old}, set()]
    for day in (2, 5, 6):
        assert published_lists(rotated, now + day * DAY).status is ListStatus.CURRENT
    # The first list after the certificate's end still has it.
    write_lists(rotated, at=now + 6 * DAY)
    assert _revoked(rotated) == [set(), {old}, set()]
    write_lists(rotated, at=now + 7 * DAY)
    assert _revoked(rotated) == [set(), set()]
    assert published_lists(rotated, now + 7 * DAY).status is ListStatus.CURRENT


def test_an_old_issuing_ca_that_issued_nothing_needs_no_list(two_tiers: Authority, stick: Path, later) -> None:
    assert _revoked(replace_issuing(two_tiers, stick, at=later)) == [set(), set()]


def test_issuing_cas_are_replaced_again_and_again(two_tiers: Authority, stick: Path, now: datetime, verified) -> None:
    issued = []
    authority = two_tiers
    for day in range(3):
        issued.append(authority.issue_client(f"c{day}", at=now + day * DAY))
        authority = replace_issuing(authority, stick, at=now + day * DAY)
    assert len(authority.retired) == 3
    for each in issued:
        assert verified(authority, each, now + 3 * DAY).endswith(": OK\n")


def test_a_new_issuing_ca_takes_the_roots_own_key(
    two_tiers: Authority, stick: Path, tmp_path: Path, now, later
) -> None:
    Authority.create(tmp_path / "x", trust_domain=DOMAIN, at=now, root_directory=tmp_path / "other")
    before = {path: path.read_bytes() for path in two_tiers.directory.iterdir()}
    with pytest.raises(PkiError, match=r"other/root\.crt: expected the root of the authority in .*two, got another"):
        replace_issuing(two_tiers, tmp_path / "other", at=later)
    with pytest.raises(PkiError, match=r"gone/root\.crt: expected"):
        replace_issuing(two_tiers, tmp_path / "gone", at=later)
    shutil.copy(tmp_path / "other" / "root.key", stick / "root.key")
    with pytest.raises(PkiError, match=r"stick/root\.key: expected the key of root\.crt, got the key of another one"):
        replace_issuing(two_tiers, stick, at=later)
    assert {path: path.read_bytes() for path in two_tiers.directory.iterdir()} == before


@pytest.mark.parametrize(
    ("root_passphrase", "given", "opens"),
    [(None, None, True), (b"other", b"other", True), (b"other", None, False), (b"other", b"wrong", False)],
)
def test_the_roots_key_takes_its_own_passphrase_or_that_of_the_other(
    tmp_path: Path, now, later, root_passphrase: bytes | None, given: bytes | None, opens: bool
) -> None:
    Authority.create(
        tmp_path / "ca", trust_domain=DOMAIN, at=now, passphrase=b"horse",
        root_directory=tmp_path / "stick", root_passphrase=root_passphrase,
    )  # fmt: skip
    authority = Authority.open(tmp_path / "ca", passphrase=b"horse")
    if opens:
        rotated = replace_issuing(authority, tmp_path / "stick", at=later, root_passphrase=given)
        assert keys.is_encrypted(rotated.key_path.read_bytes())
        Authority.open(tmp_path / "ca", passphrase=b"horse").issue_client("alice", at=later)
    else:
        with pytest.raises(WrongPassphrase, match=r"root\.key: expected the passphrase"):
            replace_issuing(authority, tmp_path / "stick", at=later, root_passphrase=given)
        assert Authority.open(tmp_path / "ca").retired == ()


def test_a_compromised_issuing_ca_is_revoked_with_all_that_it_issued(
    two_tiers: Authority, stick: Path, now: datetime, later: datetime, verified
) -> None:
    old = two_tiers.issue_client("old", at=now)
    rotated = replace_issuing(two_tiers, stick, at=later, compromised=True)
    new = rotated.issue_client("new", at=later)
    assert "certificate revoked" in verified(rotated, old, later)
    assert verified(rotated, new, later).endswith(": OK\n")
    assert _revoked(rotated) == [set(), set(), {two_tiers.issuer.serial_number}]
    # Another one, later: the first stays revoked, also in a rotation without need.
    again = replace_issuing(rotated, stick, at=later + DAY, compromised=True)
    both = {two_tiers.issuer.serial_number, rotated.issuer.serial_number}
    assert _revoked(again)[-1] == both == _revoked(replace_issuing(again, stick, at=later + DAY))[-1]
    root_list = x509.load_pem_x509_crl((two_tiers.directory / "root.crl").read_bytes())
    assert root_list.is_signature_valid(two_tiers.anchor.public_key())
    assert root_list.next_update_utc == two_tiers.anchor.not_valid_after_utc
    dates = {entry.revocation_date_utc for entry in root_list}
    reasons = {entry.extensions.get_extension_for_class(x509.CRLReason).value.reason for entry in root_list}
    assert (dates, reasons) == ({later, later + DAY}, {x509.ReasonFlags.ca_compromise})
    assert again.store.last_valid_for() == 30 * DAY


def test_a_compromise_that_was_interrupted_is_of_the_same_issuing_ca_when_it_is_repeated(
    two_tiers: Authority, stick: Path, later: datetime
) -> None:
    _crash("replace_issuing", two_tiers.directory, "path == 'issuing.crt'", later, stick, compromised=True)
    rotated = replace_issuing(Authority.open(two_tiers.directory), stick, at=later, compromised=True)
    assert _revoked(rotated)[-1] == {two_tiers.issuer.serial_number}
    assert rotated.issuer != two_tiers.issuer


def test_an_issuing_ca_stays_revoked_when_a_backup_is_put_back_below_the_newest_list(
    two_tiers: Authority, stick: Path, tmp_path: Path, now: datetime, later: datetime
) -> None:
    two_tiers.issue_client("old", at=now)
    shutil.copytree(two_tiers.directory, tmp_path / "backup")
    rotated = replace_issuing(two_tiers, stick, at=later, compromised=True)
    replace_issuing(rotated, stick, at=later, compromised=True)
    newest = two_tiers.crl_path.read_bytes()
    shutil.rmtree(two_tiers.directory)
    shutil.copytree(tmp_path / "backup", two_tiers.directory)
    two_tiers.crl_path.write_bytes(newest)
    restored = Authority.open(two_tiers.directory)
    revoked = {two_tiers.issuer.serial_number, rotated.issuer.serial_number}
    write_lists(restored, at=later)
    assert _revoked(restored)[-1] == revoked
    assert revoked_issuers(restored).keys() == {two_tiers.issuer.subject}
    # The next one has them too, and gateways take it for the later one.
    again = replace_issuing(restored, stick, at=later, compromised=True)
    assert _revoked(again)[-1] == revoked
    assert published_lists(again, later).status is ListStatus.CURRENT


def test_the_root_s_list_in_a_backup_counts_where_that_in_ca_crl_is_older(
    two_tiers: Authority, stick: Path, later: datetime
) -> None:
    oldest = two_tiers.crl_path.read_bytes()
    rotated = replace_issuing(two_tiers, stick, at=later, compromised=True)
    rotated.crl_path.write_bytes(oldest)
    write_lists(rotated, at=later)
    assert _revoked(rotated)[-1] == {two_tiers.issuer.serial_number}


def test_an_issuing_ca_that_was_replaced_before_anybody_knew_is_revoked_with_all_that_it_issued(
    two_tiers: Authority, stick: Path, now: datetime, later: datetime, verified
) -> None:
    old = two_tiers.issue_client("old", at=now)
    rotated = replace_issuing(two_tiers, stick, at=later)
    middle = rotated.issue_client("middle", at=later)
    again = replace_issuing(rotated, stick, at=later)
    new = again.issue_client("new", at=later)
    assert all(verified(again, each, later).endswith(": OK\n") for each in (old, middle, new))

    lists = revoke_replaced(again, stick, two_tiers.issuer, at=later + DAY)
    assert lists.entries == 1
    assert "certificate revoked" in verified(again, old, later + DAY)
    assert verified(again, middle, later + DAY).endswith(": OK\n")
    assert verified(again, new, later + DAY).endswith(": OK\n")
    assert _revoked(again)[-1] == {two_tiers.issuer.serial_number}
    # Once more changes nothing but the number; another one comes beside it, also when its file is gone.
    assert revoke_replaced(again, stick, two_tiers.issuer, at=later + 2 * DAY).number > lists.number
    for path in again.directory.glob("issuing-*.crt"):
        path.unlink()
    revoke_replaced(again, stick, rotated.issuer, at=later + 2 * DAY)
    root_list = x509.load_pem_x509_crl((two_tiers.directory / "root.crl").read_bytes())
    assert {each.serial_number: each.revocation_date_utc for each in root_list} == {
        two_tiers.issuer.serial_number: later + DAY,
        rotated.issuer.serial_number: later + 2 * DAY,
    }


def test_only_an_issuing_ca_that_was_replaced_is_revoked_without_a_new_one(
    authority: Authority, two_tiers: Authority, stick: Path, later: datetime
) -> None:
    before = two_tiers.crl_path.read_bytes()
    with pytest.raises(PkiError, match="expected an intermediate that was replaced, got the one that issues"):
        revoke_replaced(two_tiers, stick, two_tiers.issuer, at=later)
    with pytest.raises(PkiError, match="got the root, which only a new authority replaces"):
        revoke_replaced(two_tiers, stick, two_tiers.anchor, at=later)
    with pytest.raises(UsageError, match="--root-dir: expected an authority whose root is kept elsewhere"):
        revoke_replaced(authority, stick, two_tiers.issuer, at=later)
    assert two_tiers.crl_path.read_bytes() == before


def test_a_root_s_list_that_did_not_reach_the_file_for_gateways_is_found(
    two_tiers: Authority, stick: Path, later: datetime
) -> None:
    rotated = replace_issuing(two_tiers, stick, at=later)
    before = rotated.crl_path.read_bytes()
    revoke_replaced(rotated, stick, two_tiers.issuer, at=later)
    assert published_lists(rotated, later).status is ListStatus.CURRENT
    rotated.crl_path.write_bytes(before)  # as after a crash between the two
    assert published_lists(rotated, later).status is ListStatus.BEHIND
    write_lists(rotated, at=later)
    assert _revoked(rotated)[-1] == {two_tiers.issuer.serial_number}


def test_two_roots_above_an_issuing_ca_are_no_authority(two_tiers: Authority, authority: Authority) -> None:
    (two_tiers.directory / "ca.crt").write_bytes(two_tiers.certificate_pem + authority.certificate_pem)
    with pytest.raises(PkiError, match=r"ca\.crt: expected one CA certificate, beside issuing\.crt, got 2"):
        Authority.open(two_tiers.directory)


def test_an_authority_of_before_there_were_lists_gets_the_roots(two_tiers: Authority, stick: Path, now, later) -> None:
    for name in ("ca.crl", "root.crl"):
        (two_tiers.directory / name).unlink()
    rotated = replace_issuing(two_tiers, stick, at=later)
    assert published_lists(rotated, later).status is ListStatus.CURRENT
    assert rotated.store.last_valid_for() == 30 * DAY


def test_a_roots_list_that_is_there_stays_as_it_is(two_tiers: Authority, stick: Path, later: datetime) -> None:
    before = (two_tiers.directory / "root.crl").read_bytes()
    replace_issuing(two_tiers, stick, at=later)
    assert (two_tiers.directory / "root.crl").read_bytes() == before


def test_each_kind_of_authority_has_its_own_way(authority: Authority, two_tiers: Authority, stick: Path, later) -> None:
    with pytest.raises(UsageError, match="--root-dir: expected an authority whose root is kept elsewhere"):
        replace_issuing(authority, stick, at=later)
    for step in (prepare, switch, finish, abort):
        with pytest.raises(UsageError, match="--root-dir: expected the directory with the root's key, got none"):
            step(two_tiers, at=later)


@pytest.mark.parametrize(
    ("before", "rotated"),
    [
        ("path.endswith('.key')", False),
        ("path.startswith('issuing-') and path.endswith('.crt')", False),
        ("path == 'issuing.crt'", False),
        ("path == 'ca.crl'", True),
    ],
)
def test_a_crash_leaves_the_old_issuing_ca_or_the_new_one(
    two_tiers: Authority, stick: Path, now: datetime, later: datetime, before: str, rotated: bool, verified
) -> None:
    old = two_tiers.issue_client("old", at=now)
    _crash("replace_issuing", two_tiers.directory, before, later, stick)
    opened = Authority.open(two_tiers.directory)
    assert (opened.issuer != two_tiers.issuer) is rotated
    assert opened.retired == ((two_tiers.issuer,) if rotated else ())
    assert published_lists(opened, later).status is (ListStatus.BEHIND if rotated else ListStatus.CURRENT)
    write_lists(opened, at=later)
    for issued in (old, opened.issue_client("new", at=later)):
        assert verified(opened, issued, later).endswith(": OK\n")
    again = replace_issuing(opened, stick, at=later + DAY)
    assert published_lists(again, later + DAY).status is ListStatus.CURRENT
