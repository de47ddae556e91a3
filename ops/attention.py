"""Scaled dot-product attention, heads first or tokens first."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from rewriter.ops.registry import define

Optional = torch.Tensor | None


def attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Optional, scale: float | None, causal: bool
) -> torch.Tensor:
    """softmax(q @ k.T * scale + mask) @ v.

    q: [..., S, D], k: [..., T, D], v: [..., T, E], mostly [B, H, S, D]; f16|bf16|f32|f64, any strides.
    mask: rank 2 or more, broadcasts to [..., S, T], boolean (False hides) or added; scale: None is 1 / sqrt(D);
    causal hides the keys after each query. Result: [..., S, E]; for rank 4 its memory order is [B, S, H, E], so that
    merging the heads is free. Raises RuntimeError where both mask and causal are given.
    """
    if not q.numel() and not (nothing := _fake(q, k, v, mask, scale, causal)).numel():
        # torch 2.11's kernels for CUDA divide by the number of heads, which ends the process.
        return nothing
    q, k, v = _aligned(q), _aligned(k), _aligned(v)
    if mask is not None and mask.is_cuda and mask.data_ptr() % 16:
        # They do not look at that either.
        mask = mask.clone()
    result = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale)
    if result.dim() != 4:
        return result.contiguous()
    return result.transpose(1, 2).contiguous().transpose(1, 2)


def attention_tokens(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Optional, scale: float | None, causal: bool
) -> torch.Tensor:
    """Attention with the tokens before the heads, as projections leave them.

    q: [B, S, H, D], k: [B, T, H, D], v: [B, T, H, E]; mask: broadcasts to [B, H, S, T]; the rest as in `attention`.
    Result: [B, S, H, E], contiguous.
    """
    return attention(*swapped(q, k, v), mask, scale, causal).transpose(1, 2)


def _fake(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, _mask: Optional, _scale: float | None, _causal: bool
) -> torch.Tensor:
    """The form of attention's result; fake tensors have no address that could be looked at."""
    shape = (*torch.broadcast_shapes(*(each.shape[:-2] for each in (q, k, v))), q.shape[-2], v.shape[-1])
    if len(shape) != 4:
        return q.new_empty(shape)
    batch, heads, rows, size = shape
    return q.new_empty(batch, rows, heads, size).transpose(1, 2)


def _fake_tokens(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Optional, scale: float | None, causal: bool
) -> torch.Tensor:
    return _fake(*swapped(q, k, v), mask, scale, causal).transpose(1, 2)


def whole_vectors(x: torch.Tensor) -> bool:
    """Whether every row of x starts at a multiple of 16 bytes: torch 2.11's kernels end the process where one does not.

    They also read, and refuse, the strides of dimensions with a single row.
    """
    return x.data_ptr() % 16 == 0 and all(s * x.element_size() % 16 == 0 for s in x.stride()[:-1])


def _aligned(x: torch.Tensor) -> torch.Tensor:
    """x, copied where it lies on a GPU and not in whole vectors."""
    return x if not x.is_cuda or whole_vectors(x) else x.clone(memory_format=torch.contiguous_format)


def swapped(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens first from heads first, and back."""
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


_ARGUMENTS = "Tensor q, Tensor k, Tensor v, Tensor? mask, float? scale, bool causal"
define(f"attention({_ARGUMENTS}) -> Tensor", attention, _fake)
define(f"attention_tokens({_ARGUMENTS}) -> Tensor", attention_tokens, _fake_tokens)
