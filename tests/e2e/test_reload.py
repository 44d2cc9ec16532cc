"""Reload: what changes, what goes on, and what ends, with sessions that transfer all the while."""

import contextlib
import http.client
import json
import os
import re
import resource
import select
import signal
import socket
import ssl
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from bench.load import Crowd, Doors
from tests import certificates
from tests.audited import audited
from tests.counting import steady_zone
from tests.e2e.conftest import GATEWAY_NAME, PORTGUARD
from tests.patience import PATIENCE_S
from tests.traffic import Traffic
from tests.transcripts import expected, transcript
from tests.unharmed import echoes, unharmed, warm_up, workers

_REPOSITORY = Path(__file__).parents[2]

POLICY = """
[[roles]]
name = "team"
members = ["alice", "bob", "carol"]
services = ["*"]
"""


@pytest.fixture
def gateway(start_gateway, echo):
    return start_gateway({"echo": echo}, policy=f'timezone = "{steady_zone()}"\n{POLICY}')


@pytest.fixture(scope="module")
def shared(start_gateway_for_module, echo):
    return start_gateway_for_module({"echo": echo, "spare": echo}, policy=POLICY)


@pytest.fixture
def restored(shared):
    """A gateway of several tests, for those that use up nothing; its files, and what is in force, are put back."""
    files = {path.name: path.read_bytes() for path in shared.folder.iterdir() if path.is_file()}
    yield shared.from_now()
    changed = {name: content for name, content in files.items() if (shared.folder / name).read_bytes() != content}
    for name, content in changed.items():
        put(shared, name, content)
    if changed:
        reload(shared)


# In every test alice stays as she is, carol transfers all the while, and bob is who it happens to.


@contextlib.contextmanager
def under_load(gateway):
    """Check that what happens in the block disturbs none of carol's sessions, and leaves nothing behind."""
    warm_up(gateway)
    with unharmed(gateway):
        with Traffic(gateway, "carol") as traffic:
            yield
            traffic.moves()
        gateway.program.wait_until(lambda: sum(metric(gateway, "sessions_active")) == 0, "no session was left")
    assert command(gateway, "audit", "verify", "--json").returncode == 0


def command(gateway, *words):
    """Run a command of portguard's on the gateway's configuration."""
    argv = [*PORTGUARD, *words, "-c", str(gateway.folder / "portguard.toml")]
    return subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def reload(gateway, *more, code=0):
    """Run `portguard reload`; return its standard output and error."""
    done = command(gateway, "reload", *more)
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def change(gateway, file, old, new):
    """Change a file as an editor does that renames."""
    path = gateway.folder / file
    text = path.read_text()
    assert old in text
    put(gateway, file, text.replace(old, new))


def put(gateway, file, content):
    path = gateway.folder / file
    new = path.with_name(f".{path.name}.new")
    new.write_bytes(content if isinstance(content, bytes) else content.encode())
    new.chmod(0o600)
    new.rename(path)


def held(gateway, name="bob", service="echo"):
    client = gateway.connect(service, name)
    assert goes_on(client)
    return client


def goes_on(client):
    client.settimeout(PATIENCE_S)
    client.sendall(b"more")
    return client.recv(10) == b"more"


def is_cut(client):
    """Wait for its end, of which the client can tell that it was none in order."""
    client.settimeout(PATIENCE_S)
    try:
        return client.recv(10) == b"" and False
    except (ssl.SSLError, ConnectionResetError):
        return True


def is_refused(gateway, name="bob", service="echo"):
    with pytest.raises(OSError, match=r"EOF|reset|alert"), gateway.connect(service, name) as client:
        client.recv(1)
    return True


