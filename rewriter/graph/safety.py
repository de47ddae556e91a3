"""Proves that a match may be replaced: nothing outside reads its inside, and no write comes in between."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator

from rewriter import torch_ir
from rewriter.graph.matcher import Match
from rewriter.graph.view import Node, Value, View


@dataclasses.dataclass(frozen=True, slots=True)
class _Write:
    """One op that writes: where it stands, and the values whose memory it changes."""

    node: Node
    op: str
    written: tuple[torch_ir.IRValue, ...]


class Safety:
    """The writes of one graph, found once: rewrites add none and move none."""

    def __init__(self, view: View) -> None:
        self.writes = [write for node in view.nodes for write in _writes(node, node.ir)]
        # What aliases what is known for the values that the graph has now; later ones are traced back to these.
        self.aliases: torch_ir.AliasDb | None = view.graph.alias_db() if self.writes else None
        self.original = {id(node) for node in view.nodes} if self.writes else set()

    def place(self, match: Match) -> Node | str:
        """The node before which the replacement goes, or the reason why there is no such place."""
        inside = {id(node) for node in match.nodes}
        made = {id(value) for node in match.nodes for value in node.outputs}
        outputs = {id(value) for name in match.pattern.outputs for value in match.values(name)}
        consumers: list[Node] = []
        for node in match.nodes:
            for value in node.outputs:
                outside = [user for user, _ in value.uses if id(user) not in inside]
                if id(value) in outputs:
                    consumers += outside
                elif outside:
                    return f"{value.name} is also used by {outside[0].op}"
        operands = [value for name in sorted(match.pattern.reads & match.bound.keys()) for value in match.values(name)]
        for value in operands:
            if id(value) in made:
                return f"{value.name} is an operand and made by the match itself"
        last = max(match.nodes, key=_order)
        place = min((node for node in consumers if node.order < last.order), key=_order, default=last)
        for value in operands:
            # A constant can be moved; everything else has to be there.
            if value.producer is not None and value.producer.op != "prim::Constant":
                if value.producer.order >= place.order:
                    return f"{value.name} is made after {place.op} needs the result"
        return self.written(match, operands, last) or place

    def written(self, match: Match, operands: list[Value], last: Node) -> str | None:
        """None, or which write makes it unsafe to read and make everything at one place."""
        if self.aliases is None:
            return None
        reads = [ir for value in operands for ir in self.roots(value)]
        results = [ir for node in match.nodes for value in node.outputs for ir in self.roots(value)]
        if not any(self.aliases.has_writers(ir) for ir in (*reads, *results)):
            return None
        start = min(node.order for node in match.nodes)
        for write in self.writes:
            order = write.node.order
            if order < start or not write.node.alive:
                continue
            if order <= last.order and self.touches(write, (*reads, *results)):
                return f"{write.op} may write to what it reads or makes"
            if self.touches(write, results):
                return f"{write.op} may write to its result later"
            if match.pattern.aliasing and self.touches(write, reads):
                return f"{write.op} may write later to what its result shares memory with"
        return None

    def touches(self, write: _Write, values: Iterable[torch_ir.IRValue]) -> bool:
        assert self.aliases is not None
        return any(self.aliases.may_contain_alias(target, value) for value in values for target in write.written)

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


def _order(node: Node) -> float:
    return node.order


def _writes(node: Node, ir: torch_ir.IRNode) -> Iterator[_Write]:
    """The writes of a node and of the nodes in its blocks."""
    op = node.op if ir is node.ir else ir.kind()
    operands = len(node.inputs) if ir is node.ir else ir.inputsSize()
    if _mutable(op, operands) and "!" in str(ir.schema()):
        slots = _written_slots(str(ir.schema()), op)
        yield _Write(node, op, tuple(ir.inputsAt(slot) for slot in slots))
    if op in ("prim::If", "prim::Loop"):
        for block in ir.blocks():
            for inner in block.nodes():
                yield from _writes(node, inner)


@functools.lru_cache(maxsize=4096)
def _mutable(op: str, operands: int) -> bool:
    """Whether some overload of the op with this many operands writes to one."""
    return any(schema.is_mutable and len(schema.arguments) == operands for schema in torch_ir.schemas_of(op))


@functools.lru_cache(maxsize=1024)
def _written_slots(text: str, op: str) -> tuple[int, ...]:
    """The positions of the operands that the schema with this text writes to."""
    schema = next(schema for schema in torch_ir.schemas_of(op) if str(schema) == text)
    return tuple(
        index
        for index, argument in enumerate(schema.arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    )
