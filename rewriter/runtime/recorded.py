"""One recorded call: fixed places for what it reads and gives, its kernels, and what is not computed at every step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeAlias

import torch

from rewriter import torch_ir
from rewriter.runtime.hoisting import Split, read_by_host, split
from rewriter.runtime.runner import FunctionRunner
from rewriter.runtime.watched import Watched

Tensors: TypeAlias = Sequence[torch.Tensor]
Function: TypeAlias = Callable[[], tuple[torch.Tensor, ...]]
# Records what a function does on the device: the function that does it again, and the tensors that hold its results.
Recorder: TypeAlias = Callable[[Function], tuple[Callable[[], None], tuple[torch.Tensor, ...]]]


class NotRecordable(Exception):
    """A call that cannot be replayed; the message says why."""


class Replay:
    """One recorded call: fixed places for what it reads, the kernels, and fixed places of the results.

    `steady`: for each activation, whether it is expected to be the same tensor at the next call. What depends on
    steady activations, weights, extents and the numbers of the key only is computed when one of the first two has
    changed, outside the recording.
    """

    def __init__(
        self,
        graph: torch_ir.Graph,
        activations: Tensors,
        weights: Tensors,
        steady: Sequence[bool],
        state: int | None,
        record: Recorder,
    ) -> None:
        self._device = device_of((*activations, *weights))
        fixed = key_numbers(activations, read_by_host(graph))
        self._held = [self._place(tensor, index in fixed) for index, tensor in enumerate(activations)]
        self._watched = Watched()
        first = len(activations)
        kept_steady = [index for index, stays in enumerate(steady) if stays and index not in fixed]
        invariant = {*kept_steady, *fixed, *range(first, first + len(weights))} if kept_steady or fixed else set()
        self._split: Split | None = split(graph, invariant) if invariant else None
        self._steady = kept_steady if self._split else []
        self._state: tuple[Any, ...] | None = None
        self._kept: list[torch.Tensor] = []
        everything = [*self._held, *weights]
        if self._split is None:
            body = FunctionRunner(graph)
            inputs = everything
        else:
            self._prologue = FunctionRunner(self._split.prologue)
            self._refresh(weights, state)
            body = FunctionRunner(self._split.body)
            inputs = [*(everything[index] for index in self._split.body_inputs), *self._kept]
        self.play, self._results = record(lambda: body(inputs, ()))
        self._watched.look(activations)

    @property
    def hoisted(self) -> int:
        """Values that are computed only when what they depend on has changed."""
        return 0 if self._split is None else self._split.kept

    @property
    def hoisted_from(self) -> list[int]:
        """The positions of the weights that these are computed from."""
        first = len(self._held)
        return [index - first for index in (self._split.prologue_inputs if self._split else ()) if index >= first]

    def __call__(self, activations: Tensors, weights: Tensors, state: int | None) -> tuple[torch.Tensor, ...]:
        # What is not hoisted is always copied: a write that torch does not see, by a kernel of the caller's own, must
        # not be missed in the sample.
        same = self._watched.unchanged(activations)
        moved = [index for index, is_same in enumerate(same) if not (is_same and index in self._steady)]
        if moved:
            with torch.no_grad():
                torch._foreach_copy_([self._held[index] for index in moved], [activations[index] for index in moved])
            self._watched.look(activations)
        if self._split is not None and (
            any(index in moved for index in self._steady) or self._state != self._stamp(weights, state)
        ):
            self._refresh(weights, state)
        self.play()
        fresh = [torch.empty_like(result) for result in self._results]
        torch._foreach_copy_(fresh, list(self._results))
        return tuple(fresh)

    def _place(self, tensor: torch.Tensor, fixed: bool) -> torch.Tensor:
        if tensor.device == self._device or fixed:
            return tensor.detach().clone()
        if tensor.numel() != 1:
            raise NotRecordable(f"an argument of {tensor.numel()} elements lies on the {tensor.device.type}")
        return tensor.detach().to(self._device)

    def _stamp(self, weights: Tensors, state: int | None) -> tuple[Any, ...]:
        return (state, *(weights[position]._version for position in self.hoisted_from))

    def _refresh(self, weights: Tensors, state: int | None) -> None:
        assert self._split is not None
        everything = [*self._held, *weights]
        fresh = self._prologue([everything[index] for index in self._split.prologue_inputs], ())
        if self._kept:
            with torch.no_grad():
                torch._foreach_copy_(self._kept, list(fresh))
        else:
            self._kept = [tensor.clone(memory_format=torch.preserve_format) for tensor in fresh]
        self._state = self._stamp(weights, state)


def record_kernels(function: Function) -> tuple[Callable[[], None], tuple[torch.Tensor, ...]]:
    """Records what `function` launches as a CUDA graph, in a pool of memory that all graphs of a device share."""
    from rewriter.measure.recordings import RUNNING, beside, record

    with beside():
        function()
    torch.cuda.synchronize()
    # What the calls before needed is free now, and the recording's memory comes from elsewhere.
    torch.cuda.empty_cache()
    graph, results = record(function, RUNNING)
    return graph.replay, results


def device_of(tensors: Tensors) -> torch.device:
    return next((tensor.device for tensor in tensors if tensor.device.type != "cpu"), torch.device("cpu"))


def key_numbers(activations: Tensors, read: Collection[int]) -> frozenset[int]:
    """The positions of the numbers that a recording is made for: fractions, and integers among `read`, which the host
    reads while it launches kernels."""
    return frozenset(
        index
        for index, tensor in enumerate(activations)
        if is_number(tensor)
        or (index in read and tensor.dim() == 0 and tensor.device.type == "cpu" and tensor.dtype == torch.int64)
    )


def is_number(tensor: torch.Tensor) -> bool:
    """Whether this is a live number of fractional value. A kernel is launched with it, so it belongs to the key."""
    return tensor.dim() == 0 and tensor.device.type == "cpu" and tensor.dtype == torch.float64
