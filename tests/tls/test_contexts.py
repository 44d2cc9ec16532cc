import ssl
import sys
from collections.abc import Iterator
from datetime import timedelta

import pytest

from portguard.tls.chain import UnusableChain
from portguard.tls.contexts import ServerContexts, count_unreadable_names
from portguard.tls.endpoint import Endpoint
from portguard.tls.peer import server_name, verified_chain
from tests.certificates import SERVER_AUTH, Authority, now
from tests.peers import NAME, pki, shake_hands
from tests.trusting import trusting


def connect(
    endpoint: Endpoint, context: ssl.SSLContext, *, name: str | None = NAME, alpn: tuple[str, ...] = ()
) -> ssl.SSLObject:
    """Shake hands as a client that asks for `name`. Raises ssl.SSLError of either side."""
    if alpn:
        context.set_alpn_protocols(list(alpn))
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    if name is None:
        context.check_hostname = False
    tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
    shake_hands(endpoint, tls, incoming, outgoing)
    return tls


@pytest.fixture
def contexts() -> ServerContexts:
    """`redis` and `web` take a protocol of their names; the gateway's own name takes none."""
    return pki().contexts("redis", "web")


@pytest.fixture
def client() -> ssl.SSLContext:
    return pki().client_context()


def _server(context: ssl.SSLContext) -> Endpoint:
    return Endpoint(context, server_side=True)


def refused(endpoint: Endpoint, context: ssl.SSLContext) -> ssl.SSLError:
    with pytest.raises(ssl.SSLError) as caught:
        connect(endpoint, context)
    assert not verified_chain(endpoint.tls)
    return caught.value


# Who is let in: for each way to come in, since each has a context of its own.


@pytest.fixture(params=["by name", "switched by name", "port", "port with ALPN"])
def way(request: pytest.FixtureRequest, contexts: ServerContexts) -> tuple[Endpoint, str]:
    """An endpoint, and the name to ask it for."""
    if request.param == "port":
        return _server(contexts.of_port(())), NAME
    if request.param == "port with ALPN":
        return _server(contexts.of_port(("redis",))), NAME
    return _server(contexts.by_name), NAME if request.param == "by name" else f"web.{NAME}"


def test_a_client_with_a_certificate_gets_in(way: tuple[Endpoint, str], client: ssl.SSLContext) -> None:
    endpoint, name = way
    connect(endpoint, client, name=name)
    assert verified_chain(endpoint.tls) == (pki().client.der, pki().authority.der)
    assert endpoint.tls.version() == "TLSv1.3"


def bare_context() -> ssl.SSLContext:
    return trusting(cadata=pki().authority.pem.decode())


def test_a_client_without_a_certificate_does_not(way: tuple[Endpoint, str]) -> None:
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        connect(way[0], bare_context(), name=way[1])


def test_a_certificate_of_another_authority_does_not(way: tuple[Endpoint, str]) -> None:
    stranger = Authority.root().issue("alice")
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer certificate"):
        connect(way[0], pki().client_context(stranger), name=way[1])


def test_tls_1_2_does_not(way: tuple[Endpoint, str], client: ssl.SSLContext) -> None:
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match="UNSUPPORTED_PROTOCOL"):
        connect(way[0], client, name=way[1])


@pytest.mark.parametrize(("from_days", "to_days", "words"), [(-2, -1, "expired"), (1, 2, "not yet valid")])
def test_a_certificate_outside_its_time_does_not(
    way: tuple[Endpoint, str], from_days: int, to_days: int, words: str
) -> None:
    holder = pki().authority.issue(
        "alice", not_before=now() + timedelta(days=from_days), not_after=now() + timedelta(days=to_days)
    )
    with pytest.raises(ssl.SSLCertVerificationError, match=words):
        connect(way[0], pki().client_context(holder), name=way[1])


def test_a_servers_certificate_does_not(way: tuple[Endpoint, str]) -> None:
    holder = pki().authority.issue("alice", usages=[SERVER_AUTH])
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        connect(way[0], pki().client_context(holder), name=way[1])


def test_no_session_can_be_resumed(way: tuple[Endpoint, str], client: ssl.SSLContext) -> None:
    tls = connect(way[0], client, name=way[1])
    with pytest.raises(ssl.SSLWantReadError):
        tls.read(1)  # a ticket comes after the handshake, and is taken with the first read
    assert tls.session is not None
    assert not tls.session.has_ticket


def test_an_intermediate_authority_can_be_the_anchor(client: ssl.SSLContext) -> None:
    issuing = pki().authority.intermediate()
    contexts = ServerContexts(
        certificate_pem=pki().server.pem,
        key_pem=pki().server.key_pem,
        anchors_pem=issuing.pem.decode(),
        alpn_of=lambda _: (),
    )
    bob = issuing.issue("bob")
    endpoint = _server(contexts.by_name)
    connect(endpoint, pki().client_context(bob))
    assert verified_chain(endpoint.tls) == (bob.der, issuing.der)
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(_server(contexts.by_name), client)  # of the root above it


