"""One step in several modes, with what the device could do at most."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from rewriter.bench.ceilings import Ceilings, ceilings, flops_of
from rewriter.bench.document import machine, step_document
from rewriter.bench.modes import REWRITER, Mode, Running
from rewriter.bench.outcome import Outcome
from rewriter.bench.plot import Bar
from rewriter.bench.profile import profiled
from rewriter.bench.runs import Result, reference_of, release, run_modes
from rewriter.bench.step import Step
from rewriter.bench.tables import mode_rows
from rewriter.causes import described

if TYPE_CHECKING:
    from rewriter.language import RuleSet


@dataclasses.dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to find out: seconds to time for, whether to compare with float32, and whether to profile."""

    seconds: float
    f32: bool
    profile: bool = False


def bench_step(
    name: str,
    step: Step,
    modes: Sequence[Mode],
    rules: RuleSet,
    wanted: Wanted,
    notice: Callable[[Outcome], None] = lambda _: None,
) -> Outcome:
    """Runs the modes and says what came out; `notice` hears of it after each mode. Raises what the step raises."""
    outcome = Outcome(title=f"{name}: {step.component} on {step.device}, {step.description}", document={})
    reference = reference_of(step, f32=wanted.f32)
    flops, top = _flops(step, outcome), _ceilings(step, outcome)
    if reference.note:
        outcome.notes.append(reference.note)
    facts = {"target": name, **machine(step.device)}

    def update(results: list[Result]) -> None:
        outcome.document = {**facts, **step_document(step, results, reference, flops, top)}
        outcome.tables = [("", mode_rows(results, flops, top))]
        outcome.bars = [_bar(result, results) for result in results]
        outcome.failures = failures(results)
        notice(outcome)

    def within(mode: Mode, running: Running) -> None:
        if wanted.profile and mode.key == REWRITER:
            outcome.profile = profiled(running.call, step.device)

    run_modes(step, modes, rules, reference, seconds=wanted.seconds, notice=update, within=within)
    return outcome


def failures(results: Sequence[Result]) -> list[str]:
    """What makes a benchmark fail: modes that did, and networks that ran eagerly."""
    found = [f"{result.title}: {result.failure}" for result in results if result.failure]
    return found + [f"{result.title}: {fallback}" for result in results for fallback in result.fallbacks]


def _flops(step: Step, outcome: Outcome) -> int | None:
    try:
        return flops_of(step)
    except (RuntimeError, NotImplementedError, TypeError, KeyError) as error:
        outcome.notes.append(f"operations not counted: {described(error)}")
        return None


def _ceilings(step: Step, outcome: Outcome) -> Ceilings | None:
    try:
        found = ceilings(step.device, step.dtype)
    except torch.cuda.OutOfMemoryError:
        outcome.notes.append("ceilings not measured: not enough memory")
        return None
    finally:
        release(step.device)
    product = f"{found.tflops:.3g} TFLOP/s in a product of {found.rows}x{found.rows} matrices"
    outcome.notes.append(f"ceilings of this device: {product}, {found.copy:.0f} GB/s in a copy")
    return found


def _bar(result: Result, results: Sequence[Result]) -> Bar:
    times = result.times
    if result.failure or times is None:
        return Bar(label=result.title, value=None, note=result.failure or "")
    best = min(other.times.median for other in results if other.times is not None)
    return Bar(
        label=result.title,
        value=times.median,
        low=times.low,
        high=times.high,
        note=f"{times.median * 1e3:.2f} ms, {1 / times.median:.1f} it/s",
        best=times.median == best,
    )
