"""Cuts pattern, replacement and preparation texts into tokens."""

from __future__ import annotations

import dataclasses
import re

from rewriter.language.syntax import Place

_TOKEN = re.compile(
    r"""(?P<blank>[ \t\r]+|\#[^\n]*)
      | (?P<newline>\n)
      | (?P<op>[A-Za-z_]\w*::(?:[A-Za-z_][\w.]*)?)
      | (?P<name>%[\w.]+|[A-Za-z_][\w.]*)
      | (?P<number>-?(?:\d+\.\d*|\.\d+|\d+)(?:[eE][-+]?\d+)?)
      | (?P<string>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')
      | (?P<mark>->|[=()\[\]{},?*:<>+\-/%!.])""",
    re.VERBOSE | re.ASCII,
)


class PatternError(ValueError):
    """A text that is no pattern; says where."""

    def __init__(self, problem: str, place: Place, expected: str | None = None, found: str | None = None) -> None:
        super().__init__(problem)
        self.problem = problem
        self.place = place
        self.expected = expected
        self.found = found


@dataclasses.dataclass(frozen=True, slots=True)
class Token:
    kind: str
    text: str
    place: Place
    start: int


def tokenize(text: str) -> list[Token]:
    """The tokens of a text; a line ends only outside of brackets. Raises PatternError."""
    tokens: list[Token] = []
    position = line = line_start = depth = 0
    while position < len(text):
        match = _TOKEN.match(text, position)
        place = Place(line, position - line_start)
        if match is None:
            raise PatternError("unexpected character", place, found=repr(text[position]))
        kind, value = str(match.lastgroup), match.group()
        if kind == "newline":
            line, line_start = line + 1, match.end()
            if depth == 0:
                tokens.append(Token("newline", value, place, position))
        elif kind != "blank":
            depth += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(value, 0) if kind == "mark" else 0
            depth = max(depth, 0)
            tokens.append(Token(kind, value, place, position))
        position = match.end()
    tokens.append(Token("newline", "", Place(line, position - line_start), position))
    return tokens
