"""The time of one function over several sets of inputs, as a GPU replays it from a CUDA graph."""

from __future__ import annotations

import collections
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from rewriter.measure.recordings import beside, record
from rewriter.proof.results import Spread

# Shorter runs are lost between two events.
_RUN_SECONDS = 1e-3
_MOST_CALLS = 512
_RUNS = 21
_BUDGET_SECONDS = 0.3
_FEWEST_RUNS = 5

Function = Callable[[], Any]


def measured(functions: Sequence[Function], device: str) -> Spread:
    """Median and quartiles of a call, where the functions take turns. Raises what they raise.

    On a GPU the calls are recorded in a CUDA graph, so that the host does not count; RuntimeError where they cannot be.
    """
    run, calls = _replayed(functions) if device == "cuda" else _called(functions)
    seconds: list[float] = []
    start = time.perf_counter()
    while len(seconds) < _RUNS and (len(seconds) < _FEWEST_RUNS or time.perf_counter() - start < _BUDGET_SECONDS):
        seconds.append(run() / calls)
    low, median, high = statistics.quantiles(seconds, n=4)
    return Spread(median=median * 1e6, low=low * 1e6, high=high * 1e6)


def _called(functions: Sequence[Function]) -> tuple[Callable[[], float], int]:
    """One turn of all functions on the host's clock."""

    def run() -> float:
        start = time.perf_counter()
        for function in functions:
            function()
        return time.perf_counter() - start

    run()
    return run, len(functions)


def _replayed(functions: Sequence[Function]) -> tuple[Callable[[], float], int]:
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    with beside():
        for _ in range(2):
            first.record()
            functions[0]()
            last.record()
    last.synchronize()
    once = max(first.elapsed_time(last) * 1e-3, 1e-6)
    turns = max(1, min(_MOST_CALLS // len(functions), round(_RUN_SECONDS / once / len(functions))))
    # Results live as long as a turn, so that each is written to other memory than the one before.
    kept: collections.deque[Any] = collections.deque(maxlen=len(functions))

    def all_turns() -> None:
        for _ in range(turns):
            for function in functions:
                kept.append(function())

    graph, _ = record(all_turns)
    kept.clear()
    graph.replay()
    torch.cuda.synchronize()

    def run() -> float:
        first.record()
        graph.replay()
        last.record()
        last.synchronize()
        return float(first.elapsed_time(last)) * 1e-3

    return run, turns * len(functions)
