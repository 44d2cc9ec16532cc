"""Certificate revocation lists (RFC 5280 5), and what those of one trust say of a chain.

A list belongs to the key that signed it, whatever issuer it names: a list is believed for an authority only after its
signature was checked against that authority's key. Lists of the anchors are checked when the trust is made; others may
be an intermediate's, and are checked when the first chain shows that intermediate.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa

from portguard.errors import Refused
from portguard.identity.authorities import UNREADABLE, Authority, CanonicalName, canonical_name, is_authority, quietly
from portguard.identity.names import Malformed
from portguard.identity.pem import read_blocks
from portguard.identity.validity import written
from portguard.reasons import Reason

_SIGNING_KEYS = (
    rsa.RSAPublicKey | ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | ed448.Ed448PublicKey | dsa.DSAPublicKey
)
# Beyond these, a list that an authority marked as not to be used without understanding it is not used.
_UNDERSTOOD = (
    x509.AuthorityKeyIdentifier,
    x509.CRLNumber,
    x509.IssuingDistributionPoint,
    x509.CRLReason,
    x509.InvalidityDate,
)
# Keys of intermediates whose lists are remembered; there is one for each that is in use.
_MOST_BINDINGS = 1024


@dataclass(frozen=True, slots=True, eq=False)
class RevocationList:
    """One list, parsed. Whose it is, is known only once `is_signed_by` says so."""

    issuer: CanonicalName = field(repr=False)
    issuer_name: str  # as text, for messages
    this_update: datetime
    next_update: datetime | None  # None: the list does not say when it is out of date
    serials: frozenset[int] = field(repr=False)
    covers_users: bool  # whether the list is complete for certificates that are no authority's
    covers_authorities: bool  # likewise for those of authorities
    distribution_points: frozenset[str]  # if any: complete only for certificates that name one of them, or none at all
    _crl: x509.CertificateRevocationList = field(repr=False)

    def is_signed_by(self, authority: Authority) -> bool:
        """Whether the signature is that of the authority's key. *Fails closed.*"""
        key = authority.certificate.public_key()
        if not isinstance(key, _SIGNING_KEYS):
            return False
        try:
            return self._crl.is_signature_valid(key)
        except UnsupportedAlgorithm:
            return False

    def covers(self, certificate: x509.Certificate) -> bool:
        """Whether a certificate of this issuer that is not on the list is not revoked, as far as scope goes."""
        if not (self.covers_authorities if is_authority(certificate) else self.covers_users):
            return False
        if not self.distribution_points:
            return True
        named = _distribution_points(certificate)
        return not named or not named.isdisjoint(self.distribution_points)

    def is_current(self, at: datetime) -> bool:
        """Whether the list counts at this time (aware)."""
        return self.this_update <= at and (self.next_update is None or at <= self.next_update)


def parse_revocation_lists(content: bytes) -> tuple[RevocationList, ...]:
    """Read one DER list, or all PEM lists of a file.

    Raises Malformed for anything else in the file, and for lists that would need more than looking for a serial number:
    delta and indirect lists, those for some reasons or for attribute certificates only, unknown critical extensions.
    """
    with quietly():
        return tuple(map(_parse, read_blocks(content, "X509 CRL", "revocation list")))


@dataclass(frozen=True, slots=True)
class Standing:
    """What the lists of a trust say of one chain. Only how current they are still depends on the time."""

    refusal: Refused | None
    needed: tuple[tuple[str, tuple[RevocationList, ...]], ...]  # issuer, and its lists of which one must be current

    def check(self, at: datetime) -> None:
        """Raise Refused for a revoked chain, and for one without a current list at `at` (aware). *Fails closed.*"""
        if self.refusal is not None:
            raise Refused(self.refusal.reason, self.refusal.message)
        for issuer, lists in self.needed:
            if not any(each.is_current(at) for each in lists):
                spans = ", ".join(_span(each) for each in lists)
                message = f"{issuer}: expected a revocation list that is current at {written(at)}, got {spans}"
                raise Refused(Reason.CRL_EXPIRED, message)


