"""Certificates, good and deliberately bad, and revocation lists, for tests.

    root = Authority.root("Corp Root")
    issuing = root.intermediate("Corp Issuing")
    alice = issuing.issue("alice")             # CN and spiffe://gateway.test/alice, clientAuth
    chain = [alice.der, issuing.der, root.der]  # as OpenSSL would have verified it
    root.crl(revoked=[issuing.certificate.serial_number])

Good certificates come from `portguard.pki` in tests of the whole; this module is for what an authority of ours would
never sign, and for trusts that are not ours. Everything is made anew at each call and is valid now.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

PrivateKey = (
    ec.EllipticCurvePrivateKey
    | rsa.RSAPrivateKey
    | ed25519.Ed25519PrivateKey
    | ed448.Ed448PrivateKey
    | dsa.DSAPrivateKey
)

DOMAIN = "gateway.test"
SHA256 = hashes.SHA256()
CLIENT_AUTH = ExtendedKeyUsageOID.CLIENT_AUTH
SERVER_AUTH = ExtendedKeyUsageOID.SERVER_AUTH
ANY_USAGE = ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE
UPN = ObjectIdentifier("1.3.6.1.4.1.311.20.2.3")

SUBJECT_ALTERNATIVE_NAME = ObjectIdentifier("2.5.29.17")
_USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
)


def now() -> datetime:
    """The current time in whole seconds, as certificates carry it."""
    return datetime.now(UTC).replace(microsecond=0)


def new_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def common_name(*names: str) -> x509.Name:
    """A subject with these common names: one, or for bad certificates none or several."""
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names])


def key_usage(*allowed: str) -> x509.KeyUsage:
    """`key_usage("digital_signature", "crl_sign")`; the rest is off."""
    return x509.KeyUsage(**{usage: usage in allowed for usage in _USAGES})


def uri(text: str) -> x509.GeneralName:
    return x509.UniformResourceIdentifier(text)


def spiffe(path: str, domain: str = DOMAIN) -> x509.GeneralName:
    return uri(f"spiffe://{domain}/{path}")


def email(text: str) -> x509.GeneralName:
    return x509.RFC822Name(text)


def dns(text: str) -> x509.GeneralName:
    return x509.DNSName(text)


def upn(text: str | bytes) -> x509.GeneralName:
    """A user principal name; bytes are taken as the DER value itself."""
    return x509.OtherName(UPN, text if isinstance(text, bytes) else utf8_string(text.encode()))


def utf8_string(content: bytes) -> bytes:
    """DER of a UTF8String."""
    if len(content) < 0x80:
        return bytes([0x0C, len(content)]) + content
    length = len(content).to_bytes((len(content).bit_length() + 7) // 8, "big")
    return bytes([0x0C, 0x80 | len(length)]) + length + content


@dataclass(frozen=True)
class Holder:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: PrivateKey = field(repr=False)

    @cached_property
    def der(self) -> bytes:
        return self.certificate.public_bytes(Encoding.DER)

    @cached_property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @cached_property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@dataclass(frozen=True)
class Authority(Holder):
    """A certificate authority: a holder that signs."""

    @classmethod
    def root(
        cls, name: str = "Test Root", *, key: PrivateKey | None = None, not_after: datetime | None = None
    ) -> "Authority":
        key = key or new_key()
        subject = common_name(name)
        return cls(_sign(subject, key, subject, key, _authority_extensions(), not_after=not_after), key)

    def intermediate(self, name: str = "Test Issuing", *, key: PrivateKey | None = None) -> "Authority":
        key = key or new_key()
        return Authority(_sign(common_name(name), key, self.subject, self.key, _authority_extensions()), key)

    def cross_sign(
        self, other: "Authority", *, subject: x509.Name | None = None, not_after: datetime | None = None
    ) -> "Authority":
        """Certify the name and key of another authority; the result signs what that one signs."""
        subject = subject or other.subject
        extensions = _authority_extensions()
        certificate = _sign(subject, other.key, self.subject, self.key, extensions, not_after=not_after)
        return replace(other, certificate=certificate)

    @property
    def subject(self) -> x509.Name:
        return self.certificate.subject

    def issue(
        self,
        name: str = "alice",
        *,
        subject: x509.Name | None = None,
        sans: Sequence[x509.GeneralName] | None = None,
        usages: Sequence[ObjectIdentifier] | None = (CLIENT_AUTH,),
        key_uses: Sequence[str] | None = ("digital_signature",),
        ca: bool | None = False,
        extensions: Iterable[x509.ExtensionType] = (),
        critical_extensions: Iterable[x509.ExtensionType] = (),
        authority_key_identifier: x509.AuthorityKeyIdentifier | None = None,
        key: PrivateKey | None = None,
        serial: int | None = None,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
    ) -> Holder:
        """Issue a client certificate.

        `sans` is by default `spiffe://gateway.test/NAME`; `()` is no such extension. None for `usages` (extended key
        usage), `key_uses` (key usage) or `ca` (basic constraints) leaves that extension out. The authority key
        identifier is by default that of this authority's key.
        """
        key = key or new_key()
        if sans is None:
            sans = [spiffe(name)]
        wanted: list[tuple[x509.ExtensionType, bool]] = []
        if ca is not None:
            wanted.append((x509.BasicConstraints(ca=ca, path_length=None), True))
        if key_uses is not None:
            wanted.append((key_usage(*key_uses), True))
        if usages is not None:
            wanted.append((x509.ExtendedKeyUsage(usages), False))
        if sans:
            wanted.append((x509.SubjectAlternativeName(sans), False))
        wanted += [(extension, False) for extension in extensions]
        wanted += [(extension, True) for extension in critical_extensions]
        certificate = _sign(
            common_name(name) if subject is None else subject,
            key,
            self.subject,
            self.key,
            wanted,
            serial=serial,
            not_before=not_before,
            not_after=not_after,
            authority_key_identifier=authority_key_identifier,
        )
        return Holder(certificate, key)

    def crl(
        self,
        revoked: Iterable[int | x509.RevokedCertificate] = (),
        *,
        this_update: datetime | None = None,
        next_update: datetime | None = None,
        issuer: x509.Name | None = None,
        key: PrivateKey | None = None,
        extensions: Iterable[tuple[x509.ExtensionType, bool]] = (),
    ) -> x509.CertificateRevocationList:
        """A revocation list: serial numbers, or whole entries. `key` signs in place of the authority's own."""
        # Well before the moment that a module took for now when it was imported: a whole run may lie between.
        this_update = this_update or now() - timedelta(hours=12)
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(issuer or self.subject)
            .last_update(this_update)
            .next_update(next_update or this_update + timedelta(days=7))
        )
        for entry in revoked:
            builder = builder.add_revoked_certificate(revoked_entry(entry) if isinstance(entry, int) else entry)
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        key = key or self.key
        return builder.sign(key, _digest(key))


