"""Times what a function does on a GPU, without what the host needs to launch it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from rewriter.measure import recordings

# Repeats in one graph, and the time on the GPU that a graph may take at most.
_REPEATS = 20
_SAMPLE_SECONDS = 2e-3
# Below this, launching takes a share of the time that is worth avoiding.
_LONG_SECONDS = 20e-3
# Of a call's time that the host may take to launch it: with more, how busy the host is shows in the time. Of calls that
# take longer than this, whose kernels queue up behind the first few, it may take more.
HOST_SHARE, _HOST_SHARE_OF_LONGEST = 0.4, 0.7
_LONGEST_SECONDS = 0.2


def keeping_up(function: Callable[[], Any]) -> tuple[bool, float]:
    """Whether the function's kernels are so long that the host launches them all well before they are done, and the
    seconds of the last of three calls, launches and all.

    That one is launched while the GPU is busy with the one before. A GPU that has rested is faster at first, until its
    limit of power is felt, and a host that is busy is late with some kernels: what is timed first would seem faster,
    and what has more kernels slower.
    """
    function()
    torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    launched = time.perf_counter() - start
    seconds, _ = launched_seconds(function)
    return _in_time(launched, seconds), seconds


def launched_in_time(function: Callable[[], Any]) -> tuple[bool, float]:
    """Whether the host launches the function's kernels well before they are done, and the seconds of a call; of a
    function that has run before."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    launched = time.perf_counter() - start
    torch.cuda.synchronize()
    total = time.perf_counter() - start
    return _in_time(launched, total), total


def _in_time(launched: float, total: float) -> bool:
    share = HOST_SHARE if total < _LONGEST_SECONDS else _HOST_SHARE_OF_LONGEST
    return total > _LONG_SECONDS and launched < share * total


def launched_seconds(function: Callable[[], Any]) -> tuple[float, float]:
    """Of one call as the host launches it: the device's time, gaps included, and the host's."""
    first, last = _events()
    first.record()
    start = time.perf_counter()
    function()
    host = time.perf_counter() - start
    last.record()
    last.synchronize()
    milliseconds: float = first.elapsed_time(last)
    return milliseconds * 1e-3, host


class Replayed:
    """A function's kernels as a CUDA graph of several repeats. Raises what the function raises when recorded.

    estimate: seconds of a launched call, after which the first recording has as many repeats as are likely to be
    enough. A function that cannot be recorded (it waits for the device, say) raises RuntimeError.
    """

    def __init__(self, function: Callable[[], Any], estimate: float) -> None:
        self._first, self._last = _events()
        with recordings.beside():
            function()
        self.repeats = _enough(estimate)
        self.graph = _recorded(function, self.repeats)
        once = self.seconds()
        # The host may have needed longer to launch than the kernels to run.
        if _enough(once) > self.repeats:
            repeats = _enough(self.seconds())
            self.graph, self.repeats = _recorded(function, repeats), repeats
            self.seconds()

    def seconds(self) -> float:
        """Device time of one repeat."""
        self._first.record()
        self.graph.replay()
        self._last.record()
        self._last.synchronize()
        milliseconds: float = self._first.elapsed_time(self._last)
        return milliseconds * 1e-3 / self.repeats


def _enough(seconds: float) -> int:
    """Repeats of a call of so many seconds."""
    return max(1, min(_REPEATS, int(_SAMPLE_SECONDS / max(seconds, 1e-7))))


def _recorded(function: Callable[[], Any], repeats: int) -> torch.cuda.CUDAGraph:
    def several() -> None:
        for _ in range(repeats):
            function()

    return recordings.record(several, recordings.TIMING)[0]


def _events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
