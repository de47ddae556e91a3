"""What a pattern matches, and what it leaves alone."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

X = torch.randn(2, 4)
Y = torch.randn(2, 4)
SILU_MUL = ("s = aten::sigmoid(x)\ny = aten::mul(x, s)", "y = aten::silu(x)")


@pytest.mark.parametrize("order", ["%x, %s", "%s, %x"])
def test_commuted_multiplication(bench: Any, order: str) -> None:
    found = bench.check(
        f"""graph(%x : F(2, 4)):
          %s : F(2, 4) = aten::sigmoid(%x)
          %y : F(2, 4) = aten::mul({order})
          return (%y)""",
        SILU_MUL,
        X,
    )
    assert found.ops == ["aten::silu"]


@pytest.mark.parametrize(("order", "alpha", "fires"), [("%x, %s", 1, 1), ("%s, %x", 1, 1), ("%x, %s", 2, 0)])
def test_commuted_addition_needs_alpha_1(bench: Any, order: str, alpha: int, fires: int) -> None:
    found = bench.check(
        f"""graph(%x : F(2, 4)):
          %alpha : int = prim::Constant[value={alpha}]()
          %s : F(2, 4) = aten::relu(%x)
          %y : F(2, 4) = aten::add({order}, %alpha)
          return (%y)""",
        ("r = aten::relu(x)\ny = aten::add(x, r)", "r = aten::relu(x)\ny = aten::sub(r, x, alpha=-1)"),
        X,
    )
    assert len(found.fired) == fires


def test_what_does_not_commute(bench: Any) -> None:
    found = bench.check(
        """graph(%x : F(2, 4)):
          %one : int = prim::Constant[value=1]()
          %s : F(2, 4) = aten::sigmoid(%x)
          %y : F(2, 4) = aten::sub(%s, %x, %one)
          return (%y)""",
        ("s = aten::sigmoid(x)\ny = aten::sub(x, s)", "y = aten::silu(x)"),
        X,
    )
    assert found.fired == []


@pytest.mark.parametrize(
    ("constant", "literal", "fires"),
    [
        ("float = prim::Constant[value=2.]()", "2", True),
        ("int = prim::Constant[value=2]()", "2.0", True),
        ("int = prim::Constant[value=2]()", "2", True),
        ("int = prim::Constant[value=3]()", "2", False),
        ("float = prim::Constant[value=2.0001]()", "2", False),
    ],
)
def test_numbers_match_by_value(bench: Any, constant: str, literal: str, fires: bool) -> None:
    found = bench.check(
        f"""graph(%x : F(2, 4)):
          %c : {constant}
          %y : F(2, 4) = aten::mul(%x, %c)
          return (%y)""",
        (f"y = aten::mul(x, {literal})", "y = aten::add(x, x)"),
        X,
    )
    assert bool(found.fired) == fires


def test_a_tensor_of_one_number_is_that_number(bench: Any, traced: Any) -> None:
    graph, _ = traced(lambda x: x * 2.0, X)
    assert any("{2}" in str(node) for node in graph.nodes())
    found = bench.check(graph, ("y = aten::mul(x, 2)", "y = aten::add(x, x)"), X)
    assert found.ops == ["aten::add"]


def test_true_is_not_1(bench: Any) -> None:
    text = """graph(%x : F(2, 4)):
      %c : {}
      %d : int[] = prim::Constant[value=[1]]()
      %none : NoneType = prim::Constant()
      %y : F(2, 1) = aten::sum(%x, %d, %c, %none)
      return (%y)"""
    rule = ("y = aten::sum(x, [1], True)", "y = aten::sum(x, [-1], True)")
    assert bench.check(text.format("bool = prim::Constant[value=1]()"), rule, X).fired
    assert not bench.check(text.format("bool = prim::Constant[value=0]()"), rule, X).fired


@pytest.mark.parametrize("sizes", ["4, 2", "2, 4", "2, 2, 2"])
def test_lists_match_by_value(bench: Any, sizes: str) -> None:
    found = bench.check(
        f"""graph(%x : F(2, 4)):
          %s : int[] = prim::Constant[value=[{sizes}]]()
          %y : Tensor = aten::reshape(%x, %s)
          return (%y)""",
        ("y = aten::reshape(x, [4, 2])", "y = aten::view(x, [4, 2])"),
        X,
    )
    assert bool(found.fired) == (sizes == "4, 2")


@pytest.mark.parametrize("bias", [True, False])
def test_optional_operand(bench: Any, traced: Any, bias: bool) -> None:
    graph, weights = traced(torch.nn.Linear(4, 3, bias=bias), X)
    optional = ("y = aten::linear(x, w, b?)", 'y = rewriter::linear_act(x, w, b, "relu")')
    assert bench.check(graph, optional, weights=len(weights)).fired
    required = ("y = aten::linear(x, w, b)", "t = aten::t(w)\ny = aten::addmm(b, x, t)")
    found = bench.check(graph, required, X, *weights, weights=len(weights))
    assert bool(found.fired) == bias
    if not bias:
        assert found.reasons == ["bias: b is None"]


def test_present_tells_an_absent_operand_apart(bench: Any, traced: Any) -> None:
    rule = {
        "match": "y = aten::linear(x, w, b?)",
        "replace": "t = aten::t(w)\ny = aten::mm(x, t)",
        "where": {"b": {"present": False}},
    }
    graph, weights = traced(torch.nn.Linear(4, 3, bias=False), X)
    assert bench.check(graph, rule, X, *weights, weights=1).fired
    graph, weights = traced(torch.nn.Linear(4, 3), X)
    found = bench.check(graph, rule, X, *weights, weights=2)
    assert found.reasons == ["b is given"]


@pytest.mark.parametrize(("op", "fires"), [("relu", True), ("tanh", True), ("sigmoid", False)])
def test_alternatives_name_what_matched(bench: Any, traced: Any, op: str, fires: bool) -> None:
    weight = torch.randn(8, 4)
    graph, _ = traced(lambda x: getattr(torch, op)(torch.nn.functional.linear(x, weight)), X)
    rule = {
        "match": "h = aten::linear(x, w, b?)\ny = aten::{relu, tanh}(h) as act",
        "replace": "y = rewriter::linear_act(x, w, b, act)",
    }
    found = bench.check(graph, rule, X)
    assert bool(found.fired) == fires
    assert ("rewriter::linear_act" in found.ops) == fires
    narrowed = bench.check(graph, {**rule, "where": {"act": {"value": "relu"}}}, X)
    assert bool(narrowed.fired) == (op == "relu")


def test_list_operands(bench: Any) -> None:
    found = bench.check(
        """graph(%x : F(2, 4), %y : F(2, 4)):
          %one : int = prim::Constant[value=1]()
          %l : Tensor[] = prim::ListConstruct(%x, %y)
          %z : F(2, 8) = aten::cat(%l, %one)
          return (%z)""",
        ("z = aten::cat([a, b], 1)", "z = aten::concat([a, b], -1)"),
        X,
        Y,
    )
    assert found.ops == ["aten::concat"]


def test_a_list_of_another_length(bench: Any) -> None:
    found = bench.check(
        """graph(%x : F(2, 4)):
          %one : int = prim::Constant[value=1]()
          %l : Tensor[] = prim::ListConstruct(%x, %x, %x)
          %z : F(2, 12) = aten::cat(%l, %one)
          return (%z)""",
        ("z = aten::cat([a, b], 1)", "z = aten::concat([a, b], -1)"),
        X,
    )
    assert found.reasons == ["tensors: found another list instead of a list of 2 values"]


def test_a_list_that_is_shared_stays(bench: Any) -> None:
    found = bench.check(
        """graph(%x : F(2, 4)):
          %zero : int = prim::Constant[value=0]()
          %four : int = prim::Constant[value=4]()
          %n : int = aten::size(%x, %zero)
          %l : int[] = prim::ListConstruct(%four, %n)
          %a : Tensor = aten::view(%x, %l)
          %b : Tensor = aten::reshape(%x, %l)
          return (%a, %b)""",
        ("y = aten::view(x, [4, n])", "y = aten::reshape(x, [(2 * 2), n])"),
        X,
    )
    assert found.fired == ["rule-0"]


def test_the_halves_of_a_chunk(bench: Any) -> None:
    found = bench.check(
        """graph(%x : F(2, 4)):
          %two : int = prim::Constant[value=2]()
          %dim : int = prim::Constant[value=-1]()
          %l : Tensor[] = aten::chunk(%x, %two, %dim)
          %a : F(2, 2), %b : F(2, 2) = prim::ListUnpack(%l)
          %s : F(2, 2) = aten::sigmoid(%b)
          %y : F(2, 2) = aten::mul(%a, %s)
          return (%y)""",
        ("a, b = aten::chunk(x, 2, -1)\ns = aten::sigmoid(b)\ny = aten::mul(a, s)", "y = aten::glu(x, -1)"),
        X,
    )
    assert found.ops == ["aten::glu"]


def test_a_chunk_in_three(bench: Any) -> None:
    found = bench.check(
        """graph(%x : F(2, 6)):
          %three : int = prim::Constant[value=3]()
          %dim : int = prim::Constant[value=-1]()
          %l : Tensor[] = aten::chunk(%x, %three, %dim)
          %a : F(2, 2), %b : F(2, 2), %c : F(2, 2) = prim::ListUnpack(%l)
          %y : F(2, 2) = aten::mul(%a, %b)
          return (%y, %c)""",
        ("a, b = aten::chunk(x, n, -1)\ny = aten::mul(a, b)", "t = aten::narrow(x, -1, 0, (n))\ny = aten::mul(t, t)"),
        torch.randn(2, 6),
    )
    assert found.reasons == ["aten::chunk has 3 results instead of 2"]


def test_a_list_that_is_also_used_whole_is_not_unpacked(bench: Any) -> None:
    found = bench.check(
        """graph(%x : F(2, 4)):
          %two : int = prim::Constant[value=2]()
          %dim : int = prim::Constant[value=-1]()
          %l : Tensor[] = aten::chunk(%x, %two, %dim)
          %a : F(2, 2), %b : F(2, 2) = prim::ListUnpack(%l)
          %s : F(2, 2) = aten::sigmoid(%b)
          %y : F(2, 2) = aten::mul(%a, %s)
          %all : F(2, 4) = aten::cat(%l, %dim)
          return (%y, %all)""",
        ("a, b = aten::chunk(x, 2, -1)\ns = aten::sigmoid(b)\ny = aten::mul(a, s)", "y = aten::glu(x, -1)"),
        X,
    )
    assert found.fired == []


def test_a_late_unpacking(bench: Any) -> None:
    found = bench.check(
        """graph(%x : F(2, 4)):
          %two : int = prim::Constant[value=2]()
          %dim : int = prim::Constant[value=-1]()
          %l : Tensor[] = aten::chunk(%x, %two, %dim)
          %t : F(2, 4) = aten::relu(%x)
          %u : F(2, 4) = aten::neg(%t)
          %a : F(2, 2), %b : F(2, 2) = prim::ListUnpack(%l)
          %s : F(2, 2) = aten::sigmoid(%b)
          %y : F(2, 2) = aten::mul(%a, %s)
          return (%y, %u)""",
        ("a, b = aten::chunk(x, 2, -1)\ns = aten::sigmoid(b)\ny = aten::mul(a, s)", "y = aten::glu(x, -1)"),
        X,
    )
    assert found.fired == ["rule-0"]


def test_multiple_outputs(bench: Any) -> None:
    found = bench.check(
        """graph(%x : F(2, 4)):
          %a : F(2, 4) = aten::sin(%x)
          %u : F(2, 4) = aten::neg(%a)
          %b : F(2, 4) = aten::cos(%x)
          %v : F(2, 4) = aten::neg(%b)
          return (%u, %v)""",
        (
            "a = aten::sin(x)\nb = aten::cos(x)",
            "t = aten::neg(x)\nu = aten::sin(t)\na = aten::neg(u)\nb = aten::cos(x)",
        ),
        X,
    )
    assert found.fired == ["rule-0"]
    # Before the first consumer.
    assert found.ops[:4] == ["aten::neg", "aten::sin", "aten::neg", "aten::cos"]


def test_an_operand_that_the_match_makes_itself(bench: Any) -> None:
    found = bench.check(
        """graph(%x : F(2, 4)):
          %one : int = prim::Constant[value=1]()
          %n : F(2, 4) = aten::relu(%x)
          %y : F(2, 4) = aten::add(%n, %n, %one)
          return (%y)""",
        ("n = aten::relu(x)\ny = aten::add(n, r)", "y = aten::add(r, x)"),
        X,
    )
    assert found.fired == []
    assert "is an operand and made by the match itself" in found.reasons[0]


def test_one_name_means_one_value(bench: Any) -> None:
    text = """graph(%x : F(2, 4), %z : F(2, 4)):
      %s : F(2, 4) = aten::sigmoid(%z)
      %y : F(2, 4) = aten::mul(%x, %s)
      return (%y)"""
    found = bench.check(text, SILU_MUL, X, Y)
    assert found.fired == []


def test_near_misses_say_how_far_they_came(bench: Any) -> None:
    text = """graph(%x : F(2, 4), %z : F(2, 4)):
      %a : F(2, 4) = aten::{}(%x)
      %b : F(2, 4) = aten::{}(%a)
      %y : F(2, 4) = aten::relu(%b)
      return (%y)"""
    rule = {"match": "a = aten::sin(x)\nb = aten::cos(a)\ny = aten::relu(b)", "replace": "y = aten::tanh(x)"}
    (first,) = bench.check(text.format("sin", "exp"), rule, X, Y).result.refusals
    assert (first.rule, first.depth, first.total) == ("rule-0", 0, 3)
    assert first.reason == "self: b comes from aten::exp instead of aten::cos"
    assert re.fullmatch(r"%\d+ = aten::relu\(%\d+\)", first.node)
    (second,) = bench.check(text.format("exp", "cos"), rule, X, Y).result.refusals
    assert (second.depth, second.reason) == (1, "self: a comes from aten::exp instead of aten::sin")
    assert "aten::cos" in second.node
    (third,) = bench.check(text.format("sin", "cos"), {**rule, "where": {"x": {"rank": 3}}}, X, Y).result.refusals
    assert (third.depth, third.reason) == (3, "x has rank 2")


def test_constants_in_refusals(bench: Any) -> None:
    found = bench.check(
        """graph(%x : F(2, 4), %n : int):
          %c : float = prim::Constant[value=3.]()
          %y : F(2, 4) = aten::mul(%x, %c)
          %z : F(2, 4) = aten::mul(%x, %n)
          return (%y, %z)""",
        ("y = aten::mul(x, 2)", "y = aten::add(x, x)"),
        X,
        5,
    )
    assert found.reasons == [
        "other: found 3.0 instead of 2",
        "other: found a value computed in the graph instead of 2",
    ]


def test_underscore_matches_anything(bench: Any) -> None:
    rule = {
        "match": "y = aten::dropout(x, _, False)",
        "replace": "y = x",
        "ignore": {"p": "no effect outside of training"},
    }
    text = """graph(%x : F(2, 4)):
      %p : float = prim::Constant[value=0.3]()
      %train : bool = prim::Constant[value={}]()
      %y : F(2, 4) = aten::dropout(%x, %p, %train)
      return (%y)"""
    assert bench.check(text.format(0), rule, X).ops == []
    assert bench.check(text.format(1), rule).fired == []
