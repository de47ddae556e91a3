"""Calls that a recording cannot hold as they are, replaced by others with the same result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class Substitutes(TorchFunctionMode):
    """Active while a module is traced."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") == "repeat_interleave":
            return _repeat_interleave(func, *args, **(kwargs or {}))
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
