"""The certificates of an authority's own CAs, in files: read back, and looked at before anything is issued by them."""

from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding

from portguard.errors import UsageError
from portguard.pki import files, names
from portguard.pki.errors import MALFORMED, PkiError

ROOTS, ISSUING = "ca.crt", "issuing.crt"
"""Their names in an authority's directory. The second one is only where a root is kept elsewhere."""


def pem(*certificates: x509.Certificate) -> bytes:
    """Return certificates in PEM, one after the other."""
    return b"".join(each.public_bytes(Encoding.PEM) for each in certificates)


def read(path: Path) -> list[x509.Certificate]:
    """Read the certificates in a file, at least one. Raises PkiError where one has not what issuing takes."""
    expected = "a CA certificate of portguard"
    content = files.read(path, expected)
    try:
        certificates = x509.load_pem_x509_certificates(content)
        for certificate in certificates:
            certificate.public_key()
            certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
            if not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca:
                raise PkiError(path, expected, "the certificate of no CA")
    except (x509.ExtensionNotFound, *MALFORMED) as error:
        raise PkiError(path, expected, "something else") from error
    return certificates


def read_anchors(path: Path) -> list[x509.Certificate]:
    """Read the one root of ca.crt, or the two of a rotation, of one trust domain. Raises PkiError."""
    anchors = read(path)
    if len({trust_domain(anchor, path) for anchor in anchors}) > 1 or len(anchors) > 2:
        raise PkiError(path, "one CA certificate of portguard, or two of one trust domain", "others")
    return anchors


def read_issuing(path: Path, anchor: x509.Certificate) -> x509.Certificate:
    """Read an issuing CA that `anchor` signed. Raises PkiError."""
    certificate = read(path)[0]
    try:
        certificate.verify_directly_issued_by(anchor)
    except (InvalidSignature, *MALFORMED) as error:
        raise PkiError(path, "a CA that ca.crt signed", "another one") from error
    return certificate


def trust_domain(anchor: x509.Certificate, path: Path) -> str:
    """Read the trust domain from the root itself (SPIFFE X.509-SVID section 2), so that no second file can differ.

    Raises PkiError, about `path`.
    """
    expected = "a CA certificate of portguard, with one spiffe:// trust domain"
    try:
        san = anchor.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = san.get_values_for_type(x509.UniformResourceIdentifier)
        scheme, _, domain = uri.partition("://")
        if scheme == "spiffe":
            return names.trust_domain(domain)
    except (x509.ExtensionNotFound, UsageError, *MALFORMED) as error:
        raise PkiError(path, expected, "another certificate") from error
    raise PkiError(path, expected, "another certificate")
