"""Tensors [N, C, ...] as samples, frames, places and channels, with one stride each: what a kernel can walk."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

# A program works inside one frame, so many small frames cost more than a dense copy.
_MOST_FRAMES = 64


@dataclasses.dataclass(frozen=True, slots=True)
class Planes:
    """The common extents of some operands, and each operand's strides in elements: sample, frame, place, channel."""

    samples: int
    frames: int
    places: int
    channels: int
    strides: tuple[tuple[int, int, int, int], ...]


def planes_of(operands: Sequence[torch.Tensor]) -> Planes | None:
    """How the operands, all of one shape [N, C, ...] and at least rank 2, are walked together.

    Neighbouring spatial dimensions that every operand lays out as one are merged. None where more than two remain, or
    so many frames that copies are better: contiguous operands always have planes.
    """
    shape = operands[0].shape
    merged: list[tuple[int, list[int]]] = []
    for dim in range(2, len(shape)):
        if shape[dim] == 1:
            continue
        strides = [each.stride(dim) for each in operands]
        if merged and merged[-1][1] == [stride * shape[dim] for stride in strides]:
            merged[-1] = (merged[-1][0] * shape[dim], strides)
        else:
            merged.append((shape[dim], strides))
    if len(merged) > 2 or (len(merged) == 2 and merged[0][0] > _MOST_FRAMES):
        return None
    still = (1, [0] * len(operands))
    frames, places = [*[still] * (2 - len(merged)), *merged]
    return Planes(
        shape[0],
        frames[0],
        places[0],
        shape[1],
        tuple(
            (each.stride(0), frames[1][index], places[1][index], each.stride(1)) for index, each in enumerate(operands)
        ),
    )


def sample_reach(tensor: torch.Tensor) -> int:
    """The largest offset of an element inside its sample, in elements."""
    return sum((extent - 1) * stride for extent, stride in zip(tensor.shape[1:], tensor.stride()[1:], strict=True))
