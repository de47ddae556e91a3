"""Pattern texts: statements, operands, and lines pasted from a printed graph."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from rewriter import torch_ir
from rewriter.language import RuleSet
from rewriter.language.patterns import parse_statements
from rewriter.language.schemas import resolve
from rewriter.language.syntax import Computed, Literal, Sequence, Skip, Statement, Var
from rewriter.language.tokens import PatternError


def one(text: str, *, expressions: bool = False) -> Statement:
    (statement,) = parse_statements(text, expressions=expressions)
    return statement


def operands(text: str) -> list[object]:
    return [argument.operand for argument in one(text, expressions=True).arguments]


def test_operands() -> None:
    found = operands("y = a::b(x, x?, x*, x?*, 1, -2, 1e-5, .5, True, false, None, \"t\", 'u', [1, 2], [], [x, 1], _)")
    assert found == [
        Var("x"),
        Var("x", optional=True),
        Var("x", starred=True),
        Var("x", optional=True, starred=True),
        *map(Literal, (1, -2, 1e-5, 0.5, True, False, None, "t", "u", (1, 2), ())),
        Sequence((Var("x"), Literal(1))),
        Skip(),
    ]


def test_computed_operands() -> None:
    (found,) = operands("y = a::b((C // (2 - 1)))")
    assert isinstance(found, Computed)
    assert found.expression.text == "C // (2 - 1)"


def test_statement() -> None:
    statement = one("a, b* = aten::{x, y.z}(p, name=q) as act  # why")
    assert [(target.name, target.starred) for target in statement.targets] == [("a", False), ("b", True)]
    assert statement.ops == ("aten::x", "aten::y.z")
    assert [argument.keyword for argument in statement.arguments] == [None, "name"]
    assert statement.choice == "act"


def test_a_line_continues_inside_brackets() -> None:
    first, second = parse_statements("a = x::y(\n  b,  # the first\n  [1,\n 2])\n\nc = x::z(a)\n")
    assert len(first.arguments) == 2
    assert second.place.line == 5


def test_pasted_lines_mean_what_the_plain_ones_do() -> None:
    pasted = """
      %5 : int = prim::Constant[value=2]() # /somewhere/file.py:12:0
      %dim : int = prim::Constant[value=-1](), scope: __module.a/__module.b # f.py:3:0
      %none : NoneType = prim::Constant()
      %no : bool = prim::Constant[value=0]()
      %h.1 : Float(2, 8, strides=[8, 1], requires_grad=0) = aten::linear(%x, %weight, %none), scope: __module.a
      %parts : Tensor[] = aten::chunk(%h.1, %5, %dim)
      %a : Float(2, 4, strides=[8, 1]), %g : Float(2, 4, strides=[8, 1]) = prim::ListUnpack(%parts)
      %y : Tensor = aten::mul(%a, %g)
      %z : Tensor = aten::sum(%y, %none, %no)
    """
    plain = """
      h.1 = aten::linear(x, weight, None)
      a, g = aten::chunk(h.1, 2, -1)
      y = aten::mul(a, g)
      z = aten::sum(y, None, False)
    """
    assert [calls(s) for s in parse_statements(pasted)] == [calls(s) for s in parse_statements(plain)]


def calls(statement: Statement) -> object:
    return [target.name for target in statement.targets], resolve(statement)


def test_every_line_of_a_printed_graph_can_be_pasted() -> None:
    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(4, 8, 3)
            self.norm = torch.nn.GroupNorm(2, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a, b = torch.nn.functional.silu(self.norm(self.conv(x))).chunk(2, 1)
            return torch.cat((a * 0.5, b.permute(0, 1, 3, 2)), 1).reshape(x.shape[0], -1)

    graph, _ = torch_ir.trace(Block(), [torch.zeros(2, 4, 6, 6)])
    torch_ir.simplify(graph)
    text = "\n".join(str(node) for node in graph.nodes() if node.kind().startswith(("aten::", "prim::")))
    statements = [s for s in parse_statements(text) if s.ops != ("prim::NumToTensor",)]
    assert len(statements) > 6
    for statement in statements:
        assert resolve(statement)


def test_pasted_rule_matches_its_plain_twin(sample: str, load: Callable[[str], RuleSet]) -> None:
    line = "%h : Float(2, 8, strides=[8, 1], requires_grad=0) = aten::linear(%x, %weight, %bias?) # f.py:1:0"
    pasted = load(sample.replace("h = aten::linear(x, weight, bias?)", line))
    assert pasted["linear-act"].match[0].calls == load(sample)["linear-act"].match[0].calls


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("y", (0, 1)),
        ("y =", (0, 3)),
        ("y = a::b", (0, 8)),
        ("y = a::b(x", (0, 10)),
        ("y = a::b(x))", (0, 11)),
        ("y = a::b([x)", (0, 11)),
        ("y = a::{b(x)", (0, 9)),
        ("y = a::b(x) as", (0, 14)),
        ("y = a::b(x) c = a::d(y)", (0, 12)),
        ("y = a::b(k=1, x)", (0, 14)),
        ("x = a::b(y)\ny = a::b($)", (1, 9)),
        ("True = a::b(x)", (0, 0)),
        ("_ = a::b(x)", (0, 0)),
        ("y : = a::b(x)", (0, 4)),
        ("y = a::b((C))", (0, 9)),
        ("y = a::b(" + "[" * 40 + "]" * 40 + ")", (0, 26)),
        ("y = a::b(999999999999999999999)", (0, 9)),
        ("a, b = prim::Constant[value=1]()", (0, 3)),
        ("y = prim::Constant[value=<Tensor>]()", (0, 25)),
        ("y = a::b(x)" * 2000, (0, 0)),
    ],
)
def test_refused(text: str, place: tuple[int, int]) -> None:
    with pytest.raises(PatternError) as caught:
        parse_statements(text)
    assert (caught.value.place.line, caught.value.place.column) == place


def test_expressions_report_their_column() -> None:
    with pytest.raises(PatternError, match="only integers") as caught:
        parse_statements("y = a::b(x, (C ** 2))", expressions=True)
    assert caught.value.place.column == 13
