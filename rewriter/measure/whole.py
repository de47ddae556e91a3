"""Times whole graphs on the caller's own inputs: what pays alone can lose together, and the other way round."""

from __future__ import annotations

import functools
import hashlib
import logging
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeAlias

import torch

from rewriter import torch_ir
from rewriter.graph import prepare
from rewriter.graph.engine import Rewritten
from rewriter.graph.prepare import Prepared
from rewriter.measure.cache import TimingCache
from rewriter.measure.timing import FAR_BEHIND, Timing, best_of, steady

_log = logging.getLogger("rewriter")

# What recipes make of a graph's weights, valid until they are asked for with other recipes; with the positions, of
# weights and recipes after them, that the graph itself does not read.
Derive: TypeAlias = Callable[[Sequence[Prepared], Collection[int]], Sequence[torch.Tensor]]
_TURNS = 2
# Times of whole graphs that are closer than this say nothing.
_TOLD_APART = 0.99


class Inputs:
    """What candidates are called with: the inputs of the graph that they were made from, the last of them weights.

    `derive` may move the weights: one candidate at a time.
    """

    def __init__(self, tensors: Sequence[torch.Tensor], weights: int, derive: Derive | None = None) -> None:
        first = len(tensors) - weights
        self.tensors, self._activations, self._weights = tensors, list(tensors[:first]), list(tensors[first:])
        self._derive = derive or self._computed

    def weights(self, candidate: Rewritten) -> list[torch.Tensor]:
        """The weights, and after them those that the candidate derives."""
        unread = prepare.unread(candidate.graph, len(self._weights) + len(candidate.prepared))
        return [*self._weights, *self._derive(candidate.prepared, unread)]

    def given(self, candidate: Rewritten) -> list[torch.Tensor]:
        """All inputs of the candidate's graph."""
        return [*self._activations, *self.weights(candidate)]

    def call(self, candidate: Rewritten) -> Callable[[], Any]:
        """The candidate's graph as a function of nothing."""
        given, function = self.given(candidate), torch_ir.function_from_graph(candidate.graph)
        return lambda: function(*given)

    def _computed(self, recipes: Sequence[Prepared], _: Collection[int]) -> list[torch.Tensor]:
        known = list(self._weights)
        for recipe in recipes:
            known.append(prepare.run(recipe, known))
        return known[len(self._weights) :]


def fastest(candidates: Sequence[Rewritten], inputs: Inputs, device: str, cache: TimingCache) -> Rewritten:
    """The candidate whose graph runs fastest, of those that are about as fast the first. One that cannot run is left
    out."""
    shapes = [tuple(tensor.shape) for tensor in inputs.tensors]
    keys = [hashlib.sha256(f"{shapes}{one.graph}".encode()).hexdigest()[:24] for one in candidates]
    best = {key: known.after for key in keys if (known := cache.get(key)) is not None}
    unknown = {key: one for key, one in zip(keys, candidates, strict=True) if key not in best}
    for turn in range(_TURNS):
        leader = min(best.values(), default=float("inf"))
        if turn and steady(leader * 1e-6, device):
            break
        for key, one in unknown.items():
            if not turn or best[key] <= FAR_BEHIND * leader:
                best[key] = min(best.get(key, float("inf")), best_of(functools.partial(inputs.call, one), device) * 1e6)
    for key in unknown:
        if best[key] < float("inf"):
            cache.put(key, Timing(before=best[key], after=best[key]))
    leader = min(best.values())
    _log.info("whole graphs take %s ms", ", ".join(f"{1e-3 * best[key]:.2f}" for key in keys))
    return next(one for key, one in zip(keys, candidates, strict=True) if _TOLD_APART * best[key] <= leader)
