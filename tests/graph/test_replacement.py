"""What a replacement may be made of, and what happens if it cannot be made."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rewriter.graph.view import View

X = torch.randn(2, 4)
Y = torch.randn(2, 4)


def test_an_alias(bench: Any) -> None:
    found = bench.check(
        """graph(%x : F(2, 4)):
          %p : float = prim::Constant[value=0.5]()
          %off : bool = prim::Constant[value=0]()
          %a : F(2, 4) = aten::sin(%x)
          %y : F(2, 4) = aten::dropout(%a, %p, %off)
          %z : F(2, 4) = aten::cos(%y)
          return (%z)""",
        {"match": "y = aten::dropout(x, p, False)", "replace": "y = x", "ignore": {"p": "off"}},
        X,
    )
    assert found.ops == ["aten::sin", "aten::cos"]


def test_an_alias_of_an_input_that_is_an_output(bench: Any) -> None:
    found = bench.check(
        """graph(%x : F(2, 4)):
          %p : float = prim::Constant[value=0.5]()
          %off : bool = prim::Constant[value=0]()
          %y : F(2, 4) = aten::dropout(%x, %p, %off)
          %z : F(2, 4) = aten::dropout(%y, %p, %off)
          return (%y, %x, %z)""",
        {"match": "y = aten::dropout(x, p, False)", "replace": "y = x", "ignore": {"p": "off"}},
        X,
    )
    assert found.ops == []


def test_aliases_in_a_row(bench: Any) -> None:
    rules = bench.rules(
        {"match": "y = aten::dropout(x, p, False)", "replace": "y = x", "ignore": {"p": "off"}},
        ("a = aten::sin(x)\ny = aten::asin(a)", "y = aten::clamp(x, -1.5, 1.5)"),
    )
    found = bench.check(
        """graph(%x0 : F(2, 4)):
          %p : float = prim::Constant[value=0.5]()
          %off : bool = prim::Constant[value=0]()
          %x : F(2, 4) = aten::tanh(%x0)
          %a : F(2, 4) = aten::sin(%x)
          %b : F(2, 4) = aten::dropout(%a, %p, %off)
          %c : F(2, 4) = aten::dropout(%b, %p, %off)
          %d : F(2, 4) = aten::asin(%c)
          return (%d)""",
        rules,
        X,
    )
    assert found.ops == ["aten::tanh", "aten::clamp"]


def test_the_overload_follows_the_operands(bench: Any) -> None:
    """One spelling in the rule: with tensors, with a number, with plain integers."""
    rule = ("y = aten::sub(x, r)", "t = aten::neg(r)\ny = aten::add(x, t)")
    found = bench.check(
        """graph(%x : F(2, 4), %r : F(2, 4)):
          %one : int = prim::Constant[value=1]()
          %y : F(2, 4) = aten::sub(%x, %r, %one)
          %n : int = aten::size(%x, %one)
          %m : int = aten::size(%r, %one)
          %k : int = aten::sub(%n, %m)
          return (%y, %k)""",
        rule,
        X,
        Y,
    )
    assert found.fired == ["rule-0", "rule-0"]
    kinds = [node.output().type().kind() for node in found.result.graph.nodes() if node.kind() == "aten::add"]
    assert kinds == ["TensorType", "IntType"]


def test_no_overload_takes_the_operands(bench: Any) -> None:
    rule = ("y = aten::add(x, r)", "y = aten::logaddexp(x, r)")
    text = """graph(%x : F(2, 4)):
      %one : int = prim::Constant[value=1]()
      %y : F(2, 4) = aten::add(%x, %one, %one)
      return (%y)"""
    found = bench.check(text, rule, X)
    assert found.reasons == ["no overload of aten::logaddexp takes these operands"]
    assert found.ops == ["aten::add"]


def test_a_replacement_that_fails_halfway_leaves_nothing_behind(bench: Any) -> None:
    rule = ("y = aten::add(x, r)", "t = aten::neg(x)\nu = aten::cat([t, t], 0)\ny = aten::logaddexp(u, r)")
    text = """graph(%x : F(2, 4)):
      %one : int = prim::Constant[value=1]()
      %y : F(2, 4) = aten::add(%x, %one, %one)
      return (%y)"""
    found = bench.check(text, rule, X)
    assert found.fired == []
    assert found.ops == ["aten::add"]
    assert [use for use in found.result.view.inputs[0].uses if not use[0].alive] == []


def test_numbers_take_the_form_that_the_op_wants(bench: Any, traced: Any) -> None:
    """An integer for a float, and a tensor of one number for a number."""
    rule = {"match": "y = aten::mul(x, c)", "replace": "y = aten::elu(x, c, c, c)", "where": {"c": {"const": True}}}
    graph, _ = traced(lambda x: x * 2.0, X)
    found = bench.check(graph, rule)
    assert found.ops == ["aten::elu"]
    found.result.graph.lint()
    from rewriter import torch_ir

    with torch_ir.plain_executor():
        torch_ir.function_from_graph(found.result.graph)(X)
    text = """graph(%x : F(2, 4)):
      %d : float = prim::Constant[value=0.]()
      %e : int = prim::Constant[value=2]()
      %y : Tensor = aten::mul(%x, %e)
      return (%y)"""
    pad = {
        "match": "y = aten::mul(x, c)",
        "replace": "y = aten::hardtanh(x, (0 - 1000), (1000 * c))",
        "where": {"c": {"const": True}},
    }
    assert bench.check(text, pad).ops == ["aten::hardtanh"]


def test_empty_lists_and_optional_lists(bench: Any) -> None:
    text = "graph(%x : F(2, 4)):\n %y : F(2, 4) = aten::relu(%x)\n return (%y)"
    rule = (
        "y = aten::relu(x)",
        "t = aten::permute(x, [0, 1])\nu = aten::sum(t, [], False, dtype=None)\ny = aten::clamp_min(t, 0)",
    )
    assert bench.check(text, rule, X).fired
    upsample = (
        "y = aten::relu(x)",
        "a = aten::unsqueeze(x, 0)\nb = aten::upsample_nearest1d(a, None, [1.0])\nc = aten::squeeze(b, 0)\n"
        "y = aten::clamp_min(c, 0)",
    )
    assert bench.check(text, upsample, X).fired


def test_integers_computed_by_the_replacement(bench: Any) -> None:
    text = "graph(%x : F(2, 4)):\n %y : F(2, 4) = aten::relu(%x)\n return (%y)"
    rule = (
        "y = aten::relu(x)",
        "n = aten::size(x, 0)\nm = aten::mul(n, 2)\nt = aten::reshape(x, [m, -1])\nu = aten::clamp_min(t, 0)\n"
        "y = aten::reshape(u, [n, -1])",
    )
    found = bench.check(text, rule, X)
    found.compare(torch.randn(6, 4))


def test_a_result_of_another_type_is_refused(bench: Any) -> None:
    text = """graph(%x : F(2, 4)):
      %zero : int = prim::Constant[value=0]()
      %n : int = aten::size(%x, %zero)
      %y : F(2, 4) = aten::mul(%x, %n)
      return (%y)"""
    found = bench.check(text, ("n = aten::size(x, d)", "n = aten::select(x, (0 * d), 0)"), X)
    assert found.reasons == ["n would become a TensorType instead of a IntType"]


def test_facts_of_new_values_are_inferred(bench: Any) -> None:
    """A later rule sees dtype, rank and extents of what an earlier one made."""
    rules = bench.rules(
        (
            "y = aten::relu(x)",
            "t = aten::unsqueeze(x, 0)\nu = aten::neg(t)\nv = aten::squeeze(u, 0)\ny = aten::rsub(v, 0)",
        ),
        {
            "match": "u = aten::neg(t)",
            "replace": "u = aten::rsub(t, 0)",
            "phase": "lower",
            "where": {"t": {"dtype": "f32", "rank": 3, "shape": [1, "N", 4]}},
        },
    )
    text = "graph(%x : F(2, 4)):\n %y : F(2, 4) = aten::relu(%x)\n return (%y)"
    assert bench.check(text, rules).fired == ["rule-0", "rule-1"]


def test_facts_of_new_values_stay_in_the_graph(bench: Any) -> None:
    """Rules that come later, in a rewriting of their own, see them, as do those that time what came of them."""
    made = (
        "t = aten::unsqueeze(x, 0)",
        "a, b = aten::split(t, 1, 1)",
        "u = aten::add(a, b)",
        "v = aten::cat([u, u], 1)",
    )
    rules = bench.rules(("y = aten::relu(x)", "\n".join((*made, "y = aten::squeeze(v, 0)"))))
    kind = "Half(2, 4, strides=[4, 1], device=cuda:1)"
    result = bench.check(f"graph(%x : {kind}):\n %y : {kind} = aten::relu(%x)\n return (%y)", rules).result
    found = {
        node.op: [value.facts and (value.facts.shape, value.facts.dtype, value.facts.device) for value in node.outputs]
        for node in View(result.graph, 0).nodes
        if node.op.startswith("aten::")
    }
    assert found == {
        "aten::unsqueeze": [((1, 2, 4), "f16", "cuda")],
        "aten::split": 2 * [((1, 1, 4), "f16", "cuda")],
        "aten::add": [((1, 1, 4), "f16", "cuda")],
        "aten::cat": [((1, 2, 4), "f16", "cuda")],
        "aten::squeeze": [((2, 4), "f16", "cuda")],
    }
    # The very GPU, and not just some.
    assert str(result.graph).count("device=cuda:1") == 7


def test_many_replacements_before_one_consumer(bench: Any) -> None:
    """Room is left between nodes for any number of new ones."""
    count = 120
    lines = ["%one : int = prim::Constant[value=1]()"]
    lines += [f"%a{i} : F(2, 4) = aten::sin(%x{i})" for i in range(count)]
    lines += [f"%l : Tensor[] = prim::ListConstruct({', '.join(f'%a{i}' for i in range(count))})"]
    lines += ["%c : Tensor = aten::cat(%l, %one)"]
    lines += [f"%b{i} : F(2, 4) = aten::cos(%x{i})" for i in range(count)]
    lines += [f"%m : Tensor[] = prim::ListConstruct({', '.join(f'%b{i}' for i in range(count))})"]
    lines += ["%d : Tensor = aten::cat(%m, %one)", "return (%c, %d)"]
    signature = ", ".join(f"%x{i} : F(2, 4)" for i in range(count))
    rule = (
        "a = aten::sin(x)\nb = aten::cos(x)",
        "t = aten::abs(x)\nb = aten::cos(x)\nu = aten::sin(t)\nv = aten::sign(x)\na = aten::mul(u, v)",
    )
    found = bench.check(f"graph({signature}):\n" + "\n".join(lines), rule)
    found.result.graph.lint()
    assert found.fired.count("rule-0") >= 30


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes(bench: Any, traced: Any, dtype: torch.dtype) -> None:
    layer = torch.nn.Linear(4, 6).to(dtype)
    x = X.to(dtype)
    graph, weights = traced(layer, x)
    rule = {"match": "y = aten::linear(x, w, b)", "replace": "t = aten::t(w)\ny = aten::addmm(b, x, t)"}
    found = bench.check(graph, rule, weights=len(weights))
    assert found.fired == ["rule-0"]


def test_a_view_of_what_then_lies_otherwise_becomes_a_reshape(bench: Any) -> None:
    """Slices of a merged projection have gaps between their rows, which a view cannot bridge."""
    rule = {
        "match": "y = aten::neg(x)",
        "where": {"x": {"rank": 2}},
        "replace": "t = aten::transpose(x, 0, 1)\nn = aten::mul(t, -1)\ny = aten::transpose(n, 0, 1)",
    }
    found = bench.check(
        """graph(%x : F(2, 4)):
          %y : F(2, 4) = aten::neg(%x)
          %eight : int = prim::Constant[value=8]()
          %size : int[] = prim::ListConstruct(%eight)
          %v : F(8) = aten::view(%y, %size)
          return (%v)""",
        rule,
        torch.arange(8.0).reshape(2, 4),
    )
    assert found.ops == ["aten::transpose", "aten::mul", "aten::transpose", "aten::reshape"]
