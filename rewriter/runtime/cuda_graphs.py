"""Replays a graph's kernels as CUDA graphs: one for each set of extents, a bounded number of them."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import torch

from rewriter import torch_ir
from rewriter.capture.compare import TRACE_LIMITS, compare, working_dtype
from rewriter.runtime.hoisting import Split, is_random, split
from rewriter.runtime.runner import FunctionRunner
from rewriter.runtime.watched import Watched

Tensors: TypeAlias = Sequence[torch.Tensor]
Function: TypeAlias = Callable[[], tuple[torch.Tensor, ...]]
# Records what a function does on the device: the function that does it again, and the tensors that hold its results.
Recorder: TypeAlias = Callable[[Function], tuple[Callable[[], None], tuple[torch.Tensor, ...]]]

logger = logging.getLogger("rewriter")

_MOST_GRAPHS = 8
# Recorded when extents come a third time: the first call is the one that verifies, on copies; the second shows which
# inputs stay the same.
_CALLS_BEFORE = 2
# Values of one number for which graphs are recorded; a number that changes at every step is not worth it.
_MOST_VALUES = 4
_ROUNDS = 3


class NotRecordable(Exception):
    """A call that cannot be replayed; the message says why."""


@dataclasses.dataclass(slots=True)
class _Entry:
    """What is known of one set of extents."""

    calls: int = 0
    replay: Replay | None = None
    refused: str | None = None
    watched: Watched = dataclasses.field(default_factory=Watched)


class CudaGraphRunner:
    """Runs a graph by replaying its kernels, and node by node where that cannot be or does not pay.

    `tuned`: what the first call of new extents runs in, so that its ops choose their providers. `record`: how to
    record (`record_kernels`; in tests something that needs no GPU). `pays(replay, launch)`: whether replaying is
    faster than launching. `worth_recording(launch)`: whether that may be so. Raises what the graph itself raises; a
    failed recording only costs its time.
    """

    def __init__(
        self,
        graph: torch_ir.Graph,
        *,
        tuned: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
        record: Recorder | None = None,
        pays: Callable[[Callable[[], Any], Callable[[], Any]], bool] | None = None,
        worth_recording: Callable[[Callable[[], Any]], bool] | None = None,
    ) -> None:
        self._graph = graph
        self._plain = FunctionRunner(graph)
        self._tuned = tuned
        self._record = record or record_kernels
        self._pays = pays or _replay_pays
        self._worth_recording = worth_recording or _worth_recording
        self._entries: OrderedDict[Any, _Entry] = OrderedDict()
        self._pointers: list[int] = []
        self._values: set[tuple[Any, ...]] = set()
        self._refused = "it draws random numbers" if is_random(graph) else None

    @property
    def replays(self) -> int:
        """How many sets of extents are replayed now."""
        return sum(entry.replay is not None for entry in self._entries.values())

    @property
    def reasons(self) -> list[str]:
        """Why calls are launched kernel by kernel, where they are."""
        found = [self._refused, *(entry.refused for entry in self._entries.values())]
        return sorted({reason for reason in found if reason})

    def __call__(self, activations: Tensors, weights: Tensors, state: int | None = None) -> tuple[torch.Tensor, ...]:
        if self._refused or (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()):
            return self._plain(activations, weights)
        with _one_at_a_time(activations):
            return self._run(activations, weights, state)

    def _run(self, activations: Tensors, weights: Tensors, state: int | None) -> tuple[torch.Tensor, ...]:
        pointers = [weight.data_ptr() for weight in weights]
        if pointers != self._pointers:
            self._entries.clear()
            self._pointers = pointers
        key, numbers = _key(activations)
        if numbers not in self._values:
            if len(self._values) >= _MOST_VALUES:
                return self._plain(activations, weights)
            self._values.add(numbers)
        entry = self._entries.setdefault(key, _Entry())
        self._entries.move_to_end(key)
        while len(self._entries) > _MOST_GRAPHS:
            self._entries.popitem(last=False)
        if entry.replay is None and entry.refused is None and entry.calls >= _CALLS_BEFORE:
            self._try(entry, activations, weights, state)
        if entry.replay is not None:
            return entry.replay(activations, weights, state)
        entry.calls += 1
        entry.watched.look(activations)
        if entry.calls > 1:
            return self._plain(activations, weights)
        with self._tuned():
            return self._plain(activations, weights)

    def _try(self, entry: _Entry, activations: Tensors, weights: Tensors, state: int | None) -> None:
        """Records the call and keeps the recording if it gives the same result faster."""
        steady = entry.watched.unchanged(activations)
        # The first argument is the sample, which every step of a loop changes, in ways that torch may not see.
        steady[:1] = [False]
        try:
            if not self._worth_recording(lambda: self._plain(activations, weights)):
                raise NotRecordable("the kernels are long enough for the host to keep up")
            expected = self._plain(activations, weights)
            replay = Replay(self._graph, activations, weights, steady, state, self._record)
            limit = TRACE_LIMITS[working_dtype([*weights, *activations])]
            problem = compare(replay(activations, weights, state), expected, limit=limit, same_nonfinite=True).problem
            if problem:
                raise NotRecordable(f"a replay does not give what launching the kernels gives: {problem}")
            if not self._pays(replay.play, lambda: self._plain(activations, weights)):
                raise NotRecordable("a replay is not faster than launching the kernels")
        except (NotRecordable, RuntimeError) as error:
            # The interpreter of graphs puts a traceback before the message.
            lines = str(error).strip().splitlines() or [type(error).__name__]
            entry.refused = lines[-1]
            logger.info("launched kernel by kernel, because %s", entry.refused)
            return
        entry.replay = replay


class Replay:
    """One recorded call: fixed places for what it reads, the kernels, and fixed places of the results.

    `steady`: for each activation, whether it is expected to be the same tensor at the next call. What depends on
    steady activations and weights only is computed when one of them has changed, outside the recording.
    """

    def __init__(
        self,
        graph: torch_ir.Graph,
        activations: Tensors,
        weights: Tensors,
        steady: Sequence[bool],
        state: int | None,
        record: Recorder,
    ) -> None:
        self._device = _device((*activations, *weights))
        self._held = [self._place(tensor) for tensor in activations]
        self._watched = Watched()
        first = len(activations)
        kept_steady = [index for index, stays in enumerate(steady) if stays]
        invariant = {*kept_steady, *range(first, first + len(weights))} if kept_steady else set()
        self._split: Split | None = split(graph, invariant) if invariant else None
        self._steady = kept_steady if self._split else []
        self._state: tuple[Any, ...] | None = None
        self._kept: list[torch.Tensor] = []
        everything = [*self._held, *weights]
        if self._split is None:
            body = FunctionRunner(graph)
            inputs = everything
        else:
            self._prologue = FunctionRunner(self._split.prologue)
            self._refresh(weights, state)
            body = FunctionRunner(self._split.body)
            inputs = [*(everything[index] for index in self._split.body_inputs), *self._kept]
        self.play, self._results = record(lambda: body(inputs, ()))
        self._watched.look(activations)

    @property
    def hoisted(self) -> int:
        """Values that are computed only when what they depend on has changed."""
        return 0 if self._split is None else self._split.kept

    def __call__(self, activations: Tensors, weights: Tensors, state: int | None) -> tuple[torch.Tensor, ...]:
        # What is not hoisted is always copied: a write that torch does not see, by a kernel of the caller's own, must
        # not be missed in the sample.
        same = self._watched.unchanged(activations)
        moved = [index for index, is_same in enumerate(same) if not (is_same and index in self._steady)]
        if moved:
            with torch.no_grad():
                torch._foreach_copy_([self._held[index] for index in moved], [activations[index] for index in moved])
            self._watched.look(activations)
        if self._split is not None and (
            any(index in moved for index in self._steady) or self._state != self._stamp(weights, state)
        ):
            self._refresh(weights, state)
        self.play()
        fresh = [torch.empty_like(result) for result in self._results]
        torch._foreach_copy_(fresh, list(self._results))
        return tuple(fresh)

    def _place(self, tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device == self._device or _is_number(tensor):
            return tensor.detach().clone()
        if tensor.numel() != 1:
            raise NotRecordable(f"an argument of {tensor.numel()} elements lies on the {tensor.device.type}")
        return tensor.detach().to(self._device)

    def _stamp(self, weights: Tensors, state: int | None) -> tuple[Any, ...]:
        assert self._split is not None
        first = len(self._held)
        return (state, *(weights[i - first]._version for i in self._split.prologue_inputs if i >= first))

    def _refresh(self, weights: Tensors, state: int | None) -> None:
        assert self._split is not None
        everything = [*self._held, *weights]
        fresh = self._prologue([everything[index] for index in self._split.prologue_inputs], ())
        if self._kept:
            with torch.no_grad():
                torch._foreach_copy_(self._kept, list(fresh))
        else:
            self._kept = [tensor.clone(memory_format=torch.preserve_format) for tensor in fresh]
        self._state = self._stamp(weights, state)


def record_kernels(function: Function) -> tuple[Callable[[], None], tuple[torch.Tensor, ...]]:
    """Records what `function` launches as a CUDA graph, in a pool of memory that all graphs of a device share."""
    from rewriter.measure.replay import pool

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool(), stream=stream):
        results = function()
    return graph.replay, results


_PLAYING = threading.RLock()
# The last replay on each device, which the next one has to wait for: they share memory.
_LAST: dict[int, torch.cuda.Event] = {}


@contextlib.contextmanager
def _one_at_a_time(tensors: Tensors) -> Iterator[None]:
    """Threads take turns, and streams wait for each other."""
    device = _device(tensors)
    with _PLAYING:
        if device.type != "cuda":
            yield
            return
        index = device.index or 0
        stream = torch.cuda.current_stream(device)
        if index in _LAST:
            stream.wait_event(_LAST[index])
        yield
        _LAST.setdefault(index, torch.cuda.Event()).record(stream)


def _device(tensors: Tensors) -> torch.device:
    return next((tensor.device for tensor in tensors if tensor.device.type != "cpu"), torch.device("cpu"))


def _is_number(tensor: torch.Tensor) -> bool:
    """Whether this is a live number of fractional value. A kernel is launched with it, so it belongs to the key."""
    return tensor.dim() == 0 and tensor.device.type == "cpu" and tensor.dtype == torch.float64


def _key(activations: Tensors) -> tuple[Any, tuple[float, ...]]:
    """What a recording holds for, and the values of numbers among it."""
    numbers = tuple(float(tensor) for tensor in activations if _is_number(tensor))
    return (numbers, *((t.shape, t.stride(), t.dtype, t.device) for t in activations)), numbers


def _worth_recording(launch: Callable[[], Any]) -> bool:
    from rewriter.measure.replay import host_keeps_up

    return not host_keeps_up(launch)


def _replay_pays(replay: Callable[[], Any], launch: Callable[[], Any]) -> bool:
    return min(_seconds(replay) for _ in range(_ROUNDS)) < min(_seconds(launch) for _ in range(_ROUNDS))


def _seconds(call: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start
