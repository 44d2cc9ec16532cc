"""An end without close_notify is a break with every context, also where Python would have it otherwise."""

import ssl
from collections.abc import Callable
from typing import Any

import pytest

from portguard.tls.client import client_context
from portguard.tls.context import new_context
from portguard.tls.contexts import ServerContexts
from portguard.tls.upstream import upstream_context
from tests.peers import pki


@pytest.fixture(autouse=True)
def contexts_are_lenient(monkeypatch: pytest.MonkeyPatch) -> None:
    """As they are in the Python of Debian 12."""
    make = ssl.SSLContext.__new__

    def lenient(*arguments: Any) -> ssl.SSLContext:
        context = make(*arguments)
        context.options |= ssl.OP_IGNORE_UNEXPECTED_EOF
        return context

    monkeypatch.setattr(ssl.SSLContext, "__new__", staticmethod(lenient))
    assert ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).options & ssl.OP_IGNORE_UNEXPECTED_EOF


def _server() -> ssl.SSLContext:
    server = pki().server
    return ServerContexts(
        certificate_pem=server.pem,
        key_pem=server.key_pem,
        anchors_pem=pki().authority.pem.decode(),
        alpn_of=lambda _: (),
    ).by_name


def _client() -> ssl.SSLContext:
    client = pki().client
    return client_context(anchors_pem=pki().authority.pem.decode(), certificate_pem=client.pem, key_pem=client.key_pem)


@pytest.mark.parametrize(
    "make",
    [_server, _client, lambda: upstream_context(None, None, None), lambda: new_context(ssl.PROTOCOL_TLS_CLIENT)],
    ids=["server", "client", "upstream", "new"],
)
def test_half_an_upload_is_not_taken_for_a_whole_one(make: Callable[[], ssl.SSLContext]) -> None:
    assert not make().options & ssl.OP_IGNORE_UNEXPECTED_EOF
