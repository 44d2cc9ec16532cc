"""Tables as plain text: aligned columns, alike on a terminal and in a pipe, and quick with tens of thousands of rows.

(rich lays out each cell with care for styles and wrapping: 10,000 rows took it five seconds.)
"""

import unicodedata
from collections.abc import Iterator, Sequence

from portguard.cli.rendering import printable

_GAP = "  "
_WIDE = {"W", "F"}


def table_lines(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: frozenset[int]) -> Iterator[str]:
    """The lines of a table; cells are escaped. Columns whose numbers are in `right` are aligned there."""
    escaped = [[printable(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(cell) + _wider(cell) for cell in column) for column in zip(*escaped, strict=True)]
    columns = [(width, number in right) for number, width in enumerate(widths)]
    for row in escaped:
        cells = [
            cell.rjust(width - _wider(cell)) if to_right else cell.ljust(width - _wider(cell))
            for cell, (width, to_right) in zip(row, columns, strict=True)
        ]
        yield _GAP.join(cells).rstrip()


def fitted(text: str, columns: int) -> str:
    """The text, escaped, cut to what fits into so many columns of a terminal; where it was cut there is "…"."""
    escaped = printable(text)
    if len(escaped) + _wider(escaped) <= columns:
        return escaped
    while escaped and len(escaped) + _wider(escaped) > columns - 1:
        escaped = escaped[:-1]
    return f"{escaped}…"


def _wider(text: str) -> int:
    """How many columns of a terminal it takes more than it has characters; less than 0 with combining ones."""
    if text.isascii():
        return 0
    return sum((unicodedata.east_asian_width(c) in _WIDE) - (unicodedata.combining(c) != 0) for c in text)
