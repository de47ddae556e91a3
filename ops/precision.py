"""What every norm and activation does with low precision and with memory order."""

from __future__ import annotations

from typing import overload

import torch

NARROW = (torch.float16, torch.bfloat16)


@overload
def widen(x: torch.Tensor) -> torch.Tensor: ...
@overload
def widen(x: None) -> None: ...
def widen(x: torch.Tensor | None) -> torch.Tensor | None:
    """f16 and bf16 as f32; f32 and f64 as they are."""
    return x.float() if x is not None and x.dtype in NARROW else x


def channels_innermost(x: torch.Tensor) -> bool:
    """Whether x: [N, C, ...] lies in memory as [N, ..., C] (channels_last for rank 4, channels_last_3d for rank 5)."""
    return x.dim() > 2 and x.shape[1] > 1 and x.stride(1) == 1 and not x.is_contiguous()


def laid_out_like(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """y: [N, C, ...], dense, in [N, ..., C] order where x has its channels innermost, else in [N, C, ...] order."""
    if channels_innermost(x):
        return y.movedim(1, -1).contiguous().movedim(-1, 1)
    return y.contiguous()
