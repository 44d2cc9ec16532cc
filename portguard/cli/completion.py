"""`portguard completion`: what a shell needs to complete commands and options on Tab."""

import click
from click.shell_completion import get_completion_class

_VARIABLE = "_PORTGUARD_COMPLETE"  # by which click knows that a shell asks, from the program's name

# Where each shell looks for it by itself. A zsh finds what is in its $fpath, under this name.
_INSTALL = {
    "bash": "portguard completion bash > ~/.local/share/bash-completion/completions/portguard",
    "zsh": "portguard completion zsh > ~/.zfunc/_portguard    # and in ~/.zshrc, before compinit: fpath+=~/.zfunc",
    "fish": "portguard completion fish > ~/.config/fish/completions/portguard.fish",
}


@click.command(short_help="Print a script that completes commands on Tab.")
@click.argument("shell", type=click.Choice(sorted(_INSTALL)))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a script by which SHELL completes commands and options on Tab, and say in it how to install it."""
    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(context.find_root().command, {}, "portguard", _VARIABLE).source().strip()
    # A zsh takes a file of $fpath for a completion by its first line.
    first, _, rest = script.partition("\n") if script.startswith("#compdef") else ("", "", script)
    comment = f"# To install it: {_INSTALL[shell]}"
    click.echo("\n".join(filter(None, (first, comment, rest))))
