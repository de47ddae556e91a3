"""Traces a network of any size on a CPU without computing it: large results are memory that nobody has written to."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from rewriter import torch_ir
from rewriter.graph.canonical import canonicalise

# Calls on tensors no larger than this are computed: timesteps, positions, tables of frequencies.
_SMALL = 20_000
_CONVOLUTIONS = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}


def trace(
    module: torch.nn.Module, call: Callable[..., Any], example: Sequence[torch.Tensor]
) -> tuple[torch_ir.Graph, int]:
    """The canonical graph of `call(*example)`, which runs `module`, and how many weights it reads.

    Needs address space for the largest tensors, but no memory.
    """
    weights = [*module.parameters(), *module.buffers()]

    def shapes_only(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with _TracedConvolutions(), _Shapes():
            result = call(*tensors)
        return (result,) if isinstance(result, torch.Tensor) else (result[0],)

    graph = torch_ir.record(shapes_only, example, module, weights)
    kept = torch_ir.drop_unused(graph, len(example))
    canonicalise(graph)
    return graph, len(kept)


class _Shapes(TorchDispatchMode):
    """Gives calls on large tensors results of the right shape and strides, with whatever is in memory there."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # Torch's shape functions are Python, and under the tracer sizes are tensors: so they run where nobody traces.
        self._untraced = concurrent.futures.ThreadPoolExecutor(1)

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._untraced.shutdown()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if all(tensor.numel() <= _SMALL for tensor in tensors):
            return func(*args, **kwargs)
        if func._schema.is_mutable:
            return args[0]
        return _materialised(self._untraced.submit(_described, func, args, kwargs).result())


class _TracedConvolutions(TorchFunctionMode):
    """The tracer records `aten::_convolution`, which a dispatch mode would otherwise keep from it."""

    def __torch_function__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        rank = _CONVOLUTIONS.get(func)
        return func(*args, **kwargs) if rank is None else _convolution(rank, *args, **kwargs)


def _convolution(
    rank: int,
    x: Any,
    weight: Any,
    bias: Any = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    extents = [[value] * rank if isinstance(value, int) else list(value) for value in (stride, padding, dilation)]
    zeros = [0] * rank
    return torch.ops.aten._convolution.default(
        x, weight, bias, *extents, False, zeros, groups, False, False, True, True
    )


class _Plan:
    """A tensor to be made."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.shape, self.strides, self.dtype = tuple(tensor.shape), tensor.stride(), tensor.dtype


def _described(func: Any, args: Any, kwargs: Any) -> Any:
    def meta(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return torch.empty_strided(leaf.shape, leaf.stride(), dtype=leaf.dtype, device="meta")
        return torch.device("meta") if isinstance(leaf, torch.device) else leaf

    with torch.no_grad():
        results = func(*tree_map(meta, args), **tree_map(meta, kwargs))
    return tree_map(lambda leaf: _Plan(leaf) if isinstance(leaf, torch.Tensor) else leaf, results)


def _materialised(results: Any) -> Any:
    def made(leaf: Any) -> Any:
        return torch.empty_strided(leaf.shape, leaf.strides, dtype=leaf.dtype) if isinstance(leaf, _Plan) else leaf

    return tree_map(made, results)
