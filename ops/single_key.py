"""What is left of attention to a single key: its value, the same for every query."""

from __future__ import annotations

import torch

from rewriter.ops.registry import define


def only_row(x: torch.Tensor) -> torch.Tensor:
    """x: [B, 1, H, E] as [B, 1, H * E]. Raises ValueError for other ranks, and for more rows than one or none."""
    if x.dim() != 4 or x.shape[1] != 1:
        raise ValueError(f"rewriter::only_row: found {list(x.shape)}, expected [B, 1, H, E]")
    return x.flatten(2).clone(memory_format=torch.contiguous_format)


def add_row(x: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
    """x + row. x: [B, S, C], row: [B, 1, C]; they promote as `+` does. Raises ValueError for other shapes."""
    if x.dim() != 3 or row.shape != (x.shape[0], 1, x.shape[2]):
        raise ValueError(
            f"rewriter::add_row: found {list(x.shape)} and {list(row.shape)}, expected [B, S, C] and [B, 1, C]"
        )
    return x + row


define("only_row(Tensor x) -> Tensor", only_row)
define("add_row(Tensor x, Tensor row) -> Tensor", add_row)
