"""The linear layers of SD1.5, SDXL, SVD-XT and Flux that an activation, a gate or a residual follows."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.cases import Case, Draw

# Model, rows, K, columns of the result (linear_geglu computes twice as many).
_GEGLU = (
    ("SD1.5 64x64", 8192, 320, 1280),
    ("SD1.5 32x32", 2048, 640, 2560),
    ("SD1.5 16x16", 512, 1280, 5120),
    ("SD1.5 8x8", 128, 1280, 5120),
    ("SDXL 64x64", 8192, 640, 2560),
    ("SDXL 32x32", 2048, 1280, 5120),
    ("SVD 72x128, 4 frames", 36864, 320, 1280),
    ("SVD 36x64, 8 frames", 18432, 640, 2560),
)
# The feed-forward's second layer, and the attention's output projection.
_ADD = (
    ("SD1.5 64x64 output", 8192, 320, 320),
    ("SD1.5 64x64 feed-forward", 8192, 1280, 320),
    ("SD1.5 32x32 output", 2048, 640, 640),
    ("SD1.5 32x32 feed-forward", 2048, 2560, 640),
    ("SD1.5 16x16 output", 512, 1280, 1280),
    ("SD1.5 16x16 feed-forward", 512, 5120, 1280),
    ("SD1.5 8x8 feed-forward", 128, 5120, 1280),
    ("SDXL 64x64 output", 8192, 640, 640),
    ("SDXL 64x64 feed-forward", 8192, 2560, 640),
    ("SDXL 32x32 output", 2048, 1280, 1280),
    ("SDXL 32x32 feed-forward", 2048, 5120, 1280),
    ("SVD 72x128 feed-forward, 4 frames", 36864, 1280, 320),
)
_ACT = (
    ("Flux image feed-forward", "gelu_tanh", 4096, 3072, 12288, torch.bfloat16),
    ("Flux text feed-forward", "gelu_tanh", 512, 3072, 12288, torch.bfloat16),
    ("Flux single feed-forward", "gelu_tanh", 4608, 3072, 12288, torch.bfloat16),
    ("Flux image output", "none", 4096, 3072, 3072, torch.bfloat16),
    ("Flux image feed-forward, second", "none", 4096, 12288, 3072, torch.bfloat16),
    ("Flux query, key and value in one", "none", 4608, 3072, 9216, torch.bfloat16),
    ("Flux single output", "none", 4608, 15360, 3072, torch.bfloat16),
    ("SDXL 32x32 query", "none", 2048, 1280, 1280, torch.float16),
    ("SDXL 64x64 query", "none", 8192, 640, 640, torch.float16),
    ("SDXL 32x32 query, key and value in one", "none", 2048, 1280, 3840, torch.float16),
    ("SD1.5 64x64 query, key and value in one", "none", 8192, 320, 960, torch.float16),
    ("SD1.5 text key", "none", 154, 768, 320, torch.float16),
    ("CLIP-L feed-forward", "relu", 154, 768, 3072, torch.float16),
)


def _operands(draw: Draw, rows: int, depth: int, columns: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    weight = draw(columns, depth, dtype=dtype, scale=depth**-0.5)
    return draw(1, rows, depth, dtype=dtype), weight, draw(columns, dtype=dtype)


def _geglu(rows: int, depth: int, columns: int) -> Any:
    return lambda draw: _operands(draw, rows, depth, 2 * columns, torch.float16)


def _add(rows: int, depth: int, columns: int) -> Any:
    return lambda draw: (*_operands(draw, rows, depth, columns, torch.float16), draw(1, rows, columns))


def _act(name: str, rows: int, depth: int, columns: int, dtype: torch.dtype) -> Any:
    return lambda draw: (*_operands(draw, rows, depth, columns, dtype), name)


def _label(model: str, rows: int, depth: int, columns: int, what: str = "") -> str:
    return f"{model}: {rows}x{depth} to {columns}{what}"


CASES: list[Case] = [
    *(Case("linear_geglu", _label(model, *sizes), _geglu(*sizes)) for model, *sizes in _GEGLU),
    *(Case("linear_add", _label(model, *sizes), _add(*sizes)) for model, *sizes in _ADD),
    *(
        Case("linear_act", _label(model, *sizes, f", {name}"), _act(name, *sizes, dtype))
        for model, name, *sizes, dtype in _ACT
    ),
]
