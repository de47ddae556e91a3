"""Whether a tensor is the one that was here before, unwritten since."""

from __future__ import annotations

import weakref
from collections.abc import Sequence

import torch


class Watched:
    """Remembers tensors without keeping them alive."""

    def __init__(self) -> None:
        self._seen: list[tuple[weakref.ref[torch.Tensor], int] | None] = []

    def unchanged(self, tensors: Sequence[torch.Tensor]) -> list[bool]:
        """For each tensor, whether the last `look` saw this very object and nothing has been written to it since.

        A tensor that counts no versions (made in inference mode) is never unchanged.
        """
        if len(tensors) != len(self._seen):
            return [False] * len(tensors)
        return [
            seen is not None and seen[0]() is tensor and seen[1] == tensor._version
            for seen, tensor in zip(self._seen, tensors, strict=True)
        ]

    def look(self, tensors: Sequence[torch.Tensor]) -> None:
        """Remembers these tensors as they are now."""
        self._seen = [None if tensor.is_inference() else (weakref.ref(tensor), tensor._version) for tensor in tensors]
