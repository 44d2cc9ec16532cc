"""A certificate is revoked with portguard's own authority, and a gateway that serves learns of it."""

import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from portguard.pki.authority import Authority
from tests.held import goes_on, held, is_cut, is_refused, portguard
from tests.patience import PATIENCE_S
from tests.traffic import Traffic
from tests.transcripts import expected, transcript

_HOWTO = (Path(__file__).parents[2] / "docs/howto/revoke-certificates.md").read_text()

POLICY = """
[[roles]]
name = "team"
members = ["alice", "bob"]
services = ["*"]
"""
_SERVICE = "[Unit]\nDescription=Renew portguard's revocation list\n"
_TIMER = "[Unit]\nDescription=Renew portguard's revocation list every week\n"
CRL = 'crl = ["ca/ca.crl"]\n'


def openssl(program, gateway, name, *more, ca="ca"):
    """What openssl says of a client's certificate, with the list of the authority."""
    certificate, folder = gateway.certificate(name)[0], gateway.folder / ca
    argv = [program, "verify", *more, "-CAfile", folder / "ca.crt", "-CRLfile", folder / "ca.crl", certificate]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    return done.stdout + done.stderr


def test_with_watch_a_revocation_ends_exactly_its_sessions_at_once(start_gateway, echo, real_program):
    program = real_program("openssl")
    gateway = start_gateway({"echo": echo}, policy=POLICY, gateway="watch = true", configuration=CRL)
    with held(gateway, "alice") as alice, Traffic(gateway, "bob") as bob:
        assert openssl(program, gateway, "alice", "-crl_check").endswith(": OK\n")
        portguard(gateway, "cert", "revoke", "alice.crt", "--reason", "keyCompromise")
        assert is_cut(alice)
        gateway.wait_for_log(r"session\.close .*identity=alice .*reason=certificate_revoked")
        assert is_refused(gateway, "alice")
        gateway.wait_for_log(r"handshake\.fail .*reason=certificate_revoked")
        bob.moves()
        assert "certificate revoked" in openssl(program, gateway, "alice", "-crl_check")
        assert openssl(program, gateway, "bob", "-crl_check").endswith(": OK\n")
        with held(gateway, "bob") as another:
            another.unwrap()


def test_with_reload_a_revocation_ends_exactly_its_sessions(start_gateway, echo):
    gateway = start_gateway({"echo": echo}, policy=POLICY, configuration=CRL)
    with held(gateway, "alice") as alice, held(gateway, "bob") as bob:
        portguard(gateway, "cert", "revoke", "--identity", "alice")
        assert goes_on(alice)  # the gateway has not looked yet
        assert "sessions closed: 1\n" in portguard(gateway, "reload")
        assert is_cut(alice)
        assert is_refused(gateway, "alice")
        assert goes_on(bob)
        # Another certificate of hers is as good as any.
        for path in gateway.certificate("alice"):
            path.unlink()
        with held(gateway, "alice") as again:
            portguard(gateway, "ca", "crl")
            assert "sessions closed: 0\n" in portguard(gateway, "reload")
            assert goes_on(again)
            again.unwrap()
        bob.unwrap()


def test_with_a_root_in_a_drawer_the_one_file_is_enough(start_gateway, echo, real_program, tmp_path):
    program = real_program("openssl")
    corp = Authority.create(
        tmp_path / "corp", trust_domain="corp.test", at=datetime.now(UTC), root_directory=tmp_path / "stick"
    )
    shutil.rmtree(tmp_path / "stick")
    gateway = start_gateway(
        {"echo": echo},
        policy=POLICY.replace('"alice", "bob"', '"corp:eve", "corp:mallory"'),
        configuration=f"""default = true
[trusts.corp]
ca = "{corp.directory}/ca.crt"
crl = ["{corp.directory}/ca.crl"]
identity = "spiffe"
trust_domain = "corp.test"
""",
    )
    for name in ("eve", "mallory"):
        corp.issue_client(name, at=datetime.now(UTC)).write(gateway.folder, name)
    chain = ["-crl_check_all", "-untrusted", gateway.folder / "eve.crt"]
    with held(gateway, "eve") as eve, held(gateway, "mallory") as mallory:
        assert openssl(program, gateway, "eve", *chain, ca=corp.directory).endswith(": OK\n")
        portguard(gateway, "cert", "revoke", "mallory.crt", "--ca", corp.directory)
        assert "sessions closed: 1\n" in portguard(gateway, "reload")
        assert is_cut(mallory)
        assert is_refused(gateway, "mallory")
        assert goes_on(eve)
        assert "certificate revoked" in openssl(program, gateway, "mallory", *chain, ca=corp.directory)
        assert openssl(program, gateway, "eve", *chain, ca=corp.directory).endswith(": OK\n")
        eve.unwrap()


