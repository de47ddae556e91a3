"""Times whole graphs on the caller's own inputs: what pays alone can lose together, and the other way round."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch

from rewriter import torch_ir
from rewriter.graph import prepare
from rewriter.graph.engine import Rewritten
from rewriter.measure.cache import TimingCache
from rewriter.measure.timing import Timing, in_turn


def fastest(
    candidates: Sequence[Rewritten],
    weights: int,
    arguments: Sequence[torch.Tensor],
    device: str,
    cache: TimingCache,
) -> Rewritten:
    """The candidate whose graph runs fastest; the last one is what the others are compared with.

    `arguments` are the graph's inputs, the last `weights` of them weights. A candidate that cannot run is left out.
    """
    shapes = [tuple(tensor.shape) for tensor in arguments]
    keys = [hashlib.sha256(f"{shapes}{one.graph}".encode()).hexdigest()[:24] for one in candidates]
    known = [cache.get(key) for key in keys]
    if any(timing is None for timing in known):
        calls = [call(candidate, weights, arguments) for candidate in candidates]
        seconds = in_turn(calls, device)
        known = [Timing(before=seconds[-1] * 1e6, after=each * 1e6) for each in seconds]
        for key, timing in zip(keys, known, strict=True):
            if timing is not None and timing.after < float("inf"):
                cache.put(key, timing)
    times = [timing.after for timing in known if timing is not None]
    return candidates[times.index(min(times))]


def inputs(candidate: Rewritten, weights: int, arguments: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The arguments with the candidate's prepared weights after them."""
    first = len(arguments) - weights
    tensors = list(arguments[first:])
    for recipe in candidate.prepared:
        tensors.append(prepare.run(recipe, tensors))
    return [*arguments[:first], *tensors]


def call(candidate: Rewritten, weights: int, arguments: Sequence[torch.Tensor]) -> Callable[[], Any]:
    """The candidate's graph as a function of nothing."""
    given = inputs(candidate, weights, arguments)
    function = torch_ir.function_from_graph(candidate.graph)
    return lambda: function(*given)
