"""The order in which rules are applied, their end, what is reported, and the mirror of the graph."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rewriter.graph.engine import EndlessRules
from rewriter.graph.view import View

X = torch.randn(2, 4)
CHAIN = """graph(%x : F(2, 4)):
  %a : F(2, 4) = aten::sin(%x)
  %b : F(2, 4) = aten::cos(%a)
  %c : F(2, 4) = aten::exp(%b)
  return (%c)"""


def test_phases_go_in_order(bench: Any) -> None:
    rules = bench.rules(
        {"id": "late", "match": "y = aten::sin(x)", "replace": "y = aten::tan(x)", "phase": "lower"},
        {"id": "early", "match": "y = aten::tan(x)", "replace": "y = aten::abs(x)", "phase": "canonicalise"},
        {"id": "middle", "match": "y = aten::tan(x)", "replace": "y = aten::neg(x)", "phase": "lower"},
    )
    found = bench.check(CHAIN, rules)
    assert found.fired == ["late", "middle"]
    assert [done.phase for done in found.result.rewrites] == ["lower", "lower"]
    only = bench.check(CHAIN, rules, phases=("canonicalise", "fuse"))
    assert only.fired == []


@pytest.mark.parametrize(("benefit", "winner"), [(1, "short"), (2, "long")])
def test_benefit_and_the_order_of_the_file(bench: Any, benefit: int, winner: str) -> None:
    rules = bench.rules(
        {"id": "short", "match": "y = aten::exp(x)", "replace": "y = aten::exp2(x)"},
        {
            "id": "long",
            "match": "b = aten::cos(a)\ny = aten::exp(b)",
            "replace": "y = aten::tan(a)",
            "benefit": benefit,
        },
    )
    assert bench.check(CHAIN, rules).fired == [winner]


def test_benefit_decides_between_matches_that_end_at_different_nodes(bench: Any) -> None:
    """The shorter match ends first in the graph, and would take the value that the longer one needs."""
    rules = bench.rules(
        {"id": "short", "match": "a = aten::sin(x)\nb = aten::cos(a)", "replace": "b = aten::tan(x)"},
        {"id": "long", "match": "b = aten::cos(a)\ny = aten::exp(b)", "replace": "y = aten::abs(a)", "benefit": 2},
        {"id": "after", "match": "a = aten::sin(x)\ny = aten::abs(a)", "replace": "y = aten::neg(x)"},
    )
    assert bench.check(CHAIN, rules).fired == ["long", "after"]


def test_a_rewrite_makes_room_for_another_before_it(bench: Any) -> None:
    """What a rule makes is looked at again, and so is what stands after it."""
    rules = bench.rules(
        {"id": "third", "match": "a = aten::abs(x)\ny = aten::cos(a)", "replace": "y = aten::tan(x)"},
        {"id": "second", "match": "a = aten::neg(x)\nb = aten::sqrt(a)", "replace": "b = aten::abs(x)"},
        {"id": "first", "match": "a = aten::sin(x)", "replace": "t = aten::neg(x)\na = aten::sqrt(t)"},
    )
    assert bench.check(CHAIN, rules).fired == ["first", "second", "third"]


def test_a_use_that_goes_away_makes_a_match_possible(bench: Any) -> None:
    rules = bench.rules(
        {"id": "pair", "match": "s = aten::sigmoid(x)\ny = aten::mul(x, s)", "replace": "y = aten::silu(x)"},
        {"id": "drop", "match": "n = aten::neg(s)\ny = aten::add(s, n)", "replace": "y = aten::zeros_like(s)"},
        {
            "id": "size",
            "match": "y = aten::zeros_like(s)",
            "replace": "y = aten::new_zeros(s, [2, 4])",
            "phase": "lower",
        },
    )
    found = bench.check(
        """graph(%x : F(2, 4)):
          %one : int = prim::Constant[value=1]()
          %s : F(2, 4) = aten::sigmoid(%x)
          %y : F(2, 4) = aten::mul(%x, %s)
          %n : F(2, 4) = aten::neg(%x)
          %z : F(2, 4) = aten::add(%x, %n, %one)
          return (%y, %z)""",
        rules,
        X,
    )
    assert found.fired == ["pair", "drop", "size"]


@pytest.mark.parametrize("readers", [3, 60])
def test_hubs_are_not_forgotten(bench: Any, readers: int) -> None:
    """Where a value has very many readers, a change is not followed to each, but none is missed in the end."""
    lines = ["%h : F(2, 4) = aten::sin(%x)", "%g : F(2, 4) = aten::exp(%h)"]
    lines += [
        f"%r{i} : F(2, 4) = aten::cos(%g)" if i % 2 else f"%r{i} : F(2, 4) = aten::tan(%g)" for i in range(readers)
    ]
    outputs = ", ".join(f"%r{i}" for i in range(readers))
    rules = bench.rules(
        {
            "id": "reader",
            "match": "y = aten::{cos, tan}(x) as act",
            "replace": "y = aten::abs(x)",
            "ignore": {"act": "either"},
            "where": {"x": {"uses": ">=3"}},
        },
        {
            "id": "maker",
            "match": "a = aten::sin(x)\ny = aten::exp(a)",
            "replace": "y = aten::tanh(x)",
            "phase": "merge",
        },
    )
    found = bench.check("graph(%x : F(2, 4)):\n" + "\n".join(lines) + f"\nreturn ({outputs})", rules)
    assert found.fired.count("reader") == readers
    assert found.fired[0] == "maker"


def test_rules_without_an_end(bench: Any) -> None:
    rules = bench.rules(
        {"id": "there", "match": "y = aten::sin(x)", "replace": "y = aten::cos(x)"},
        {"id": "back", "match": "y = aten::cos(x)", "replace": "y = aten::sin(x)"},
    )
    with pytest.raises(
        EndlessRules, match=r"rewrites of a graph of 3 nodes, most by (there|back) \(\d+ times\), "
    ) as caught:
        bench.check(CHAIN, rules)
    assert "there" in str(caught.value)
    assert "back" in str(caught.value)


def test_growing_rules_have_an_end_too(bench: Any) -> None:
    rules = bench.rules(
        {"id": "grow", "match": "y = aten::sin(x)", "replace": "a = aten::tan(x)\nb = aten::tan(a)\ny = aten::abs(b)"},
        {"id": "again", "match": "y = aten::tan(x)", "replace": "a = aten::sin(x)\ny = aten::abs(a)"},
    )
    with pytest.raises(EndlessRules, match="again"):
        bench.check(CHAIN, rules)


def test_blocked(bench: Any) -> None:
    rules = bench.rules(
        {"id": "pair", "match": "b = aten::cos(a)\ny = aten::exp(b)", "replace": "y = aten::tan(a)"},
        {"id": "single", "match": "y = aten::exp(x)", "replace": "y = aten::exp2(x)"},
    )
    assert bench.check(CHAIN, rules).fired == ["pair"]
    found = bench.check(CHAIN, rules, blocked=frozenset({("pair", 1)}))
    assert found.fired == ["single"]
    assert "it was measured here and does not pay" in found.reasons
    assert bench.check(CHAIN, rules, blocked=frozenset({("single", 2)})).fired == ["pair"]


def test_origins_follow_through_rewrites(bench: Any) -> None:
    rules = bench.rules(
        {"id": "pair", "match": "b = aten::cos(a)\ny = aten::exp(b)", "replace": "t = aten::tan(a)\ny = aten::neg(t)"},
        {"id": "rest", "match": "a = aten::sin(x)\nt = aten::tan(a)", "replace": "t = aten::abs(x)", "phase": "lower"},
    )
    found = bench.check(CHAIN, rules)
    assert [sorted(done.origins) for done in found.result.rewrites] == [[1, 2], [0, 1, 2]]
    made = {node.op: node.rule for node in found.result.view.alive()}
    assert made == {"aten::abs": "rest", "aten::neg": "pair"}


def test_what_takes_a_place_has_its_facts_after_the_graph_has_lost_the_other(bench: Any) -> None:
    """They are asked for late, where a region is cut out to be timed: Flux's attention could not be."""
    rules = bench.rules(
        {"id": "pair", "match": "b = aten::cos(a)\ny = aten::exp(b)", "replace": "y = aten::tan(a)"},
        {"id": "single", "match": "y = aten::sin(x)", "replace": "y = aten::abs(x)", "phase": "lower"},
    )
    found = bench.check(CHAIN, rules)
    assert found.fired == ["pair", "single"]
    for node in found.result.view.alive():
        assert node.outputs[0].facts.shape == (2, 4)


