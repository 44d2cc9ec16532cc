"""The CI jobs of `docs/howto/reach-services.md`, run as their services run them: with a certificate out of secrets."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.patience import PATIENCE_S
from tests.transcripts import transcript

_HOWTO = Path(__file__).parents[2] / "docs" / "howto"
_PAGE = (_HOWTO / "reach-services.md").read_text()
[_SECTION] = re.findall(r"^## CI jobs\n(.*?)^## ", _PAGE, re.MULTILINE | re.DOTALL)
[_PROFILE] = re.findall(r"^```toml\n(.*?)^```$", _SECTION, re.MULTILINE | re.DOTALL)
_SECRETS = {"PORTGUARD_CERTIFICATE", "PORTGUARD_KEY"}

# The tests that a job runs: they see who can read the key, reach both services, and end in a way of their own.
_RUN_TESTS = """#!/bin/sh -e
stat -c %a "$(dirname "$PORTGUARD_PROFILE")/ci.key"
redis-cli -h "$PORTGUARD_ORDERS_DB_HOST" -p "$PORTGUARD_ORDERS_DB_PORT" PING
redis-cli -h "$PORTGUARD_CACHE_HOST" -p "$PORTGUARD_CACHE_PORT" PING
exit 7
"""


def _job(name):
    return yaml.safe_load((_HOWTO / "ci" / f"{name}-connect.yml").read_text())


def _script(name):
    if name == "github":
        steps = _job(name)["jobs"]["integration"]["steps"]
        assert all(("uses" in step) != ("run" in step) for step in steps)
        assert steps[-1]["env"] == {secret: f"${{{{ secrets.{secret} }}}}" for secret in _SECRETS}
        return steps[-1]["run"]
    if name == "gitlab":
        return "\n".join(_job(name)["integration"]["script"])
    return "\n".join(command for command, _ in transcript(_SECTION))


@pytest.fixture(scope="module")
def shared(start_gateway_for_module, redis):
    role = '[[roles]]\nname = "jobs"\nmembers = ["ci"]\nservices = ["*"]'
    return start_gateway_for_module({"orders-db": redis, "cache": redis}, policy=role)


@pytest.fixture
def gateway(shared):
    return shared.from_now()


@pytest.fixture
def job(gateway, real_program, tmp_path, monkeypatch):
    """`job(script, name)` runs a job's script in a checkout, with the certificate of `name` as its secrets."""
    real_program("redis-cli")
    checkout = tmp_path / "checkout"
    checkout.joinpath("portguard").mkdir(parents=True)
    tmp_path.joinpath("temporary").mkdir()
    checkout.joinpath("run-tests").write_text(_RUN_TESTS)
    checkout.joinpath("run-tests").chmod(0o755)

    def run(script, name="ci", *, as_files=False, gateway_port=None):
        profile = _PROFILE.replace("bastion.example.com:8443", f"127.0.0.1:{gateway_port or gateway.port}")
        checkout.joinpath("portguard", "ci.toml").write_text(f'{profile}server_name = "{gateway.name}"\n')
        checkout.joinpath("portguard", "ca.crt").write_bytes(gateway.ca.read_bytes())
        for secret, path in zip(sorted(_SECRETS), gateway.certificate(name), strict=True):
            value = path.read_text().removesuffix("\n")
            if as_files:
                file = tmp_path / secret
                file.write_text(value)
                file.chmod(0o644)  # as GitLab's runner makes them
                value = str(file)
            monkeypatch.setenv(secret, value)
        monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
        monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=":")
        # Both services end a script with the first command that fails.
        return subprocess.run(
            ["bash", "-eo", "pipefail", "-c", script],
            cwd=checkout, capture_output=True, text=True, check=False, timeout=PATIENCE_S, umask=0o022,
        )  # fmt: skip

    return run


_everywhere = pytest.mark.parametrize("where", ["page", "github", "gitlab"])


@_everywhere
def test_the_tests_reach_their_services_and_end_the_job(job, where):
    done = job(_script(where), as_files=where == "gitlab")
    assert done.stdout == "600\nPONG\nPONG\n"
    assert done.stderr == ""
    assert done.returncode == 7


@_everywhere
def test_a_job_without_a_role_ends_before_its_tests(gateway, job, where):
    done = job(_script(where), "bob", as_files=where == "gitlab")
    assert done.stdout == ""
    assert re.fullmatch(r"(portguard: (cache|orders-db): no_role: .*\n){2}", done.stderr)
    assert done.returncode == 3
    gateway.wait_for_log("session.refuse .*identity=bob .*service=orders-db reason=no_role")


@_everywhere
def test_a_job_that_cannot_reach_the_gateway_ends_before_its_tests(job, free_port, where):
    done = job(_script(where), as_files=where == "gitlab", gateway_port=free_port())
    assert done.stdout == ""
    assert done.stderr.startswith("portguard: gateway 127.0.0.1:")
    assert done.returncode == 4


@_everywhere
def test_a_key_that_others_can_read_is_refused(job, where):
    script = _script(where)
    done = job(script.replace("umask 077", "umask"), as_files=where == "gitlab")
    assert "PONG" not in done.stdout
    assert "ci.key" in done.stderr
    assert done.returncode == 2


@pytest.mark.parametrize("where", ["github", "gitlab"])
def test_the_page_leads_to_each_job(where):
    assert f"(ci/{where}-connect.yml)" in _SECTION
