"""Weights derived from weights: computed once, kept as recipes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch

from rewriter import torch_ir
from rewriter.ops.low_precision import FORMATS, quantise_rows

Option = int | tuple[int, ...]

_FILTERS = 64
_QUANTISED_AT_ONCE = 2**24


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A recipe. `sources` are positions in the list of weights followed by the recipes before this one."""

    function: str
    sources: tuple[int, ...]
    options: tuple[tuple[str, Option], ...]


def concat(*weights: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """All weights one after the other along `dim`."""
    return torch.cat(weights, dim)


def interleave(weight: torch.Tensor, dim: int = 0) -> torch.Tensor:
    """The two halves of `dim` alternating: [a0, a1, b0, b1] becomes [a0, b0, a1, b1].

    Raises ValueError if the extent is odd.
    """
    if weight.shape[dim] % 2:
        raise ValueError(f"interleave needs an even extent, found {weight.shape[dim]}")
    first, second = weight.chunk(2, dim)
    return torch.stack((first, second), dim if dim < 0 else dim + 1).flatten(
        *((dim - 1, dim) if dim < 0 else (dim, dim + 1))
    )


def transpose(weight: torch.Tensor, dim0: int, dim1: int) -> torch.Tensor:
    """The weight with two dimensions exchanged, contiguous."""
    return weight.transpose(dim0, dim1).contiguous()


def reshape(weight: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    return weight.reshape(shape)


def channels_last(weight: torch.Tensor) -> torch.Tensor:
    """A 4-D or 5-D weight with its channels innermost in memory.

    Raises ValueError for another rank.
    """
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    if weight.dim() not in formats:
        raise ValueError(f"channels_last needs 4 or 5 dimensions, found {weight.dim()}")
    return weight.contiguous(memory_format=formats[weight.dim()])


def upsampled(weight: torch.Tensor) -> torch.Tensor:
    """Filters of 3x3 pixels over a picture that is upsampled by two to the nearest, as filters of 2x2 of its pixels.

    [M, C, 3, 3] becomes [4 M, C, 2, 2], channels innermost, as `rewriter::upsample_conv` takes it. Sums are rounded
    once. Raises ValueError for another shape.
    """
    if weight.dim() != 4 or weight.shape[2:] != (3, 3):
        raise ValueError(f"upsampled needs filters of 3x3 pixels, found {list(weight.shape)}")
    filters, channels = weight.shape[:2]
    shape = (4 * filters, channels, 2, 2)
    result = torch.empty(shape, dtype=weight.dtype, device=weight.device, memory_format=torch.channels_last)
    # Some at a time: sums are wider than weights.
    for wide, narrow in zip(weight.split(_FILTERS), result.unflatten(0, (4, filters)).split(_FILTERS, 1), strict=True):
        for row, rows in enumerate(_pairs(wide.to(torch.promote_types(weight.dtype, torch.float32)), 2)):
            for column, part in enumerate(_pairs(rows, 3)):
                narrow[2 * row + column] = part
    return result


def _pairs(weight: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three pixels along `dim` as two: for even places, which begin with the pixel before, and for odd ones."""
    before, here, after = weight.unbind(dim)
    return torch.stack((before, here + after), dim), torch.stack((before + here, after), dim)


def rows_f8e4m3(weight: torch.Tensor) -> torch.Tensor:
    """The weight's rows in f8e4m3, each over its scale: see `rewriter.ops.low_precision`."""
    return _rows(weight, "f8e4m3")[0]


def scales_f8e4m3(weight: torch.Tensor) -> torch.Tensor:
    """The scales that belong to `rows_f8e4m3`: [N, 1], f32, for a weight [N, K]."""
    return _rows(weight, "f8e4m3")[1]


def filters_f8e4m3(weight: torch.Tensor) -> torch.Tensor:
    """A convolution's filters in f8e4m3, each over its scale, with their channels innermost."""
    return channels_last(_rows(weight.flatten(1), "f8e4m3")[0].view(weight.shape))


def filter_scales_f8e4m3(weight: torch.Tensor) -> torch.Tensor:
    """The scales that belong to `filters_f8e4m3`: [M, 1], f32, for filters [M, C, ...]."""
    return _rows(weight.flatten(1), "f8e4m3")[1]


def rows_i8(weight: torch.Tensor) -> torch.Tensor:
    """The weight's rows in i8, each over its scale: see `rewriter.ops.low_precision`."""
    return _rows(weight, "i8")[0]


def scales_i8(weight: torch.Tensor) -> torch.Tensor:
    """The scales that belong to `rows_i8`: [N, 1], f32, for a weight [N, K]."""
    return _rows(weight, "i8")[1]


def _rows(weight: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """`quantise_rows`, some rows at a time: merged projections can be a quarter of a model, and f32 is twice that."""
    codes = torch.empty(weight.shape, dtype=FORMATS[kind], device=weight.device)
    scales = torch.empty((*weight.shape[:-1], 1), dtype=torch.float32, device=weight.device)
    count = max(1, _QUANTISED_AT_ONCE // max(1, weight[:1].numel()))
    for rows, into, sizes in zip(weight.split(count), codes.split(count), scales.split(count), strict=True):
        made = quantise_rows(rows, kind)
        into.copy_(made[0])
        sizes.copy_(made[1])
    return codes, scales


def bias_for(weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The bias, dense, or zeros: [N] in the dtype of the weight [N, K].

    Raises ValueError for a bias of another shape or dtype.
    """
    if bias is None:
        return weight.new_zeros(weight.shape[0])
    if bias.shape != weight.shape[:1] or bias.dtype != weight.dtype:
        raise ValueError(
            f"bias_for needs a bias of {weight.shape[0]} {weight.dtype}, found {list(bias.shape)} {bias.dtype}"
        )
    return bias.contiguous()


def largest(weight: torch.Tensor) -> torch.Tensor:
    """The largest magnitude: [1], f32. Raises ValueError for a weight without elements."""
    if not weight.numel():
        raise ValueError("largest needs an element, found none")
    return weight.abs().amax().float().view(1)


PREPARE: dict[str, Callable[..., torch.Tensor]] = {
    "concat": concat,
    "interleave": interleave,
    "transpose": transpose,
    "reshape": reshape,
    "channels_last": channels_last,
    "upsampled": upsampled,
    "rows_f8e4m3": rows_f8e4m3,
    "scales_f8e4m3": scales_f8e4m3,
    "filters_f8e4m3": filters_f8e4m3,
    "filter_scales_f8e4m3": filter_scales_f8e4m3,
    "rows_i8": rows_i8,
    "scales_i8": scales_i8,
    "bias_for": bias_for,
    "largest": largest,
}


def unread(graph: torch_ir.Graph, count: int) -> frozenset[int]:
    """Which of the last `count` inputs of the graph, weights and what recipes make of them, it does not read itself."""
    inputs = list(graph.inputs())
    return frozenset(index for index, value in enumerate(inputs[len(inputs) - count :]) if not value.uses())


def run(prepared: Prepared, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    """Computes a recipe from the weights (and earlier results) that it names."""
    options: dict[str, Any] = dict(prepared.options)
    with torch.no_grad():
        return PREPARE[prepared.function](*(weights[index] for index in prepared.sources), **options)
