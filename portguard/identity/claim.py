"""What a certificate that was refused says of itself, for the record: nobody has verified a word of it.

Whoever connects can make one up that names anybody. Nothing is decided by it; it says where to look.
"""

import hashlib
from typing import NamedTuple

from cryptography import x509

from portguard.identity.authorities import UNREADABLE, quietly

LONGEST_NAME = 200
LONGEST_SERIAL = 40
"""Hex digits: 20 octets, the most that RFC 5280 4.1.2.2 allows."""

# A certificate that is all names takes 6 ms to read, ten times what its handshake costs; within these bounds 1 ms.
# Every attribute of a name begins with an object identifier, whose tag is counted: real certificates have 20 to 50.
_LARGEST_READ_BYTES = 8 * 1024
_MOST_IDENTIFIERS = 100
_IDENTIFIER_TAG = b"\x06"


class Claim(NamedTuple):
    """Untrusted text, each at most as long as above. Only `fingerprint` (SHA-256, hex) is always known."""

    subject: str | None  # the SPIFFE ID where there is one, else the distinguished name
    issuer: str | None
    serial: str | None  # hex
    fingerprint: str


def read_claim(der: bytes) -> Claim:
    """Read what the certificate says. What cannot be read, or only at some cost, is None."""
    fingerprint = hashlib.sha256(der).hexdigest()
    if len(der) > _LARGEST_READ_BYTES or der.count(_IDENTIFIER_TAG) > _MOST_IDENTIFIERS:
        return Claim(None, None, None, fingerprint)
    try:
        with quietly():
            certificate = x509.load_der_x509_certificate(der)
            issuer = certificate.issuer.rfc4514_string()
            serial = f"{certificate.serial_number:x}"
            subject = _spiffe_id(certificate) or certificate.subject.rfc4514_string()
    except UNREADABLE:
        return Claim(None, None, None, fingerprint)
    return Claim(_cut(subject, LONGEST_NAME), _cut(issuer, LONGEST_NAME), _cut(serial, LONGEST_SERIAL), fingerprint)


def _spiffe_id(certificate: x509.Certificate) -> str | None:
    """The first, of however many: a certificate that has several is one that is refused for it."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, *UNREADABLE):  # the subject can be told all the same
        return None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    return next((uri for uri in uris if uri.startswith("spiffe://")), None)


def _cut(text: str, longest: int) -> str | None:
    return f"{text[: longest - 1]}…" if len(text) > longest else text or None
