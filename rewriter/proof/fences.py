"""What a program may not do with memory: read around its operands, change them, leave its results unwritten."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from rewriter.proof.layouts import outside, own

_ALLOCATING = frozenset(
    (
        torch.empty,
        torch.empty_like,
        torch.empty_permuted,
        torch.empty_strided,
        torch.Tensor.new_empty,
        torch.Tensor.new_empty_strided,
    )
)


def storage_of(x: torch.Tensor) -> torch.Tensor:
    """All elements of the storage in which x lies: [numel of the storage], x's dtype, sharing its memory."""
    return x.new_empty(0).set_(x.untyped_storage())


def snapshot(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """A copy of the storage of each tensor."""
    return [storage_of(x).clone() for x in tensors]


def restore(tensors: Sequence[torch.Tensor], before: Sequence[torch.Tensor]) -> None:
    """Puts back what `snapshot` copied."""
    for x, storage in zip(tensors, before, strict=True):
        storage_of(x).copy_(storage)


def changed(before: torch.Tensor, after: torch.Tensor) -> list[int]:
    """Positions at which two storages differ in their bytes."""
    size = before.element_size()
    differs = (before.view(torch.uint8) != after.view(torch.uint8)).view(-1, size).any(1)
    return [int(position) for position in differs.nonzero().flatten()]


def refence(tensors: Sequence[torch.Tensor], fill: float) -> None:
    """Fills the storages around the tensors."""
    for x in tensors:
        storage = storage_of(x)
        inside = torch.zeros(storage.shape, dtype=torch.bool, device=x.device)
        own(inside.as_strided(x.shape, x.stride(), x.storage_offset()), x).fill_(True)
        # Not `masked_fill_`, which knows no formats of eight bits.
        storage.copy_(torch.where(inside, storage, torch.full_like(storage, fill)))


@contextlib.contextmanager
def poisoned(like: Sequence[torch.Tensor], fill: float | None = None) -> Iterator[None]:
    """Memory that is allocated inside and not initialised holds NaN (the smallest number for integers), or `fill`.

    Ops in Python get it from torch's functions, which are watched. Kernels that allocate in C++ get a block that was
    freed right before: `like` are tensors of the sizes that they will ask for.
    """
    blocks = [torch.full_like(x, _poison(x.dtype, fill)) for x in like for _ in range(2)]
    del blocks
    with _Poison(fill):
        yield


class _Poison(TorchFunctionMode):
    def __init__(self, fill: float | None) -> None:
        super().__init__()
        self.fill = fill

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _ALLOCATING:
            result.fill_(_poison(result.dtype, self.fill))
        return result


def _poison(dtype: torch.dtype, fill: float | None) -> Any:
    return outside(dtype) if fill is None else fill
