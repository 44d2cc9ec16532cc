import errno
import sys

import click
import pytest

from portguard.cli import main as command_line
from portguard.errors import ConfigurationError, Problem, Refused, Unreachable, UsageError
from portguard.reasons import Reason


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
