"""What the commands share: results to stdout, everything else to stderr."""

from __future__ import annotations

import argparse
import contextlib
import json
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rewriter.errors import RewriterError

OK = 0
FINDINGS = 1
USAGE = 2
INCOMPLETE = 3
INTERRUPTED = 130


class WrongUsage(RewriterError):
    """Arguments that parse, but ask for what is not there; the message names the option."""


def complain(message: str) -> None:
    """Prints an error for the user."""
    print(f"rewriter: error: {message}", file=sys.stderr)


def print_json(document: Mapping[str, Any]) -> None:
    """Prints one JSON document. Raises ValueError for NaN and infinities, which JSON does not have."""
    print(json.dumps(document, indent=2, allow_nan=False))


@contextlib.contextmanager
def clean_stdout() -> Iterator[None]:
    """Keeps stdout for the result: what libraries print meanwhile goes to stderr."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


@contextlib.contextmanager
def progress(description: str, total: int | None = None) -> Iterator[Any]:
    """A progress bar on stderr, shown only to a terminal; yields tqdm's bar, whose `update(n)` moves it."""
    from tqdm import tqdm

    with tqdm(total=total, desc=description, file=sys.stderr, disable=None, leave=False, delay=0.5) as bar:
        yield bar


def made(folder: pathlib.Path) -> pathlib.Path:
    """The folder of `--out`, made ahead of the work whose results go there. Raises WrongUsage."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WrongUsage(f"--out: cannot make the folder {folder}: {error.strerror}") from error
    return folder


def whole_number(text: str) -> int:
    """An argument's value from 1 on. Raises what argparse reports as wrong usage."""
    if not text.isdecimal() or not 0 < int(text) < 100_000:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number above 0")
    return int(text)


def table(rows: Sequence[Sequence[str]], *, right: frozenset[int] = frozenset()) -> str:
    """Rows as aligned columns; the columns whose numbers are in `right` are aligned to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