def metric(gateway, name, port=None):
    connection = http.client.HTTPConnection("127.0.0.1", port or gateway.metrics_port, timeout=PATIENCE_S)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    return [float(value) for value in re.findall(rf"^portguard_{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)]


def closes_with(gateway, reason, name="bob"):
    gateway.wait_for_log(rf"session\.close .*identity={name} .*reason={reason}")


# What a policy gives and takes.


def test_who_lost_the_right_is_cut_with_the_reason_and_others_go_on(gateway):
    with under_load(gateway):
        with held(gateway, "alice") as alice, held(gateway) as bob:
            change(gateway, "policy.toml", '"alice", "bob"', '"alice"')
            out, err = reload(gateway, "--message", "CHG-123")
            assert err == ""
            assert "sessions closed: 1\n" in out
            assert is_cut(bob)
            assert goes_on(alice)
            closes_with(gateway, "no_role")
            alice.unwrap()
        assert is_refused(gateway)
    [load] = [record for record in audited(gateway, "policy.load") if record.get("message")]
    assert load["message"] == "CHG-123"
    assert load["by"].startswith(f"uid {os.getuid()}")
    [close] = [record for record in audited(gateway, "session.close") if record["identity"] == "bob"]
    assert (close["reason"], close["received"], close["sent"]) == ("no_role", 4, 4)


_BOB = '[[roles]]\nname = "bobs"\nmembers = ["bob"]\n'


@pytest.mark.parametrize(
    ("above", "below", "reason"),
    [
        ('[[deny]]\nmembers = ["bob"]\nservices = ["*"]', "", "denied"),
        ("", f'{_BOB}services = ["spare"]', "service_not_granted"),
        ("", f'{_BOB}services = ["*"]\nfrom = ["192.0.2.1"]', "source_not_allowed"),
        ("", f'{_BOB}services = ["*"]\nhours = ["{{day}}"]', "outside_hours"),
        ("", f'{_BOB}services = ["*"]\nexpires = 2020-01-01T00:00:00Z', "grant_expired"),
        ("", f'{_BOB}services = ["*"]\nfrom = ["127.0.0.1"]', None),
    ],
)
def test_a_session_ends_with_the_reason_for_which_it_would_not_begin(restored, above, below, reason):
    gateway = restored
    day = (datetime.now(UTC) + timedelta(days=3)).strftime("%a")
    with under_load(gateway), held(gateway) as bob:
        if below:
            change(gateway, "policy.toml", '"bob", ', "")
        change(gateway, "policy.toml", POLICY.strip().partition("\n")[0], f"{above}\n[[roles]]")
        put(gateway, "policy.toml", (gateway.folder / "policy.toml").read_text() + below.replace("{day}", day))
        out, _ = reload(gateway)
        assert f"sessions closed: {0 if reason is None else 1}\n" in out
        if reason is None:
            assert goes_on(bob)
            bob.unwrap()
        else:
            assert is_cut(bob)
            closes_with(gateway, reason)


def test_a_session_whose_service_has_gone_or_moved_is_cut(start_gateway, echo):
    gateway = start_gateway(
        {"echo": echo, "gone": echo, "moved": f'upstream = ["{echo}"]\nzones = ["x"]'}, policy=POLICY
    )
    with under_load(gateway), held(gateway, service="gone") as gone, held(gateway, service="moved") as moved:
        change(gateway, "policy.toml", f'[services.gone]\nupstream = ["{echo}"]', "")
        change(gateway, "policy.toml", f'upstream = ["{echo}"]\nzones = ["x"]', 'upstream = ["127.0.0.1:9"]')
        assert "sessions closed: 2\n" in reload(gateway)[0]
        assert is_cut(gone)
        assert is_cut(moved)
        gateway.wait_for_log(r"session\.close .*service=gone .*reason=unknown_service")
        gateway.wait_for_log(r"session\.close .*service=moved .*reason=policy_changed")


def test_a_session_goes_on_where_its_service_has_more_addresses(gateway, echo):
    with under_load(gateway), held(gateway) as bob:
        change(gateway, "policy.toml", f'["{echo}"]', f'["127.0.0.1:9", "{echo}"]')
        assert "sessions closed: 0\n" in reload(gateway)[0]
        assert goes_on(bob)
        bob.unwrap()


def seconds_of(gateway, name, reason):
    """When a session of that client was closed, since the epoch."""
    closes_with(gateway, reason, name)
    [line] = [
        each
        for each in gateway.log.splitlines()
        if f"identity={name} " in each and f"reason={reason}" in each and "session.close" in each
    ]
    return datetime.fromisoformat(line.split()[0]).timestamp()


def test_a_session_ends_when_its_grant_does(gateway):
    with under_load(gateway), held(gateway) as bob:
        ends_at = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=4)
        role = f'[[roles]]\nname = "guest"\nmembers = ["bob"]\nservices = ["*"]\nexpires = {ends_at:%Y-%m-%dT%H:%M:%SZ}'
        change(
            gateway,
            "policy.toml",
            '"alice", "bob", "carol"]\nservices = ["*"]',
            f'"alice", "carol"]\nservices = ["*"]\n{role}',
        )
        # Not by the command, which takes its time to start on a busy machine.
        gateway.program.process.send_signal(signal.SIGHUP)
        gateway.wait_for_log(r"gateway\.reload by=SIGHUP .*closed=0")
        assert goes_on(bob)
        assert is_cut(bob)
        late_s = seconds_of(gateway, "bob", "grant_expired") - ends_at.timestamp()
        figures(f"a session ended {late_s:.2f} s after its grant")
        assert 0 <= late_s < PATIENCE_S
    [moved] = audited(gateway, "session.regrant")
    assert (moved["identity"], moved["role"]) == ("bob", "guest")


def test_a_session_ends_when_its_certificate_does(gateway):
    change(gateway, "policy.toml", '"alice"', '"alice", "brief"')
    with under_load(gateway):
        reload(gateway)
        issued = gateway.authority.issue_client("brief", at=datetime.now(UTC), valid_for=timedelta(seconds=5))
        issued.write(gateway.folder, "brief")
        with held(gateway, "brief") as brief:
            assert is_cut(brief)
            certificate = x509.load_pem_x509_certificates((gateway.folder / "brief.crt").read_bytes())[0]
            late_s = seconds_of(gateway, "brief", "certificate_expired") - certificate.not_valid_after_utc.timestamp()
            figures(f"a session ended {late_s:.2f} s after its certificate")
            assert 0 <= late_s < PATIENCE_S


def figures(text):
    """Tell whoever runs pytest with -s, or reads the output of a test that failed."""
    print(text)  # noqa: T201


# What fails, and leaves all as it was.


def broken_policy(gateway):
    change(gateway, "policy.toml", "members", "membres")
    return "policy.toml: roles[0].membres: "


def half_a_policy(gateway):
    text = (gateway.folder / "policy.toml").read_text()
    (gateway.folder / "policy.toml").write_text(text[: text.index("services =") + 12])  # in place, as it is written
    return "policy.toml: "


def broken_certificate(gateway):
    put(gateway, "gateway.crt", "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")
    return "gateway.crt: "


def the_key_of_another(gateway):
    issued = gateway.authority.issue_gateway([GATEWAY_NAME], at=datetime.now(UTC))
    issued.write(gateway.folder, "other")
    put(gateway, "gateway.key", (gateway.folder / "other.key").read_bytes())
    return "gateway.key: "


def no_configuration(gateway):
    (gateway.folder / "portguard.toml").write_text('[gateway]\ncontrol = "control.sock"\n')
    return "portguard.toml: gateway.name: "


def an_address_that_is_taken(gateway):
    change(
        gateway,
        "portguard.toml",
        'listen = ["127.0.0.1:0"]',
        f'listen = ["127.0.0.1:0", "127.0.0.1:{gateway.metrics_port}"]',
    )
    return f"gateway.listen: expected an address that can be listened on, got 127.0.0.1:{gateway.metrics_port}: "


def a_test_that_fails(gateway):
    text = (gateway.folder / "policy.toml").read_text()
    put(gateway, "policy.toml", text + '[[tests]]\nidentity = "alice"\nservice = "echo"\nexpect = "deny"\n')
    return "policy.toml: tests[0]"


@pytest.mark.parametrize(
    "spoil",
    [
        broken_policy,
        half_a_policy,
        broken_certificate,
        the_key_of_another,
        no_configuration,
        an_address_that_is_taken,
        a_test_that_fails,
    ],
    ids=lambda spoil: spoil.__name__,
)
def test_what_is_wrong_is_told_and_what_was_in_force_stays(restored, spoil):
    gateway = restored
    failed_before = audited(gateway, "policy.load_failed")
    files = {path: path.read_bytes() for path in gateway.folder.iterdir() if path.suffix in {".toml", ".crt", ".key"}}
    with under_load(gateway), held(gateway) as bob:
        said = spoil(gateway)
        out, err = reload(gateway, code=2)
        assert out == ""
        assert said in err
        assert "Traceback" not in err
        assert goes_on(bob)
        assert metric(gateway, "policy_last_load_successful") == [0]
        gateway.wait_for_log(r"error gateway\.reload_failed message=")
        echoes(gateway)
        for path, content in files.items():
            put(gateway, path.name, content)
        reload(gateway)
        assert metric(gateway, "policy_last_load_successful") == [1]
        assert goes_on(bob)
        bob.unwrap()
    [failed] = audited(gateway, "policy.load_failed")[len(failed_before) :]
    assert said.partition(": ")[2] in failed["problem"]


# Certificates.


def shown(gateway):
    """The serial number of the certificate that clients are shown."""
    with gateway.connect("echo", "alice") as client:
        serial = x509.load_der_x509_certificate(client.getpeercert(binary_form=True)).serial_number
        client.unwrap()
    return serial


def test_a_new_certificate_and_key_are_shown_from_now_on(gateway):
    with under_load(gateway), held(gateway) as bob:
        before = shown(gateway)
        gateway.authority.issue_gateway([GATEWAY_NAME, f"*.{GATEWAY_NAME}"], at=datetime.now(UTC)).write(
            gateway.folder, "new"
        )
        for kind in ("crt", "key"):
            put(gateway, f"gateway.{kind}", (gateway.folder / f"new.{kind}").read_bytes())
        assert "sessions closed: 0\n" in reload(gateway)[0]
        wanted = x509.load_pem_x509_certificates((gateway.folder / "new.crt").read_bytes())[0].serial_number
        assert wanted != before
        assert {shown(gateway) for _ in range(4)} == {wanted}
        assert goes_on(bob)
        bob.unwrap()


class Corp:
    """Another trust, `corp`, with revocation lists where it has some. `eve` and `mallory` have certificates of it."""

    def __init__(self, gateway, *, crl=False):
        self.gateway = gateway
        self.root = certificates.Authority.root("Corp")
        self.issuing = self.root.intermediate("Corp Issuing")
        put(gateway, "corp.crt", self.root.pem)
        self.holders = {}
        for name in ("eve", "mallory"):
            holder = self.holders[name] = self.issuing.issue(name, sans=[certificates.spiffe(name, "corp.test")])
            put(gateway, f"{name}.crt", holder.pem + self.issuing.pem)
            put(gateway, f"{name}.key", holder.key_pem)
        self.table = '[trusts.corp]\nca = "corp.crt"\nidentity = "spiffe"\ntrust_domain = "corp.test"\n'
        if crl:
            self.table += 'crl = ["root.crl", "corp.crl"]\n'
            put(gateway, "root.crl", self.root.crl().public_bytes(Encoding.DER))
            self.revoke()
        change(gateway, "portguard.toml", "trust_domain", "default = true\ntrust_domain")
        change(gateway, "policy.toml", '"alice", ', '"alice", "corp:eve", "corp:mallory", ')
        change(gateway, "portguard.toml", "[trusts.local]", f"{self.table}[trusts.local]")

    def revoke(self, *names, **keywords):
        serials = [self.holders[name].certificate.serial_number for name in names]
        put(self.gateway, "corp.crl", self.issuing.crl(serials, **keywords).public_bytes(Encoding.PEM))


def test_a_trust_that_is_added_lets_its_clients_in_and_one_that_is_removed_cuts_them(gateway):
    with under_load(gateway):
        Corp(gateway)
        assert is_refused(gateway, "eve")
        reload(gateway)
        with held(gateway, "eve") as eve, held(gateway) as bob:
            text = (gateway.folder / "portguard.toml").read_text()
            table = re.search(r"\[trusts\.corp\]\n(.+\n){3}", text)[0]
            change(gateway, "portguard.toml", table, "")
            change(gateway, "policy.toml", '"corp:eve", "corp:mallory", ', "")
            assert "sessions closed: 1\n" in reload(gateway)[0]
            assert is_cut(eve)
            closes_with(gateway, "certificate_untrusted", "corp:eve")
            assert goes_on(bob)
            bob.unwrap()
        assert is_refused(gateway, "eve")


def test_a_session_whose_certificate_means_somebody_else_by_now_is_cut(gateway):
    with under_load(gateway):
        Corp(gateway)
        reload(gateway)
        with held(gateway, "eve") as eve:
            change(
                gateway,
                "portguard.toml",
                '[trusts.corp]\nca = "corp.crt"\nidentity = "spiffe"\ntrust_domain = "corp.test"',
                '[trusts.corp]\nca = "corp.crt"\nidentity = "cn"',
            )
            change(gateway, "policy.toml", '"corp:eve"', '"corp:eve", "corp:*"')
            assert "sessions closed: " in reload(gateway)[0]
            # The name is the same, by another source: so is the identity, and it goes on.
            assert goes_on(eve)
            change(gateway, "portguard.toml", "[trusts.corp]", "[trusts.acme]")
            change(gateway, "policy.toml", '"corp:eve", "corp:*", "corp:mallory"', '"acme:*"')
            assert "sessions closed: 1\n" in reload(gateway)[0]
            assert is_cut(eve)
            gateway.wait_for_log(r"session\.close .*reason=policy_changed")


def test_a_revocation_cuts_exactly_who_is_revoked_and_an_emptied_list_lets_in_again(gateway):
    with under_load(gateway):
        corp = Corp(gateway, crl=True)
        reload(gateway)
        with held(gateway, "eve") as eve, held(gateway, "mallory") as mallory, held(gateway) as bob:
            corp.revoke("mallory")
            assert "sessions closed: 1\n" in reload(gateway)[0]
            assert is_cut(mallory)
            closes_with(gateway, "certificate_revoked", "corp:mallory")
            assert is_refused(gateway, "mallory")
            assert goes_on(eve)
            corp.revoke(next_update=datetime.now(UTC) - timedelta(minutes=1))
            _, err = reload(gateway)
            assert "corp.crl" in err  # a warning
            assert is_cut(eve)
            closes_with(gateway, "crl_expired", "corp:eve")
            corp.revoke()
            reload(gateway)
            for name in ("eve", "mallory"):
                echoes(gateway, name=name)
            assert goes_on(bob)
            bob.unwrap()


def test_an_intermediate_authority_that_is_revoked_cuts_all_below_it(gateway):
    with under_load(gateway):
        corp = Corp(gateway, crl=True)
        reload(gateway)
        with held(gateway, "eve") as eve, held(gateway, "mallory") as mallory:
            put(gateway, "root.crl", corp.root.crl([corp.issuing.certificate.serial_number]).public_bytes(Encoding.PEM))
            assert "sessions closed: 2\n" in reload(gateway)[0]
            assert is_cut(eve)
            assert is_cut(mallory)


# Limits.


def transfer(client, seconds):
    """Send for a while and take the echo; how many bytes came back."""
    client.setblocking(False)
    piece, came, until = bytes(65536), 0, time.monotonic() + seconds
    while time.monotonic() < until:
        readable, writable, _ = select.select([client], [client], [], 0.1)
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
            if readable:
                came += len(client.recv(65536))
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLWantWriteError):
            if writable:
                client.send(piece)
    client.setblocking(True)
    return came


