"""Invitations at a real gateway: from the authority to a service, and all that they do not open."""

import json
import os
import re
import select
import socket
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509

from portguard.client.invitation import read_invitation
from portguard.pki.authority import Authority
from tests.audited import audited, wait_for_audit
from tests.curl import curl, curl_by_connect
from tests.held import is_cut, portguard
from tests.patience import PATIENCE_S
from tests.transcripts import expected, transcript

ISSUES = 'authority = "ca"\nrenew_for = "20d"\n'
POLICY = '[[roles]]\nname = "team"\nmembers = ["*"]\nservices = ["*"]'
_DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="module")
def shared(start_gateway_for_module, echo):
    services = {"echo": echo, "ported": f'upstream = ["{echo}"]\nlisten = ["127.0.0.1:0"]'}
    return start_gateway_for_module(services, policy=POLICY, configuration=ISSUES, workers=1)


@pytest.fixture
def gateway(shared):
    return shared.from_now()


def invite(gateway, name, *more, port=None):
    """Invite somebody in a folder of their own; the file."""
    path = gateway.folder / name / f"{name}.invitation"
    address = f"127.0.0.1:{port or gateway.port}"
    portguard(gateway, "invite", name, "--gateway", address, "--server-name", "gw.localhost", "--out", path, *more)
    return path


def enroll(gateway, path, *more, out=None, code=0):
    return portguard(gateway, "enroll", path, "--out", out or path.parent, *more, code=code)


def refusals(gateway, name):
    return [line for line in audited(gateway, "certificate.refuse") if line["identity"] == name]


def test_who_was_invited_enrolls_reaches_a_service_and_renews_and_nobody_else_does(gateway, tmp_path):
    path = invite(gateway, "dora")
    document = json.loads(enroll(gateway, path, "--json"))
    profile = document["profile"]
    assert document["identity"] == "spiffe://gateway.test/dora"
    assert "identity     dora\n" in portguard(gateway, "whoami", "--profile", profile)
    issued = x509.load_pem_x509_certificate((path.parent / "dora.crt").read_bytes())
    issued.verify_directly_issued_by(gateway.authority.anchor)
    context = gateway.context(None)
    context.load_cert_chain(path.parent / "dora.crt", path.parent / "dora.key")
    with gateway.connect_with(context, "echo") as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"
    said = enroll(gateway, path, out=tmp_path / "thief", code=3)
    assert "enroll: invitation_used: the invitation was used already, for another key" in said
    gateway.program.wait_until(lambda: bool(refusals(gateway, "dora")), "the refusal in its audit")
    [line] = refusals(gateway, "dora")
    invitation = read_invitation(path).certificate
    assert (line["reason"], line["serial"], line["source"]) == (
        "invitation_used",
        f"{invitation.serial_number:x}",
        "127.0.0.1",
    )
    [line] = [line for line in audited(gateway, "certificate.issue") if line["identity"] == "dora"]
    assert (line["invitation"], line["serial"]) == (True, f"{invitation.serial_number:x}")
    assert line["issued_serial"] == document["serial"] == f"{issued.serial_number:x}"
    assert line["session"] in gateway.log
    # The session of the refusal is in one line: the supervisor's.
    assert not [each for each in audited(gateway, "handshake.fail") if each["reason"] == "invitation_used"]
    portguard(gateway, "cert", "renew", "--profile", profile)
    renewed = x509.load_pem_x509_certificate((path.parent / "dora.crt").read_bytes())
    assert renewed.serial_number != issued.serial_number
    assert "ok: " in portguard(gateway, "audit", "verify")
    secret = re.sub("-----.*-----|\n", "", read_invitation(path).key_pem)
    assert secret not in gateway.log


