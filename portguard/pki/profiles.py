"""What the authority signs, field by field: certificates of all kinds, revocation lists.

Profiles follow RFC 5280 sections 4.2 and 5, and the SPIFFE X.509-SVID standard. There are no name constraints: a
gateway compares the trust domain itself, and TLS libraries that know no URI constraints would refuse the whole chain.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from portguard.errors import UsageError
from portguard.pki.errors import PkiError
from portguard.pki.keys import PrivateKey
from portguard.pki.names import ATTRIBUTE_MAX, spiffe_id
from portguard.policy.quantities import format_duration

# A verifier whose clock is this far behind still accepts a certificate that was made a moment ago.
CLOCK_SKEW = timedelta(minutes=5)

VALID_FOR_MAX = timedelta(days=36525)


class Kind(StrEnum):
    """What a certificate is for; each is for one thing only."""

    CLIENT = "client"
    GATEWAY = "gateway"
    INVITATION = "invitation"


OF_CLIENTS = frozenset({Kind.CLIENT, Kind.INVITATION})
"""What is in the hands of the client whose name the record has."""


class RevocationReason(StrEnum):
    """Why a certificate was revoked, in the words of RFC 5280 section 5.3.1.

    Those that an authority of this size can mean: certificateHold is what `portguard lock` does better. cACompromise is
    for CAs, all others for what they issue.
    """

    UNSPECIFIED = "unspecified"
    KEY_COMPROMISE = "keyCompromise"
    AFFILIATION_CHANGED = "affiliationChanged"
    SUPERSEDED = "superseded"
    CESSATION_OF_OPERATION = "cessationOfOperation"
    PRIVILEGE_WITHDRAWN = "privilegeWithdrawn"
    CA_COMPROMISE = "cACompromise"


@dataclass(frozen=True, slots=True)
class Revocation:
    """When, aware and in whole seconds, and why a certificate was revoked."""

    at: datetime
    reason: RevocationReason


@dataclass(frozen=True, slots=True)
class Validity:
    """The first and the last second of a certificate or a list, aware, without microseconds."""

    not_before: datetime
    not_after: datetime

    @classmethod
    def starting(cls, at: datetime, valid_for: timedelta, issuer: x509.Certificate | None = None) -> "Validity":
        """Begin `CLOCK_SKEW` before `at`, end `valid_for` after it, and stay within the validity of `issuer`.

        A chain ends when its first certificate does, so a leaf that outlives its issuer would promise too much.
        Raises UsageError for a `valid_for` outside 1 s to a hundred years, PkiError when `issuer` is not valid at `at`.
        """
        if at.tzinfo is None:
            raise ValueError("at: expected an aware datetime")
        if not timedelta(seconds=1) <= valid_for <= VALID_FOR_MAX:
            found = format_duration(valid_for.total_seconds())
            raise UsageError(f"validity: expected 1 second to {VALID_FOR_MAX.days} days, got {found}")
        at = at.astimezone(UTC).replace(microsecond=0)
        not_before, not_after = at - CLOCK_SKEW, at + valid_for
        if issuer is not None:
            earliest, latest = issuer.not_valid_before_utc, issuer.not_valid_after_utc
            if not earliest <= at < latest:
                span = f"a time from {earliest:%Y-%m-%d %H:%M:%S} to {latest:%Y-%m-%d %H:%M:%S} UTC"
                raise PkiError("validity of the authority", span, f"{at:%Y-%m-%d %H:%M:%S}, by this machine's clock")
            not_before, not_after = max(not_before, earliest), min(not_after, latest)
        return cls(not_before, not_after.replace(microsecond=0))


@dataclass(frozen=True, slots=True)
class Issuer:
    """A CA certificate with its key."""

    certificate: x509.Certificate
    key: PrivateKey


def root(key: PrivateKey, trust_domain: str, validity: Validity, *, path_length: int) -> x509.Certificate:
    """Make a self-signed root. `path_length` is how many CAs may stand between it and a leaf."""
    name = _ca_name("root CA", trust_domain, key)
    return _ca(key, name, trust_domain, validity, path_length).issuer_name(name).sign(key, hashes.SHA256())


def issuing(key: PrivateKey, trust_domain: str, validity: Validity, issuer: Issuer) -> x509.Certificate:
    """Make the intermediate that signs leaves for a root that stays in a drawer."""
    builder = _ca(key, _ca_name("issuing CA", trust_domain, key), trust_domain, validity, path_length=0)
    return _signed(builder, issuer)


def client(
    public_key: CertificatePublicKeyTypes, spiffe: str, name: str, validity: Validity, issuer: Issuer
) -> x509.Certificate:
    """Make a client's certificate: the SPIFFE ID is its one URI SAN, the name its CN as well."""
    san = [x509.UniformResourceIdentifier(spiffe)]
    return _leaf(public_key, name, san, ExtendedKeyUsageOID.CLIENT_AUTH, validity, issuer)


