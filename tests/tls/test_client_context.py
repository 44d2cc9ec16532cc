import ssl

import pytest

from portguard.tls.chain import UnusableChain, load_chain
from portguard.tls.client import client_context
from portguard.tls.context import new_context
from portguard.tls.endpoint import Endpoint
from tests.certificates import SERVER_AUTH, Authority, Holder, dns

NAME = "gateway.test"


@pytest.fixture
def root() -> Authority:
    return Authority.root()


def gateway(authority: Authority, name: str = NAME, *, common_name: str = "gateway") -> Holder:
    return authority.issue(common_name, sans=[dns(name)], usages=[SERVER_AUTH])


def server_context(root: Authority, *chain: Holder) -> ssl.SSLContext:
    context = new_context(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=root.pem.decode())
    load_chain(context, b"".join(holder.pem for holder in chain), chain[0].key_pem)
    return context


def handshake(client: ssl.SSLContext, server: ssl.SSLContext) -> Endpoint:
    """The client's end after the handshake. Raises what either side raises."""
    ends = (
        Endpoint(client, server_side=False, server_hostname=NAME),
        Endpoint(server, server_side=True),
    )
    done = [False, False]
    while not all(done):
        for index, end in enumerate(ends):
            done[index] = done[index] or end.handshake()
            ends[1 - index].receive(end.take())
    return ends[0]


def client(root: Authority, anchors: bytes | None = None, **more: object) -> ssl.SSLContext:
    alice = root.issue("alice")
    anchors_pem = (anchors or root.pem).decode()
    return client_context(anchors_pem=anchors_pem, certificate_pem=alice.pem, key_pem=alice.key_pem, **more)


def test_a_gateway_of_the_anchor_is_taken(root: Authority) -> None:
    end = handshake(client(root), server_context(root, gateway(root)))
    assert end.tls.version() == "TLSv1.3"


def test_a_gateway_without_tls_1_3_is_refused(root: Authority) -> None:
    server = server_context(root, gateway(root))
    server.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        handshake(client(root), server)


def test_a_gateway_of_another_anchor_is_refused(root: Authority) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(client(root), server_context(root, gateway(Authority.root())))


def test_a_gateway_of_another_name_is_refused(root: Authority) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(client(root), server_context(root, gateway(root, "other.test")))


def test_a_name_in_the_common_name_counts_for_nothing(root: Authority) -> None:
    bare = root.issue(NAME, sans=[], usages=[SERVER_AUTH])
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(client(root), server_context(root, bare))


def test_an_intermediate_may_be_the_anchor(root: Authority) -> None:
    issuing = root.intermediate()
    server = server_context(root, gateway(issuing), issuing)
    assert handshake(client(root, issuing.pem), server).tls.version() == "TLSv1.3"


def test_a_gateway_beside_the_intermediate_is_refused(root: Authority) -> None:
    issuing = root.intermediate()
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(client(root, issuing.pem), server_context(root, gateway(root)))


@pytest.mark.parametrize(("alpn", "selected"), [(("http/1.1",), "http/1.1"), ((), None)])
def test_http_is_offered_unless_told_otherwise(root: Authority, alpn: tuple[str, ...], selected: str | None) -> None:
    server = server_context(root, gateway(root))
    server.set_alpn_protocols(["http/1.1"])
    assert handshake(client(root, alpn=alpn), server).tls.selected_alpn_protocol() == selected
    assert handshake(client(root), server).tls.selected_alpn_protocol() == "http/1.1"


def test_anchors_that_are_none_are_refused(root: Authority) -> None:
    with pytest.raises(ssl.SSLError):
        client(root, b"hello")


def test_a_key_that_does_not_fit_is_refused(root: Authority) -> None:
    alice, bob = root.issue("alice"), root.issue("bob")
    with pytest.raises(UnusableChain):
        client_context(anchors_pem=root.pem.decode(), certificate_pem=alice.pem, key_pem=bob.key_pem)
