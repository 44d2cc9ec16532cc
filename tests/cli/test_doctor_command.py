"""`portguard doctor`: which of a client's and a gateway's side it looks at, and how it ends."""

import asyncio
import json
import os
import sys
from asyncio.subprocess import DEVNULL, PIPE

import pytest

from portguard.control.access import Level
from portguard.control.routes import Route
from portguard.gateway.bundle import read_bundle
from tests.certificates import now
from tests.control_double import ControlDouble
from tests.gateway_double import NAME, answer, double
from tests.gateway_folder import NAME as NAME_BEFORE
from tests.gateway_folder import GatewayFolder

WHOAMI = {"identity": "a\x1b[31mlice", "refusals": []}
SERVICES = {"services": [{"name": "orders-db", "local_port": None, "refusal": None}]}


@pytest.fixture
async def gateway(tmp_path):
    async with double(tmp_path, (NAME, f"*.{NAME}")) as gateway:
        gateway.answers["/v1/whoami"] = answer(200, json.dumps(WHOAMI).encode())
        gateway.answers["/v1/services"] = answer(200, json.dumps(SERVICES).encode())
        gateway.write_profile(tmp_path / "alice.toml")
        yield gateway


@pytest.fixture
def folder(tmp_path):
    """A gateway that lacks nothing but names that resolve; its control socket is c.sock beside the configuration."""
    folder = GatewayFolder(tmp_path / "gateway")
    text = (folder.path / "portguard.toml").read_text().replace(NAME_BEFORE, "localhost")
    text = text.replace("[trusts", 'control = "c.sock"\nstate = "state"\n[trusts', 1)
    folder.write("portguard.toml", text + '[metrics]\nlisten = "127.0.0.1:0"\n')
    issued = folder.issue("localhost", "*.localhost")
    folder.write("tls/gateway.crt", issued.pem)
    folder.write("tls/gateway.key", issued.key_pem)
    folder.write("policy.toml", "")
    return folder


