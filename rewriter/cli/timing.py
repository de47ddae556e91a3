"""Times several callables fairly: in one process, in turn, after each is ready."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import pathlib
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

_MIN_ROUNDS = 5
_MAX_ROUNDS = 200
_SHORTEST_SAMPLE = 0.005


@dataclasses.dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds per call: the median of `samples` samples, and the span that the middle 80 % of them lie in.

    `speed` is how many times as fast as the first mode it is: the median of the ratios within each round, so that a
    machine that is slow for a while slows both.
    """

    median: float
    low: float
    high: float
    samples: int
    speed: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Readied:
    """The first call of a mode: its result, how long it took from nothing, and the memory it needed on top."""

    seconds: float
    peak_bytes: int | None
    output: Any


def synchronise(device: torch.device) -> None:
    """Waits until the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def ready(prepare: Callable[[], Callable[[], Any]], device: torch.device) -> tuple[Callable[[], Any], Readied]:
    """Prepares a mode and calls it once, timing both together. Raises what they raise.

    The peak is what was allocated at most on top of what was there before: on a CUDA device by torch's allocator, on a
    CPU by the process (None where the kernel does not say).
    """
    gc.collect()
    before = _start_peak(device)
    start = time.perf_counter()
    call = prepare()
    output = call()
    synchronise(device)
    seconds = time.perf_counter() - start
    peak = _read_peak(device)
    extra = None if before is None or peak is None else max(peak - before, 0)
    return call, Readied(seconds=seconds, peak_bytes=extra, output=output)


def compare(
    calls: Mapping[str, Callable[[], Any]],
    device: torch.device,
    *,
    seconds: float,
    advance: Callable[[float], None] = lambda _: None,
) -> dict[str, Times]:
    """Times the calls in turn for about `seconds` in all, each round starting with another one.

    A sample is a run of calls of at least 5 ms. `advance` hears the share of the work that each sample was.
    """
    repeats: dict[str, int] = {}
    estimate = 0.0
    for name, call in calls.items():
        _sample(call, 1, device)
        once = _sample(call, 1, device)
        repeats[name] = max(1, round(_SHORTEST_SAMPLE / max(once, 1e-7)))
        estimate += once * repeats[name]
    rounds = min(max(int(seconds / max(estimate, 1e-7)), _MIN_ROUNDS), _MAX_ROUNDS)
    names = list(calls)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(_sample(calls[name], repeats[name], device))
            advance(1 / (rounds * len(names)))
    return {name: _summary(values, samples[names[0]]) for name, values in samples.items()}


def _sample(call: Callable[[], Any], repeats: int, device: torch.device) -> float:
    synchronise(device)
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    synchronise(device)
    return (time.perf_counter() - start) / repeats


def _summary(values: list[float], first: list[float]) -> Times:
    deciles = statistics.quantiles(values, n=10, method="inclusive")
    speed = statistics.median(one / other for one, other in zip(first, values, strict=True))
    return Times(median=statistics.median(values), low=deciles[0], high=deciles[-1], samples=len(values), speed=speed)


def _start_peak(device: torch.device) -> int | None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    with contextlib.suppress(OSError, AttributeError):
        # Memory that the allocator keeps from earlier work would hide what this work needs.
        ctypes.CDLL(None).malloc_trim(0)
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return None
    return _process_memory("VmRSS")


def _read_peak(device: torch.device) -> int | None:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _process_memory("VmHWM")


def _process_memory(field: str) -> int | None:
    with contextlib.suppress(OSError):
        for line in pathlib.Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    return None
