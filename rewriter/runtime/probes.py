"""A look at some elements of tensors: notices writes that torch does not count, such as those through `.data`."""

from __future__ import annotations

from collections.abc import Sequence
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
        self._groups: dict[tuple[torch.dtype, torch.device], list[tuple[torch.Tensor, _Place]]] = {}
        kept: dict[torch.dtype, list[torch.Tensor]] = {}
        with torch.no_grad():
            for tensor in tensors:
                place = _place(tensor)
                if tensor.device.type == "cpu":
                    kept.setdefault(tensor.dtype, []).append(tensor.detach().as_strided(*place))
                else:
                    self._groups.setdefault((tensor.dtype, tensor.device), []).append((tensor, place))
        self._kept = list(kept.values())
        self._samples = self._look()

    def same(self) -> bool:
        """Whether the sampled elements still have their values. Waits for the device."""
        samples = self._look()
        return all(a.device == b.device and torch.equal(a, b) for a, b in zip(samples, self._samples, strict=True))

    def views(self) -> list[torch.Tensor]:
        """The tensors that this holds: views of those it was made of."""
        return [view for views in self._kept for view in views]

    def _look(self) -> list[torch.Tensor]:
        with torch.no_grad():
            made = [[tensor.as_strided(*place) for tensor, place in group] for group in self._groups.values()]
            return [torch.cat(views) for views in (*self._kept, *made)]


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
