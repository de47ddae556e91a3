"""Runs a finished graph."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from rewriter import torch_ir


class Runner(Protocol):
    """Executes one graph. Further runners (CUDA graphs, say) take this one's place in a program.

    `activations`: the call's tensors, then its live numbers as 0-dim CPU tensors. `weights`: weights, then prepared
    weights; their storage stays the same from call to call unless the caller has changed the module.
    """

    def __call__(
        self, activations: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]: ...


class FunctionRunner:
    """Runs the graph node by node, on whatever device its inputs are."""

    def __init__(self, graph: torch_ir.Graph) -> None:
        self._function = torch_ir.function_from_graph(graph)

    def __call__(
        self, activations: Sequence[torch.Tensor], weights: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        with torch_ir.plain_executor(), torch.no_grad():
            result = self._function(*activations, *weights)
        return (result,) if isinstance(result, torch.Tensor) else tuple(result)
