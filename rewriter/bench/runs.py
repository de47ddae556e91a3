"""Runs a step in several modes, and finds out about each: speed, time until ready, memory and error."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from rewriter.bench import timing
from rewriter.bench.accuracy import detached, float32_refusal, float32_result, relative_error
from rewriter.bench.modes import EAGER, Mode, Running, plain_call
from rewriter.bench.step import Step
from rewriter.bench.timing import Begun, Memory, MemoryWatch, Times
from rewriter.causes import described

if TYPE_CHECKING:
    from rewriter.language import RuleSet

NOT_RUN = "not run yet"


@dataclasses.dataclass(kw_only=True)
class Result:
    """What is known of one mode: figures, or the reason why there are none. Errors are relative L2 errors."""

    mode: str
    title: str
    failure: str | None = NOT_RUN
    first_seconds: float | None = None
    ready_seconds: float | None = None
    memory: Memory | None = None
    error_eager: float | None = None
    error_f32: float | None = None
    times: Times | None = None
    reports: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    @property
    def fallbacks(self) -> list[str]:
        """The networks that ran eagerly although the mode should have rewritten them, each with the reason."""
        parts = [part for report in self.reports for part in report["components"].values()]
        return [f"{part['name']} ran eagerly: {part['reason']}" for part in parts if part["status"] == "eager"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reference:
    """Results to compare with: eager's, and that of a float32 run or the reason why there is none."""

    eager: list[torch.Tensor]
    f32: list[torch.Tensor] | None
    note: str | None


def reference_of(step: Step, *, f32: bool) -> Reference:
    """Runs the step eagerly, and with `f32` in float32 too where memory allows. Raises what the step raises."""
    eager = detached(plain_call(step)())
    if not f32:
        return Reference(eager=eager, f32=None, note=None)
    refusal = float32_refusal(step)
    wide = None
    if refusal is None:
        try:
            wide = float32_result(step)
        except torch.cuda.OutOfMemoryError:
            refusal = "a float32 run needs more memory than there is"
    release(step.device)
    return Reference(eager=eager, f32=wide, note=refusal and f"not compared with float32: {refusal}")


def run_modes(
    step: Step,
    modes: Sequence[Mode],
    rules: RuleSet,
    reference: Reference,
    *,
    seconds: float,
    alone: bool | None = None,
    notice: Callable[[list[Result]], None] = lambda _: None,
    within: Callable[[Mode, Running], None] = lambda _mode, _running: None,
) -> list[Result]:
    """Runs every mode and times them for about `seconds` in all. A mode that fails has the reason in its result.

    `alone`, as on a GPU: each mode is alone with the step's own networks while it runs, so that its memory can be
    told. Otherwise each gets a twin, and all are kept and timed in turn, so that a machine that is slow for a while
    slows all. `notice` hears of the results
    after each change, `within` is called while a mode that works is there.
    """
    results = [Result(mode=mode.key, title=mode.title) for mode in modes]
    alone = step.device.type == "cuda" if alone is None else alone
    bench = _Bench(step, rules, reference, seconds / max(len(modes), 1) if alone else None, within)
    notice(results)
    with contextlib.ExitStack() as everything:
        for mode, result in zip(modes, results, strict=True):
            try:
                bench.run(mode, result, everything)
            except Exception as error:  # a mode that fails is a result of its own, whatever the library raised
                result.failure = described(error)
            release(step.device)
            _compare_speed(results)
            notice(results)
        bench.in_turn(results, seconds)
        notice(results)
    return results


class _Bench:
    """`share`: seconds to time each mode for by itself, or None for all in turn."""

    def __init__(
        self,
        step: Step,
        rules: RuleSet,
        reference: Reference,
        share: float | None,
        within: Callable[[Mode, Running], None],
    ) -> None:
        self.step, self.rules, self.reference, self.share, self.within = step, rules, reference, share, within
        self.device = step.device
        self.calls: dict[str, Callable[[], Any]] = {}
        self.begun: dict[str, Begun] = {}

    def run(self, mode: Mode, result: Result, everything: contextlib.ExitStack) -> None:
        """Runs a mode and leaves it, or hands it to `everything` where it is timed later. Raises what it raises."""
        step = self.step if self.share is not None else self.step.twin()
        with contextlib.ExitStack() as this:
            watch = MemoryWatch(self.device)
            entered: list[Running] = []

            def enter() -> Callable[[], Any]:
                entered.append(this.enter_context(mode.running(step, self.rules)))
                return entered[0].call

            call, begun = timing.begin(enter, self.device)
            result.first_seconds = begun.first
            result.error_eager = relative_error(begun.output, self.reference.eager)
            if self.reference.f32 is not None:
                result.error_f32 = relative_error(begun.output, self.reference.f32)
            begun = dataclasses.replace(begun, output=None)
            watch.settle()
            if self.share is not None:
                _finish(result, begun, timing.compare({mode.key: call}, self.device, seconds=self.share)[mode.key])
            result.memory = watch.read()
            result.reports = entered[0].reports()
            self.within(mode, entered[0])
            if self.share is None:
                self.calls[mode.key], self.begun[mode.key] = call, begun
                everything.push(this.pop_all())

    def in_turn(self, results: Sequence[Result], seconds: float) -> None:
        """Times the modes that were kept, eager first."""
        if not self.calls:
            return
        ordered = dict(sorted(self.calls.items(), key=lambda item: item[0] != EAGER))
        times = timing.compare(ordered, self.device, seconds=seconds)
        for result in results:
            if result.mode in times:
                _finish(result, self.begun[result.mode], times[result.mode])


def _compare_speed(results: Sequence[Result]) -> None:
    """Speeds of modes that were timed one after the other, relative to eager or else to the first of them."""
    timed = [result.times for result in sorted(results, key=lambda result: result.mode != EAGER) if result.times]
    for result in results:
        if result.times is not None:
            result.times = timing.against(result.times, timed[0])


def _finish(result: Result, begun: Begun, times: Times) -> None:
    result.times, result.ready_seconds, result.failure = times, begun.ready(times.median), None


def release(device: torch.device) -> None:
    """Gives the memory of what is gone back to the device."""
    gc.collect()
    if device.type == "cuda":
        # After an illegal access every call raises; the modes that come then say so themselves.
        with contextlib.suppress(RuntimeError):
            torch.cuda.empty_cache()
