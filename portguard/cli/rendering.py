"""Text for terminals. Whatever a certificate, a client or a file supplied is escaped before it is shown."""


def printable(text: str) -> str:
    """Return `text` with what is not printable (control characters, bidi overrides) backslash-escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
