"""HAProxy in front of the gateway, which takes its word for where clients are, and nobody else's.

HAProxy itself calls from 127.0.0.1, or from where a test has it call; clients call from other addresses of loopback.
"""

import csv

import pytest

from tests.curl import curl
from tests.haproxy import ask_haproxy, start_haproxy
from tests.nginx import start_nginx

_INSIDE, _OUTSIDE = "127.0.0.5", "127.0.0.6"

# Only whoever is at _INSIDE may reach `web` and `told`; nobody is who could come from HAProxy's own address.
_POLICY = f"""
[[roles]]
name = "office"
members = ["alice"]
services = ["web", "told"]
from = ["{_INSIDE}/32"]
"""


@pytest.fixture(scope="module")
def shared(start_for_module, start_gateway_for_module, free_port, real_program, tmp_path_factory):
    real_program("curl")
    port, told = free_port(), free_port()
    http = f"""
  server {{ listen 127.0.0.1:{port}; location / {{ return 200 "hello\\n"; }} }}
  server {{
    listen 127.0.0.1:{told} proxy_protocol;
    location / {{ return 200 "$proxy_protocol_addr $proxy_protocol_server_addr $proxy_protocol_server_port\\n"; }}
  }}"""
    nginx = start_nginx(start_for_module, real_program("nginx"), tmp_path_factory.mktemp("nginx") / "files", http)
    nginx.wait_until_it_listens(("127.0.0.1", port))
    return start_gateway_for_module(
        {"web": f"127.0.0.1:{port}", "told": f'upstream = ["127.0.0.1:{told}"]\nproxy_protocol = "v2"'},
        policy=_POLICY,
        gateway='accept_proxy_protocol_from = ["127.0.0.1/32"]',
    )


@pytest.fixture
def gateway(shared):
    return shared.from_now()


@pytest.fixture
def haproxy(start, free_port, real_program, gateway, tmp_path):
    """`haproxy(options)` starts one in TCP mode, with these options of its server, and returns its port."""

    def run(options):
        port = free_port()
        sections = f"listen front\n  bind 127.0.0.1:{port}\n  server gateway 127.0.0.1:{gateway.port} {options}\n"
        program = start_haproxy(start, real_program("haproxy"), tmp_path / "haproxy", sections)
        # A connection to see whether it listens would go on to the gateway.
        program.wait_until(lambda: _listens(port), "it listened")
        return port

    return run


def _listens(port):
    """Look in proc(5): a socket in state 0A, that is listening, at this port of 127.0.0.1."""
    with open("/proc/net/tcp") as table:
        return any(line.split()[1] == f"0100007F:{port:04X}" and line.split()[3] == "0A" for line in list(table)[1:])


def fetch(gateway, port, source, name="alice"):
    return curl(gateway, name, f"https://web.gw.localhost:{port}/", "--interface", source)


@pytest.mark.parametrize("option", ["send-proxy", "send-proxy-v2", "send-proxy-v2-ssl-cn"])
def test_the_client_s_address_comes_through_and_the_policy_decides_by_it(gateway, haproxy, option):
    port = haproxy(option)
    assert fetch(gateway, port, _INSIDE).stdout == "hello\n"
    gateway.wait_for_log(f"session.open .*identity=alice source={_INSIDE} service=web ")
    refused = fetch(gateway, port, _OUTSIDE)
    assert refused.stdout == ""
    assert refused.returncode != 0
    gateway.wait_for_log(f"session.refuse .*identity=alice source={_OUTSIDE} .*reason=source_not_allowed")


@pytest.mark.parametrize("option", ["send-proxy", "send-proxy-v2"])
def test_a_service_is_told_where_the_client_is_and_what_it_called_at_the_balancer(gateway, haproxy, option):
    port = haproxy(option)
    for called in (port, gateway.port):  # by the balancer, and past it
        answer = curl(gateway, "alice", f"https://told.gw.localhost:{called}/", "--interface", _INSIDE)
        assert answer.stdout == f"{_INSIDE} 127.0.0.1 {called}\n"


def test_who_is_calling_still_takes_a_certificate(gateway, haproxy):
    port = haproxy("send-proxy-v2")
    assert fetch(gateway, port, _INSIDE, "bob").returncode != 0
    gateway.wait_for_log(f"session.refuse .*identity=bob source={_INSIDE} .*reason=no_role")
    assert fetch(gateway, port, _INSIDE, None).returncode != 0
    gateway.wait_for_log(f"handshake.fail .*source={_INSIDE} reason=certificate_missing")


def test_from_a_balancer_s_address_nothing_goes_without_a_header(gateway, haproxy):
    for port in (gateway.port, haproxy("")):
        refused = fetch(gateway, port, "127.0.0.1")
        assert refused.returncode != 0
        assert refused.stdout == ""
    gateway.wait_for_log("handshake.fail .*source=127.0.0.1 reason=bad_request", count=2)


@pytest.mark.parametrize("option", ["send-proxy", "send-proxy-v2"])
def test_a_header_from_elsewhere_is_never_read(gateway, haproxy, option):
    port = haproxy(f"{option} source 127.0.0.9")
    refused = fetch(gateway, port, _INSIDE)
    assert refused.returncode != 0
    assert refused.stdout == ""
    # The address that the connection has, and a TLS error about bytes that are no ClientHello.
    gateway.wait_for_log("handshake.fail .*source=127.0.0.9 reason=handshake_failed")
    assert f"source={_INSIDE} reason=handshake_failed" not in gateway.log


def test_a_client_from_elsewhere_needs_no_balancer(gateway):
    assert fetch(gateway, gateway.port, _INSIDE).stdout == "hello\n"
    gateway.wait_for_log(f"session.open .*source={_INSIDE} ")
    assert fetch(gateway, gateway.port, _OUTSIDE).returncode != 0
    gateway.wait_for_log(f"session.refuse .*source={_OUTSIDE} .*reason=source_not_allowed")


@pytest.mark.parametrize("option", ["send-proxy", "send-proxy-v2"])
def test_a_balancer_s_health_checks_are_no_news(gateway, haproxy, tmp_path, option):
    port = haproxy(f"{option} check inter 20ms")

    def checked():
        table = ask_haproxy(tmp_path / "haproxy", "show stat").removeprefix("# ").splitlines()
        [row] = [row for row in csv.DictReader(table) if row["svname"] == "gateway"]
        # After a check that took longer than 20 ms it is "UP 1/3", until as many went well.
        return (row["check_status"], row["status"]) == ("L4OK", "UP")

    gateway.program.wait_until(checked, "the balancer had checked it")
    assert fetch(gateway, port, _INSIDE).stdout == "hello\n"
    gateway.wait_for_log(f"session.open .*source={_INSIDE} ")
    assert " warning " not in gateway.log
