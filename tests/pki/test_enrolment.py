"""Who gets a first certificate by an invitation, by the record of the authority."""

import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from portguard.errors import Refused, UsageError
from portguard.pki import rotation
from portguard.pki.authority import Authority
from portguard.pki.enrolment import enroll, invited
from portguard.pki.errors import PkiError
from portguard.pki.issued import IssuedCertificate, SignedCertificate
from portguard.pki.profiles import Kind, RevocationReason
from portguard.pki.renewal import renew
from portguard.pki.revocation import revoke
from portguard.pki.standing import left_to_clients
from portguard.pki.store import Status, Store
from portguard.reasons import Reason

DAY = timedelta(days=1)
ALICES, ANOTHERS = (ec.generate_private_key(ec.SECP256R1()).public_key() for _ in range(2))


@pytest.fixture
def invitation(authority: Authority, now: datetime) -> IssuedCertificate:
    return authority.invite("alice", at=now)


def _certificate(issued: SignedCertificate) -> x509.Certificate:
    return x509.load_der_x509_certificate(issued.record.der)


def _enroll(
    authority: Authority, invitation: SignedCertificate, at: datetime, key: Any = ALICES, name: str = "alice"
) -> SignedCertificate:
    return enroll(authority, _certificate(invitation), key, name, at=at, valid_for=30 * DAY)


def _refused(
    authority: Authority, invitation: SignedCertificate, at: datetime, key: Any = ALICES, name: str = "alice"
) -> tuple[Reason, str]:
    before = authority.store.records()
    with pytest.raises(Refused) as caught:
        _enroll(authority, invitation, at, key, name)
    assert authority.store.records() == before
    return caught.value.reason, caught.value.message


def _status(authority: Authority, issued: SignedCertificate, at: datetime) -> Status:
    record = authority.store.get(issued.serial)
    assert record is not None
    return record.status(at)


def test_an_invitation_names_nobody_and_its_record_knows_whom_it_is_for(
    authority: Authority, invitation: IssuedCertificate, now: datetime
) -> None:
    certificate = _certificate(invitation)
    assert certificate.subject.rfc4514_string() == "O=portguard invitation"
    assert {type(extension.value).__name__ for extension in certificate.extensions} == {
        "SubjectKeyIdentifier",
        "AuthorityKeyIdentifier",
        "BasicConstraints",
        "KeyUsage",
        "ExtendedKeyUsage",
    }
    assert b"alice" not in invitation.record.der
    assert (invitation.record.kind, invitation.record.name) == (Kind.INVITATION, "alice")
    assert invitation.not_after == now + timedelta(days=3)
    assert invited(authority, certificate) == "alice"
    assert _status(authority, invitation, now) is Status.OPEN
    assert load_pem_private_key(invitation.key_pem, None).public_key() == certificate.public_key()


def test_strict_verifiers_take_its_certificate(
    authority: Authority, invitation: IssuedCertificate, tmp_path: Path, openssl: Any, now: datetime
) -> None:
    (tmp_path / "invitation.crt").write_bytes(invitation.certificate_pem)
    at = ("-attime", str(int(now.timestamp())))
    judged = openssl(
        "verify",
        "-x509_strict",
        "-purpose",
        "sslclient",
        *at,
        "-CAfile",
        authority.ca_path,
        tmp_path / "invitation.crt",
    )
    assert judged.returncode == 0, judged.stderr


@pytest.mark.parametrize("name", ["", "../alice", "alice*", "a//b"])
def test_nobody_is_invited_whose_name_cannot_be(authority: Authority, now: datetime, name: str) -> None:
    with pytest.raises(UsageError):
        authority.invite(name, at=now)
    assert authority.store.records() == []


def test_a_key_gets_the_certificate_and_the_same_again(
    authority: Authority, invitation: IssuedCertificate, now: datetime
) -> None:
    first = _enroll(authority, invitation, now)
    certificate = _certificate(first)
    assert certificate.public_key() == ALICES
    assert certificate.subject.rfc4514_string() == "CN=alice"
    assert first.not_after == now + 30 * DAY
    assert _status(authority, invitation, now) is Status.USED
    again = _enroll(authority, invitation, now + DAY)
    assert (again.record, again.certificate_pem) == (first.record, first.certificate_pem)
    assert [record.kind for record in authority.store.records()] == [Kind.INVITATION, Kind.CLIENT]


def test_another_key_gets_none_once_it_was_used(
    authority: Authority, invitation: IssuedCertificate, now: datetime
) -> None:
    _enroll(authority, invitation, now)
    reason, message = _refused(authority, invitation, now, ANOTHERS)
    assert reason is Reason.INVITATION_USED
    assert message == "the invitation was used already, for another key"
    _enroll(authority, authority.invite("alice", at=now), now, ANOTHERS)


