"""Certificate authorities as this room compares them: by public key, and by name as OpenSSL compares names."""

import hashlib
import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from portguard.identity.names import Malformed

CanonicalName = tuple[frozenset[tuple[str, str]], ...]
"""A distinguished name without what OpenSSL ignores when it looks for an issuer: case, extra spaces, string type."""

UNREADABLE = (
    ValueError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)
"""What `cryptography` raises for a certificate or list that it does not understand, at whichever attribute."""


def quietly() -> AbstractContextManager[object]:
    """A block in which `cryptography` does not warn of what it reads but finds odd, such as very long names.

    Else whoever connects could write lines to the gateway's standard error.
    """
    return warnings.catch_warnings(action="ignore")


@dataclass(frozen=True, slots=True, eq=False)
class Authority:
    """A certificate that may have issued others. Nothing in it was verified by reading it."""

    certificate: x509.Certificate = field(repr=False)
    der: bytes = field(repr=False)
    key: bytes = field(repr=False)  # SHA-256 of the public key in its one canonical encoding
    subject: CanonicalName = field(repr=False)
    issuer: CanonicalName = field(repr=False)
    name: str  # the subject as text, for messages

    def has_issued(self, other: "Authority") -> bool:
        """Whether OpenSSL could take this for the issuer of `other`: the names fit, and the signature is this key's.

        A signature of an unknown algorithm counts as this key's. *Fails closed*, as the answer is used to refuse.
        """
        return self.subject == other.issuer and _signature_fits(self.certificate, other.certificate)


def read_authority(der: bytes) -> Authority:
    """Read one DER certificate. Raises Malformed when it, its names or its key cannot be read."""
    try:
        with quietly():
            certificate = x509.load_der_x509_certificate(der)
            # Not as found in the certificate: one key has several encodings there (compressed points, RSA-PSS).
            key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
            return Authority(
                certificate=certificate,
                der=der,
                key=hashlib.sha256(key).digest(),
                subject=canonical_name(certificate.subject),
                issuer=canonical_name(certificate.issuer),
                name=certificate.subject.rfc4514_string(),
            )
    except UNREADABLE as error:
        raise Malformed("a readable X.509 certificate", f"one that is not: {error}") from error


def is_authority(certificate: x509.Certificate) -> bool:
    """Whether the certificate says CA true. Raises one of UNREADABLE when its extensions cannot be read."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def canonical_name(name: x509.Name) -> CanonicalName:
    """Return what is compared of a distinguished name. At least as much is equal as for OpenSSL, never less."""
    return tuple(
        frozenset(
            (
                attribute.oid.dotted_string,
                " ".join(attribute.value.split()).lower()
                if isinstance(attribute.value, str)
                else attribute.value.hex(),
            )
            for attribute in rdn
        )
        for rdn in name.rdns
    )


def _signature_fits(issuer: x509.Certificate, certificate: x509.Certificate) -> bool:
    key = issuer.public_key()
    signature, signed = certificate.signature, certificate.tbs_certificate_bytes
    try:
        parameters = certificate.signature_algorithm_parameters
        digest = certificate.signature_hash_algorithm
        match key, parameters:
            case (rsa.RSAPublicKey(), padding.PKCS1v15() | padding.PSS()) if digest is not None:
                key.verify(signature, signed, parameters, digest)
            case (ec.EllipticCurvePublicKey(), ec.ECDSA()):
                key.verify(signature, signed, parameters)
            case (ed25519.Ed25519PublicKey() | ed448.Ed448PublicKey(), None):
                key.verify(signature, signed)
            case (dsa.DSAPublicKey(), None) if digest is not None:
                key.verify(signature, signed, digest)
            case _:
                return False
    except InvalidSignature:
        return False
    except UnsupportedAlgorithm:
        return True
    return True
