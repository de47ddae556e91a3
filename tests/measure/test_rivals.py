"""Where two rules ask for the same nodes, the one that is tried first does not keep the faster one out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rewriter import torch_ir
from rewriter.graph.canonical import canonicalise
from rewriter.graph.conditions import Target
from rewriter.graph.engine import rewrite
from rewriter.language import RuleSet, load_rules
from rewriter.measure import choice, regions
from rewriter.measure.cache import TimingCache
from rewriter.measure.region import Pair, Region, Unmeasurable
from rewriter.measure.timing import Timing

RULES = """\
format: 1
pack: contest
summary: Two rules that want the same sum. What they make of it is wrong, and never run.
rules:
  - id: sum-first
    summary: relu(x) + z
    match: |
      a = aten::relu(x)
      y = aten::add(a, z)
    replace: |
      y = aten::maximum(x, z)
    rivals: sum-last
    inputs:
      x: {shape: [N]}
      z: {shape: [N]}
    dims: {N: 1..3}
  - id: sum-last
    summary: sigmoid(x + z)
    phase: lower
    match: |
      s = aten::add(x, z)
      y = aten::sigmoid(s)
    replace: |
      y = aten::minimum(x, z)
    inputs:
      x: {shape: [N]}
      z: {shape: [N]}
    dims: {N: 1..3}
"""


class Sums(torch.nn.Module):
    """A sum that both rules match, and one that only the first does."""

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return torch.tanh(torch.relu(torch.sigmoid(torch.relu(x) + z)) + x)


@pytest.fixture
def rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RuleSet:
    monkeypatch.setenv("REWRITER_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "contest.yaml"
    path.write_text(RULES, encoding="utf-8")
    return load_rules(path)


def chosen(monkeypatch: pytest.MonkeyPatch, rules: RuleSet, costs: dict[str, float]) -> tuple[choice.Choice, list[str]]:
    """What is chosen where each op takes as long as it costs, and the ops of the graph."""

    def cost(region: Region) -> float:
        return sum(costs.get(node.kind(), 0.0) for node in region.graph.nodes())

    def time(_self: Any, pair: Pair, _known: Any) -> Timing:
        return Timing(before=cost(pair.before), after=cost(pair.after))

    monkeypatch.setattr(regions.Regions, "time", time)
    graph, _ = torch_ir.trace(Sums().eval(), (torch.randn(3), torch.randn(3)))
    canonicalise(graph)
    found = choice.choose(graph, rules, weights=0, target=Target(device="cpu"))
    return found, [
        node.kind().removeprefix("aten::") for node in found.rewritten.graph.nodes() if costs.get(node.kind())
    ]


COSTS = {f"aten::{name}": 2.0 for name in ("relu", "add", "sigmoid", "tanh")} | {"aten::maximum": 3.0}


@pytest.mark.parametrize(
    ("rival", "ops"),
    [
        pytest.param(2.5, "relu minimum maximum tanh", id="the rival is faster"),
        pytest.param(3.5, "maximum sigmoid maximum tanh", id="the first is faster"),
    ],
)
def test_the_faster_of_two_that_pay_is_kept(
    monkeypatch: pytest.MonkeyPatch, rules: RuleSet, rival: float, ops: str
) -> None:
    found, left = chosen(monkeypatch, rules, COSTS | {"aten::minimum": rival})
    assert " ".join(left) == ops
    kept = {(done.rule, done.kept) for done in found.rewritten.rewrites}
    assert kept == {("sum-first", True), ("sum-first", rival > 3), ("sum-last", rival < 3)}
    assert ("sum-first or sum-last", 1) in {(name, count) for name, count, _ in found.timings}


def test_a_rule_that_loses_anyway_has_no_rival_to_beat(monkeypatch: pytest.MonkeyPatch, rules: RuleSet) -> None:
    found, left = chosen(monkeypatch, rules, COSTS | {"aten::maximum": 9.0, "aten::minimum": 9.0})
    assert left == ["relu", "add", "sigmoid", "relu", "add", "tanh"]
    assert not any(" or " in name for name, *_ in found.timings)


def test_a_contest_that_cannot_be_timed_changes_nothing_and_is_said(
    monkeypatch: pytest.MonkeyPatch, rules: RuleSet
) -> None:
    original = regions.Regions.timed

    def timed(self: Any, pair: Pair, name: str, known: Any) -> Timing:
        if " or " in name:
            raise Unmeasurable("no shape")
        return original(self, pair, name, known)

    monkeypatch.setattr(regions.Regions, "timed", timed)
    found, left = chosen(monkeypatch, rules, COSTS | {"aten::minimum": 1.0})
    assert left == ["maximum", "sigmoid", "maximum", "tanh"]
    (said,) = found.unmeasurable
    assert said.startswith("sum-first or sum-last: no shape (first at ")


def test_what_a_rival_makes_is_made_ready_before_it_is_timed(monkeypatch: pytest.MonkeyPatch, rules: RuleSet) -> None:
    graph, _ = torch_ir.trace(Sums().eval(), (torch.randn(3), torch.randn(3)))
    canonicalise(graph)
    events: list[str] = []

    def time(*_: Any) -> Timing:
        events.append("timed")
        return Timing(before=2.0, after=1.0)

    def prepare(calls: Any) -> None:
        events.extend(f"ready {list(call().shape)}" for call in calls)

    monkeypatch.setattr(regions.Regions, "time", time)
    target = Target(device="cpu")
    base = rewrite(graph, rules, weights=0, phases=(), target=target)
    regions.Regions(base, rules, 0, target, TimingCache("cpu"), ("fuse", "lower")).run(prepare)
    # Two places of the first rule are alike; then the one that both want.
    assert events == ["timed", "ready [3]", "timed"]


def test_rivals_that_are_for_other_machines_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU, where no rival of a rule of the default pack is for it, graphs are not rewritten once more."""
    calls: list[object] = []
    original = regions.Regions.rewritten
    monkeypatch.setattr(regions.Regions, "rewritten", lambda *given: calls.append(given) or original(*given))
    monkeypatch.setattr(regions.Regions, "time", lambda *_: Timing(before=2.0, after=1.0))

    class Residual(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.norm = torch.nn.Linear(4, 4), torch.nn.LayerNorm(4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.norm(self.linear(x) + x)  # type: ignore[no-any-return]

    graph, weights = torch_ir.trace(Residual().eval(), (torch.randn(2, 3, 4),))
    canonicalise(graph)
    rules = RuleSet((load_rules()["linear-add"], load_rules()["add-layer-norm"]))
    for target, expected, times in (
        (Target(device="cpu"), {"linear-add"}, 1),
        # With all rules, with the sum for the norm, and without what lost.
        (Target(device="cuda", sm=90), {"linear-add", "add-layer-norm"}, 3),
    ):
        calls.clear()
        found = choice._Choice(rules, len(weights), target, TimingCache("cpu"), None).choose(graph)
        assert {done.rule for done in found.rewritten.rewrites} == expected
        assert len(calls) == times


def test_rivals_of_the_packs_are_rules_of_theirs() -> None:
    rules = load_rules()
    assert all(rival in rules for rule in rules for rival in rule.rivals)
    assert rules["linear-add"].rivals == ("add-layer-norm",)
