"""Replays a graph's kernels as CUDA graphs: one for each set of extents, a bounded number of them."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import logging
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator
from typing import Any, TypeVar

import torch

from rewriter import torch_ir
from rewriter.capture.compare import TRACE_LIMITS, compare, working_dtype
from rewriter.causes import cause_of, memory_ran_out
from rewriter.runtime.hoisting import is_random, read_by_host
from rewriter.runtime.recorded import (
    NotRecordable,
    Recorder,
    Replay,
    Tensors,
    device_of,
    is_number,
    key_numbers,
    record_kernels,
)
from rewriter.runtime.runner import FunctionRunner
from rewriter.runtime.watched import Watched

logger = logging.getLogger("rewriter")
Result = TypeVar("Result")

_MOST_GRAPHS = 8
# Recorded when extents come a third time: the first call is the one that verifies, on copies; the second shows which
# inputs stay the same.
_CALLS_BEFORE = 2
# Values of one number for which graphs are recorded; a number that changes at every step is not worth it.
_MOST_VALUES = 4
_ROUNDS = 3
_LONG_SECONDS, _SLOWER = 50e-3, 1.02
# Weights may move that often before they count as moving: to the device, and into merged ones.
_SETTLING = 2
# Of the free memory that a recording may keep where launching would be nearly as fast.
_SHARE_OF_FREE = 0.25


@dataclasses.dataclass(slots=True)
class _Entry:
    """What is known of one set of extents."""

    calls: int = 0
    waited: bool = False
    replay: Replay | None = None
    refused: str | None = None
    watched: Watched = dataclasses.field(default_factory=Watched)


# All that there are: their recordings share the memory of a device.
_RUNNERS: weakref.WeakSet[CudaGraphRunner] = weakref.WeakSet()


class CudaGraphRunner:
    """Runs a graph by replaying its kernels, and node by node where that cannot be or does not pay.

    `tuned`: what the first call of new extents runs in, so that its ops choose their providers. `record`: how to
    record (`record_kernels`; in tests something that needs no GPU). `refusal(launch, moving)`: why not to record a
    call, whose weights may be `moving` to and fro, or None. `pays(replay, launch)`: whether replaying is faster than
    launching. Raises what the graph itself raises; a failed recording only costs its time.
    """

    def __init__(
        self,
        graph: torch_ir.Graph,
        *,
        tuned: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
        record: Recorder | None = None,
        pays: Callable[[Callable[[], Any], Callable[[], Any]], bool] | None = None,
        refusal: Callable[[Callable[[], Any], bool], str | None] | None = None,
    ) -> None:
        self._graph = graph
        self._plain = FunctionRunner(graph)
        self._tuned = tuned
        self._record = record or record_kernels
        self._pays = pays or _replay_pays
        self._refusal = refusal or _refusal
        self._entries: OrderedDict[Any, _Entry] = OrderedDict()
        _RUNNERS.add(self)
        self._pointers: list[int] = []
        self._moves = 0
        self._values: set[tuple[Any, ...]] = set()
        self._read = read_by_host(graph)
        self._refused = "it draws random numbers" if is_random(graph) else None

    @property
    def replays(self) -> int:
        """How many sets of extents are replayed now."""
        return sum(entry.replay is not None for entry in self._entries.values())

    @property
    def hoisted_from(self) -> set[int]:
        """As of any runner: what replays keep from step to step."""
        replays = [entry.replay for entry in list(self._entries.values()) if entry.replay is not None]
        return {position for replay in replays for position in replay.hoisted_from}

    @property
    def reasons(self) -> list[str]:
        """Why calls are launched kernel by kernel, where they are."""
        found = [self._refused, *(entry.refused for entry in self._entries.values())]
        return sorted({reason for reason in found if reason})

    def __call__(self, activations: Tensors, weights: Tensors, state: int | None = None) -> tuple[torch.Tensor, ...]:
        if self._refused or _LAUNCHING or (torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()):
            return self._plain(activations, weights)
        # What is recorded is kept, and tensors made in inference mode could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad(), _one_at_a_time(activations):
            return self._run(activations, weights, state)

    def _run(self, activations: Tensors, weights: Tensors, state: int | None) -> tuple[torch.Tensor, ...]:
        pointers = [weight.data_ptr() for weight in weights]
        if pointers != self._pointers:
            self._moves += bool(self._pointers)
            self._entries.clear()
            self._pointers = pointers
        key, numbers = _key(activations, self._read)
        if numbers not in self._values:
            if len(self._values) >= _MOST_VALUES:
                return self._plain(activations, weights)
            self._values.add(numbers)
        entry = self._entries.setdefault(key, _Entry())
        self._entries.move_to_end(key)
        while len(self._entries) > _MOST_GRAPHS:
            self._entries.popitem(last=False)
        if (
            entry.replay is None
            and entry.refused is None
            and entry.calls >= _CALLS_BEFORE
            and self._ready(entry, activations)
        ):
            self._with_room(entry, lambda: self._try(entry, activations, weights, state))
            _give_cache_back()
        if entry.replay is not None:
            return entry.replay(activations, weights, state)
        entry.calls += 1
        entry.watched.look(activations)
        with self._tuned() if entry.calls == 1 else contextlib.nullcontext():
            return self._with_room(entry, lambda: self._plain(activations, weights))

    @staticmethod
    def _ready(entry: _Entry, activations: Tensors) -> bool:
        """Whether inputs that stay the same can be told by now: the call before may have been one that is compared with
        eager, on copies. One more call shows."""
        if entry.waited or any(entry.watched.unchanged(activations)[1:]):
            return True
        entry.waited = True
        return False

    def _with_room(self, entry: _Entry, call: Callable[[], Result]) -> Result:
        """The call; where memory runs out, once more without all other recordings, those of other networks too."""
        try:
            return call()
        except RuntimeError as error:
            others = [other for other in _recorded() if other is not entry]
            if not memory_ran_out(error) or not others:
                raise
            logger.info("%d recordings are given up, because memory ran out", len(others))
            for other in others:
                other.replay, other.calls = None, 0
        # Not inside the handler: the traceback holds what the failed call had made.
        _give_memory_back()
        return call()

    def _try(self, entry: _Entry, activations: Tensors, weights: Tensors, state: int | None) -> None:
        """Records the call and keeps the recording if it gives the same result faster."""
        steady = entry.watched.unchanged(activations)
        # The first argument is the sample, which every step of a loop changes, in ways that torch may not see.
        steady[:1] = [False]
        try:
            launched: list[tuple[torch.Tensor, ...]] = []
            refusal = self._refusal(lambda: launched.append(self._plain(activations, weights)), self._moves > _SETTLING)
            if refusal:
                raise NotRecordable(refusal)
            expected = launched[0] if launched else self._plain(activations, weights)
            replay = Replay(self._graph, activations, weights, steady, state, self._record)
            limit = TRACE_LIMITS[working_dtype([*weights, *activations])]
            problem = compare(replay(activations, weights, state), expected, limit=limit, same_nonfinite=True).problem
            if problem:
                raise NotRecordable(f"a replay does not give what launching the kernels gives: {problem}")
            if not self._pays(replay.play, lambda: self._plain(activations, weights)):
                raise NotRecordable("a replay is not faster than launching the kernels")
        except (NotRecordable, RuntimeError) as error:
            if memory_ran_out(error) and _recorded():
                raise
            entry.refused = cause_of(error)
            logger.info("launched kernel by kernel, because %s", entry.refused)
            return
        entry.replay = replay


def _recorded() -> list[_Entry]:
    """All sets of extents that are replayed now, by any runner."""
    return [entry for runner in list(_RUNNERS) for entry in runner._entries.values() if entry.replay is not None]


_LAUNCHING: list[None] = []


@contextlib.contextmanager
def launching() -> Iterator[None]:
    """Calls inside launch their kernels one by one, so that a profiler sees which op each belongs to."""
    _LAUNCHING.append(None)
    try:
        yield
    finally:
        _LAUNCHING.pop()


_PLAYING = threading.RLock()
# The last replay on each device, which the next one has to wait for: they share memory.
_LAST: dict[int, torch.cuda.Event] = {}


@contextlib.contextmanager
def _one_at_a_time(tensors: Tensors) -> Iterator[None]:
    """Threads take turns, and streams wait for each other."""
    device = device_of(tensors)
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


def _give_cache_back() -> None:
    """What eager calls needed for their results is not needed while replaying: those have a pool of their own."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _give_memory_back() -> None:
    if torch.cuda.is_available():
        from rewriter.measure.recordings import RUNNING

        gc.collect()
        RUNNING.forget()


