"""The tokens of one sequence before those of another, as attention over both wants them."""

from __future__ import annotations

import torch

from rewriter.ops.registry import define


def token_cat(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """first and then second along dimension 1.

    first: [B, S, H, D], second: [B, T, H, D], any dtype and strides. Result: [B, S + T, H, D], contiguous, in the dtype
    that the two promote to.
    """
    return torch.cat([first, second], dim=1).contiguous()


define("token_cat(Tensor first, Tensor second) -> Tensor", token_cat)