def test_scopes_name_the_module(bench: Any, traced: Any) -> None:
    class Inner(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.sigmoid(x) * x

    class Outer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = torch.nn.Sequential(Inner(), Inner())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.block(x))

    graph, _ = traced(Outer(), X)
    found = bench.check(graph, ("s = aten::sigmoid(x)\ny = aten::mul(x, s)", "y = aten::silu(x)"), X)
    assert [done.scope.split("function.")[-1] for done in found.result.rewrites] == ["block.0", "block.1"]


def test_counts_of_nodes(bench: Any) -> None:
    found = bench.check(CHAIN, ("b = aten::cos(a)\ny = aten::exp(b)", "y = aten::tan(a)"))
    assert (found.result.nodes_before, found.result.nodes_after) == (3, 2)


def test_no_rules(bench: Any) -> None:
    from rewriter.language.rule import RuleSet

    found = bench.check(CHAIN, RuleSet(()), X)
    assert found.fired == []
    assert len(found.ops) == 3


def test_the_mirror_stays_in_step(bench: Any) -> None:
    """After rewriting, the mirror equals one made afresh from its graph."""
    rules = bench.rules(
        (
            "s = aten::sigmoid(x)\ny = aten::mul(x, s)",
            "a, b = aten::chunk(x, 2, 0)\nt = aten::cat([b, a], 0)\ny = aten::silu(t)",
        ),
        {"match": "y = aten::neg(x)", "replace": "y = aten::rsub(x, 0)"},
        {"match": "y = aten::dropout(x, _, False)", "replace": "y = x", "ignore": {"p": "off"}},
    )
    found = bench.check(
        """graph(%x : F(2, 4)):
          %off : bool = prim::Constant[value=0]()
          %p : float = prim::Constant[value=0.5]()
          %d : F(2, 4) = aten::dropout(%x, %p, %off)
          %s : F(2, 4) = aten::sigmoid(%d)
          %y : F(2, 4) = aten::mul(%s, %d)
          %n : F(2, 4) = aten::neg(%y)
          %e : F(2, 4) = aten::dropout(%n, %p, %off)
          return (%e, %y)""",
        rules,
    )
    mirror = found.result.view
    fresh = View(mirror.graph, 0)
    ours = [node for node in sorted(mirror.alive(), key=lambda node: node.order) if node.op != "prim::Constant"]
    theirs = [node for node in fresh.nodes if node.op != "prim::Constant"]
    assert [str(node) for node in ours] == [str(node) for node in theirs]
    for one, other in zip(ours, theirs, strict=True):
        for mine, its in zip(one.outputs, other.outputs, strict=True):
            assert sorted((user.op, slot) for user, slot in mine.uses) == sorted(
                (user.op, slot) for user, slot in its.uses
            )
