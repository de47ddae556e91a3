"""Attention without a mask on Hopper's tensor cores, for small heads and many keys (`csrc/attention.cu`)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from rewriter.ops.attention import Optional, swapped
from rewriter.ops.cuda.tiles import aligned, refusal
from rewriter.ops.registry import Config, provide

_HEADS = (40, 64)
# With fewer keys, setting up takes longer than what there is to gain.
_FEWEST_KEYS = 129
# Scales whose products with log2(e), and with differences of scores, are normal numbers in f32.
_SCALES = (1e-30, 1e30)


def attention_tokens(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    _mask: Optional,
    scale: float | None,
    _causal: bool,
    *,
    groups: int,
) -> torch.Tensor:
    """softmax(q @ k.T * scale) @ v, operands as in the reference; scores and sums in f32, weights rounded for their
    product with the values.

    groups: of 64 queries in a block.
    """
    y = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    torch.ops.rewriter_cuda.attention(q, k, v, y, _scale(q, scale), groups)
    return y


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    mask: Optional,
    scale: float | None,
    causal: bool,
    *,
    groups: int,
) -> torch.Tensor:
    """The same with the heads before the tokens."""
    return attention_tokens(*swapped(q, k, v), mask, scale, causal, groups=groups).transpose(1, 2)


def takes_tokens(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Optional, scale: float | None, causal: bool
) -> str | None:
    if mask is not None or causal:
        return "a mask"
    reason = refusal(q, k, None)
    if reason is not None:
        return reason
    if v.dtype != q.dtype or v.device != q.device or not aligned(v) or v.numel() == 0:
        return "values of another kind, or none"
    if not (q.dim() == k.dim() == v.dim() == 4) or k.shape != v.shape or k.shape[2:] != q.shape[2:]:
        return "heads or sizes that differ"
    if q.shape[0] != k.shape[0] or q.shape[3] not in _HEADS:
        return f"only heads of {' or '.join(map(str, _HEADS))} elements"
    if k.shape[1] < _FEWEST_KEYS:
        return "few keys"
    if not all(_dense_rows(each) for each in (q, k, v)):
        return "rows with gaps, or that do not start at multiples of 16 bytes"
    return None if _SCALES[0] < _scale(q, scale) < _SCALES[1] else "a scale that f32 does not hold"


def takes(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Optional, scale: float | None, causal: bool
) -> str | None:
    if not (q.dim() == k.dim() == v.dim() == 4):
        return "only four dimensions"
    return takes_tokens(*swapped(q, k, v), mask, scale, causal)


def configs(*_: object) -> Sequence[Config]:
    return [{"groups": groups} for groups in (3, 2)]


def enter() -> None:
    """Adds the providers. The library must be loaded."""
    # Triton's kernels have not won against it for as many keys as it takes, and compile slowly.
    provide("attention", "cuda", attention, takes, configs, ("triton",), measured=True)
    provide("attention_tokens", "cuda", attention_tokens, takes_tokens, configs, ("triton",), measured=True)


def _scale(q: torch.Tensor, scale: float | None) -> float:
    return 1 / math.sqrt(q.shape[-1]) if scale is None else scale


def _dense_rows(x: torch.Tensor) -> bool:
    # The copy engine wants strides of whole 16 bytes, and none of 0.
    steps = [stride for stride, size in zip(x.stride()[:-1], x.shape[:-1], strict=True) if size > 1]
    return x.stride(-1) == 1 and all(step % 8 == 0 and step > 0 for step in steps)
