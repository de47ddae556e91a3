"""Which files of `csrc` a function of its library is compiled from."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterable

_UNITS = (".cpp", ".cu")
_KINDS = (*_UNITS, ".h", ".cuh", ".hpp")
_INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*"([^"]+)"', re.MULTILINE)
# The schema in `library.def(...)`, whose text may begin on the next line.
_DEFINED = re.compile(r'\bdef\(\s*"(\w+)\(')


class Units:
    """The C++ and CUDA files of a folder.

    A header stands for the units of its own name, which define what it declares. Units that are reached from no
    function in this way count for every function.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        paths = sorted(path for path in folder.rglob("*") if path.suffix in _KINDS)
        texts = {path: path.read_text(encoding="utf-8", errors="replace") for path in paths}
        self._defining = {name: path for path, text in texts.items() for name in _DEFINED.findall(text)}
        self._needs = {path: self._needed(path, text, paths) for path, text in texts.items()}
        named = self._closure(set(self._defining.values()))
        self._everywhere = self._closure({path for path in paths if path.suffix in _UNITS} - named)

    def of(self, functions: Iterable[str]) -> frozenset[pathlib.Path]:
        """What these functions depend on; everything for none of them, or for one that is defined nowhere."""
        names = set(functions)
        if not names or names - self._defining.keys():
            return frozenset(self._needs)
        return frozenset(self._closure({self._defining[name] for name in names}) | self._everywhere)

    def name(self, path: pathlib.Path) -> str:
        """The path within the folder."""
        return path.relative_to(self.folder).as_posix()

    def _needed(self, path: pathlib.Path, text: str, paths: list[pathlib.Path]) -> set[pathlib.Path]:
        included = [
            each.resolve()
            for name in _INCLUDE.findall(text)
            for each in (path.parent / name, self.folder / name)
            if each.is_file()
        ]
        stems = {each.stem for each in included}
        return {each for each in paths if each.resolve() in included or (each.suffix in _UNITS and each.stem in stems)}

    def _closure(self, start: set[pathlib.Path]) -> set[pathlib.Path]:
        found: set[pathlib.Path] = set()
        waiting = list(start)
        while waiting:
            path = waiting.pop()
            if path not in found:
                found.add(path)
                waiting += self._needs[path]
        return found
