"""A client's next certificate: asked for at the gateway, and looked at before it takes the place of the one that works.

With a new key the old one proves to the gateway that its holder wants it (`portguard.pki.proof`).
"""

import time
from dataclasses import dataclass, field
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from portguard.client.certificate_request import NotAsked, make_request, reaches, read_answer, uris
from portguard.client.credentials import Credentials
from portguard.client.gateway import Gateway
from portguard.client.key_pair import PrivateKey
from portguard.errors import Unreachable
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
    request = make_request(key)
    proof = None
    if not keep_key:
        old = credentials.certificate.public_bytes(Encoding.DER)
        proof = make_proof(Purpose.RENEWAL, old_key, old, request, int(time.time()))
    pem = await gateway.renew(request, proof)
    # Gateways and clients may have different authorities: only where the old one reached these must the new one.
    of_known = reaches(credentials.chain(), credentials.anchors())
    try:
        chain = read_answer(pem, key, uris(credentials.certificate), credentials, at, of_known=of_known)
    except NotAsked as error:
        raise Unreachable(f"gateway {gateway.address}: {error}; nothing was replaced") from error
    written = b"".join(certificate.public_bytes(Encoding.PEM) for certificate in chain)
    return NextCertificate(chain[0], written, key)


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
