"""Repeated siblings over one input, and the weights that are prepared for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from rewriter.graph import siblings
from rewriter.graph.prepare import Prepared

X = torch.randn(5, 4)
MERGE = {
    "match": "y* = aten::linear(x, weight*, bias?*)",
    "prepare": "w = concat(weight*, dim=0)\nb = concat(bias?*, dim=0)\nsizes = extents(weight*, 0)",
    "replace": "h = aten::linear(x, w, b)\ny* = aten::split_with_sizes(h, sizes, -1)",
}


class Siblings(torch.nn.Module):
    """Linear layers over one hub, which other ops may read too."""

    def __init__(self, features: list[int], bias: list[bool], after: Callable[..., Any]) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(
            torch.nn.Linear(4, size, bias=each) for size, each in zip(features, bias, strict=True)
        )
        self.after = after

    def forward(self, x: torch.Tensor) -> Any:
        hub = torch.relu(x)
        return self.after(hub, *(layer(hub) for layer in self.layers))


def only_theirs(_: torch.Tensor, *results: torch.Tensor) -> Any:
    return results


@pytest.mark.parametrize("features", [[3, 3], [3, 5, 2], [1] * 7])
@pytest.mark.parametrize("bias", [True, False])
def test_all_siblings_in_one(bench: Any, traced: Any, features: list[int], bias: bool) -> None:
    module = Siblings(features, [bias] * len(features), lambda hub, *ys: (hub.sum(), *(y.sin() for y in ys)))
    graph, weights = traced(module, X)
    found = bench.check(graph, MERGE, X, *weights, weights=len(weights))
    assert found.fired == ["rule-0"]
    assert found.ops.count("aten::linear") == 1
    assert found.ops.count("aten::split_with_sizes") == 1
    assert [recipe.function for recipe in found.result.prepared] == ["concat"] * (1 + bias)
    found.compare(torch.randn(9, 4))


def test_no_sibling(bench: Any, traced: Any) -> None:
    graph, weights = traced(Siblings([3], [True], lambda hub, y: (hub, y)), X)
    found = bench.check(graph, MERGE, X, *weights, weights=len(weights))
    assert found.fired == []
    assert found.reasons == ["no sibling shares its operands"]


def test_those_with_and_without_bias_are_groups_of_their_own(bench: Any, traced: Any) -> None:
    module = Siblings([3, 4, 5, 6, 7], [True, False, True, False, True], only_theirs)
    graph, weights = traced(module, X)
    found = bench.check(graph, MERGE, X, *weights, weights=len(weights))
    assert found.fired == ["rule-0", "rule-0"]
    assert [len(recipe.sources) for recipe in found.result.prepared] == [3, 3, 2]


@pytest.mark.parametrize(
    ("features", "groups"),
    [([4, 4, 4, 4, 4], [2, 2]), ([9, 9, 9], []), ([2, 2, 2, 9], [3]), ([4, 3, 5, 3], [2, 2]), ([9, 3, 4], [2])],
)
def test_weights_are_merged_as_far_as_there_is_room(
    bench: Any, traced: Any, monkeypatch: pytest.MonkeyPatch, features: list[int], groups: list[int]
) -> None:
    # Eight rows of four numbers; moving weights into one takes as much memory again.
    monkeypatch.setattr(siblings, "_MOST_BYTES", 8 * 4 * 4)
    graph, weights = traced(Siblings(features, [False] * len(features), only_theirs), X)
    found = bench.check(graph, MERGE, X, *weights, weights=len(weights))
    assert [len(recipe.sources) for recipe in found.result.prepared] == groups


def test_one_without_a_partner_stays(bench: Any, traced: Any) -> None:
    module = Siblings([3, 4, 5], [True, False, True], only_theirs)
    graph, weights = traced(module, X)
    found = bench.check(graph, MERGE, X, *weights, weights=len(weights))
    assert found.fired == ["rule-0"]
    assert found.ops.count("aten::linear") == 2


def test_a_required_starred_operand(bench: Any, traced: Any) -> None:
    graph, weights = traced(Siblings([3, 4], [False, False], only_theirs), X)
    rule = {**MERGE, "match": "y* = aten::linear(x, weight*, bias*)", "prepare": MERGE["prepare"].replace("?", "")}
    found = bench.check(graph, rule, X, *weights, weights=len(weights))
    assert set(found.reasons) == {"bias is None"}


def test_count(bench: Any, traced: Any) -> None:
    graph, weights = traced(Siblings([3, 4], [True, True], only_theirs), X)
    found = bench.check(graph, {**MERGE, "where": {"y": {"count": ">=3"}}}, X, *weights, weights=len(weights))
    assert set(found.reasons) == {"y stands for 2 values, wanted >=3"}


def test_constants_are_no_weights(bench: Any) -> None:
    found = bench.check(
        """graph(%x : F(5, 4), %v : F(3, 4), %u : F(3, 4)):
          %none : NoneType = prim::Constant()
          %w : F(3, 4) = aten::neg(%u)
          %a : F(5, 3) = aten::linear(%x, %v, %none)
          %b : F(5, 3) = aten::linear(%x, %w, %none)
          return (%a, %b)""",
        {**MERGE, "where": {"weight": {"weight": True}}},
        X,
        torch.randn(3, 4),
        torch.randn(3, 4),
        weights=2,
    )
    assert set(found.reasons) == {"no sibling shares its operands"}


def test_a_weight_that_is_made_too_late(bench: Any) -> None:
    text = """graph(%x : F(5, 4), %v : F(3, 4), %w : F(3, 4)):
      %none : NoneType = prim::Constant()
      %a : F(5, 3) = aten::linear(%x, %v, %none)
      %s : F(5, 3) = aten::sin(%a)
      %b : F(5, 3) = aten::linear(%x, %w, %none)
      return (%s, %b)"""
    tensors = X, torch.randn(3, 4), torch.randn(3, 4)
    assert bench.check(text, MERGE, *tensors, weights=2).fired == ["rule-0"]
    found = bench.check(text, MERGE, *tensors, weights=1)
    assert found.fired == []
    assert bench.check(text, MERGE, *tensors, weights=0).reasons[0].endswith("is not a weight")


def test_prepared_weights_are_shared(bench: Any) -> None:
    """Two groups with the same weights need one copy."""
    found = bench.check(
        """graph(%x : F(5, 4), %z : F(5, 4), %v : F(3, 4), %w : F(3, 4)):
          %none : NoneType = prim::Constant()
          %a : F(5, 3) = aten::linear(%x, %v, %none)
          %b : F(5, 3) = aten::linear(%x, %w, %none)
          %c : F(5, 3) = aten::linear(%z, %v, %none)
          %d : F(5, 3) = aten::linear(%z, %w, %none)
          return (%a, %b, %c, %d)""",
        MERGE,
        X,
        torch.randn(5, 4),
        torch.randn(3, 4),
        torch.randn(3, 4),
        weights=2,
    )
    assert found.fired == ["rule-0", "rule-0"]
    assert found.result.prepared == (Prepared(function="concat", sources=(0, 1), options=(("dim", 0),)),)
    assert len(list(found.result.graph.inputs())) == 5


def test_recipes_build_on_recipes(bench: Any) -> None:
    rule = {
        "match": "y = aten::linear(x, w, b)",
        "prepare": "i = interleave(w, dim=0)\nt = transpose(i, 0, 1)\nr = reshape(b, [2, (M // 2)])\n"
        "c = transpose(r, 0, 1)\nd = reshape(c, [-1])",
        "replace": "h = aten::addmm(d, x, t)\nu = aten::unflatten(h, 1, [(M // 2), 2])\n"
        "v = aten::transpose(u, 1, 2)\ny = aten::flatten(v, 1, 2)",
        "where": {"w": {"shape": ["M", "K"]}},
    }
    found = bench.check(
        """graph(%x : F(5, 4), %w : F(6, 4), %b : F(6)):
          %y : F(5, 6) = aten::linear(%x, %w, %b)
          return (%y)""",
        rule,
        X,
        torch.randn(6, 4),
        torch.randn(6),
        weights=2,
    )
    assert found.fired == ["rule-0"]
    assert [recipe.sources for recipe in found.result.prepared] == [(0,), (2,), (1,), (4,), (5,)]
    assert not found.result.specialised
    found.compare(torch.randn(9, 4))


def test_a_recipe_that_does_not_fit_refuses_and_leaves_nothing_behind(bench: Any) -> None:
    rule = {
        "match": "y = aten::linear(x, w)",
        "prepare": "t = transpose(w, 0, 1)\ni = interleave(t, dim=1)",
        "replace": "y = aten::mm(x, i)",
    }
    found = bench.check(
        """graph(%x : F(5, 4), %w : F(3, 4)):
          %none : NoneType = prim::Constant()
          %y : F(5, 3) = aten::linear(%x, %w, %none)
          return (%y)""",
        rule,
        X,
        torch.randn(3, 4),
        weights=1,
    )
    assert found.reasons == ["interleave: interleave needs an even extent, found 3"]
    assert found.result.prepared == ()
    assert len(list(found.result.graph.inputs())) == 2


def test_channels_last(bench: Any, traced: Any) -> None:
    convolution = torch.nn.Conv2d(3, 4, 3)
    rule = {
        "match": "y = aten::convolution(x, w, b?, stride, padding, dilation, False, output_padding, groups)",
        "prepare": "v = channels_last(w)",
        "replace": "y = aten::conv2d(x, v, b, stride, padding, dilation, groups)",
        "ignore": {"output_padding": "read by transposed convolutions only"},
    }
    image = torch.randn(1, 3, 8, 8)
    graph, weights = traced(convolution, image)
    found = bench.check(graph, rule, image, *weights, weights=2)
    assert found.ops == ["aten::conv2d"]
    assert [recipe.function for recipe in found.result.prepared] == ["channels_last"]


def test_a_bias_of_one_element_for_all_features(bench: Any, traced: Any) -> None:
    module = Siblings([3, 5], [True, True], only_theirs)
    module.layers[0].bias = torch.nn.Parameter(torch.randn(1))
    graph, weights = traced(module, X)
    found = bench.check(graph, MERGE, X, *weights, weights=len(weights))
    assert found.fired == []
    assert found.result.prepared == ()
    assert any("aten::linear: " in reason for reason in found.reasons)


class Written(torch.nn.Module):
    """Two linear layers, and a write to a weight through a view of it."""

    def __init__(self, first: bool) -> None:
        super().__init__()
        self.first = first
        self.one, self.two = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> Any:
        if self.first:
            self.one.weight[0].add_(1.0)
        results = self.one(x).sin(), self.two(x).sin()
        if not self.first:
            self.one.weight[0].add_(1.0)
        return results


@pytest.mark.parametrize("first", [True, False])
def test_a_weight_that_the_program_writes_to_before_it_reads_it(bench: Any, traced: Any, first: bool) -> None:
    graph, weights = traced(Written(first), X)
    found = bench.check(graph, MERGE, X, *weights, weights=len(weights))
    assert found.fired == ([] if first else ["rule-0"])
    if first:
        assert set(found.reasons) == {"aten::add_ may write to a weight that is prepared before the graph runs"}
