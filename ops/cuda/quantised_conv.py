"""Convolutions in f8e4m3 on Hopper's tensor cores (`csrc/quantised_convolution.cu`)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from rewriter.ops.conv import result_shape
from rewriter.ops.cuda.quantised import other_formats
from rewriter.ops.cuda.tiles import aligned, elsewhere, steps_of, ways_to_share
from rewriter.ops.registry import Config, provide
from rewriter.ops.upsample import channels_innermost

# The copy engine moves 16 elements at a time, the ends of a tile store 8.
_DEPTH, _COLUMNS = 16, 8


def quantised_conv(
    codes: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
    bias: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    _dilation: Sequence[int],
    *,
    rows: int,
    across: int,
    along: int,
) -> torch.Tensor:
    """convolution(codes * scale, weight * weight_scales) + bias, operands as in the reference, all with their
    channels innermost; sums in f32, with the digits that the tensor cores keep of them.

    rows, across, along: see `ways_to_share`.
    """
    shape = result_shape(codes, weight, stride, padding)
    y = torch.empty(shape, dtype=bias.dtype, device=codes.device, memory_format=torch.channels_last)
    torch.ops.rewriter_cuda.quantised_convolution(
        _pairs(codes, bias.dtype),
        scale,
        _pairs(weight, bias.dtype),
        weight_scales.view(-1),
        bias,
        y.unsqueeze(2),
        stride[0],
        *padding,
        rows,
        across,
        along,
    )
    return y


def takes(
    codes: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
    bias: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> str | None:
    operands = (codes, scale, weight, weight_scales, bias)
    reason = elsewhere(*operands)
    if reason is not None:
        return reason
    reason = other_formats(*operands)
    if reason is not None:
        return reason
    if codes.dim() != 4 or weight.dim() != 4 or codes.shape[1] != weight.shape[1]:
        return "only plain convolutions of pictures"
    if len(stride) != 2 or len(padding) != 2 or any(step != 1 for step in dilation):
        return "filters with gaps"
    if stride[0] != stride[1] or stride[0] not in (1, 2):
        return "only steps of 1 or 2"
    if scale.numel() != 1 or not weight_scales.numel() == bias.numel() == weight.shape[0]:
        return "scales or a bias that are broadcast"
    if codes.shape[1] % _DEPTH or weight.shape[0] % _COLUMNS:
        return "numbers of channels that are no multiples of 16 and 8"
    if not (channels_innermost(codes) and channels_innermost(weight)):
        return "the channels are not innermost"
    if not (bias.is_contiguous() and weight_scales.is_contiguous() and all(map(aligned, operands))):
        return "operands with gaps, or that do not start at a multiple of 16 bytes"
    shape = result_shape(codes, weight, stride, padding)
    if min(shape) <= 0 or not codes.numel() or not weight.numel():
        return "an empty result"
    return None if max(codes.numel(), weight.numel(), math.prod(shape)) < 2**31 else "more than 2^31 elements"


def configs(
    codes: torch.Tensor,
    _scale: torch.Tensor,
    weight: torch.Tensor,
    _weight_scales: torch.Tensor,
    _bias: torch.Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    *_: object,
) -> Sequence[Config]:
    """Ways to share the work, best first by an estimate; a step holds as many bytes as in f16."""
    images, filters, *extents = result_shape(codes, weight, stride, padding)
    steps = math.prod(weight.shape[2:]) * steps_of(codes.shape[1] // 2)
    ways = ways_to_share(codes, images * math.prod(extents), filters, steps, split=False)
    return [{name: way[name] for name in ("rows", "across", "along")} for way in ways]


def enter() -> None:
    """Adds the provider. The library must be loaded."""
    provide("quantised_conv", "cuda", quantised_conv, takes, configs)


def _pairs(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """[N, C, H, W] of eight bits as the film [N, C / 2, 1, H, W] of elements of 16."""
    images, channels, height, width = x.shape
    flat = x.permute(0, 2, 3, 1).reshape(-1).view(dtype)
    return flat.view(images, 1, height, width, channels // 2).permute(0, 4, 1, 2, 3)
