"""The weighted mean of two tensors, as video models mix what they know of space and of time."""

from __future__ import annotations

import torch

from rewriter.ops.precision import widen
from rewriter.ops.registry import define


def blend(x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """weight * x + (1 - weight) * y in f32.

    The three broadcast and promote as in that formula; weight is mostly [N, 1, 1] or [N, 1, F, 1, 1].
    """
    dtype = torch.promote_types(x.dtype, torch.promote_types(y.dtype, weight.dtype))
    w = widen(weight)
    return (w * widen(x) + (1 - w) * widen(y)).to(dtype)


def blend_reshaped(x: torch.Tensor, y: torch.Tensor, size: list[int], weight: torch.Tensor) -> torch.Tensor:
    """`blend` of x and y.reshape(size), where y is mostly a transposed view that the reshape would copy.

    y: any shape and strides with as many elements as `size` has; the rest as in `blend`.
    """
    return blend(x, y.reshape(size), weight)


define("blend(Tensor x, Tensor y, Tensor weight) -> Tensor", blend)
define("blend_reshaped(Tensor x, Tensor y, int[] size, Tensor weight) -> Tensor", blend_reshaped)
