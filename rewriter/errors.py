"""The exceptions that users see."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any


class RewriterError(Exception):
    """Base class of every error that this package raises on purpose."""


class UnsupportedTorch(RewriterError, ImportError):
    """The installed torch lacks a symbol that the engine needs."""


class UnknownTarget(RewriterError, ValueError):
    """A model name, folder or hub id that cannot be loaded."""


class VerificationError(RewriterError):
    """A traced or rewritten graph does not reproduce eager's result (raised only with `strict=True`)."""


class CaptureError(RewriterError):
    """A module call that cannot be turned into a graph; the message says which argument, output or op is in the way."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Position:
    """A place in a rule file. `line` and `column` count from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


class RuleError(RewriterError, ValueError):
    """A rule file that cannot be used.

    The message reads `FILE:LINE:COLUMN: rule ID: problem (found ..., expected ...; did you mean ...?)`.
    """

    def __init__(
        self,
        problem: str,
        *,
        position: Position,
        rule: str | None = None,
        found: str | None = None,
        expected: str | None = None,
        suggestion: str | None = None,
    ) -> None:
        self.problem = problem
        self.position = position
        self.rule = rule
        self.found = found
        self.expected = expected
        self.suggestion = suggestion
        super().__init__(str(self))

    def __reduce__(self) -> tuple[Any, ...]:
        # An exception's own way passes the message alone, and a pool of processes waits for ever for the result.
        details = {name: value for name, value in vars(self).items() if name != "problem"}
        return functools.partial(type(self), **details), (self.problem,)

    def __str__(self) -> str:
        where = f"{self.position}: " + (f"rule {self.rule}: " if self.rule else "")
        details = [
            text
            for text in (
                f"found {self.found}" if self.found is not None else "",
                f"expected {self.expected}" if self.expected is not None else "",
            )
            if text
        ]
        tail = f" ({', '.join(details)})" if details else ""
        hint = f"; did you mean {self.suggestion}?" if self.suggestion else ""
        return f"{where}{self.problem}{tail}{hint}"
