"""What a demo found out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Timing:
    """Medians over the timed rounds. A step is one pass of the denoising loop; a call is the whole pipeline."""

    step_ms: float
    step_ms_lowest: float
    step_ms_highest: float
    call_seconds: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Matches:
    """How often a rule was found legal, and how many of its replacements were kept after measuring."""

    matched: int
    kept: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Component:
    """One network of the pipeline after the optimised calls."""

    name: str
    status: str
    reason: str | None
    error: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoResult:
    """Eager against optimised: times, matches, errors, and the files that were written.

    `speedup` is the median over the rounds of eager time per step over optimised time per step.
    `max_difference` and `relative_difference` compare the pictures before they are rounded to 8 bits: the largest
    absolute difference on the scale 0..1, and the L2 norm of the difference over that of the eager pictures.
    `interleaved` says whether eager and optimised calls took turns, or ran one after the other (large pipelines).
    """

    target: str
    device: str
    dtype: str
    seed: int
    steps: int
    rounds: int
    interleaved: bool
    pictures: int
    eager: Timing
    optimised: Timing
    speedup: float
    first_call_seconds: float
    max_difference: float
    relative_difference: float
    matches: Mapping[str, Matches]
    components: tuple[Component, ...]
    files: Mapping[str, Path]
    versions: Mapping[str, str]

    @property
    def fallbacks(self) -> tuple[Component, ...]:
        """The networks that ran eagerly."""
        return tuple(component for component in self.components if component.status == "eager")

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data for JSON."""
        data = dataclasses.asdict(self)
        data["matches"] = {rule: dataclasses.asdict(count) for rule, count in self.matches.items()}
        data["files"] = {name: str(path) for name, path in self.files.items()}
        data["versions"] = dict(self.versions)
        return data

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def _lines(result: DemoResult) -> list[str]:
    eager, optimised = result.eager, result.optimised
    lines = [
        f"{result.target} on {result.device}, {result.dtype}: {result.steps} steps, seed {result.seed}",
        f"  eager      {eager.step_ms:9.2f} ms per step ({eager.step_ms_lowest:.2f} to {eager.step_ms_highest:.2f})",
        f"  optimised  {optimised.step_ms:9.2f} ms per step "
        f"({optimised.step_ms_lowest:.2f} to {optimised.step_ms_highest:.2f}), {describe_speedup(result.speedup)}",
        f"  first optimised call {result.first_call_seconds:.1f} s (it compiles), whole call "
        f"{eager.call_seconds:.2f} s eager, {optimised.call_seconds:.2f} s optimised",
        f"  pictures differ by at most {result.max_difference:.2g} of full scale, "
        f"{result.relative_difference:.2g} relative",
        "",
        "matches (kept / found)",
    ]
    lines += [f"  {count.kept:5d} / {count.matched:<5d} {rule}" for rule, count in result.matches.items()]
    if not result.matches:
        lines.append("  none")
    lines += ["", "networks"]
    for component in result.components:
        reason = f": {component.reason}" if component.reason else ""
        lines.append(f"  {component.name}: {component.status}{reason}")
    return [*lines, "", "written", *(f"  {path}" for path in result.files.values())]


def describe_speedup(speedup: float) -> str:
    """A ratio of times in words: `1.25 times as fast`, or `as fast` within half a percent."""
    return "as fast as eager" if abs(speedup - 1) < 0.005 else f"{speedup:.2f} times as fast as eager"