BOBS = '"carol"]\nservices = ["*"]\n[[roles]]\nname = "bobs"\nmembers = ["bob"]\nservices = ["*"]\n'


def limit(gateway, text):
    """Put bob into a role of his own with such limits, or change them there."""
    policy = (gateway.folder / "policy.toml").read_text()
    if "bobs" not in policy:
        change(gateway, "policy.toml", '"bob", "carol"]\nservices = ["*"]\n', f"{BOBS}# limits\n# end\n")
        policy = (gateway.folder / "policy.toml").read_text()
    put(gateway, "policy.toml", re.sub(r"# limits\n(.*\n)*# end\n", f"# limits\n{text}\n# end\n", policy))
    return reload(gateway)[0]


def test_a_bandwidth_slows_a_live_session_and_lets_it_go_again(gateway):
    with under_load(gateway), held(gateway) as bob:
        free = transfer(bob, 0.5)
        assert "sessions closed: 0\n" in limit(gateway, 'bandwidth = "200kB/s"')
        transfer(bob, 1.0)  # what is in buffers on the way
        slow = transfer(bob, 1.0)
        figures(f"{2 * free} bytes/s without, {slow} bytes/s with a bandwidth of 200 kB/s")
        assert slow <= 200_000 + 200_000
        limit(gateway, "")
        assert transfer(bob, 1.0) > slow
    assert [record["role"] for record in audited(gateway, "session.regrant")] == ["bobs"] * 2


