"""`POST /v1/renew`: a client that has a certificate asks for the next one, for itself and no one else.

The body is a request (PKCS #10), PEM or DER; the answer is the new certificate and those between it and the anchor, in
PEM (application/pem-certificate-chain, RFC 8555 section 9.1). The supervisor decides, by what the client has signed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from portguard.gateway.http_response import RefusedRequest, response
from portguard.gateway.messages import (
    LARGEST_CERTIFICATE_BYTES,
    LARGEST_CHAIN_BYTES,
    LARGEST_REQUEST_BYTES,
    MOST_CHAIN,
    RenewalWanted,
)
from portguard.pki.errors import PkiError
from portguard.pki.proof import HEADER, LONGEST
from portguard.pki.request import read_request

if TYPE_CHECKING:
    from portguard.gateway.http_request import ApiRequest
    from portguard.gateway.self_service import Visitor

PATH = "/v1/renew"

_REQUEST_TYPE = "application/pkcs10"  # RFC 5967
_ANSWER_TYPE = "application/pem-certificate-chain"


class Renewing(Protocol):
    """What is asked of the supervisor."""

    async def renew(self, request: RenewalWanted) -> str:
        """A new certificate, with those between it and the anchor, PEM. Raises Refused."""


async def answer_renewal(request: ApiRequest, visitor: Visitor, supervisor: Renewing) -> bytes:
    """Return the answer to a POST, whole. Raises RefusedRequest, and Refused. *Fails closed*."""
    name = visitor.caller.identity.trust
    if all(trust.authority is None for trust in visitor.snapshot.configuration.trusts if trust.name == name):
        raise RefusedRequest(404, f"certificates of trust {name} are not renewed here")
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
    _check_size(visitor.chain)
    source = str(visitor.source) if visitor.source is not None else None
    chain = await supervisor.renew(
        RenewalWanted(visitor.connection, visitor.session, source, list(visitor.chain), wanted.der, proof)
    )
    return response(200, _ANSWER_TYPE, chain.encode("ascii"))


def _check_size(chain: tuple[bytes, ...]) -> None:
    """Raise RefusedRequest for a chain that no message to the supervisor could carry."""
    sizes = list(map(len, chain))
    if len(sizes) > MOST_CHAIN or max(sizes) > LARGEST_CERTIFICATE_BYTES or sum(sizes) > LARGEST_CHAIN_BYTES:
        expected = f"at most {MOST_CHAIN} certificates of {LARGEST_CHAIN_BYTES} bytes in all"
        raise RefusedRequest(400, f"client chain: expected {expected}, got {len(sizes)} of {sum(sizes)}")