def _key(activations: Tensors, read: Collection[int]) -> tuple[Any, tuple[float, ...]]:
    """What a recording holds for, and the values of fractions among it; integers among `read` count as extents."""
    numbers = tuple(float(tensor) for tensor in activations if is_number(tensor))
    sizes = tuple(activations[index].item() for index in sorted(key_numbers(activations, read)))
    return (numbers, sizes, *((t.shape, t.stride(), t.dtype, t.device) for t in activations)), numbers


def _refusal(launch: Callable[[], Any], moving: bool) -> str | None:
    """Why the call is better launched than recorded, or None.

    Where the host cannot keep up, recording gains so much that nothing speaks against it. Elsewhere the memory does
    that it keeps to itself, and weights that move, as when a pipeline is offloaded to the host's memory between
    pictures: a recording ends with that.
    """
    from rewriter.measure.replay import launched_in_time

    _give_cache_back()
    before = torch.cuda.memory_reserved()
    in_time, _ = launched_in_time(launch)
    held = torch.cuda.memory_reserved() - before
    free = torch.cuda.mem_get_info()[0] + held
    if not in_time:
        return None
    if moving:
        return "the weights move between calls, and the host launches the kernels in time"
    if held <= _SHARE_OF_FREE * free:
        return None
    return (
        f"a recording would keep {held / 2**30:.1f} of the {free / 2**30:.1f} GiB that are free, and the host launches "
        "the kernels in time"
    )


def _replay_pays(replay: Callable[[], Any], launch: Callable[[], Any]) -> bool:
    first = _seconds(replay)
    # Long kernels take the same time again and again; a recording spares the host at least.
    if first > _LONG_SECONDS:
        return first < _SLOWER * _seconds(launch)
    return min(first, *(_seconds(replay) for _ in range(1, _ROUNDS))) < min(_seconds(launch) for _ in range(_ROUNDS))


def _seconds(call: Callable[[], Any]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - start
