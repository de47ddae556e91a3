"""The linear layers of SDXL and Flux in eight bits, and what makes their rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.cases import Case, Draw
from rewriter.ops.low_precision import FORMATS

Make = Callable[[Draw], tuple[Any, ...]]
_BF16 = torch.bfloat16

# Model, rows, K, columns of the result, dtype of the result.
_LINEAR = (
    ("SDXL 32x32 output", 2048, 1280, 1280, torch.float16),
    ("SDXL 32x32 query, key and value in one", 2048, 1280, 3840, torch.float16),
    ("SDXL 32x32 GEGLU", 2048, 1280, 10240, torch.float16),
    ("SDXL 32x32 feed-forward, second", 2048, 5120, 1280, torch.float16),
    ("SDXL 64x64 output", 8192, 640, 640, torch.float16),
    ("SDXL 64x64 query, key and value in one", 8192, 640, 1920, torch.float16),
    ("SDXL 64x64 GEGLU", 8192, 640, 5120, torch.float16),
    ("SDXL 64x64 feed-forward, second", 8192, 2560, 640, torch.float16),
    ("Flux single query, key and value in one", 4608, 3072, 9216, _BF16),
    ("Flux single feed-forward", 4608, 3072, 12288, _BF16),
    ("Flux single output", 4608, 15360, 3072, _BF16),
    ("Flux image feed-forward, second", 4096, 12288, 3072, _BF16),
    ("Flux image output", 4096, 3072, 3072, _BF16),
)
_ADD = _LINEAR[:1] + _LINEAR[3:5] + _LINEAR[7:8]
_ROWS = (
    ("SDXL 32x32", 2048, 1280, torch.float16),
    ("SDXL 64x64", 8192, 640, torch.float16),
    ("Flux single", 4608, 3072, _BF16),
)


def _operand(draw: Draw, kind: str, rows: int, depth: int, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of normal numbers in the format, without what makes them: that is not what is timed."""
    codes = draw(rows, depth, dtype=torch.float32, scale=40.0).clamp_(-127, 127).to(FORMATS[kind])
    return codes, draw(rows, 1, dtype=torch.float32, scale=0.0).add_(scale / 40.0)


def _linear(kind: str, rows: int, depth: int, columns: int, dtype: torch.dtype, added: bool) -> Make:
    def make(draw: Draw) -> tuple[Any, ...]:
        left, right = _operand(draw, kind, rows, depth), _operand(draw, kind, columns, depth, depth**-0.5)
        residual = (draw(rows, columns, dtype=dtype),) if added else ()
        return (*left, *right, draw(columns, dtype=dtype), *residual)

    return make


def _norm(kind: str, rows: int, columns: int, dtype: torch.dtype) -> Make:
    def make(draw: Draw) -> tuple[Any, ...]:
        x, residual = draw(rows, columns, dtype=dtype), draw(rows, columns, dtype=dtype)
        return x, residual, [columns], draw(columns, dtype=dtype), draw(columns, dtype=dtype), 1e-5, kind

    return make


def _modulated(kind: str, rows: int, columns: int) -> Make:
    def make(draw: Draw) -> tuple[Any, ...]:
        gate, scale, shift = (each.unsqueeze(1) for each in draw(1, 3 * columns, dtype=_BF16).chunk(3, dim=1))
        x, y = draw(1, rows, columns, dtype=_BF16), draw(1, rows, columns, dtype=_BF16)
        return x, gate, y, [columns], None, None, 1e-6, scale, shift, kind

    return make


def _gated(kind: str, rows: int, columns: int, activation: str, left: int, dtype: torch.dtype) -> Make:
    return lambda draw: (
        draw(rows, columns, dtype=dtype),
        activation,
        draw(rows, left, dtype=dtype) if left else None,
        kind,
    )


def _cases(kind: str) -> list[Case]:
    return [
        *(
            Case("quantised_linear", f"{model}: {m}x{k} to {n}, {kind}", _linear(kind, m, k, n, dtype, False))
            for model, m, k, n, dtype in _LINEAR
        ),
        *(
            Case("quantised_linear_add", f"{model}: {m}x{k} to {n}, {kind}", _linear(kind, m, k, n, dtype, True))
            for model, m, k, n, dtype in _ADD
        ),
        *(
            Case("quantised_linear_geglu", f"{model}: {m}x{k} to {n}, {kind}", _linear(kind, m, k, n, dtype, False))
            for model, m, k, n, dtype in _LINEAR
            if "GEGLU" in model and kind == "f8e4m3"
        ),
        *(
            Case("quantise_rows", f"{model}: {m}x{n}, {kind}", lambda d, m=m, n=n, t=t: (d(m, n, dtype=t), kind))
            for model, m, n, t in _ROWS
        ),
        *(
            Case("add_layer_norm_quantised", f"{model}: {m}x{n}, {kind}", _norm(kind, m, n, dtype))
            for model, m, n, dtype in _ROWS[:2]
        ),
        Case("gate_add_layer_norm_modulate_quantised", f"Flux single: 4608x3072, {kind}", _modulated(kind, 4608, 3072)),
        *(
            Case("gated_quantised", f"{model}, {kind}", _gated(kind, *sizes))
            for model, *sizes in (
                ("SDXL 32x32 GEGLU: 2048x10240", 2048, 10240, "geglu", 0, torch.float16),
                ("SDXL 64x64 GEGLU: 8192x5120", 8192, 5120, "geglu", 0, torch.float16),
                ("Flux single: 4608x(3072 + 12288)", 4608, 12288, "gelu_tanh", 3072, _BF16),
            )
        ),
    ]


CASES: list[Case] = [case for kind in FORMATS for case in _cases(kind)]
