"""A look at some elements of tensors: notices writes that torch does not count, such as those through `.data`."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TypeAlias

import torch

_SAMPLES = 8


# Sizes, strides and offset of a view.
_Place: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], int]


class Probes:
    """Samples of tensors as they were when this was made. A write that leaves the sampled elements is not noticed.

    Views of tensors on the CPU are kept, so that a look is cheap. Those of others would keep the memory of a module
    that moves to another device, and are made anew; where they lie is computed once.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._all = range(len(tensors))
        self._tensors = [tensor if tensor.device.type != "cpu" else None for tensor in tensors]
        self._places = list(map(_place, tensors))
        with torch.no_grad():
            self._kept = [
                tensor.detach().as_strided(*place) if tensor.device.type == "cpu" else None
                for tensor, place in zip(tensors, self._places, strict=True)
            ]
        groups: dict[tuple[torch.dtype, torch.device], list[int]] = {}
        for index, tensor in enumerate(tensors):
            groups.setdefault((tensor.dtype, tensor.device), []).append(index)
        self._groups = list(groups.values())
        self._samples: dict[int, torch.Tensor] = {}
        for group, samples in zip(self._groups, self._look(self._groups), strict=True):
            counts = [self._places[index][0][0] for index in group]
            self._samples.update(zip(group, samples.split(counts), strict=True))
        # The samples of those that were asked for last, joined.
        self._asked: Collection[int] = ()
        self._chosen: list[list[int]] = []
        self._expected: list[torch.Tensor] = []

    def same(self, among: Collection[int] | None = None) -> bool:
        """Whether the sampled elements still have their values: of all tensors, or of those at the positions `among`.
        Waits for the device that these are on."""
        among = self._all if among is None else among
        if among != self._asked:
            chosen = [[index for index in group if index in among] for group in self._groups]
            self._chosen = [group for group in chosen if group]
            self._expected = [torch.cat([self._samples[index] for index in group]) for group in self._chosen]
            self._asked = among
        return all(map(torch.equal, self._look(self._chosen), self._expected))

    def views(self) -> list[torch.Tensor]:
        """The tensors that this holds: views of those it was made of."""
        return [view for view in self._kept if view is not None]

    def _look(self, groups: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        with torch.no_grad():
            return [torch.cat([self._view(index) for index in group]) for group in groups]

    def _view(self, index: int) -> torch.Tensor:
        kept, tensor = self._kept[index], self._tensors[index]
        if kept is not None:
            return kept
        assert tensor is not None
        return tensor.as_strided(*self._places[index])


def _place(tensor: torch.Tensor) -> _Place:
    """Where a few elements lie, as a row: spread over the largest dimension, in the middle of the others."""
    sizes, strides = tensor.shape, tensor.stride()
    if tensor.numel() == 0:
        return (0,), (1,), int(tensor.storage_offset())
    if not sizes:
        return (1,), (1,), int(tensor.storage_offset())
    longest = sizes.index(max(sizes))
    step = max(1, sizes[longest] // _SAMPLES)
    offset = sum(stride * (size // 2) for size, stride in zip(sizes, strides, strict=True))
    offset -= strides[longest] * (sizes[longest] // 2)
    count = (sizes[longest] + step - 1) // step
    return (count,), (strides[longest] * step,), int(tensor.storage_offset()) + offset
