"""Plain data kept on disk from one process to the next, in a folder that stays small."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

from rewriter.measure.cache import cache_folder
from rewriter.measure.disk import NOTHING_KEPT, UNFINISHED, keep, tell

_FORMAT = 1
_MOST_BYTES = 256 << 20
_SUFFIX = ".json"
# What a process has begun to write and not finished by then, it never will.
_ABANDONED_SECONDS = 3600.0
_log = logging.getLogger("rewriter")

Key = Mapping[str, Any]


def switched_off() -> bool:
    """Whether `REWRITER_GRAPHS=off` forbids to read and to write what is kept."""
    return os.environ.get("REWRITER_GRAPHS", "").lower() in ("off", "0", "no", "false")


def shelf_folder() -> pathlib.Path:
    return cache_folder() / "graphs"


def get(kind: str, key: Key) -> Any:
    """What was put under this key, or None. A file that is damaged or foreign is removed."""
    path = _path(kind, key)
    try:
        data = json.loads(path.read_bytes())
        content = data["content"]
        if data["format"] != _FORMAT or data["key"] != _json(key) or data["checksum"] != checksum(content):
            raise ValueError("its content is not what was written")
        # In a folder that is shared for reading only nothing is thrown out either.
        with contextlib.suppress(OSError):
            os.utime(path)
    except NOTHING_KEPT:
        return None
    except OSError as error:
        tell(f"the kept graph {path} cannot be read and is made anew", error)
        return None
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        _log.warning("the kept graph %s is not usable and will be made anew: %s", path, error)
        discard(kind, key)
        return None
    return content


def put(kind: str, key: Key, content: Any) -> None:
    """Writes a file as a whole or not at all; a read-only or full disk only costs the next process its time."""
    path = _path(kind, key)
    data = {"format": _FORMAT, "key": _json(key), "checksum": checksum(content), "content": content}
    keep(path, json.dumps(data))
    with contextlib.suppress(OSError):
        _make_room(path)


def discard(kind: str, key: Key) -> None:
    """Removes what was put under this key."""
    with contextlib.suppress(OSError):
        _path(kind, key).unlink()


def checksum(content: Any) -> str:
    """Equal for equal content."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _json(key: Key) -> Any:
    """The key as it comes back from a file."""
    return json.loads(json.dumps(key))


def _path(kind: str, key: Key) -> pathlib.Path:
    return shelf_folder() / f"{kind}-{checksum(key)[:32]}{_SUFFIX}"


def _make_room(fresh: pathlib.Path) -> None:
    """Removes what was not used for the longest time beyond the bound, and what others have left unfinished."""
    kept: list[tuple[float, int, pathlib.Path]] = []
    for path in fresh.parent.iterdir():
        with contextlib.suppress(OSError):
            status = path.stat()
            if path.suffix == UNFINISHED and time.time() - status.st_mtime > _ABANDONED_SECONDS:
                path.unlink()
            elif path.suffix == _SUFFIX and path != fresh:
                kept.append((status.st_mtime, status.st_size, path))
    total = fresh.stat().st_size + sum(size for _, size, _ in kept)
    for _, size, path in sorted(kept):
        if total <= _MOST_BYTES:
            break
        with contextlib.suppress(OSError):
            path.unlink()
        total -= size
