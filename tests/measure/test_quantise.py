"""Rules that quantise are timed against what all the others have made of a graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rewriter import torch_ir
from rewriter.graph.canonical import canonicalise
from rewriter.graph.conditions import Target
from rewriter.language import RuleSet, load_rules
from rewriter.measure import choice, regions
from rewriter.measure.region import Pair
from rewriter.measure.timing import Timing


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWRITER_CACHE", str(tmp_path))


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(128, 128)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.linear(x) + x).neg()


def rules(pack: str) -> RuleSet:
    anywhere = (dataclasses.replace(rule, devices=(), sm=None) for rule in load_rules(pack))
    return RuleSet.ordered((load_rules()["linear-add"], *anywhere))


def timed(kinds: list[set[str]], microseconds: dict[str, float]) -> Callable[..., Timing]:
    def time(_self: Any, pair: Pair, _known: Any) -> Timing:
        ops = [{node.kind() for node in region.graph.nodes()} for region in (pair.before, pair.after)]
        kinds.extend(ops)
        cost = [sum(microseconds.get(op, 0.0) for op in each) for each in ops]
        return Timing(before=cost[0], after=cost[1])

    return time


@pytest.mark.parametrize(("pack", "quantised", "stays"), [("fp8", 5.0, True), ("fp8", 7.0, False), ("int8", 7.0, True)])
def test_speed_decides_unless_memory_does(
    monkeypatch: pytest.MonkeyPatch, pack: str, quantised: float, *, stays: bool
) -> None:
    seen: list[set[str]] = []
    # Faster than torch's two ops, and not always than the one that the other rules have made.
    cost = {"aten::linear": 10.0, "rewriter::linear_add": 6.0, "rewriter::quantised_linear_add": quantised}
    monkeypatch.setattr(regions.Regions, "time", timed(seen, cost))
    module = Layer().half().eval()
    graph, weights = torch_ir.trace(module, [torch.randn(1, 4, 128).half()])
    canonicalise(graph)
    found = choice.choose(graph, rules(pack), weights=len(weights), target=Target(device="cpu")).rewritten
    kept = {done.rule for done in found.rewrites if done.kept}
    assert "linear-add" in kept
    assert any(rule.startswith(pack) for rule in kept) is stays
    kinds = {node.kind() for node in found.graph.nodes()}
    assert ("rewriter::quantised_linear_add" in kinds) is stays
    assert ("rewriter::linear_add" in kinds) is not stays
    if pack == "fp8":
        assert "rewriter::linear_add" in seen[-2]
