"""The names of a rule: what its pattern binds, and what an expression may read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING

from rewriter.errors import Position
from rewriter.language.expressions import Expression
from rewriter.language.names import listing, nearest
from rewriter.language.syntax import Computed, Operand, Sequence, Skip, Var

if TYPE_CHECKING:
    from rewriter.language.document import RuleReader


@dataclasses.dataclass(slots=True)
class Scope:
    """`defined`: results of the pattern's statements. `operands`: what they read from outside. `choices`: names of
    alternatives. `skipped`: schema arguments for which the pattern has `_`. `symbols`: of `where` shapes."""

    defined: set[str] = dataclasses.field(default_factory=set)
    operands: dict[str, Var] = dataclasses.field(default_factory=dict)
    choices: set[str] = dataclasses.field(default_factory=set)
    skipped: set[str] = dataclasses.field(default_factory=set)
    symbols: set[str] = dataclasses.field(default_factory=set)

    def check_symbols(self, expression: Expression, reader: RuleReader, section: str, position: Position) -> None:
        """Raises RuleError if the expression reads a name that has no number."""
        valid = self.symbols | {name for name, var in self.operands.items() if not var.starred}
        for name in sorted(expression.names - valid):
            reader.fail(
                f"{section}: an expression reads an unknown symbol",
                position,
                found=name,
                expected=f"one of {listing(valid)}",
                suggestion=nearest(name, valid),
            )


def expressions(operand: Operand) -> Iterable[Expression]:
    """Every expression in an operand, lists included."""
    if isinstance(operand, Computed):
        yield operand.expression
    elif isinstance(operand, Sequence):
        for item in operand.items:
            yield from expressions(item)


def has_skip(operand: Operand) -> bool:
    """Whether `_` is the operand or one of its elements."""
    return isinstance(operand, Skip) or (isinstance(operand, Sequence) and any(map(has_skip, operand.items)))
