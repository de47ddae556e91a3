"""Activations by name, and the ones that torch has no single op for."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from rewriter.ops.precision import widen
from rewriter.ops.registry import define


def quick_gelu(x: torch.Tensor) -> torch.Tensor:
    """x * sigmoid(1.702 * x), the GELU of CLIP. x: any shape, f16|bf16|f32|f64; result like x."""
    wide = widen(x)
    return (wide * torch.sigmoid(1.702 * wide)).to(x.dtype)


def _gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "quick_gelu": quick_gelu,
}


def activate(x: torch.Tensor, activation: str) -> torch.Tensor:
    """The named activation of x; x itself for "none". Raises ValueError for an unknown name."""
    if activation not in ACTIVATIONS:
        raise ValueError(f"unknown activation {activation!r}; expected one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[activation](x)


define("quick_gelu(Tensor x) -> Tensor", quick_gelu)
