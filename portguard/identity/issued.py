"""Whether each certificate of a chain was issued by the next, as OpenSSL finds out in a handshake, for who saw none."""

from collections.abc import Sequence
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from portguard.errors import Refused
from portguard.identity.authorities import UNREADABLE, quietly
from portguard.reasons import Reason


def check_issued(chain: Sequence[bytes]) -> None:
    """Check a chain, DER, the holder's certificate first and the anchor last. Dates, revocation and names are not here.

    By RFC 5280 6.1.4: names follow on each other, signatures verify, and what issues is an authority (CA true) that may
    sign certificates and have as many authorities below it. The anchor's own signature is not looked at.

    *Fails closed*: raises Refused with certificate_untrusted.
    """
    try:
        with quietly():
            certificates = [x509.load_der_x509_certificate(der) for der in chain]
            for depth, (certificate, issuer) in enumerate(pairwise(certificates)):
                _check_authority(issuer, depth)
                certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, TypeError, *UNREADABLE) as error:
        message = f"chain: expected each certificate to be issued by the next, got another ({type(error).__name__})"
        raise Refused(Reason.CERTIFICATE_UNTRUSTED, message) from None


def _check_authority(issuer: x509.Certificate, below: int) -> None:
    """Raise ValueError for what may not issue, with so many authorities `below` it."""
    extensions = issuer.extensions
    try:
        constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
        usage = extensions.get_extension_for_class(x509.KeyUsage).value
    except x509.ExtensionNotFound as error:
        raise ValueError("expected the extensions of an authority") from error
    longest = constraints.path_length
    if not constraints.ca or not usage.key_cert_sign or (longest is not None and below > longest):
        raise ValueError("expected an authority that may issue it")
