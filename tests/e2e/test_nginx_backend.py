"""Services that are told by the PROXY protocol who is calling: nginx writes it to its log, HAProxy answers with it."""

import re
import socket
import ssl
import struct

import pytest

from tests.curl import curl, curl_by_connect
from tests.haproxy import start_haproxy
from tests.nginx import start_nginx
from tests.patience import PATIENCE_S


class Nginx:
    def __init__(self, program, folder, told, plain):
        self.program = program
        self.folder = folder
        self.told = f"127.0.0.1:{told}"  # it requires a PROXY header
        self.plain = f"127.0.0.1:{plain}"  # it does not know what that is

    @property
    def log(self):
        """`CLIENT-ADDRESS PORT CALLED-ADDRESS PORT PATH`, a line a request, as the PROXY header had it."""
        return (self.folder / "access.log").read_text()

    def wait_for_log(self, line):
        # nginx logs a request when it is over, which may be after the client got its answer.
        self.program.wait_until(lambda: f"{line}\n" in self.log, f"{line!r} in its access log")


@pytest.fixture(scope="module")
def nginx(start_for_module, free_port, real_program, tmp_path_factory):
    folder = tmp_path_factory.mktemp("nginx")
    told, plain = free_port(), free_port()
    http = f"""
  log_format told "$proxy_protocol_addr $proxy_protocol_port "
                  "$proxy_protocol_server_addr $proxy_protocol_server_port $uri";
  server {{
    listen 127.0.0.1:{told} proxy_protocol;
    access_log {folder}/access.log told;
    location / {{ return 200 "told\\n"; }}
  }}
  server {{
    listen 127.0.0.1:{plain};
    location / {{ return 200 "plain\\n"; }}
  }}"""
    server = start_nginx(start_for_module, real_program("nginx"), folder / "files", http)
    server.wait_until_it_listens(("127.0.0.1", plain))
    return Nginx(server, folder, told, plain)


@pytest.fixture(scope="module")
def haproxy(start_for_module, free_port, real_program, tmp_path_factory):
    """The address of a HAProxy that requires a PROXY header, checks its CRC32C, and answers with what it read."""
    port = free_port()
    read = "%[src] %[src_port] %[dst] %[dst_port] %[fc_pp_authority] %[fc_pp_unique_id]"
    sections = f"""
frontend told
  mode http
  bind 127.0.0.1:{port} accept-proxy
  http-request return status 200 content-type text/plain lf-string "{read}\\n"
"""
    server = start_haproxy(
        start_for_module, real_program("haproxy"), tmp_path_factory.mktemp("haproxy") / "files", sections
    )
    server.wait_until_it_listens(("127.0.0.1", port))
    return f"127.0.0.1:{port}"


@pytest.fixture(scope="module")
def shared(start_gateway_for_module, nginx, haproxy):
    def service(address, version):
        return f'upstream = ["{address}"]\nproxy_protocol = "{version}"\nalpn = ["http/1.1"]'

    services = {f"nginx-{version}": service(nginx.told, version) for version in ("off", "v1", "v2", "v2-tls")}
    services |= {f"plain-{version}": service(nginx.plain, version) for version in ("off", "v1", "v2", "v2-tls")}
    services |= {f"haproxy-{version}": service(haproxy, version) for version in ("v1", "v2", "v2-tls")}
    return start_gateway_for_module(services)


@pytest.fixture
def gateway(shared, real_program):
    real_program("curl")
    return shared.from_now()


@pytest.mark.parametrize("way", ["name", "connect"])
@pytest.mark.parametrize("version", ["v1", "v2", "v2-tls"])
def test_nginx_logs_who_is_calling_and_what_was_called(gateway, nginx, version, way):
    # A source of its own tells the client's address from the gateway's.
    path = f"/{way}-{version}"
    options = ["--interface", "127.0.0.5", "--write-out", "%{stderr}%{local_port}"]
    if way == "name":
        answer = curl(gateway, "alice", f"https://nginx-{version}.gw.localhost:{{port}}{path}", *options)
    else:
        answer = curl_by_connect(gateway, "alice", f"http://nginx-{version}{path}", *options)
    assert answer.stdout == "told\n"
    nginx.wait_for_log(f"127.0.0.5 {answer.stderr} 127.0.0.1 {gateway.port} {path}")


def test_nothing_of_a_refused_client_reaches_nginx(gateway, nginx):
    answer = curl(gateway, "bob", "https://nginx-v2.gw.localhost:{port}/bob")
    assert answer.returncode != 0
    gateway.wait_for_log("session.refuse .*identity=bob .*service=nginx-v2 reason=no_role")
    assert "/bob" not in nginx.log


