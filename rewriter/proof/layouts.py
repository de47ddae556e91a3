"""Tensors with the same numbers in memory in different ways, and numbers of different kinds."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch


def _contiguous(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous()


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    return x.contiguous(memory_format=formats[x.dim()]) if x.dim() in formats else x.contiguous()


def _sliced(x: torch.Tensor) -> torch.Tensor:
    """The middle of a tensor that is wider in its last dimension."""
    if x.dim() == 0:
        return x
    wide = torch.full((*x.shape[:-1], x.shape[-1] + 5), math.nan if x.is_floating_point() else 1).to(x.dtype)
    wide[..., 2 : 2 + x.shape[-1]] = x
    return wide[..., 2 : 2 + x.shape[-1]]


def _offset(x: torch.Tensor) -> torch.Tensor:
    """Contiguous, but one element away from where the storage begins: not aligned to anything wider."""
    storage = torch.full((x.numel() + 1,), math.nan if x.is_floating_point() else 1).to(x.dtype)
    view = storage[1:].view(x.shape)
    return view.copy_(x)


def _expanded(x: torch.Tensor) -> torch.Tensor:
    """The first row for all rows, with stride 0."""
    return x[:1].expand(x.shape) if x.dim() and x.shape[0] else x


def _permuted(x: torch.Tensor) -> torch.Tensor:
    """Stored with its dimensions in reverse order."""
    order = list(reversed(range(x.dim())))
    return x.permute(order).contiguous().permute(order)


LAYOUTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "contiguous": _contiguous,
    "channels_last": _channels_last,
    "sliced": _sliced,
    "offset": _offset,
    "expanded": _expanded,
    "permuted": _permuted,
}


def _normal(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def _sprinkled(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    x = _normal(shape, generator)
    specials = torch.tensor([math.nan, math.inf, -math.inf], dtype=torch.float64)
    flat = x.view(-1)
    for _ in range(min(3, flat.numel())):
        at = int(torch.randint(flat.numel(), (1,), generator=generator))
        flat[at] = specials[int(torch.randint(3, (1,), generator=generator))]
    return x


# Numbers as f64, to be rounded to the dtype under test.
VALUES: dict[str, Callable[[tuple[int, ...], torch.Generator], torch.Tensor]] = {
    "normal": _normal,
    "large_mean": lambda shape, generator: _normal(shape, generator) + 100.0,
    "large_magnitude": lambda shape, generator: _normal(shape, generator) * 100.0,
    "subnormal": lambda shape, generator: _normal(shape, generator) * 1e-7,
    "constant": lambda shape, generator: torch.full(
        shape, float(torch.randn(1, generator=generator)), dtype=torch.float64
    ),
    "nan_inf": _sprinkled,
}
