"""Weights derived from weights: computed once, and again in place when a source has changed."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from rewriter.runtime.adoption import Adoptions, lies_in, places

if TYPE_CHECKING:
    from rewriter.graph.prepare import Prepared

_SAMPLES = 8


class PreparedTensor:
    """The storage of one derived weight. `shared`: the module's own weights lie in it, or it is a view of one."""

    def __init__(self) -> None:
        self.tensor: torch.Tensor | None = None
        self.shared = False

    def update(self, fresh: torch.Tensor) -> None:
        """Takes over the values of `fresh`, in the present storage where that fits."""
        old = self.tensor
        if old is not None and (old.shape, old.dtype, old.device, old.stride()) == (
            fresh.shape,
            fresh.dtype,
            fresh.device,
            fresh.stride(),
        ):
            old.copy_(fresh)
        else:
            self.tensor = fresh


class PreparedStore:
    """The derived weights of one component. Captures that need the same one share it; unused ones are freed."""

    def __init__(self) -> None:
        self._known: weakref.WeakValueDictionary[Any, PreparedTensor] = weakref.WeakValueDictionary()
        self.adoptions = Adoptions()

    def get(self, key: Any) -> PreparedTensor:
        """The storage for what `key` (recipe and names of its sources) stands for; empty when new."""
        return self._known.setdefault(key, PreparedTensor())

    def bytes(self) -> int:
        """Memory held by derived weights on top of the module's own."""
        tensors = [item.tensor for item in self._known.values() if item.tensor is not None and not item.shared]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


class PreparedWeights:
    """The derived weights of one capture. `weights` are the graph's weights, `names` identifies them.

    A recipe's sources are positions in the list of weights followed by the recipes before it.
    """

    def __init__(
        self, recipes: Sequence[Prepared], names: Sequence[str], weights: Sequence[torch.Tensor], store: PreparedStore
    ) -> None:
        self._recipes = tuple(recipes)
        self._lock = threading.Lock()
        keys: list[Any] = list(names)
        for recipe in recipes:
            keys.append((recipe.function, tuple(keys[source] for source in recipe.sources), recipe.options))
        self._cells = [store.get(key) for key in keys[len(names) :]]
        self._adoptions = store.adoptions
        self._adopting = False
        self._state: int | None = None
        self._base = sorted({source for recipe in recipes for source in recipe.sources if source < len(names)})
        self._compute(weights)

    def refresh(self, weights: Sequence[torch.Tensor], state: int | None = None) -> list[torch.Tensor]:
        """The derived weights for `weights` as they are now: computed again if a source has changed.

        `state` names the module's state. Another one than before computes anew: what fuses or scales an adapter
        writes through `weight.data`, which leaves no trace in the weight itself.
        """
        if self._recipes and (state != self._state or self._stamps != self._look(weights) or not self._same_samples()):
            self._state = state
            self._compute(weights)
        return [cell.tensor for cell in self._cells if cell.tensor is not None]

    def adopt(self, weights: Sequence[torch.Tensor]) -> None:
        """Moves the module's weights into what was prepared from them, now and whenever they are set anew."""
        self._adopting = True
        self._compute(weights)

    def _compute(self, weights: Sequence[torch.Tensor]) -> None:
        if not self._recipes:
            return
        with self._lock, torch.inference_mode(False), torch.no_grad():
            known = list(weights)
            for recipe, cell in zip(self._recipes, self._cells, strict=True):
                self._renew(recipe, cell, known)
                assert cell.tensor is not None
                known.append(cell.tensor)
            self._stamps = self._look(weights)
            # A write through `weight.data` does not count as a version. On the CPU a look at some elements is
            # cheap; elsewhere it would wait for the device on every call.
            probes = [_probe(weights[source]) for source in self._base if weights[source].device.type == "cpu"]
            self._probes = [[p for p in probes if p.dtype == dtype] for dtype in {p.dtype for p in probes}]
            self._samples = [torch.cat(group) for group in self._probes]

    def _renew(self, recipe: Prepared, cell: PreparedTensor, known: Sequence[torch.Tensor]) -> None:
        from rewriter.graph import prepare

        sources = [known[source] for source in recipe.sources]
        parts = None if cell.tensor is None else places(recipe, sources, cell.tensor)
        if parts is not None and lies_in(sources, parts):
            cell.shared = True
            return
        fresh = prepare.run(recipe, known)
        if any(fresh.untyped_storage().data_ptr() == s.untyped_storage().data_ptr() for s in sources):
            cell.tensor, cell.shared = fresh, True
            return
        if cell.shared and parts is None:
            cell.tensor = None
        cell.shared = False
        cell.update(fresh)
        if self._adopting and cell.tensor is not None:
            parts = places(recipe, sources, cell.tensor)
            cell.shared = parts is not None and self._adoptions.adopt(cell, sources, parts)

    def _look(self, weights: Sequence[torch.Tensor]) -> list[tuple[int, int]]:
        return [(weights[source].data_ptr(), weights[source]._version) for source in self._base]

    def _same_samples(self) -> bool:
        return all(
            torch.equal(torch.cat(group), sample) for group, sample in zip(self._probes, self._samples, strict=True)
        )


def _probe(tensor: torch.Tensor) -> torch.Tensor:
    """A 1-D view of a few elements, spread over the largest dimension."""
    tensor = tensor.detach()
    if tensor.dim() == 0 or tensor.numel() == 0:
        return tensor.reshape(-1)
    longest = max(range(tensor.dim()), key=tensor.size)
    step = max(1, tensor.size(longest) // _SAMPLES)
    index = [slice(None, None, step) if dim == longest else tensor.size(dim) // 2 for dim in range(tensor.dim())]
    return tensor[tuple(index)]
