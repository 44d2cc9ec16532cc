import errno
import signal
import subprocess
import sys

import click
import pytest

from portguard.cli import main as command_line
from portguard.errors import ConfigurationError, Problem, Refused, Unreachable, UsageError
from portguard.reasons import Reason
from tests.patience import PATIENCE_S


@pytest.fixture
def run(monkeypatch, capsys):
    """Run `portguard` as a command that raises `error`; return the exit code and what stood on standard error."""

    def run(error: BaseException | None) -> tuple[int, str]:
        @click.command()
        def failing() -> None:
            if error is not None:
                raise error

        monkeypatch.setattr(command_line, "portguard", failing)
        monkeypatch.setattr(sys, "argv", ["portguard"])
        with pytest.raises(SystemExit) as ended:
            command_line.main()
        return ended.value.code, capsys.readouterr().err

    return run


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("wrong"), 2),
        (ConfigurationError([Problem("a.toml", "x", "1", "2")]), 2),
        (Refused(Reason.DENIED), 3),
        (Unreachable("nobody there"), 4),
    ],
)
def test_an_error_is_a_message_and_its_exit_code(run, error, code):
    assert run(error) == (code, f"portguard: {error}\n")


def test_a_command_that_succeeds_says_nothing_and_exits_with_0(run):
    assert run(None) == (0, "")


def test_what_the_system_refuses_is_a_message_too(run):
    code, said = run(OSError(errno.ENOSPC, "No space left on device", "/var/lib/portguard/x"))
    assert (code, said) == (1, "portguard: /var/lib/portguard/x: No space left on device\n")


def test_each_line_of_a_message_is_escaped(run):
    _, said = run(UsageError("one\x1b[31m\ntwo\u202e"))
    assert said == "portguard: one\\x1b[31m\nportguard: two\\u202e\n"


def command_line_of(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["portguard", *arguments])
    with pytest.raises(SystemExit) as ended:
        command_line.main()
    return ended.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["serv"], "No such command 'serv' (did you mean serve?)."),
        (["statsu", "--json"], "No such command 'statsu' (did you mean status?)."),
        (["policy", "chekc"], "No such command 'chekc' (did you mean check?)."),
        (["policy", "foo"], "No such command 'foo'; expected access, check, diff, explain or show."),
        (["ca", "shw"], "No such command 'shw' (did you mean show?)."),
        (["quota", "foo"], "No such command 'foo'; expected grant, reset or show."),
        (["nothing-like-it"], "No such command 'nothing-like-it'."),
    ],
    ids=" ".join,
)
def test_a_slip_in_a_command_is_told_with_what_was_meant(monkeypatch, capsys, arguments, told):
    code, err = command_line_of(monkeypatch, capsys, *arguments)
    assert code == 2
    assert err.splitlines()[-1] == f"Error: {told}"


def test_a_slip_in_an_option_is_clicks_to_tell(monkeypatch, capsys):
    code, err = command_line_of(monkeypatch, capsys, "--srve")
    assert (code, "No such option" in err) == (2, True)


def groups(command=command_line.portguard, path=()):
    """Each group, with the words that lead to it."""
    context = click.Context(command)
    if isinstance(command, click.Group):
        yield path, command
        for name in command.list_commands(context):
            yield from groups(command.get_command(context, name), (*path, name))


@pytest.mark.parametrize(("path", "group"), list(groups()), ids=str)
def test_no_summary_of_a_command_is_cut(path, group):
    text = group.get_help(click.Context(group, info_name="portguard", terminal_width=80))
    commands = text.partition("Commands:\n")[2].splitlines()
    assert len(commands) == len(group.list_commands(click.Context(group))), "expected a line for each"
    assert [line for line in commands if "..." in line] == []


# Sends the signal when the module is about to be loaded, and goes on as an entry point does.
INTERRUPTED = """
import os, signal, sys

class Finder:
    def find_spec(self, name, *_):
        if name == sys.argv[1]:
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
from portguard.__main__ import main
main()
"""


def interrupted(module: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-c", INTERRUPTED, module, "--version"],
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@pytest.mark.parametrize("module", ["portguard.cli.main", "click", "portguard.errors"])
def test_ctrl_c_while_the_command_is_loaded_ends_it_as_later(module):
    ended = interrupted(module)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", "\nAborted!\n")


def test_without_ctrl_c_the_command_runs():
    assert "Aborted" not in interrupted("no.such.module").stderr
