"""Linear layers by torch, followed by one elementwise kernel: GEGLU, and an activation that writes beside a tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from rewriter.ops.registry import provide
from rewriter.ops.triton.pointwise import fits, run, tiles
from rewriter.ops.triton.rows import Optional, refusal

_ACTIVATIONS = {"gelu_tanh": "gelu_tanh", "quick_gelu": "quick_gelu", "none": "copy"}


def _linear_geglu(x: torch.Tensor, weight: torch.Tensor, bias: Optional, **config: Any) -> torch.Tensor:
    hidden, gate = F.linear(x, weight, bias).chunk(2, dim=-1)
    out = torch.empty(hidden.shape, dtype=hidden.dtype, device=x.device)
    run("geglu", out, hidden, gate, **(config or tiles(out, hidden, gate)[0]))
    return out


def _geglu_blank(x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The result and the two halves that it is made of, without data."""
    hidden, gate = torch.empty((*x.shape[:-1], weight.shape[0]), dtype=x.dtype, device="meta").chunk(2, dim=-1)
    return torch.empty(hidden.shape, dtype=x.dtype, device="meta"), hidden, gate


def _geglu_supports(x: torch.Tensor, weight: torch.Tensor, bias: Optional) -> str | None:
    if not x.dim() or weight.dim() != 2 or weight.shape[0] % 2:
        return "a weight without two halves"
    return refusal(x, weight, bias) or fits(*_geglu_blank(x, weight))


def _geglu_configs(x: torch.Tensor, weight: torch.Tensor, _: Optional) -> Sequence[Mapping[str, Any]]:
    return tiles(*_geglu_blank(x, weight))[:1]


def _linear_act_cat(
    left: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: Optional, activation: str, **config: Any
) -> torch.Tensor:
    h = F.linear(x, weight, bias)
    width = left.shape[-1]
    out = torch.empty((*left.shape[:-1], width + h.shape[-1]), dtype=h.dtype, device=x.device)
    for formula, part, operand in (
        ("copy", out[..., :width], left),
        (_ACTIVATIONS[activation], out[..., width:], h),
    ):
        run(formula, part, operand, **(config or tiles(part, operand)[0]))
    return out


def _cat_blank(left: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The two parts of the result, without data."""
    width = left.shape[-1]
    out = torch.empty((*left.shape[:-1], width + weight.shape[0]), dtype=x.dtype, device="meta")
    return out[..., :width], out[..., width:]


def _cat_supports(
    left: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: Optional, activation: str
) -> str | None:
    if activation not in _ACTIVATIONS:
        return f"no kernel for {activation}"
    if left.dtype != x.dtype or not left.dim() or weight.dim() != 2 or left.shape[:-1] != x.shape[:-1]:
        return "parts of two kinds"
    reason = refusal(left, x, weight, bias)
    if reason is not None:
        return reason
    one, other = _cat_blank(left, x, weight)
    return fits(one, left) or fits(other, torch.empty(other.shape, device="meta"))


def _cat_configs(left: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, *_: Any) -> Sequence[Mapping[str, Any]]:
    other = _cat_blank(left, x, weight)[1]
    return tiles(other, torch.empty(other.shape, device="meta"))[:1]


provide("linear_geglu", "gemm+triton", _linear_geglu, _geglu_supports, _geglu_configs)
provide("linear_act_cat", "gemm+triton", _linear_act_cat, _cat_supports, _cat_configs)
