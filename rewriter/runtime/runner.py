"""Runs a finished graph."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

import torch

from rewriter import torch_ir


class Runner(Protocol):
    """Executes one graph.

    `activations`: the call's tensors, then its live numbers as 0-dim CPU tensors. `weights`: weights, then prepared
    weights; their storage stays the same from call to call unless the caller has changed the module. `state`: names
    the module's state; another one than before means that any weight may have been written to.
    """

    @property
    def hoisted_from(self) -> Collection[int]:
        """The positions of the weights that are not read at every call, but what was computed from them."""
        ...

    def __call__(
        self, activations: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], state: int | None = None
    ) -> tuple[torch.Tensor, ...]: ...


class FunctionRunner:
    """Runs the graph node by node, on whatever device its inputs are."""

    hoisted_from: Collection[int] = ()

    def __init__(self, graph: torch_ir.Graph) -> None:
        self._function = torch_ir.function_from_graph(graph)

    def __call__(
        self,
        activations: Sequence[torch.Tensor],
        weights: Sequence[torch.Tensor],
        state: int | None = None,  # noqa: ARG002 - reads every weight anew
    ) -> tuple[torch.Tensor, ...]:
        with torch_ir.plain_executor(), torch.no_grad():
            result = self._function(*activations, *weights)
        return (result,) if isinstance(result, torch.Tensor) else tuple(result)
