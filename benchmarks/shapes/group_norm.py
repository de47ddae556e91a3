"""Group norms of SD1.5, SDXL, SVD-XT and the VAE, batch 2 with guidance, in NHWC unless the label says otherwise."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.cases import Case, Draw

GROUPS, EPS = 32, 1e-5
# Channels and height = width; samples are 2.
SD15 = ((320, 64), (640, 64), (960, 64), (320, 32), (640, 32), (960, 32), (1280, 32), (1920, 32))
SD15_SMALL = ((640, 16), (1280, 16), (1920, 16), (2560, 16), (1280, 8), (2560, 8))
SDXL = ((320, 128), (640, 128), (960, 128), (1280, 64), (1920, 64), (2560, 32))


def _norm(draw: Draw, c: int) -> tuple[Any, ...]:
    return GROUPS, draw(c), draw(c), EPS


def _plain(op: str, label: str, *shape: int, channels_last: bool = True) -> Case:
    return Case(op, label, lambda draw: (draw(*shape, channels_last=channels_last), *_norm(draw, shape[1])))


def _timed(op: str, label: str, *shape: int) -> Case:
    """A convolution's result, its bias and the time embedding."""
    n, c, *_ = shape
    ones = [1] * (len(shape) - 2)
    return Case(
        op,
        f"{label} bias+time",
        lambda draw: (draw(*shape, channels_last=True), draw(c), draw(n, c, *ones), *_norm(draw, c)),
    )


def _residual(op: str, label: str, *shape: int) -> Case:
    """A convolution's result, its bias and the residual."""
    c = shape[1]
    return Case(
        op,
        f"{label} bias+residual",
        lambda draw: (
            draw(*shape, channels_last=True), draw(c), draw(*shape, channels_last=True), *_norm(draw, c)
        ),
    )  # fmt: skip


def _frames(draw: Draw, n: int, frames: int, c: int, h: int, w: int) -> torch.Tensor:
    """[n, c, frames, h, w], each frame in NHWC order: what a video model's temporal blocks see without a copy."""
    flat = draw(n * frames, c, h, w, channels_last=True)
    return flat.unflatten(0, (n, frames)).transpose(1, 2)


def _video(n: int, c: int, h: int, w: int) -> list[Case]:
    frames, label = 25, f"{n}x25x{c}x{h}x{w}"
    return [
        _plain("group_norm_silu", f"{n * frames}x{c}x{h}x{w}", n * frames, c, h, w),
        Case(
            "group_norm_silu", f"{label} frames", lambda draw: (_frames(draw, n, frames, c, h, w), *_norm(draw, c))
        ),
        Case(
            "sum_group_norm_silu",
            f"{label} frames bias+time",
            lambda draw: (
                _frames(draw, n, frames, c, h, w), draw(c), draw(n, frames, c, 1, 1).transpose(1, 2), *_norm(draw, c)
            ),
        ),
    ]  # fmt: skip


def _image(c: int, side: int) -> list[Case]:
    label, shape = f"2x{c}x{side}x{side}", (2, c, side, side)
    return [
        _plain("group_norm_silu", label, *shape),
        _timed("sum_group_norm_silu", label, *shape),
        _residual("add_group_norm_silu", label, *shape),
    ]


CASES: list[Case] = [
    *(case for c, side in (*SD15, *SD15_SMALL, *SDXL) for case in _image(c, side)),
    _timed("add_group_norm_silu", "2x320x64x64", 2, 320, 64, 64),
    _plain("group_norm", "2x320x64x64", 2, 320, 64, 64),
    _residual("add_group_norm", "2x320x64x64", 2, 320, 64, 64),
    _residual("add_group_norm", "2x1280x16x16", 2, 1280, 16, 16),
    _residual("sum_group_norm_silu", "2x320x64x64", 2, 320, 64, 64),
    _plain("group_norm_silu", "2x320x64x64 NCHW", 2, 320, 64, 64, channels_last=False),
    _plain("group_norm_silu", "2x1280x8x8 NCHW", 2, 1280, 8, 8, channels_last=False),
    _plain("group_norm_silu", "VAE 1x128x512x512", 1, 128, 512, 512),
    _plain("group_norm_silu", "VAE 1x512x64x64", 1, 512, 64, 64),
    _plain("group_norm", "VAE 1x512x4096 tokens", 1, 512, 4096),
    *_video(2, 320, 72, 128),
    *_video(2, 1280, 18, 32),
    *_video(2, 1280, 9, 16),
]