def gateway(
    public_key: CertificatePublicKeyTypes, names: Sequence[x509.GeneralName], validity: Validity, issuer: Issuer
) -> x509.Certificate:
    """Make a gateway's certificate for DNS names and addresses, the first of which is its CN as well."""
    return _leaf(public_key, str(names[0].value), names, ExtendedKeyUsageOID.SERVER_AUTH, validity, issuer)


def invitation(public_key: CertificatePublicKeyTypes, validity: Validity, issuer: Issuer) -> x509.Certificate:
    """Make the certificate of an invitation, by which a client asks for its own. It names nobody.

    What its subject says is no name to any trust. An empty one would need an alternative name beside it (RFC 5280
    section 4.1.2.6), and strict verifiers ask for that.
    """
    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "portguard invitation")])
    return _signed(_end_entity(public_key, subject, ExtendedKeyUsageOID.CLIENT_AUTH, validity), issuer)


def revocation_list(
    revoked: Iterable[tuple[int, Revocation]], number: int, validity: Validity, issuer: Issuer
) -> x509.CertificateRevocationList:
    """Make a complete list of what `issuer` revoked, by serial. `number` is higher than that of any list before.

    `validity` is from thisUpdate to nextUpdate. That begins `CLOCK_SKEW` early as well: a gateway whose clock is a
    little behind would refuse everybody for as long as a list were of its future.
    """
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(issuer.certificate.subject)
        .last_update(validity.not_before)
        .next_update(validity.not_after)
        .add_extension(_authority_key(issuer), critical=False)
        .add_extension(x509.CRLNumber(number), critical=False)
    )
    for serial, revocation in revoked:
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(revocation.at)
        if revocation.reason is not RevocationReason.UNSPECIFIED:  # RFC 5280 section 5.3.1: should be absent then
            reason = x509.CRLReason(x509.ReasonFlags(revocation.reason.value))
            entry = entry.add_extension(reason, critical=False)
        builder = builder.add_revoked_certificate(entry.build())
    return builder.sign(issuer.key, hashes.SHA256())


def _leaf(
    public_key: CertificatePublicKeyTypes,
    common_name: str,
    san: Sequence[x509.GeneralName],
    usage: x509.ObjectIdentifier,
    validity: Validity,
    issuer: Issuer,
) -> x509.Certificate:
    # A CN cut to fit could be somebody else's name. Without a CN the subject is empty, and SAN must be critical then.
    fits = len(common_name) <= ATTRIBUTE_MAX
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)] if fits else [])
    builder = _end_entity(public_key, subject, usage, validity)
    return _signed(builder.add_extension(x509.SubjectAlternativeName(san), critical=not fits), issuer)


def _end_entity(
    public_key: CertificatePublicKeyTypes, subject: x509.Name, usage: x509.ObjectIdentifier, validity: Validity
) -> x509.CertificateBuilder:
    return (
        _builder(public_key, subject, validity)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    )


def _ca(
    key: PrivateKey, name: x509.Name, trust_domain: str, validity: Validity, path_length: int
) -> x509.CertificateBuilder:
    san = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(spiffe_id(trust_domain))])
    return (
        _builder(key.public_key(), name, validity)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_key_usage(key_cert_sign=True, crl_sign=True), critical=True)
        .add_extension(san, critical=False)
    )


def _builder(public_key: CertificatePublicKeyTypes, subject: x509.Name, validity: Validity) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(validity.not_before)
        .not_valid_after(validity.not_after)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _signed(builder: x509.CertificateBuilder, issuer: Issuer) -> x509.Certificate:
    builder = builder.issuer_name(issuer.certificate.subject).add_extension(_authority_key(issuer), critical=False)
    return builder.sign(issuer.key, hashes.SHA256())


def _authority_key(issuer: Issuer) -> x509.AuthorityKeyIdentifier:
    ski = issuer.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski)


def key_id_of(key: CertificatePublicKeyTypes) -> str:
    """Return how the name of a CA with this key ends, eight hex digits."""
    return x509.SubjectKeyIdentifier.from_public_key(key).digest.hex()[:8]


def key_id(certificate: x509.Certificate) -> str:
    """Return the same for the certificate of a CA, which has a subject key identifier."""
    return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()[:8]


def _ca_name(what: str, trust_domain: str, key: PrivateKey) -> x509.Name:
    # Two authorities of one trust domain, the old and the new, must not share a name: issuers are found by it.
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, f"portguard {what} {key_id_of(key.public_key())}")]
    if len(trust_domain) <= ATTRIBUTE_MAX:
        attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, trust_domain))
    return x509.Name(attributes)


def _key_usage(
    *, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
