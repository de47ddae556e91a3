"""Linear layers with what follows them in one kernel, where cuBLASLt has no such epilogue or is missing.

GEGLU is one matrix product, too: each program holds a tile of both halves, so the wide result is never stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton

from rewriter.ops.activation import ACTIVATIONS
from rewriter.ops.precision import NARROW
from rewriter.ops.registry import Config, provide
from rewriter.ops.triton.device import multiprocessors, unavailable
from rewriter.ops.triton.product import multiply, residual_refusal, shape_refusal, sizes, usable

Optional = torch.Tensor | None

_WIDEST = 256


def linear_act(x: torch.Tensor, weight: torch.Tensor, bias: Optional, activation: str, **config: Any) -> torch.Tensor:
    """As the reference, f16 or bf16. The config: see `multiply`."""
    return multiply(x, weight, bias, activation=activation, **config)


def linear_add(
    x: torch.Tensor, weight: torch.Tensor, bias: Optional, residual: torch.Tensor, **config: Any
) -> torch.Tensor:
    """As the reference, f16 or bf16. The config: see `multiply`."""
    return multiply(x, weight, bias, residual, **config)


def linear_geglu(x: torch.Tensor, weight: torch.Tensor, bias: Optional, **config: Any) -> torch.Tensor:
    """As the reference, f16 or bf16. The config: see `multiply`."""
    return multiply(x, weight, bias, activation="geglu", **config)


def takes_act(x: torch.Tensor, weight: torch.Tensor, bias: Optional, activation: str) -> str | None:
    return _refusal(x, weight, bias) if activation in ACTIVATIONS else f"no kernel for {activation}"


def takes_add(x: torch.Tensor, weight: torch.Tensor, bias: Optional, residual: torch.Tensor) -> str | None:
    return _refusal(x, weight, bias) or residual_refusal(residual, x, weight, x.dtype)


def takes_geglu(x: torch.Tensor, weight: torch.Tensor, bias: Optional) -> str | None:
    return _refusal(x, weight, bias) or ("the weight has no two halves" if weight.shape[0] % 2 else None)


def _refusal(x: torch.Tensor, weight: torch.Tensor, bias: Optional) -> str | None:
    """Why no kernel here multiplies x: [..., K] by weight: [N, K] and adds bias: [N], or None."""
    reason = unavailable(x)
    if reason is not None:
        return reason
    operands = [x, weight] if bias is None else [x, weight, bias]
    if x.dtype not in NARROW or any(operand.dtype != x.dtype for operand in operands):
        return "only f16 and bf16 have tensor cores that keep their precision"
    if any(operand.device != x.device for operand in operands):
        return "the operands are on different devices"
    reason = shape_refusal(x, weight)
    if reason is None and bias is not None and bias.shape != (weight.shape[0],):
        return "a bias that is broadcast"
    return reason


def act_configs(x: torch.Tensor, weight: torch.Tensor, *_: Any) -> Sequence[Config]:
    m = x.numel() // x.shape[-1]
    n = weight.shape[0]
    if triton.cdiv(m, 128) * triton.cdiv(n, _WIDEST) >= multiprocessors(x.device):
        found = [
            sizes(128, _WIDEST, 64, warps=8, stages=3, persistent=1),
            sizes(128, 128, 64, warps=8, stages=4, persistent=1),
            sizes(128, 128, 64, warps=8, stages=4),
        ]
    else:
        found = [
            sizes(128, 128, 64, warps=8, stages=3),
            sizes(128, 64, 64, warps=4, stages=4),
            sizes(64, 64, 128, warps=4, stages=3),
            sizes(64, 32, 128, warps=4, stages=4),
        ]
    return usable(found, x, weight, n)


def add_configs(x: torch.Tensor, weight: torch.Tensor, *_: Any) -> Sequence[Config]:
    """Those of `act_configs` that leave shared memory for a tile of the residual."""
    return [config for config in act_configs(x, weight) if config["columns"] < _WIDEST or not config["persistent"]]


def geglu_configs(x: torch.Tensor, weight: torch.Tensor, *_: Any) -> Sequence[Config]:
    m = x.numel() // x.shape[-1]
    n = weight.shape[0] // 2
    if triton.cdiv(m, 128) * triton.cdiv(n, 128) >= multiprocessors(x.device):
        found = [
            sizes(128, 128, 64, warps=8, stages=4, persistent=1),
            sizes(128, 64, 64, warps=4, stages=3),
        ]
    else:
        found = [
            sizes(128, 64, 64, warps=4, stages=3),
            sizes(64, 64, 64, warps=4, stages=4),
        ]
    return usable(found, x, weight, n)


provide("linear_act", "triton", linear_act, takes_act, act_configs)
provide("linear_add", "triton", linear_add, takes_add, add_configs)
provide("linear_geglu", "triton", linear_geglu, takes_geglu, geglu_configs)