def test_of_two_keys_at_once_one_gets_it(authority: Authority, invitation: IssuedCertificate, now: datetime) -> None:
    barrier, outcomes = threading.Barrier(2), []

    def attempt(key: Any) -> None:
        barrier.wait()
        try:
            outcomes.append(_enroll(Authority.open(authority.directory), invitation, now, key).record.kind)
        except Refused as refused:
            outcomes.append(refused.reason)

    threads = [threading.Thread(target=attempt, args=(key,)) for key in (ALICES, ANOTHERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(outcomes) == {Kind.CLIENT, Reason.INVITATION_USED}


def test_the_key_of_the_invitation_itself_gets_none(
    authority: Authority, invitation: IssuedCertificate, now: datetime
) -> None:
    key = _certificate(invitation).public_key()
    reason, message = _refused(authority, invitation, now, key)
    assert reason is Reason.BAD_REQUEST
    assert message == "request: expected a key of your own, got that of the invitation"


def test_one_that_is_revoked_or_expired_gets_none(
    authority: Authority, invitation: IssuedCertificate, now: datetime
) -> None:
    assert _refused(authority, invitation, now + 4 * DAY)[0] is Reason.CERTIFICATE_EXPIRED
    assert _status(authority, invitation, now + 4 * DAY) is Status.EXPIRED
    revoke(authority, [invitation.serial], reason=None, at=now)
    assert _refused(authority, invitation, now) == (Reason.CERTIFICATE_REVOKED, "the invitation is revoked")
    assert _status(authority, invitation, now) is Status.REVOKED


def test_a_certificate_that_is_good_no_more_is_not_given_again(
    authority: Authority, invitation: IssuedCertificate, now: datetime
) -> None:
    short = enroll(authority, _certificate(invitation), ALICES, "alice", at=now, valid_for=timedelta(hours=1))
    assert _refused(authority, invitation, now + DAY)[0] is Reason.CERTIFICATE_EXPIRED
    revoke(authority, [short.serial], reason=None, at=now)
    expected = "the certificate that the invitation was used for is revoked"
    assert _refused(authority, invitation, now) == (Reason.CERTIFICATE_REVOKED, expected)


def test_whom_the_identity_is_taken_back_from_has_no_invitation_left(
    authority: Authority, invitation: IssuedCertificate, now: datetime
) -> None:
    used, bobs = authority.invite("alice", at=now), authority.invite("bob", at=now)
    issued = _enroll(authority, used, now)
    revoked = revoke(authority, identities=["alice"], reason=RevocationReason.KEY_COMPROMISE, at=now)
    # One that is used gives nothing but what is revoked now.
    assert {each.serial for each in revoked.now} == {invitation.serial, issued.serial}
    for left in (invitation, used):
        assert _refused(authority, left, now)[0] is Reason.CERTIFICATE_REVOKED
    _enroll(authority, bobs, now, ANOTHERS, "bob")
    lists = x509.load_pem_x509_crl(authority.crl_path.read_bytes())
    assert {entry.serial_number for entry in lists} == {invitation.serial, issued.serial}


@pytest.mark.parametrize("used", [True, False])
def test_an_invitation_that_crosses_a_revocation_leads_to_nothing(
    authority: Authority, invitation: IssuedCertificate, now: datetime, monkeypatch: pytest.MonkeyPatch, used: bool
) -> None:
    """Made, or used, between the look at what there is of an identity, and the record that it is revoked."""
    look: Callable[[Store], list[Any]] = Store.records
    more = []

    def looked(store: Store) -> list[Any]:
        found = look(store)
        monkeypatch.undo()
        more.append(_enroll(authority, invitation, now) if used else authority.invite("alice", at=now))
        return found

    monkeypatch.setattr(Store, "records", looked)
    revoke(authority, identities=["alice"], reason=None, at=now)
    assert [_status(authority, each, now) for each in more] == [Status.REVOKED]
    for each in (invitation, *([] if used else more)):
        assert _refused(authority, each, now)[0] is Reason.CERTIFICATE_REVOKED


def test_who_has_nothing_but_an_invitation_can_be_revoked_by_name(
    authority: Authority, invitation: IssuedCertificate, now: datetime
) -> None:
    assert [each.serial for each in revoke(authority, identities=["alice"], reason=None, at=now).now] == [
        invitation.serial
    ]
    with pytest.raises(PkiError):
        revoke(authority, identities=["bob"], reason=None, at=now)


def test_an_open_invitation_is_left_to_whom_a_certificate_is_taken_from(
    authority: Authority, invitation: IssuedCertificate, now: datetime
) -> None:
    revoked = revoke(authority, [authority.issue_client("alice", at=now).serial], reason=None, at=now)
    assert left_to_clients(authority, revoked.now, now) == {"alice": {Kind.INVITATION: 1}}
    _enroll(authority, invitation, now)
    # The certificate, and not what it came by.
    assert left_to_clients(authority, revoked.now, now) == {"alice": {Kind.CLIENT: 1}}
    assert left_to_clients(authority, revoked.now, now + 31 * DAY) == {}


def test_a_certificate_of_another_kind_or_for_another_name_is_no_invitation(
    authority: Authority, invitation: IssuedCertificate, now: datetime
) -> None:
    for other in (authority.issue_client("alice", at=now), authority.issue_gateway(["alice"], at=now)):
        with pytest.raises(Refused, match="no record of the invitation"):
            invited(authority, _certificate(other))
        assert _refused(authority, other, now)[0] is Reason.CERTIFICATE_UNTRUSTED
    assert _refused(authority, invitation, now, name="bob")[0] is Reason.CERTIFICATE_UNTRUSTED


def test_one_that_takes_the_serial_of_another_is_no_invitation(
    authority: Authority, invitation: IssuedCertificate, now: datetime
) -> None:
    """Whoever has got hold of the key of an issuing CA could make such."""
    genuine, key = _certificate(invitation), ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateBuilder(
        genuine.issuer,
        genuine.subject,
        key.public_key(),
        genuine.serial_number,
        genuine.not_valid_before_utc,
        genuine.not_valid_after_utc,
    )
    forged = builder.sign(load_pem_private_key(authority.key_path.read_bytes(), None), genuine.signature_hash_algorithm)  # type: ignore[arg-type]
    for act in (
        lambda: invited(authority, forged),
        lambda: enroll(authority, forged, ALICES, "alice", at=now, valid_for=DAY),
    ):
        with pytest.raises(Refused, match="no record of the invitation"):
            act()
    _enroll(authority, invitation, now)


def test_what_was_made_after_a_backup_that_was_put_back_is_no_invitation(authority: Authority, now: datetime) -> None:
    backup = authority.store.path.read_bytes()
    invitation = authority.invite("alice", at=now)
    authority.store.path.write_bytes(backup)
    with pytest.raises(Refused, match="no record of the invitation"):
        invited(authority, _certificate(invitation))
    assert _refused(authority, invitation, now)[0] is Reason.CERTIFICATE_UNTRUSTED


def test_an_invitation_is_not_renewed_and_what_comes_of_it_is(
    authority: Authority, invitation: IssuedCertificate, now: datetime
) -> None:
    with pytest.raises(Refused):
        renew(authority, _certificate(invitation), ALICES, "alice", at=now, valid_for=DAY)
    issued = _certificate(_enroll(authority, invitation, now))
    assert renew(authority, issued, ANOTHERS, "alice", at=now, valid_for=DAY).record.name == "alice"


def test_after_the_issuing_ca_was_replaced_the_answer_has_the_one_of_then(tmp_path: Path, now: datetime) -> None:
    authority = Authority.create(
        tmp_path / "two", trust_domain="bastion.example.com", at=now, root_directory=tmp_path / "stick"
    )
    first, second = authority.invite("alice", at=now), authority.invite("bob", at=now)
    before = _enroll(authority, first, now)
    replaced = rotation.replace_issuing(authority, tmp_path / "stick", at=now)
    assert _enroll(replaced, first, now).certificate_pem == before.certificate_pem
    assert _issuers(before) == [authority.issuer]
    assert _issuers(_enroll(replaced, second, now, ANOTHERS, "bob")) == [replaced.issuer]


def test_of_a_ca_that_was_compromised_no_invitation_is_taken(tmp_path: Path, now: datetime) -> None:
    authority = Authority.create(
        tmp_path / "two", trust_domain="bastion.example.com", at=now, root_directory=tmp_path / "stick"
    )
    invitation = authority.invite("alice", at=now)
    compromised = rotation.replace_issuing(authority, tmp_path / "stick", at=now, compromised=True)
    expected = Reason.CERTIFICATE_REVOKED, "the CA that issued the invitation is revoked"
    assert _refused(compromised, invitation, now) == expected
    _enroll(compromised, compromised.invite("alice", at=now), now)


def test_what_a_ca_gave_that_was_compromised_later_is_not_given_again(tmp_path: Path, now: datetime) -> None:
    authority = Authority.create(
        tmp_path / "two", trust_domain="bastion.example.com", at=now, root_directory=tmp_path / "stick"
    )
    invitation = authority.invite("alice", at=now)
    replaced = rotation.replace_issuing(authority, tmp_path / "stick", at=now)
    _enroll(replaced, invitation, now)
    compromised = rotation.replace_issuing(replaced, tmp_path / "stick", at=now, compromised=True)
    assert _refused(compromised, invitation, now)[0] is Reason.CERTIFICATE_REVOKED


def test_of_a_root_that_is_gone_no_invitation_is_taken(authority: Authority, now: datetime) -> None:
    invitation = authority.invite("alice", at=now)
    later = now + timedelta(hours=1)
    authority = rotation.switch(rotation.prepare(authority, at=later), at=later)
    assert [each.serial for each in rotation.still_good(authority, later)] == [invitation.serial]
    authority = rotation.finish(authority, at=later, force=True)
    expected = Reason.CERTIFICATE_UNTRUSTED, "the CA that issued the invitation was replaced"
    assert _refused(authority, invitation, later) == expected


def _issuers(issued: SignedCertificate) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(issued.certificate_pem)[1:]
