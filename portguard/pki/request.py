"""Requests for a certificate (PKCS #10, RFC 2986): whoever asks keeps the private key, and proves to have it.

Nothing of a request is used but its public key. Whom a certificate names is for who issues it to say.
"""

import re
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import Encoding

from portguard.identity.authorities import quietly
from portguard.pki import keys
from portguard.pki.errors import MALFORMED, PkiError

LARGEST_BYTES = 16 * 1024
"""Of a request. One for an RSA key of 4096 bits has 1.7 kB, in PEM and without extensions."""

_CURVES = frozenset({"secp256r1", "secp384r1"})
_LEAST_RSA_BITS, _MOST_RSA_BITS = 2048, 4096
_KEYS = f"a key on P-256 or P-384, of RSA with {_LEAST_RSA_BITS} to {_MOST_RSA_BITS} bits, or of Ed25519"

_BEGIN = re.compile(rb"^-----BEGIN ([^\r\n]{1,64}?)-----", re.MULTILINE)
_LABELS = frozenset({b"CERTIFICATE REQUEST", b"NEW CERTIFICATE REQUEST"})  # RFC 7468 section 7


@dataclass(frozen=True, slots=True)
class Request:
    """A request that whoever has the private key of `public_key` has signed."""

    public_key: CertificatePublicKeyTypes
    der: bytes = field(repr=False)


def read_request(data: bytes, subject: str) -> Request:
    """Read one request in PEM or DER. `subject` names it in messages.

    *Fails closed*: raises PkiError for what is too large, is no request or more than one, is for a key that
    `check_public_key` does not take, or was not signed with that key.
    """
    if len(data) > LARGEST_BYTES:
        raise PkiError(subject, f"a certificate request of at most {LARGEST_BYTES} bytes", f"{len(data)} or more")
    expected = "one certificate request (PKCS #10) in PEM or DER"
    labels = _BEGIN.findall(data)
    if labels and (len(labels) > 1 or labels[0] not in _LABELS):
        raise PkiError(subject, expected, _kind(labels))
    try:
        with quietly():
            request = x509.load_pem_x509_csr(data) if labels else x509.load_der_x509_csr(data)
            public_key = request.public_key()
    except MALFORMED as error:
        raise PkiError(subject, expected, "something else" if data else "nothing") from error
    check_public_key(public_key, subject)
    if not _is_signed(request):
        raise PkiError(subject, "a request that its own key has signed", "another signature")
    return Request(public_key, request.public_bytes(Encoding.DER))


def check_public_key(key: object, subject: str) -> None:
    """Check that a key is of a kind that TLS takes everywhere, and neither weak nor a burden on who verifies with it.

    *Fails closed*: raises PkiError.
    """
    match key:
        case ec.EllipticCurvePublicKey() if key.curve.name in _CURVES:
            return
        case rsa.RSAPublicKey() if _LEAST_RSA_BITS <= key.key_size <= _MOST_RSA_BITS:
            return
        case ed25519.Ed25519PublicKey():
            return
    raise PkiError(subject, _KEYS, keys.describe(key))  # type: ignore[arg-type]  # it names any class


def _kind(labels: list[bytes]) -> str:
    if any(label.endswith(b"PRIVATE KEY") for label in labels):
        return "a private key"
    if len(labels) > 1:
        return f"{len(labels)} PEM blocks"
    return "a certificate" if labels[0] == b"CERTIFICATE" else "something else"


def _is_signed(request: x509.CertificateSigningRequest) -> bool:
    try:
        return request.is_signature_valid
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return False
