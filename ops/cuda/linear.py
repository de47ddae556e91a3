"""Linear layers by cuBLASLt with bias, activation and residual in the epilogue, and a choice among its algorithms."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rewriter.ops.precision import NARROW
from rewriter.ops.registry import Config, provide

Optional = torch.Tensor | None

# Not relu, whose epilogue makes a number of a NaN.
_ACTIVATIONS = {"none": 0, "gelu_tanh": 1}


def linear_act(
    x: torch.Tensor, weight: torch.Tensor, bias: Optional, activation: str, *, algorithm: int = 0
) -> torch.Tensor:
    """activation(x @ weight.T + bias), operands as in the reference; algorithm: the rank in cuBLASLt's own order."""
    return _linear(x, weight, bias, None, _ACTIVATIONS[activation], algorithm)


def linear_add(
    x: torch.Tensor, weight: torch.Tensor, bias: Optional, residual: torch.Tensor, *, algorithm: int = 0
) -> torch.Tensor:
    """x @ weight.T + bias + residual, operands as in the reference; algorithm: as in `linear_act`."""
    return _linear(x, weight, bias, residual, 0, algorithm)


def linear_act_cat(
    left: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: Optional, activation: str, *, algorithm: int = 0
) -> torch.Tensor:
    """left beside activation(x @ weight.T + bias), operands as in the reference; algorithm: as in `linear_act`."""
    width = left.shape[-1]
    result = torch.empty((*x.shape[:-1], width + weight.shape[0]), dtype=x.dtype, device=x.device)
    _copy_rows(result[..., :width], left)
    beside = result.view(-1, result.shape[-1])[:, width:]
    torch.ops.rewriter_cuda.linear(_rows(x), weight, bias, None, beside, _ACTIVATIONS[activation], algorithm)
    return result


def takes_act(x: torch.Tensor, weight: torch.Tensor, bias: Optional, activation: str) -> str | None:
    if activation not in _ACTIVATIONS:
        return f"cuBLASLt has no epilogue for {activation}"
    return _refusal(x, weight, bias) or _no_algorithm(_algorithms(x, weight, bias, None, _ACTIVATIONS[activation]))


def takes_add(x: torch.Tensor, weight: torch.Tensor, bias: Optional, residual: torch.Tensor) -> str | None:
    reason = _refusal(x, weight, bias)
    if reason is not None:
        return reason
    if residual.shape != (*x.shape[:-1], weight.shape[0]) or residual.dtype != x.dtype:
        return "the residual broadcasts or promotes"
    if residual.device != x.device:
        return "the residual is on another device"
    return _no_algorithm(_algorithms(x, weight, bias, residual, 0))


def takes_cat(left: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: Optional, activation: str) -> str | None:
    if activation not in _ACTIVATIONS:
        return f"cuBLASLt has no epilogue for {activation}"
    reason = _refusal(x, weight, bias)
    if reason is not None:
        return reason
    if not left.dim() or left.shape[:-1] != x.shape[:-1] or left.dtype != x.dtype or left.device != x.device:
        return "parts of two kinds"
    row = left.shape[-1] + weight.shape[0]
    # cuBLASLt is asked about a result that is aligned; rows and their right parts have to be.
    if row % 8 or left.shape[-1] % 8:
        return "parts that do not start at multiples of 16 bytes"
    return _no_algorithm(_algorithms(x, weight, bias, None, _ACTIVATIONS[activation], row))


def cat_configs(
    left: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: Optional, activation: str
) -> Sequence[Config]:
    row = left.shape[-1] + weight.shape[0]
    count = _algorithms(x, weight, bias, None, _ACTIVATIONS[activation], row)
    return [{"algorithm": rank} for rank in range(count)]


def act_configs(x: torch.Tensor, weight: torch.Tensor, bias: Optional, activation: str) -> Sequence[Config]:
    return [{"algorithm": rank} for rank in range(_algorithms(x, weight, bias, None, _ACTIVATIONS[activation]))]


def add_configs(x: torch.Tensor, weight: torch.Tensor, bias: Optional, residual: torch.Tensor) -> Sequence[Config]:
    return [{"algorithm": rank} for rank in range(_algorithms(x, weight, bias, residual, 0))]


def enter() -> None:
    """Adds the providers. The library must be loaded."""
    provide("linear_act", "cublaslt", linear_act, takes_act, act_configs, ("triton",))
    provide("linear_act_cat", "cublaslt", linear_act_cat, takes_cat, cat_configs)
    provide("linear_add", "cublaslt", linear_add, takes_add, add_configs, ("triton",))


def _linear(
    x: torch.Tensor, weight: torch.Tensor, bias: Optional, residual: Optional, activation: int, algorithm: int
) -> torch.Tensor:
    rows = _rows(x)
    added = None if residual is None else _rows(residual)
    result = torch.empty((rows.shape[0], weight.shape[0]), dtype=x.dtype, device=x.device)
    torch.ops.rewriter_cuda.linear(rows, weight, bias, added, result, activation, algorithm)
    return result.view(*x.shape[:-1], weight.shape[0])


def _copy_rows(place: torch.Tensor, source: torch.Tensor) -> None:
    """Fills rows that have gaps between them: in words of 16 bytes where they can be read as such, since torch moves
    one element at a time there."""
    try:
        wide, words = place.view(torch.complex128), source.view(torch.complex128)
    except RuntimeError:
        place.copy_(source)
    else:
        wide.copy_(words)


def _rows(x: torch.Tensor) -> torch.Tensor:
    """x: [..., K] as [M, K] whose rows have no gaps, copied only where no such view exists."""
    rows = x.reshape(-1, x.shape[-1])
    overlapping = rows.shape[0] > 1 and rows.stride(0) < rows.shape[1]
    return rows.contiguous() if rows.stride(1) != 1 or overlapping else rows


def _refusal(x: torch.Tensor, weight: torch.Tensor, bias: Optional) -> str | None:
    operands = [x, weight] if bias is None else [x, weight, bias]
    if not all(operand.is_cuda and operand.device == x.device for operand in operands):
        return "the operands are not all on one CUDA device"
    if x.dtype not in NARROW or any(operand.dtype != x.dtype for operand in operands):
        return "only f16 and bf16 are faster than torch's own"
    if x.dim() == 0 or weight.dim() != 2 or x.shape[-1] != weight.shape[1] or 0 in (x.numel(), *weight.shape):
        return "an empty product, or shapes that torch refuses too"
    if (weight.shape[1] > 1 and weight.stride(1) != 1) or (weight.shape[0] > 1 and weight.stride(0) < weight.shape[1]):
        return "the weight's rows have gaps or overlap"
    if bias is not None and (bias.shape != (weight.shape[0],) or bias.stride(0) != 1):
        return "the bias is not a dense vector"
    return None


def _algorithms(
    x: torch.Tensor, weight: torch.Tensor, bias: Optional, residual: Optional, activation: int, row: int = 0
) -> int:
    added = None if residual is None else _rows(residual)
    row = row or weight.shape[0]
    return int(torch.ops.rewriter_cuda.linear_algorithms(_rows(x), weight, bias, added, activation, row))


def _no_algorithm(count: int) -> str | None:
    return None if count else "cuBLASLt is not there, or has no algorithm for this shape"
