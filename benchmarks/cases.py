"""What the benchmark of the ops calls: an op with drawn arguments."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Draw:
    """Draws tensors of normal values. Without `fill` their values are what the memory held, for who needs none."""

    device: torch.device
    dtype: torch.dtype = torch.float16
    fill: bool = True

    def __call__(
        self, *shape: int, channels_last: bool = False, dtype: torch.dtype | None = None, scale: float = 1.0
    ) -> torch.Tensor:
        """A tensor of the shape, [N, C, ...] in [N, ..., C] order with `channels_last`; `scale`: its deviation."""
        order = (shape[0], *shape[2:], shape[1]) if channels_last else shape
        tensor = torch.empty(order, device=self.device, dtype=dtype or self.dtype)
        if self.fill:
            tensor.normal_(std=scale)
        return tensor.movedim(-1, 1) if channels_last else tensor


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of `rewriter::OP`: `make` draws its arguments, `label` tells it from the op's others.

    memory: the bytes that no implementation can avoid to move, from the arguments and the results; by default each
    element of each tensor once.
    """

    op: str
    label: str
    make: Callable[[Draw], tuple[Any, ...]]
    memory: Callable[[tuple[Any, ...], list[torch.Tensor]], int] | None = None

    def bytes(self, arguments: tuple[Any, ...], results: list[torch.Tensor]) -> int:
        if self.memory is not None:
            return self.memory(arguments, results)
        return sum(size(each) for each in (*arguments, *results) if isinstance(each, torch.Tensor))


def size(tensor: torch.Tensor) -> int:
    """The bytes of a tensor's elements, each place in memory once."""
    places = 1
    for extent, stride in zip(tensor.shape, tensor.stride(), strict=True):
        places *= extent if stride else min(extent, 1)
    return places * tensor.element_size()
