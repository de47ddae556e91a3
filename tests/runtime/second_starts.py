"""A module that is started several times, as by processes that come one after the other."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F

import rewriter
from rewriter.language import RuleSet, load_rules

RULES = load_rules("default")
NOTHING = {"traces": 0, "rewrites": 0, "timings": 0}


def activation(x: torch.Tensor) -> torch.Tensor:
    return F.silu(x)


class Gate(torch.nn.Module):
    """scale: becomes a part of the graph. table: a tensor that is no buffer."""

    def __init__(self, scale: float = 2.0, groups: int = 2) -> None:
        super().__init__()
        self.norm = torch.nn.GroupNorm(groups, 8)
        self.linear = torch.nn.Linear(6, 6)
        self.scale = scale
        self.table = torch.arange(6.0)

    def forward(self, x: torch.Tensor, gain: float = 1.0) -> torch.Tensor:
        return activation(self.norm(x)) * self.scale + self.linear(x).softmax(-1) * self.table + gain


def gate(**options: Any) -> Gate:
    torch.manual_seed(0)
    return Gate(**options).eval().requires_grad_(False)


def example(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape or (2, 8, 6), generator=torch.Generator().manual_seed(1)).to(dtype)


def start(
    module: torch.nn.Module, *args: Any, rules: RuleSet | None = None, measure: bool = False, **options: Any
) -> rewriter.ComponentReport:
    """As a process would with this module and an empty memory: the first calls must equal eager's."""
    twin = copy.deepcopy(module)
    rewriter.optimize(module, rules=rules or RULES, measure=measure, **options)
    for _ in range(2):
        torch.testing.assert_close(module(*copy.deepcopy(args)), twin(*args), rtol=1e-5, atol=1e-6)
    (found,) = rewriter.report(module).components.values()
    return found


def spared(work: dict[str, int]) -> dict[str, int]:
    """What was done since the last look."""
    found = dict(work)
    work.update(dict.fromkeys(work, 0))
    return found


def configured(module: Gate, **values: Any) -> Gate:
    for name, value in values.items():
        setattr(module, name, value)
    return module