def test_a_quota_ends_a_live_session_at_the_byte_counted_since_the_period_began(gateway):
    with under_load(gateway), held(gateway) as bob:
        assert "sessions closed: 0\n" in limit(gateway, "")
        used = 8 + 2 * len(exchange(bob, 300_000))
        assert "sessions closed: 0\n" in limit(gateway, 'quota = ["1MB/month"]')
        with contextlib.suppress(OSError):
            for _ in range(20):
                exchange(bob, 100_000)
            raise AssertionError("expected an end at the quota, got none")
        closes_with(gateway, "quota_exhausted")
    [close] = [record for record in audited(gateway, "session.close") if record["identity"] == "bob"]
    # What it used as one of the team is the team's: the first eight bytes.
    assert close["received"] + close["sent"] == 1_000_000 + 8
    assert used < 1_000_000


def exchange(client, size):
    """Send so much and take it back."""
    data = os.urandom(size)
    client.settimeout(PATIENCE_S)
    received = bytearray()
    for start in range(0, size, 16384):
        piece = data[start : start + 16384]
        client.sendall(piece)
        left = len(piece)
        while left:
            came = client.recv(left)
            assert came
            received += came
            left -= len(came)
    assert received == data
    return received


def test_a_quota_holds_for_all_of_many_live_sessions(gateway):
    """Each is looked at again in its turn, and meanwhile others of the same identity may go by the limits before."""
    with under_load(gateway), contextlib.ExitStack() as stack:
        clients = [stack.enter_context(held(gateway)) for _ in range(60)]
        limit(gateway, 'quota = ["1MB/month"]')
        for client in clients:
            with contextlib.suppress(OSError, AssertionError):
                exchange(client, 50_000)
        gateway.wait_for_log(r"session\.close .*identity=bob .*reason=quota_exhausted", count=60)
    total = sum(
        record["received"] + record["sent"]
        for record in audited(gateway, "session.close")
        if record["identity"] == "bob"
    )
    assert total == 1_000_000 + 60 * 8


