"""The authority's key is replaced, and a gateway that serves notices nothing but what it should."""

import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from portguard.pki.authority import Authority
from portguard.pki.profiles import key_id
from tests.held import goes_on, held, is_cut, is_refused, portguard
from tests.patience import PATIENCE_S
from tests.traffic import Traffic
from tests.transcripts import expected, transcript

_HOWTO = (Path(__file__).parents[2] / "docs/howto/rotate-the-authority.md").read_text()

POLICY = """
[[roles]]
name = "team"
members = ["alice", "bob", "carol"]
services = ["*"]
"""
CRL = 'crl = ["ca/ca.crl"]\n'


def issue(gateway, *names):
    """Issue with the authority as it is now, for clients and for the gateway itself."""
    for name in names:
        portguard(gateway, "cert", "issue", name, "--force")
    portguard(gateway, "cert", "gateway", gateway.name, f"*.{gateway.name}", "127.0.0.1", "--force")


def test_sessions_go_on_while_a_root_is_replaced_until_what_they_came_with_is_revoked(start_gateway, echo):
    gateway = start_gateway({"echo": echo}, policy=POLICY, configuration=CRL)
    with held(gateway, "alice") as alice:
        portguard(gateway, "ca", "rotate")
        assert "sessions closed: 0\n" in portguard(gateway, "reload")
        portguard(gateway, "ca", "rotate", "--switch")
        issue(gateway, "bob", "carol")
        assert "sessions closed: 0\n" in portguard(gateway, "reload")
        with held(gateway, "carol") as carol, Traffic(gateway, "bob") as bob:
            assert goes_on(alice)
            portguard(gateway, "cert", "revoke", "alice.crt")
            portguard(gateway, "cert", "revoke", "carol.crt")
            assert "sessions closed: 2\n" in portguard(gateway, "reload")  # by lists of both roots
            assert is_cut(alice)
            assert is_cut(carol)
            portguard(gateway, "ca", "rotate", "--finish", "--force")
            assert "sessions closed: 0\n" in portguard(gateway, "reload")
            bob.moves()
            assert is_refused(gateway, "alice")


def test_a_new_issuing_ca_needs_its_list_at_the_gateway_and_falls_with_all_that_it_issued(
    start_gateway, echo, tmp_path
):
    corp = Authority.create(
        tmp_path / "corp", trust_domain="corp.test", at=datetime.now(UTC), root_directory=tmp_path / "stick"
    )
    gateway = start_gateway(
        {"echo": echo},
        policy=POLICY.replace('"alice", ', '"corp:eve", "corp:mallory", "corp:frank", '),
        configuration=f"""default = true
[trusts.corp]
ca = "{corp.directory}/ca.crt"
crl = ["{corp.directory}/ca.crl"]
identity = "spiffe"
trust_domain = "corp.test"
""",
    )
    corp.issue_client("eve", at=datetime.now(UTC)).write(gateway.folder, "eve")
    with held(gateway, "eve") as eve:
        portguard(gateway, "ca", "rotate", "--ca", corp.directory, "--root-dir", tmp_path / "stick")
        portguard(gateway, "cert", "issue", "mallory", "--ca", corp.directory)
        assert is_refused(gateway, "mallory")
        gateway.wait_for_log(r"handshake\.fail .*reason=crl_expired")
        assert "sessions closed: 0\n" in portguard(gateway, "reload")
        with held(gateway, "mallory") as mallory:
            assert goes_on(eve)
            portguard(gateway, "cert", "revoke", "eve.crt", "--ca", corp.directory)
            assert "sessions closed: 1\n" in portguard(gateway, "reload")
            assert is_cut(eve)
            assert goes_on(mallory)
            # Whoever has its key was not noticed before it was replaced.
            second = Authority.open(corp.directory).issuer
            portguard(gateway, "ca", "rotate", "--ca", corp.directory, "--root-dir", tmp_path / "stick")
            portguard(gateway, "cert", "issue", "frank", "--ca", corp.directory)
            assert "sessions closed: 0\n" in portguard(gateway, "reload")
            with held(gateway, "frank") as frank:
                revoke = ("ca", "revoke", key_id(second), "--ca", corp.directory, "--root-dir", tmp_path / "stick")
                portguard(gateway, *revoke)
                assert "sessions closed: 1\n" in portguard(gateway, "reload")
                assert is_cut(mallory)
                assert is_refused(gateway, "mallory")
                gateway.wait_for_log(r"handshake\.fail .*reason=certificate_revoked")
                assert goes_on(frank)
                frank.unwrap()


def test_the_commands_of_the_how_to_do_what_it_shows(start_gateway, echo, tmp_path):
    gateway = start_gateway({"echo": echo}, policy=POLICY, configuration=CRL)
    at = datetime.now(UTC)
    two_tiers = Authority.create(
        tmp_path / "two-tier-ca", trust_domain="a.example", at=at, root_directory=tmp_path / "stick"
    )
    environment = os.environ | {
        "HOME": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PORTGUARD_CA": str(gateway.folder / "ca"),
        "PORTGUARD_CONFIG": str(gateway.folder / "portguard.toml"),
    }
    with held(gateway, "alice") as alice, held(gateway, "bob") as bob:
        steps = transcript(_HOWTO.replace("1a2b3c4d", key_id(two_tiers.issuer)))
        assert len(steps) == 14
        for command, shown in steps:
            done = subprocess.run(
                ["bash", "-c", f"{command} 2>&1"], cwd=gateway.folder, env=environment, stdout=subprocess.PIPE,
                text=True, timeout=PATIENCE_S, check=False,
            )  # fmt: skip
            assert expected(shown).fullmatch(done.stdout), f"$ {command}\nprinted:\n{done.stdout}\nnot:\n{shown}"
            assert done.returncode == (1 if "expected nothing" in done.stdout else 0), command
        assert is_cut(alice)
        assert is_cut(bob)
        gateway.wait_for_log(r"session\.close .*reason=certificate_untrusted", count=2)
    with held(gateway, "alice") as again:
        again.unwrap()
