"""Brings a traced graph into the one form that rules are written for."""

from __future__ import annotations

from typing import Any

import torch

from rewriter import torch_ir
from rewriter.graph.writes import writers

# Tensor arithmetic on sizes, and the same on plain integers.
_INTEGER_OPS = {
    "aten::add": "aten::add",
    "aten::sub": "aten::sub",
    "aten::mul": "aten::mul",
    "aten::floor_divide": "aten::floordiv",
    "aten::remainder": "aten::remainder",
}
_DROPOUTS = ("aten::dropout", "aten::alpha_dropout", "aten::feature_dropout", "aten::feature_alpha_dropout")
# What gives a result of its first operand's extents.
_ALIKE = ("aten::layer_norm", "aten::group_norm", "aten::rms_norm")
# The arguments that `aten::convolution` has; `aten::_convolution` adds four flags that only choose among cuDNN's
# algorithms and are read from torch's global settings again when the graph runs.
_CONVOLUTION_ARGUMENTS = 9


def canonicalise(graph: torch_ir.Graph) -> None:
    """Rewrites `graph` in place: simplified, one convolution op, sizes as plain integers instead of tensors."""
    declare_aliases(graph)
    torch_ir.simplify(graph)
    for node in graph.findAllNodes("aten::_convolution"):
        _plain_convolution(graph, node)
    for node in graph.findAllNodes("aten::size"):
        _earliest(node)
    integers = _Integers(graph)
    for kind in ("aten::Int", "aten::ScalarImplicit"):
        for node in graph.findAllNodes(kind):
            integers.replace(node)
    torch_ir.clean(graph)


def declare_aliases(graph: torch_ir.Graph) -> None:
    """Takes out every dropout outside of training whose operand or result is written to, in place.

    It returns its operand itself, but its schema promises a new tensor, and torch's own passes believe that.
    """
    dropouts = [node for kind in _DROPOUTS for node in graph.findAllNodes(kind) if node.inputsAt(2).toIValue() is False]
    while dropouts:
        written = [v for node in graph.nodes() for _, vs in writers(node, node.kind(), node.inputsSize()) for v in vs]
        aliases = graph.alias_db() if written else None
        found = [node for node in dropouts if any(_is_written(aliases, v, node) for v in written)]
        for node in found:
            node.output().replaceAllUsesWith(node.inputsAt(0))
            dropouts.remove(node)
            node.destroy()
        if not found:
            return


def _is_written(aliases: torch_ir.AliasDb, written: torch_ir.IRValue, node: torch_ir.IRNode) -> bool:
    return any(aliases.may_contain_alias(written, value) for value in (node.inputsAt(0), node.output()))


def _plain_convolution(graph: torch_ir.Graph, node: torch_ir.IRNode) -> None:
    inputs = [node.inputsAt(index) for index in range(_CONVOLUTION_ARGUMENTS)]
    plain = torch_ir.insert_before(graph, node, "aten::convolution", inputs)
    plain.output().setType(node.output().type())
    node.output().replaceAllUsesWith(plain.output())
    node.destroy()


def _earliest(size: torch_ir.IRNode) -> None:
    """Has a size read where its tensor first has these extents: as a reader of a norm it would keep rules away."""
    while size.inputsAt(0).node().kind() in _ALIKE:
        size.replaceInput(0, size.inputsAt(0).node().inputsAt(0))


class _Integers:
    """Computes on integers what a trace computes on tensors made from sizes: size -> NumToTensor -> ... -> Int."""

    def __init__(self, graph: torch_ir.Graph) -> None:
        self.graph = graph
        self.known: dict[int, Any] = {}

    def replace(self, node: torch_ir.IRNode) -> None:
        integer = self.integer(node.inputsAt(0))
        if integer is not None:
            node.output().replaceAllUsesWith(integer)
            node.destroy()

    def integer(self, value: torch_ir.IRValue) -> Any:
        """The integer twin of a size tensor, or None if it is not one. New nodes stand beside their tensor twins."""
        unique = value.unique()
        if unique not in self.known:
            self.known[unique] = self._make(value)
        return self.known[unique]

    def _make(self, value: torch_ir.IRValue) -> Any:
        node = value.node()
        kind = node.kind()
        if kind == "prim::NumToTensor":
            return node.inputsAt(0) if node.inputsAt(0).type().kind() == "IntType" else None
        if kind == "prim::Constant":
            constant = value.toIValue()
            if isinstance(constant, torch.Tensor) and constant.dim() == 0:
                constant = constant.item()
            return torch_ir.insert_constant(self.graph, constant) if type(constant) is int else None
        if kind not in _INTEGER_OPS or node.inputsSize() > 3:
            return None
        if node.inputsSize() == 3 and node.inputsAt(2).toIValue() != 1:
            return None
        operands = [self.operand(node.inputsAt(index)) for index in range(2)]
        if any(operand is None for operand in operands):
            return None
        twin = torch_ir.insert_before(self.graph, node, _INTEGER_OPS[kind], operands)
        twin.output().setType(torch_ir.int_type())
        return twin.output()

    def operand(self, value: torch_ir.IRValue) -> Any:
        return value if value.type().kind() == "IntType" else self.integer(value)