def test_a_smaller_quota_holds_for_what_is_leased_already(gateway):
    with under_load(gateway), held(gateway) as bob:
        limit(gateway, 'quota = ["1GB/month"]')
        exchange(bob, 1_000_000)  # by now megabytes are leased ahead
        limit(gateway, 'quota = ["3MB/month"]')
        with contextlib.suppress(OSError):
            for _ in range(40):
                exchange(bob, 100_000)
        closes_with(gateway, "quota_exhausted")
    [close] = [record for record in audited(gateway, "session.close") if record["identity"] == "bob"]
    assert close["received"] + close["sent"] == 3_000_000 + 8


def test_timeouts_hold_for_live_sessions(start_gateway, echo):
    gateway = start_gateway({"echo": echo}, policy=POLICY, configuration='[timeouts]\nidle = "1h"\n')
    with under_load(gateway), held(gateway) as bob:
        change(gateway, "portguard.toml", 'idle = "1h"', 'idle = "2s"')
        assert "sessions closed: 0\n" in reload(gateway)[0]
        assert is_cut(bob)
        closes_with(gateway, "idle_timeout")


def test_the_length_of_a_session_counts_from_its_beginning(gateway):
    with under_load(gateway), held(gateway) as bob:
        limit(gateway, 'session = "1s"')
        assert is_cut(bob)
        closes_with(gateway, "session_timeout")


