"""What commands that check say of files that they have read, to people and to programs alike."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar, cast

import click

from portguard.cli.rendering import counted, note, plural, printable
from portguard.errors import ConfigurationError

_Command = TypeVar("_Command", bound=Callable[..., Any])


def tell_unusable(subject: str, error: ConfigurationError, *, as_json: bool) -> NoReturn:
    """Say that `subject` is not usable: to programs with its problems, ending with the exit code of `error`.

    To people the problems are told where `error` ends up, which is raised again.
    """
    if not as_json:
        click.echo(printable(f"{subject}: not usable, {counted(len(error.problems), 'problem')}"))
        raise error
    _print_problems(error)


def problems_as_json(command: _Command) -> _Command:
    """Have a command with `json_option` tell programs what is wrong in files, as `tell_unusable` does."""

    @functools.wraps(command)
    def telling(*arguments: Any, as_json: bool, **options: Any) -> Any:
        try:
            return command(*arguments, as_json=as_json, **options)
        except ConfigurationError as error:
            if not as_json:
                raise
            _print_problems(error)

    return cast("_Command", telling)


def _print_problems(error: ConfigurationError) -> NoReturn:
    problems = [
        {"file": problem.file, "key": problem.key, "expected": problem.expected, "found": problem.found}
        for problem in error.problems
    ]
    click.echo(json.dumps({"ok": False, "problems": problems, "warnings": []}, indent=2))
    click.get_current_context().exit(error.exit_code)


def tell_usable(
    subject: str,
    *,
    counts: Mapping[str, int],
    warnings: Sequence[str],
    notes: Sequence[str] = (),
    more: Mapping[str, object],
    as_json: bool,
) -> None:
    """Say that `subject` is usable, how many of each noun in `counts` it has, and what is odd.

    `notes` are for people, `more` is for programs.
    """
    if as_json:
        verdict = {"ok": True, "problems": [], "warnings": warnings, **more}
        click.echo(json.dumps(verdict | {plural(noun): count for noun, count in counts.items()}, indent=2))
        return
    for line in (*(f"warning: {warning}" for warning in warnings), *notes):
        note(line)
    shown = ", ".join(counted(count, noun) for noun, count in counts.items())
    click.echo(printable(f"{subject}: ok, {shown}, {counted(len(warnings), 'warning')}"))
