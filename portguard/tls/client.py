"""The TLS context of the gateway's clients."""

import ssl

from portguard.tls.chain import load_chain
from portguard.tls.context import new_context

HTTP_ALPN = ("http/1.1",)
"""What a client offers that sends CONNECT; one that names its service by SNI offers what the service speaks."""


def client_context(
    *,
    anchors_pem: str,
    certificate_pem: bytes,
    key_pem: bytes,
    passphrase: bytes | None = None,
    alpn: tuple[str, ...] = HTTP_ALPN,
) -> ssl.SSLContext:
    """Return a context that presents this certificate, and takes only gateways below one of the anchors.

    The name of the gateway is checked against the subject alternative names of its certificate (RFC 6125 6.4), never
    against its common name. Fails closed: a gateway that does not verify does not finish the handshake.

    Raises ssl.SSLError when `anchors_pem` has no certificate, UnusableChain as load_chain() does.
    """
    context = new_context(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.hostname_checks_common_name = False
    # What the profile names is the anchor, also when it is an intermediate authority.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=anchors_pem)
    load_chain(context, certificate_pem, key_pem, passphrase)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context
