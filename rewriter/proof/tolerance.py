"""How far a result may be from the exact one: one table by dtype, the same on every device, and two measures."""

from __future__ import annotations

import dataclasses
import math

import torch

# Half the distance from 1 to the next number: what one rounding costs, relative to the result.
ROUNDOFF = {torch.float64: 2.0**-53, torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
# What every result may be off by, relative to its magnitude: two roundings, and sixteen where sums are as narrow as the
# result, which add up in another order. Of codes in eight bits one may come out as its neighbour.
FLOOR = {
    torch.float64: 2.0**-49,
    torch.float32: 2.0**-20,
    torch.float16: 2.0**-10,
    torch.bfloat16: 2.0**-7,
    torch.float8_e4m3fn: 2.0**-3,
}
# And absolutely: f16 has steps of that size around 0; in f32 and bf16 some kernels take what is subnormal for 0, up to
# a thousand terms of a sum.
STEP = {
    torch.float64: 2.0**-1012,
    torch.float32: 2.0**-116,
    torch.float16: 2.0**-23,
    torch.bfloat16: 2.0**-116,
    torch.float8_e4m3fn: 0.0,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Errors:
    """Relative L2 error and largest error of an element relative to the largest element, of one output."""

    l2: float = 0.0
    largest: float = 0.0


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """The measure by which an output does worst. By this measure: the fused program's error, what rounding costs the
    unfused one, which is its own error if the noise is not larger, and what is allowed."""

    measure: str
    error: float
    unfused: float
    allowed: float

    @property
    def share(self) -> float:
        """error / allowed; 0 where both are."""
        return self.error / self.allowed if self.allowed else (math.inf if self.error else 0.0)


def judged(
    fused: torch.Tensor,
    unfused: torch.Tensor,
    exact: torch.Tensor,
    noise: torch.Tensor,
    *,
    tolerance: float,
    dtype: torch.dtype,
) -> Verdict:
    """Compares the finite elements of one output: vectors in f64 of one length. `noise`: see `oracle.Exact`.

    error(fused) <= tolerance * error(unfused) + floor(dtype), where error(unfused) is not below the noise: the error
    of one example may be 0 by luck.
    """
    if not exact.numel():
        return Verdict("relative L2 error", 0.0, 0.0, FLOOR[dtype])
    found = [_errors(fused - exact), _errors(_finite(unfused - exact)), _errors(noise), _errors(exact)]
    verdicts = []
    for measure, (error, plain, noisy, magnitude), step in (
        ("relative L2 error", (each.l2 for each in found), STEP[dtype] * math.sqrt(exact.numel())),
        ("largest error", (each.largest for each in found), STEP[dtype]),
    ):
        scale = magnitude or 1.0
        allowed = tolerance * max(plain, noisy) + FLOOR[dtype] * magnitude + step
        verdicts.append(Verdict(measure, error / scale, max(plain, noisy) / scale, allowed / scale))
    return max(verdicts, key=lambda verdict: verdict.share)


def _errors(x: torch.Tensor) -> Errors:
    return Errors(float(torch.linalg.vector_norm(x)), float(x.abs().max()))


def _finite(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x.isfinite(), x, 0.0)
