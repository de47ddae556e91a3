"""Times what a function does on a GPU, without what the host needs to launch it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

# Repeats in one graph, and the time on the GPU that a graph may take at most.
_REPEATS = 20
_SAMPLE_SECONDS = 5e-3
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


class Replayed:
    """A function's kernels as a CUDA graph of several repeats. Raises what the function raises when recorded.

    A function that cannot be recorded (it waits for the device, say) raises RuntimeError.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            function()
            first, last = _events()
            first.record(stream)
            function()
            last.record(stream)
        last.synchronize()
        # This includes what the host needs to launch, so it is an upper bound.
        once = max(first.elapsed_time(last) * 1e-3, 1e-7)
        self.repeats = max(1, min(_REPEATS, int(_SAMPLE_SECONDS / once)))
        self.graph, shared = torch.cuda.CUDAGraph(), pool()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.stream(stream):
            self.graph.capture_begin(pool=shared)
            try:
                for _ in range(self.repeats):
                    function()
            finally:
                self.graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)
        self._first, self._last = _events()
        self.graph.replay()

    def seconds(self) -> float:
        """Device time of one repeat."""
        self._first.record()
        self.graph.replay()
        self._last.record()
        self._last.synchronize()
        milliseconds: float = self._first.elapsed_time(self._last)
        return milliseconds * 1e-3 / self.repeats


_POOLS: dict[int, tuple[Any, torch.cuda.CUDAGraph]] = {}


def pool() -> Any:
    """Memory that all recorded graphs of a device share: they are never replayed at the same time."""
    device = torch.cuda.current_device()
    if device not in _POOLS:
        handle, anchor = torch.cuda.graph_pool_handle(), torch.cuda.CUDAGraph()
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            # A pool ends with the last of its graphs and cannot be used again. This graph stays.
            anchor.capture_begin(pool=handle)
            torch.zeros(1, device="cuda")
            anchor.capture_end()
        _POOLS[device] = handle, anchor
    return _POOLS[device][0]


def _events() -> tuple[torch.cuda.Event, torch.cuda.Event]:
    return torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
