"""Linear layers with what follows them: an activation, a gate, a residual."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from rewriter.ops.activation import activate
from rewriter.ops.precision import widen
from rewriter.ops.registry import define

Optional = torch.Tensor | None


def linear_act(x: torch.Tensor, weight: torch.Tensor, bias: Optional, activation: str) -> torch.Tensor:
    """activation(x @ weight.T + bias).

    x: [..., K], weight: [N, K], bias: [N] or None, f16|bf16|f32|f64; activation: none|relu|gelu|gelu_tanh|silu|
    quick_gelu|sigmoid|tanh, where gelu is the exact one. Result: [..., N] in x's dtype. Raises ValueError for an
    unknown activation.
    """
    return activate(F.linear(x, weight, bias), activation)


def linear_add(x: torch.Tensor, weight: torch.Tensor, bias: Optional, residual: torch.Tensor) -> torch.Tensor:
    """x @ weight.T + bias + residual; operands as in `linear_act`.

    residual: any shape and dtype; the sum broadcasts and promotes as `+` does.
    """
    return F.linear(x, weight, bias) + residual


def linear_geglu(x: torch.Tensor, weight: torch.Tensor, bias: Optional) -> torch.Tensor:
    """hidden * gelu(gate) where hidden, gate are the two halves of x @ weight.T + bias, and gelu is the exact one.

    x: [..., K], weight: [2 * N, K], bias: [2 * N] or None, f16|bf16|f32|f64. Result: [..., N] in x's dtype.
    """
    hidden, gate = F.linear(x, weight, bias).chunk(2, dim=-1)
    # In place, and without the halves as soon as they are read: a result of this width in f32 is a large part of the
    # memory that a video needs, a second one too much.
    product: torch.Tensor = torch.ops.aten.gelu_(widen(gate)).mul_(hidden)
    dtype = hidden.dtype
    del hidden, gate
    return product.to(dtype).contiguous()


define("linear_act(Tensor x, Tensor weight, Tensor? bias, str activation) -> Tensor", linear_act)
define("linear_add(Tensor x, Tensor weight, Tensor? bias, Tensor residual) -> Tensor", linear_add)
define("linear_geglu(Tensor x, Tensor weight, Tensor? bias) -> Tensor", linear_geglu)
