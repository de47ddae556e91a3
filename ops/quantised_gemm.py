"""Products of rows in f8e4m3 by torch's own scaled product, which takes a scale for each row and a bias."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from rewriter.ops.precision import NARROW
from rewriter.ops.registry import provide

# What cuBLASLt and CUTLASS ask of the extents of operands in eight bits.
_ALIGNED = 16


def quantised_linear(
    codes: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor, weight_scales: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """As the reference; products are summed in the tensor cores' own order and width."""
    flat = codes.reshape(-1, codes.shape[-1])
    product = torch._scaled_mm(
        flat,
        weight.t(),
        scale_a=scales.reshape(-1, 1),
        scale_b=weight_scales.reshape(1, -1),
        bias=bias,
        out_dtype=bias.dtype,
        use_fast_accum=True,
    )
    return product.view(*codes.shape[:-1], weight.shape[0])


def quantised_linear_add(
    codes: torch.Tensor,
    scales: torch.Tensor,
    weight: torch.Tensor,
    weight_scales: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor,
) -> torch.Tensor:
    """As the reference; the product is rounded before the residual is added."""
    return quantised_linear(codes, scales, weight, weight_scales, bias).add_(residual)


def quantised_linear_geglu(
    codes: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor, weight_scales: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """As the reference; the product is rounded before the gate."""
    hidden, gate = quantised_linear(codes, scales, weight, weight_scales, bias).chunk(2, dim=-1)
    return F.gelu(gate).mul_(hidden)


def _takes(
    codes: torch.Tensor, scales: torch.Tensor, weight: torch.Tensor, weight_scales: torch.Tensor, bias: torch.Tensor
) -> str | None:
    operands = (codes, scales, weight, weight_scales, bias)
    if not all(operand.is_cuda and operand.device == codes.device for operand in operands):
        return "the operands are not all on one CUDA device"
    if codes.dtype != torch.float8_e4m3fn or weight.dtype != codes.dtype or bias.dtype not in NARROW:
        return "only f8e4m3 by f8e4m3 to f16 or bf16"
    if torch.cuda.get_device_capability(codes.device) < (8, 9):
        return "f8e4m3 needs compute capability 8.9 or newer"
    if (
        not codes.dim()
        or weight.dim() != 2
        or codes.shape[-1] != weight.shape[1]
        or 0 in (codes.numel(), *weight.shape)
    ):
        return "an empty product, or shapes that torch refuses too"
    if weight.shape[0] % _ALIGNED or weight.shape[1] % _ALIGNED:
        return f"extents that are no multiples of {_ALIGNED}"
    if not all(each.is_contiguous() and each.data_ptr() % _ALIGNED == 0 for each in operands):
        return "operands that are not dense or not aligned"
    if bias.shape != (weight.shape[0],):
        return "a bias that is broadcast"
    return None


def _takes_add(*operands: torch.Tensor) -> str | None:
    *product, residual = operands
    reason = _takes(*product)
    if reason is not None:
        return reason
    codes, weight, bias = product[0], product[2], product[4]
    if residual.shape != (*codes.shape[:-1], weight.shape[0]) or residual.dtype != bias.dtype:
        return "the residual broadcasts or promotes"
    return None if residual.device == codes.device else "the residual is on another device"


# A build of torch for CPUs alone has nothing that could take a call.
if torch.version.cuda is not None:
    provide("quantised_linear", "scaled_mm", quantised_linear, _takes)
    provide("quantised_linear_add", "scaled_mm", quantised_linear_add, _takes_add)
    # An odd number of columns is none of what it takes.
    provide("quantised_linear_geglu", "scaled_mm", quantised_linear_geglu, _takes)
