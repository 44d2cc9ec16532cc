"""What a client sends to a gateway that issues certificates, and what it takes for an answer."""

from collections.abc import Sequence
from datetime import datetime
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding

from portguard.client.credentials import Credentials
from portguard.client.key_pair import PrivateKey
from portguard.identity.authorities import UNREADABLE


class NotAsked(Exception):
    """An answer that is not what was asked for. `expected` and `found` complete "expected …, got …"."""

    def __init__(self, expected: str, found: str):
        self.expected = expected
        self.found = found
        super().__init__(f"expected {expected}, got {found}")


def make_request(key: PrivateKey) -> bytes:
    """Return a request for this key, DER, that asks for nothing else."""
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, digest).public_bytes(Encoding.DER)


def read_answer(
    pem: bytes, key: PrivateKey, names: Sequence[str], credentials: Credentials, at: datetime, *, of_known: bool
) -> list[x509.Certificate]:
    """Return the certificate that was asked for, and those that go with it.

    It has to be for `key`, to have exactly the URIs `names`, to be valid at `at` (aware), and `of_known` to come from
    an authority whom the credentials trust. *Fails closed*: raises NotAsked.
    """
    try:
        chain = x509.load_pem_x509_certificates(pem)
        _expect(chain[0], key, names, at)
    except UNREADABLE as error:
        raise NotAsked("a certificate in PEM", "something else") from error
    if of_known and not reaches(chain, credentials.anchors()):
        raise NotAsked(f"a certificate of the authority in {credentials.profile.ca}", "one of another authority")
    return chain


def uris(certificate: x509.Certificate) -> list[str]:
    """Return the URIs that a certificate names, of which the SPIFFE ID is one. Raises one of UNREADABLE."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def reaches(chain: Sequence[x509.Certificate], anchors: Sequence[x509.Certificate]) -> bool:
    """Whether each certificate was issued by the next, and the last one by an anchor, if it is none."""
    return all(_has_issued(issuer, issued) for issued, issuer in pairwise(chain)) and (
        chain[-1] in anchors or any(_has_issued(anchor, chain[-1]) for anchor in anchors)
    )


def _expect(leaf: x509.Certificate, key: PrivateKey, names: Sequence[str], at: datetime) -> None:
    if leaf.public_key() != key.public_key():
        raise NotAsked("a certificate for the key in the request", "one for another key")
    if uris(leaf) != list(names):
        raise NotAsked(f"a certificate for {', '.join(names)}", f"one for {', '.join(uris(leaf)) or 'nobody'}")
    if not leaf.not_valid_before_utc <= at <= leaf.not_valid_after_utc:
        raise NotAsked("a certificate that is valid now, by this machine's clock", "one of another time")


def _has_issued(issuer: x509.Certificate, issued: x509.Certificate) -> bool:
    try:
        issued.verify_directly_issued_by(issuer)
    except (InvalidSignature, TypeError, *UNREADABLE):
        return False
    return True
