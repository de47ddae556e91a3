"""Which calls of an op are most like another one, by their shapes: what was fastest there is worth timing here."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence

from rewriter.ops.dispatch import Choice

_LIST = re.compile(r"\[[^\]]*\]")
_NUMBER = re.compile(r"\d+")
_NEIGHBOURS = 3


def worth_timing(
    signature: str, choices: Sequence[Choice], known: Iterable[tuple[str, Choice]], *, count: int = _NEIGHBOURS
) -> list[Choice]:
    """Those of `choices` that won at the `count` nearest of the calls `known` by signature, and the first of all.

    A winner whose config is not offered here stands for its provider. All choices where no known call is alike, which
    is one that differs in nothing but numbers of shapes, strides and other lists, or none of their winners is offered.
    """
    apart = sorted(((distance(signature, other), choice) for other, choice in known), key=lambda pair: pair[0])
    winners = (_offered(choice, choices) for far, choice in apart[:count] if far < math.inf)
    offered = [each for each in winners if each is not None]
    return list({_identity(each): each for each in (choices[0], *offered)}.values()) if offered else list(choices)


def distance(one: str, other: str) -> float:
    """How unlike two signatures are: the sum of their numbers' log ratios; infinite for another kind of call."""
    if _form(one) != _form(other):
        return math.inf
    pairs = zip(_numbers(one), _numbers(other), strict=True)
    return sum(abs(math.log((1 + a) / (1 + b))) for a, b in pairs)


def _offered(winner: Choice, choices: Sequence[Choice]) -> Choice | None:
    same = [choice for choice in choices if choice.provider == winner.provider]
    return next((choice for choice in same if choice.config == winner.config), same[0] if same else None)


def _identity(choice: Choice) -> tuple[str, str]:
    return choice.provider, repr(sorted(choice.config.items()))


def _form(signature: str) -> str:
    return _LIST.sub(lambda found: _NUMBER.sub("#", found[0]), signature)


def _numbers(signature: str) -> list[int]:
    return [int(number) for found in _LIST.findall(signature) for number in _NUMBER.findall(found)]
