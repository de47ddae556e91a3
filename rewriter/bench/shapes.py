"""The step at other sizes of picture and batch: a row for each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from rewriter.bench.document import machine, step_document
from rewriter.bench.modes import EAGER, REWRITER, Mode
from rewriter.bench.outcome import Outcome
from rewriter.bench.runs import Result, reference_of, release, run_modes
from rewriter.bench.single import Wanted, failures
from rewriter.bench.step import Step
from rewriter.bench.tables import Rows
from rewriter.causes import described

if TYPE_CHECKING:
    from rewriter.language import RuleSet


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """Pixels of the picture and rows that the denoiser sees."""

    width: int
    height: int
    batch: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height} batch {self.batch}"


def bench_shapes(
    name: str,
    steps: Sequence[tuple[Shape, Step]],
    modes: Sequence[Mode],
    rules: RuleSet,
    wanted: Wanted,
    notice: Callable[[Outcome], None] = lambda _: None,
) -> Outcome:
    """Runs the modes at each shape, each for its share of the time. A shape that cannot be run has the reason."""
    device = steps[0][1].device
    outcome = Outcome(title=f"{name}: {steps[0][1].component} on {device}, by shape", document={})
    facts = {"target": name, **machine(device)}
    rows: Rows = [_head(modes)]
    documents: list[dict[str, Any]] = []
    for shape, step in steps:
        extent = dataclasses.asdict(shape)
        try:
            reference = reference_of(step, f32=wanted.f32)
            results = run_modes(step, modes, rules, reference, seconds=wanted.seconds / len(steps))
        except Exception as error:  # too large for this device, say; the other shapes are still of use
            reason = described(error)
            documents.append({**extent, "failure": reason})
            rows.append((str(shape), reason, *("" for _ in rows[0][2:])))
            outcome.failures.append(f"{shape}: {reason}")
        else:
            documents.append({**extent, **step_document(step, results, reference, None, None)})
            rows.append(_row(shape, results))
            outcome.failures += [f"{shape}: {failure}" for failure in failures(results)]
        release(device)
        outcome.document = {**facts, "shapes": documents}
        outcome.tables = [("", rows)]
        notice(outcome)
    return outcome


def _head(modes: Sequence[Mode]) -> tuple[str, ...]:
    ratios = [f"REWRITER / {mode.key.upper()}" for mode in modes if mode.key != REWRITER]
    return ("SHAPE", *(mode.key.upper() for mode in modes), *ratios, "READY", "PEAK", "ERROR")


def _row(shape: Shape, results: Sequence[Result]) -> tuple[str, ...]:
    """Times, how many times as fast rewriter is as each other mode, its ready time, and its peak and error by eager's.

    What a mode has no figure for is left empty.
    """
    cells = [f"{result.times.median * 1e3:.2f} ms" if result.times else "failed" for result in results]
    ours = next((result for result in results if result.mode == REWRITER), None)
    eager = next((result for result in results if result.mode == EAGER), None)
    for result in results:
        if result.mode != REWRITER:
            both = result.times is not None and ours is not None and ours.times is not None
            cells.append(f"{result.times.median / ours.times.median:.2f}x" if both else "")  # type: ignore[union-attr]
    ready = peak = error = ""
    if ours is not None:
        ready = "" if ours.ready_seconds is None else f"{ours.ready_seconds:.1f} s"
        error = "" if ours.error_eager is None else f"{ours.error_eager:.1e}"
        if eager is not None and ours.memory and eager.memory and ours.memory.peak and eager.memory.peak:
            peak = f"{ours.memory.peak / eager.memory.peak:.2f}x"
        if eager is not None and ours.error_f32 is not None and eager.error_f32:
            error = f"{ours.error_f32 / eager.error_f32:.2f}x"
    return (str(shape), *cells, ready, peak, error)
