"""Text for terminals. Whatever a certificate, a client or a file supplied is escaped before it is shown."""

import click


def printable(text: str) -> str:
    """Return `text` with what is not printable (control characters, bidi overrides) backslash-escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def counted(count: int, noun: str) -> str:
    """`1 role`, `2 policies`."""
    return f"1 {noun}" if count == 1 else f"{count} {plural(noun)}"


def plural(noun: str) -> str:
    """`roles`, `policies`."""
    return f"{noun.removesuffix('y')}ies" if noun.endswith("y") else f"{noun}s"


def note(text: str) -> None:
    """Tell people something beside what the command prints."""
    click.echo(f"portguard: {printable(text)}", err=True)
