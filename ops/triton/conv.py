"""Convolutions of few pixels by many filters, bound by reading the filters: all multiprocessors read a share of them.

Each program multiplies a tile of pixels and filters over a part of the reduction (taps times channels) and stores its
sums in f32; a second kernel adds up the parts, then the bias, the addend and the activation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from rewriter.ops.activation import ACTIVATIONS
from rewriter.ops.conv import result_shape
from rewriter.ops.precision import NARROW, channels_innermost
from rewriter.ops.registry import Config, provide
from rewriter.ops.triton.device import INTERPRETED, multiprocessors, unavailable
from rewriter.ops.triton.epilogue import activated
from rewriter.ops.triton.overlap import let_next_begin, overlapping, wait_for_earlier
from rewriter.ops.triton.product import product

Optional = torch.Tensor | None

# Beyond as many pixels a filter is used often enough for arithmetic to take longer than reading it.
_PIXELS = 512


@triton.jit
def _part(  # type: ignore[no-untyped-def]
    x, weight, sums,
    pixels, filters, channels, height, width, out_height, out_width, steps, steps_each,
    x0, x1, x2, x3,
    w0, w1, w2, w3,
    stride_y, stride_x, padding_y, padding_x, dilation_y, dilation_x,
    TAPS_ACROSS: tl.constexpr, WIDEN: tl.constexpr, OVERLAP: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    part = tl.program_id(2)
    depths = tl.arange(0, DEPTH)
    image = rows // (out_height * out_width)
    y = (rows // out_width) % out_height * stride_y - padding_y
    z = rows % out_width * stride_x - padding_x
    first = part * steps_each
    per_tap = tl.cdiv(channels, DEPTH)
    total = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    wait_for_earlier(OVERLAP)
    for step in range(first, tl.minimum(first + steps_each, steps)):
        tap = step // per_tap
        channel = step % per_tap * DEPTH + depths
        tap_y = tap // TAPS_ACROSS
        tap_x = tap % TAPS_ACROSS
        at_y = y + tap_y * dilation_y
        at_x = z + tap_x * dilation_x
        inside = (at_y >= 0) & (at_y < height) & (at_x >= 0) & (at_x < width) & (rows < pixels)
        a = tl.load(
            x + (image * x0 + at_y * x2 + at_x * x3)[:, None] + (channel * x1)[None, :],
            mask=inside[:, None] & (channel < channels)[None, :],
            other=0.0,
        )
        b = tl.load(
            weight + (tap_y * w2 + tap_x * w3) + (columns * w0)[None, :] + (channel * w1)[:, None],
            mask=(channel < channels)[:, None] & (columns < filters)[None, :],
            other=0.0,
        )
        total = product(a, b, total, WIDEN)
    let_next_begin(OVERLAP)
    target = sums + part * pixels * filters + rows[:, None] * filters + columns[None, :]
    tl.store(target, total, mask=(rows < pixels)[:, None] & (columns < filters)[None, :])


@triton.jit
def _finish(  # type: ignore[no-untyped-def]
    sums, bias, addend, result,
    pixels, filters, out_height, out_width,
    a0, a1, a2, a3,
    PARTS: tl.constexpr, BIASED: tl.constexpr, ADDED: tl.constexpr, ACTIVATION: tl.constexpr, OVERLAP: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    count = pixels * filters
    mask = index < count
    wait_for_earlier(OVERLAP)
    total = tl.load(sums + index, mask=mask, other=0.0)
    for part in tl.static_range(1, PARTS):
        total += tl.load(sums + part * count + index, mask=mask, other=0.0)
    column = index % filters
    if BIASED:
        total += tl.load(bias + column, mask=mask, other=0.0).to(tl.float32)
    if ADDED:
        row = index // filters
        x = row % out_width
        y = (row // out_width) % out_height
        image = row // (out_height * out_width)
        place = image * a0 + column * a1 + y * a2 + x * a3
        total += tl.load(addend + place, mask=mask, other=0.0).to(tl.float32)
    total = activated(total, ACTIVATION)
    tl.store(result + index, total.to(result.dtype.element_ty), mask=mask)


def conv_add(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional,
    addend: Optional,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,  # noqa: ARG001
    output_padding: Sequence[int],  # noqa: ARG001
    groups: int,  # noqa: ARG001
    activation: str,
    *,
    rows: int = 128,
    columns: int = 128,
    depth: int = 64,
    parts: int = 8,
    warps: int = 8,
    stages: int = 4,
) -> torch.Tensor:
    """activation(convolution(x, weight) + bias + addend), operands as in the reference, f16 or bf16, addend or None.

    A program makes the sums of rows pixels and columns filters over one of `parts` parts of the taps and channels, in
    steps of `depth` channels with `stages` of them in flight. Result: [N, K, H, W] in [N, H, W, K] order.
    """
    images, filters, out_height, out_width = shape = result_shape(x, weight, stride, padding, dilation)
    pixels = images * out_height * out_width
    result = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    steps = weight.shape[2] * weight.shape[3] * triton.cdiv(x.shape[1], depth)
    steps_each = triton.cdiv(steps, parts)
    parts = triton.cdiv(steps, steps_each)
    sums = torch.empty((parts, pixels, filters), dtype=torch.float32, device=x.device)
    added = result if addend is None else addend.expand(shape)
    with torch.cuda.device_of(x):
        _part[(triton.cdiv(filters, columns), triton.cdiv(pixels, rows), parts)](
            x, weight, sums,
            pixels, filters, *x.shape[1:], out_height, out_width, steps, steps_each,
            *x.stride(), *weight.stride(), *stride, *padding, *dilation,
            TAPS_ACROSS=weight.shape[3], WIDEN=INTERPRETED and x.dtype == torch.bfloat16, **overlapping(x.device),
            ROWS=rows, COLUMNS=columns, DEPTH=depth, num_warps=warps, num_stages=stages,
        )  # fmt: skip
        block = 512
        _finish[(triton.cdiv(pixels * filters, block),)](
            sums, result if bias is None else bias.contiguous(), added, result,
            pixels, filters, out_height, out_width, *added.stride(),
            PARTS=parts, BIASED=bias is not None, ADDED=addend is not None, ACTIVATION=activation,
            **overlapping(x.device), BLOCK=block, num_warps=4,
        )  # fmt: skip
    return result


def takes(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional,
    addend: Optional,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],  # noqa: ARG001
    groups: int,
    activation: str,
) -> str | None:
    reason = unavailable(x)
    if reason is not None:
        return reason
    others = [each for each in (weight, bias, addend) if each is not None]
    if x.dtype not in NARROW or any(each.dtype != x.dtype or each.device != x.device for each in others):
        return "only f16 and bf16 have tensor cores that keep their precision"
    if x.dim() != 4 or weight.dim() != 4 or transposed or groups != 1 or x.shape[1] != weight.shape[1]:
        return "only plain convolutions of images"
    if any(len(each) != 2 for each in (stride, padding, dilation)) or activation not in ACTIVATIONS:
        return "arguments that torch refuses or extends"
    if bias is not None and bias.shape != weight.shape[:1]:
        return "arguments that torch refuses or extends"
    if not channels_innermost(x) or weight.stride(1) != 1:
        return "the channels are not innermost"
    shape = result_shape(x, weight, stride, padding, dilation)
    if min(*shape, x.numel(), weight.numel()) <= 0:
        return "an empty product"
    pixels = math.prod(shape) // shape[1]
    if pixels > _PIXELS:
        return "as many pixels are bound by arithmetic"
    if addend is not None and not _fits(addend, shape):
        return "the addend broadcasts the result"
    if max(map(_reach, (x, weight))) >= 2**31 or pixels * weight.shape[0] >= 2**31 // 128:
        return "offsets beyond 32 bits"
    return None


def configs(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional,  # noqa: ARG001
    addend: Optional,  # noqa: ARG001
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    *_: Any,
) -> Sequence[Config]:
    images, filters, height, width = result_shape(x, weight, stride, padding, dilation)
    pixels = images * height * width
    found = []
    for columns, depth, warps, stages, resident in ((128, 64, 8, 5, 1), (64, 64, 4, 4, 2)):
        rows = min(128, max(16, triton.next_power_of_2(pixels)))
        tiles = triton.cdiv(pixels, rows) * triton.cdiv(filters, columns)
        parts = max(1, resident * multiprocessors(x.device) // tiles)
        sizes = {"rows": rows, "columns": columns, "depth": depth, "parts": min(parts, 64)}
        found.append({**sizes, "warps": warps, "stages": stages})
    return found


def _fits(addend: torch.Tensor, shape: tuple[int, ...]) -> bool:
    """Whether the addend expands to the shape."""
    pairs = zip(reversed(addend.shape), reversed(shape), strict=False)
    return addend.dim() <= len(shape) and all(extent in (1, whole) for extent, whole in pairs)


def _reach(tensor: torch.Tensor) -> int:
    """The largest distance between two elements."""
    return sum((extent - 1) * step for extent, step in zip(tensor.shape, tensor.stride(), strict=True))


def _without_addend(function: Any) -> Any:
    def of_conv_act(x: torch.Tensor, weight: torch.Tensor, bias: Optional, *rest: Any, **config: Any) -> Any:
        return function(x, weight, bias, None, *rest, **config)

    return of_conv_act


provide("conv_add", "triton", conv_add, takes, configs)
provide("conv_act", "triton", _without_addend(conv_add), _without_addend(takes), _without_addend(configs))
