"""A client's next certificate: asked for at the gateway, and looked at before it takes the place of the one that works.

With a new key the old one proves to the gateway that its holder wants it (`portguard.pki.proof`).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from portguard.client.credentials import Credentials
from portguard.client.gateway import Gateway
from portguard.client.key_pair import PrivateKey
from portguard.errors import Unreachable
from portguard.identity.authorities import UNREADABLE
from portguard.pki.proof import Purpose, make_proof

_LEAST_RSA_BITS, _MOST_RSA_BITS = 2048, 4096


@dataclass(frozen=True, slots=True)
class NextCertificate:
    """What takes the old one's place. `key` is the old one where that was to be kept."""

    certificate: x509.Certificate
    certificate_pem: bytes = field(repr=False)  # with those between it and the anchor
    key: PrivateKey = field(repr=False)


async def renew(gateway: Gateway, credentials: Credentials, *, keep_key: bool, at: datetime) -> NextCertificate:
    """Ask the gateway for another certificate for the same identity. `at` is now, aware.

    Raises RefusedByGateway; Unreachable also for an answer that is not what was asked for; ConfigurationError for a key
    of a kind that cannot be renewed.
    """
    old_key = credentials.key()
    key = old_key if keep_key else _another(old_key)
    request = _request(key)
    proof = None
    if not keep_key:
        old = credentials.certificate.public_bytes(Encoding.DER)
        proof = make_proof(Purpose.RENEWAL, old_key, old, request, int(time.time()))
    pem = await gateway.renew(request, proof)
    try:
        chain = x509.load_pem_x509_certificates(pem)
        problem = _problem(chain, key, credentials, at)
    except UNREADABLE:
        problem = "a certificate in PEM", "something else"
    if problem is not None:
        raise Unreachable(f"gateway {gateway.address}: expected {problem[0]}, got {problem[1]}; nothing was replaced")
    written = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain)
    return NextCertificate(chain[0], written, key)


def uris(certificate: x509.Certificate) -> list[str]:
    """Return the URIs that a certificate names, of which the SPIFFE ID is one. Raises one of UNREADABLE."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def _problem(
    chain: Sequence[x509.Certificate], key: PrivateKey, credentials: Credentials, at: datetime
) -> tuple[str, str] | None:
    """What is expected of a new chain and was not found; None where nothing speaks against it. *Fails closed.*"""
    leaf, old = chain[0], credentials.certificate
    if leaf.public_key() != key.public_key():
        return "a certificate for the key in the request", "one for another key"
    if uris(leaf) != uris(old):
        return f"a certificate for {', '.join(uris(old))}", f"one for {', '.join(uris(leaf)) or 'nobody'}"
    if not leaf.not_valid_before_utc <= at <= leaf.not_valid_after_utc:
        return "a certificate that is valid now, by this machine's clock", "one of another time"
    # Gateways and clients may have different authorities: only where the old one reached these must the new one.
    anchors = credentials.anchors()
    if _reaches(credentials.chain(), anchors) and not _reaches(chain, anchors):
        return f"a certificate of the authority in {credentials.profile.ca}", "one of another authority"
    return None


def _reaches(chain: Sequence[x509.Certificate], anchors: Sequence[x509.Certificate]) -> bool:
    """Whether each certificate was issued by the next, and the last one by an anchor, if it is none."""
    return all(_has_issued(issuer, issued) for issued, issuer in pairwise(chain)) and (
        chain[-1] in anchors or any(_has_issued(anchor, chain[-1]) for anchor in anchors)
    )


def _has_issued(issuer: x509.Certificate, issued: x509.Certificate) -> bool:
    try:
        issued.verify_directly_issued_by(issuer)
    except (InvalidSignature, TypeError, *UNREADABLE):
        return False
    return True


def _another(key: PrivateKey) -> PrivateKey:
    """Make a key of the same type; RSA takes up to some seconds."""
    match key:
        case ec.EllipticCurvePrivateKey():
            return ec.generate_private_key(ec.SECP384R1() if key.curve.name == "secp384r1" else ec.SECP256R1())
        case rsa.RSAPrivateKey():
            size = min(max(key.key_size, _LEAST_RSA_BITS), _MOST_RSA_BITS)
            return rsa.generate_private_key(public_exponent=65537, key_size=size)
        case ed25519.Ed25519PrivateKey():
            return ed25519.Ed25519PrivateKey.generate()


def _request(key: PrivateKey) -> bytes:
    """A request for this key, DER, that asks for nothing else."""
    digest = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, digest).public_bytes(Encoding.DER)
