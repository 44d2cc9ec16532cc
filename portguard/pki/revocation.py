"""What the authority takes back: revocations in its record, and the lists in `ca.crl` that tell gateways of them.

    revoked = revoke(authority, [serial], reason=RevocationReason.KEY_COMPROMISE, at=now)
    written = write_lists(authority, at=now)

First comes the record, then the list, which is always made of the whole record: one that was not written, after a crash
or on a full disk, is made up for by the next. What the list before has and the record has not stays in it,
and so does the root's own list. Both happen under the lock of the authority's directory, so that of two commands the
later one's list has what the earlier one revoked, and the higher number.
"""

from collections.abc import Collection, Container, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from portguard.identity.names import Malformed
from portguard.identity.pem import read_blocks
from portguard.instants import written_instant
from portguard.pki import files
from portguard.pki.authority import LIST_VALID_FOR, Authority, list_pem
from portguard.pki.directory_lock import locked
from portguard.pki.errors import MALFORMED, PkiError
from portguard.pki.files import PUBLIC, NewFile
from portguard.pki.profiles import CLOCK_SKEW, OF_CLIENTS, Issuer, Revocation, RevocationReason, Validity
from portguard.pki.store import Record

_ROOT_LIST = "the revocation list that the root signed"


@dataclass(frozen=True, slots=True)
class WrittenLists:
    """What `ca.crl` holds now. `next_update` is aware: until then gateways take it."""

    number: int
    entries: int
    next_update: datetime
    pem: bytes


@dataclass(frozen=True, slots=True)
class Revoked:
    """What a call of `revoke` did: certificates revoked by it, those that were revoked before, and the new list."""

    now: tuple[Record, ...]
    before: tuple[Record, ...]
    lists: WrittenLists


class ListStatus(StrEnum):
    """What `ca.crl` is worth."""

    CURRENT = "current"
    OUT_OF_DATE = "out_of_date"
    BEHIND = "behind"  # something that was revoked is not in it, or the list of one CA is not
    UNREADABLE = "unreadable"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class PublishedLists:
    """`ca.crl` as it is. None: the file does not say."""

    status: ListStatus
    number: int | None = None
    entries: int | None = None
    next_update: datetime | None = None


def revoke(
    authority: Authority,
    serials: Iterable[int] = (),
    identities: Iterable[str] = (),
    *,
    reason: RevocationReason | None,
    at: datetime,
) -> Revoked:
    """Record that certificates are revoked, all or none, and write the lists anew.

    `identities` stand for all certificates of these clients that are neither revoked nor expired, and for their open
    invitations, by which they would enroll anew. `reason` None is unspecified, and leaves alone for which reason
    something is revoked already.

    Raises PkiError when a serial or an identity was never issued, or was revoked for another reason; WrongPassphrase
    when the key is locked. Then nothing is recorded. When only the lists cannot be written, PkiError says so.
    """
    identities = tuple(identities)
    with locked(authority.directory):
        authority = authority.reopened()
        # What would keep the list from being signed is told before anything is recorded.
        _signers(authority, at)
        _root_list_pem(authority)
        chosen = _chosen(authority, serials, identities, at)
        before = [record for record in chosen if record.revocation is not None]
        if reason is not None:
            _expect_reason(before, reason)
        revocation = Revocation(at.replace(microsecond=0), reason or RevocationReason.UNSPECIFIED)
        new = [record.serial for record in chosen if record.revocation is None]
        # Whom it means by name is looked up once more in there: somebody may have renewed a certificate meanwhile.
        new = authority.store.revoke(new, revocation, identities)
        try:
            lists = write_lists_locked(authority, at=at)
        except PkiError as error:
            found = f"{error.found}; what was revoked is recorded, and `portguard ca crl` writes the list"
            raise PkiError(error.subject, error.expected, found) from error
        return Revoked(tuple(filter(None, map(authority.store.get, new))), tuple(before), lists)


def revoked_issuers(authority: Authority) -> dict[x509.Name, Revocation]:
    """Return which issuing CAs in the authority's directory the root has revoked. Raises PkiError for its list."""
    revoked = {each.serial_number: read_revocation(each) for each in root_list(authority) or ()}
    every = (authority.issuer, *authority.retired)
    return {each.subject: revoked[each.serial_number] for each in every if each.serial_number in revoked}


def write_lists(authority: Authority, *, at: datetime, valid_for: timedelta | None = None) -> WrittenLists:
    """Write the lists anew, valid for as long as the last ones where `valid_for` is None.

    Raises UsageError for a `valid_for` that cannot be, WrongPassphrase when the key is locked, PkiError.
    """
    with locked(authority.directory):
        return write_lists_locked(authority.reopened(), at=at, valid_for=valid_for)


