"""Who gets a successor of a certificate, by the record of the authority."""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from portguard.errors import Refused
from portguard.pki import rotation
from portguard.pki.authority import Authority
from portguard.pki.errors import PkiError
from portguard.pki.issued import SignedCertificate
from portguard.pki.renewal import renew
from portguard.pki.revocation import revoke
from portguard.pki.store import Store
from portguard.reasons import Reason

HOUR = timedelta(hours=1)


@pytest.fixture
def two_tiers(tmp_path: Path, now: datetime) -> Authority:
    return Authority.create(
        tmp_path / "two", trust_domain="bastion.example.com", at=now, root_directory=tmp_path / "stick"
    )


def _renew(authority: Authority, issued: SignedCertificate, at: datetime, name: str = "alice") -> SignedCertificate:
    certificate = x509.load_der_x509_certificate(issued.record.der)
    return renew(authority, certificate, _key(certificate), name, at=at, valid_for=HOUR)


def _key(certificate: x509.Certificate) -> Any:
    return certificate.public_key()


def _refused(authority: Authority, issued: SignedCertificate, at: datetime, name: str = "alice") -> Reason:
    before = len(authority.store.records())
    with pytest.raises(Refused) as caught:
        _renew(authority, issued, at, name)
    assert len(authority.store.records()) == before
    return caught.value.reason


def test_a_certificate_has_a_successor_and_that_another(authority: Authority, now: datetime) -> None:
    successor = _renew(authority, _renew(authority, authority.issue_client("alice", at=now), now), now)
    assert successor.record in authority.store.records()
    assert successor.record.name == "alice"


def test_a_revoked_one_has_none(authority: Authority, now: datetime) -> None:
    issued = authority.issue_client("alice", at=now)
    revoke(authority, [issued.serial], reason=None, at=now)
    assert _refused(authority, issued, now) is Reason.CERTIFICATE_REVOKED


def test_whom_the_identity_is_taken_back_from_keeps_no_successor(authority: Authority, now: datetime) -> None:
    issued = authority.issue_client("alice", at=now)
    successor, bob = _renew(authority, issued, now), authority.issue_client("bob", at=now)
    revoked = revoke(authority, identities=["alice"], reason=None, at=now)
    assert [each.serial for each in revoked.now] == [issued.serial, successor.serial]
    assert _refused(authority, successor, now) is Reason.CERTIFICATE_REVOKED
    assert _renew(authority, bob, now, "bob").record.revocation is None


def test_one_that_is_revoked_by_its_number_leaves_its_successor_alone(authority: Authority, now: datetime) -> None:
    issued = authority.issue_client("alice", at=now)
    successor = _renew(authority, issued, now)
    revoke(authority, [issued.serial], reason=None, at=now)
    assert not _renew(authority, successor, now).record.revocation


def test_a_renewal_that_crosses_a_revocation_is_either_refused_or_revoked(
    authority: Authority, now: datetime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the look at what there is of an identity, and the record that it is revoked."""
    issued = authority.issue_client("alice", at=now)
    successors = []
    look: Callable[[Store], list[Any]] = Store.records

    def looked(store: Store) -> list[Any]:
        found = look(store)
        successors.append(_renew(authority, issued, now))
        return found

    monkeypatch.setattr(Store, "records", looked)
    revoked = revoke(authority, identities=["alice"], reason=None, at=now)
    monkeypatch.undo()
    assert successors
    assert {each.serial for each in (issued, *successors)} == {each.serial for each in revoked.now}
    lists = x509.load_pem_x509_crl(authority.crl_path.read_bytes())
    assert {entry.serial_number for entry in lists} == {each.serial for each in (issued, *successors)}


def test_what_was_issued_after_a_backup_that_was_put_back_has_none(authority: Authority, now: datetime) -> None:
    backup = authority.store.path.read_bytes()
    issued = authority.issue_client("alice", at=now)
    authority.store.path.write_bytes(backup)
    assert _refused(authority, issued, now) is Reason.CERTIFICATE_UNTRUSTED


def test_one_that_takes_the_serial_or_the_name_of_another_has_none(authority: Authority, now: datetime) -> None:
    """Whoever has got hold of the key could make such."""
    alice, bob = authority.issue_client("alice", at=now), authority.issue_client("bob", at=now)
    assert _refused(authority, bob, now) is Reason.CERTIFICATE_UNTRUSTED
    genuine = x509.load_der_x509_certificate(alice.record.der)
    builder = x509.CertificateBuilder(
        genuine.issuer,
        genuine.subject,
        _key(genuine),
        genuine.serial_number,
        genuine.not_valid_before_utc,
        genuine.not_valid_after_utc,
    )
    forged = builder.sign(load_pem_private_key(authority.key_path.read_bytes(), None), genuine.signature_hash_algorithm)  # type: ignore[arg-type]
    with pytest.raises(Refused):
        renew(authority, forged, _key(forged), "alice", at=now, valid_for=HOUR)
    _renew(authority, alice, now)


def test_the_certificate_of_a_gateway_has_none(authority: Authority, now: datetime) -> None:
    issued = authority.issue_gateway(["alice"], at=now)
    assert _refused(authority, issued, now) is Reason.CERTIFICATE_UNTRUSTED


def test_of_a_ca_that_was_replaced_all_is_renewed_and_of_one_that_was_compromised_nothing(
    two_tiers: Authority, tmp_path: Path, now: datetime
) -> None:
    first = two_tiers.issue_client("alice", at=now)
    replaced = rotation.replace_issuing(two_tiers, tmp_path / "stick", at=now)
    second = _renew(replaced, first, now)
    assert _issuer(second) == replaced.issuer.subject
    compromised = rotation.replace_issuing(replaced, tmp_path / "stick", at=now, compromised=True)
    assert _refused(compromised, second, now) is Reason.CERTIFICATE_REVOKED
    _renew(compromised, first, now)


def test_of_a_root_that_is_gone_nothing_is_renewed(authority: Authority, now: datetime) -> None:
    issued = authority.issue_client("alice", at=now)
    authority = rotation.switch(rotation.prepare(authority, at=now + HOUR), at=now + HOUR)
    successor = _renew(authority, issued, now + HOUR)
    authority = rotation.finish(authority, at=now + HOUR, force=True)
    assert _refused(authority, issued, now + HOUR) is Reason.CERTIFICATE_UNTRUSTED
    _renew(authority, successor, now + HOUR)


def test_with_a_root_s_list_that_cannot_be_read_nothing_is_renewed(two_tiers: Authority, now: datetime) -> None:
    issued = two_tiers.issue_client("alice", at=now)
    path = two_tiers.root_crl_path
    assert path is not None
    path.write_bytes(b"-")
    with pytest.raises(PkiError, match="the revocation list that the root signed"):
        _renew(two_tiers, issued, now)


def _issuer(issued: SignedCertificate) -> x509.Name:
    return x509.load_der_x509_certificate(issued.record.der).issuer
