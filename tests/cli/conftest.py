"""Commands through the program's own entry point.

Those that ask a gateway do so over its control socket, `c.sock` beside the configuration.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from cryptography import x509

from portguard.cli import main as cli
from tests.gateway_folder import CONFIGURATION

DOMAIN = "bastion.example.com"


@pytest.fixture
def configuration(tmp_path):
    path = tmp_path / "portguard.toml"
    path.write_text(CONFIGURATION.replace("[trusts", 'control = "c.sock"\n[trusts', 1))
    return path


@pytest.fixture
def run_portguard(monkeypatch, capsys, configuration):
    """Run `portguard … -c` the configuration; returns exit code, standard output and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["portguard", *arguments, "-c", str(configuration)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        output = capsys.readouterr()
        return caught.value.code or 0, output.out, output.err

    return run


class Outcome(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def failed(outcome: Outcome, code: int, *fragments: str) -> None:
    """The command ended with `code`, one message that holds all `fragments`, and nothing on standard output."""
    assert outcome.code == code, outcome
    assert outcome.out == ""
    assert "Traceback" not in outcome.err
    for fragment in fragments:
        assert fragment in outcome.err


def secret_file(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o600)
    return path


def certificate_in(path: Path) -> x509.Certificate:
    """The first one in a file."""
    return x509.load_pem_x509_certificates(path.read_bytes())[0]


Portguard = Callable[..., Outcome]


@pytest.fixture
def portguard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Portguard:
    """Run a command in `tmp_path`, where $PORTGUARD_CA is `ca`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PORTGUARD_CA", "ca")

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["portguard", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Outcome(ended.value.code, out, err)

    return run


@pytest.fixture
def made(portguard: Portguard) -> Portguard:
    """The same, with an authority."""
    assert portguard("ca", "init", "--trust-domain", DOMAIN).code == 0
    return portguard
