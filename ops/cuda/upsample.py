"""Convolutions of pictures twice as high and wide, on Hopper's tensor cores (`csrc/convolution.cu`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rewriter.ops.cuda.tiles import aligned, refusal, steps_of, ways_to_share
from rewriter.ops.registry import Config, provide
from rewriter.ops.upsample import channels_innermost

Optional = torch.Tensor | None


def upsample_conv(
    x: torch.Tensor, weight: torch.Tensor, bias: Optional, *, rows: int, across: int, along: int, splits: int
) -> torch.Tensor:
    """Operands as in the reference, with their channels innermost; sums in f32.

    rows, across, along, splits: see `ways_to_share`.
    """
    images, _, height, width = x.shape
    shape = (images, weight.shape[0] // 4, 2 * height, 2 * width)
    y = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    film, filters, result = (each.unsqueeze(2) for each in (x, weight, y))
    torch.ops.rewriter_cuda.convolution(film, filters, bias, None, result, 1, 0, 1, 1, 2, rows, across, along, splits)
    return y


def takes(x: torch.Tensor, weight: torch.Tensor, bias: Optional) -> str | None:
    reason = refusal(x, weight, None)
    if reason is not None:
        return reason
    if x.dim() != 4 or weight.dim() != 4 or x.shape[1] != weight.shape[1] or weight.shape[2:] != (2, 2):
        return "other than pictures and filters of 2x2 pixels"
    if weight.shape[0] % 32 or x.shape[1] % 8:
        return "numbers of channels that are no multiples of 8"
    if not (channels_innermost(x) and channels_innermost(weight)):
        return "the channels are not innermost"
    filters = weight.shape[0] // 4
    if bias is not None and (bias.dtype != x.dtype or bias.device != x.device or bias.shape != (filters,)):
        return "a bias of another kind"
    if bias is not None and (bias.stride(0) != 1 or not aligned(bias)):
        return "the bias is not a dense vector"
    return None if x.numel() // x.shape[1] * weight.shape[0] < 2**31 else "more than 2^31 results"


def configs(x: torch.Tensor, weight: torch.Tensor, _bias: Optional) -> Sequence[Config]:
    """Ways to share the work, best first by an estimate."""
    return ways_to_share(x, x.numel() // x.shape[1], weight.shape[0], 4 * steps_of(x.shape[1]))


def enter() -> None:
    """Adds the provider. The library must be loaded."""
    provide("upsample_conv", "cuda", upsample_conv, takes, configs)
