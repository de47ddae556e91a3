"""Weights derived from weights: computed once, and again in place when a source has changed."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

import torch

from rewriter.runtime.adoption import Adoptions, lies_in, places
from rewriter.runtime.probes import Probes
from rewriter.runtime.stowing import STOWING, Stowing

if TYPE_CHECKING:
    from rewriter.graph.prepare import Prepared


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
        self._users: weakref.WeakSet[PreparedWeights] = weakref.WeakSet()
        self.adoptions = Adoptions()
        self.stowing = Stowing(self.adoptions)

    def get(self, key: Any) -> PreparedTensor:
        """The storage for what `key` (recipe and names of its sources) stands for; empty when new."""
        return self._known.setdefault(key, PreparedTensor())

    def known(self, recipes: Sequence[Prepared], names: Sequence[str]) -> list[PreparedTensor]:
        """Those of what the recipes stand for that are there; whoever holds them keeps them."""
        return [self._known[key] for key in _keys(recipes, names) if key in self._known]

    def tensors(self) -> list[torch.Tensor]:
        """All tensors held here and by the users of this, views of weights among them."""
        held = [item.tensor for item in self._known.values() if item.tensor is not None]
        return [*held, *(view for user in self._users for view in user.views())]

    def join(self, user: PreparedWeights) -> None:
        self._users.add(user)

    def abandon(self, weight: torch.Tensor) -> None:
        """Leaves the memory that `weight` was moved to, if any, to the module: what is derived gets another."""
        cell = self.adoptions.owner(weight)
        if isinstance(cell, PreparedTensor):
            cell.tensor, cell.shared = None, False

    def bytes(self) -> int:
        """Memory held by derived weights on top of the module's own."""
        tensors = [item.tensor for item in self._known.values() if item.tensor is not None and not item.shared]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


