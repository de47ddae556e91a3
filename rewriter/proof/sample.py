"""Draws the operands of a rule from its `inputs` and `dims`."""

from __future__ import annotations

import dataclasses
import random
from typing import Any

import torch

from rewriter.graph.facts import DTYPES
from rewriter.language.conditions import DimRange, TensorInput
from rewriter.language.expressions import Expression
from rewriter.language.rule import Rule
from rewriter.language.syntax import read_variables
from rewriter.proof.layouts import LAYOUTS, VALUES

# Dtypes in which a rule is tested unless its entry says otherwise.
FLOATS = ("f32", "f16", "bf16")


class ImpossibleSample(ValueError):
    """Dims or inputs that make no tensor; the message names the rule, the operand and the numbers drawn."""


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """The operands of one example: tensors, lists of tensors for repeated siblings, or constants."""

    operands: dict[str, Any]
    dims: dict[str, int]
    dtype: str


def dtypes_of(rule: Rule) -> tuple[str, ...]:
    """The floating dtypes that the rule's conditions allow for its main operands."""
    allowed = [set(c.dtype) for c in rule.where.values() if c.dtype]
    return tuple(name for name in FLOATS if all(name in names for names in allowed))


def weights_of(rule: Rule) -> frozenset[str]:
    """The operands that must be weights: those that are prepared or said to be."""
    prepared = {var.name for statement in rule.prepare for var in read_variables(statement)}
    return frozenset(prepared | {name for name, condition in rule.where.items() if condition.weight})


def draw(rule: Rule, *, seed: int, dtype: str, values: str = "normal", layout: str | None = None) -> Sample:
    """One example. `layout`: for the operands that allow it; None draws one for each. Raises ImpossibleSample."""
    chooser = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    dims = {name: _extent(chooser, given) for name, given in rule.dims.items()}
    repeats = {
        name: chooser.randint(*given.count)
        for name, given in rule.inputs.items()
        if isinstance(given, TensorInput) and given.count
    }
    count = max(repeats.values(), default=2)
    starred = {var.name: var.starred for step in rule.match for var in read_variables(step.statement)}
    absent = {
        name
        for name, given in rule.inputs.items()
        if isinstance(given, TensorInput) and given.optional and chooser.random() < 0.3
    }
    operands: dict[str, Any] = {}
    for name, given in rule.inputs.items():
        if not isinstance(given, TensorInput):
            operands[name] = _constant(rule, name, chooser.choice(given.choices), dims)
        elif name in absent:
            operands[name] = [None] * count if starred.get(name) else None
        else:
            kind = dtype if not given.dtype or dtype in given.dtype else given.dtype[0]
            made = [
                _tensor(rule, name, given, dims, kind, values, layout, chooser, generator)
                for _ in range(count if starred.get(name) else 1)
            ]
            operands[name] = made if starred.get(name) else made[0]
    return Sample(operands, dims, dtype)


def _extent(chooser: random.Random, given: DimRange) -> int:
    return chooser.choice(given.choices) if given.choices else chooser.randint(given.low, given.high)


def _number(rule: Rule, name: str, expression: Expression, dims: dict[str, int]) -> int:
    value = expression.evaluate(dims)
    if value is None or value < 0:
        raise ImpossibleSample(f"rule {rule.id}: {name}: {expression} is {value} where {dims}")
    return value


def _constant(rule: Rule, name: str, choice: Any, dims: dict[str, int]) -> Any:
    if isinstance(choice, Expression):
        return _number(rule, name, choice, dims)
    if isinstance(choice, tuple):
        return [_constant(rule, name, item, dims) for item in choice]
    return choice


def _tensor(
    rule: Rule,
    name: str,
    given: TensorInput,
    dims: dict[str, int],
    dtype: str,
    values: str,
    layout: str | None,
    chooser: random.Random,
    generator: torch.Generator,
) -> torch.Tensor:
    shape = tuple(_number(rule, name, expression, dims) for expression in given.shape)
    kind = DTYPES[dtype]
    if not kind.is_floating_point:
        return torch.randint(0, 2, shape, generator=generator).to(kind)
    allowed = values if not given.values or values in given.values else given.values[0]
    tensor = VALUES[allowed](shape, generator).to(kind)
    chosen = layout if layout in given.layouts else chooser.choice(given.layouts)
    return LAYOUTS[chosen](tensor)
