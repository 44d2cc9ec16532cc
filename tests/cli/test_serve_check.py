"""`portguard serve --check`: what a person and what a program gets to see, and the exit code."""

import gc
import json
import sys

import pytest

from portguard.cli import main as cli
from tests.gateway_folder import NAME, GatewayFolder

ODDITY = '[[deny]]\nmembers = ["bob"]\nservices = ["web-*"]\n'


@pytest.fixture
def folder(tmp_path):
    return GatewayFolder(tmp_path)


@pytest.fixture
def portguard(monkeypatch, capsys):
    """Run the command; returns exit code, standard output and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["portguard", *arguments])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        output = capsys.readouterr()
        return caught.value.code, output.out, output.err

    return run


def test_a_right_configuration_is_ok(folder, portguard):
    assert portguard("serve", "--check", "-c", folder.configuration) == (
        0,
        f"{folder.configuration}: ok, 1 service, 1 role, 1 trust, 0 warnings\n",
        "",
    )


def test_warnings_go_to_standard_error_and_leave_the_exit_code(folder, portguard):
    folder.add("policy.toml", ODDITY)
    code, out, err = portguard("serve", "--check", "--config", folder.configuration)
    assert (code, out) == (0, f"{folder.configuration}: ok, 1 service, 1 role, 1 trust, 1 warning\n")
    assert err == f"portguard: warning: {folder.path}/policy.toml: deny[0].services[0]: web-* matches no service\n"


def test_problems_go_to_standard_error_all_of_them(folder, portguard):
    folder.add("portguard.toml", "[log]\nlevel = 1\n")
    folder.add("policy.toml", "[services.x]\n")
    code, out, err = portguard("serve", "--check", "-c", folder.configuration)
    assert (code, out) == (2, f"{folder.configuration}: not usable, 2 problems\n")
    first, second = err.splitlines()
    assert first.startswith(f"portguard: {folder.path}/policy.toml: services.x.upstream: expected an array")
    assert second.startswith(f"portguard: {folder.configuration}: log.level: expected")


def test_what_serving_here_would_refuse_is_told(folder, portguard):
    text = (folder.path / "portguard.toml").read_text()
    folder.write("portguard.toml", text.replace("[trusts", 'state = "policy.toml/state"\n[trusts', 1))
    code, out, err = portguard("serve", "--check", "-c", folder.configuration)
    assert (code, out) == (2, f"{folder.configuration}: not usable, 1 problem\n")
    assert err == (
        f"portguard: {folder.path}/policy.toml/state: expected a folder that can be written (gateway.state), "
        "got not a directory\n"
    )
    # In one go with what is wrong in other files.
    folder.add("policy.toml", "[services.x]\n")
    assert "not usable, 2 problems" in portguard("serve", "--check", "-c", folder.configuration)[1]


def test_who_is_given_a_level_and_is_not_there_is_warned_of(folder, portguard):
    folder.add("portguard.toml", '[control]\noperators = ["user:nobodyx"]\n')
    code, out, err = portguard("serve", "--check", "-c", folder.configuration)
    assert (code, out) == (0, f"{folder.configuration}: ok, 1 service, 1 role, 1 trust, 1 warning\n")
    told = "control.operators[0]: expected a user of this host, got nobodyx"
    assert err == f"portguard: warning: {folder.configuration}: {told}\n"


def test_a_program_gets_json_of_a_right_configuration(folder, portguard):
    folder.add("policy.toml", ODDITY)
    code, out, err = portguard("serve", "--check", "--json", "-c", folder.configuration)
    assert (code, err) == (0, "")
    verdict = json.loads(out)
    assert len(verdict.pop("revision")) == 64
    assert verdict == {
        "ok": True,
        "problems": [],
        "warnings": [f"{folder.path}/policy.toml: deny[0].services[0]: web-* matches no service"],
        "services": 1,
        "roles": 1,
        "trusts": 1,
    }


def test_a_program_gets_json_of_a_wrong_configuration(folder, portguard):
    folder.add("policy.toml", "[services.x]\n")
    code, out, err = portguard("serve", "--check", "--json", "-c", folder.configuration)
    assert (code, err) == (2, "")
    assert json.loads(out) == {
        "ok": False,
        "problems": [
            {
                "file": str(folder.path / "policy.toml"),
                "key": "services.x.upstream",
                "expected": "an array",
                "found": "nothing",
            }
        ],
        "warnings": [],
    }


def test_the_configuration_is_found_by_option_then_environment_then_default(folder, portguard, monkeypatch):
    monkeypatch.setenv("PORTGUARD_CONFIG", folder.configuration)
    assert portguard("serve", "--check")[0] == 0
    code, out, _ = portguard("serve", "--check", "-c", "/nowhere/a.toml")
    assert (code, out) == (2, "/nowhere/a.toml: not usable, 1 problem\n")
    monkeypatch.setenv("PORTGUARD_CONFIG", "")
    monkeypatch.setattr("portguard.cli.options.DEFAULT_CONFIGURATION", "/nowhere/default.toml")
    assert portguard("serve", "--check")[1] == "/nowhere/default.toml: not usable, 1 problem\n"


def test_a_path_cannot_write_control_characters_to_the_terminal(portguard):
    _, out, err = portguard("serve", "--check", "-c", "/nowhere/\x07\u202e.toml")
    assert "/nowhere/\\x07\\u202e.toml" in out
    assert "/nowhere/\\x07\\u202e.toml" in err


def test_json_is_for_checking_only(folder, portguard):
    code, out, err = portguard("serve", "--json", "-c", folder.configuration)
    assert (code, out) == (2, "")
    assert err == "portguard: serve: expected --json only together with --check, got it alone\n"


def test_serving_hands_the_file_to_the_supervisor_and_returns_its_exit_code(folder, portguard, monkeypatch):
    served = []
    startup = type(sys)("portguard.gateway.startup")
    startup.serve = lambda path: served.append((path, gc.isenabled())) or 1
    monkeypatch.setitem(sys.modules, "portguard.gateway.startup", startup)
    assert portguard("serve", "-c", folder.configuration) == (1, "", "")
    assert served == [(folder.configuration, True)]


@pytest.mark.parametrize("missing", ["portguard.toml", "policy.toml", "ca.crt", "tls/gateway.crt", "tls/gateway.key"])
def test_no_missing_file_ends_in_a_traceback(folder, portguard, missing):
    (folder.path / missing).unlink()
    code, _, err = portguard("serve", "--check", "-c", folder.configuration)
    assert code == 2
    assert err.startswith(f"portguard: {folder.path / missing}: expected a file that can be read")
    assert NAME not in err
