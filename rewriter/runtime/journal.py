"""What the report says of a component beside its graphs: how often it did what, and what happened."""

from __future__ import annotations

import logging
import warnings

logger = logging.getLogger("rewriter")

_MOST_MESSAGES = 20


class RewriterWarning(UserWarning):
    """An optimised component went back to eager because something in it broke."""


class Journal:
    """That of one component, which holds its lock wherever it writes here.

    reason: why calls like the last one run eagerly, or None where they do not. captures: traces made so far.
    messages: the latest things worth saying, each once.
    """

    __slots__ = ("calls", "captures", "eager_calls", "messages", "name", "reason")

    def __init__(self, name: str, reason: str | None) -> None:
        self.name, self.reason = name, reason
        self.calls = self.eager_calls = self.captures = 0
        self.messages: list[str] = []

    def note(self, message: str) -> None:
        """Remembers something that happened, unless it has happened before."""
        if message not in self.messages:
            logger.info("%s: %s", self.name, message)
            self.messages.append(message)
            del self.messages[:-_MOST_MESSAGES]

    def warn(self, message: str, *, depth: int) -> None:
        """Warns the user. `depth`: so many frames lie between this one and the line to which the warning belongs."""
        warnings.warn(f"rewriter: {self.name}: {message}", RewriterWarning, stacklevel=depth + 2)
