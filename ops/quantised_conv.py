"""Convolutions of what a group norm gives, in f8e4m3 with one scale for all of it, and the norms that write it so.

A convolution's taps read many pixels, so that a scale for each row of channels, as `low_precision` has it, would not
leave its sums. But a group norm says before it is computed how large its numbers can become: among n numbers none is
further from their mean than sqrt(n - 1) standard deviations (Samuelson, How deviant can you be?, 1968), so that
|y| <= sqrt(n) * max |weight| + max |bias|, and SiLU makes no number larger. The scale is the power of two that puts
this bound between 128 and 256: nothing overflows, and a number is off by at most 1/16 of itself, or by 2**-17 of the
bound where it is smaller than 2**-13 of it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F

from rewriter.ops.group_norm import NORM, SUM, added, normalised
from rewriter.ops.low_precision import SMALLEST, power_of_two
from rewriter.ops.precision import laid_out_like
from rewriter.ops.registry import define

Optional = torch.Tensor | None
Codes = tuple[torch.Tensor, torch.Tensor]


def root(shape: torch.Size, groups: int) -> float:
    """sqrt(n) for the n numbers of a group of [N, C, ...]."""
    return math.sqrt(math.prod(shape[1:]) // groups)


def group_norm_silu_quantised(
    x: torch.Tensor,
    groups: int,
    weight: Optional,
    bias: Optional,
    eps: float,
    gain: torch.Tensor,
    offset: torch.Tensor,
) -> Codes:
    """(codes, scale): silu(group_norm(x)) is about codes * scale.

    gain, offset: [1], f32, max |weight| and max |bias|; the other operands as in `group_norm`, eps not negative. codes:
    f8e4m3, x's shape, laid out as the norm's result is; scale: [1], f32, NaN where the bound is no number.
    """
    bound = (gain * root(x.shape, groups) + offset).float().clamp(min=SMALLEST)
    factor, scale = power_of_two(bound)
    y = F.silu(normalised(x, groups, weight, bias, eps), inplace=True).float()
    codes = laid_out_like((y * factor).to(torch.float8_e4m3fn), x)
    return codes, torch.where(bound.isfinite(), scale, torch.nan)


def add_group_norm_silu_quantised(
    x: torch.Tensor, channel_bias: Optional, addend: Optional, *norm: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(codes, scale, total): those of the sum's norm, and the sum, as in `add_group_norm_silu`."""
    total = added(x, channel_bias, addend)
    return (*group_norm_silu_quantised(total, *norm), total)


def quantised_conv(
    codes: torch.Tensor,
    scale: torch.Tensor,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
    bias: torch.Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
) -> torch.Tensor:
    """convolution(codes * scale, weight * weight_scales) + bias, summed in f32 (f64 where bias is that).

    codes: [N, C, ...], f8e4m3, scale: [1], f32; weight: [M, C, ...], f8e4m3, weight_scales: [M, 1], f32; bias: [M],
    f16|bf16|f32|f64. Result: [N, M, ...] in bias's dtype, channels innermost.
    """
    dtype = torch.promote_types(bias.dtype, torch.float32)
    rank = codes.dim() - 2
    # Sums of numbers of eight bits: those of TF32, cuDNN's default, are the same.
    sums = torch.convolution(
        codes.to(dtype), weight.to(dtype), None, stride, padding, dilation, False, [0] * rank, 1
    )  # fmt: skip
    of_filter = (weight_scales.to(dtype).view(-1, *[1] * rank), bias.to(dtype).view(-1, *[1] * rank))
    y = (sums * scale.to(dtype) * of_filter[0] + of_filter[1]).to(bias.dtype)
    return y.contiguous(memory_format=torch.channels_last if rank == 2 else torch.channels_last_3d)


_REACH = "Tensor gain, Tensor offset) -> (Tensor, Tensor"
define(f"group_norm_silu_quantised(Tensor x, {NORM}, {_REACH})", group_norm_silu_quantised)
define(f"add_group_norm_silu_quantised({SUM}, {NORM}, {_REACH}, Tensor)", add_group_norm_silu_quantised)
define(
    "quantised_conv(Tensor codes, Tensor scale, Tensor weight, Tensor weight_scales, Tensor bias, "
    "int[] stride, int[] padding, int[] dilation) -> Tensor",
    quantised_conv,
)
