"""Draws examples of a rule: value classes and layouts in turn, extents at their ends more often than in between."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Iterator

from rewriter.language.conditions import LAYOUTS, VALUE_CLASSES, DimRange, TensorInput
from rewriter.language.rule import Rule
from rewriter.proof.outcome import Example
from rewriter.proof.sample import USUAL, layouts_of

# One extent in so many is the least of its range, and one the largest.
_ENDS = 8
# What kernels for whole vectors of memory ask extents to be multiples of.
_VECTOR = 8
# How many times as far ranges go that are made large.
_LARGE = 16


def drawn(
    rule: Rule,
    dtype: str,
    chooser: random.Random,
    number: int,
    *,
    most: int | None = None,
    plain: bool = False,
    large: bool = False,
) -> Example:
    """The example of a number. `most`: elements of an operand.

    `plain`: multiples of 8 for extents, where their ranges have any, and memory as networks have it: some kernels take
    nothing else, and would hardly ever see it. `large`: where plain, of ranges that go 16 times as far: others take
    nothing less.
    """
    dims = {name: _extent(given, chooser, plain, _LARGE if large else 1) for name, given in rule.dims.items()}
    if most is not None:
        _reduce(rule, dims, most, _VECTOR if plain else 1)
    # Every class comes with every layout: of all operands at once, and as often with one for each.
    turn, position = divmod(number, len(VALUE_CLASSES))
    layouts = [each for layout in _layouts(rule) for each in (layout, None)]
    return Example(
        dims=tuple(dims.items()) or None,
        layout=USUAL if plain else layouts[(turn + position) % len(layouts)],
        values=VALUE_CLASSES[position],
        choice=chooser.randrange(_choices(rule)),
        dtype=dtype,
        seed=chooser.randrange(2**16),
    )


class Repeated:
    """Gives examples in turn the extents, layouts and configs of a few of them; numbers of other classes every time.

    What the pattern or the provider refuses is replaced.
    """

    def __init__(self, count: int) -> None:
        # Without a common factor each of them meets each class.
        count = next(each for each in itertools.count(count) if math.gcd(each, len(VALUE_CLASSES)) == 1)
        self.kept: list[Example | None] = [None] * count
        self.number = 0

    def of(self, example: Example) -> Example:
        """The next example, which takes over from the one given what is not there yet."""
        place = self.number % len(self.kept)
        kept = self.kept[place] = self.kept[place] or example
        # The seed also draws the layouts, where each operand has its own.
        return dataclasses.replace(kept, values=VALUE_CLASSES[self.number % len(VALUE_CLASSES)])

    def judge(self, ran: bool) -> None:
        """Whether the last one ran."""
        if ran:
            self.number += 1
        else:
            self.kept[self.number % len(self.kept)] = None


def empty(rule: Rule, dtype: str) -> Iterator[Example]:
    """One example for each extent that may be 0: that of any range from 0 or 1 on."""
    for name, given in rule.dims.items():
        if not given.choices and given.low <= 1:
            dims = {each: _small(other) for each, other in rule.dims.items()}
            yield Example(
                dims=tuple({**dims, name: 0}.items()), layout=None, values="normal", choice=0, dtype=dtype, seed=0
            )


def simpler(rule: Rule, example: Example) -> Iterator[Example]:
    """Examples that are simpler than this one, those first that take the most away."""
    layout = _layouts(rule)[0]
    least = {name: _least(rule.dims[name]) for name, _ in example.dims or ()}
    everything = tuple(least.items()) or None
    yield from (
        dataclasses.replace(example, dims=everything, layout=layout, values="normal", choice=0),
        dataclasses.replace(example, dims=everything),
        dataclasses.replace(example, layout=layout),
        dataclasses.replace(example, values="normal"),
        dataclasses.replace(example, choice=0),
    )
    for name, extent in example.dims or ():
        for smaller in (least[name], (least[name] + extent) // 2, extent - 1):
            given = rule.dims[name]
            if least[name] <= smaller < extent and (not given.choices or smaller in given.choices):
                dims = tuple({**dict(example.dims or ()), name: smaller}.items())
                yield dataclasses.replace(example, dims=dims)


def _layouts(rule: Rule) -> list[str]:
    tensors = [name for name, given in rule.inputs.items() if isinstance(given, TensorInput)]
    found = [layout for layout in LAYOUTS if any(layout in layouts_of(rule, name) for name in tensors)]
    return found or [LAYOUTS[0]]


def _choices(rule: Rule) -> int:
    return max(len(step.calls) for step in rule.match)


def _extent(given: DimRange, chooser: random.Random, plain: bool, times: int) -> int:
    if given.choices:
        return chooser.choice(given.choices)
    if plain and given.high >= _VECTOR:
        return chooser.randint(-(-max(given.low, 1) // _VECTOR), given.high * times // _VECTOR) * _VECTOR
    end = chooser.randrange(_ENDS)
    return (given.low, given.high)[end] if end < 2 else chooser.randint(given.low, given.high)


def _least(given: DimRange) -> int:
    return min(given.choices) if given.choices else given.low


def _small(given: DimRange) -> int:
    """Not 1, where dimensions may broadcast."""
    return min(given.choices) if given.choices else max(given.low, min(2, given.high))


def _reduce(rule: Rule, dims: dict[str, int], most: int, unit: int) -> None:
    """Halves the widest ranges until every operand has at most so many elements, or all are at their least.

    Multiples of `unit` stay such.
    """
    least = {
        name: -(-max(given.low, 1) // unit) * unit if dims[name] % unit == 0 else max(given.low, 1)
        for name, given in rule.dims.items()
        if not given.choices
    }
    shapes = [given.shape for given in rule.inputs.values() if isinstance(given, TensorInput)]
    while any(math.prod(each.evaluate(dims) or 0 for each in shape) > most for shape in shapes):
        widest = max(least, key=lambda name: dims[name] - least[name], default=None)
        if widest is None or dims[widest] <= least[widest]:
            return
        halved = dims[widest] // 2
        dims[widest] = max(halved - halved % unit if dims[widest] % unit == 0 else halved, least[widest])
