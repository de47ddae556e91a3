"""Plain-text layout."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

_WIDTH = 118


def table(rows: Sequence[Sequence[str]], *, right: frozenset[int] = frozenset()) -> list[str]:
    """Rows in aligned columns, those in `right` flush right. A column that is empty below its title is left out."""
    shown = [index for index in range(len(rows[0])) if any(row[index] for row in rows[1:])]
    widths = {index: max(len(row[index]) for row in rows) for index in shown}
    return [
        "  ".join(
            row[index].rjust(widths[index]) if index in right else row[index].ljust(widths[index]) for index in shown
        ).rstrip()
        for row in rows
    ]


def wrapped(text: str, *, indent: int, first: str = "") -> list[str]:
    """A paragraph, indented; `first` stands before its first line."""
    margin = " " * indent
    return textwrap.wrap(
        text, _WIDTH, initial_indent=margin + first, subsequent_indent=margin + " " * len(first), break_long_words=False
    )
