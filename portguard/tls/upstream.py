"""The TLS context of the gateway towards services."""

import ssl

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from portguard.tls.chain import UnusableChain, load_chain
from portguard.tls.context import new_context
from portguard.tls.tls_socket import prepare


def upstream_context(
    ca_pem: str | None,
    certificate_pem: bytes | None,
    key_pem: bytes | None,
    *,
    alpn: tuple[str, ...] = (),
) -> ssl.SSLContext:
    """Return a context that takes only services whose certificate verifies and bears the name they are called by.

    `ca_pem` is one or more certificates, each of them an anchor, also when it is an intermediate authority's; None is
    the system's store. The name is looked for in the subject alternative names (RFC 6125 6.4), never in the common
    name. TLS 1.2 and newer: services are not ours to choose. `certificate_pem` and `key_pem` are what the gateway shows
    of itself, both or neither; `alpn` is what it offers.

    Fails closed: a service that does not verify does not finish the handshake.

    Raises UnusableChain, whose `part` is also "ca", as load_chain() does.
    """
    context = new_context(ssl.PROTOCOL_TLS_CLIENT)  # verifies chain and name
    prepare(context)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # In the middle of a renegotiation nothing can be written: a session would break or not, as bytes happen to come.
    context.options |= ssl.OP_NO_RENEGOTIATION
    context.hostname_checks_common_name = False
    if ca_pem is None:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    else:
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.load_verify_locations(cadata=_der(ca_pem))
    if certificate_pem is not None and key_pem is not None:
        load_chain(context, certificate_pem, key_pem)
    elif certificate_pem is not None or key_pem is not None:
        raise UnusableChain(
            "key" if key_pem is None else "certificate", "certificate and key together", "one without the other"
        )
    if alpn:
        context.set_alpn_protocols(list(alpn))
    return context


def _der(ca_pem: str) -> bytes:
    """The certificates one after the other; as PEM, OpenSSL would want the text around them in ASCII too."""
    try:
        certificates = x509.load_pem_x509_certificates(ca_pem.encode())
    except ValueError:
        raise UnusableChain("ca", "one or more PEM certificates", "something else") from None
    return b"".join(certificate.public_bytes(Encoding.DER) for certificate in certificates)
