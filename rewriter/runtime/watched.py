"""Whether a tensor is the one that was here before, unwritten since."""

from __future__ import annotations

import time
import weakref
from collections.abc import Sequence

import torch

# A wait for the device in so many seconds costs nothing that can be measured.
_PAUSE = 0.1


class Runs:
    """Tells the steps of one denoising loop from a call before which the caller may have done anything.

    A loop gives another sample at each step and the same text; a call is taken for a step where the first tensor is
    another one, no other tensor that has stayed the same until now is, and little time has passed since the call before
    returned. How long that call took says nothing: it may wait for a device that is behind.
    """

    def __init__(self) -> None:
        self._watched = Watched()
        self._steady: list[bool] = []
        self._last = 0.0

    def starts(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether a call with these tensors may be the first of a run."""
        now = time.perf_counter()
        same = self._watched.unchanged(tensors)
        broken = len(same) != len(self._steady) or any(
            was and not stays for was, stays in zip(self._steady, same, strict=True)
        )
        paused = now - self._last > _PAUSE
        self._watched.look(tensors)
        self._steady, self._last = same, now
        return broken or not any(same[1:]) or same[0] or paused

    def ran(self) -> None:
        """The call returns to its caller."""
        self._last = time.perf_counter()


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
