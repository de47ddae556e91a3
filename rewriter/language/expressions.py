"""Integer expressions over symbolic dimensions, such as `C % 8 == 0` or `G*K`.

Python's own parser reads them; only integers, names, arithmetic and comparisons are let through, and a small evaluator
of our own computes them. Nothing is ever executed.
"""

from __future__ import annotations

import ast
import dataclasses
import keyword
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

_ALLOWED = "only integers, names, + - * // %, comparisons, and, or, not are allowed in an expression"
# Characters that no expression has, and numbers run together with a word, such as `0xff` or `1if`.
_FOREIGN = re.compile(r"[^A-Za-z0-9_ \t\n+\-*/%()<>=!]|(?<![A-Za-z0-9_])[0-9]+[A-Za-z_]")
_MAX_LENGTH = 200
_MAX_DEPTH = 20

_BINARY: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARE: dict[type[ast.cmpop], Callable[[int, int], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


class ExpressionError(ValueError):
    """A text that is no integer expression; `column` counts from 0."""

    def __init__(self, problem: str, column: int = 0) -> None:
        super().__init__(problem)
        self.column = column


@dataclasses.dataclass(frozen=True, slots=True)
class Expression:
    """A parsed expression. `names` are the symbols that it reads."""

    text: str
    names: frozenset[str]
    tree: Any = dataclasses.field(compare=False, repr=False)

    def evaluate(self, symbols: Mapping[str, int]) -> int | None:
        """The value, or None if a symbol is unknown or a division by zero occurs."""
        try:
            return _evaluate(self.tree, symbols)
        except (KeyError, ZeroDivisionError):
            return None

    def __str__(self) -> str:
        return self.text


def parse_expression(text: str | int) -> Expression:
    """Reads an expression. Raises ExpressionError."""
    if isinstance(text, int):
        return Expression(str(text), frozenset(), ast.Constant(text))
    if len(text) > _MAX_LENGTH:
        raise ExpressionError(f"expression longer than {_MAX_LENGTH} characters")
    if text.isidentifier() and text.isascii() and not keyword.iskeyword(text):
        return Expression(text, frozenset((text,)), ast.Name(text))
    # Anything else would reach Python's parser, which warns about some of it and reads names beyond ASCII.
    foreign = _FOREIGN.search(text)
    if foreign:
        raise ExpressionError(_ALLOWED, foreign.start())
    try:
        body = ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        raise ExpressionError("not an expression", max((error.offset or 1) - 1, 0)) from None
    except (ValueError, RecursionError, MemoryError):
        raise ExpressionError("not an expression") from None
    names: set[str] = set()
    _check(body, names, 0)
    return Expression(text.strip(), frozenset(names), body)


def _check(node: ast.AST, names: set[str], depth: int) -> None:
    column = getattr(node, "col_offset", 0)
    if depth > _MAX_DEPTH:
        raise ExpressionError("expression nested too deeply", column)
    if isinstance(node, ast.Constant) and type(node.value) is int:
        if abs(node.value) > 2**63:
            raise ExpressionError("number out of range", column)
        return
    if isinstance(node, ast.Name):
        names.add(node.id)
        return
    children: list[ast.expr] = []
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        children = [node.left, node.right]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not):
        children = [node.operand]
    elif isinstance(node, ast.BoolOp):
        children = node.values
    elif isinstance(node, ast.Compare) and all(type(op) in _COMPARE for op in node.ops):
        children = [node.left, *node.comparators]
    else:
        raise ExpressionError(_ALLOWED, column)
    for child in children:
        _check(child, names, depth + 1)


def _evaluate(node: Any, symbols: Mapping[str, int]) -> int:
    if isinstance(node, ast.Constant):
        return int(node.value)  # type: ignore[arg-type]
    if isinstance(node, ast.Name):
        return symbols[node.id]
    if isinstance(node, ast.BinOp):
        return _BINARY[type(node.op)](_evaluate(node.left, symbols), _evaluate(node.right, symbols))
    if isinstance(node, ast.UnaryOp):
        value = _evaluate(node.operand, symbols)
        return int(not value) if isinstance(node.op, ast.Not) else -value
    if isinstance(node, ast.BoolOp):
        values = (_evaluate(value, symbols) for value in node.values)
        return int(all(values)) if isinstance(node.op, ast.And) else int(any(values))
    left = _evaluate(node.left, symbols)
    for op, comparator in zip(node.ops, node.comparators, strict=True):
        right = _evaluate(comparator, symbols)
        if not _COMPARE[type(op)](left, right):
            return 0
        left = right
    return 1
