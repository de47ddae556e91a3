"""Group normalisation, with the additions before it and the SiLU after it."""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F

from rewriter.ops.precision import channels_innermost, laid_out_like, widen
from rewriter.ops.registry import define

Optional = torch.Tensor | None


# Elements of a picture that are copied in less time than their means take.
_SMALL = 2**14


def normalised(x: torch.Tensor, groups: int, weight: Optional, bias: Optional, eps: float) -> torch.Tensor:
    """A new tensor, in f32 at least. Not by F.group_norm, which refuses a group of one element."""
    scale, shift = widen(weight), widen(bias)
    if x.is_cpu and x.numel() > _SMALL and channels_innermost(x) and x.shape[1] % groups == 0:
        # For the variance torch takes mean(x * x) - mean(x)**2 here, which a large mean would leave few digits of.
        wide = widen(x)
        return torch.group_norm(wide - _group_means(wide, groups), groups, scale, shift, eps)
    # In rank 3, so that strides of single pixels cannot be taken for those of channels-last tensors.
    pixels = x.reshape(*x.shape[:2], math.prod(x.shape[2:])).contiguous()
    return torch.group_norm(widen(pixels), groups, scale, shift, eps).view(x.shape)


def _group_means(x: torch.Tensor, groups: int) -> torch.Tensor:
    """The mean of each channel's group: [N, C, 1, ...]. Of channels first, which lie innermost."""
    means = x.mean(tuple(range(2, x.dim())), keepdim=True)
    grouped = means.view(x.shape[0], groups, -1)
    return grouped.mean(2, keepdim=True).expand_as(grouped).reshape(means.shape)


def group_norm(x: torch.Tensor, groups: int, weight: Optional, bias: Optional, eps: float) -> torch.Tensor:
    """(x - mean) / sqrt(var + eps) * weight + bias, statistics per sample and group in f32.

    x: [N, C, ...], f16|bf16|f32|f64, any strides; weight, bias: [C] or None. Result: x's shape and dtype, dense, with
    channels innermost where x has them so. Raises RuntimeError if C % groups.
    """
    return laid_out_like(normalised(x, groups, weight, bias, eps).to(x.dtype), x)


def group_norm_silu(x: torch.Tensor, groups: int, weight: Optional, bias: Optional, eps: float) -> torch.Tensor:
    """silu(group_norm(x)); operands and result as in `group_norm`."""
    return laid_out_like(F.silu(normalised(x, groups, weight, bias, eps), inplace=True).to(x.dtype), x)


def added(x: torch.Tensor, channel_bias: Optional, addend: Optional) -> torch.Tensor:
    """x + channel_bias[:, None, ...] + addend, rounded once, in the dtype that they promote to."""
    terms = [x]
    if channel_bias is not None:
        terms.append(channel_bias.reshape(-1, *[1] * (x.dim() - 2)))
    if addend is not None:
        terms.append(addend)
    if len(terms) == 1:
        raise ValueError("a group norm of a sum needs a channel bias or an addend, found neither")
    dtype = functools.reduce(torch.promote_types, (term.dtype for term in terms))
    return functools.reduce(torch.add, map(widen, terms)).to(dtype)


def add_group_norm(
    x: torch.Tensor,
    channel_bias: Optional,
    addend: Optional,
    groups: int,
    weight: Optional,
    bias: Optional,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(group_norm(total), total) where total = x + channel_bias + addend.

    For a convolution without its bias: channel_bias: [C] or None is that bias; addend: any shape that broadcasts with
    x, or None, is a time embedding [N, C, 1, 1] or a residual like x. The rest as in `group_norm`; both results have
    the dtype of the sum. Raises ValueError where there is nothing to add.
    """
    total = added(x, channel_bias, addend)
    return group_norm(total, groups, weight, bias, eps), total


def add_group_norm_silu(
    x: torch.Tensor,
    channel_bias: Optional,
    addend: Optional,
    groups: int,
    weight: Optional,
    bias: Optional,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(silu(group_norm(total)), total); operands and results as in `add_group_norm`."""
    total = added(x, channel_bias, addend)
    return group_norm_silu(total, groups, weight, bias, eps), total


def sum_group_norm_silu(
    x: torch.Tensor,
    channel_bias: Optional,
    addend: Optional,
    groups: int,
    weight: Optional,
    bias: Optional,
    eps: float,
) -> torch.Tensor:
    """The first result of `add_group_norm_silu`, for who needs no sum: its kernels need not write it.

    The sum is rounded as it would be kept.
    """
    return group_norm_silu(added(x, channel_bias, addend), groups, weight, bias, eps)


SUM = "Tensor x, Tensor? channel_bias, Tensor? addend"
NORM = "int groups, Tensor? weight, Tensor? bias, float eps"
define(f"group_norm(Tensor x, {NORM}) -> Tensor", group_norm)
define(f"group_norm_silu(Tensor x, {NORM}) -> Tensor", group_norm_silu)
define(f"add_group_norm({SUM}, {NORM}) -> (Tensor, Tensor)", add_group_norm)
define(f"add_group_norm_silu({SUM}, {NORM}) -> (Tensor, Tensor)", add_group_norm_silu)
define(f"sum_group_norm_silu({SUM}, {NORM}) -> Tensor", sum_group_norm_silu)
