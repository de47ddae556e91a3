"""Which ops of a graph change their operands in place, and which may return them."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from rewriter import torch_ir
from rewriter.language.schemas import UNDECLARED_ALIASES

_WITH_BLOCKS = ("prim::If", "prim::Loop")


def written_values(node: torch_ir.IRNode, op: str, operands: int) -> tuple[torch_ir.IRValue, ...]:
    """The operands whose memory an op with this name and number of operands changes; its blocks are left out."""
    if not may_write(op, operands):
        return ()
    return tuple(node.inputsAt(slot) for slot in _written_slots(str(node.schema()), op))


def writers(node: torch_ir.IRNode, op: str, operands: int) -> Iterator[tuple[str, tuple[torch_ir.IRValue, ...]]]:
    """The writes of a node and of the nodes in its blocks: the op and what it changes."""
    written = written_values(node, op, operands)
    if written:
        yield op, written
    if op in _WITH_BLOCKS:
        for block in node.blocks():
            for inner in block.nodes():
                yield from writers(inner, inner.kind(), inner.inputsSize())


@functools.lru_cache(maxsize=4096)
def has_writing_overload(op: str) -> bool:
    """Whether the op, or one in its blocks, may write at all: a first, quick question."""
    return op in _WITH_BLOCKS or any(schema.is_mutable for schema in torch_ir.schemas_of(op))


@functools.lru_cache(maxsize=4096)
def may_share(op: str) -> bool:
    """Whether a result of the op may share memory with an operand."""
    if op.startswith("prim::") or op in UNDECLARED_ALIASES:
        return True
    schemas = [schema for schema in torch_ir.schemas_of(op) if not any(a.is_out for a in schema.arguments)]
    return any(result.alias_info is not None for schema in schemas for result in schema.returns)


@functools.lru_cache(maxsize=4096)
def may_write(op: str, operands: int) -> bool:
    """Whether some overload of the op with this many operands writes to one."""
    return any(schema.is_mutable and len(schema.arguments) == operands for schema in torch_ir.schemas_of(op))


@functools.lru_cache(maxsize=1024)
def _written_slots(text: str, op: str) -> tuple[int, ...]:
    """The positions of the operands that the schema with this text writes to."""
    schema = next(schema for schema in torch_ir.schemas_of(op) if str(schema) == text)
    return tuple(index for index, argument in enumerate(schema.arguments) if argument.is_write)
