"""Recordings as on a GPU, without one: what is played again reads and writes the memory that was there at first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from rewriter import torch_ir
from rewriter.language import load_rules
from rewriter.runtime.cuda_graphs import CudaGraphRunner
from rewriter.runtime.runner import Runner

# As on a GPU, too: a graph with the writes that rules for a CPU bring in is recorded, but nothing is hoisted out of it.
RULES = ("default", *(f"-{rule.id}" for rule in load_rules("default") if rule.phase == "lower"))


def recorded_runner(graph: torch_ir.Graph, _: str) -> Runner:
    """Runs the graph as on a GPU: every call that may be recorded is, whether it pays or not."""
    return _Runner(graph, record=_record, pays=lambda *_: True, refusal=lambda *_: None)


class _Runner(CudaGraphRunner):
    def __call__(
        self, activations: Sequence[torch.Tensor], weights: Sequence[torch.Tensor], state: int | None = None
    ) -> tuple[torch.Tensor, ...]:
        # A recording knows a weight by its memory: one that is given another memory is not followed there.
        return super().__call__(activations, [weight.detach() for weight in weights], state)


def _record(function: Callable[[], tuple[torch.Tensor, ...]]) -> Any:
    results = function()

    def play() -> None:
        for held, fresh in zip(results, function(), strict=True):
            held.copy_(fresh)

    return play, results
