"""The next certificate of a client that has one, by the authority's own record of what it issued and revoked.

That record knows of a revocation before any list does: whoever asks in between gets nothing that would outlive it.
"""

from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes

from portguard.pki.authority import Authority
from portguard.pki.issued import SignedCertificate
from portguard.pki.standing import expect_good_issuer


def renew(
    authority: Authority,
    certificate: x509.Certificate,
    public_key: CertificatePublicKeyTypes,
    name: str,
    *,
    at: datetime,
    valid_for: timedelta,
) -> SignedCertificate:
    """Issue the successor of a client's `certificate`, whose chain, dates and identity `name` were checked before.

    *Fails closed*: raises Refused for one that is revoked, itself or with the CA that issued it, and for one that is
    not in the record, such as after a backup was put back. Raises as `Authority.sign_client` does.
    """
    expect_good_issuer(authority, certificate, "the client certificate")
    return authority.sign_client(public_key, name, at=at, valid_for=valid_for, renews=certificate)