def revoked_entry(serial: int, *extensions: tuple[x509.ExtensionType, bool]) -> x509.RevokedCertificate:
    """An entry of a revocation list, with (extension, critical) pairs."""
    builder = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now() - timedelta(minutes=1))
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.build()


def _authority_extensions() -> list[tuple[x509.ExtensionType, bool]]:
    return [
        (x509.BasicConstraints(ca=True, path_length=None), True),
        (key_usage("key_cert_sign", "crl_sign"), True),
    ]


def _sign(
    subject: x509.Name,
    key: PrivateKey,
    issuer: x509.Name,
    issuer_key: PrivateKey,
    extensions: Iterable[tuple[x509.ExtensionType, bool]],
    *,
    serial: int | None = None,
    not_before: datetime | None = None,
    not_after: datetime | None = None,
    authority_key_identifier: x509.AuthorityKeyIdentifier | None = None,
) -> x509.Certificate:
    authority_key_identifier = authority_key_identifier or x509.AuthorityKeyIdentifier.from_issuer_public_key(
        issuer_key.public_key()
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number() if serial is None else serial)
        .not_valid_before(not_before or now() - timedelta(hours=12))
        .not_valid_after(not_after or now() + timedelta(days=30))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(authority_key_identifier, critical=False)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(issuer_key, _digest(issuer_key))


def _digest(key: PrivateKey) -> hashes.SHA256 | None:
    return None if isinstance(key, ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey) else hashes.SHA256()