class Revocations:
    """The lists of one trust. Without any, nothing is checked.

    With some, every certificate below the anchor needs a current list of its issuer, as with OpenSSL's
    X509_V_FLAG_CRL_CHECK_ALL: a list that was forgotten is not taken for an empty one. `accept_stale` goes on without
    a current list, be it out of date, not yet valid or missing; what any list revokes is revoked all the same.
    """

    def __init__(self, lists: Iterable[RevocationList], anchors: Sequence[Authority], *, accept_stale: bool):
        self._lists = tuple(lists)
        self._accept_stale = accept_stale
        self._by_key = {
            anchor.key: tuple(each for each in self._lists if each.is_signed_by(anchor)) for anchor in anchors
        }
        bound = {each for lists in self._by_key.values() for each in lists}
        self._unbound = tuple(each for each in self._lists if each not in bound)
        self.misattributed = tuple(
            each for each in self._unbound if any(each.issuer == anchor.subject for anchor in anchors)
        )
        """Lists that name an anchor as their issuer, and that no anchor has signed."""

    def standing(self, certificates: Sequence[x509.Certificate], issuers: Sequence[Authority]) -> Standing:
        """Judge a chain: `certificates` leaf first, without the anchor; `issuers[n]` issued `certificates[n]`.

        Revocation of any certificate outweighs everything else. *Fails closed.*
        """
        if not self._lists:
            return Standing(None, ())
        needed: list[tuple[str, tuple[RevocationList, ...]]] = []
        refusal: Refused | None = None
        for certificate, issuer in zip(certificates, issuers, strict=True):
            lists = self._signed_by(issuer)
            serial = certificate.serial_number
            if any(serial in each.serials for each in lists):
                message = (
                    f"{certificate.subject.rfc4514_string()}: serial number {serial:x} is revoked by {issuer.name}"
                )
                return Standing(Refused(Reason.CERTIFICATE_REVOKED, message), ())
            covering = tuple(each for each in lists if each.covers(certificate))
            if not lists and any(each.issuer == issuer.subject for each in self._unbound):
                # Not excused by `accept_stale`: a list that somebody else signed is not one that grew old.
                message = f"{issuer.name}: expected a revocation list signed by its key, got one with another signature"
                refusal = refusal or Refused(Reason.CRL_EXPIRED, message)
            elif not self._accept_stale:
                if not covering:
                    message = f"{issuer.name}: expected a revocation list for what it issued, got none"
                    refusal = refusal or Refused(Reason.CRL_EXPIRED, message)
                needed.append((issuer.name, covering))
        return Standing(refusal, () if refusal else tuple(needed))

    def _signed_by(self, issuer: Authority) -> tuple[RevocationList, ...]:
        lists = self._by_key.get(issuer.key)
        if lists is None:
            if len(self._by_key) >= _MOST_BINDINGS:
                self._by_key.clear()  # the anchors' are found again like the others
            lists = tuple(each for each in self._lists if each.is_signed_by(issuer))
            self._by_key[issuer.key] = lists
        return lists


def _parse(der: bytes) -> RevocationList:
    try:
        crl = x509.load_der_x509_crl(der)
        extensions = crl.extensions
        _refuse_unknown(extensions)
        scope = _scope(extensions)
        return RevocationList(
            issuer=canonical_name(crl.issuer),
            issuer_name=crl.issuer.rfc4514_string(),
            this_update=crl.last_update_utc,
            next_update=crl.next_update_utc,
            serials=frozenset(_revoked_serial(entry) for entry in crl),
            covers_users=scope is None or not scope.only_contains_ca_certs,
            covers_authorities=scope is None or not scope.only_contains_user_certs,
            distribution_points=_uris(scope.full_name or ()) if scope is not None else frozenset(),
            _crl=crl,
        )
    except Malformed:
        raise
    except UNREADABLE as error:
        raise Malformed("a readable revocation list", f"one that is not: {error}") from error


def _scope(extensions: x509.Extensions) -> x509.IssuingDistributionPoint | None:
    try:
        scope = extensions.get_extension_for_class(x509.IssuingDistributionPoint).value
    except x509.ExtensionNotFound:
        return None
    if scope.indirect_crl:
        raise Malformed("a list of one issuer's certificates", "an indirect list")
    if scope.only_some_reasons is not None:
        raise Malformed("a list for all reasons", "a list for some reasons only")
    if scope.only_contains_attribute_certs:
        raise Malformed("a list of public key certificates", "a list of attribute certificates")
    if scope.relative_name is not None:
        raise Malformed("a distribution point with a full name", "one with a relative name")
    if scope.full_name is not None and not _uris(scope.full_name):
        raise Malformed("a distribution point named by URI", "one with other names only")
    return scope


def _revoked_serial(entry: x509.RevokedCertificate) -> int:
    """Return the serial number of an entry. Every entry revokes, whatever its reason.

    certificateHold is a revocation while it lasts; removeFromCRL belongs in delta lists only (RFC 5280 5.3.1), so
    in a full one it can be no more than a mistake, and not one that lets anybody in.
    """
    extensions = entry.extensions
    if len(extensions):
        _refuse_unknown(extensions)
    return entry.serial_number


def _refuse_unknown(extensions: x509.Extensions) -> None:
    for extension in extensions:
        if isinstance(extension.value, x509.DeltaCRLIndicator):
            raise Malformed("a complete list", "a delta list")
        if isinstance(extension.value, x509.CertificateIssuer):
            raise Malformed("a list of one issuer's certificates", "an indirect list")
        if extension.critical and not isinstance(extension.value, _UNDERSTOOD):
            raise Malformed("no unknown critical extension", extension.oid.dotted_string)


def _distribution_points(certificate: x509.Certificate) -> frozenset[str]:
    try:
        points = certificate.extensions.get_extension_for_class(x509.CRLDistributionPoints).value
    except x509.ExtensionNotFound:
        return frozenset()
    return frozenset().union(*(_uris(point.full_name or ()) for point in points))


def _uris(names: Iterable[x509.GeneralName]) -> frozenset[str]:
    return frozenset(name.value for name in names if isinstance(name, x509.UniformResourceIdentifier))


def _span(each: RevocationList) -> str:
    until = written(each.next_update) if each.next_update is not None else "no end"
    return f"one from {written(each.this_update)} to {until}"
