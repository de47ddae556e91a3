"""Records what a function launches as a CUDA graph, on one stream and in memory that graphs share."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

from rewriter import collector

Result = TypeVar("Result")


class Pools:
    """For each device the memory that the graphs of one purpose share, which are never replayed at the same time."""

    def __init__(self) -> None:
        # None: one was abandoned, and what it held has not been given back.
        self._pools: dict[int, _Pool | None] = {}

    def of_this_device(self) -> Any:
        """The handle that recordings on the current device are given. To be called inside of `beside`."""
        device = torch.cuda.current_device()
        pool = self._pools.get(device) or _Pool()
        self._pools[device] = pool
        return pool.handle

    def forget(self) -> None:
        """Of the current device: graphs to come get other memory than those that stay. What no graph holds any more is
        given back."""
        device = torch.cuda.current_device()
        if device in self._pools:
            del self._pools[device]
            torch.cuda.empty_cache()

    def abandon(self) -> None:
        """Of the current device, after a recording that could not be ended: torch refuses to use the pool again."""
        device = torch.cuda.current_device()
        pool = self._pools.get(device)
        if pool is not None:
            pool.release()
            self._pools[device] = None


class _Pool:
    """A pool ends with the last of its graphs and cannot be used again, so an empty graph stays in it."""

    def __init__(self) -> None:
        self.handle = torch.cuda.graph_pool_handle()
        self._anchor, _ = _capture(lambda: torch.zeros(1, device="cuda"), {"pool": self.handle}, lambda: None)

    def release(self) -> None:
        """Ends what torch began for a recording that broke: it would hold the pool's memory for ever, and look at
        every allocation."""
        device = torch.cuda.current_device()
        for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
            with contextlib.suppress(RuntimeError, AttributeError):
                getattr(torch._C, name)(device, self.handle)


# Of graphs that are kept to be replayed, and of those that are timed and then forgotten.
RUNNING = Pools()
TIMING = Pools()
_STREAMS: dict[int, torch.cuda.Stream] = {}
_LOCK = threading.RLock()
# torch's allocator of host memory points at graphs whose recording broke.
_BROKEN: list[torch.cuda.CUDAGraph] = []


def _side_stream() -> torch.cuda.Stream:
    """The stream that everything is recorded on: cuBLAS keeps a workspace of 32 MiB for each stream that it sees."""
    device = torch.cuda.current_device()
    if device not in _STREAMS:
        _STREAMS[device] = torch.cuda.Stream()
    return _STREAMS[device]


@contextlib.contextmanager
def beside() -> Iterator[None]:
    """What the calling thread launches inside goes to the side stream, after what it has launched and before what it
    launches then. One thread at a time: what another one launches there would be recorded with it."""
    stream, current = _side_stream(), torch.cuda.current_stream()
    with _LOCK:
        stream.wait_stream(current)
        try:
            with torch.cuda.stream(stream):
                yield
        finally:
            current.wait_stream(stream)


def record(function: Callable[[], Result], pools: Pools | None = None) -> tuple[torch.cuda.CUDAGraph, Result]:
    """The kernels that `function` launches, and what it returned; without `pools` in memory of the graph's own.

    Raises what the function raises. One that cannot be recorded (it waits for the device, say) raises RuntimeError;
    later recordings do not suffer from that.
    """
    with beside():
        if pools is None:
            return _capture(function, {}, lambda: None)
        return _capture(function, {"pool": pools.of_this_device()}, pools.abandon)


def _capture(
    function: Callable[[], Result], pool: dict[str, Any], broken: Callable[[], None]
) -> tuple[torch.cuda.CUDAGraph, Result]:
    """To be called inside of `beside`. `broken` is called where the recording cannot be ended, because of what was done
    during it."""
    graph = torch.cuda.CUDAGraph()

    def end() -> None:
        try:
            graph.capture_end()
        except RuntimeError:
            _BROKEN.append(graph)
            broken()
            raise

    # An old graph that is collected during a recording is destroyed, and that makes the recording invalid.
    with collector.paused():
        # Of other threads nothing is forbidden meanwhile.
        graph.capture_begin(**pool, capture_error_mode="thread_local")
        try:
            result = function()
        except BaseException:
            # What the function raised says more than that its recording cannot be ended.
            with contextlib.suppress(RuntimeError):
                end()
            raise
        end()
    return graph, result
