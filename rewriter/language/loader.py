"""Finds rule files, reads them and puts the rules in order."""

from __future__ import annotations

import fnmatch
import functools
import os
import pathlib
from collections.abc import Iterable, Mapping

from rewriter import collector
from rewriter.errors import Position, RuleError
from rewriter.language import source
from rewriter.language.document import read_document
from rewriter.language.names import listing, nearest
from rewriter.language.overlap import check_set
from rewriter.language.rule import Rule, RuleSet

Source = str | os.PathLike[str] | RuleSet
# Both are in use for YAML; a file that is passed over in silence would be the worst of all.
PATTERNS = ("*.yaml", "*.yml")
_EXPECTED = 'expected pack names such as "default", paths of rule files, RuleSets, or a list of these'


def load_rules(rules: Source | Iterable[Source] = "default") -> RuleSet:
    """The rules of a pack name, a file, a folder, a RuleSet, or a list of these, where `"-rule-id"` removes a rule.

    A `*` in such an id stands for any letters: `"-fp8-*conv*"` removes several. Raises RuleError with file, line and
    column, before anything is used.
    """
    import rewriter.ops  # noqa: F401  (registers the ops that replacements name)

    found: list[Rule] = []
    for item in _sources(rules):
        if isinstance(item, str) and item.startswith("-"):
            found = _without(found, item[1:])
        elif isinstance(item, RuleSet):
            found.extend(item.rules)
        elif isinstance(item, str | os.PathLike):
            with collector.paused():
                found.extend(rule for path in _files(item) for rule in _rules_of(path))
        else:
            raise TypeError(f"rules: found {type(item).__name__} in the list, {_EXPECTED}")
    loaded = RuleSet.ordered(tuple(found))
    check_set(loaded)
    return loaded


def rule_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The rule files that lie in a folder, in the order in which they are read; none in what is no folder."""
    # `Path.glob` raises for a name that no file can have.
    if not os.path.isdir(folder):  # noqa: PTH112
        return []
    return sorted(path for pattern in PATTERNS for path in folder.glob(pattern))


def pack_folder() -> pathlib.Path:
    """Where the packs that come with the package are."""
    import rewriter.rules

    return pathlib.Path(rewriter.rules.__path__[0])


def packs() -> list[str]:
    """The names of the packs that come with the package."""
    return sorted(path.name for path in pack_folder().iterdir() if rule_files(path))


def _sources(rules: object) -> list[Source]:
    if isinstance(rules, str | os.PathLike | RuleSet):
        return [rules]
    if not isinstance(rules, Iterable) or isinstance(rules, bytes | Mapping):
        raise TypeError(f"rules: found {type(rules).__name__}, {_EXPECTED}")
    return list(rules)


def _without(rules: list[Rule], rule_id: str) -> list[Rule]:
    kept = [rule for rule in rules if not fnmatch.fnmatchcase(rule.id, rule_id)]
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
        elif not text or not os.path.exists(text):  # noqa: PTH110 (where `Path.exists` raises)
            raise RuleError(
                "unknown pack",
                position=Position(file=text or "''", line=1, column=1),
                found=text or "no name",
                expected=f"one of {listing(packs())}, or the path of a rule file",
                suggestion=nearest(text, packs()),
            )
    if not os.path.isdir(path):  # noqa: PTH112 (where `Path.is_dir` raises)
        return [path]
    files = rule_files(path)
    if not files:
        raise RuleError(
            "a folder without rule files",
            position=Position(file=text, line=1, column=1),
            expected=f"{' or '.join(PATTERNS)} in it",
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
