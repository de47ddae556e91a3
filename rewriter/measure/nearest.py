"""Which calls of an op are most like another one, by their shapes: what was fastest there is worth timing here."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterable, Sequence

from rewriter.ops.dispatch import Choice

_LIST = re.compile(r"\[[^\]]*\]")
_NUMBER = re.compile(r"\d+")
_NEIGHBOURS = 3


def worth_timing(signature: str, choices: Sequence[Choice], known: Iterable[tuple[str, Choice]]) -> list[Choice]:
    """Those of `choices` that won at the nearest three of the calls `known` by signature, and the first of all.

    A winner whose config is not offered here stands for its provider. All choices where no known call is alike, which
    is one that differs in nothing but numbers of shapes, strides and other lists, or none of their winners is offered.
    """
    apart = sorted(((distance(signature, other), choice) for other, choice in known), key=lambda pair: pair[0])
    winners = (_offered(choice, choices) for far, choice in apart[:_NEIGHBOURS] if far < math.inf)
    offered = [each for each in winners if each is not None]
    return [each for each in choices if each is choices[0] or each in offered] if offered else list(choices)


def distance(one: str, other: str) -> float:
    """How unlike two signatures are: the sum of their numbers' log ratios; infinite for another kind of call."""
    (form, numbers), (other_form, others) = _parsed(one), _parsed(other)
    if form != other_form:
        return math.inf
    return sum(abs(math.log((1 + a) / (1 + b))) for a, b in zip(numbers, others, strict=True))


def _offered(winner: Choice, choices: Sequence[Choice]) -> Choice | None:
    same = [choice for choice in choices if choice.provider == winner.provider]
    return next((choice for choice in same if choice.config == winner.config), same[0] if same else None)


# Every new call is compared with all that are known.
@functools.lru_cache(maxsize=8192)
def _parsed(signature: str) -> tuple[str, tuple[int, ...]]:
    """What it is without the numbers in its lists, and these."""
    numbers = (int(number) for found in _LIST.findall(signature) for number in _NUMBER.findall(found))
    return _LIST.sub(lambda found: _NUMBER.sub("#", found[0]), signature), tuple(numbers)