class PreparedWeights:
    """The derived weights of one capture. `weights` are the graph's weights, `names` identifies them.

    A recipe's sources are positions in the list of weights followed by the recipes before it. With `untouched`, the ids
    of weights that stay where they are, the module's other weights move into what is derived from them, as soon as it
    is there and whenever they are set anew. What rows in eight bits are made of waits in the host's memory instead,
    where it is among `unread`: the positions that the graph itself does not read. It leaves as soon as all recipes have
    read it, so that there need not be room for all weights and all rows.
    """

    def __init__(
        self,
        recipes: Sequence[Prepared],
        names: Sequence[str],
        weights: Sequence[torch.Tensor],
        store: PreparedStore,
        *,
        untouched: Collection[int] | None = None,
        unread: Collection[int] = (),
    ) -> None:
        self._recipes = tuple(recipes)
        self._lock = threading.Lock()
        self._cells = [store.get(key) for key in _keys(recipes, names)]
        self._adoptions, self._stowing = store.adoptions, store.stowing
        self._leaving = _leaving(recipes, unread)
        store.join(self)
        self._adopting = untouched is not None
        self._untouched = untouched or ()
        # The position of the first recipe.
        self._first = len(names)
        self._state: int | None = None
        self._base = sorted({source for recipe in recipes for source in recipe.sources if source < len(names)})
        self._made_of: list[frozenset[int]] = []
        for recipe in recipes:
            self._made_of.append(
                frozenset().union(*({s} if s < len(names) else self._made_of[s - len(names)] for s in recipe.sources))
            )
        self._probes = Probes(())
        self._compute(weights)

    def refresh(self, weights: Sequence[torch.Tensor], state: int | None = None) -> list[torch.Tensor]:
        """The derived weights for `weights` as they are now: computed again if a source has changed.

        `state` is another number whenever something may have written to a weight in a way that torch does not count.
        Without it, a look at some elements decides.
        """
        if self._recipes and (
            state != self._state or self._stamps != self._look(weights) or (state is None and not self._probes.same())
        ):
            self._state = state
            self._compute(weights)
        return self._tensors()

    def sources(self, index: int) -> frozenset[int]:
        """The positions of the weights that a derived one is made of."""
        return self._made_of[index]

    def copied(self) -> frozenset[int]:
        """The positions of the weights whose values are held a second time."""
        made = zip(self._made_of, self._cells, strict=True)
        return frozenset().union(*(sources for sources, cell in made if not cell.shared))

    def forget(self) -> None:
        """Ends the use of this: what nobody else needs is freed."""
        self._recipes, self._cells, self._made_of, self._probes = (), [], [], Probes(())

    def _compute(self, weights: Sequence[torch.Tensor]) -> None:
        if not self._recipes:
            return
        with self._lock, torch.inference_mode(False), torch.no_grad():
            known = list(weights)
            for index, (recipe, cell) in enumerate(zip(self._recipes, self._cells, strict=True)):
                self._renew(recipe, cell, known)
                assert cell.tensor is not None
                known.append(cell.tensor)
                for position, rows in self._leaving.get(index, ()):
                    self._stow(position, self._cells[rows], known)
            self._stamps = self._look(weights)
            self._probes = Probes([weights[source] for source in self._base] if self._state is None else ())

    def _tensors(self) -> list[torch.Tensor]:
        return [cell.tensor for cell in self._cells if cell.tensor is not None]

    def _stow(self, position: int, rows: PreparedTensor, known: list[torch.Tensor]) -> None:
        if position < self._first:
            if id(known[position]) not in self._untouched:
                self._stowing.stow(rows, known[position])
            return
        whole, made = self._cells[position - self._first], self._recipes[position - self._first]
        sources = [known[source] for source in made.sources]
        known[position] = whole.tensor = self._stowing.stow_together(whole, sources, known[position], made)

    def views(self) -> list[torch.Tensor]:
        """The views of weights that are held here."""
        return self._probes.views()

    def _renew(self, recipe: Prepared, cell: PreparedTensor, known: Sequence[torch.Tensor]) -> None:
        from rewriter.graph import prepare

        sources = [known[source] for source in recipe.sources]
        parts = None if cell.tensor is None else places(recipe, sources, cell.tensor)
        if parts is not None and cell.tensor is not None and lies_in(sources, parts):
            cell.shared = True
            # A write to a source counts for the source alone, though the whole has changed too.
            if not cell.tensor.is_inference():
                torch.autograd.graph.increment_version(cell.tensor)
            return
        fresh = prepare.run(recipe, known)
        if any(fresh.untyped_storage().data_ptr() == s.untyped_storage().data_ptr() for s in sources):
            cell.tensor, cell.shared = fresh, True
            return
        if cell.shared:
            # The module has other weights now. Those that lay here may be put back: whoever swaps weights, such as for
            # a moving average, holds them, and they must not change.
            cell.tensor = None
        cell.shared = False
        cell.update(fresh)
        if self._adopting and cell.tensor is not None and not any(id(source) in self._untouched for source in sources):
            parts = places(recipe, sources, cell.tensor)
            cell.shared = parts is not None and self._adoptions.adopt(cell, sources, parts)

    def _look(self, weights: Sequence[torch.Tensor]) -> list[tuple[int, int]]:
        return [(weights[source].data_ptr(), weights[source]._version) for source in self._base]


def _leaving(recipes: Sequence[Prepared], unread: Collection[int]) -> dict[int, list[tuple[int, int]]]:
    """By the recipe after which they leave: the positions of what waits elsewhere, and of the rows made of it."""
    readers = {source: index for index, recipe in enumerate(recipes) for source in recipe.sources}
    found: dict[int, list[tuple[int, int]]] = {}
    for index, recipe in enumerate(recipes):
        position = recipe.sources[0]
        if recipe.function in STOWING and position in unread:
            found.setdefault(readers[position], []).append((position, index))
    return found


def _keys(recipes: Sequence[Prepared], names: Sequence[str]) -> list[Any]:
    """What each recipe stands for: its function, options, and what its sources stand for."""
    keys: list[Any] = list(names)
    for recipe in recipes:
        keys.append((recipe.function, tuple(keys[source] for source in recipe.sources), recipe.options))
    return keys[len(names) :]
