"""Finds rule files, reads them and puts the rules in order."""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Iterable

from rewriter import collector
from rewriter.errors import Position, RuleError
from rewriter.language import source
from rewriter.language.document import read_document
from rewriter.language.names import listing, nearest
from rewriter.language.overlap import check_set
from rewriter.language.rule import Rule, RuleSet

Source = str | os.PathLike[str] | RuleSet


def load_rules(rules: Source | Iterable[Source] = "default") -> RuleSet:
    """The rules of a pack name, a file, a folder, a RuleSet, or a list of these, where `"-rule-id"` removes a rule.

    Raises RuleError with file, line and column, before anything is used.
    """
    import rewriter.ops  # noqa: F401  (registers the ops that replacements name)

    sources: list[Source] = [rules] if isinstance(rules, str | os.PathLike | RuleSet) else list(rules)
    found: list[Rule] = []
    for item in sources:
        if isinstance(item, str) and item.startswith("-"):
            found = _without(found, item[1:])
        elif isinstance(item, RuleSet):
            found.extend(item.rules)
        elif isinstance(item, str | os.PathLike):
            with collector.paused():
                found.extend(rule for path in _files(item) for rule in _rules_of(path))
        else:
            raise TypeError(f"rules must be pack names, paths or RuleSets, not {type(item).__name__}")
    loaded = RuleSet.ordered(tuple(found))
    check_set(loaded)
    return loaded


def pack_folder() -> pathlib.Path:
    """Where the packs that come with the package are."""
    import rewriter.rules

    return pathlib.Path(rewriter.rules.__path__[0])


def packs() -> list[str]:
    """The names of the packs that come with the package."""
    return sorted(path.name for path in pack_folder().iterdir() if any(path.glob("*.yaml")))


def _without(rules: list[Rule], rule_id: str) -> list[Rule]:
    kept = [rule for rule in rules if rule.id != rule_id]
    if len(kept) == len(rules):
        ids = [rule.id for rule in rules]
        raise RuleError(
            "no such rule to remove",
            position=Position(file=f"-{rule_id}", line=1, column=1),
            found=rule_id,
            expected="the id of a rule that stands before it in the list",
            suggestion=nearest(rule_id, ids),
        )
    return kept


def _files(item: str | os.PathLike[str]) -> list[pathlib.Path]:
    """The rule files of a pack name, a folder or a path."""
    text = os.fspath(item)
    path = pathlib.Path(text)
    looks_like_path = isinstance(item, os.PathLike) or path.suffix in (".yaml", ".yml") or os.sep in text
    if not looks_like_path:
        if text in packs():
            path = pack_folder() / text
        elif not text or not path.exists():
            raise RuleError(
                "unknown pack",
                position=Position(file=text or "''", line=1, column=1),
                found=text or "no name",
                expected=f"one of {listing(packs())}, or the path of a rule file",
                suggestion=nearest(text, packs()),
            )
    if not path.is_dir():
        return [path]
    files = sorted(path.glob("*.yaml"))
    if not files:
        raise RuleError(
            "a folder without rule files", position=Position(file=text, line=1, column=1), expected="*.yaml"
        )
    return files


def _rules_of(path: pathlib.Path) -> tuple[Rule, ...]:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return _parse(path)
    return _read(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=256)
def _read(path: pathlib.Path, _modified: int, _size: int) -> tuple[Rule, ...]:
    """The time and the size are part of the cache's key, so that an edited file is read again."""
    return _parse(path)


def _parse(path: pathlib.Path) -> tuple[Rule, ...]:
    return read_document(source.read(path))
