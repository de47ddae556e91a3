"""Canonical graphs, and that they hold for other shapes than the traced one."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from rewriter import torch_ir
from rewriter.graph.canonical import canonicalise


def ops(graph: Any) -> list[str]:
    return [node.kind() for node in graph.nodes()]


def call(graph: Any, *arguments: Any) -> Any:
    with torch_ir.plain_executor(), torch.no_grad():
        return torch_ir.function_from_graph(graph)(*arguments)


def test_sizes_are_plain_integers_and_stay_dynamic(traced: Any) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        half = (c * 2 + 2 - 1) // 3 % 5
        return x.reshape(n * c, h * w).repeat(1, half + 1).view(n, -1)

    graph, _ = traced(function, torch.zeros(2, 3, 4, 5))
    assert not {"prim::NumToTensor", "aten::Int", "aten::ScalarImplicit"} & set(ops(graph))
    for shape in ((2, 3, 4, 5), (1, 3, 4, 5), (3, 4, 2, 1)):
        x = torch.randn(shape)
        torch.testing.assert_close(call(graph, x), function(x))


def test_tensors_that_are_no_sizes_stay(traced: Any) -> None:
    def function(x: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        return x[:2] * (n + x.shape[0])

    graph, _ = traced(function, torch.zeros(4, 3), torch.tensor(5))
    x = torch.randn(6, 3)
    torch.testing.assert_close(call(graph, x, torch.tensor(7)), x[:2] * 13)


def test_one_convolution(traced: Any) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ConvTranspose2d(4, 2, 2, stride=2))
    x = torch.randn(1, 3, 8, 8)
    graph, weights = traced(module, x)
    assert "aten::_convolution" not in ops(graph)
    assert ops(graph).count("aten::convolution") == 2
    torch.testing.assert_close(call(graph, x, *weights), module(x), rtol=1e-5, atol=1e-5)
    other = torch.randn(2, 3, 6, 10)
    torch.testing.assert_close(call(graph, other, *weights), module(other), rtol=1e-5, atol=1e-5)


def test_in_place_twins_become_functional(traced: Any) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        y += x
        return torch.nn.functional.silu(y, inplace=True)

    graph, _ = traced(function, torch.zeros(2, 3))
    assert [op for op in ops(graph) if op.endswith("_")] == []
    x = torch.randn(5, 3)
    torch.testing.assert_close(call(graph, x), torch.nn.functional.silu(3 * x))


@pytest.mark.parametrize("training", [False, True])
def test_dropout_that_is_its_operand(bench: Any, training: bool) -> None:
    """Outside of training dropout returns its operand, which a write to the result changes too."""
    graph = bench.parse(
        f"""graph(%x0 : F(2, 3)):
          %p : float = prim::Constant[value=0.5]()
          %on : bool = prim::Constant[value={int(training)}]()
          %x : F(2, 3) = aten::sin(%x0)
          %y : F(2, 3) = aten::dropout(%x, %p, %on)
          %z : F(2, 3) = aten::relu_(%y)
          return (%x, %z)"""
    )
    x = torch.randn(2, 3)
    expected = call(graph, x)
    canonicalise(graph)
    if training:
        assert "aten::dropout" in ops(graph)
    else:
        torch.testing.assert_close(call(graph, x), expected)


def test_dropout_that_nobody_writes_to_is_left_to_the_rules(traced: Any) -> None:
    graph, _ = traced(torch.nn.Sequential(torch.nn.Dropout(), torch.nn.ReLU(inplace=True)), torch.zeros(2, 3))
    assert "aten::dropout" not in ops(graph)
    graph, _ = traced(torch.nn.Sequential(torch.nn.Dropout(), torch.nn.ReLU()), torch.zeros(2, 3))
    assert "aten::dropout" in ops(graph)


def test_the_callers_tensor_is_still_written_to(traced: Any) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        x.add_(1)
        return x * 2

    graph, _ = traced(function, torch.zeros(2, 3))
    x = torch.zeros(2, 3)
    torch.testing.assert_close(call(graph, x), torch.full((2, 3), 2.0))
    torch.testing.assert_close(x, torch.ones(2, 3))


def test_rewritten_graphs_run_at_other_shapes(bench: Any, traced: Any) -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = torch.nn.GroupNorm(2, 8)
            self.conv = torch.nn.Conv2d(8, 8, 3, padding=1)
            self.query = torch.nn.Linear(8, 8)
            self.key = torch.nn.Linear(8, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = x + self.conv(torch.nn.functional.silu(self.norm(x)))
            n, c, height, width = h.shape
            tokens = h.reshape(n, c, height * width).transpose(1, 2)
            scores = (self.query(tokens) @ self.key(tokens).transpose(1, 2)).softmax(-1)
            return (scores @ tokens).transpose(1, 2).reshape(n, c, height, width)

    from rewriter.language import load_rules

    x = torch.randn(1, 8, 6, 6)
    graph, weights = traced(Block(), x)
    found = bench.check(graph, load_rules(), x, *weights, weights=len(weights))
    assert found.fired
    assert not found.result.specialised
    for shape in ((2, 8, 6, 6), (1, 8, 3, 10), (3, 8, 1, 1)):
        found.compare(torch.randn(shape))
