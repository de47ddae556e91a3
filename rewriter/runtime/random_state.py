"""The random number generators as they were before a call, so that the call can be repeated."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch


class RandomState:
    """The state of the CPU's generator and of those of `devices` at the time of construction."""

    def __init__(self, devices: Iterable[torch.device]) -> None:
        self._indices = sorted({device.index or 0 for device in devices if device.type == "cuda"})
        self._before = self._now()

    @contextlib.contextmanager
    def replayed(self) -> Iterator[None]:
        """Starts the block from the remembered state, and leaves the generators as they were before the block."""
        after = self._now()
        self._set(self._before)
        try:
            yield
        finally:
            self._set(after)

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Leaves the generators in the remembered state, whatever the block draws."""
        try:
            yield
        finally:
            self._set(self._before)

    def _now(self) -> list[torch.Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(index) for index in self._indices)]

    def _set(self, states: list[torch.Tensor]) -> None:
        torch.set_rng_state(states[0])
        for index, state in zip(self._indices, states[1:], strict=True):
            torch.cuda.set_rng_state(state, index)
