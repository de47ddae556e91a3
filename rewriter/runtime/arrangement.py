"""Where a module's weights lie while candidates for its graph are tried, one after the other.

Every candidate wants other weights merged or in another memory order. With a copy for each, choosing would need the
memory of several models; so the module's own weights move into what the candidate at hand is given, and move on.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import torch

from rewriter.runtime.prepared import PreparedStore, PreparedWeights

if TYPE_CHECKING:
    from rewriter.graph.prepare import Prepared


class Arrangement:
    """Of the weights of one capture. `untouched`: ids of weights that stay where they are.

    As a context, gives all weights back that it has moved where an exception ends it.
    """

    def __init__(
        self, names: Sequence[str], weights: Sequence[torch.Tensor], store: PreparedStore, untouched: Collection[int]
    ) -> None:
        self._names, self._weights, self._store, self._untouched = names, weights, store, untouched
        self._present: PreparedWeights | None = None

    def __enter__(self) -> Arrangement:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self.release()

    def derive(self, recipes: Sequence[Prepared], unread: Collection[int] = ()) -> list[torch.Tensor]:
        """What the recipes make of the weights. What an earlier call has given must not be used any more."""
        return self.settle(recipes, unread).refresh(self._weights)

    def settle(self, recipes: Sequence[Prepared], unread: Collection[int] = ()) -> PreparedWeights:
        """Moves the weights into what the recipes make of them, and all others back to a memory of their own.

        `unread`: the positions, of weights and recipes after them, that only recipes read.
        """
        # What stays is held meanwhile; the rest goes first, so that there is room.
        held = self._store.known(recipes, self._names)
        self.release()
        made = PreparedWeights(
            recipes, self._names, self._weights, self._store, untouched=self._untouched, unread=unread
        )
        del held
        self._present = made
        return made

    def release(self) -> None:
        """Gives all weights back that only candidates have moved."""
        if self._present is not None:
            self._present.forget()
        self._present = None
        self._store.adoptions.give_back()