# The how-to.


def _block(beginning):
    blocks = re.findall(r"^```\w+\n(.*?)^```$", _HOWTO, re.MULTILINE | re.DOTALL)
    [text] = [each for each in blocks if each.startswith(beginning)]
    return text


@pytest.fixture
def with_the_howtos_files(start_gateway, echo, tmp_path):
    """A gateway as the how-to has it: a copy of the list in `tls/`, and the script that takes the list there."""
    gateway = start_gateway({"echo": echo}, policy=POLICY, configuration=CRL)
    (gateway.folder / "tls").mkdir()
    for name in ("ca.crt", "ca.crl"):
        shutil.copy(gateway.folder / "ca" / name, gateway.folder / "tls" / name)
    configuration = gateway.folder / "portguard.toml"
    trust = _block("[trusts.local]").removeprefix("[trusts.local]\n")
    configuration.write_text(configuration.read_text().replace(CRL, "").replace('ca = "ca/ca.crt"\n', trust))
    portguard(gateway, "reload")
    # In the place of ssh: this machine, in the gateway's folder.
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "ssh").write_text('#!/bin/sh\nshift\nexec sh -c "$*"\n')
    (programs / "scp").write_text('#!/bin/sh\nexec cp "$2" "${3#*:}"\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    script = gateway.folder / "take-list-to-gateway"
    script.write_text(_block("#!/bin/sh").replace("/etc/portguard/tls", f"{gateway.folder}/tls"))
    script.chmod(0o755)
    return gateway


def _shell(gateway, tmp_path):
    path = os.pathsep.join([str(tmp_path / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    more = {
        "PATH": path,
        "PORTGUARD_CA": str(gateway.folder / "ca"),
        "PORTGUARD_CONFIG": str(gateway.folder / "portguard.toml"),
    }
    return {"cwd": gateway.folder, "env": os.environ | more}


def test_the_commands_of_the_how_to_do_what_it_shows(with_the_howtos_files, tmp_path, real_program):
    real_program("openssl")
    gateway = with_the_howtos_files
    for out in ("one", "two"):
        gateway.authority.issue_client("ci/deploy", at=datetime.now(UTC)).write(gateway.folder / out, "ci+deploy")
    with held(gateway, "alice") as alice, held(gateway, "bob") as bob:
        steps = transcript(_HOWTO)
        assert len(steps) == 8
        for command, shown in steps:
            done = subprocess.run(
                ["bash", "-c", f"{command} 2>&1"], stdout=subprocess.PIPE, text=True, timeout=PATIENCE_S,
                check=False, **_shell(gateway, tmp_path),
            )  # fmt: skip
            assert expected(shown).fullmatch(done.stdout), f"$ {command}\nprinted:\n{done.stdout}\nnot:\n{shown}"
            assert done.returncode == (2 if "error 23" in done.stdout else 0), command
        assert is_cut(alice)
        assert goes_on(bob)
        bob.unwrap()


def test_the_service_of_the_how_to_renews_the_list_and_takes_it_to_the_gateway(with_the_howtos_files, tmp_path):
    gateway = with_the_howtos_files
    before = (gateway.folder / "tls/ca.crl").read_bytes()
    commands = re.findall(r"^ExecStart=/usr/local/bin/(.*)$", _block(_SERVICE), re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        script = f"PATH=.:$PATH; {command}"
        done = subprocess.run(["sh", "-c", script], timeout=PATIENCE_S, check=False, **_shell(gateway, tmp_path))
        assert done.returncode == 0
    assert before != (gateway.folder / "tls/ca.crl").read_bytes() == (gateway.folder / "ca/ca.crl").read_bytes()


def test_systemd_takes_the_units_of_the_how_to(real_program, tmp_path):
    program = real_program("systemd-analyze")
    service, timer = tmp_path / "portguard-crl.service", tmp_path / "portguard-crl.timer"
    service.write_text(re.sub(r"/usr/local/bin/\S+", "/bin/true", _block(_SERVICE)))
    timer.write_text(_block(_TIMER))

    def verified(unit):
        argv = [program, "verify", unit]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
        return done.returncode, done.stderr

    assert [verified(unit) for unit in (service, timer)] == [(0, "")] * 2
    timer.write_text(timer.read_text().replace("OnCalendar=weekly", "OnCalendar=now and then"))
    assert "now and then" in verified(timer)[1]
