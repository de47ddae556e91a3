"""The convolutions of SDXL in eight bits, batch 2 with guidance, and the norms that write what they read."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.cases import Case, Draw

# Channels, height = width, filters.
_SIZES = (
    (320, 128, 320),
    (640, 128, 320),
    (960, 128, 320),
    (640, 64, 640),
    (1280, 64, 640),
    (1920, 64, 640),
    (1280, 32, 1280),
    (2560, 32, 1280),
)
_PAIRS = [1, 1]


def _conv(draw: Draw, channels: int, side: int, filters: int) -> tuple[Any, ...]:
    codes = draw(2, channels, side, side, channels_last=True, dtype=torch.float32, scale=40.0).clamp_(-255, 255)
    weight = draw(filters, channels, 3, 3, channels_last=True, dtype=torch.float32, scale=40.0).clamp_(-255, 255)
    one, each = draw(1, dtype=torch.float32, scale=0.0), draw(filters, 1, dtype=torch.float32, scale=0.0)
    size = (9 * channels) ** -0.5 / 40.0
    codes, weight = codes.to(torch.float8_e4m3fn), weight.to(torch.float8_e4m3fn)
    return codes, one.add_(1 / 40.0), weight, each.add_(size), draw(filters), _PAIRS, _PAIRS, _PAIRS


def _norm(draw: Draw, channels: int, side: int) -> tuple[Any, ...]:
    """A convolution's result, its bias and the residual; the norm, and the largest of its weight and its bias."""
    x, residual = (draw(2, channels, side, side, channels_last=True) for _ in range(2))
    weight, bias = draw(channels), draw(channels)
    largest = (each.abs().amax().float().view(1) for each in (weight, bias))
    return x, draw(channels), residual, 32, weight, bias, 1e-5, *largest


CASES = [
    *(
        Case(
            "quantised_conv",
            f"SDXL: 2x{c}x{side}x{side} to {m}, 3x3, f8e4m3",
            lambda draw, c=c, side=side, m=m: _conv(draw, c, side, m),
        )
        for c, side, m in _SIZES
    ),
    *(
        Case(
            "add_group_norm_silu_quantised",
            f"SDXL: 2x{c}x{side}x{side} bias+residual, f8e4m3",
            lambda draw, c=c, side=side: _norm(draw, c, side),
        )
        for c, side in sorted({(m, side) for _, side, m in _SIZES})
    ),
]
