"""A module of one layer, and what its report says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import rewriter
from rewriter.runtime.report import ComponentReport


class Net(torch.nn.Module):
    """A linear layer around which a test puts what it wants to know."""

    def __init__(self, body: Callable[..., Any]) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)
        self.body = body

    def forward(self, x: torch.Tensor, *others: Any, scale: float = 1.0, **options: Any) -> Any:
        return self.body(self.linear(x), *others, scale=scale, **options)


def net(body: Callable[..., Any]) -> Net:
    return Net(body).eval()


def status(module: torch.nn.Module) -> ComponentReport:
    (part,) = rewriter.report(module).components.values()
    return part


def plain(y: torch.Tensor, scale: float) -> torch.Tensor:
    return y * scale


def x(rows: int = 3) -> torch.Tensor:
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(rows))
