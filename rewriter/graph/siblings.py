"""Statements that one line of a pattern finds several times: what belongs together, and how much of it."""

from __future__ import annotations

import math

from rewriter.graph.facts import DTYPES
from rewriter.graph.view import Node, Value
from rewriter.language.rule import Call
from rewriter.language.syntax import Var

# Weights are moved into one only while both fit into memory, and two products of this size take no longer than one.
_MOST_BYTES = 2**29


def starred_values(call: Call, node: Node) -> list[Value]:
    """The operands that each sibling has for itself."""
    return [
        value
        for operand, value in zip(call.operands, node.inputs, strict=True)
        if isinstance(operand, Var) and operand.starred
    ]


def kind_of(node: Node, call: Call) -> tuple[object, ...]:
    """What siblings must agree on in their own operands: presence, dtype, rank, device, being a weight."""
    kinds: list[object] = []
    for value in starred_values(call, node):
        facts = value.facts
        kinds.append((value.constant is None, value.is_weight, facts and (facts.dtype, facts.rank, facts.device)))
    return tuple(kinds)


def with_room(members: list[Node], first: Node, columns: dict[int, list[Value]]) -> list[Node]:
    """The members from `first` on, and then those before it, as far as their weights stay below the limit."""
    if first not in members:
        return members
    start, room = members.index(first), _MOST_BYTES
    taken: list[Node] = []
    for node in members[start:] + members[:start]:
        room -= sum(_bytes(value) for value in columns[id(node)])
        if taken and room < 0:
            break
        taken.append(node)
    return sorted(taken, key=lambda node: node.order)


def _bytes(value: Value) -> int:
    facts = value.facts
    if not value.is_weight or facts is None or facts.shape is None or facts.dtype not in DTYPES:
        return 0
    return math.prod(facts.shape) * DTYPES[facts.dtype].itemsize