class Cutting:
    """A way to the gateway on which the answer to the one request is lost; `lost()` returns when it is to break."""

    def __init__(self, port, lost):
        self._target, self._lost = ("127.0.0.1", port), lost
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._listening.settimeout(PATIENCE_S)
        self.port = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._listening.close()
        self._thread.join()

    def _run(self):
        client, _ = self._listening.accept()
        with client, socket.create_connection(self._target, timeout=PATIENCE_S) as gateway:
            client.settimeout(PATIENCE_S)
            gateway.sendall(client.recv(65536))  # its hello
            # The gateway's half of the handshake; whatever it says once the client has gone on is the answer.
            while client not in select.select([client, gateway], [], [], PATIENCE_S)[0]:
                client.sendall(gateway.recv(65536))
            upstream = threading.Thread(target=self._pass_on, args=(client, gateway))
            upstream.start()
            self._lost()
            client.shutdown(socket.SHUT_RDWR)
            upstream.join()

    def _pass_on(self, client, gateway):
        while data := client.recv(65536):
            gateway.sendall(data)


def test_an_answer_that_was_lost_is_had_by_running_it_again(gateway):
    def issued():
        return [line for line in audited(gateway, "certificate.issue") if line["identity"] == "erin"]

    lost = threading.Event()
    with Cutting(gateway.port, lambda: lost.wait(PATIENCE_S)) as way:
        path = invite(gateway, "erin", port=way.port)
        said = []
        first = threading.Thread(target=lambda: said.append(enroll(gateway, path, code=4)))
        first.start()
        gateway.program.wait_until(lambda: bool(issued()), "the certificate in its audit")
        lost.set()
        first.join()
    assert "run this again to go on with it" in said[0]
    assert [each.name for each in path.parent.iterdir() if each != path] == ["erin.key"]
    path.write_text(path.read_text().replace(f"127.0.0.1:{way.port}", f"127.0.0.1:{gateway.port}"))
    serial = json.loads(enroll(gateway, path, "--json"))["serial"]
    assert [line["issued_serial"] for line in issued()] == [serial, serial]
    records = [each for each in gateway.authority.store.records() if each.name == "erin"]
    assert [each.kind for each in records] == ["invitation", "client"]


def test_an_invitation_opens_no_door_but_its_own(gateway, real_program):
    real_program("curl")
    path = invite(gateway, "frank")
    invitation = read_invitation(path)
    gateway.folder.joinpath("frank.crt").write_text(invitation.certificate_pem)
    gateway.folder.joinpath("frank.key").write_text(invitation.key_pem)
    url = "https://gw.localhost:{port}/v1/"
    for method, what in (
        ("GET", "whoami"),
        ("GET", "services"),
        ("GET", "services/echo"),
        ("POST", "renew"),
        ("GET", "enroll"),
        ("POST", "enroll/"),
    ):
        answer = curl(gateway, "frank", url + what, "--request", method)
        assert json.loads(answer.stdout)["reason"] == "no_identity", what
    by_connect = curl_by_connect(gateway, "frank", "http://echo/", "--include")
    assert "Portguard-Reason: no_identity" in by_connect.stdout
    context = gateway.context("frank")
    for port, name in ((gateway.port, "echo.gw.localhost"), (gateway.ports["ported"], "gw.localhost")):
        sock = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
        with context.wrap_socket(sock, server_hostname=name, suppress_ragged_eofs=False) as client:
            client.sendall(b"x")
            assert is_cut(client)
    serial = f"{invitation.certificate.serial_number:x}"

    def reasons():
        lines = audited(gateway, "handshake.fail")
        return [line["reason"] for line in lines if line.get("claimed_serial") == serial]

    gateway.program.wait_until(lambda: len(reasons()) >= 9, "nine refusals in its audit")
    assert reasons() == ["no_identity"] * 9
    assert not [line for line in audited(gateway, "session.open") if line["identity"] == "frank"]
    # It is as good as before.
    enroll(gateway, path)


def test_who_has_a_name_or_says_nothing_of_use_is_not_enrolled(gateway, real_program):
    real_program("curl")
    url = "https://gw.localhost:{port}/v1/enroll"
    answer = curl(gateway, "alice", url, "--request", "POST", "--write-out", "%{stderr}%{http_code}")
    assert (answer.stderr, json.loads(answer.stdout)["message"]) == (
        "403",
        "expected an invitation, got a certificate that has a name already",
    )
    invitation = read_invitation(invite(gateway, "greg"))
    gateway.folder.joinpath("greg.crt").write_text(invitation.certificate_pem)
    gateway.folder.joinpath("greg.key").write_text(invitation.key_pem)
    answer = curl(gateway, "greg", url, "--data-binary", "x", "--write-out", "%{stderr}%{http_code}")
    assert answer.stderr == "415"
    answer = curl(gateway, "greg", url, "--data-binary", "x", "--header", "Content-Type: application/pkcs10")
    assert "expected one certificate request" in json.loads(answer.stdout)["message"]


