"""Compares the outputs of the rewritten program with the pattern's: shape, dtype, NaN and Inf, then the numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from rewriter.proof.sample import name_of
from rewriter.proof.tolerance import FLOOR, Verdict, judged


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """What is wrong with an output: the kind of a `Failure`, and its message."""

    kind: str
    message: str


@dataclasses.dataclass(frozen=True, slots=True)
class Output:
    """One output by four programs. `noise`: what rounding may cost, by element. The rest: see `oracle.Exact`."""

    name: str
    fused: torch.Tensor
    unfused: torch.Tensor
    exact: torch.Tensor
    noise: torch.Tensor
    overflows: bool
    others: Sequence[torch.Tensor]


def compared(output: Output, tolerance: float) -> Verdict | Difference:
    """The errors of one output, or what is wrong with it."""
    fused, unfused = output.fused, output.unfused
    if (fused.shape, fused.dtype) != (unfused.shape, unfused.dtype):
        found, expected = (f"{list(x.shape)} {name_of(x.dtype)}" for x in (fused, unfused))
        return Difference("wrong shape", f"output {output.name}: found {found}, expected {expected}")
    dtype = fused.dtype
    if dtype not in FLOOR:
        wrong = fused != unfused
        return _exactly(output, wrong) if bool(wrong.any()) else Verdict("difference", 0.0, 0.0, 0.0)
    if dtype.itemsize == 1:
        # Torch compares no floating numbers in eight bits.
        fused, unfused = fused.float(), unfused.float()
        output = dataclasses.replace(output, fused=fused, unfused=unfused)
    # Right is what the unfused program gives, and what wider arithmetic gives: a fused program that keeps its sums in
    # f32 does not overflow where the unfused one does. Near the largest number the order of additions decides.
    classes = _classes(fused)
    wrong = torch.ones_like(fused, dtype=torch.bool)
    for right in (unfused, output.exact.to(fused.dtype), *(each.to(fused.dtype) for each in output.others)):
        wrong &= classes != _classes(right)
    if output.overflows:
        wrong &= output.exact.isnan() | output.exact.isinf()
    if bool(wrong.any()):
        return _wrong_class(output, wrong)
    finite = fused.isfinite() & output.exact.isfinite()
    if output.overflows:
        finite &= unfused.isfinite()
    vectors = (fused.double(), unfused.double(), output.exact, output.noise)
    verdict = judged(*(x[finite] for x in vectors), tolerance=tolerance, dtype=dtype)
    return verdict if verdict.share <= 1 else _off(output, verdict, finite)


def places(wrong: torch.Tensor) -> str:
    """Which elements a mask marks, in words: how many, and the positions along a dimension that they all share."""
    total, count = wrong.numel(), int(wrong.sum())
    if count == total:
        return "every element" if total > 1 else "the only element"
    found = [f"{count} of {total} elements"]
    for dim in range(wrong.dim()):
        others = [each for each in range(wrong.dim()) if each != dim]
        hit = wrong.any(dim=others) if others else wrong
        extent, positions = wrong.shape[dim], [int(each) for each in hit.nonzero().flatten()]
        if len(positions) <= min(3, extent - 1):
            found.append(f"in dimension {dim} of extent {extent} only at {', '.join(map(str, positions))}")
    return ", ".join(found)


def first(wrong: torch.Tensor) -> tuple[int, ...]:
    """The indices of the first element that a mask marks."""
    return tuple(int(each) for each in wrong.nonzero()[0])


def _classes(x: torch.Tensor) -> torch.Tensor:
    """0 for a finite number, 1 for NaN, 2 for Inf, 3 for -Inf."""
    return x.isnan() + 2 * x.isposinf() + 3 * x.isneginf()


def _exactly(output: Output, wrong: torch.Tensor) -> Difference:
    at = first(wrong)
    return Difference(
        "wrong result",
        f"output {output.name}: {places(wrong)} differ, first at {list(at)}: found {output.fused[at].item()}, "
        f"expected {output.unfused[at].item()}",
    )


def _wrong_class(output: Output, wrong: torch.Tensor) -> Difference:
    at = first(wrong)
    found, unfused, exact = (f"{x[at].item():.4g}" for x in (output.fused, output.unfused, output.exact))
    return Difference(
        "wrong NaN",
        f"output {output.name}: NaN or Inf where the pattern has another result, or the other way round: "
        f"{places(wrong)}, first at {list(at)}: found {found}, expected {unfused} as unfused or {exact} as in f64",
    )


def _off(output: Output, verdict: Verdict, finite: torch.Tensor) -> Difference:
    error = torch.where(finite, (output.fused.double() - output.exact).abs(), 0.0)
    at = tuple(int(each) for each in torch.unravel_index(error.argmax(), error.shape))
    # Where a few elements are wrong they stand out; rounding alone puts none this far above what is allowed on average.
    scale = float(output.exact[finite].abs().max()) or 1.0
    wrong = error > max(float(error.max()) / 100, verdict.allowed * scale)
    wrong[at] = True
    return Difference(
        "wrong result",
        f"output {output.name}: {verdict.measure} {verdict.error:.2e}, allowed {verdict.allowed:.2e}, unfused "
        f"{verdict.unfused:.2e}; {places(wrong)} off, most at {list(at)}: found {output.fused[at].item():.6g}, "
        f"expected {output.exact[at].item():.6g}",
    )


def combined(verdicts: Sequence[Verdict]) -> Verdict:
    """The worst of the outputs' verdicts."""
    return max(verdicts, key=lambda verdict: verdict.share)