def test_a_chain_that_cannot_be_used_is_told_at_once() -> None:
    with pytest.raises(UnusableChain):
        ServerContexts(
            certificate_pem=pki().server.pem,
            key_pem=pki().client.key_pem,
            anchors_pem=pki().authority.pem.decode(),
            alpn_of=lambda _: (),
        )


# Names and protocols.


@pytest.mark.parametrize(
    ("service", "offered", "selected"),
    [
        ("redis", ("redis",), "redis"),
        ("redis", ("http/1.1", "redis"), "redis"),
        ("redis", ("http/1.1",), None),
        ("redis", (), None),
        ("web", ("redis", "web"), "web"),
        ("unknown", ("redis", "web"), None),
    ],
)
def test_the_name_decides_which_protocols_are_taken(
    contexts: ServerContexts, client: ssl.SSLContext, service: str, offered: tuple[str, ...], selected: str | None
) -> None:
    endpoint = _server(contexts.by_name)
    tls = connect(endpoint, client, name=f"{service}.{NAME}", alpn=offered)
    assert tls.selected_alpn_protocol() == endpoint.tls.selected_alpn_protocol() == selected


def test_the_name_is_told_as_it_came(contexts: ServerContexts, client: ssl.SSLContext) -> None:
    endpoint = _server(contexts.by_name)
    connect(endpoint, client, name="REDIS.Gateway.test")
    assert server_name(endpoint.tls) == "REDIS.Gateway.test"


def test_a_client_that_names_nothing_is_told_apart(contexts: ServerContexts, client: ssl.SSLContext) -> None:
    endpoint = _server(contexts.by_name)
    connect(endpoint, client, name=None, alpn=("redis",))
    assert server_name(endpoint.tls) is None
    assert endpoint.tls.selected_alpn_protocol() is None


@pytest.mark.parametrize("alpn", [(), ("redis",)])
def test_on_a_port_of_its_own_the_name_selects_nothing(
    contexts: ServerContexts, client: ssl.SSLContext, alpn: tuple[str, ...]
) -> None:
    endpoint = _server(contexts.of_port(alpn))
    connect(endpoint, client, name=f"web.{NAME}", alpn=("web", "redis"))
    assert endpoint.tls.selected_alpn_protocol() == (alpn[0] if alpn else None)
    assert server_name(endpoint.tls) is None


def test_protocols_that_were_not_prepared_select_nothing(client: ssl.SSLContext) -> None:
    contexts = ServerContexts(
        certificate_pem=pki().server.pem,
        key_pem=pki().server.key_pem,
        anchors_pem=pki().authority.pem.decode(),
        alpn_of=lambda _: ("redis",),
    )
    endpoint = _server(contexts.by_name)
    connect(endpoint, client, alpn=("redis",))
    assert endpoint.tls.selected_alpn_protocol() is None
    contexts.prepare(("redis",))
    endpoint = _server(contexts.by_name)
    connect(endpoint, client, alpn=("redis",))
    assert endpoint.tls.selected_alpn_protocol() == "redis"


# Names that Python cannot read.


@pytest.fixture
def unreadable() -> Iterator[list[object]]:
    """What reached the hook that was there before."""
    before, passed_on = sys.unraisablehook, list[object]()
    sys.unraisablehook = passed_on.append
    yield passed_on
    sys.unraisablehook = before


def hello(name: str) -> bytes:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = pki().client_context().wrap_bio(incoming, outgoing, server_hostname=name)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def test_a_name_that_is_not_ascii_is_counted_and_nothing_is_printed(
    contexts: ServerContexts, unreadable: list[object], capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []
    count_unreadable_names(lambda: seen.append("name"))
    for _ in range(2):
        endpoint = _server(contexts.by_name)
        endpoint.receive(hello("aaaa.gateway.test").replace(b"aaaa", b"\xff\xfe\x1b\x80"))
        with pytest.raises(ssl.SSLError, match="CALLBACK_FAILED"):
            endpoint.handshake()
        assert endpoint.take().startswith(b"\x15")  # an alert
    assert seen == ["name"] * 2
    assert unreadable == []
    assert capfd.readouterr() == ("", "")


class Faulty:
    def __del__(self) -> None:
        raise ValueError("a fault of ours")


def test_faults_of_another_kind_are_told_as_before(unreadable: list[object]) -> None:
    seen: list[str] = []
    count_unreadable_names(lambda: seen.append("name"))
    Faulty()
    assert [type(one.exc_value) for one in unreadable] == [ValueError]  # type: ignore[attr-defined]
    assert seen == []
