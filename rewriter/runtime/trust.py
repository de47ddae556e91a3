"""For which extents and numbers a capture has been shown to equal eager."""

from __future__ import annotations

import enum
import math
from collections import OrderedDict
from collections.abc import Sequence

Signature = tuple[tuple[int, ...], ...]

_REMEMBERED = 256
# After so many different ones went well, further ones are believed where nothing speaks against it.
_ENOUGH = 2


class Standing(enum.Enum):
    """What may be done with a capture for a call: use it, compare it with eager first, or leave it."""

    TRUSTED = "trusted"
    UNPROVED = "unproved"
    REFUSED = "refused"


def number_kind(value: int | float) -> str:
    """The class of a number in which code is expected to take the same path: 0 and 1 are often special cases."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value in (0, 1):
        return str(float(value))
    return "negative" if value < 0 else "fraction" if value < 1 else "large"


class Trust:
    """Keeps account for one capture.

    exact: the capture holds for the first call's extents only. reads_shapes: its code decides on extents, so each
    new set of them is compared with eager once; otherwise the first few are. Numbers are compared likewise: the
    first few other values, and the first of each kind.
    """

    def __init__(
        self, signature: Signature, numbers: Sequence[int | float], *, exact: bool, reads_shapes: bool, verify: bool
    ) -> None:
        self._exact, self._reads_shapes, self._verify = exact, reads_shapes, verify
        self._proved: OrderedDict[Signature, bool] = OrderedDict({signature: True})
        self._values = [{value} for value in numbers]
        self._kinds = [{number_kind(value)} for value in numbers]

    def standing(self, signature: Signature, numbers: Sequence[int | float]) -> Standing:
        """The standing for a call with these extents and live numbers."""
        standing = self._shape_standing(signature)
        if standing is Standing.TRUSTED and self.changed_numbers(numbers):
            return Standing.UNPROVED
        return standing

    def _shape_standing(self, signature: Signature) -> Standing:
        known = self._proved.get(signature)
        if known is not None:
            return Standing.TRUSTED if known else Standing.REFUSED
        if self._exact:
            return Standing.REFUSED
        enough = not self._reads_shapes and sum(self._proved.values()) > _ENOUGH
        return Standing.TRUSTED if enough or not self._verify else Standing.UNPROVED

    def changed_numbers(self, numbers: Sequence[int | float]) -> list[int]:
        """Positions of the live numbers whose values are not yet shown to take effect."""
        if not self._verify:
            return []
        return [
            index
            for index, value in enumerate(numbers)
            if value not in self._values[index]
            and (len(self._values[index]) <= _ENOUGH or number_kind(value) not in self._kinds[index])
        ]

    def prove(self, signature: Signature, numbers: Sequence[int | float]) -> None:
        """Records that the capture equalled eager here."""
        self._remember(signature, True)
        for index, value in enumerate(numbers):
            if len(self._values[index]) <= _REMEMBERED:
                self._values[index].add(value)
            self._kinds[index].add(number_kind(value))

    def refuse(self, signature: Signature) -> None:
        """Records that the capture does not hold for these extents."""
        self._remember(signature, False)

    def shape_proved(self, signature: Signature) -> bool:
        """Whether these extents have been compared and found equal."""
        return self._proved.get(signature, False)

    def _remember(self, signature: Signature, good: bool) -> None:
        self._proved[signature] = good
        while len(self._proved) > _REMEMBERED:
            self._proved.popitem(last=False)
