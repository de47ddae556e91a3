"""Records a call with torch's tracer, directly into a graph whose inputs are tensors and weights.

`torch.jit.trace` would build a TorchScript class for every submodule first. Those are never freed (12 MiB for each
trace of a small UNet), and making them takes longer than the trace.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.jit import _trace as trace_internals

from rewriter.errors import UnsupportedTorch
from rewriter.torch_ir import Graph

for _owner, _name in ((torch._C, "_create_graph_by_tracing"), (trace_internals, "_trace_module_map")):
    if not hasattr(_owner, _name):
        raise UnsupportedTorch(
            f"torch {torch.__version__} lacks {_owner.__name__}.{_name}. Supported: torch 2.11 to 2.14."
        )

_create_graph: Callable[..., tuple[Graph, Any]] = getattr(torch._C, "_create_graph_by_tracing")  # noqa: B009

# The tracer finds the names of modules in a global.
_TRACING = threading.Lock()


def trace(
    function: Callable[..., tuple[torch.Tensor, ...]],
    example: Sequence[torch.Tensor],
    module: torch.nn.Module,
    weights: Sequence[torch.Tensor],
) -> Graph:
    """The graph of `function(*example)`, with one further input for each of `weights`, which `function` reads itself.

    Nodes carry the path of the submodule of `module` that made them as their scope. Raises what `function` raises.
    """
    names = {child: f"__module.{path}" if path else "__module" for path, child in module.named_modules()}

    def call(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return function(*inputs[: len(example)])

    with _TRACING, torch.inference_mode(False), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = trace_internals._trace_module_map
        trace_internals._trace_module_map = names
        try:
            graph, _ = _create_graph(call, (*example, *weights), lambda _: "", False, False)
        finally:
            trace_internals._trace_module_map = before
    return graph


def drop_unused(graph: Graph, first: int) -> list[int]:
    """Removes the inputs from position `first` on that nothing reads; returns which of them stay, from 0 on."""
    used = [bool(value.uses()) for value in list(graph.inputs())[first:]]
    for index in reversed(range(len(used))):
        if not used[index]:
            graph.eraseInput(first + index)
    return [index for index, is_used in enumerate(used) if is_used]