# Addresses, and the rest of portguard.toml.


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_addresses_come_and_go_while_sessions_go_on(start_gateway, echo, free_port):
    gateway = start_gateway({"echo": echo, "other": f'upstream = ["{echo}"]\nzones = ["x"]'}, policy=POLICY)
    extra, own = free_port(), free_port()
    with under_load(gateway), held(gateway) as bob:
        change(gateway, "portguard.toml", 'listen = ["127.0.0.1:0"]', f'listen = ["127.0.0.1:{extra}", "127.0.0.1:0"]')
        change(gateway, "policy.toml", 'zones = ["x"]', f'listen = ["127.0.0.1:{own}"]')
        reload(gateway)
        gateway.wait_for_log(rf"gateway\.listen address=127\.0\.0\.1:{own} service=other")
        # The first address is another one now: what comes by number must be the right one all the same.
        for _ in range(4):
            echoes(gateway)
        before, gateway.port = gateway.port, extra
        echoes(gateway)
        gateway.port = own
        echoes(gateway, service="nothing-that-matters")
        gateway.port = before
        change(gateway, "portguard.toml", f'"127.0.0.1:{extra}", ', "")
        change(gateway, "policy.toml", f'listen = ["127.0.0.1:{own}"]', 'zones = ["x"]')
        reload(gateway)
        assert (listens(extra), listens(own)) == (False, False)
        assert goes_on(bob)
        bob.unwrap()


def test_the_metrics_move(gateway, free_port):
    port = free_port()
    with under_load(gateway):
        change(
            gateway, "portguard.toml", '[metrics]\nlisten = "127.0.0.1:0"', f'[metrics]\nlisten = "127.0.0.1:{port}"'
        )
        reload(gateway)
        gateway.wait_for_log(rf"metrics\.listen address=127\.0\.0\.1:{port}")
        assert not listens(gateway.metrics_port)
        gateway.metrics_port = port
        assert metric(gateway, "workers") == [2]


def test_the_log_becomes_json_and_text_again(gateway):
    warm_up(gateway)
    text = (gateway.folder / "portguard.toml").read_text()
    put(gateway, "portguard.toml", f'{text}\n[log]\nformat = "json"\n')
    reload(gateway)
    echoes(gateway)
    gateway.wait_for_log(r'^{.*"session.close"')
    put(gateway, "portguard.toml", text)
    reload(gateway)
    with unharmed(gateway.from_now()):
        echoes(gateway)


