"""Which rules to try at a node, and which nodes to look at again after a rewrite."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterable

from rewriter.graph.pattern import Pattern
from rewriter.graph.view import Node, Value, View

# Beyond so many readers of a value, a change near it is not followed to each of them.
_MANY_READERS = 32


class Index:
    """The patterns of a phase by root op, and by the ops that make the root's operands."""

    def __init__(self, patterns: list[Pattern]) -> None:
        self.ops: dict[str, list[Pattern]] = {}
        for pattern in patterns:
            for op in sorted(pattern.root_ops):
                self.ops.setdefault(op, []).append(pattern)
        self.known: dict[tuple[object, ...], list[Pattern]] = {}

    def patterns(self, node: Node, *, everything: bool) -> list[Pattern]:
        """Those that may match at the node; with `everything` also those that its operands' makers rule out."""
        if everything:
            return self.ops[node.op]
        makers = [value.producer.op if value.producer is not None else "" for value in node.inputs]
        key = (node.op, node.unpacked, *makers)
        if key not in self.known:
            self.known[key] = [pattern for pattern in self.ops[node.op] if pattern.may_start_at(node)]
        return self.known[key]


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """The nodes that a rewrite made, and the values that now have fewer readers."""

    made: list[Node]
    operands: list[Value]


class Neighbourhood:
    """Finds the nodes where a change may have made a pattern match.

    `complete`: no value with very many readers was passed over; otherwise the phase looks at every node again.
    """

    def __init__(self, patterns: list[Pattern]) -> None:
        self.reach = max(pattern.depth for pattern in patterns)
        self.sideways = any(pattern.sideways for pattern in patterns)
        # Only through these does a change reach a root that does not read it directly.
        self.between = {call.op for pattern in patterns for move in pattern.moves for call in move.step.calls}
        self.between.add("prim::ListConstruct")
        self.complete = True

    def readers(self, change: Change) -> list[Node]:
        values = [value for node in change.made for value in node.outputs]
        if self.sideways or not change.made:
            values += [value for node in change.made for value in node.inputs] + change.operands
        else:
            values += [value for value in change.operands if value.producer is not None]
        found = dict.fromkeys(change.made)
        front = self.few(dict.fromkeys(values))
        for _ in range(self.reach):
            nodes = dict.fromkeys(user for value in front for user, _ in value.uses if user not in found)
            found.update(nodes)
            front = self.few(value for node in nodes if node.op in self.between for value in node.outputs)
            if not front:
                break
        return list(found)

    def few(self, values: Iterable[Value]) -> list[Value]:
        kept: list[Value] = []
        for value in values:
            if len(value.uses) <= _MANY_READERS:
                kept.append(value)
            else:
                self.complete = False
        return kept


class Tier:
    """The patterns of one benefit, and the nodes at which they are still to be tried."""

    def __init__(self, patterns: list[Pattern]) -> None:
        self.index = Index(patterns)
        self.near = Neighbourhood(patterns)
        self.pending: deque[Node] = deque()
        self.waiting: set[Node] = set()

    def start(self, view: View) -> None:
        """All nodes that may be roots, in the graph's order."""
        roots = (node for op in self.index.ops for node in view.by_op.get(op, ()) if node.alive)
        self.pending = deque(sorted(roots, key=_order))
        self.waiting = set(self.pending)
        self.near.complete = True

    def next(self) -> Node:
        node = self.pending.popleft()
        self.waiting.discard(node)
        return node

    def look_again(self, change: Change) -> None:
        """Adds the nodes where the change may have made a pattern match."""
        fresh = [node for node in self.near.readers(change) if node.op in self.index.ops and node not in self.waiting]
        self.pending.extend(fresh)
        self.waiting.update(fresh)


def _order(node: Node) -> float:
    return node.order
