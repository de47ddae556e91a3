"""Times several callables fairly: in one process, in turn, after each is ready; and the memory that they need."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from rewriter.bench.power import Meter

_MIN_ROUNDS = 5
_MAX_ROUNDS = 200
_CPU_SAMPLE_SECONDS = 0.005
# A sample on a GPU is a loop as a picture needs it, in which the host runs ahead: so many calls and seconds, or fewer
# calls where they are long.
_LOOP_CALLS, _LOOP_SECONDS = 20, 0.2
_LONG_LOOP_CALLS, _LONG_LOOP_SECONDS = 4, 1.0
# By then every mode has compiled, recorded and begun to replay.
_FIRST_CALLS = 5
# A call that takes this many times the median is one that still makes something ready.
_SLOW = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds per call: the median of `samples` samples, and the span that the middle 80 % of them lie in.

    `speed` is how many times as fast as the first mode it is: the median of the ratios within each round, so that a
    machine that is slow for a while slows both. joules: of the GPU for a call; held_back: the share of the samples at
    whose end its clocks were limited by power or temperature. None where the driver does not say.
    """

    median: float
    low: float
    high: float
    samples: int
    speed: float
    joules: float | None = None
    held_back: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Begun:
    """A mode's first calls: the seconds that preparing it took, then those of each call, and the last result."""

    preparing: float
    calls: tuple[float, ...]
    output: Any

    @property
    def first(self) -> float:
        """Seconds from nothing to the first result."""
        return self.preparing + self.calls[0]

    def ready(self, median: float) -> float:
        """Seconds from nothing to the end of the last call that was not yet at full speed, given what that is."""
        slow = [index for index, seconds in enumerate(self.calls) if seconds > _SLOW * median]
        return self.preparing + sum(self.calls[: max(slow, default=0) + 1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes. extra: at most, on top of what was there before.

    Of torch's allocator on a GPU, in all: peak, from the start; running, after the mode was ready; reserved, at the
    end. A CUDA graph's memory counts as reserved while the graph lives, as allocated only while it is recorded.
    """

    extra: int | None
    peak: int | None = None
    running: int | None = None
    reserved: int | None = None


def synchronise(device: torch.device) -> None:
    """Waits until the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def begin(enter: Callable[[], Callable[[], Any]], device: torch.device) -> tuple[Callable[[], Any], Begun]:
    """Prepares a mode and makes its first calls, each timed until the device is done. Raises what they raise."""
    start = time.perf_counter()
    call = enter()
    preparing = time.perf_counter() - start
    seconds = []
    output = None
    for _ in range(_FIRST_CALLS):
        start = time.perf_counter()
        output = call()
        synchronise(device)
        seconds.append(time.perf_counter() - start)
    return call, Begun(preparing=preparing, calls=tuple(seconds), output=output)


def compare(
    calls: Mapping[str, Callable[[], Any]],
    device: torch.device,
    *,
    seconds: float,
    advance: Callable[[float], None] = lambda _: None,
) -> dict[str, Times]:
    """Times the calls in turn for about `seconds` in all, each round starting with another one.

    A sample is a run of calls of at least 5 ms, on a GPU 20 calls and 200 ms, but not more than a second or four calls:
    in a loop the host is ahead of the device, and waits only at the end. `advance` hears the share of the work that
    each sample was.
    """
    repeats: dict[str, int] = {}
    estimate = 0.0
    for name, call in calls.items():
        _sample(call, 1, device)
        once = _sample(call, 1, device)
        repeats[name] = calls_of_a_sample(once, device)
        estimate += once * repeats[name]
    rounds = min(max(int(seconds / max(estimate, 1e-7)), _MIN_ROUNDS), _MAX_ROUNDS)
    names = list(calls)
    samples: dict[str, list[float]] = {name: [] for name in names}
    costs = {name: _Cost(Meter.of(device)) for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            with costs[name].counted(repeats[name]):
                samples[name].append(_sample(calls[name], repeats[name], device))
            advance(1 / (rounds * len(names)))
    found = {name: _summary(values, samples[names[0]]) for name, values in samples.items()}
    return {name: costs[name].told(times) for name, times in found.items()}


def calls_of_a_sample(seconds: float, device: torch.device) -> int:
    """How many calls of so many seconds make a sample."""
    seconds = max(seconds, 1e-7)
    if device.type != "cuda":
        return max(1, round(_CPU_SAMPLE_SECONDS / seconds))
    calls = max(_LOOP_CALLS, round(_LOOP_SECONDS / seconds))
    return min(calls, max(_LONG_LOOP_CALLS, round(_LONG_LOOP_SECONDS / seconds)))


def against(times: Times, first: Times) -> Times:
    """Times that were taken after those of the first mode, with the speed relative to its median."""
    return dataclasses.replace(times, speed=first.median / times.median)


def _sample(call: Callable[[], Any], repeats: int, device: torch.device) -> float:
    synchronise(device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronise(device)
    return (time.perf_counter() - start) / repeats


def _summary(values: Sequence[float], first: Sequence[float]) -> Times:
    deciles = statistics.quantiles(values, n=10, method="inclusive")
    speed = statistics.median(one / other for one, other in zip(first, values, strict=True))
    return Times(median=statistics.median(values), low=deciles[0], high=deciles[-1], samples=len(values), speed=speed)


class _Cost:
    """What the samples of one mode cost, where there is a meter."""

    def __init__(self, meter: Meter | None) -> None:
        self._meter = meter
        self._joules, self._calls, self._held_back = 0.0, 0, list[bool]()

    @contextlib.contextmanager
    def counted(self, calls: int) -> Iterator[None]:
        if self._meter is None:
            yield
            return
        before = self._meter.joules()
        yield
        self._joules += self._meter.joules() - before
        self._calls += calls
        self._held_back.append(self._meter.held_back())

    def told(self, times: Times) -> Times:
        if self._meter is None:
            return times
        share = statistics.fmean(self._held_back)
        return dataclasses.replace(times, joules=self._joules / self._calls, held_back=share)


class MemoryWatch:
    """The most memory in use since it was made: by torch's allocator on a GPU, else by the process."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._peak = 0
        gc.collect()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(device)
            self._before: int | None = torch.cuda.memory_allocated(device)
            return
        with contextlib.suppress(OSError, AttributeError):
            # Memory that the allocator keeps from earlier work would hide what this work needs.
            ctypes.CDLL(None).malloc_trim(0)
        try:
            pathlib.Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            self._before = _process_memory("VmRSS")
        except OSError:
            self._before = None

    def settle(self) -> None:
        """Gives back what was only needed until now, so that `read` tells what running needs to have reserved."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
            self._peak = torch.cuda.max_memory_allocated(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)

    def read(self) -> Memory:
        """What was found so far; nothing where the kernel does not say."""
        if self._device.type == "cuda":
            running = torch.cuda.max_memory_allocated(self._device)
            peak, reserved = max(self._peak, running), torch.cuda.memory_reserved(self._device)
            return Memory(extra=max(peak - (self._before or 0), 0), peak=peak, running=running, reserved=reserved)
        peak_now = None if self._before is None else _process_memory("VmHWM")
        return Memory(extra=None if peak_now is None or self._before is None else max(peak_now - self._before, 0))


def _process_memory(field: str) -> int | None:
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return None
