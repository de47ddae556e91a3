"""Calls that a recording cannot hold as they are, replaced by others with the same result."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_DATA = inspect.getattr_static(torch.Tensor, "data").__get__


class Substitutes(TorchFunctionMode):
    """Active while a module is traced."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func == _DATA:
            # A recording does not follow what is written through `data`, which is a tensor of its own to it.
            return args[0].detach()
        name = getattr(func, "__name__", "")
        if name == "repeat_interleave":
            return _repeat_interleave(func, *args, **(kwargs or {}))
        if name in ("masked_fill", "masked_fill_"):
            # Graphs know no such op with a Python bool.
            args = tuple(int(each) if type(each) is bool else each for each in args)
        return func(*args, **(kwargs or {}))


def _repeat_interleave(func: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.Tensor:
    """With one number of repeats for all elements: a view and a copy.

    A number from a shape is a tensor on the CPU while recording, from which torch makes an index on the CPU, and such
    an index cannot be used on a GPU.
    """
    given = dict(zip(("input", "repeats", "dim"), args, strict=False)) | kwargs
    x, repeats, dim = given["input"], given.get("repeats"), given.get("dim")
    if not isinstance(repeats, torch.Tensor) or repeats.dim() != 0:
        return func(*args, **kwargs)  # type: ignore[no-any-return]
    if dim is None:
        x, dim = x.flatten(), 0
    dim %= x.dim()
    sizes: list[Any] = [-1] * (x.dim() + 1)
    sizes[dim + 1] = repeats
    return x.unsqueeze(dim + 1).expand(sizes).flatten(dim, dim + 1)  # type: ignore[no-any-return]
