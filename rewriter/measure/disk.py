"""Writes the files that last from one process to the next."""

from __future__ import annotations

import logging
import os
import pathlib
import threading

# Ends the names of files that are not whole yet.
UNFINISHED = ".part"
# Nothing was kept under a path: there is no file, or one stands in the place of its folder.
NOTHING_KEPT = (FileNotFoundError, NotADirectoryError)

_log = logging.getLogger("rewriter")
_told: set[str] = set()


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a file as a whole or not at all, its folder too, and leaves nothing else behind. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}{UNFINISHED}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def keep(path: pathlib.Path, text: str) -> None:
    """`write_whole`, where a read-only or full disk only costs the next process its time. Says so once."""
    try:
        write_whole(path, text)
    except OSError as error:
        tell(f"{path} cannot be kept, so every process makes it anew", error)


def tell(problem: str, error: OSError) -> None:
    """Warns of a folder that cannot be used, once for each kind of error: all files in it have the same."""
    reason = error.strerror or str(error)
    _log.log(
        logging.DEBUG if reason in _told else logging.WARNING,
        "%s: %s; set REWRITER_CACHE to a folder of your own with room in it",
        problem,
        reason,
    )
    _told.add(reason)
