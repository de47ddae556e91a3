"""Numbers that lie in a module and are changed between calls: the scales of IP-Adapters.

They are inputs of a graph as the numbers of a call are. Equal ones are one number, so that what a trace depends on is
which of them are equal and which are zero, where the adapter takes no part.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

# Classes whose `scale` is a list with a number for each adapter, compared with zero and multiplied with, no more.
_CLASSES = {"diffusers.models.attention_processor": ("IPAdapterAttnProcessor", "IPAdapterAttnProcessor2_0")}


class Scales:
    """Those of one module tree. values: the distinct ones. paths: where each of them was found first."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.paths: list[str] = []
        self._places: list[tuple[list[Any], int, int]] = []

    def describe(self, module: torch.nn.Module, path: str, attribute: str, value: Any) -> tuple[Any, ...] | None:
        """What a trace depends on in an attribute whose numbers are inputs; None for any other attribute."""
        kind = type(module)
        if attribute != "scale" or type(value) is not list or kind.__name__ not in _CLASSES.get(kind.__module__, ()):
            return None
        if getattr(sys.modules.get(kind.__module__), kind.__name__, None) is not kind:
            return None
        if not all(type(each) in (int, float) and math.isfinite(each) for each in value):
            return None
        return ("scales", tuple(self._enter(value, index, f"{path}.scale[{index}]") for index in range(len(value))))

    def _enter(self, owner: list[Any], index: int, path: str) -> int:
        value = float(owner[index])
        if value == 0:
            return -1
        if value not in self.values:
            self.values.append(value)
            self.paths.append(path)
        group = self.values.index(value)
        self._places.append((owner, index, group))
        return group

    @contextlib.contextmanager
    def given(self, numbers: Sequence[Any]) -> Iterator[None]:
        """Puts other numbers, or tensors, in the place of `values` while the block runs."""
        before = [owner[index] for owner, index, _ in self._places]
        for owner, index, group in self._places:
            owner[index] = numbers[group]
        try:
            with _NotZero(numbers):
                yield
        finally:
            for (owner, index, _), value in zip(self._places, before, strict=True):
                owner[index] = value


class _NotZero(TorchFunctionMode):
    """Under trace these tensors are known to be other than zero."""

    def __init__(self, tensors: Sequence[Any]) -> None:
        super().__init__()
        self._known = {id(each) for each in tensors if isinstance(each, torch.Tensor)}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        equal = getattr(func, "__name__", "") in ("eq", "__eq__")
        if equal and id(args[0]) in self._known and type(args[1]) is int and args[1] == 0:
            return False
        return func(*args, **(kwargs or {}))
