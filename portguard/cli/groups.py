"""Groups of commands that know what somebody meant who slipped."""

import importlib
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import click

_MOST_LISTED = 8


class CommandGroup(click.Group):
    """A group of commands. A word that is none of them is told with the one that is meant, or with all of a few."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """See click. Raises click.UsageError."""
        word, names = args[0], self.list_commands(ctx)
        # What looks like an option is click's to tell of. click 8.4 and newer suggest too, of commands that are loaded.
        if word in names or word.startswith("-") or ctx.resilient_parsing:
            return super().resolve_command(ctx, args)
        if alike := get_close_matches(word, names, 1):
            raise click.UsageError(f"No such command {word!r} (did you mean {alike[0]}?).", ctx)
        listed = f"; expected {', '.join(names[:-1])} or {names[-1]}" if 1 < len(names) <= _MOST_LISTED else ""
        raise click.UsageError(f"No such command {word!r}{listed}.", ctx)


class LazyGroup(CommandGroup):
    """A group whose commands are loaded on first use: `modules` says where each lives, as "module:attribute"."""

    def __init__(self, *arguments: Any, modules: Mapping[str, str], **keywords: Any):
        super().__init__(*arguments, **keywords)
        self._modules = modules

    def list_commands(self, ctx: click.Context) -> list[str]:
        """See click."""
        return sorted(self._modules)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """See click."""
        if cmd_name not in self._modules:
            return None
        module, attribute = self._modules[cmd_name].split(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command