def test_what_needs_a_restart_is_named_each_time_and_left_as_it_is(gateway):
    with under_load(gateway):
        text = (gateway.folder / "portguard.toml").read_text()
        put(gateway, "portguard.toml", text.replace("workers = 2", "workers = 3") + "\n[capacity]\nmax_sessions = 10\n")
        for _ in range(2):
            out, _ = reload(gateway)
            assert "needs a restart: gateway.workers, capacity.max_sessions\n" in out
        assert metric(gateway, "sessions_limit") == [8000]
        assert len(workers(gateway)) == 2
        put(gateway, "portguard.toml", text)
        assert "needs a restart" not in reload(gateway)[0]


def test_without_a_change_nothing_happens(gateway):
    with under_load(gateway), held(gateway) as bob:
        assert reload(gateway)[0] == "nothing has changed\n"
        assert goes_on(bob)
        bob.unwrap()
    assert len(audited(gateway, "policy.load")) == 1


# When things come at the wrong moment.


def test_fifty_signals_in_a_row_leave_what_was_written_last_in_force(gateway):
    with under_load(gateway), held(gateway) as bob:
        for number in range(50):
            change(
                gateway,
                "policy.toml",
                f"# {number - 1}\n" if number else "[[roles]]",
                f"# {number}\n" + ("" if number else "[[roles]]"),
            )
            gateway.program.process.send_signal(signal.SIGHUP)
        assert reload(gateway)[1] == ""
        status = json.loads(command(gateway, "reload", "--json").stdout)
        assert not status["changed"]
        assert audited(gateway, "policy.load")[-1]["policy"] == status["revision"]
        assert goes_on(bob)
        bob.unwrap()


def test_what_was_in_force_before_is_not_kept_in_memory(gateway):
    """Workers freeze what the garbage collector knows: a configuration in a cycle would stay for good."""
    roles = "".join(f'[[roles]]\nname = "r{n}"\nmembers = ["m{n}"]\nservices = ["echo"]\n' for n in range(2000))
    text = (gateway.folder / "policy.toml").read_text()
    warm_up(gateway)
    sizes = []
    for number in range(9):
        put(gateway, "policy.toml", f"{text}{roles}# {number}\n")
        reload(gateway)
        if number in {2, 8}:
            sizes.append([_rss_kib(pid) for pid in workers(gateway)])
    growth = max(after - before for before, after in zip(*sizes, strict=True))
    figures(f"six reloads of 2,000 roles: {growth:+} KiB in a worker")
    assert growth < 8 * 1024


def _rss_kib(pid):
    with open(f"/proc/{pid}/status") as file:
        return int(re.search(r"VmRSS:\s+(\d+) kB", file.read())[1])


def test_a_signal_while_the_gateway_drains_changes_nothing(gateway):
    with held(gateway) as bob:
        gateway.program.process.send_signal(signal.SIGTERM)
        gateway.wait_for_log("gateway.drain sessions=1")
        change(gateway, "policy.toml", '"bob", ', "")
        gateway.program.process.send_signal(signal.SIGHUP)
        gateway.wait_for_log(r'gateway\.reload_failed message="draining: ')
        assert "got one that drains" in reload(gateway, code=1)[1]
        assert goes_on(bob)
        bob.unwrap()
    assert gateway.program.process.wait(timeout=PATIENCE_S) == 0


def test_a_worker_that_is_killed_meanwhile_does_not_hold_up_the_reload(gateway):
    warm_up(gateway)
    for number in range(3):
        with held(gateway), held(gateway):
            change(
                gateway,
                "policy.toml",
                f"# {number - 1}\n" if number else "[[roles]]",
                f"# {number}\n" + ("" if number else "[[roles]]"),
            )
            gateway.program.process.send_signal(signal.SIGHUP)
            os.kill(workers(gateway)[0], signal.SIGKILL)
            reload(gateway)
        gateway.program.wait_until(lambda: metric(gateway, "workers") == [2], "another worker came")
    change(gateway, "policy.toml", '"bob", ', "")
    reload(gateway)
    for _ in range(4):
        assert is_refused(gateway)
        echoes(gateway)
    assert command(gateway, "audit", "verify", "--json").returncode == 0


# Many sessions.


