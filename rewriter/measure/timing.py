"""Times two functions fairly: in turn, on the same inputs, by their best runs."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from rewriter import torch_ir

_PAIRS = 7
_TURNS = 12
_SAMPLE_SECONDS = 1e-3
_BUDGET_SECONDS = 0.6
# Beyond this ratio one pair of runs is proof enough.
_CLEAR = 1.5


@dataclasses.dataclass(frozen=True, slots=True)
class Timing:
    """Microseconds per call."""

    before: float
    after: float

    @property
    def pays(self) -> bool:
        """Faster by more than what two timings of one function differ by."""
        return self.after < 0.97 * self.before


def compare(before: Callable[[], Any], after: Callable[[], Any], device: str) -> Timing:
    """Best time of each function. Raises what they raise."""
    with torch.no_grad(), torch_ir.plain_executor():
        runs = [_repeats(function, device) for function in (before, after)]
        best = [float("inf"), float("inf")]
        start = time.perf_counter()
        for pair in range(_PAIRS):
            for side, function in enumerate((before, after)):
                best[side] = min(best[side], _sample(function, runs[side], device))
            spent = time.perf_counter() - start
            ratio = best[1] / best[0]
            if spent > _BUDGET_SECONDS or (pair >= 1 and (ratio > _CLEAR or ratio < 1 / _CLEAR)):
                break
    return Timing(before=best[0] * 1e6, after=best[1] * 1e6)


def in_turn(calls: Sequence[Callable[[], Any]], device: str) -> list[float]:
    """Best seconds of each call; infinite for one that raises. Those far behind after one round are not run again."""
    best = [float("inf")] * len(calls)
    start = time.perf_counter()
    with torch.no_grad(), torch_ir.plain_executor():
        for turn in range(_TURNS):
            # The first round warms up; only who loses by far is judged by it.
            leader = min(best)
            for index, call in enumerate(calls):
                if turn and best[index] > _CLEAR * leader:
                    continue
                try:
                    seconds = _sample(call, 1, device)
                except (RuntimeError, NotImplementedError):
                    seconds = float("inf")
                best[index] = seconds if turn == 1 else min(best[index], seconds)
            if turn >= 2 and time.perf_counter() - start > _BUDGET_SECONDS:
                break
    return best


def _repeats(function: Callable[[], Any], device: str) -> int:
    """Calls per sample; the first call also warms up."""
    function()
    once = _sample(function, 1, device)
    return max(1, min(200, int(_SAMPLE_SECONDS / max(once, 1e-7))))


def _sample(function: Callable[[], Any], repeats: int, device: str) -> float:
    _synchronise(device)
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    _synchronise(device)
    return (time.perf_counter() - start) / repeats


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
