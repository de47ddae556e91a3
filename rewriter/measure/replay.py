"""Times what a function does on a GPU, without what the host needs to launch it."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import torch

# Repeats in one graph, and the time on the GPU that a graph may take at most.
_REPEATS = 20
_SAMPLE_SECONDS = 2e-3
# Below this, launching takes a share of the time that is worth avoiding.
_LONG_SECONDS = 20e-3
_HOST_SHARE = 0.7


def host_keeps_up(function: Callable[[], Any]) -> bool:
    """Whether the function's kernels are so long that the host launches them all well before they are done."""
    function()
    torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    launched = time.perf_counter() - start
    torch.cuda.synchronize()
    total = time.perf_counter() - start
    return total > _LONG_SECONDS and launched < _HOST_SHARE * total


def launched_seconds(function: Callable[[], Any]) -> float:
    """Device time of one call as the host launches it, gaps included."""
    first, last = _events()
    first.record()
    function()
    last.record()
    last.synchronize()
    milliseconds: float = first.elapsed_time(last)
    return milliseconds * 1e-3


class Replayed:
    """A function's kernels as a CUDA graph of several repeats. Raises what the function raises when recorded.

    A function that cannot be recorded (it waits for the device, say) raises RuntimeError.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        self._first, self._last = _events()
        stream = side_stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            function()
        self.graph, self.repeats = _recorded(function, stream, 1), 1
        # How long the host needs to launch says nothing about the kernels, so a replay tells how many repeats to take.
        self.seconds()
        repeats = min(_REPEATS, int(_SAMPLE_SECONDS / max(self.seconds(), 1e-7)))
        if repeats > 1:
            self.graph, self.repeats = _recorded(function, stream, repeats), repeats
            self.seconds()

    def seconds(self) -> float:
        """Device time of one repeat."""
        self._first.record()
        self.graph.replay()
        self._last.record()
        self._last.synchronize()
        milliseconds: float = self._first.elapsed_time(self._last)
        return milliseconds * 1e-3 / self.repeats


def _recorded(function: Callable[[], Any], stream: torch.cuda.Stream, repeats: int) -> torch.cuda.CUDAGraph:
    graph, shared = torch.cuda.CUDAGraph(), _of_this_device(_TIMING)
    torch.cuda.current_stream().wait_stream(stream)
    with torch.cuda.stream(stream):
        graph.capture_begin(pool=shared)
        try:
            for _ in range(repeats):
                function()
        finally:
            graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)
    return graph


_STREAMS: dict[int, torch.cuda.Stream] = {}


def side_stream() -> torch.cuda.Stream:
    """The stream that everything is recorded on: cuBLAS keeps a workspace of 32 MiB for each stream that it sees."""
    device = torch.cuda.current_device()
    if device not in _STREAMS:
        _STREAMS[device] = torch.cuda.Stream()
    return _STREAMS[device]


class Pool:
    """Memory that recorded graphs share, which are never replayed at the same time.

    A pool ends with the last of its graphs and cannot be used again, so an empty graph stays in it.
    """

    def __init__(self) -> None:
        self.handle, self._anchor = torch.cuda.graph_pool_handle(), torch.cuda.CUDAGraph()
        with torch.cuda.stream(side_stream()):
            self._anchor.capture_begin(pool=self.handle)
            torch.zeros(1, device="cuda")
            self._anchor.capture_end()


_RUNNING: dict[int, Pool] = {}
_TIMING: dict[int, Pool] = {}


def pool() -> Any:
    """The memory of the current device that graphs which are kept share."""
    return _of_this_device(_RUNNING)


def forget_timings() -> None:
    """Gives back the memory of graphs that were recorded to be timed; none of them may be replayed any more."""
    _TIMING.clear()
    gc.collect()
    torch.cuda.empty_cache()


def renew_pool() -> None:
    """Gives back the memory of the recordings that are gone; those to come get other memory than those that stay."""
    _RUNNING.pop(torch.cuda.current_device(), None)
    gc.collect()
    torch.cuda.empty_cache()


def _of_this_device(pools: dict[int, Pool]) -> Any:
    device = torch.cuda.current_device()
    if device not in pools:
        pools[device] = Pool()
    return pools[device].handle


def _events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
