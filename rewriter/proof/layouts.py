"""Tensors with the same numbers in memory in different ways, each inside a larger storage, and kinds of numbers."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import torch

# Elements of the storage before and behind a tensor. A multiple of every vector width, so that a tensor that begins
# right behind it is aligned as a fresh one would be.
FENCE = 256


def placed(x: torch.Tensor, layout: str, chooser: random.Random, device: str = "cpu") -> torch.Tensor:
    """x, any shape and dtype, in the named layout on `device`, in a storage that is `outside` everywhere else.

    "expanded" gives the first slice of one dimension for all of that dimension. `chooser` decides what a layout leaves
    open: the order of the dimensions, the dimension that is expanded.
    """
    dims = range(x.dim())
    shape, order, offset, stride_0 = list(x.shape), list(dims), 0, None
    if layout == "channels_last" and x.dim() > 2:
        order = [0, *range(2, x.dim()), 1]
    elif layout == "permuted" and x.dim() > 1:
        while order == list(dims):
            chooser.shuffle(order)
    elif layout == "sliced" and x.dim():
        # The middle of a tensor that is wider in its last dimension.
        shape[-1] += 5
        offset = 2
    elif layout == "offset":
        # Not aligned to anything wider than an element.
        offset = 1
    elif layout == "expanded" and x.dim():
        stride_0 = chooser.choice([dim for dim in dims if shape[dim] > 1] or list(dims))
        shape[stride_0] = min(shape[stride_0], 1)
    strides = _strides(shape, order)
    span = sum((extent - 1) * stride for extent, stride in zip(x.shape, strides, strict=True)) + offset + 1
    if stride_0 is not None:
        strides[stride_0] = 0
        x = x.narrow(stride_0, 0, shape[stride_0]).expand(x.shape)
    storage = torch.full((2 * FENCE + max(span, 0) + (-span) % 8,), outside(x.dtype), dtype=x.dtype)
    view = storage.as_strided(x.shape, strides, FENCE + offset)
    own(view).copy_(own(x, view))
    return storage.to(device).as_strided(x.shape, strides, FENCE + offset)


def own(x: torch.Tensor, like: torch.Tensor | None = None) -> torch.Tensor:
    """Each element of x once: the dimensions that have stride 0 (in `like`) cut down to their first slice."""
    for dim, stride in enumerate((x if like is None else like).stride()):
        if stride == 0 and x.shape[dim] > 1:
            x = x.narrow(dim, 0, 1)
    return x


def outside(dtype: torch.dtype) -> Any:
    """What stands in memory that a program may not read: NaN where the dtype has it, else the smallest number."""
    if dtype.is_floating_point or dtype.is_complex:
        return math.nan
    return True if dtype == torch.bool else torch.iinfo(dtype).min


def _strides(shape: Sequence[int], order: Sequence[int]) -> list[int]:
    """The strides of a dense tensor whose dimensions lie in memory in this order, the outermost first."""
    strides = [1] * len(shape)
    step = 1
    for dim in reversed(order):
        strides[dim] = step
        step *= max(shape[dim], 1)
    return strides


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _tiny(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> torch.Tensor:
    """Numbers that are subnormal in the dtype, or whose squares are."""
    smallest = torch.finfo(dtype).tiny
    scales = (smallest / 4, math.sqrt(smallest))
    return _normal(shape, generator) * scales[int(torch.randint(2, (1,), generator=generator))]


def _sprinkled(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """NaN, Inf and -Inf at one place each, as far as there are places."""
    x = _normal(shape, generator)
    specials = torch.tensor([math.nan, math.inf, -math.inf], dtype=torch.float64)
    places = torch.randperm(x.numel(), generator=generator)[:3]
    first = int(torch.randint(3, (1,), generator=generator))
    x.view(-1)[places] = specials.roll(first)[: len(places)]
    return x


# Numbers as f64, to be rounded to the dtype under test.
VALUES: dict[str, Callable[[tuple[int, ...], torch.dtype, torch.Generator], torch.Tensor]] = {
    "normal": lambda shape, _, generator: _normal(shape, generator),
    "large_mean": lambda shape, _, generator: _normal(shape, generator) + 100.0,
    "large_magnitude": lambda shape, _, generator: _normal(shape, generator) * 100.0,
    "subnormal": _tiny,
    "constant": lambda shape, _, generator: torch.full(
        shape, float(torch.randn(1, generator=generator)), dtype=torch.float64
    ),
    "nan_inf": lambda shape, _, generator: _sprinkled(shape, generator),
}
