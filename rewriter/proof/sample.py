"""Draws the operands of a rule from its `inputs` and `dims`."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Mapping
from typing import Any

import torch

from rewriter.graph.facts import DTYPE_CODES, DTYPES
from rewriter.language.conditions import LAYOUTS, DimRange, TensorInput
from rewriter.language.expressions import Expression
from rewriter.language.rule import Rule
from rewriter.language.syntax import read_variables
from rewriter.proof.layouts import VALUES, placed

# Dtypes in which a rule is proved unless its entry says otherwise.
FLOATS = ("f32", "f16", "bf16")

# For each operand the layout that a network's tensors have.
USUAL = "usual"
# The last two extents of a picture.
_PICTURE = ("H", "W")

# Elements of a tensor. Every example is run several times, also in f64.
_LARGEST = 2**24


class ImpossibleSample(ValueError):
    """Dims or inputs that make no tensor; the message names the rule, the operand and the numbers drawn."""


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """The operands of one example: tensors, lists of tensors for repeated siblings, or constants.

    `layouts`: by operand and, for siblings, position.
    """

    operands: dict[str, Any]
    dims: dict[str, int]
    dtype: str
    layouts: dict[tuple[str, int], str] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return ", ".join(f"{name} {self._described(name, value)}" for name, value in self.operands.items())

    def _described(self, name: str, value: Any) -> str:
        values = value if isinstance(value, list) else [value]
        if not any(isinstance(each, torch.Tensor) for each in values):
            return str(value) if not isinstance(value, list) or any(each is not None for each in value) else "None"
        return " and ".join(
            f"{list(each.shape)} {name_of(each.dtype)} {self.layouts.get((name, position), '')}".rstrip()
            if isinstance(each, torch.Tensor)
            else str(each)
            for position, each in enumerate(values)
        )


_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def name_of(dtype: torch.dtype) -> str:
    """What rule files call it."""
    return _NAMES.get(dtype, str(dtype).removeprefix("torch."))


def dtypes_of(rule: Rule) -> tuple[str, ...]:
    """The floating dtypes in which the rule is proved: those that its conditions and inputs leave.

    A rule without floating operands has the dtype of its first one; one that only f64 fits has f64.
    """
    tensors = [name for name, given in rule.inputs.items() if isinstance(given, TensorInput)]
    kinds = {dtype: [_kind(rule, name, dtype) for name in tensors] for dtype in (*FLOATS, "f64")}
    found = [
        dtype
        for dtype, drawn in kinds.items()
        if dtype in drawn
        and all(_allowed(rule, name, kind) for name, kind in zip(tensors, drawn, strict=True))
        # Where the operands' dtypes are fixed and differ, the first one's stands for them.
        and (dtype == drawn[0] or list(kinds.values()).count(drawn) == 1)
    ]
    if not found and tensors:
        first = _kind(rule, tensors[0], FLOATS[0])
        return () if first in kinds else (first,)
    return tuple(dtype for dtype in found if dtype in FLOATS) or tuple(found)


def _kind(rule: Rule, name: str, dtype: str) -> str:
    """The dtype of a tensor operand in an example of `dtype`."""
    given, condition = rule.inputs[name], rule.where.get(name)
    assert isinstance(given, TensorInput)
    if given.dtype:
        return dtype if dtype in given.dtype else given.dtype[0]
    named = condition.dtype if condition is not None else ()
    # A mask that must be boolean, an index: nothing to do with the dtype that is proved.
    return named[0] if named and all(each in DTYPES and not DTYPES[each].is_floating_point for each in named) else dtype


def _allowed(rule: Rule, name: str, kind: str) -> bool:
    condition = rule.where.get(name)
    return condition is None or not condition.dtype or kind in condition.dtype


def weights_of(rule: Rule) -> frozenset[str]:
    """The operands that must be weights: those that are prepared or said to be."""
    prepared = {var.name for statement in rule.prepare for var in read_variables(statement)}
    return frozenset(prepared | {name for name, condition in rule.where.items() if condition.weight})


def layouts_of(rule: Rule, name: str) -> tuple[str, ...]:
    """The layouts that a tensor operand is drawn in: the entry's, else the one that `where` asks for, else all."""
    given, condition = rule.inputs[name], rule.where.get(name)
    assert isinstance(given, TensorInput)
    if given.layouts:
        return given.layouts
    wanted = condition.format if condition is not None else None
    if wanted == "not channels_last":
        return tuple(layout for layout in LAYOUTS if layout != "channels_last")
    return (wanted,) if wanted else LAYOUTS


def draw_dims(rule: Rule, seed: int) -> dict[str, int]:
    """An extent for each symbol of the rule's `dims`."""
    chooser = random.Random(f"dims {seed}")
    return {name: _extent(chooser, given) for name, given in rule.dims.items()}


