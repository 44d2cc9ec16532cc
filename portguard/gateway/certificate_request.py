"""`POST /v1/renew` and `POST /v1/enroll`: a client that has a certificate, or was invited, asks for one of its own.

The body is a request (PKCS #10), PEM or DER; the answer is the new certificate and those between it and the anchor, in
PEM (application/pem-certificate-chain, RFC 8555 section 9.1). The supervisor decides, by what the client has signed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from portguard.gateway.http_request import ApiRequest
from portguard.gateway.http_response import RefusedRequest, response
from portguard.gateway.messages import (
    LARGEST_CERTIFICATE_BYTES,
    LARGEST_CHAIN_BYTES,
    LARGEST_REQUEST_BYTES,
    MOST_CHAIN,
    CertificateWanted,
    EnrolmentWanted,
    RenewalWanted,
)
from portguard.pki.errors import PkiError
from portguard.pki.proof import HEADER, LONGEST
from portguard.pki.request import read_request

if TYPE_CHECKING:
    from portguard.gateway.snapshot import Snapshot
    from portguard.policy.model import Address

RENEW = "/v1/renew"
ENROLL = "/v1/enroll"

_REQUEST_TYPE = "application/pkcs10"  # RFC 5967
_ANSWER_TYPE = "application/pem-certificate-chain"


class Issuing(Protocol):
    """What is asked of the supervisor."""

    async def certificate(self, request: CertificateWanted) -> str:
        """A new certificate, with those between it and the anchor, PEM. Raises Refused."""


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks, over which connection, and what is in force. `trust` vouches for it. `source` None is not known."""

    connection: int
    session: str
    source: Address | None
    trust: str
    chain: tuple[bytes, ...]  # that was verified: the certificate, those above it, the anchor; DER
    snapshot: Snapshot


def is_enrolment(request: object) -> bool:
    """Whether this is the one request that a client may make whose certificate names nobody."""
    return isinstance(request, ApiRequest) and (request.method, request.path) == ("POST", ENROLL)


def wanted_renewal(request: ApiRequest, asker: Asker) -> RenewalWanted:
    """Return what is to be asked of the supervisor. Raises RefusedRequest. *Fails closed*."""
    _expect_authority(asker, f"certificates of trust {asker.trust} are not renewed here")
    return RenewalWanted(*_read(request, asker))


def wanted_enrolment(request: ApiRequest, asker: Asker) -> EnrolmentWanted:
    """Return what is to be asked of the supervisor. Raises RefusedRequest. *Fails closed*."""
    message = f"invitations to trust {asker.trust} are not taken here, as this gateway issues no certificates"
    _expect_authority(asker, f"{message}; tell who invited you")
    return EnrolmentWanted(*_read(request, asker))


def certificate_response(chain: str) -> bytes:
    """Return the answer that gives a client its certificate, PEM."""
    return response(200, _ANSWER_TYPE, chain.encode("ascii"))


def _expect_authority(asker: Asker, message: str) -> None:
    if all(trust.authority is None for trust in asker.snapshot.configuration.trusts if trust.name == asker.trust):
        raise RefusedRequest(404, message)


def _read(request: ApiRequest, asker: Asker) -> tuple[int, str, str | None, list[bytes], bytes, str | None]:
    headers = dict(request.headers)
    content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != _REQUEST_TYPE:
        raise RefusedRequest(415, f"expected Content-Type: {_REQUEST_TYPE}, got {content_type[:100]!r}")
    try:
        wanted = read_request(request.body, "body")
    except PkiError as error:
        raise RefusedRequest(400, str(error)) from None
    proof = headers.get(HEADER.lower())
    if len(wanted.der) > LARGEST_REQUEST_BYTES:
        raise RefusedRequest(413, f"body: expected at most {LARGEST_REQUEST_BYTES} bytes of DER, got {len(wanted.der)}")
    if proof is not None and len(proof) > LONGEST:
        raise RefusedRequest(400, f"{HEADER}: expected at most {LONGEST} characters, got {len(proof)}")
    _check_size(asker.chain)
    source = str(asker.source) if asker.source is not None else None
    return asker.connection, asker.session, source, list(asker.chain), wanted.der, proof


def _check_size(chain: tuple[bytes, ...]) -> None:
    """Raise RefusedRequest for a chain that no message to the supervisor could carry."""
    sizes = list(map(len, chain))
    if len(sizes) > MOST_CHAIN or max(sizes) > LARGEST_CERTIFICATE_BYTES or sum(sizes) > LARGEST_CHAIN_BYTES:
        expected = f"at most {MOST_CHAIN} certificates of {LARGEST_CHAIN_BYTES} bytes in all"
        raise RefusedRequest(400, f"client chain: expected {expected}, got {len(sizes)} of {sum(sizes)}")