def test_who_is_locked_out_or_taken_back_is_told(gateway):
    path = invite(gateway, "hugo")
    portguard(gateway, "lock", "hugo", "--reason", "INC-1")
    assert "enroll: locked: the identity is locked; ask who runs the gateway" in enroll(gateway, path, code=3)
    portguard(gateway, "unlock", "hugo")
    portguard(gateway, "cert", "revoke", path)
    assert "enroll: certificate_revoked: the invitation is revoked" in enroll(gateway, path, code=3)
    gateway.program.wait_until(lambda: len(refusals(gateway, "hugo")) == 2, "both refusals in its audit")
    assert [line["reason"] for line in refusals(gateway, "hugo")] == ["locked", "certificate_revoked"]
    path.unlink()
    enroll(gateway, invite(gateway, "hugo"))


def test_an_invitation_of_another_authority_and_a_gateway_that_does_not_issue(gateway, start_gateway, echo, tmp_path):
    other = Authority.create(tmp_path / "other", trust_domain="gateway.test", at=datetime.now(UTC))
    path = invite(gateway, "ivan", "--ca", str(other.directory))
    said = enroll(gateway, path, code=4)
    assert f"expected a certificate of the authority in {path}, got one of another authority" in said
    # Whoever trusts the gateway by another way is refused by it.
    text = path.read_text()
    mixed = path.with_name("mixed")
    mixed.write_text(text.replace("ca = '''\n", f"ca = '''\n{gateway.authority.certificate_pem.decode()}"))
    mixed.chmod(0o600)
    said = enroll(gateway, mixed, code=3)
    assert "certificate_untrusted: the gateway did not accept the certificate" in said
    without = start_gateway({"echo": echo}, workers=1)
    said = enroll(without, invite(without, "judy"), code=3)
    assert "enroll: bad_request: invitations to trust local are not taken here" in said


def test_what_the_reference_shows_enrolls_without_portguard(gateway, real_program):
    real_program("curl")
    real_program("openssl")
    page = (_DOCS / "reference/http-api.md").read_text()
    blocks = re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    [script] = [block for block in blocks if "/v1/enroll" in block]
    folder = invite(gateway, "alice").parent
    script = script.replace("bastion.example.com:8443", f"gw.localhost:{gateway.port}")
    subprocess.run(["bash", "-euc", script], cwd=folder, capture_output=True, check=True, timeout=PATIENCE_S)
    context = gateway.context(None)
    context.load_cert_chain(folder / "alice.crt", folder / "alice.key")
    with gateway.connect_with(context, "echo") as client:
        client.sendall(b"x")
        assert client.recv(1) == b"x"


def test_the_commands_of_the_howto_do_what_it_shows(start_gateway, echo):
    gateway = start_gateway({"echo": echo}, configuration=ISSUES, workers=1)
    page = (_DOCS / "howto/invite-people.md").read_text()
    page = page.replace(
        "--gateway bastion.example.com:8443", f"--gateway 127.0.0.1:{gateway.port} --server-name gw.localhost"
    )
    steps = transcript(page.replace("bastion.example.com", "gateway.test"))
    assert len(steps) == 12
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PORTGUARD_CA": str(gateway.folder / "ca"),
        "PORTGUARD_CONFIG": str(gateway.folder / "portguard.toml"),
    }
    for command, shown in steps:
        if command.startswith("portguard audit"):
            wait_for_audit(gateway, "certificate.refuse")
        done = subprocess.run(
            ["bash", "-c", f"{command} 2>&1"], cwd=gateway.folder, env=environment, stdout=subprocess.PIPE,
            text=True, timeout=PATIENCE_S, check=False,
        )  # fmt: skip
        assert expected(shown).fullmatch(done.stdout), f"$ {command}\nprinted:\n{done.stdout}\nnot:\n{shown}"
        assert done.returncode == (3 if "(session" in done.stdout else 0), command
