"""Clients that show a gateway whatever certificates a test has made."""

import ssl
from typing import Any

import pytest

from portguard.tls.chain import load_chain
from tests.certificates import Holder


def present(gateway: Any, leaf: Holder | None, *others: Holder, service: str | None = "echo") -> ssl.SSLSocket:
    """A TLS connection to a service by SNI, None to the gateway itself, of a client that sends these certificates."""
    context = gateway.context(None)
    context.set_ciphers("DEFAULT@SECLEVEL=0")  # or OpenSSL would not even load a weak one
    if leaf is not None:
        load_chain(context, b"".join(holder.pem for holder in (leaf, *others)), leaf.key_pem)
    return gateway.connect_with(context, service)


def break_of(gateway: Any, leaf: Holder | None, *others: Holder) -> str:
    """OpenSSL's word for how the connection of such a client ends: an alert, or an end without one."""
    with pytest.raises(ssl.SSLError) as caught, present(gateway, leaf, *others) as client:
        # In TLS 1.3 the client's handshake is over before the gateway has looked at its certificate.
        client.recv(1)
    return str(caught.value.reason)
