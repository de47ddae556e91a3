"""Weights that move into the storage of what was prepared from them, so that both cost the memory of one.

Three projections that are computed as one are rows of one matrix; a convolution's weight in channels-last order is the
same weight. Moved there, a module's parameter keeps its object, shape and values, and what is written to it is seen by
the rewritten graph without being copied again.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from rewriter.graph.prepare import Prepared

# Where torch's own norms lose digits in channels-last memory: eager calls, and other traces, must not find a module's
# convolutions in it.
_ORDER_KEPT = frozenset({"cpu"})


def places(recipe: Prepared, sources: Sequence[torch.Tensor], prepared: torch.Tensor) -> list[torch.Tensor] | None:
    """The parts of `prepared` that may hold the sources, shaped like them; None where there are no such."""
    options = dict(recipe.options)
    if recipe.function == "concat" and options.get("dim", 0) == 0:
        return list(prepared.split([source.shape[0] for source in sources]))
    if recipe.function == "channels_last" and prepared.device.type not in _ORDER_KEPT:
        return [prepared]
    return None


def lies_in(sources: Sequence[torch.Tensor], parts: Sequence[torch.Tensor]) -> bool:
    """Whether each source is its part: the same memory, read in the same order."""
    return all(
        source.data_ptr() == part.data_ptr() and source.stride() == part.stride() and source.dtype == part.dtype
        for source, part in zip(sources, parts, strict=True)
    )


@dataclasses.dataclass(slots=True)
class _Moved:
    weight: weakref.ref[torch.Tensor]
    pointer: int
    owner: weakref.ref[object]


class Adoptions:
    """The moved weights of one component. A weight lies in one place only: the first that asks for it."""

    def __init__(self) -> None:
        self._moved: dict[int, _Moved] = {}

    def adopt(self, owner: object, sources: Sequence[torch.Tensor], parts: Sequence[torch.Tensor]) -> bool:
        """Moves all sources into their parts, or none. `owner`: lives as long as the parts are in use."""
        if not all(self._may_move(owner, source, part) for source, part in zip(sources, parts, strict=True)):
            return False
        for source, part in zip(sources, parts, strict=True):
            source.data = part
            self._moved[id(source)] = _Moved(weakref.ref(source), part.data_ptr(), weakref.ref(owner))
        return True

    def rename(self, old: torch.Tensor, new: torch.Tensor) -> None:
        """`new` now lies where `old` was moved to, if it was."""
        moved = self._moved.pop(id(old), None)
        if moved is not None and moved.weight() is old and moved.pointer == new.data_ptr():
            self._moved[id(new)] = _Moved(weakref.ref(new), moved.pointer, moved.owner)

    def owner(self, weight: torch.Tensor) -> object | None:
        """That for whose sake the weight was moved, where it still lies there."""
        moved = self._moved.get(id(weight))
        if moved is None or moved.weight() is not weight or moved.pointer != weight.data_ptr():
            return None
        return moved.owner()

    def release(self) -> None:
        """Gives each weight that still lies where it was moved to a contiguous storage of its own."""
        for key in list(self._moved):
            self._release(key)

    def give_back(self) -> None:
        """Does so for the weights whose owner is gone."""
        for key in [key for key, moved in self._moved.items() if moved.owner() is None]:
            self._release(key)

    def _release(self, key: int) -> None:
        moved = self._moved.pop(key)
        weight = moved.weight()
        if weight is not None and weight.data_ptr() == moved.pointer:
            with torch.inference_mode(False), torch.no_grad():
                weight.data = weight.data.clone(memory_format=torch.contiguous_format)

    def _may_move(self, owner: object, source: torch.Tensor, part: torch.Tensor) -> bool:
        if not isinstance(source, torch.nn.Parameter) or (source.shape, source.dtype) != (part.shape, part.dtype):
            return False
        moved = self._moved.get(id(source))
        if moved is not None and moved.weight() is source and moved.owner() not in (None, owner):
            return False
        # A view of something larger is left alone: who shares its memory would lose sight of it.
        whole = source.untyped_storage().nbytes() == source.numel() * source.element_size()
        return (whole and source.is_contiguous()) or moved is not None
