"""Rows in eight bits with a scale each, of an activation or a gate, on Hopper (`csrc/rows.cu`)."""

from __future__ import annotations

import torch

from rewriter.ops.cuda.tiles import aligned, refusal
from rewriter.ops.low_precision import FORMATS
from rewriter.ops.registry import provide

Optional = torch.Tensor | None

# In the order of csrc/rows.h.
ACTIVATIONS = ("none", "gelu", "gelu_tanh", "quick_gelu", "silu", "geglu")
# Elements of a line, lines for a thread, threads of a warp and of a block.
_LINE, _LINES, _WARP, _THREADS = 8, 5, 32, 512
# Elements of a row, and of one that a warp makes.
_LONGEST, OF_A_WARP = _LINE * _LINES * _THREADS, _LINE * _LINES * _WARP


def gated_quantised(x: torch.Tensor, activation: str, left: Optional, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """quantise_rows([left, activation(x)]), operands as in the reference; computed in f32, rounded as if stored."""
    columns = _columns(x, activation, left)
    codes = torch.empty((*x.shape[:-1], columns), dtype=FORMATS[kind], device=x.device)
    scales = torch.empty((*x.shape[:-1], 1), dtype=torch.float32, device=x.device)
    beside = None if left is None else left.view(-1, left.shape[-1])
    flat, number = x.view(-1, x.shape[-1]), ACTIVATIONS.index(activation)
    torch.ops.rewriter_cuda.quantise_rows(flat, beside, codes.view(-1, columns), scales.view(-1, 1), number)
    return codes, scales


def quantise_rows(x: torch.Tensor, kind: str) -> tuple[torch.Tensor, torch.Tensor]:
    """As the reference."""
    return gated_quantised(x, "none", None, kind)


def takes_gated(x: torch.Tensor, activation: str, left: Optional, kind: str) -> str | None:
    if activation not in ACTIVATIONS or kind not in FORMATS:
        return f"no kernel for {activation} in {kind}"
    reason = refusal(x, x if left is None else left, None)
    if reason is not None:
        return reason
    if left is not None and left.shape[:-1] != x.shape[:-1]:
        return "parts of two shapes"
    if not all(each is None or in_lines(each) for each in (x, left)):
        return "rows that are not made of whole lines of 16 bytes, or do not lie at one distance"
    columns = _columns(x, activation, left)
    if activation == "geglu" and x.shape[-1] % (2 * _LINE):
        return "halves that are not made of whole lines"
    return None if columns <= _LONGEST else "rows of too many elements"


def takes_rows(x: torch.Tensor, kind: str) -> str | None:
    return takes_gated(x, "none", None, kind)


def enter() -> None:
    """Adds the providers. The library must be loaded."""
    provide("quantise_rows", "cuda", quantise_rows, takes_rows, instead_of=("triton",))
    provide("gated_quantised", "cuda", gated_quantised, takes_gated, instead_of=("triton",))


def _columns(x: torch.Tensor, activation: str, left: Optional) -> int:
    own: int = x.shape[-1] // 2 if activation == "geglu" else x.shape[-1]
    return own + (0 if left is None else left.shape[-1])


def in_lines(x: torch.Tensor) -> bool:
    """Whether x is rows of whole lines, dense in themselves, at one distance from each other."""
    if x.dim() < 1 or x.stride(-1) != 1 or x.shape[-1] % _LINE or not aligned(x):
        return False
    try:
        flat = x.view(-1, x.shape[-1])
    except RuntimeError:
        return False
    return flat.stride(0) % _LINE == 0 and flat.shape[0] < 2**31
