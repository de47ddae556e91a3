"""Tensors that broadcast with each other, seen as rows of one common space."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from rewriter.ops.triton.device import unavailable

# Dimensions of a row's position, and then the elements of a row.
_RANK = 4
# Positions and sizes are 32 bits wide in a kernel, offsets 64.
LARGEST = 2**31 - 2**16

Optional = torch.Tensor | None


@dataclasses.dataclass(frozen=True, slots=True)
class Rows:
    """`extents`: three of the row's position and the row's length; `strides`: of each tensor in those dimensions."""

    extents: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]

    @property
    def count(self) -> int:
        return self.extents[0] * self.extents[1] * self.extents[2]

    @property
    def columns(self) -> int:
        return self.extents[3]


def rows_of(shape: Sequence[int], *tensors: Optional, whole: bool = True) -> Rows | None:
    """The tensors, expanded to `shape`, as rows; None where their strides need more than four dimensions.

    Neighbouring dimensions that all tensors step through alike become one. `whole`: a row is the last dimension of
    `shape`, and stays so. An absent tensor has strides of 0.
    """
    steps = [(0,) * len(shape) if each is None else each.expand(shape).stride() for each in tensors]
    return _merged(tuple(shape), steps, whole)


def rows_in_order(result: torch.Tensor, *tensors: torch.Tensor) -> Rows | None:
    """`result` and then the tensors, expanded to its shape, as rows in the order in which `result` lies in memory."""
    lies = result.stride()
    order = sorted(range(result.dim()), key=lambda dim: (-lies[dim], dim))
    steps = [tuple(each.expand(result.shape).stride(dim) for dim in order) for each in (result, *tensors)]
    return _merged(tuple(result.shape[dim] for dim in order), steps, whole=False)


def _merged(shape: tuple[int, ...], steps: list[tuple[int, ...]], whole: bool) -> Rows | None:
    extents: list[int] = []
    strides: list[list[int]] = [[] for _ in steps]
    for dim, extent in enumerate(shape):
        last = whole and dim == len(shape) - 1
        if extent == 1 and not last:
            continue
        own = [each[dim] for each in steps]
        if extents and not last and all(s[-1] == step * extent for s, step in zip(strides, own, strict=True)):
            extents[-1] *= extent
            for each, step in zip(strides, own, strict=True):
                each[-1] = step
        else:
            extents.append(extent)
            for each, step in zip(strides, own, strict=True):
                each.append(step)
    missing = _RANK - len(extents)
    if missing < 0:
        return None
    return Rows((1,) * missing + tuple(extents), tuple((0,) * missing + tuple(each) for each in strides))


def refusal(*tensors: Optional) -> str | None:
    """Why the tensors cannot meet in one kernel: a dtype or a device that has none, or two devices."""
    present = [each for each in tensors if each is not None]
    for each in present:
        reason = unavailable(each)
        if reason is not None:
            return reason
        if each.device != present[0].device:
            return "operands on two devices"
    return None


def blank(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor without data that has the shape, strides and dtype of `tensor`."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def like(pattern: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A new tensor on `device` with the shape, strides and dtype of `pattern`."""
    return torch.empty_strided(pattern.shape, pattern.stride(), dtype=pattern.dtype, device=device)
