"""Products of rows in eight bits, with the scales, the bias and the residual at the end of one kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton

from rewriter.ops.low_precision import FORMATS
from rewriter.ops.precision import NARROW
from rewriter.ops.registry import Config, provide
from rewriter.ops.triton.device import INTERPRETED, multiprocessors, unavailable
from rewriter.ops.triton.product import multiply, residual_refusal, shape_refusal, sizes, usable

Optional = torch.Tensor | None


def quantised_linear(
    codes: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
    bias: torch.Tensor,
    residual: Optional = None,
    **config: Any,
) -> torch.Tensor:
    """(codes * scales) @ (weight * weight_scales).T + bias + residual, operands as in the reference. The config: see
    `multiply`."""
    return multiply(codes, weight, bias, residual, (scales, weight_scales), **config)


def _takes(
    codes: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
    bias: torch.Tensor,
    residual: Optional = None,
) -> str | None:
    reason = unavailable(bias)
    if reason is not None:
        return reason
    if bias.dtype not in NARROW or codes.dtype not in FORMATS.values() or weight.dtype != codes.dtype:
        return "only f8e4m3 by f8e4m3 and i8 by i8 to f16 or bf16"
    if (
        codes.dtype == torch.float8_e4m3fn
        and not INTERPRETED
        and torch.cuda.get_device_capability(codes.device) < (8, 9)
    ):
        return "f8e4m3 needs compute capability 8.9 or newer"
    if any(operand.device != codes.device for operand in (scales, weight, weight_scales, bias)):
        return "the operands are on different devices"
    reason = shape_refusal(codes, weight)
    if reason is not None:
        return reason
    if scales.dtype != torch.float32 or weight_scales.dtype != torch.float32:
        return "scales in other than f32"
    if (
        scales.numel() != codes.numel() // codes.shape[-1]
        or not weight_scales.numel() == bias.numel() == weight.shape[0]
    ):
        return "scales or a bias that are broadcast"
    if not codes.is_contiguous() or weight.stride(1) != 1:
        return "rows with gaps"
    return None if residual is None else residual_refusal(residual, codes, weight, bias.dtype)


def _configs(codes: torch.Tensor, _: torch.Tensor, weight: torch.Tensor, *rest: torch.Tensor) -> Sequence[Config]:
    m = codes.numel() // codes.shape[-1]
    n = weight.shape[0]
    if triton.cdiv(m, 128) * triton.cdiv(n, 256) >= multiprocessors(codes.device):
        found = [
            sizes(128, 256, 128, warps=8, stages=3, persistent=1),
            sizes(128, 128, 128, warps=8, stages=4, persistent=1),
            sizes(128, 128, 128, warps=8, stages=3),
        ]
        if len(rest) > 2:
            # The tile of the residual takes the shared memory that the widest needs.
            found = found[1:]
    else:
        found = [
            sizes(128, 128, 128, warps=8, stages=4, persistent=1),
            sizes(128, 128, 128, warps=4, stages=3),
            sizes(64, 128, 128, warps=4, stages=4),
            sizes(64, 64, 128, warps=4, stages=4),
        ]
    return usable(found, codes, weight, n)


provide("quantised_linear", "triton", quantised_linear, _takes, _configs)
provide("quantised_linear_add", "triton", quantised_linear, _takes, _configs)
