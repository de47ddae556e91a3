"""Times two functions fairly: in turn, on the same inputs, by their best runs."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

from rewriter import torch_ir
from rewriter.causes import cause_of

_log = logging.getLogger("rewriter")

_PAIRS = 7
_TURNS = 6
_SAMPLE_SECONDS = 1e-3
_MOST_REPEATS = 200
_BUDGET_SECONDS = 0.6
_STEADY_SECONDS = 0.1
# Beyond this ratio two pairs of runs are proof enough; beyond the second on a GPU, whose kernels are replayed, or long.
FAR_BEHIND, _FAR_BEHIND_ON_GPU = 1.5, 1.15


@dataclasses.dataclass(frozen=True, slots=True)
class Timing:
    """Microseconds per call."""

    before: float
    after: float

    @property
    def pays(self) -> bool:
        """Faster by more than what two timings of one function differ by."""
        return self.after < 0.97 * self.before


class Stopwatch(Protocol):
    """A function made ready to be timed."""

    def seconds(self) -> float:
        """Of one call."""


def compare(before: Callable[[], Any], after: Callable[[], Any], device: str) -> Timing:
    """Best time of each function. Raises what they raise."""
    with torch.no_grad(), torch_ir.plain_executor():
        watches = [stopwatch(function, device) for function in (before, after)]
        if type(watches[0]) is not type(watches[1]):
            # Kernels alone on one side, and what the host needs to launch them on the other, cannot be compared.
            watches = [Launched(function, device, repeat=True) for function in (before, after)]
        best = [float("inf"), float("inf")]
        far = _FAR_BEHIND_ON_GPU if device == "cuda" else FAR_BEHIND
        start = time.perf_counter()
        for pair in range(_PAIRS):
            for side, watch in enumerate(watches):
                best[side] = min(best[side], watch.seconds())
            spent = time.perf_counter() - start
            ratio = best[1] / best[0]
            if spent > _BUDGET_SECONDS or (pair >= 1 and not 1 / far <= ratio <= far):
                break
    return Timing(before=best[0] * 1e6, after=best[1] * 1e6)


def best_of(make: Callable[[], Callable[[], Any]], device: str) -> float:
    """Best seconds of the call that `make` gives; infinite where it or its making raises."""
    best = float("inf")
    start = time.perf_counter()
    try:
        with torch.no_grad(), torch_ir.plain_executor():
            watch = stopwatch(make(), device, repeat=False)
            for turn in range(_TURNS):
                best = min(best, watch.seconds())
                if time.perf_counter() - start > _BUDGET_SECONDS and (turn or steady(best, device)):
                    break
    except (RuntimeError, NotImplementedError) as error:
        _log.warning("a whole graph cannot be timed: %s", cause_of(error))
        return float("inf")
    return best


def steady(seconds: float, device: str) -> bool:
    """Whether calls that take so long on this device take the same time again and again."""
    return device == "cuda" and seconds > _STEADY_SECONDS


def stopwatch(
    function: Callable[[], Any], device: str, *, repeat: bool = True, estimate: float | None = None
) -> Stopwatch:
    """Calls the function to warm up. `repeat`: short functions run many times for one measurement.

    On a GPU the kernels are replayed where they can be, so that the host does not count. Long ones that keep the GPU
    busy anyway are launched: recording them takes as much memory again. `estimate`: the seconds of a call that is known
    not to be one of these.
    """
    known = None
    if device == "cuda":
        from rewriter.measure.replay import Replayed, keeping_up

        try:
            keeps_up, seconds = keeping_up(function) if estimate is None else (False, estimate)
            if not keeps_up:
                return Replayed(function, seconds)
            known = seconds
        except RuntimeError as error:
            # Then the host's time counts too, and fusions seem to gain less than they do.
            _log.warning("timed by launching, because recording failed: %s", cause_of(error))
            torch.cuda.synchronize()
    return Launched(function, device, repeat=repeat, known=known)


class Launched:
    """Times a function as the host calls it. known: what the first look at the clock would say, of a long function that
    ran before; one of which nothing is known is called to warm up."""

    def __init__(self, function: Callable[[], Any], device: str, *, repeat: bool, known: float | None = None) -> None:
        self._function, self._device, self._repeats, self._known = function, device, 1, known
        if known is not None:
            return
        function()
        if repeat:
            self._repeats = max(1, min(_MOST_REPEATS, int(_SAMPLE_SECONDS / max(self.seconds(), 1e-7))))

    def seconds(self) -> float:
        """Of one call."""
        if self._known is not None:
            known, self._known = self._known, None
            return known
        _synchronise(self._device)
        start = time.perf_counter()
        for _ in range(self._repeats):
            self._function()
        _synchronise(self._device)
        return (time.perf_counter() - start) / self._repeats


def _synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
