"""What a pattern, a replacement and a preparation are made of, once parsed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from rewriter.language.expressions import Expression

Constant = int | float | bool | str | None | tuple["Constant", ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """A character of a rule's text; both count from 0."""

    line: int = 0
    column: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Var:
    """An operand bound by name. `optional`: None is allowed. `starred`: one value per repeated sibling."""

    name: str
    optional: bool = False
    starred: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Literal:
    """A constant, matched by value."""

    value: Constant


@dataclasses.dataclass(frozen=True, slots=True)
class Sequence:
    """A list whose elements are operands of their own."""

    items: tuple[Operand, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Skip:
    """`_`: any value; allowed only where `ignore` gives the reason for the schema argument at this place."""


@dataclasses.dataclass(frozen=True, slots=True)
class Computed:
    """An integer expression in parentheses; replacements only."""

    expression: Expression


Operand = Var | Literal | Sequence | Skip | Computed


@dataclasses.dataclass(frozen=True, slots=True)
class Argument:
    """One operand in a call; `keyword` is None for a positional one."""

    operand: Operand
    keyword: str | None
    place: Place


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """One name on the left of `=`."""

    name: str
    starred: bool
    place: Place


@dataclasses.dataclass(frozen=True, slots=True)
class Statement:
    """`targets = ops(arguments) as choice`; with no ops it is the alias `target = operand`."""

    targets: tuple[Target, ...]
    ops: tuple[str, ...]
    arguments: tuple[Argument, ...]
    choice: str | None
    place: Place
    starred: bool = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "starred", any(target.starred for target in self.targets))


def variables(operand: Operand) -> Iterator[Var]:
    """Every name that an operand reads, lists included; expressions not."""
    if isinstance(operand, Var):
        yield operand
    elif isinstance(operand, Sequence):
        for item in operand.items:
            yield from variables(item)


def read_variables(statement: Statement) -> Iterator[Var]:
    for argument in statement.arguments:
        yield from variables(argument.operand)
