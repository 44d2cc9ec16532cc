"""curl reaches a web server by server name and through CONNECT, and is told why when it does not."""

import json
import os
import re

import pytest

from tests.curl import curl, curl_by_connect
from tests.nginx import start_nginx

# Exit codes of curl(1).
_EMPTY_REPLY, _TUNNEL_FAILED, _UNTRUSTED_SERVER, _BROKEN = 52, 56, 60, {55, 56}

# Nobody can guess or compress it, and it takes many records and reads.
_BIG = 16 * 1024 * 1024


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What nginx serves: the file `big`, and whatever is put there."""
    folder = tmp_path_factory.mktemp("www")
    folder.joinpath("big").write_bytes(os.urandom(_BIG))
    return folder


@pytest.fixture(scope="module")
def nginx(start_for_module, free_port, real_program, tmp_path_factory, folder):
    port = free_port()
    http = f"""
  client_max_body_size 64m;
  server {{
    listen 127.0.0.1:{port};
    root {folder};
    dav_methods PUT;
    location = /hello {{ return 200 "hello from nginx\\n"; }}
  }}"""
    server = start_nginx(start_for_module, real_program("nginx"), tmp_path_factory.mktemp("nginx") / "files", http)
    server.wait_until_it_listens(("127.0.0.1", port))
    return f"127.0.0.1:{port}"


def serve(start, nginx, free_port):
    """Alice may reach all of the services but `hidden`."""
    services = {
        "web": f'upstream = ["{nginx}"]\nlocal_port = 8080\ndescription = "the “front” page"\nalpn = ["http/1.1"]\n'
        'aliases = ["www.example.com"]',
        "any-port": nginx,
        "hidden": f'upstream = ["{nginx}"]\naliases = ["hidden.example.com"]',
        "down": f"127.0.0.1:{free_port()}",
    }
    role = '[[roles]]\nname = "team"\nmembers = ["alice"]\nservices = ["web", "any-port", "down"]'
    return start(services, policy=role)


@pytest.fixture(scope="module")
def shared(start_gateway_for_module, nginx, free_port):
    return serve(start_gateway_for_module, nginx, free_port)


@pytest.fixture(scope="module")
def shared_proxy(start_gateway_for_module, nginx, free_port):
    return serve(start_gateway_for_module, nginx, free_port)


@pytest.fixture
def gateway(shared, real_program):
    real_program("curl")
    return shared.from_now()


@pytest.fixture
def proxy(shared_proxy, real_program):
    """The same for CONNECT alone: together they would be refused so often that not all of it is logged."""
    real_program("curl")
    return shared_proxy.from_now()


# Straight: the server name is the service.


def test_by_server_name_the_answer_is_the_service_s_own(gateway):
    answer = curl(gateway, "alice", "https://web.gw.localhost:{port}/hello", "--include")
    assert answer.returncode == 0
    assert answer.stdout.startswith("HTTP/1.1 200 OK")
    assert answer.stdout.endswith("\nhello from nginx\n")
    assert "portguard" not in answer.stdout.lower()
    gateway.wait_for_log("session.open .*identity=alice .*service=web ")


@pytest.mark.parametrize(
    ("name", "service", "reason"),
    [
        ("bob", "web", "no_role"),
        ("alice", "hidden", "service_not_granted"),
        ("alice", "nope", "unknown_service"),
    ],
)
def test_by_server_name_a_refusal_is_a_broken_connection_and_no_answer(gateway, name, service, reason):
    answer = curl(gateway, name, f"https://{service}.gw.localhost:{{port}}/hello")
    assert answer.stdout == ""
    assert answer.returncode in {_EMPTY_REPLY, *_BROKEN}
    gateway.wait_for_log(f"session.refuse .*identity={name} .*reason={reason}")


def test_without_a_certificate_no_request_gets_through(gateway):
    answer = curl(gateway, None, "https://web.gw.localhost:{port}/hello")
    assert answer.stdout == ""
    assert answer.returncode in _BROKEN
    gateway.wait_for_log("handshake.fail .*reason=certificate_missing")


def test_curl_checks_the_gateway_s_certificate_against_the_service_s_name(gateway):
    answer = curl(gateway, "alice", "https://web.elsewhere.localhost:{port}/hello")
    assert answer.returncode == _UNTRUSTED_SERVER


@pytest.mark.parametrize("through", ["name", "connect"])
def test_a_file_comes_and_goes_unchanged(gateway, folder, tmp_path, through):
    def fetch(url, *options):
        if through == "connect":
            return curl_by_connect(gateway, "alice", f"http://web:8080{url}", *options)
        return curl(gateway, "alice", f"https://web.gw.localhost:{{port}}{url}", *options)

    down, name = tmp_path / "down", f"put-by-{through}"
    assert fetch("/big", "--output", str(down)).returncode == 0
    # One after the other: what came down is sent up again.
    assert fetch(f"/{name}", "--upload-file", str(down)).returncode == 0
    assert folder.joinpath(name).read_bytes() == folder.joinpath("big").read_bytes()
    # 16777216 bytes and a head.
    gateway.wait_for_log(r"session.close .*service=web .*received=\d{2,3} sent=16777[2-9]\d\d ")
    gateway.wait_for_log(r"session.close .*service=web .*received=16777[2-9]\d\d sent=\d{3} ")


# Through CONNECT: the gateway answers before a byte flows.


def test_by_connect_the_tunnel_leads_to_the_service_and_the_answer_names_the_session(proxy):
    answer = curl_by_connect(proxy, "alice", "http://web:8080/hello", "--include")
    assert answer.returncode == 0
    head, _, rest = answer.stdout.partition("\n\n")
    assert head.startswith("HTTP/1.1 200 Connection established\n")
    assert rest.startswith("HTTP/1.1 200 OK\n")
    assert rest.endswith("\nhello from nginx\n")
    [session] = re.findall(r"^Portguard-Session: ([0-9a-f]{32})$", head, re.MULTILINE)
    proxy.wait_for_log(f"session.open session={session} identity=alice .*service=web ")
    proxy.wait_for_log(f"session.close session={session} identity=alice ")


@pytest.mark.parametrize("name", ["WEB", "web.", "web.gw.localhost", "www.example.com", "WWW.Example.com."])
def test_by_connect_a_service_goes_by_each_of_its_names(proxy, name):
    assert curl_by_connect(proxy, "alice", f"http://{name}:8080/hello").stdout == "hello from nginx\n"
    proxy.wait_for_log("session.open .*identity=alice .*service=web ")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("hidden.gw.localhost", "service_not_granted"),
        ("hidden.example.com", "service_not_granted"),
        ("web.example.com", "unknown_service"),
        ("web.gw.localhost.example.com", "unknown_service"),
    ],
)
def test_by_connect_no_other_name_leads_to_a_service(proxy, name, reason):
    answer = curl_by_connect(proxy, "alice", f"http://{name}/hello")
    assert answer.stdout == ""
    assert answer.returncode == _TUNNEL_FAILED
    proxy.wait_for_log(f"session.refuse .*identity=alice .*reason={reason}")


@pytest.mark.parametrize("target", ["any-port", "any-port:12345", "ANY-PORT.:80"])
def test_by_connect_a_service_without_a_port_of_its_own_takes_any(proxy, target):
    assert curl_by_connect(proxy, "alice", f"http://{target}/hello").stdout == "hello from nginx\n"


REFUSED = [
    ("bob", "web:8080", 403, "no_role"),
    ("alice", "hidden:80", 403, "service_not_granted"),
    ("alice", "nope:80", 404, "unknown_service"),
    ("alice", "web:80", 404, "unknown_service"),
    ("alice", "127.0.0.1:80", 400, "bad_request"),
    ("alice", "down:80", 502, "upstream_unreachable"),
]


@pytest.mark.parametrize(("name", "target", "status", "reason"), REFUSED)
def test_by_connect_a_refusal_has_a_status_and_its_reason(proxy, name, target, status, reason):
    answer = curl_by_connect(proxy, name, f"http://{target}/hello", "--include")
    assert answer.returncode == _TUNNEL_FAILED
    assert f"CONNECT tunnel failed, response {status}" in answer.stderr
    assert answer.stdout.startswith(f"HTTP/1.1 {status} ")
    assert f"\nPortguard-Reason: {reason}\n" in answer.stdout
    assert "hello" not in answer.stdout
    [session] = re.findall(r"^Portguard-Session: ([0-9a-f]{32})$", answer.stdout, re.MULTILINE)
    proxy.wait_for_log(f"session.refuse session={session} identity={name} .*reason={reason} ")


@pytest.mark.parametrize(("name", "target", "status", "reason"), REFUSED)
def test_the_body_of_a_refusal_is_json_for_those_who_read_it(proxy, name, target, status, reason):
    # As the answer to a CONNECT curl reads no body. To the proxy this is the same request.
    as_request = ["--request", "CONNECT", "--request-target", target]
    answer = curl(proxy, name, "https://gw.localhost:{port}/", *as_request, "--include")
    head, _, body = answer.stdout.partition("\n\n")
    assert head.startswith(f"HTTP/1.1 {status} ")
    assert "\nContent-Type: application/json\n" in head
    document = json.loads(body)
    assert document.keys() == {"reason", "message", "session"}
    assert document["reason"] == reason
    assert f"\nPortguard-Session: {document['session']}" in head


def test_a_wrong_port_is_answered_with_the_right_one(proxy):
    as_request = ["--request", "CONNECT", "--request-target", "web:80"]
    answer = curl(proxy, "alice", "https://gw.localhost:{port}/", *as_request)
    assert json.loads(answer.stdout)["message"] == "expected port 8080, got 80"


def test_whoever_may_not_reach_a_service_does_not_learn_its_port(proxy):
    as_request = ["--request", "CONNECT", "--request-target", "web:80"]
    answer = curl(proxy, "bob", "https://gw.localhost:{port}/", *as_request)
    assert not re.search(r"\b8080\b", answer.stdout)  # a session id may contain it


def test_where_an_upstream_is_stays_in_the_log(proxy):
    as_request = ["--request", "CONNECT", "--request-target", "down:80"]
    answer = curl(proxy, "alice", "https://gw.localhost:{port}/", *as_request)
    assert "127.0.0.1" not in answer.stdout
    proxy.wait_for_log(r'reason=upstream_unreachable message="127\.0\.0\.1:\d+: Connection refused"')


def test_a_proxy_without_the_client_s_certificate_is_refused(proxy):
    answer = curl_by_connect(proxy, None, "http://web:8080/hello")
    assert answer.returncode in _BROKEN
    assert answer.stdout == ""
    proxy.wait_for_log("handshake.fail .*reason=certificate_missing")


# What the gateway tells of a service.


def test_a_service_is_described_to_those_who_may_reach_it(gateway):
    answer = curl(gateway, "alice", "https://gw.localhost:{port}/v1/services/web", "--include")
    head, _, body = answer.stdout.partition("\n\n")
    assert head.startswith("HTTP/1.1 200 OK\n")
    assert "\nContent-Type: application/json\n" in head
    assert json.loads(body) == {
        "service": "web",
        "local_port": 8080,
        "description": "the “front” page",
        "refusal": None,
    }


@pytest.mark.parametrize(
    ("name", "service", "status", "reason"),
    [
        ("bob", "web", 403, "no_role"),
        ("alice", "hidden", 403, "service_not_granted"),
        ("alice", "nope", 404, "unknown_service"),
    ],
)
def test_a_service_is_not_described_to_others(gateway, name, service, status, reason):
    url = f"https://gw.localhost:{{port}}/v1/services/{service}"
    answer = curl(gateway, name, url, "--write-out", "%{stderr}%{http_code}")
    assert answer.stderr == str(status)
    document = json.loads(answer.stdout)
    assert document["reason"] == reason
    assert ("called nope" in document["message"]) == (service == "nope")
    assert not re.search(r"\b8080\b", answer.stdout)  # a session id may contain it


def test_a_web_page_may_not_ask_with_its_visitor_s_certificate(gateway):
    url = "https://gw.localhost:{port}/v1/services/web"
    answer = curl(gateway, "alice", url, "--header", "Origin: https://evil.example", "--include")
    assert answer.stdout.startswith("HTTP/1.1 403 ")
    assert not re.search(r"\b8080\b", answer.stdout)  # a session id may contain it
