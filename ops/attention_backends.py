"""Attention by each of torch's own kernels for CUDA, where torch itself would run another one.

The providers "cudnn", "flash" and "efficient". Importing this module adds them where a CUDA GPU is visible. They call
the kernels themselves: the switches by which torch would be told to take one of them are the whole process's.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.backends import cuda
from torch.nn.attention import SDPBackend

from rewriter.ops.attention import Optional, swapped, whole_vectors
from rewriter.ops.precision import NARROW
from rewriter.ops.registry import provide

_DTYPES = (*NARROW, torch.float32)
# Up to this one its results were wrong with some numbers of tokens, and torch does not take it by itself.
_CUDNN_WRONG = 91500
# Elements to whose multiples the rows of a bias have to begin.
_BIAS_UNIT = 16
# Queries, keys and values with the heads first, an additive mask, the scale, and whether later keys are hidden.
_Kernel = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Optional, float | None, bool], torch.Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Backend:
    """One of torch's kernels for [B, H, S, D].

    able: torch's own test, which also reads the switches that users have set. refuses: why it takes no such queries,
    keys, values or mask, or does not hide later keys, where torch's test says nothing of that.
    """

    kind: SDPBackend
    kernel: _Kernel
    able: Callable[[cuda.SDPAParams], bool]
    refuses: Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Optional, bool], str | None]

    def heads_first(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Optional, scale: float | None, causal: bool
    ) -> torch.Tensor:
        """`rewriter::attention` of what `supports` takes."""
        return self.tokens_first(*swapped(q, k, v), mask, scale, causal).transpose(1, 2)

    def tokens_first(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Optional, scale: float | None, causal: bool
    ) -> torch.Tensor:
        """`rewriter::attention_tokens` of what `supports_tokens` takes."""
        q, k, v = swapped(q, k, v)
        bias = None if mask is None else bias_of(mask, q, k)
        return self.kernel(q, k, v, bias, scale, causal).transpose(1, 2).contiguous()

    def supports(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Optional, scale: float | None, causal: bool
    ) -> str | None:
        """Of `rewriter::attention`. Launches nothing."""
        reason = unsuited(q, k, v, scale) or self.refuses(q, k, v, mask, causal)
        if reason is not None:
            return reason
        # torch asks about the current GPU, not about the one that the tensors are on.
        with torch.cuda.device_of(q):
            if not self.able(cuda.SDPAParams(q, k, v, mask, 0.0, causal, False)):
                return "torch's own test of it says no"
            taken = torch._fused_sdp_choice(q, k, v, mask, 0.0, causal, scale=scale, enable_gqa=False)
        return "torch takes it by itself: the reference" if taken == self.kind.value else None

    def supports_tokens(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Optional, scale: float | None, causal: bool
    ) -> str | None:
        """Of `rewriter::attention_tokens`."""
        if any(each.dim() != 4 for each in (q, k, v)):
            return "other than [B, S, H, D]"
        return self.supports(*swapped(q, k, v), mask, scale, causal)


def unsuited(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float | None) -> str | None:
    """Why no fast kernel for CUDA can be given these operands, or None.

    They can: q: [B, H, S, D], k: [B, H, T, D], v: [B, H, T, E], of one dtype, f16|bf16|f32, on one GPU, each row
    at a multiple of 16 bytes, and a scale above 0 (None is 1 / sqrt(D)).
    """
    operands = (q, k, v)
    if not q.is_cuda or any(each.device != q.device for each in operands):
        return "not on one GPU"
    if q.dtype not in _DTYPES or any(each.dtype != q.dtype for each in operands):
        return "other than one dtype of f16, bf16 and f32"
    if any(each.dim() != 4 for each in operands):
        return "other than [B, H, S, D]"
    # torch 2.11's kernels do not look: with fewer values than keys they end the process.
    if q.shape[:2] != k.shape[:2] or k.shape[:3] != v.shape[:3] or q.shape[3] != k.shape[3]:
        return "extents that do not fit each other"
    if not all(each.numel() for each in operands):
        return "nothing to attend to"
    if not all(each.stride(3) == 1 and whole_vectors(each) for each in operands):
        return "operands that would have to be copied"
    if scale is not None and not 0 < scale < math.inf:
        return "a scale that is not positive and finite"
    return None


def bias_of(mask: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
    """What a mask adds to the scores, as the kernels read it: [B, H, S, T] of q's dtype, rows in whole vectors.

    mask: broadcasts to [B, H, S, T], boolean (False hides) or of q's dtype. Only its own extents lie in memory, and
    all keys.
    """
    tokens = k.shape[2]
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=q.dtype).masked_fill_(mask.logical_not(), -math.inf)
    mask = mask.expand(*mask.shape[:-1], tokens)
    if tokens % _BIAS_UNIT:
        mask = F.pad(mask, (0, -tokens % _BIAS_UNIT))[..., :tokens]
    elif mask.stride(-1) != 1 or mask.data_ptr() % 16 or any(step % _BIAS_UNIT for step in mask.stride()[:-1]):
        mask = mask.clone(memory_format=torch.contiguous_format)
    return mask.expand(*q.shape[:3], tokens)


def _cudnn(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, _bias: Optional, scale: float | None, causal: bool
) -> torch.Tensor:
    found = torch.ops.aten._scaled_dot_product_cudnn_attention(
        q, k, v, None, compute_log_sumexp=False, is_causal=causal, scale=scale
    )
    result: torch.Tensor = found[0]
    return result


def _cudnn_refuses(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Optional, causal: bool) -> str | None:
    if mask is not None:
        return "a mask: only torch's own choice of cuDNN"
    if q.dtype not in NARROW:
        return "other than f16 and bf16"
    if k.shape[2] == 1 or (causal and q.shape[2] != k.shape[2]):
        return "a single key, or hidden keys with other than one for each query"
    if any(
        step == 0 and extent > 1 for each in (q, k, v) for step, extent in zip(each.stride(), each.shape, strict=True)
    ):
        return "operands that repeat themselves in place"
    version = torch.backends.cudnn.version()
    if version is None or version <= _CUDNN_WRONG:
        return f"cuDNN {version}; expected newer than {_CUDNN_WRONG}"
    return None


def _flash(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, _bias: Optional, scale: float | None, causal: bool
) -> torch.Tensor:
    found = torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, is_causal=causal, scale=scale)
    result: torch.Tensor = found[0]
    return result


def _flash_refuses(q: torch.Tensor, k: torch.Tensor, _v: torch.Tensor, mask: Optional, causal: bool) -> str | None:
    if mask is not None:
        return "a mask"
    if q.dtype not in NARROW or q.shape[3] % 8:
        return "other than f16 and bf16, in heads of a multiple of 8 elements"
    return "hidden keys with other than one for each query" if causal and q.shape[2] != k.shape[2] else None


def _efficient(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: Optional, scale: float | None, causal: bool
) -> torch.Tensor:
    found = torch.ops.aten._scaled_dot_product_efficient_attention(
        q, k, v, bias, compute_log_sumexp=False, is_causal=causal, scale=scale
    )
    result: torch.Tensor = found[0]
    return result


def _efficient_refuses(q: torch.Tensor, k: torch.Tensor, _v: torch.Tensor, mask: Optional, causal: bool) -> str | None:
    if mask is None:
        return None
    if causal:
        return "a mask and hidden keys"
    if mask.device != q.device or mask.dtype not in (torch.bool, q.dtype):
        return "a mask of another dtype, or elsewhere"
    wanted = (*q.shape[:3], k.shape[2])
    fits = 2 <= mask.dim() <= 4 and all(a in (1, b) for a, b in zip(mask.shape[::-1], wanted[::-1], strict=False))
    return None if fits else "a mask that does not broadcast to the scores"


BACKENDS = {
    "cudnn": Backend(
        kind=SDPBackend.CUDNN_ATTENTION, kernel=_cudnn, able=cuda.can_use_cudnn_attention, refuses=_cudnn_refuses
    ),
    "flash": Backend(
        kind=SDPBackend.FLASH_ATTENTION, kernel=_flash, able=cuda.can_use_flash_attention, refuses=_flash_refuses
    ),
    "efficient": Backend(
        kind=SDPBackend.EFFICIENT_ATTENTION,
        kernel=_efficient,
        able=cuda.can_use_efficient_attention,
        refuses=_efficient_refuses,
    ),
}


def enter() -> None:
    """Adds the providers to both ops."""
    for name, backend in BACKENDS.items():
        provide("attention", name, backend.heads_first, backend.supports, measured=True)
        provide("attention_tokens", name, backend.tokens_first, backend.supports_tokens, measured=True)


if torch.cuda.is_available():
    enter()
