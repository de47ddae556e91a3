"""Linear layers whose sums of products may be kept in f16, in which the tensor cores of GeForce cards are faster."""

from __future__ import annotations

import threading

import torch
import torch.nn.functional as F

from rewriter.ops.registry import define, provide

Optional = torch.Tensor | None

# The setting belongs to the process.
_SETTING = threading.Lock()


def linear_f16_sums(x: torch.Tensor, weight: torch.Tensor, bias: Optional) -> torch.Tensor:
    """x @ weight.T + bias. A provider may round the sum to f16 after each product; this reference does not.

    x: [..., K], weight: [N, K], bias: [N] or None, f16|bf16|f32|f64. Result: [..., N] in x's dtype.
    """
    return F.linear(x, weight, bias)


def _cublas(x: torch.Tensor, weight: torch.Tensor, bias: Optional) -> torch.Tensor:
    settings = torch.backends.cuda.matmul
    with _SETTING:
        before = settings.allow_fp16_accumulation
        settings.allow_fp16_accumulation = True
        try:
            return F.linear(x, weight, bias)
        finally:
            settings.allow_fp16_accumulation = before


def _takes(x: torch.Tensor, weight: torch.Tensor, bias: Optional) -> str | None:
    operands = (x, weight) if bias is None else (x, weight, bias)
    if not all(operand.is_cuda for operand in operands):
        return "the operands are not all on a CUDA device"
    if any(operand.dtype != torch.float16 for operand in operands):
        return "only sums of f16 are kept in f16"
    return None


define("linear_f16_sums(Tensor x, Tensor weight, Tensor? bias) -> Tensor", linear_f16_sums)
# A build of torch for CPUs alone has nothing that could take a call.
if torch.version.cuda is not None:
    provide("linear_f16_sums", "cublas", _cublas, _takes)
