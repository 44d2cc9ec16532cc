"""What `portguard doctor` finds around a gateway: its names, its ports, and its services."""

import asyncio
import contextlib
import errno
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor

import pytest

from portguard.gateway.bundle import read_bundle
from portguard.gateway.diagnosis import diagnose_listening, diagnose_names, diagnose_services
from portguard.gateway.resolve import Names
from portguard.gateway.snapshot import build
from portguard.policy.addresses import ListenAddress
from portguard.tls.context import new_context
from portguard.tls.contexts import load_chain
from tests.certificates import SERVER_AUTH, Authority, dns, now
from tests.gateway_folder import NAME, GatewayFolder
from tests.peers import PATIENCE_S


@pytest.fixture
def folder(tmp_path):
    folder = GatewayFolder(tmp_path)
    folder.write("policy.toml", "")
    return folder


class Table(dict):
    """The names that resolve, and to which address."""

    def names(self):
        async def lookup(host):
            if host not in self:
                raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
            return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (self[host], 0))]

        return Names(lookup=lookup)


@pytest.fixture
def refusing():
    """A port of 127.0.0.1 at which nobody listens, kept from others."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


@pytest.fixture
async def listening():
    server = await asyncio.start_server(lambda _reader, writer: writer.close(), "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()


@contextlib.contextmanager
def tls_service(authority, header):
    """A service "db.internal" that wants to hear `header` and then speaks TLS, twice; yields its port."""
    holder = authority.issue("db", sans=[dns("db.internal")], usages=[SERVER_AUTH])
    context = new_context(ssl.PROTOCOL_TLS_SERVER)
    load_chain(context, holder.pem, holder.key_pem)

    def serve():
        for _ in range(2):
            sock = server.accept()[0]
            with sock, contextlib.suppress(OSError):
                sock.settimeout(PATIENCE_S)
                assert sock.recv(len(header), socket.MSG_WAITALL) == header
                with context.wrap_socket(sock, server_side=True) as tls:
                    tls.recv(1)

    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor(1) as thread:
        server.settimeout(PATIENCE_S)
        served = thread.submit(serve)
        yield server.getsockname()[1]
        served.result()


def snapshot_of(folder):
    return build(read_bundle(folder.configuration, now()))


async def told(findings):
    return [(each.level, each.subject, each.text) async for each in findings]


async def test_names_that_lead_to_the_gateway_are_right(folder):
    names = Table()
    names[NAME] = names[f"portguard-doctor.{NAME}"] = "127.0.0.1"
    assert await told(diagnose_names(snapshot_of(folder), names.names())) == [
        ("ok", "name", f"{NAME} is 127.0.0.1"),
        ("ok", "wildcard", f"*.{NAME} leads there too"),
    ]


async def test_names_that_lead_nowhere_or_elsewhere_are_warned_of(folder):
    names = Table()
    folder.write(
        "policy.toml",
        '[services.web]\nupstream = ["127.0.0.1:80"]\naliases = ["web.example.net", "www.example.net"]\n',
    )
    names["www.example.net"] = "127.0.0.1"
    [name, wildcard, alias] = await told(diagnose_names(snapshot_of(folder), names.names()))
    assert name == ("warning", "name", f"{NAME} does not resolve here")
    assert wildcard[2].startswith(f"*.{NAME} does not resolve here:")
    assert alias == ("warning", "alias", "web.example.net does not resolve here")
    names[NAME], names[f"portguard-doctor.{NAME}"] = "127.0.0.1", "127.0.0.2"
    [_, wildcard, _] = await told(diagnose_names(snapshot_of(folder), names.names()))
    assert wildcard[:2] == ("warning", "wildcard")
    assert wildcard[2].startswith(f"*.{NAME} leads to 127.0.0.2:")


async def test_services_are_reached_or_not(folder, listening, refusing):
    folder.write(
        "policy.toml",
        f'[services.up]\nupstream = ["127.0.0.1:{listening}"]\n'
        f'[services.half]\nupstream = ["127.0.0.1:{refusing}", "127.0.0.1:{listening}"]\n'
        f'[services.down]\nupstream = ["127.0.0.1:{refusing}", "unix:{folder.path}/none.sock"]\n',
    )
    no = f"127.0.0.1:{refusing}: Connection refused"
    assert await told(diagnose_services(snapshot_of(folder))) == [
        ("ok", "up", f"127.0.0.1:{listening} can be reached"),
        ("warning", "half", f"{no} (127.0.0.1:{listening} can be reached)"),
        ("failed", "down", f"{no}; unix:{folder.path}/none.sock: No such file or directory"),
    ]


@pytest.mark.parametrize(
    ("proxy_protocol", "header"),
    [("off", b""), ("v1", b"PROXY UNKNOWN\r\n"), ("v2", b"\r\n\r\n\0\r\nQUIT\n\x21\0\0\0")],
)
async def test_a_service_over_tls_is_spoken_to(folder, proxy_protocol, header):
    authority = Authority.root("Internal")
    folder.write("internal.crt", authority.pem)
    folder.write("other.crt", Authority.root("Other").pem)
    with tls_service(authority, header) as port:
        for name, ca in (("right", "internal.crt"), ("wrong", "other.crt")):
            folder.add(
                "policy.toml",
                f'[services.{name}]\nupstream = ["127.0.0.1:{port}"]\nproxy_protocol = "{proxy_protocol}"\n'
                f'tls = {{ ca = "{ca}", server_name = "db.internal" }}\n',
            )
        right, wrong = await told(diagnose_services(snapshot_of(folder)))
    assert right == ("ok", "right", f"127.0.0.1:{port} can be reached")
    assert wrong == ("failed", "wrong", f"127.0.0.1:{port}: unable to get local issuer certificate")


async def test_a_service_that_says_nothing_does_not_hang_the_look(folder):
    folder.add("portguard.toml", '[timeouts]\nconnect = "50ms"\n')
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        folder.write("policy.toml", f'[services.db]\nupstream = ["127.0.0.1:{port}"]\ntls = {{}}\n')
        [(level, _, text)] = await told(diagnose_services(snapshot_of(folder)))
    assert (level, text) == ("failed", f"127.0.0.1:{port}: connected, and then no answer in time")


def test_a_port_that_is_taken_is_warned_of_and_a_free_one_is_right(listening_address, free_address):
    found = list(diagnose_listening([listening_address, free_address]))
    assert [(each.level, each.subject, each.text) for each in found] == [
        ("warning", "listen", f"{listening_address}: Address already in use"),
        ("ok", "listen", f"{free_address} is free"),
    ]
    assert [each.advice for each in found] == ["`ss -ltnp` shows who listens there", ""]


@pytest.fixture
def listening_address():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield ListenAddress("127.0.0.1", server.getsockname()[1])


@pytest.fixture
def free_address():
    return ListenAddress("127.0.0.1", 0)


@pytest.mark.parametrize(("error", "level"), [(errno.EACCES, "warning"), (errno.EADDRNOTAVAIL, "failed")])
def test_what_only_the_gateways_user_may_is_no_failure(monkeypatch, error, level):
    def refuse(*_args, **_options):
        raise OSError(error, "no")

    monkeypatch.setattr(socket, "create_server", refuse)
    [found] = diagnose_listening([ListenAddress("::", 443)])
    assert found.level == level
