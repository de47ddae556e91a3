"""`where`, `require`, `gpu` and `device`; and which of them tie a result to the shapes of one call."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rewriter.graph.conditions import Target
from rewriter.graph.facts import TensorFacts

LINEAR = """graph(%x : {x}, %w : {w}, %b : F(6)):
  %y : {y} = aten::linear(%x, %w, %b)
  return (%y)"""
X = torch.randn(2, 8)
W = torch.randn(6, 8)
B = torch.randn(6)


def verdict(bench: Any, where: dict[str, Any], require: list[Any] | None = None, **extra: Any) -> str | bool:
    """The reason against a linear layer of 8 by 6 features and a batch of 2, or whether the result is specialised."""
    rule = {"match": "y = aten::linear(x, w, b)", "replace": "t = aten::t(w)\ny = aten::addmm(b, x, t)", **extra}
    text = LINEAR.format(x="F(2, 8)", w="F(6, 8)", y="F(2, 6)")
    found = bench.check(text, {**rule, "where": where, "require": require or []}, X, W, B, weights=2)
    return found.reasons[0] if found.reasons else bool(found.result.specialised)


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ({"x": {"dtype": "f32"}}, False),
        ({"x": {"dtype": ["f16", "f32"], "rank": [2, 3]}}, False),
        ({"x": {"dtype": "f16"}}, "x is f32"),
        ({"x": {"rank": 3}}, "x has rank 2"),
        ({"y": {"rank": 3}}, "y has rank 2"),
        ({"x": {"weight": True}}, "x is not a weight"),
        ({"w": {"weight": True}}, False),
        ({"w": {"weight": False}}, "w is a weight"),
        ({"x": {"device": "cpu"}}, False),
        ({"x": {"device": "cuda"}}, "x is on cpu"),
        ({"x": {"const": True}}, "x is not known before the graph runs"),
        ({"x": {"min": 1}}, "x is not constant, wanted at least 1"),
        ({"x": {"value": 3}}, "x is not constant"),
        ({"x": {"uses": 1}}, False),
        ({"x": {"uses": ">1"}}, "x has 1 uses"),
        ({"x": {"count": 2}}, "x stands for 1 values, wanted ==2"),
        ({"b": {"present": True}}, False),
        ({"b": {"present": False}}, "b is given"),
        # Formats and extents of activations hold for this call only, those of weights for all.
        ({"w": {"format": "contiguous"}}, False),
        ({"w": {"format": "channels_last"}}, "w is not channels_last"),
        ({"x": {"format": "contiguous"}}, True),
        ({"w": {"format": "not channels_last"}}, False),
        ({"x": {"format": "not channels_last"}}, True),
        ({"w": {"shape": ["M", "K"]}}, False),
        ({"x": {"shape": ["N", "K"]}, "w": {"shape": ["M", "K"]}}, False),
        ({"x": {"shape": ["N", 8]}}, True),
        ({"x": {"shape": ["N", "K"]}, "y": {"shape": ["N", "M"]}}, True),
        ({"x": {"shape": ["N", "K"]}, "w": {"shape": ["M", "N"]}}, "x has 2 where N is 8"),
        ({"w": {"shape": [6, "..."]}}, False),
        ({"w": {"shape": ["...", 8]}}, False),
        ({"w": {"shape": ["...", 7]}}, "w has 8 where 7 is 7"),
        ({"w": {"shape": ["M", "K", "L"]}}, "w has rank 2"),
        ({"w": {"shape": ["M", "..."]}, "b": {"shape": ["M"]}}, False),
        ({"w": {"shape": ["M", "M + 2"]}}, False),
        ({"w": {"shape": ["M", "M + 3"]}}, "w has 8 where M + 3 is 9"),
        ({"w": {"shape": ["2*Q", "K"]}, "b": {"shape": ["Q"]}}, "w has 6 where 2*Q is 12"),
    ],
)
def test_where(bench: Any, where: dict[str, Any], expected: str | bool) -> None:
    assert verdict(bench, where) == expected


@pytest.mark.parametrize(
    ("shape", "memory", "expected"),
    [
        ((2, 3), torch.contiguous_format, "contiguous"),
        ((2, 3, 4, 5), torch.contiguous_format, "contiguous"),
        ((2, 3, 4, 5), torch.channels_last, "channels_last"),
        # Filters over time alone: extents of 1 leave no doubt, as there are three frames.
        ((6, 4, 3, 1, 1), torch.contiguous_format, "contiguous"),
        ((6, 4, 3, 1, 1), torch.channels_last_3d, "channels_last"),
        ((6, 4, 1, 1), torch.contiguous_format, None),
        ((6, 4, 1, 1), torch.channels_last, None),
        ((1, 1, 4, 5), torch.contiguous_format, None),
    ],
)
def test_the_format_is_told_where_strides_leave_no_doubt(
    shape: tuple[int, ...], memory: torch.memory_format, expected: str | None
) -> None:
    strides = torch.empty(shape).contiguous(memory_format=memory).stride()
    assert TensorFacts("f32", len(shape), "cpu", shape, strides).format == expected
    if len(shape) > 2:
        assert TensorFacts("f32", len(shape), "cpu", shape, tuple(2 * step for step in strides)).format is None


@pytest.mark.parametrize(
    ("where", "require", "expected"),
    [
        ({"w": {"shape": ["M", "K"]}}, ["K % 8 == 0", "M < K"], False),
        ({"w": {"shape": ["M", "K"]}}, ["M % 4 == 0"], "M % 4 == 0 does not hold"),
        ({"x": {"shape": ["N", "K"]}}, ["N <= 2"], True),
        ({"x": {"shape": ["N", "K"]}}, ["N // (K - 8) == 0"], "N // (K - 8) == 0 cannot be decided"),
        ({}, ["x > 1"], "x > 1 cannot be decided"),
    ],
)
def test_require(bench: Any, where: dict[str, Any], require: list[str], expected: str | bool) -> None:
    assert verdict(bench, where, require) == expected


@pytest.mark.parametrize(
    ("extra", "target", "expected"),
    [
        ({"device": "cpu"}, Target("cpu"), False),
        ({"device": "cuda"}, Target("cpu"), "for cuda only"),
        ({"gpu": {"sm": ">=80"}}, Target("cuda", 90), False),
        ({"gpu": {"sm": ">=80"}}, Target("cuda", 75), "needs a GPU of compute capability >=80, found 75"),
        ({"gpu": {"sm": ">=80"}}, Target("cpu"), "needs a GPU of compute capability >=80, found None"),
    ],
)
def test_machine(bench: Any, extra: dict[str, Any], target: Target, expected: str | bool) -> None:
    rule = {"match": "y = aten::relu(x)", "replace": "y = aten::clamp_min(x, 0)", **extra}
    text = "graph(%x : F(2, 8)):\n %y : F(2, 8) = aten::relu(%x)\n return (%y)"
    found = bench.check(text, rule, X, target=target)
    assert (found.reasons[0] if found.reasons else False) == expected


@pytest.mark.parametrize("dtype", ["F", "H", "B", "D", "L"])
def test_dtypes(bench: Any, dtype: str) -> None:
    names = {"F": "f32", "H": "f16", "B": "bf16", "D": "f64", "L": "i64"}
    rule = {"match": "y = aten::abs(x)", "replace": "t = aten::neg(x)\ny = aten::maximum(t, x)"}
    text = f"graph(%x : {dtype}(2, 8)):\n %y : {dtype}(2, 8) = aten::abs(%x)\n return (%y)"
    assert bench.check(text, {**rule, "where": {"x": {"dtype": names[dtype]}}}).fired
    others = [name for name in names.values() if name != names[dtype]]
    assert bench.check(text, {**rule, "where": {"x": {"dtype": others}}}).reasons == [f"x is {names[dtype]}"]


@pytest.mark.parametrize(("code", "fires"), [(6, True), (5, False), (7, False)])
def test_dtype_equals(bench: Any, code: int, fires: bool) -> None:
    rule = {"match": "y = aten::to(x, kind, False, False, None)", "replace": "y = x"}
    found = bench.check(
        f"""graph(%x : F(2, 8)):
          %kind : int = prim::Constant[value={code}]()
          %no : bool = prim::Constant[value=0]()
          %none : NoneType = prim::Constant()
          %y : Tensor = aten::to(%x, %kind, %no, %no, %none)
          return (%y)""",
        {**rule, "where": {"x": {"dtype_equals": "kind"}}},
        X,
    )
    assert bool(found.fired) == fires


@pytest.mark.parametrize(
    ("condition", "fires"),
    [
        ({"value": 2}, True),
        ({"value": [1, 2.0]}, True),
        ({"value": [1, 3]}, False),
        ({"min": 2, "max": 2.5}, True),
        ({"min": 2.5}, False),
        ({"max": 1}, False),
        ({"const": True}, True),
    ],
)
def test_constants(bench: Any, condition: dict[str, Any], fires: bool) -> None:
    found = bench.check(
        """graph(%x : F(2, 8)):
          %c : int = prim::Constant[value=2]()
          %y : F(2, 8) = aten::pow(%x, %c)
          return (%y)""",
        {
            "match": "y = aten::pow(x, c)",
            "replace": "t = aten::abs(x)\ny = aten::pow(t, c)",
            "where": {"c": condition, "x": {"weight": True}},
        },
        X,
        weights=1,
    )
    assert bool(found.fired) == fires


def test_an_integer_operand_can_be_read_in_expressions(bench: Any) -> None:
    rule = {
        "match": "y = aten::group_norm(x, groups, w, b, 1e-5, cudnn)",
        "replace": "y = aten::layer_norm(x, [(groups * 3), 5], w2, b2)",
        "where": {"w": {"shape": ["C"]}},
        "require": ["groups == 1", "C == 3 * groups"],
        "ignore": {"cudnn": "a hint"},
        "prepare": "w1 = reshape(w, [(C), 1])\nw2 = concat(w1, w1, w1, w1, w1, dim=1)\n"
        "b1 = reshape(b, [(C), 1])\nb2 = concat(b1, b1, b1, b1, b1, dim=1)",
    }
    text = """graph(%x : F(2, 3, 5), %w : F(3), %b : F(3)):
      %g : int = prim::Constant[value=1]()
      %eps : float = prim::Constant[value=1e-05]()
      %on : bool = prim::Constant[value=1]()
      %y : F(2, 3, 5) = aten::group_norm(%x, %g, %w, %b, %eps, %on)
      return (%y)"""
    arguments = torch.randn(2, 3, 5), torch.randn(3), torch.randn(3)
    found = bench.check(text, rule, *arguments, weights=2)
    assert found.ops == ["aten::layer_norm"]
    assert not found.result.specialised


def test_an_extent_in_the_replacement_specialises(bench: Any) -> None:
    rule = {
        "match": "y = aten::flatten(x, 0, 1)",
        "replace": "y = aten::reshape(x, [(N * C), -1])",
        "where": {"x": {"shape": ["N", "C", "W"]}},
    }
    text = """graph(%x : F(2, 3, 5)):
      %zero : int = prim::Constant[value=0]()
      %one : int = prim::Constant[value=1]()
      %y : F(6, 5) = aten::flatten(%x, %zero, %one)
      return (%y)"""
    found = bench.check(text, rule, torch.randn(2, 3, 5))
    assert found.fired
    assert found.result.specialised
    dynamic = {
        "match": "y = aten::flatten(x, 0, 1)",
        "replace": "n = aten::size(x, 2)\ny = aten::reshape(x, [-1, n])",
    }
    found = bench.check(text, dynamic, torch.randn(2, 3, 5))
    assert not found.result.specialised
    found.compare(torch.randn(4, 7, 11))


def test_nothing_is_known(bench: Any) -> None:
    text = "graph(%x : Tensor):\n %y : Tensor = aten::relu(%x)\n return (%y)"
    rule = {"match": "y = aten::relu(x)", "replace": "y = aten::clamp_min(x, 0)"}
    assert bench.check(text, {**rule, "where": {"x": {"rank": 2}}}, X).reasons == ["nothing is known about x"]
    assert bench.check(text, {**rule, "where": {"x": {"shape": ["N"]}}}, X).reasons == ["the shape of x is not known"]
    assert bench.check(text, rule, X).fired
