"""Rotary position embedding of queries and keys, with the RMS norm over each head that comes before it."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from rewriter.ops.precision import widen
from rewriter.ops.registry import define

Optional = torch.Tensor | None


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    even, odd = x.unflatten(-1, (-1, 2)).unbind(-1)
    return x * widen(cos) + torch.stack([-odd, even], dim=-1).flatten(-2) * widen(sin)


def _normalised(x: torch.Tensor, weight: Optional, eps: float) -> torch.Tensor:
    return F.rms_norm(widen(x), x.shape[-1:], widen(weight), eps)


def rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x * cos + r(x) * sin in f32, where r takes each pair (a, b) of neighbours in the last dimension to (-b, a).

    x: [B, S, H, D] with an even D, f16|bf16|f32|f64, any strides; cos, sin: broadcast to x's shape, mostly
    [1, S, 1, D] in f32. Result: x's shape and dtype, contiguous. Raises RuntimeError where D is odd.
    """
    return _rotated(widen(x), cos, sin).to(x.dtype).contiguous()


def rms_norm_rope(x: torch.Tensor, weight: Optional, eps: float, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """rope of x / sqrt(mean(x * x) + eps) * weight, the norm over the last dimension; all of it in f32.

    weight: [D] or None; the rest as in `rope`.
    """
    return _rotated(_normalised(x, weight, eps), cos, sin).to(x.dtype).contiguous()


def rms_norm_rope_joint(
    x: torch.Tensor,
    weight: Optional,
    eps: float,
    y: torch.Tensor,
    y_weight: Optional,
    y_eps: float,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> torch.Tensor:
    """`rms_norm_rope` over the tokens of x and then those of y, each with a norm of its own.

    x: [B, S, H, D], y: [B, T, H, D]; cos, sin: broadcast to [B, S + T, H, D]. Result: [B, S + T, H, D], in the dtype
    that x and y promote to.
    """
    normed = torch.cat([_normalised(x, weight, eps), _normalised(y, y_weight, y_eps)], dim=1)
    return _rotated(normed, cos, sin).to(torch.promote_types(x.dtype, y.dtype)).contiguous()


_TABLES = "Tensor cos, Tensor sin"
define(f"rope(Tensor x, {_TABLES}) -> Tensor", rope)
define(f"rms_norm_rope(Tensor x, Tensor? weight, float eps, {_TABLES}) -> Tensor", rms_norm_rope)
define(
    f"rms_norm_rope_joint(Tensor x, Tensor? weight, float eps, Tensor y, Tensor? y_weight, float y_eps, {_TABLES})"
    " -> Tensor",
    rms_norm_rope_joint,
)
