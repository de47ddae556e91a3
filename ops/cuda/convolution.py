"""Convolutions on Hopper's tensor cores (`csrc/convolution.cu`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from rewriter.ops.conv import result_shape
from rewriter.ops.cuda.tiles import aligned, refusal, steps_of, ways_to_share
from rewriter.ops.registry import Config, provide
from rewriter.ops.upsample import channels_innermost

Optional = torch.Tensor | None


def conv_act(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional,
    stride: Sequence[int],
    padding: Sequence[int],
    *_: object,
    rows: int = 128,
    across: int = 1,
    along: int = 1,
    splits: int = 1,
) -> torch.Tensor:
    """convolution(x, weight) + bias, operands as in the reference, all with their channels innermost; sums in f32.

    rows, across, along, splits: see `ways_to_share`.
    """
    return _convolution(x, weight, bias, None, stride, padding, (rows, across, along, splits))


def conv_add(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional,
    addend: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    *_: object,
    rows: int = 128,
    across: int = 1,
    along: int = 1,
    splits: int = 1,
) -> torch.Tensor:
    """convolution(x, weight) + bias + addend; the rest as in `conv_act`."""
    return _convolution(x, weight, bias, addend, stride, padding, (rows, across, along, splits))


def takes_conv_act(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    _output_padding: Sequence[int],
    groups: int,
    activation: str,
) -> str | None:
    reason = refusal(x, weight, bias)
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
    if not (channels_innermost(x) and channels_innermost(weight)):
        return "the channels are not innermost"
    if weight.shape[0] % 8 or x.shape[1] % 8:
        return "numbers of channels that are no multiples of 8"
    shape = result_shape(x, weight, stride, padding)
    if min(shape) <= 0:
        return "an empty result"
    return None if math.prod(shape) < 2**31 else "more than 2^31 results"


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
    if (
        addend.dtype != x.dtype
        or addend.device != x.device
        or tuple(addend.shape) != result_shape(x, weight, stride, padding)
    ):
        return "the addend broadcasts or promotes"
    return None if channels_innermost(addend) and aligned(addend) else "the addend's channels are not innermost"


def configs(
    x: torch.Tensor, weight: torch.Tensor, _bias: Optional, stride: Sequence[int], padding: Sequence[int], *_: object
) -> Sequence[Config]:
    """Ways to share the work, best first by an estimate."""
    images, filters, *extents = result_shape(x, weight, stride, padding)
    steps = math.prod(weight.shape[2:]) * steps_of(x.shape[1])
    return ways_to_share(x, images * math.prod(extents), filters, steps)


def _add_configs(
    x: torch.Tensor, weight: torch.Tensor, bias: Optional, _addend: torch.Tensor, *rest: Any
) -> Sequence[Config]:
    return configs(x, weight, bias, *rest)


def enter() -> None:
    """Adds the providers. The library must be loaded."""
    provide("conv_act", "cuda", conv_act, takes_conv_act, configs)
    provide("conv_add", "cuda", conv_add, takes_conv_add, _add_configs)


def _convolution(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional,
    addend: Optional,
    stride: Sequence[int],
    padding: Sequence[int],
    shared: tuple[int, int, int, int],
) -> torch.Tensor:
    memory = torch.channels_last if x.dim() == 4 else torch.channels_last_3d
    y = torch.empty(result_shape(x, weight, stride, padding), dtype=x.dtype, device=x.device, memory_format=memory)
    films = [each if each is None or each.dim() == 5 else each.unsqueeze(2) for each in (x, weight, addend, y)]
    pad = (0, *padding)[-3:]
    torch.ops.rewriter_cuda.convolution(films[0], films[1], bias, films[2], films[3], stride[-1], *pad, 1, *shared)
    return y