def test_nginx_that_waits_for_a_header_does_not_answer_without_one(gateway, nginx):
    answer = curl(gateway, "alice", "https://nginx-off.gw.localhost:{port}/without")
    assert answer.stdout == ""
    assert answer.returncode != 0
    # A later request is logged after it.
    curl(gateway, "alice", "https://nginx-v1.gw.localhost:{port}/later")
    nginx.wait_for_log(f"127.0.0.1 {gateway.port} /later")
    assert "/without" not in nginx.log


def test_a_service_that_is_told_nothing_sees_the_bytes_of_the_client_only(gateway):
    url = "https://plain-{}.gw.localhost:{{port}}/"
    assert curl(gateway, "alice", url.format("off")).stdout == "plain\n"
    for version in ("v1", "v2", "v2-tls"):
        answer = curl(gateway, "alice", url.format(version), "--http1.1", "--fail")
        assert answer.returncode != 0
        assert answer.stdout != "plain\n"


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_haproxy_reads_the_addresses_and_no_more(gateway, version):
    url = f"https://haproxy-{version}.gw.localhost:{{port}}/"
    answer = curl(gateway, "alice", url, "--interface", "127.0.0.5", "--write-out", "%{stderr}%{local_port}")
    assert answer.stdout.split() == ["127.0.0.5", answer.stderr, "127.0.0.1", str(gateway.port)]


@pytest.mark.parametrize("way", ["name", "connect"])
def test_haproxy_reads_the_name_that_was_called_and_the_session(gateway, way):
    if way == "name":
        answer = curl(gateway, "alice", "https://haproxy-v2-tls.gw.localhost:{port}/")
        called = "haproxy-v2-tls.gw.localhost"
    else:
        answer = curl_by_connect(gateway, "alice", "http://haproxy-v2-tls/")
        called = "gw.localhost"
    authority, session = answer.stdout.split()[4:]
    assert authority == called
    assert re.fullmatch("[0-9a-f]{32}", session)
    gateway.wait_for_log(f"session.open session={session} identity=alice .*service=haproxy-v2-tls ")


# No program at hand tells more of the fields than that. So, read them as the specification has them.


def _fields(data):
    """The type-length-value fields of section 2.2, by type."""
    fields = {}
    while data:
        kind, length = struct.unpack_from("!BH", data)
        assert kind not in fields
        fields[kind], data = data[3 : 3 + length], data[3 + length :]
    return fields


def test_a_service_is_told_the_identity_and_the_certificate(start_gateway):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(PATIENCE_S)
        upstream = f"127.0.0.1:{listening.getsockname()[1]}"
        gateway = start_gateway({"told": f'upstream = ["{upstream}"]\nproxy_protocol = "v2-tls"\nalpn = ["echo/1"]'})
        context = gateway.context("alice", "echo/1")
        with (
            socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE_S) as sock,
            context.wrap_socket(sock, server_hostname="told.gw.localhost") as client,
        ):
            client.sendall(b"first bytes")
            own = client.getsockname()
            service, _ = listening.accept()
            service.settimeout(PATIENCE_S)
            with service, service.makefile("rb") as stream:
                head = stream.read(16)
                assert head[:14] == b"\r\n\r\n\0\r\nQUIT\n\x21\x11"
                body = stream.read(int.from_bytes(head[14:], "big"))
                assert stream.read(11) == b"first bytes"
    source, called = struct.unpack_from("!4s4s", body)
    assert (socket.inet_ntoa(source), socket.inet_ntoa(called)) == ("127.0.0.1", "127.0.0.1")
    assert struct.unpack_from("!HH", body, 8) == (own[1], gateway.port)
    fields = _fields(body[12:])
    assert fields.keys() == {0x01, 0x02, 0x03, 0x05, 0x20}
    assert fields[0x01] == b"echo/1"
    assert fields[0x02] == b"told.gw.localhost"
    gateway.wait_for_log(f"session.open session={fields[0x05].decode()} identity=alice ")
    tls = fields[0x20]
    assert tls[:5] == b"\x07\0\0\0\0"  # over TLS, with a certificate in this connection and session, which is verified
    certificate = ssl.PEM_cert_to_DER_cert(gateway.certificate("alice")[0].read_text())
    assert _fields(tls[5:]) == {0x21: b"TLSv1.3", 0x22: b"alice", 0x28: certificate}
