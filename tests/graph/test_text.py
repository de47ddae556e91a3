"""Graphs as texts, in which they outlast a process."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rewriter import torch_ir
from rewriter.graph.canonical import canonicalise
from rewriter.graph.text import NotText, from_data, to_data


class Constants(torch.nn.Module):
    """Constants of all kinds that graphs hold; `x * 3` holds a tensor that promotes like a number."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * 3 + 0.1 - 1e-30 + float("inf") * 0.5
        x = torch.where(x.isnan(), torch.full_like(x, float("nan")), x)
        x = F.gelu(x, approximate="tanh").to(torch.float16) * torch.tensor([1.5, -0.0], dtype=torch.float16)
        x = x.to("cpu", torch.bfloat16).reshape(2, -1).clamp(min=-(2**31)) + torch.tensor(7)
        return F.pad(x, [1, 0], value=float("-inf")) * torch.ones(3, 2).t().to(torch.int64)


def graph_of(module: torch.nn.Module, *tensors: torch.Tensor) -> torch_ir.Graph:
    graph, _ = torch_ir.trace(module, tensors)
    canonicalise(graph)
    return graph


def test_a_graph_survives_being_written_down() -> None:
    x = torch.randn(2, 2)
    graph = graph_of(Constants(), x)
    data = json.loads(json.dumps(to_data(graph)))
    read = from_data(data)
    expected, found = (torch_ir.function_from_graph(each)(x) for each in (graph, read))
    assert found.dtype == expected.dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert to_data(read) == data
    kinds = {kind for kind, *_ in data["constants"]}
    assert {"promotes", "tensor", "float", "str", "int"} <= kinds


LISTS = """
graph(%x : Tensor):
  %none : NoneType = prim::Constant()
  %empty : int[] = prim::Constant[value=annotate(List[int], [])]()
  %ints : int[] = prim::Constant[value=[2, -9007199254740993]]()
  %floats : float[] = prim::Constant[value=[0.1, -0., inf]]()
  %no_floats : float[] = prim::Constant[value=annotate(List[float], [])]()
  %no_bools : bool[] = prim::Constant[value=annotate(List[bool], [])]()
  %ones : Tensor = aten::new_ones(%x, %empty, %none, %none, %none, %none)
  return (%ones, %empty, %ints, %floats, %no_floats, %no_bools)
"""


def test_lists_are_read_as_they_were_written() -> None:
    graph = torch_ir.parse_graph(LISTS)
    # Read from a text, these would be integers.
    graph.registerOutput(torch_ir.insert_constant(graph, [True, False]))
    data = json.loads(json.dumps(to_data(graph)))
    read = from_data(data)
    ones, *lists = torch_ir.function_from_graph(read)(torch.zeros(3))
    assert torch.equal(ones, torch.ones(()))
    assert repr(lists) == "[[], [2, -9007199254740993], [0.1, -0.0, inf], [], [], [True, False]]"
    types = [str(value.type()) for value in read.outputs()]
    assert types == [str(value.type()) for value in graph.outputs()]
    assert to_data(read) == data


@pytest.mark.parametrize("kind", ["Tensor", "str", "int[]"])
def test_an_empty_list_of_anything_else_is_not_written_down(kind: str) -> None:
    text = f"graph():\n  %list : {kind}[] = prim::ListConstruct()\n  return (%list)"
    graph = torch_ir.parse_graph(text)
    torch_ir.simplify(graph)
    with pytest.raises(NotText, match="a constant is an empty List"):
        to_data(graph)


class Large(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.zeros(600, 600)


def test_large_constants_are_not_written_down() -> None:
    with pytest.raises(NotText, match="too large"):
        to_data(graph_of(Large(), torch.zeros(600, 600)))


@pytest.mark.parametrize("data", [{}, {"text": 3}, {"text": "graph():\n  return ()", "constants": [["none"]]}])
def test_what_is_no_graph_is_refused(data: Any) -> None:
    with pytest.raises(NotText):
        from_data(data)
