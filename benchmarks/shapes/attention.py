"""Attention without a mask, as it lies between the projections of SD1.5, SDXL and SVD-XT."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.cases import Case, Draw

Make = Callable[[Draw], tuple[Any, ...]]


def _parts(d: Draw, n: int, s: int, h: int, size: int, count: int) -> list[torch.Tensor]:
    """[N, S, H, D] each, as they lie in the result of one linear layer for `count` of them."""
    return [each.unflatten(-1, (h, size)) for each in d(n, s, count * h * size).chunk(count, dim=-1)]


def _self(n: int, s: int, h: int, size: int) -> Make:
    return lambda d: (*_parts(d, n, s, h, size, 3), None, None, False)


def _text(n: int, s: int, h: int, size: int) -> Make:
    return lambda d: (d(n, s, h, size), *_parts(d, n, 77, h, size, 2), None, None, False)


# Model, batch, tokens, heads, size of a head.
_SELF = (
    ("SD1.5 64x64", 2, 4096, 8, 40),
    ("SD1.5 32x32", 2, 1024, 8, 80),
    ("SD1.5 16x16", 2, 256, 8, 160),
    ("SD1.5 8x8", 2, 64, 8, 160),
    ("SDXL 64x64", 2, 4096, 10, 64),
    ("SDXL 32x32", 2, 1024, 20, 64),
    ("SVD 72x128 frames", 18432, 25, 5, 64),
    ("SVD 36x64 frames", 4608, 25, 10, 64),
    ("SVD 18x32 frames", 1152, 25, 20, 64),
)
CASES: list[Case] = [
    *(
        Case("attention_tokens", f"{m}, 77 text tokens: {n}x{s}x{h}x{d}", _text(n, s, h, d))
        for m, n, s, h, d in _SELF[:6]
    ),
    *(Case("attention_tokens", f"{m}: {n}x{s}x{h}x{d}", _self(n, s, h, d)) for m, n, s, h, d in _SELF),
]
