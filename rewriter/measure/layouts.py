"""Learns the memory order that every value of a graph really has, by running the graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from rewriter import torch_ir

_OBSERVERS: list[Callable[[torch.Tensor, int], None]] = []
_LIBRARY = torch.library.Library("rewriter_measure", "DEF")
_LIBRARY.define("observe(Tensor x, int index) -> ()")
_LIBRARY.impl("observe", lambda x, index: _OBSERVERS[-1](x, index), "CompositeExplicitAutograd")


def record_layouts(graph: torch_ir.Graph, arguments: Sequence[torch.Tensor]) -> None:
    """Runs `graph` once and writes the type of each tensor into it, strides included.

    A rule that changes the memory order of one value changes that of all that follows; the recorded types do not know.
    """
    watched = graph.copy()
    for index, value in enumerate(_tensors(watched)):
        torch_ir.insert_after(watched, value.node(), "rewriter_measure::observe", [value, index])
    originals = _tensors(graph)

    def observe(x: torch.Tensor | int | float, index: int) -> None:
        # Torch hands a number that it has wrapped in a tensor over as that number; it has no memory order.
        if isinstance(x, torch.Tensor):
            originals[index].inferTypeFrom(x)

    _OBSERVERS.append(observe)
    try:
        with torch.no_grad(), torch_ir.plain_executor():
            torch_ir.function_from_graph(watched)(*arguments)
    finally:
        _OBSERVERS.pop()


def _tensors(graph: torch_ir.Graph) -> list[torch_ir.IRValue]:
    """The tensors that nodes make, in an order that a copy shares."""
    return [value for node in graph.nodes() for value in node.outputs() if value.type().kind() == "TensorType"]
