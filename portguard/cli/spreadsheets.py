"""Tables as CSV that is safe to open: in a spreadsheet nothing is a formula, on a terminal nothing is an escape."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

from portguard.cli.rendering import printable

_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")  # as such, and in full width


def csv_lines(header: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    """The lines, without their ends (RFC 4180). Every cell is quoted, as some spreadsheets part cells at `;` too.

    A cell that a spreadsheet would take for a formula (OWASP, "CSV injection") begins with an apostrophe.
    """
    for row in chain([header], rows):
        line = io.StringIO()
        csv.writer(line, quoting=csv.QUOTE_ALL, lineterminator="").writerow(map(_cell, row))
        yield line.getvalue()


def _cell(text: str) -> str:
    text = printable(text)
    return f"'{text}" if text.lstrip().startswith(_FORMULA) else text