async def portguard(*arguments, **environment):
    """Exit code, standard output, standard error."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "portguard", *arguments),
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent", **environment},
    )
    output, errors = await process.communicate()
    return process.returncode, output.decode(), errors.decode()


async def test_a_client_for_whom_all_is_right_sees_so_line_by_line(gateway, tmp_path):
    code, output, errors = await portguard("doctor", "--profile", str(tmp_path / "alice.toml"))
    assert (code, errors) == (0, "")
    lines = output.splitlines()
    assert lines[0].startswith(f"ok    certificate: {tmp_path}/alice.crt is valid until ")
    assert lines[-3:] == [
        "ok    identity: a\\x1b[31mlice",
        "ok    services: orders-db",
        "0 failures, 0 warnings",
    ]


async def test_a_failure_is_the_exit_code_and_a_warning_is_not(gateway, tmp_path):
    gateway.answers["/v1/services"] = answer(200, b'{"services": []}')
    code, output, _ = await portguard("doctor", PORTGUARD_PROFILE=str(tmp_path / "alice.toml"))
    assert code == 1
    assert output.splitlines()[-3:] == [
        "FAIL  services: no role lets you in anywhere now",
        "      ask who writes the gateway's policy",
        "1 failure, 0 warnings",
    ]
    past = [{"reason": "locked", "service": None, "time": "2026-11-24T08:12:44Z"}]
    gateway.answers["/v1/whoami"] = answer(200, json.dumps(WHOAMI | {"refusals": past}).encode())
    gateway.answers["/v1/services"] = answer(200, json.dumps(SERVICES).encode())
    code, output, _ = await portguard("doctor", PORTGUARD_PROFILE=str(tmp_path / "alice.toml"))
    assert code == 0
    assert "warn  refusals: the last was locked at 2026-11-24T08:12:44Z\n" in output
    assert output.endswith("\n0 failures, 1 warning\n")


async def test_programs_get_json(gateway, tmp_path):
    code, output, _ = await portguard("doctor", "--json", "--profile", str(tmp_path / "alice.toml"))
    document = json.loads(output)
    assert (code, document["ok"]) == (0, True)
    assert document["findings"][-1] == {"level": "ok", "subject": "services", "text": "orders-db", "advice": None}
    (tmp_path / "alice.crt").unlink()
    code, output, errors = await portguard("doctor", "--json", "--profile", str(tmp_path / "alice.toml"))
    document = json.loads(output)
    assert (code, document["ok"], errors) == (1, False, "")
    [finding] = document["findings"]
    assert (finding["level"], finding["subject"]) == ("failed", "profile")
    assert f"certificate: expected a file that can be read at {tmp_path}/alice.crt" in finding["text"]


async def test_who_has_neither_profile_nor_gateway_is_told_what_is_looked_for(tmp_path):
    code, output, errors = await portguard("doctor", HOME=str(tmp_path))
    assert (code, output) == (2, "")
    assert errors.startswith("portguard: doctor: expected --profile or --config, or one of their usual files, got")


async def test_what_the_environment_names_is_looked_at_both(gateway, folder, tmp_path):
    environment = {"PORTGUARD_PROFILE": str(tmp_path / "alice.toml"), "PORTGUARD_CONFIG": folder.configuration}
    _, output, _ = await portguard("doctor", **environment)
    assert "certificate: " in output
    assert "configuration: " in output
    _, output, _ = await portguard("doctor", "-c", folder.configuration, **environment)
    assert "certificate: " not in output
    _, output, _ = await portguard("doctor", "--profile", str(tmp_path / "alice.toml"), **environment)
    assert "configuration: " not in output


async def test_a_gateway_that_does_not_run_is_looked_at_all_the_same(folder):
    code, output, errors = await portguard("doctor", "-c", folder.configuration)
    assert (code, errors) == (0, "")
    warned, *lines = output.splitlines()
    assert warned == "warn  configuration: the policy has no roles, so it allows nobody"
    assert lines[0] == f"ok    configuration: {folder.configuration} can be served"
    assert lines[1].startswith(f"warn  gateway: {folder.path}/c.sock: expected ")
    assert lines[2:5] == [
        "      `portguard serve` runs it",
        "ok    listen: 127.0.0.1:0 is free",
        "ok    listen: 127.0.0.1:0 is free",
    ]
    assert "confinement: " in lines[5]  # of this host, whatever it has


@pytest.mark.parametrize(
    ("state", "verdict", "line"),
    [
        ("serving", "SERVING", "ok    gateway: SERVING"),
        ("refusing", "REFUSING ALL since 02:51", "FAIL  gateway: REFUSING ALL since 02:51"),
    ],
)
@pytest.mark.parametrize(
    ("confinement", "confined"),
    [
        (
            {"by": "landlock", "abi": 2, "message": None},
            "ok    confinement: Landlock (ABI 2) keeps workers from the host",
        ),
        (
            {"by": None, "abi": None, "message": "no\x1b"},
            "warn  confinement: workers are not kept from the host: no\\x1b",
        ),
    ],
)
async def test_a_gateway_that_runs_says_how_it_is(folder, state, verdict, line, confinement, confined):
    revision = read_bundle(folder.configuration, now()).revision

    async def status(_peer, _given):
        return {"verdict": verdict, "state": state, "policy": revision, "confinement": confinement}

    with ControlDouble(folder.path / "c.sock", [Route("GET", "/v1/status", Level.VIEWER, status)]):
        code, output, _ = await portguard("doctor", "-c", folder.configuration)
        assert line in output.splitlines()
        assert confined in output.splitlines()
        assert code == (0 if state == "serving" else 1)
        assert "listen: " not in output
        assert "reload" not in output
        folder.write("policy.toml", "timezone = 'UTC'\n")
        _, output, _ = await portguard("doctor", "-c", folder.configuration)
        assert "warn  gateway: it does not work by what its files say now\n" in output


async def test_the_redis_of_a_fleet_is_looked_at(folder):
    folder.add("portguard.toml", f'[ledger]\nurl = "unix://{folder.path}/none.sock"\n')
    code, output, errors = await portguard("doctor", "-c", folder.configuration)
    assert (code, errors) == (1, "")
    assert f"\nFAIL  ledger: unix://{folder.path}/none.sock: expected a Redis that can be used, got no such" in output


async def test_a_password_that_cannot_be_read_is_told_once_and_redis_is_not_looked_at(folder):
    url = f'url = "unix://{folder.path}/none.sock"'
    folder.add("portguard.toml", f'[ledger]\n{url}\npassword_file = "none"\n')
    code, output, errors = await portguard("doctor", "-c", folder.configuration)
    assert (code, errors) == (1, "")
    assert output.count("FAIL  ") == 1
    assert f"FAIL  configuration: {folder.path}/none: expected a readable file with a password" in output


async def test_a_configuration_that_is_wrong_is_told_and_its_gateway_still_looked_at(folder):
    folder.add("policy.toml", "[services.x]\n")
    code, output, errors = await portguard("doctor", "-c", folder.configuration)
    assert (code, errors) == (1, "")
    lines = output.splitlines()
    assert lines[0].startswith(f"FAIL  configuration: {folder.path}/policy.toml: services.x.upstream: expected")
    assert lines[1].startswith("warn  gateway: ")
    assert lines[-1] == "1 failure, 1 warning"


async def test_what_is_wrong_with_files_hides_nothing_that_is_wrong_with_the_host(folder):
    text = (folder.path / "portguard.toml").read_text()
    folder.write("portguard.toml", text.replace('state = "state"', 'state = "policy.toml/state"'))
    folder.add("policy.toml", "[services.x]\n")
    _, output, _ = await portguard("doctor", "-c", folder.configuration)
    failures = [line for line in output.splitlines() if line.startswith("FAIL  configuration: ")]
    assert len(failures) == 2
    assert "(gateway.state), got not a directory" in failures[0]
    assert "services.x.upstream" in failures[1]
