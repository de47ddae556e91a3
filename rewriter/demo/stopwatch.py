"""Times the denoising loop of any diffusers pipeline, through the progress bar that each of them asks for."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any

import torch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lap:
    """One pipeline call: its result, its seconds, and those of its loop with the number of steps."""

    output: Any
    seconds: float
    loop_seconds: float
    steps: int


def timed_call(
    pipeline: Any, arguments: dict[str, Any], device: torch.device, notice: Callable[[int, int], None] | None = None
) -> Lap:
    """Calls the pipeline and times it. `notice(step, steps)` is told of every step.

    A pipeline without a loop counts as one step.
    """
    with _watched(pipeline, device, notice) as loops:
        _wait(device)
        start = time.perf_counter()
        output = pipeline(**arguments)
        _wait(device)
        seconds = time.perf_counter() - start
    steps = sum(loop.steps for loop in loops)
    return Lap(
        output=output,
        seconds=seconds,
        loop_seconds=sum(loop.seconds for loop in loops) if steps else seconds,
        steps=max(1, steps),
    )


@contextlib.contextmanager
def _watched(pipeline: Any, device: torch.device, notice: Callable[[int, int], None] | None) -> Iterator[list[_Loop]]:
    loops: list[_Loop] = []

    def progress_bar(iterable: Iterable[Any] | None = None, total: int | None = None) -> _Loop:
        loop = _Loop(iterable, total, device, notice)
        loops.append(loop)
        return loop

    pipeline.progress_bar = progress_bar
    try:
        yield loops
    finally:
        del pipeline.progress_bar


class _Loop:
    """Stands in for the tqdm bar of one loop: iterated over, or entered and updated."""

    def __init__(
        self,
        iterable: Iterable[Any] | None,
        total: int | None,
        device: torch.device,
        notice: Callable[[int, int], None] | None,
    ) -> None:
        self._iterable = iterable
        self._device = device
        self._notice = notice
        self._total = total if total is not None else len(iterable)  # type: ignore[arg-type]
        self._start = 0.0
        self.seconds = 0.0
        self.steps = 0

    def __iter__(self) -> Iterator[Any]:
        with self:
            for item in () if self._iterable is None else self._iterable:
                yield item
                self.update()

    def __enter__(self) -> _Loop:
        _wait(self._device)
        self._start = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _wait(self._device)
        self.seconds = time.perf_counter() - self._start

    def update(self, steps: int = 1) -> None:
        self.steps += steps
        if self._notice is not None:
            self._notice(self.steps, self._total)

    def __getattr__(self, name: str) -> Callable[..., None]:
        # set_postfix, set_description and their like: pipelines may decorate their bar, we do not show it.
        if name.startswith("_"):
            raise AttributeError(name)
        return _ignore


def _ignore(*_: Any, **__: Any) -> None:
    pass


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
