import contextlib
import socket
import ssl
import subprocess
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509

from portguard.tls.chain import UnusableChain, load_chain
from portguard.tls.context import new_context
from portguard.tls.endpoint import Endpoint
from portguard.tls.upstream import upstream_context
from tests.certificates import SERVER_AUTH, Authority, Holder
from tests.conftest import RealProgram
from tests.patience import PATIENCE_S


def server_certificate(authority: Authority, *sans: x509.GeneralName) -> Holder:
    return authority.issue("db.internal", sans=sans, usages=[SERVER_AUTH])


def named(authority: Authority, name: str = "db.internal") -> Holder:
    return server_certificate(authority, x509.DNSName(name))


def server_context(holder: Holder, chain: bytes = b"") -> ssl.SSLContext:
    context = new_context(ssl.PROTOCOL_TLS_SERVER)
    load_chain(context, holder.pem + chain, holder.key_pem)
    return context


def handshake(
    client_context: ssl.SSLContext, context: ssl.SSLContext, name: str = "db.internal"
) -> list[ssl.SSLObject]:
    """Handshake in memory: the client's end and the server's. Raises what the client's end raises, or the server's."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname=name)
    server = context.wrap_bio(to_server, to_client, server_side=True)
    unfinished = [client, server]
    for _ in range(10):
        for end in list(unfinished):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            unfinished.remove(end)
    assert unfinished == []
    return [client, server]


@pytest.fixture
def authority() -> Authority:
    return Authority.root()


def test_a_service_whose_certificate_verifies_is_taken(authority: Authority) -> None:
    client, _ = handshake(upstream_context(authority.pem.decode(), None, None), server_context(named(authority)))
    assert client.version() == "TLSv1.3"
    by_address = server_certificate(authority, x509.IPAddress(ip_address("192.0.2.1")))
    handshake(upstream_context(authority.pem.decode(), None, None), server_context(by_address), "192.0.2.1")


def test_a_service_of_another_name_is_refused(authority: Authority) -> None:
    context = upstream_context(authority.pem.decode(), None, None)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(context, server_context(named(authority, "other.internal")))


def test_a_common_name_is_no_name(authority: Authority) -> None:
    context = upstream_context(authority.pem.decode(), None, None)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(context, server_context(server_certificate(authority)))


def test_a_service_of_another_authority_is_refused(authority: Authority) -> None:
    # Of the same name, so that only the key tells them apart.
    context = upstream_context(Authority.root().pem.decode(), None, None)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(context, server_context(named(authority)))


def test_the_systems_store_is_taken_without_a_ca_of_ones_own(
    authority: Authority, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = tmp_path_factory.mktemp("store") / "ca.pem"
    store.write_bytes(authority.pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(store))
    handshake(upstream_context(None, None, None), server_context(named(authority)))
    # Beside a CA of one's own the system's is not taken.
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(upstream_context(Authority.root("Other").pem.decode(), None, None), server_context(named(authority)))


def test_each_certificate_of_the_ca_is_an_anchor_whatever_text_is_around_it(authority: Authority) -> None:
    second = Authority.root("Second")
    issuing = second.intermediate()
    ca_pem = "Zürich, erste Stelle\n" + authority.pem.decode() + "\nzweite, eine mittlere\n" + issuing.pem.decode()
    context = upstream_context(ca_pem, None, None)
    handshake(context, server_context(named(authority)))
    handshake(context, server_context(named(issuing)))
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(context, server_context(named(second)))


def test_the_gateway_shows_its_certificate_when_it_has_one(authority: Authority) -> None:
    gateway = authority.issue("gateway")
    context = server_context(named(authority))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(cadata=authority.der)
    shown = upstream_context(authority.pem.decode(), gateway.pem, gateway.key_pem)
    _, server = handshake(shown, context)
    assert server.getpeercert(binary_form=True) == gateway.der
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        handshake(upstream_context(authority.pem.decode(), None, None), context)


def test_tls_1_2_is_the_oldest_that_is_spoken(authority: Authority) -> None:
    old = server_context(named(authority))
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    client, _ = handshake(upstream_context(authority.pem.decode(), None, None), old)
    assert client.version() == "TLSv1.2"
    assert upstream_context(None, None, None).minimum_version is ssl.TLSVersion.TLSv1_2


def test_alpn_is_offered_when_the_service_has_some(authority: Authority) -> None:
    context = server_context(named(authority))
    context.set_alpn_protocols(["postgresql"])
    client, _ = handshake(upstream_context(authority.pem.decode(), None, None, alpn=("postgresql",)), context)
    assert client.selected_alpn_protocol() == "postgresql"
    client, _ = handshake(upstream_context(authority.pem.decode(), None, None), context)
    assert client.selected_alpn_protocol() is None


@pytest.mark.parametrize("ca_pem", ["", "rubbish", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_ca_without_a_certificate_is_refused(ca_pem: str) -> None:
    with pytest.raises(UnusableChain, match=r"^ca: expected one or more PEM certificates, got something else$"):
        upstream_context(ca_pem, None, None)


def test_a_certificate_without_its_key_is_refused(authority: Authority) -> None:
    with pytest.raises(UnusableChain, match=r"^key: expected certificate and key together"):
        upstream_context(None, authority.pem, None)
    with pytest.raises(UnusableChain, match=r"^certificate: expected certificate and key together"):
        upstream_context(None, None, authority.key_pem)
    with pytest.raises(UnusableChain, match=r"^key: expected the certificate's key"):
        upstream_context(None, authority.pem, authority.issue().key_pem)


def test_a_service_that_wants_to_renegotiate_is_told_no_and_bytes_can_go_on(
    authority: Authority, real_program: RealProgram, tmp_path: Path
) -> None:
    """OpenSSL's own server asks for it on a line that begins with r; TLS 1.3 has it no more."""
    holder = named(authority)
    (tmp_path / "server.pem").write_bytes(holder.pem + holder.key_pem)
    command = [real_program("openssl"), "s_server", "-accept", "127.0.0.1:0", "-cert", "server.pem", "-tls1_2", "-msg"]
    endpoint = Endpoint(
        upstream_context(authority.pem.decode(), None, None), server_side=False, server_hostname="db.internal"
    )
    room = memoryview(bytearray(64 * 1024))
    server = subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with server, contextlib.ExitStack() as cleanup:
        cleanup.callback(server.kill)
        assert server.stdin is not None
        assert server.stdout is not None
        port = next(line for line in server.stdout if line.startswith(b"ACCEPT")).rpartition(b":")[2]
        sock = cleanup.enter_context(socket.create_connection(("127.0.0.1", int(port)), timeout=PATIENCE_S))
        while not endpoint.handshake():
            sock.sendall(endpoint.take())
            endpoint.receive(sock.recv(16384))
        sock.sendall(endpoint.take())
        next(line for line in server.stdout if b">>> TLS 1.2, Handshake" in line and b"Finished" in line)
        server.stdin.write(b"r\n")
        server.stdin.flush()
        assert endpoint.decrypt(memoryview(sock.recv(16384)), room) == 0
        assert endpoint.has_output
        sock.sendall(endpoint.take())
        next(line for line in server.stdout if b"<<< TLS 1.2, Alert" in line and b"no_renegotiation" in line)
        assert list(endpoint.encrypt(memoryview(b"still here")))