def published_lists(authority: Authority, at: datetime) -> PublishedLists:
    """Look at `ca.crl`, and whether it tells all that the record and the root's own list have. Raises PkiError."""
    issuers = [*dict.fromkeys((authority.issuer, authority.anchor)), *_others(authority, at)]
    unsettled = [
        record for record in authority.store.unsettled() if any(is_issued_by(record, each) for each in issuers)
    ]
    needed = {record.serial for record in unsettled} | {each.serial_number for each in root_list(authority) or ()}
    try:
        content = authority.crl_path.read_bytes()
    except FileNotFoundError:
        return PublishedLists(ListStatus.MISSING)
    except OSError:
        return PublishedLists(ListStatus.UNREADABLE)
    try:
        lists = _read_lists(content)
        own = [_signed_by(certificate, lists) for certificate in issuers]
        number = None if own[0] is None else own[0].extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        serials = {entry.serial_number for each in own if each is not None for entry in each}
        ends = [each.next_update_utc for each in lists if each.next_update_utc is not None]
    except (Malformed, x509.ExtensionNotFound, *MALFORMED):
        return PublishedLists(ListStatus.UNREADABLE)
    next_update = min(ends, default=None)
    status = ListStatus.CURRENT
    if None in own or not serials >= needed:
        status = ListStatus.BEHIND
    elif next_update is None or next_update < at:
        status = ListStatus.OUT_OF_DATE
    return PublishedLists(status, number, len(serials), next_update)


def _chosen(
    authority: Authority, serials: Iterable[int], identities: Iterable[str], at: datetime
) -> Collection[Record]:
    """Each certificate once. Raises PkiError."""
    chosen: dict[int, Record] = {}
    for serial in serials:
        record = authority.store.get(serial)
        if record is None:
            expected = f"a certificate that the authority in {authority.directory} issued"
            raise PkiError(f"serial {serial:x}", expected, "none")
        chosen[serial] = record
    for identity in dict.fromkeys(identities):
        issued = [each for each in authority.store.records() if each.kind in OF_CLIENTS and each.name == identity]
        if not issued:
            expected = f"a client to whom the authority in {authority.directory} issued a certificate"
            raise PkiError(f"identity {identity}", expected, "none of this name")
        chosen |= {each.serial: each for each in issued if each.is_good(at)}
    return chosen.values()


def _expect_reason(revoked: Iterable[Record], reason: RevocationReason) -> None:
    for record in revoked:
        assert record.revocation is not None
        if record.revocation.reason is not reason:
            expected = f"a certificate that is not revoked, or for the reason {reason}"
            since = written_instant(record.revocation.at)
            found = f"one revoked since {since} for the reason {record.revocation.reason}, which stays"
            raise PkiError(f"serial {record.serial:x}", expected, found)


def write_lists_locked(authority: Authority, *, at: datetime, valid_for: timedelta | None = None) -> WrittenLists:
    """As `write_lists`, for who holds the lock of the directory and has opened the authority since."""
    store = authority.store
    if valid_for is None:
        valid_for = store.last_valid_for() or LIST_VALID_FOR
    signers = _signers(authority, at)
    validities = [Validity.starting(at, valid_for, signer.certificate) for signer in signers]
    root_pem = _root_list_pem(authority)
    revoked = store.unsettled()
    there, recorded = _lists_before(authority), store.revoked_serials()
    before = [_signed_by(signer.certificate, there) for signer in signers]
    # Before it is signed: a crash leaves out a number, and never uses one twice.
    number = store.begin_list(at, valid_for, above=max(map(list_number, filter(None, before)), default=0))
    pem, listed, count = b"", [], len(root_list(authority) or ())
    for signer, validity, last in zip(signers, validities, before, strict=True):
        entries = [record for record in revoked if is_issued_by(record, signer.certificate)]
        told = _unrecorded(recorded, last)
        told |= {each.serial: each.revocation for each in entries if each.revocation}
        pem += list_pem(told.items(), number, validity, signer)
        listed += entries
        count += len(told)
    files.publish([NewFile(authority.crl_path, pem + root_pem, PUBLIC)], overwrite=True)
    # Only now: RFC 5280 section 3.3 wants an entry in one list that was issued after the certificate's end.
    over = [record.serial for record in listed if record.not_after < validities[0].not_before]
    store.settle(over, number)
    return WrittenLists(number, count, min(validity.not_after for validity in validities), pem + root_pem)


