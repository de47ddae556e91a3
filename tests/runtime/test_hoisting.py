"""The split of a graph into what stays the same between steps and the rest."""

import torch

from rewriter import torch_ir
from rewriter.runtime.hoisting import is_random, read_by_host, split
from rewriter.runtime.runner import FunctionRunner

TEXT = """
graph(%x : Tensor, %text : Tensor, %wk : Tensor, %wq : Tensor):
  %none : NoneType = prim::Constant()
  %one : int = prim::Constant[value=1]()
  %two : int = prim::Constant[value=2]()
  %k : Tensor = aten::linear(%text, %wk, %none)
  %kt : Tensor = aten::transpose(%k, %one, %two)
  %q : Tensor = aten::linear(%x, %wq, %none)
  %s : Tensor = aten::matmul(%q, %kt)
  %v : Tensor = aten::transpose(%text, %one, %two)
  %y : Tensor = aten::matmul(%q, %v)
  return (%s, %y, %kt)
"""


def inputs() -> list[torch.Tensor]:
    return [torch.randn(2, 5, 8), torch.randn(2, 7, 8), torch.randn(8, 8), torch.randn(8, 8)]


def kinds(graph: torch_ir.Graph) -> list[str]:
    return [node.kind() for node in graph.nodes() if node.kind() != "prim::Constant"]


def test_the_text_side_is_computed_once_and_the_rest_reads_it():
    graph = torch_ir.parse_graph(TEXT)
    found = split(graph, {1, 2, 3})
    assert found is not None
    assert kinds(found.prologue) == ["aten::linear", "aten::transpose"]
    # A view of an input is no work: it stays where it is read.
    assert kinds(found.body) == ["aten::linear", "aten::matmul", "aten::transpose", "aten::matmul"]
    assert found.prologue_inputs == (1, 2)
    assert found.body_inputs == (0, 1, 3)
    assert found.kept == 1
    tensors = inputs()
    kept = FunctionRunner(found.prologue)([tensors[index] for index in found.prologue_inputs], ())
    parts = FunctionRunner(found.body)([*(tensors[index] for index in found.body_inputs), *kept], ())
    whole = FunctionRunner(graph)(tensors, ())
    for one, other in zip(parts, whole, strict=True):
        assert torch.equal(one, other)


def test_nothing_is_split_off_where_nothing_stays_the_same():
    graph = torch_ir.parse_graph(TEXT)
    assert split(graph, set()) is None
    assert split(graph, {2, 3}) is None


def test_a_graph_that_writes_is_not_split():
    graph = torch_ir.parse_graph(TEXT.replace("aten::matmul(%q, %v)", "aten::add_(%s, %s, %one)"))
    assert split(graph, {1, 2, 3}) is None


def test_random_numbers_are_noticed_and_stay_with_the_step():
    text = TEXT.replace("aten::transpose(%text, %one, %two)", "aten::rand_like(%kt, %none, %none, %none, %none, %none)")
    graph = torch_ir.parse_graph(text)
    assert is_random(graph)
    assert not is_random(torch_ir.parse_graph(TEXT))
    found = split(graph, {1, 2, 3})
    assert found is not None
    assert "aten::rand_like" in kinds(found.body)


POSITIONS = """
graph(%x : Tensor, %first : Tensor, %gain : Tensor, %w : Tensor):
  %none : NoneType = prim::Constant()
  %zero : int = prim::Constant[value=0]()
  %one : int = prim::Constant[value=1]()
  %rows : int = aten::size(%x, %zero)
  %start : Tensor = aten::add(%first, %one, %one)
  %from : int = aten::Int(%start)
  %until : int = aten::add(%from, %rows)
  %places : Tensor = aten::arange(%from, %until, %none, %none, %none, %none)
  %angles : Tensor = aten::sin(%places)
  %scaled : Tensor = aten::mul(%angles, %gain)
  %columns : Tensor = aten::unsqueeze(%scaled, %one)
  %y : Tensor = aten::mul(%x, %columns)
  return (%y)
"""


def test_what_depends_on_extents_alone_is_computed_once():
    graph = torch_ir.parse_graph(POSITIONS)
    found = split(graph, {1, 2})
    assert found is not None
    assert kinds(found.body) == ["aten::mul"]
    assert (found.prologue_inputs, found.body_inputs, found.kept) == ((0, 1, 2), (0,), 1)
    x = torch.randn(5, 3)
    numbers = [torch.tensor(2), torch.tensor(0.5)]
    (kept,) = FunctionRunner(found.prologue)([x, *numbers], ())
    (y,) = FunctionRunner(found.body)([x + 1, kept], ())
    assert torch.equal(y, FunctionRunner(graph)([x + 1, *numbers, x], ())[0])


def test_numbers_that_become_extents_are_read_by_the_host():
    assert read_by_host(torch_ir.parse_graph(POSITIONS)) == {1}
    assert read_by_host(torch_ir.parse_graph(TEXT)) == frozenset()
