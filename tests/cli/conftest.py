"""Commands that ask a gateway over its control socket, `c.sock` beside the configuration."""

import sys

import pytest

from portguard.cli import main as cli
from tests.gateway_folder import CONFIGURATION


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
