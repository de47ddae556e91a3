"""Ops that torch computes with too few digits even in f64, computed with all of them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_CUBIC = 0.044715


class Precise(TorchDispatchMode):
    """In f64, GELU keeps its relative precision far below zero.

    Torch adds 1 to a number near -1 there, and of x * Phi(x) nothing is left below -8.3; kernels that compute it
    otherwise are closer to the truth than that. `met`: whether there was one. The mode costs as much as a small op for
    each op inside.
    """

    met = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten.gelu.default and args[0].dtype is torch.float64:
            self.met = True
            return gelu(args[0], kwargs.get("approximate", "none"))
        return func(*args, **kwargs)


def gelu(x: torch.Tensor, approximate: str) -> torch.Tensor:
    """x * erfc(-x / sqrt(2)) / 2, or x * sigmoid(2 * sqrt(2 / pi) * (x + 0.044715 * x**3)), as the one with tanh is."""
    if approximate == "none":
        tail: torch.Tensor = torch.special.erfc(x * -math.sqrt(0.5))
        return x * (tail * 0.5)
    return x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + _CUBIC * x * x * x))
