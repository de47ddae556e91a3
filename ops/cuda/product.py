"""Linear layers, plain, with a residual, with GEGLU, on Hopper (`csrc/convolution.cu`, `csrc/gated.cu`)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from rewriter.ops.cuda.tiles import aligned, refusal, steps_of, ways_to_share
from rewriter.ops.registry import Config, provide

Optional = torch.Tensor | None

# Rows of a GEGLU that are done for all columns before the next ones: what runs at once reads few rows and few columns.
_BAND = 2048
# Below this many rows, flat tiles of a GEGLU make a fuller wave than wide ones.
_FLAT_ROWS = 512
# Below this many rows, a tile is mostly empty.
_FEWEST_ROWS = 64


def linear_act(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional,
    _activation: str,
    *,
    rows: int,
    across: int,
    along: int,
    splits: int,
) -> torch.Tensor:
    """x @ weight.T + bias, operands as in the reference; sums in f32, rounded once.

    rows, across, along, splits: see `ways_to_share`.
    """
    return _linear(x, weight, bias, None, (rows, across, along, splits))


def linear_add(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: Optional,
    residual: torch.Tensor,
    *,
    rows: int,
    across: int,
    along: int,
    splits: int,
) -> torch.Tensor:
    """x @ weight.T + bias + residual; the rest as in `linear_act`."""
    return _linear(x, weight, bias, residual, (rows, across, along, splits))


def linear_geglu(
    x: torch.Tensor, weight: torch.Tensor, bias: Optional, *, rows: int, columns: int, across: int, along: int
) -> torch.Tensor:
    """hidden * gelu(gate), operands as in the reference; sums in f32, rounded once.

    rows, columns: of a block's results; across, along: blocks of a cluster that share rows, and columns.
    """
    flat = x.reshape(-1, x.shape[-1])
    y = torch.empty((flat.shape[0], weight.shape[0] // 2), dtype=x.dtype, device=x.device)
    band = _BAND // (rows * along)
    torch.ops.rewriter_cuda.linear_geglu(flat, weight, bias, y, rows, columns, across, along, band)
    return y.view(*x.shape[:-1], -1)


def takes_act(x: torch.Tensor, weight: torch.Tensor, bias: Optional, activation: str) -> str | None:
    if activation != "none":
        return f"no epilogue for {activation}"
    reason = _no_product(x, weight, bias)
    if reason is not None:
        return reason
    rows = x.numel() // x.shape[-1]
    if rows < _FEWEST_ROWS or weight.shape[0] % 8:
        return "few rows, or columns that are no multiple of 8"
    return None if rows * weight.shape[0] < 2**31 else "more than 2^31 results"


def takes_add(x: torch.Tensor, weight: torch.Tensor, bias: Optional, residual: torch.Tensor) -> str | None:
    reason = takes_act(x, weight, bias, "none")
    if reason is not None:
        return reason
    if residual.shape != (*x.shape[:-1], weight.shape[0]) or residual.dtype != x.dtype or residual.device != x.device:
        return "the residual broadcasts, promotes or is on another device"
    return None if residual.is_contiguous() and aligned(residual) else "the residual has gaps"


def takes_geglu(x: torch.Tensor, weight: torch.Tensor, bias: Optional) -> str | None:
    reason = _no_product(x, weight, bias)
    if reason is not None:
        return reason
    return "halves that are no multiples of 8" if weight.shape[0] % 16 else None


def linear_configs(x: torch.Tensor, weight: torch.Tensor, *_: object) -> Sequence[Config]:
    """Ways to share the work, best first by an estimate."""
    return ways_to_share(x, x.numel() // x.shape[-1], weight.shape[0], steps_of(x.shape[-1]))


def geglu_configs(x: torch.Tensor, *_: object) -> Sequence[Config]:
    """Tiles and clusters, mostly the best first."""
    rows = x.numel() // x.shape[-1]
    shapes = [(128, 80, 2, 1)] if rows <= _FLAT_ROWS else [(128, 128, 1, 2)]
    if rows > 128:
        shapes.insert(0, (256, 80, 2, 1))
    return [dict(zip(("rows", "columns", "across", "along"), shape, strict=True)) for shape in shapes]


def enter() -> None:
    """Adds the providers. The library must be loaded."""
    provide("linear_act", "cuda", linear_act, takes_act, linear_configs)
    provide("linear_add", "cuda", linear_add, takes_add, linear_configs)
    provide("linear_geglu", "cuda", linear_geglu, takes_geglu, geglu_configs)


def _linear(
    x: torch.Tensor, weight: torch.Tensor, bias: Optional, residual: Optional, shared: tuple[int, int, int, int]
) -> torch.Tensor:
    y = torch.empty((*x.shape[:-1], weight.shape[0]), dtype=x.dtype, device=x.device)
    added = None if residual is None else _picture(residual)
    filters = weight[:, :, None, None, None]
    torch.ops.rewriter_cuda.convolution(_picture(x), filters, bias, added, _picture(y), 1, 0, 0, 0, 1, *shared)
    return y


def _picture(rows: torch.Tensor) -> torch.Tensor:
    """[..., K], dense, as a picture [1, K, 1, 1, M] of one row of pixels."""
    return rows.view(-1, rows.shape[-1]).t()[None, :, None, None, :]


def _no_product(x: torch.Tensor, weight: torch.Tensor, bias: Optional) -> str | None:
    reason = refusal(x, weight, bias)
    if reason is not None:
        return reason
    if x.dim() == 0 or weight.dim() != 2 or x.shape[-1] != weight.shape[1]:
        return "shapes that torch refuses too"
    if x.shape[-1] % 8 or not x.is_contiguous() or not weight.is_contiguous():
        return "rows with gaps, or of a length that is no multiple of 8"
    return None
