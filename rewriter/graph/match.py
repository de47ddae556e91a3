"""What matching finds: the match, or why there is none."""

from __future__ import annotations

import dataclasses

from rewriter.graph.pattern import Pattern
from rewriter.graph.view import Node, NotConstant, Value
from rewriter.language.syntax import Constant

Bound = Value | list[Value] | str


@dataclasses.dataclass(slots=True)
class Match:
    """Where a pattern was found. `bound`: its names; `nodes`: the nodes it covers, the root first."""

    pattern: Pattern
    root: Node
    bound: dict[str, Bound]
    nodes: list[Node]

    def value(self, name: str) -> Value:
        value = self.bound[name]
        assert isinstance(value, Value)
        return value

    def values(self, name: str) -> list[Value]:
        """The values of a name, starred or not; none for the name of an alternative."""
        value = self.bound[name]
        if isinstance(value, str):
            return []
        return value if isinstance(value, list) else [value]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """Why a pattern is not at a node: how many of its statements had matched, and what was in the way where."""

    rule: str
    reason: str
    node: str
    scope: str
    depth: int
    total: int


def same_constant(wanted: Constant, found: Constant | NotConstant) -> bool:
    """By value: 1 equals 1.0, but True is not 1."""
    if isinstance(found, NotConstant):
        return False
    if isinstance(wanted, tuple) or isinstance(found, tuple):
        return (
            isinstance(wanted, tuple)
            and isinstance(found, tuple)
            and len(wanted) == len(found)
            and all(map(same_constant, wanted, found))
        )
    return isinstance(wanted, bool) == isinstance(found, bool) and wanted == found
