"""Weights that only their quantised form is read of wait in the host's memory, where the GPU can still reach them.

A parameter that is stowed keeps its object, shape, dtype, device and values: its storage is page-locked memory of the
host, which CUDA maps into the GPU's addresses. Whatever reads or writes it - an eager call, saving, loading, fusing an
adapter - works as before, only slower, and what is written is seen as any other change is. `restore` moves it back.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from rewriter.causes import cause_of
from rewriter.runtime.adoption import Adoptions, lies_in, places

if TYPE_CHECKING:
    from rewriter.graph.prepare import Prepared

logger = logging.getLogger("rewriter")

# What makes rows that stand for a weight in half of its memory.
STOWING = frozenset({"rows_i8"})

Place = Callable[[torch.Tensor], torch.Tensor]


class _Mapped:
    """Page-locked bytes, as CUDA reads them."""

    def __init__(self, count: int) -> None:
        self.memory = torch.empty(count, dtype=torch.uint8, pin_memory=True)
        self.__cuda_array_interface__ = {
            "shape": (count,),
            "typestr": "|u1",
            "data": (self.memory.data_ptr(), False),
            "version": 3,
        }

    def __del__(self) -> None:
        # Once it is free here, the host's memory may be given to another: no kernel may still read it then.
        if torch.cuda.is_initialized() and not torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize()


def in_host_memory(tensor: torch.Tensor) -> torch.Tensor:
    """The same CUDA tensor, contiguous, in host memory that its device reads; `tensor` itself where that cannot be.

    That is so on other devices, for a tensor without elements, and where the host has no memory to spare.
    """
    if not tensor.is_cuda or not tensor.numel():
        return tensor
    try:
        with torch.cuda.device(tensor.device):
            held = _Mapped(math.prod(tensor.shape) * tensor.element_size())
            mapped = torch.as_tensor(held, device=tensor.device)
    except (RuntimeError, MemoryError) as error:
        logger.info("a weight stays in the GPU's memory: %s", cause_of(error))
        return tensor
    # Torch would rather copy than share where it sees another device.
    if mapped.data_ptr() != held.memory.data_ptr():
        return tensor
    placed = mapped.view(tensor.dtype).view(tensor.shape)
    placed.copy_(tensor)
    return placed


class Stowing:
    """What one component has stowed. `place`: gives a tensor with the same values in the memory that things wait in."""

    def __init__(self, adoptions: Adoptions, place: Place = in_host_memory) -> None:
        self._adoptions = adoptions
        self._place = place
        self._places: set[int] = set()

    def stow(self, owner: object, weight: torch.Tensor) -> None:
        """Moves a weight of the module. `owner`: lives as long as there is a reason for it."""
        if weight.data_ptr() not in self._places:
            self._move(owner, [weight], weight, lambda placed: [placed])

    def stow_together(
        self, owner: object, sources: Sequence[torch.Tensor], whole: torch.Tensor, recipe: Prepared
    ) -> torch.Tensor:
        """Moves weights that lie in `whole`, which `recipe` made of them; where it is now."""
        if whole.data_ptr() in self._places:
            return whole
        parts = places(recipe, sources, whole)
        if parts is None or not lies_in(sources, parts):
            return whole
        return self._move(owner, sources, whole, lambda placed: places(recipe, sources, placed) or [])

    def _move(
        self,
        owner: object,
        sources: Sequence[torch.Tensor],
        whole: torch.Tensor,
        parts: Callable[[torch.Tensor], Sequence[torch.Tensor]],
    ) -> torch.Tensor:
        placed = self._place(whole.detach())
        if placed.data_ptr() == whole.data_ptr() or not self._adoptions.adopt(owner, sources, parts(placed)):
            return whole
        self._places.add(placed.data_ptr())
        return placed
