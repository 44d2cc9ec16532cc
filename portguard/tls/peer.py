"""What a handshake has told about the peer."""

import ssl
from typing import Any

ServerName = str | None
"""The server name that the client asked for (SNI), as received: None when it sent none. Untrusted text."""

_DER = 2  # _ssl.ENCODING_DER


def server_name(tls: ssl.SSLObject | ssl.SSLSocket) -> ServerName:
    """Return the name that the client asked for, as the callback of `ServerContexts` kept it."""
    name: ServerName = getattr(tls, "server_name", None)
    return name


def verified_chain(tls: ssl.SSLObject | ssl.SSLSocket) -> tuple[bytes, ...]:
    """Return the chain that OpenSSL verified, DER, the peer's certificate first and the anchor last.

    Empty when there is none, which callers treat as a missing certificate. Fails closed.
    """
    return _chain(tls, "get_verified_chain")


def begun_chain(tls: ssl.SSLObject | ssl.SSLSocket) -> tuple[bytes, ...]:
    """Return the chain as far as OpenSSL could build it, DER, also after it was refused: *nobody has verified it*.

    The peer's certificate comes first; empty when it sent none. SSL_get0_verified_chain(3): "if peer certificate
    verification was not successful the chain may be incomplete or invalid". What else the peer sent is not kept then.
    """
    return _chain(tls, "get_verified_chain")


def sent_chain(tls: ssl.SSLObject | ssl.SSLSocket) -> tuple[bytes, ...]:
    """Return the certificates that the peer sent, DER, in its order. Nobody verified the rest of them."""
    return _chain(tls, "get_unverified_chain")


def _chain(tls: ssl.SSLObject | ssl.SSLSocket, method: str) -> tuple[bytes, ...]:
    # Public from Python 3.13 on, where it answers DER; before, the same method of the inner object.
    public = getattr(tls, method, None)
    if public is not None:
        return tuple(public())
    inner: Any = tls._sslobj  # type: ignore[union-attr]  # noqa: SLF001
    return tuple(certificate.public_bytes(_DER) for certificate in getattr(inner, method)() or ())
