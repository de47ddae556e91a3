"""Convolutions and linear + GEGLU on Hopper's tensor cores (`csrc/convolution.cu`, `csrc/gated.cu`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from rewriter.ops.precision import NARROW
from rewriter.ops.registry import Config, provide

Optional = torch.Tensor | None

# The tile of a convolution, and the channels of a tap that one step multiplies.
_ROWS, _COLUMNS, _DEPTH = 128, 160, 64
_LARGEST_CLUSTER = 8
_CONFIGS = 5
# What a step costs in clocks: the tensor cores' work, and the bytes that L2 gives a multiprocessor in a clock. A split
# waits for the others and adds up.
_PRODUCT, _BYTES, _SPLIT = 640, 31, 3000
# Rows of a GEGLU that are done for all columns before the next ones: what runs at once reads few rows and few columns.
_BAND = 2048
# Below this many rows, flat tiles of a GEGLU make a fuller wave than wide ones.
_FLAT_ROWS = 512


def conv_act(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional,
    stride: Sequence[int],
    padding: Sequence[int],
    *_: object,
    across: int = 1,
    along: int = 1,
    splits: int = 1,
) -> torch.Tensor:
    """convolution(x, weight) + bias, operands as in the reference, all with their channels innermost; sums in f32.

    across, along: blocks of a cluster that share rows, and columns; splits: those that share the steps along the depth.
    """
    return _convolution(x, weight, bias, None, stride, padding, across, along, splits)


def conv_add(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional,
    addend: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    *_: object,
    across: int = 1,
    along: int = 1,
    splits: int = 1,
) -> torch.Tensor:
    """convolution(x, weight) + bias + addend; the rest as in `conv_act`."""
    return _convolution(x, weight, bias, addend, stride, padding, across, along, splits)


def linear_geglu(
    x: torch.Tensor, weight: torch.Tensor, bias: Optional, *, rows: int, columns: int, across: int, along: int
) -> torch.Tensor:
    """hidden * gelu(gate), operands as in the reference; sums in f32, rounded once.

    rows, columns: of a block's results; across, along: as in `conv_act`.
    """
    flat = x.reshape(-1, x.shape[-1])
    y = torch.empty((flat.shape[0], weight.shape[0] // 2), dtype=x.dtype, device=x.device)
    band = _BAND // (rows * along)
    torch.ops.rewriter_cuda.linear_geglu(flat, weight, bias, y, rows, columns, across, along, band)
    return y.view(*x.shape[:-1], -1)


def takes_conv_act(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],  # noqa: ARG001
    groups: int,
    activation: str,
) -> str | None:
    reason = _refusal(x, weight, bias)
    if reason is not None:
        return reason
    rank = x.dim() - 2
    if x.dim() not in (4, 5) or weight.dim() != x.dim() or transposed or groups != 1 or x.shape[1] != weight.shape[1]:
        return "only plain convolutions of pictures and films"
    if any(len(each) != rank for each in (stride, padding, dilation)) or any(step != 1 for step in dilation):
        return "filters with gaps"
    if activation != "none":
        return f"no epilogue for {activation}"
    if len(set(stride[-2:])) != 1 or stride[-1] not in (1, 2) or any(step != 1 for step in stride[:-2]):
        return "only steps of 1 or 2 in height and width"
    if not (_channels_last(x) and _channels_last(weight)):
        return "the channels are not innermost"
    if weight.shape[0] % 8 or x.shape[1] % 8:
        return "numbers of channels that are no multiples of 8"
    if min(_shape(x, weight, stride, padding)) <= 0:
        return "an empty result"
    return None


def takes_conv_add(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional,
    addend: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    *rest: Any,
) -> str | None:
    reason = takes_conv_act(x, weight, bias, stride, padding, *rest)
    if reason is not None:
        return reason
    if addend.dtype != x.dtype or addend.device != x.device or list(addend.shape) != _shape(x, weight, stride, padding):
        return "the addend broadcasts or promotes"
    return None if _channels_last(addend) and _aligned(addend) else "the addend's channels are not innermost"


def takes_geglu(x: torch.Tensor, weight: torch.Tensor, bias: Optional) -> str | None:
    reason = _refusal(x, weight, bias)
    if reason is not None:
        return reason
    if x.dim() == 0 or weight.dim() != 2 or x.shape[-1] != weight.shape[1] or weight.shape[0] % 16:
        return "halves that are no multiples of 8"
    if x.shape[-1] % 8 or not x.is_contiguous() or not weight.is_contiguous():
        return "rows with gaps, or of a length that is no multiple of 8"
    if bias is not None and bias.data_ptr() % 4:
        return "a bias that does not start at a multiple of 4 bytes"
    return None


def conv_configs(
    x: torch.Tensor, weight: torch.Tensor, _bias: Optional, stride: Sequence[int], padding: Sequence[int], *_: object
) -> Sequence[Config]:
    """Ways to share the work, best first by an estimate of the steps and of what L2 has to give."""
    images, filters, *extents = _shape(x, weight, stride, padding)
    rows = math.ceil(images * math.prod(extents) / _ROWS)
    columns = math.ceil(filters / _COLUMNS)
    steps = math.prod(weight.shape[2:]) * math.ceil(x.shape[1] / _DEPTH)
    estimates: list[tuple[float, int, int, int]] = []
    for splits in (1, 2, 4, 8):
        for across, along in ((2, 2), (1, 2), (2, 1), (1, 4), (1, 1)):
            size = across * along * splits
            if size > _LARGEST_CLUSTER or across > columns or along > rows or 1 < splits > steps // 4:
                continue
            clusters = math.ceil(rows / along) * math.ceil(columns / across)
            turns = math.ceil(clusters / max(1, torch.ops.rewriter_cuda.clusters(x, size)))
            step = max(_PRODUCT, (2 * _ROWS / across + 2 * _COLUMNS / along) * _DEPTH / _BYTES)
            estimates.append((turns * (step * steps / splits + (splits > 1) * _SPLIT), across, along, splits))
    best = sorted(estimates)[:_CONFIGS]
    return [{"across": across, "along": along, "splits": splits} for _, across, along, splits in best]


def _conv_add_configs(
    x: torch.Tensor, weight: torch.Tensor, bias: Optional, _addend: torch.Tensor, *rest: Any
) -> Sequence[Config]:
    return conv_configs(x, weight, bias, *rest)


def geglu_configs(x: torch.Tensor, *_: object) -> Sequence[Config]:
    """Tiles and clusters, mostly the best first."""
    rows = x.numel() // x.shape[-1]
    shapes = [(128, 80, 2, 1)] if rows <= _FLAT_ROWS else [(128, 128, 1, 2)]
    if rows > _ROWS:
        shapes.insert(0, (256, 80, 2, 1))
    return [dict(zip(("rows", "columns", "across", "along"), shape, strict=True)) for shape in shapes]


def enter() -> None:
    """Adds the providers. The library must be loaded."""
    provide("conv_act", "cuda", conv_act, takes_conv_act, conv_configs)
    provide("conv_add", "cuda", conv_add, takes_conv_add, _conv_add_configs)
    provide("linear_geglu", "cuda", linear_geglu, takes_geglu, geglu_configs)


def _convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional,
    addend: Optional,
    stride: Sequence[int],
    padding: Sequence[int],
    across: int,
    along: int,
    splits: int,
) -> torch.Tensor:
    memory = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    y = torch.empty(_shape(x, weight, stride, padding), dtype=x.dtype, device=x.device, memory_format=memory)
    films = [each if each is None or each.dim() == 5 else each.unsqueeze(2) for each in (x, weight, addend, y)]
    pad = (0, *padding)[-3:]
    torch.ops.rewriter_cuda.convolution(
        films[0], films[1], bias, films[2], films[3], stride[-1], *pad, across, along, splits
    )
    return y


def _refusal(x: torch.Tensor, weight: torch.Tensor, bias: Optional) -> str | None:
    operands = [x, weight] if bias is None else [x, weight, bias]
    if not all(operand.is_cuda and operand.device == x.device for operand in operands):
        return "the operands are not all on one CUDA device"
    if torch.cuda.get_device_capability(x.device) != (9, 0):
        return "only for GPUs of compute capability 9.0"
    if x.dtype not in NARROW or any(operand.dtype != x.dtype for operand in operands):
        return "only f16 and bf16 have tensor cores that keep their precision"
    if 0 in (x.numel(), weight.numel()):
        return "an empty product"
    if not (_aligned(x) and _aligned(weight)):
        return "operands that do not start at a multiple of 16 bytes"
    if max(x.numel(), weight.numel()) >= 2**31:
        return "more than 2^31 elements"
    if bias is not None and (bias.shape != weight.shape[:1] or bias.stride(0) != 1):
        return "the bias is not a dense vector"
    return None


def _aligned(tensor: torch.Tensor) -> bool:
    return tensor.data_ptr() % 16 == 0


def _channels_last(tensor: torch.Tensor) -> bool:
    """Whether the tensor is dense with its channels innermost, by its strides where an extent of 1 leaves a choice."""
    step = 1
    for dim in (1, *range(tensor.dim() - 1, 1, -1), 0):
        if tensor.shape[dim] != 1 and tensor.stride(dim) != step:
            return False
        step *= tensor.shape[dim]
    return True


def _shape(x: torch.Tensor, weight: torch.Tensor, stride: Sequence[int], padding: Sequence[int]) -> list[int]:
    extents = [
        (x.shape[2 + axis] + 2 * padding[axis] - weight.shape[2 + axis]) // stride[axis] + 1
        for axis in range(x.dim() - 2)
    ]
    return [x.shape[0], weight.shape[0], *extents]
