"""A look at some elements of tensors: notices writes that torch does not count, such as those through `.data`."""

from __future__ import annotations

from collections.abc import Sequence

import torch

_SAMPLES = 8


class Probes:
    """Samples of tensors as they were when this was made. A write that leaves the sampled elements is not noticed.

    Views of tensors on the CPU are kept, so that a look is cheap. Those of others would keep the memory of a module
    that moves to another device, and are made anew.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]) -> None:
        self._tensors = [tensor for tensor in tensors if tensor.device.type != "cpu"]
        self._kept = _groups([tensor for tensor in tensors if tensor.device.type == "cpu"])
        self._samples = self._look()

    def same(self) -> bool:
        """Whether the sampled elements still have their values. Waits for the device."""
        samples = self._look()
        return len(samples) == len(self._samples) and all(
            a.device == b.device and torch.equal(a, b) for a, b in zip(samples, self._samples, strict=True)
        )

    def views(self) -> list[torch.Tensor]:
        """The tensors that this holds: views of those it was made of."""
        return [view for views in self._kept for view in views]

    def _look(self) -> list[torch.Tensor]:
        return [torch.cat(views) for views in (*self._kept, *_groups(self._tensors))]


def _groups(tensors: Sequence[torch.Tensor]) -> list[list[torch.Tensor]]:
    """Views of a few elements of each tensor, in a list for each dtype and device."""
    groups: dict[tuple[torch.dtype, torch.device], list[torch.Tensor]] = {}
    for tensor in tensors:
        groups.setdefault((tensor.dtype, tensor.device), []).append(_view(tensor))
    return list(groups.values())


def _view(tensor: torch.Tensor) -> torch.Tensor:
    """A 1-D view of a few elements, spread over the largest dimension."""
    tensor = tensor.detach()
    if tensor.dim() == 0 or tensor.numel() == 0:
        return tensor.reshape(-1)
    sizes, strides = tensor.shape, tensor.stride()
    longest = sizes.index(max(sizes))
    step = max(1, sizes[longest] // _SAMPLES)
    offset = sum(stride * (size // 2) for size, stride in zip(sizes, strides, strict=True))
    offset -= strides[longest] * (sizes[longest] // 2)
    count = (sizes[longest] + step - 1) // step
    return tensor.as_strided((count,), (strides[longest] * step,), tensor.storage_offset() + offset)
