"""The proof that who asks for a certificate for a new key has the key of the one that it comes with.

    Portguard-Proof: TIME:SIGNATURE

It is a header of `POST /v1/renew` and `POST /v1/enroll`. TIME is seconds since the epoch; SIGNATURE is by the key of
the certificate that is to be renewed, or of the invitation (ECDSA or RSA PKCS #1 v1.5, both with SHA-256, or Ed25519),
in base64, over the text of `signed_text`. The text is bound to that certificate, to the request and thereby to the new
key, and begins with what it is for, which nothing else signs. It need not be bound to a gateway: whichever takes it can
make nothing of it but a certificate of the same identity for the same key.
"""

import base64
import binascii
import hashlib
import re
from enum import StrEnum

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa

from portguard.identity.authorities import UNREADABLE
from portguard.pki.errors import PkiError

HEADER = "Portguard-Proof"

LONGEST = 1024
"""Characters of the header's value; with the largest key that is taken, RSA of 4096 bits, 700."""

PATIENCE_S = 300
"""How far apart the clocks of client and gateway may be, and for how long a proof may be used."""

SignatureKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


class Purpose(StrEnum):
    """What is asked for, by the text that its proof begins with: one for the other is none."""

    RENEWAL = "portguard-renew 1"
    ENROLMENT = "portguard-enroll 1"


_PROOF = re.compile(r"([1-9][0-9]{0,11}):([A-Za-z0-9+/]+={0,2})")
_EXPECTED = f"{HEADER}: TIME:SIGNATURE by the key of the certificate"


def signed_text(purpose: Purpose, certificate: bytes, request: bytes, at_s: int) -> bytes:
    """Return what is signed: `certificate` is what the client comes with, `request` for what it wants, both DER."""
    digests = (hashlib.sha256(der).hexdigest() for der in (certificate, request))
    return "\n".join([purpose, *digests, str(at_s), ""]).encode("ascii")


def make_proof(purpose: Purpose, key: SignatureKey, certificate: bytes, request: bytes, at_s: int) -> str:
    """Return the header's value, by the key of `certificate`. `at_s` is now, in seconds since the epoch."""
    text = signed_text(purpose, certificate, request, at_s)
    match key:
        case ec.EllipticCurvePrivateKey():
            signature = key.sign(text, ec.ECDSA(hashes.SHA256()))
        case rsa.RSAPrivateKey():
            signature = key.sign(text, padding.PKCS1v15(), hashes.SHA256())
        case ed25519.Ed25519PrivateKey():
            signature = key.sign(text)
    return f"{at_s}:{base64.b64encode(signature).decode()}"


def check_proof(purpose: Purpose, proof: str, certificate: bytes, request: bytes, now_s: float) -> None:
    """Check that whoever made the proof has the key of `certificate`, and wants what `request` is for; both DER.

    *Fails closed*: raises PkiError.
    """
    match = _PROOF.fullmatch(proof)
    if match is None:
        raise PkiError("proof", _EXPECTED, "something else")
    at_s = int(match[1])
    late_s = now_s - at_s
    if abs(late_s) > PATIENCE_S:
        found = f"one of {abs(late_s):.0f} s {'ago' if late_s > 0 else 'ahead'}; is the client's clock right?"
        raise PkiError("proof", f"one of the last {PATIENCE_S} s, by the gateway's clock", found)
    text = signed_text(purpose, certificate, request, at_s)
    try:
        signature = base64.b64decode(match[2], validate=True)
        match x509.load_der_x509_certificate(certificate).public_key():
            case ec.EllipticCurvePublicKey() as key:
                key.verify(signature, text, ec.ECDSA(hashes.SHA256()))
                return
            case rsa.RSAPublicKey() as key:
                key.verify(signature, text, padding.PKCS1v15(), hashes.SHA256())
                return
            case ed25519.Ed25519PublicKey() as key:
                key.verify(signature, text)
                return
    except (InvalidSignature, binascii.Error, *UNREADABLE):
        pass
    raise PkiError("proof", f"{_EXPECTED}, over it and this request", "another signature")