def _lists_before(authority: Authority) -> tuple[x509.CertificateRevocationList, ...]:
    """Return the lists that are in `ca.crl` now; none where it is missing or cannot be read."""
    try:
        return _read_lists(authority.crl_path.read_bytes())
    except (OSError, Malformed, *MALFORMED):
        return ()


def list_number(crl: x509.CertificateRevocationList) -> int:
    """0 for a list that has none."""
    try:
        return crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    except (x509.ExtensionNotFound, *MALFORMED):
        return 0


def _unrecorded(recorded: Container[int], crl: x509.CertificateRevocationList | None) -> dict[int, Revocation]:
    """Return what a list has as revoked and the record has not: a backup of the record was put back.

    *Fails closed*: it stays revoked.
    """
    return {each.serial_number: read_revocation(each) for each in crl or () if each.serial_number not in recorded}


def read_revocation(entry: x509.RevokedCertificate) -> Revocation:
    """Read an entry of a list back. A reason that portguard does not use, by another's hand, is left out."""
    try:
        reason = RevocationReason(entry.extensions.get_extension_for_class(x509.CRLReason).value.reason.value)
    except (x509.ExtensionNotFound, ValueError):
        reason = RevocationReason.UNSPECIFIED
    return Revocation(entry.revocation_date_utc, reason)


def _signers(authority: Authority, at: datetime) -> list[Issuer]:
    """Return the CAs of which `ca.crl` needs a list, with their keys, the one that issues first."""
    return [authority.signer(), *map(authority.signer_of, _others(authority, at))]


def _others(authority: Authority, at: datetime) -> list[x509.Certificate]:
    """Return the CAs beside the one that issues of which somebody may still show a certificate."""
    others = [*authority.anchors[1:], *authority.retired]
    if authority.retired:
        unexpired = [each for each in authority.store.records() if each.not_after >= at - CLOCK_SKEW]
        left = {each.serial: each for each in (*unexpired, *authority.store.unsettled())}.values()
        retired = [each for each in authority.retired if any(is_issued_by(record, each) for record in left)]
        others = [*authority.anchors[1:], *retired]
    return [each for each in others if at < each.not_valid_after_utc]


def is_issued_by(record: Record, authority: x509.Certificate) -> bool:
    """Whether this CA issued the certificate: by its name, which no two of portguard's CAs share."""
    return x509.load_der_x509_certificate(record.der).issuer == authority.subject


def _root_list_pem(authority: Authority) -> bytes:
    """Return the list that the root signed before its key went away, in PEM; empty where the root issues."""
    path = authority.root_crl_path
    if path is None:
        return b""
    if not path.exists():
        raise PkiError(path, _ROOT_LIST, "no such file; `portguard ca rotate --root-dir` makes it")
    return _read_root_list(authority, path).public_bytes(Encoding.PEM)


def root_list(authority: Authority) -> x509.CertificateRevocationList | None:
    """Return the root's own list, checked against the root's key: that of its file, or a later one in `ca.crl`.

    The one in `ca.crl` is later where a backup of the directory was put back. *Fails closed*: what it has as revoked
    stays revoked. None: the root issues, or the authority was made before there were lists, and cannot revoke. Raises
    PkiError.
    """
    path = authority.root_crl_path
    return _read_root_list(authority, path) if path is not None and path.exists() else None


def _read_root_list(authority: Authority, path: Path) -> x509.CertificateRevocationList:
    try:
        crl = _signed_by(authority.anchor, _read_lists(files.read(path, _ROOT_LIST)))
    except (Malformed, *MALFORMED) as error:
        raise PkiError(path, _ROOT_LIST, "something else") from error
    if crl is None:
        raise PkiError(path, _ROOT_LIST, "one with another signature")
    published = _signed_by(authority.anchor, _lists_before(authority))
    return crl if published is None else max(crl, published, key=list_number)


def _read_lists(content: bytes) -> tuple[x509.CertificateRevocationList, ...]:
    return tuple(map(x509.load_der_x509_crl, read_blocks(content, "X509 CRL", "revocation list")))


def _signed_by(
    authority: x509.Certificate, lists: Iterable[x509.CertificateRevocationList]
) -> x509.CertificateRevocationList | None:
    key = authority.public_key()
    assert isinstance(key, rsa.RSAPublicKey | ec.EllipticCurvePublicKey)  # what `keys` makes
    return next((each for each in lists if each.is_signature_valid(key)), None)
