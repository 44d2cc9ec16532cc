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
    widths = [max(map(_width, column)) for column in zip(*escaped, strict=True)]
    for row in escaped:
        cells = []
        for number, (cell, width) in enumerate(zip(row, widths, strict=True)):
            blank = " " * (width - _width(cell))
            cells.append(blank + cell if number in right else cell + blank)
        yield _GAP.join(cells).rstrip()


def _width(text: str) -> int:
    """How many columns of a terminal it takes."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(c) in _WIDE else 0 if unicodedata.combining(c) else 1 for c in text)
