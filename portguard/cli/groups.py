"""Groups of commands that know what somebody meant who slipped."""

from difflib import get_close_matches

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
