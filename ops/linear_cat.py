"""A linear layer with its activation whose result lies beside another tensor, as the next linear layer reads both."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from rewriter.ops.activation import activate
from rewriter.ops.registry import define

Optional = torch.Tensor | None


def linear_act_cat(
    left: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: Optional, activation: str
) -> torch.Tensor:
    """[left, activation(x @ weight.T + bias)] joined along the last dimension.

    left: [..., M], x: [..., K], weight: [N, K], bias: [N] or None, f16|bf16|f32|f64, the leading dimensions alike;
    activation as in `linear_act`. Result: [..., M + N], contiguous, in the dtype that left and x promote to. Raises
    ValueError for an unknown activation.
    """
    return torch.cat([left, activate(F.linear(x, weight, bias), activation)], dim=-1).contiguous()


define("linear_act_cat(Tensor left, Tensor x, Tensor weight, Tensor? bias, str activation) -> Tensor", linear_act_cat)
