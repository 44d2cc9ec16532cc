"""The configuration as commands look into it."""

import pytest

from portguard.cli import configuration_file
from portguard.cli.configuration_file import configuration_at
from portguard.errors import ConfigurationError


def problems(path, **how):
    with pytest.raises(ConfigurationError) as caught:
        configuration_at(str(path), **how)
    return [(problem.file, problem.key, problem.found) for problem in caught.value.problems]


def test_none_of_the_files_that_it_names_need_be_there(configuration):
    assert configuration_at(str(configuration)).gateway.control == str(configuration.parent / "c.sock")


def test_a_slip_counts_only_in_what_is_needed(configuration):
    configuration.write_text(configuration.read_text() + '\n[timeouts]\nidle = "soon"\n')
    assert problems(configuration) == [(str(configuration), "timeouts.idle", '"soon"')]
    assert configuration_at(str(configuration), needed={"", "gateway"}).gateway.control
    assert len(problems(configuration, needed={"timeouts.idle"})) == 1


def test_that_it_is_missing_is_told_by_its_whole_path(configuration, monkeypatch):
    monkeypatch.chdir(configuration.parent)
    configuration.unlink()
    assert problems(configuration.name) == [(str(configuration), "", "no such file or directory")]


def test_who_has_named_none_learns_how_to(configuration, monkeypatch):
    configuration.unlink()
    monkeypatch.setattr(configuration_file, "DEFAULT_CONFIGURATION", str(configuration))
    [(_, _, found)] = problems(configuration)
    assert found == "no such file or directory; -c or $PORTGUARD_CONFIG names another"


@pytest.mark.parametrize("command", [("audit", "tail"), ("audit", "verify"), ("policy", "access"), ("status",)])
def test_all_commands_tell_so_alike(configuration, run_portguard, command):
    configuration.unlink()
    code, out, err = run_portguard(*command)
    assert (code, out) == (2, "")
    assert err == (
        f"portguard: {configuration}: expected a file that can be read (the configuration), "
        "got no such file or directory\n"
    )
