"""Proves that a match may be replaced: nothing outside reads its inside, and no write comes in between."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from rewriter import torch_ir
from rewriter.graph.match import Match
from rewriter.graph.view import LOOKING, NOT_CONSTANT, Node, Value, View
from rewriter.graph.writes import has_writing_overload, may_share, may_write, writers
from rewriter.language.schemas import UNDECLARED_ALIASES


@dataclasses.dataclass(slots=True)
class _Write:
    """One op that writes: where it stands, and the values whose memory it changes."""

    node: Node
    op: str
    written: tuple[torch_ir.IRValue, ...]


class Safety:
    """The writes of one graph, found once: rewrites add none and move none."""

    def __init__(self, view: View) -> None:
        self.writes = [
            _Write(node, op, written)
            for kind in sorted(filter(has_writing_overload, view.by_op))
            for node in view.by_op[kind]
            for op, written in writers(node.ir, node.op, len(node.inputs))
        ]
        self.writes.sort(key=lambda write: write.node.order)
        self.undeclared = False
        # What aliases what is known for the values that the graph has now; later ones are traced back to these.
        self.aliases: torch_ir.AliasDb | None = view.graph.alias_db() if self.writes else None
        if self.aliases is not None:
            self.follow_undeclared(view)
        self.original = {id(node) for node in view.nodes} if self.writes else set()
        # In-place ops of replacements. They change only what their own replacement made, as long as that stays.
        self.private_writers: set[Node] = set()

    def follow_undeclared(self, view: View) -> None:
        """Extends the writes to what shares memory with their targets although torch's analysis does not know it."""
        pairs = [
            (result.ir, operand.ir)
            for node in view.nodes
            if node.op in UNDECLARED_ALIASES
            for result in node.outputs
            for operand in node.inputs
            if operand.constant is NOT_CONSTANT
        ]
        for write in self.writes if pairs else ():
            targets = list(write.written)
            for target in targets:
                for one, other in (*pairs, *((operand, result) for result, operand in pairs)):
                    if self.may_alias(target, one) and all(other is not known for known in targets):
                        targets.append(other)
            write.written = tuple(targets)
        self.undeclared = bool(pairs)

    def may_alias(self, one: torch_ir.IRValue, other: torch_ir.IRValue) -> bool:
        return self.aliases is not None and bool(self.aliases.may_contain_alias(one, other))

    def made(self, match: Match, nodes: list[Node]) -> None:
        """Notes the nodes that a replacement made."""
        if match.pattern.writes:
            self.private_writers.update(node for node in nodes if may_write(node.op, len(node.inputs)))

    def place(self, match: Match) -> Node | str:
        """The node before which the replacement goes, or the reason why there is no such place."""
        inside = {id(node) for node in match.nodes}
        made = {id(value) for node in match.nodes for value in node.outputs}
        outputs = {id(value) for name in match.pattern.outputs for value in match.values(name)}
        consumers: list[Node] = []
        for node in match.nodes:
            for value in node.outputs:
                outside = [user for user, _ in value.uses if id(user) not in inside]
                if self.private_writers and not self.private_writers.isdisjoint(outside):
                    return f"{value.name} is changed in place"
                if id(value) in outputs:
                    consumers += outside
                elif outside:
                    return f"{value.name} is also used by {outside[0].op}"
        for name in match.pattern.fresh:
            if any(map(_is_returned, match.values(name))):
                return f"a result of the graph would share memory with what {name} is made of"
        operands = [value for name in sorted(match.pattern.reads & match.bound.keys()) for value in match.values(name)]
        for value in operands:
            if id(value) in made:
                return f"{value.name} is an operand and made by the match itself"
        last = max(match.nodes, key=_order)
        place = min((node for node in consumers if node.order < last.order), key=_order, default=last)
        for value in operands:
            if not self.can_be_there(value, place, inside):
                return f"{value.name} is made after {place.op} needs the result"
        return self.written(match, operands, last) or place

    def can_be_there(self, value: Value, place: Node, inside: set[int]) -> bool:
        """Whether the value is there at `place`, or can be: constants and looks at what is there can be moved."""
        maker = value.producer
        if maker is None or maker.op == "prim::Constant":
            return True
        if id(maker) in inside:
            return False
        if maker.order < place.order:
            return True
        if self.aliases is not None or maker.op not in LOOKING:
            return False
        return all(self.can_be_there(operand, place, inside) for operand in maker.inputs)

    def written(self, match: Match, operands: list[Value], last: Node) -> str | None:
        """None, or which write makes it unsafe to read and make everything at one place."""
        if self.aliases is None:
            return None
        reads = [ir for value in operands for ir in self.roots(value)]
        results = [ir for node in match.nodes for value in node.outputs for ir in self.roots(value)]
        prepared = [v.ir for name in match.pattern.sources for v in match.values(name) if v.role == "weight"]
        if not self.undeclared and not any(self.aliases.has_writers(ir) for ir in (*reads, *results, *prepared)):
            return None
        start = min(node.order for node in match.nodes)
        for write in self.writes:
            order = write.node.order
            if not write.node.alive:
                continue
            if order <= last.order and self.touches(write, prepared):
                return f"{write.op} may write to a weight that is prepared before the graph runs"
            if order < start:
                continue
            if order <= last.order and self.touches(write, (*reads, *results)):
                return f"{write.op} may write to what it reads or makes"
            if self.touches(write, results):
                return f"{write.op} may write to its result later"
            if match.pattern.aliasing and self.touches(write, reads):
                return f"{write.op} may write later to what its result shares memory with"
        return None

    def touches(self, write: _Write, values: Iterable[torch_ir.IRValue]) -> bool:
        return any(self.may_alias(target, value) for value in values for target in write.written)

    def roots(self, value: Value) -> list[torch_ir.IRValue]:
        """The values of the original graph whose memory the value may share; constants share none."""
        found: list[torch_ir.IRValue] = []
        seen: set[int] = set()
        pending = [value]
        while pending:
            current = pending.pop()
            producer = current.producer
            if id(current) in seen or current.role == "prepared":
                continue
            seen.add(id(current))
            if producer is None or (id(producer) in self.original and producer.op != "prim::Constant"):
                found.append(current.ir)
            else:
                pending += producer.inputs
        return found


def _is_returned(value: Value) -> bool:
    """Whether the graph returns the value or something that may share its memory."""
    pending, seen = [value], {id(value)}
    while pending:
        for user, _ in pending.pop().uses:
            if user.op == "prim::Return":
                return True
            if may_share(user.op):
                pending += [result for result in user.outputs if id(result) not in seen]
                seen.update(map(id, user.outputs))
    return False


def _order(node: Node) -> float:
    return node.order
