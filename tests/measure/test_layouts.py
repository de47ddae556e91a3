"""The memory order of values is the one that the graph really produces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rewriter import torch_ir
from rewriter.graph.canonical import canonicalise
from rewriter.graph.conditions import Target
from rewriter.graph.engine import rewrite
from rewriter.language import load_rules
from rewriter.measure import choice, regions, whole
from rewriter.measure.layouts import record_layouts
from rewriter.measure.timing import Timing

CPU = Target(device="cpu")


class Blocks(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Conv2d(4, 8, 3, padding=1)
        self.norm = torch.nn.GroupNorm(2, 8)
        self.second = torch.nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        halves = torch.nn.functional.silu(self.norm(self.first(x))).chunk(2, 1)
        return self.second(torch.cat([halves[1].relu(), halves[0]], 1))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REWRITER_CACHE", str(tmp_path))


def traced() -> tuple[torch_ir.Graph, list[torch.Tensor], torch.Tensor]:
    x = torch.randn(2, 4, 5, 6)
    graph, weights = torch_ir.trace(Blocks().eval(), [x])
    canonicalise(graph)
    return graph, weights, x


def strides(graph: torch_ir.Graph) -> dict[str, list[int]]:
    return {
        node.kind(): value.type().strides()
        for node in graph.nodes()
        for value in node.outputs()
        if value.type().kind() == "TensorType"
    }


def test_types_follow_the_weights_that_the_graph_is_run_with() -> None:
    graph, weights, x = traced()
    assert strides(graph)["aten::convolution"] == [120, 30, 6, 1]
    ordered = [w.contiguous(memory_format=torch.channels_last) if w.dim() == 4 else w for w in weights]
    text = [node.kind() for node in graph.nodes()]
    record_layouts(graph, [x, *ordered])
    assert strides(graph)["aten::convolution"] == [120, 1, 24, 4]
    assert [node.kind() for node in graph.nodes()] == text


def test_what_rewrites_make_lies_as_what_it_is_made_of() -> None:
    """Regions behind it would be timed on values in another order, and lose what kernels for that order win."""
    module = Blocks().half().eval().to(memory_format=torch.channels_last)
    x = torch.randn(2, 4, 5, 6).half().contiguous(memory_format=torch.channels_last)
    graph, weights = torch_ir.trace(module, [x])
    canonicalise(graph)
    hopper = Target(device="cuda", sm=90)
    result = rewrite(graph, load_rules("default"), weights=len(weights), target=hopper).graph
    made = [value for node in result.nodes() if node.kind() == "rewriter::conv_act" for value in node.outputs()]
    # The first one has left its bias to the norm, and is not what was traced.
    assert [value.type().strides() for value in made] == [[240, 1, 48, 8], [120, 1, 24, 4]]
    assert strides(result)["rewriter::sum_group_norm_silu"] == [240, 1, 48, 8]


def test_a_number_that_the_graph_holds_as_a_tensor_has_no_order() -> None:
    class Doubled(Blocks):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 2

    x = torch.randn(2, 4, 5, 6)
    graph, weights = torch_ir.trace(Doubled().eval(), [x])
    canonicalise(graph)
    record_layouts(graph, [x, *weights])
    assert strides(graph)["aten::mul"] == [120, 30, 6, 1]


@pytest.mark.parametrize("pays", [True, False])
def test_orders_are_kept_or_left_out_together(monkeypatch: pytest.MonkeyPatch, pays: bool) -> None:
    graph, weights, x = traced()

    def compare(*_: object) -> object:
        return Timing(before=1.0, after=2.0)

    def best_of(make: Callable[[], Callable[[], torch.Tensor]], _: str) -> float:
        # The graph as it is returns its result in the order of the weights.
        ordered = make()().is_contiguous(memory_format=torch.channels_last)
        return 2.0 if ordered is pays else 3.0

    monkeypatch.setattr(regions, "compare", compare)
    monkeypatch.setattr(whole, "best_of", best_of)
    rules = load_rules(["default"])
    found = choice.choose(graph, rules, weights=len(weights), target=CPU, arguments=[x, *weights])
    kept = {done.rule for done in found.rewritten.rewrites if done.kept}
    assert ("conv-channels-last" in kept) is pays
    with torch.no_grad(), torch_ir.plain_executor():
        result = torch_ir.function_from_graph(found.rewritten.graph)(
            *whole.Inputs([x, *weights], len(weights)).given(found.rewritten)
        )
        plain = torch_ir.function_from_graph(graph)(x, *weights)
    torch.testing.assert_close(result, plain, rtol=1e-4, atol=1e-5)