def test_of_two_thousand_sessions_exactly_the_ten_that_lost_their_right_end(start_gateway, many_descriptors):
    command_ = [sys.executable, "-m", "bench.upstream"]
    with subprocess.Popen(command_, cwd=_REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as upstreams:
        echo = f"127.0.0.1:{json.loads(upstreams.stdout.readline())['echo']}"
        gateway = start_gateway({"echo": echo}, policy=POLICY, configuration="[capacity]\nmax_sessions = 2100")
        warm_up(gateway)
        with unharmed(gateway, most_lines=10_000), contextlib.ExitStack() as stack:
            bobs = [stack.enter_context(held(gateway)) for _ in range(10)]
            doors = Doors({"echo": ("127.0.0.1", gateway.port)}, gateway.context("carol"), gateway.name)
            crowd = stack.enter_context(Crowd(doors))
            crowd.grow(1986)
            with Traffic(gateway, "carol") as traffic:
                before_s = traffic.longest_pause_s
                change(gateway, "policy.toml", '"bob", ', "")
                assert "sessions closed: 10\n" in reload(gateway)[0]
                traffic.moves()
                pause_s = traffic.longest_pause_s
            assert all(map(is_cut, bobs))
            crowd.exchange(1000)
            put(gateway, "policy.toml", (gateway.folder / "policy.toml").read_text() + "# more\n")
            gateway.program.process.send_signal(signal.SIGHUP)
            crowd.exchange(20_000)  # while it reloads
            gateway.wait_for_log(r"gateway\.reload by=SIGHUP .*closed=0")
            gateway.wait_for_log(r"session\.close .*reason=no_role", count=10)
            log = gateway.log
            others = log.count("reason=client_closed")  # those that warmed it up, and the traffic
            assert log.count("session.close") == others + 10
            assert metric(gateway, "sessions_active") == [1986]
        upstreams.stdin.close()
    applied_s = time_of(audited(gateway, "policy.load")[-2])
    ends_s = [
        time_of(record) - applied_s for record in audited(gateway, "session.close") if record["reason"] == "no_role"
    ]
    assert len(ends_s) == 10
    figures(f"10 of 2,000 sessions ended within {max(ends_s) * 1000:.0f} ms of the reload; the longest that others")
    figures(f"waited for 16 KiB to go round was {pause_s * 1000:.0f} ms, {before_s * 1000:.0f} ms before it")
    assert max(ends_s) < PATIENCE_S
    assert command(gateway, "audit", "verify", "--json").returncode == 0


def time_of(record):
    return datetime.fromisoformat(record["time"]).timestamp()


@pytest.fixture
def many_descriptors():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 5000:
        pytest.skip(f"open files: expected a hard limit of at least 5000, got {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# By itself.


def test_with_watch_changed_files_are_reloaded_until_it_is_switched_off(start_gateway, echo):
    gateway = start_gateway({"echo": echo}, policy=POLICY, gateway="watch = true")
    with under_load(gateway), held(gateway) as bob:
        (gateway.folder / "policy.toml").write_text("[[")
        gateway.wait_for_log(r"gateway\.reload_failed ")
        assert goes_on(bob)
        put(gateway, "policy.toml", POLICY.replace('"bob", ', "") + f'[services.echo]\nupstream = ["{echo}"]\n')
        assert is_cut(bob)
        closes_with(gateway, "no_role")
        gateway.wait_for_log(r"gateway\.reload by=watch ")
        change(gateway, "portguard.toml", "watch = true", "watch = false")
        gateway.wait_for_log(r"gateway\.reload by=watch ", count=2)
    assert gateway.log.count("gateway.reload_failed") == 1
    assert [record["by"] for record in audited(gateway, "policy.load")[1:]] == ["watch"] * 2


# What the how-to shows.


def test_the_commands_of_the_how_to_do_what_it_shows(gateway):
    page = (_REPOSITORY / "docs/howto/change-things-while-running.md").read_text()
    environment = os.environ | {
        "PORTGUARD_CONFIG": str(gateway.folder / "portguard.toml"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    steps = transcript(page)
    assert len(steps) == 14
    with held(gateway) as bob:
        for command_, shown in steps:
            done = subprocess.run(
                ["bash", "-c", f"{command_} 2>&1"],
                cwd=gateway.folder,
                env=environment,
                stdout=subprocess.PIPE,
                text=True,
                timeout=PATIENCE_S,
                check=False,
            )
            assert expected(shown).fullmatch(done.stdout), f"$ {command_}\nprinted:\n{done.stdout}\nnot:\n{shown}"
            codes = {"a slip": 2, "status": 1, "other.sock: expected": 4}
            code = next((code for word, code in codes.items() if word in command_ + done.stdout), 0)
            assert done.returncode == code, command_
        assert is_cut(bob)