def draw(
    rule: Rule,
    *,
    seed: int,
    dtype: str,
    values: str = "normal",
    layout: str | None = None,
    dims: Mapping[str, int] | None = None,
    device: str = "cpu",
) -> Sample:
    """One example. `layout`: for the operands that allow it; None draws one for each, and USUAL takes channels last in
    pictures and filters. `dims`: drawn where None.

    `values` is the class of at least one operand; of the others some are normal. Every tensor lies in a storage that
    is NaN around it. Raises ImpossibleSample.
    """
    chooser = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    extents = draw_dims(rule, seed) if dims is None else dict(dims)
    tensors = {name: given for name, given in rule.inputs.items() if isinstance(given, TensorInput)}
    counts = [chooser.randint(*given.count) for given in tensors.values() if given.count]
    count = max(counts, default=2)
    starred = {var.name: var.starred for step in rule.match for var in read_variables(step.statement)}
    absent = {name for name, given in tensors.items() if given.optional and chooser.random() < 0.3}
    able = [name for name, given in tensors.items() if name not in absent and values in (given.values or [values])]
    special = _special(able, values, chooser)
    rank = max((len(given.shape) for given in tensors.values()), default=0)
    sample = Sample({}, extents, dtype)
    for name, given in rule.inputs.items():
        if not isinstance(given, TensorInput):
            sample.operands[name] = _constant(rule, name, _choice(rule, name, dtype, chooser), extents)
        elif name in absent:
            sample.operands[name] = [None] * count if starred.get(name) else None
        else:
            shape = tuple(_number(rule, name, expression, extents) for expression in given.shape)
            size = math.prod(shape)
            if size > _LARGEST:
                raise ImpossibleSample(
                    f"rule {rule.id}: {name} has {size} elements where {extents}; at most {_LARGEST} are drawn"
                )
            kind = DTYPES.get(_kind(rule, name, dtype))
            if kind is None:
                raise ImpossibleSample(f"rule {rule.id}: {name}: no numbers of {_kind(rule, name, dtype)} can be drawn")
            allowed = layouts_of(rule, name)
            made = []
            for position in range(count if starred.get(name) else 1):
                wanted = _usual(given) if layout == USUAL else layout
                chosen = wanted if wanted in allowed else chooser.choice(allowed)
                numbers = _numbers(given, shape, kind, values if name in special else "normal", generator)
                if len(shape) < rank:
                    numbers = _without_inf(numbers)
                made.append(placed(numbers, chosen, chooser, device))
                sample.layouts[name, position] = chosen
            sample.operands[name] = made if starred.get(name) else made[0]
    return sample


def _usual(given: TensorInput) -> str:
    """Pixels and tokens by heads have four dimensions, too, but are no pictures."""
    last = given.shape[-2:]
    picture = tuple(map(str, last)) == _PICTURE or not any(extent.names for extent in last)
    return "channels_last" if len(given.shape) > 3 and picture else "contiguous"


def _special(names: list[str], values: str, chooser: random.Random) -> set[str]:
    """Of the operands that may have the value class, those that do: always one, and not always all.

    Only one has NaN and Inf: from a second one they would spread over all that the first leaves.
    """
    if not names:
        return set()
    one = chooser.choice(names)
    return {one} if values == "nan_inf" else {name for name in names if name == one or chooser.random() < 0.5}


def _numbers(
    given: TensorInput, shape: tuple[int, ...], kind: torch.dtype, values: str, generator: torch.Generator
) -> torch.Tensor:
    if not kind.is_floating_point:
        return torch.randint(0, 2, shape, generator=generator).to(kind)
    allowed = values if not given.values or values in given.values else given.values[0]
    return VALUES[allowed](shape, kind, generator).to(kind)


def _without_inf(numbers: torch.Tensor) -> torch.Tensor:
    """For weights and the like: an infinite one makes NaN or Inf as the order of operations has it."""
    # f8e4m3 has NaN but no infinities, and torch does not look for them.
    infinite = numbers.is_floating_point() and numbers.dtype != torch.float8_e4m3fn
    return torch.where(numbers.isinf(), math.nan, numbers) if infinite else numbers


def _extent(chooser: random.Random, given: DimRange) -> int:
    return chooser.choice(given.choices) if given.choices else chooser.randint(given.low, given.high)


def _number(rule: Rule, name: str, expression: Expression, dims: Mapping[str, int]) -> int:
    value = expression.evaluate(dims)
    if value is None or value < 0:
        raise ImpossibleSample(f"rule {rule.id}: {name}: {expression} is {value} where {dict(dims)}")
    return value


def _choice(rule: Rule, name: str, dtype: str, chooser: random.Random) -> Any:
    choices = rule.inputs[name].choices  # type: ignore[union-attr]
    for operand, condition in rule.where.items():
        if condition.dtype_equals == name and isinstance(rule.inputs.get(operand), TensorInput):
            code = DTYPE_CODES[_kind(rule, operand, dtype)]
            choices = tuple(choice for choice in choices if choice == code) or choices
    return chooser.choice(choices)


def _constant(rule: Rule, name: str, choice: Any, dims: Mapping[str, int]) -> Any:
    if isinstance(choice, Expression):
        return _number(rule, name, choice, dims)
    if isinstance(choice, tuple):
        return [_constant(rule, name, item, dims) for item in choice]
    return choice
