"""How far two results of one call are apart, and how far they may be."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import torch

# Relative L2 error. A trace runs the same kernels as eager; a rewritten graph rounds elsewhere.
TRACE_LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}
REWRITE_LIMITS = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1.5e-1}
# However much a network amplifies rounding, beyond this a rewrite counts as wrong.
WIDEST_LIMITS = {torch.float64: 1e-5, torch.float32: 1e-2, torch.float16: 1e-1, torch.bfloat16: 3e-1}
# Where rules that lose precision had a part, by what they keep of an operand. One layer is off by 4 %, 1 % or less,
# and most networks by no more than a few times that; a wrong result is off by 100 %.
LOSSY_LIMITS = {"f8e4m3": 2.5e-1, "f8e4m3_norm": 2.5e-1, "f8e4m3_sums": 5e-2, "i8": 1e-1, "f16_sums": 5e-2}
_COARSEST_FIRST = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """error: the largest relative L2 error over all outputs; problem: what is wrong, or None where all is well.

    too_large: what is wrong is the size of the error, not its kind.
    """

    error: float
    problem: str | None
    too_large: bool = False


def working_dtype(tensors: Iterable[torch.Tensor]) -> torch.dtype:
    """The coarsest floating-point dtype among `tensors`: the one whose rounding dominates."""
    present = {tensor.dtype.to_real() if tensor.dtype.is_complex else tensor.dtype for tensor in tensors}
    return next((dtype for dtype in _COARSEST_FIRST if dtype in present), torch.float32)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """|actual - expected| / |expected| in L2, over the elements where both are finite; 0.0 for two empty tensors."""
    a, b = _real(actual), _real(expected)
    finite = torch.isfinite(a) & torch.isfinite(b)
    if not bool(finite.all()):
        a, b = a[finite], b[finite]
    distance = float(torch.linalg.vector_norm(a - b))
    norm = float(torch.linalg.vector_norm(b))
    return distance / norm if norm > 0 else distance


def _real(tensor: torch.Tensor) -> torch.Tensor:
    tensor = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
    return tensor.detach().to(torch.float64)


def compare(
    actual: Sequence[torch.Tensor], expected: Sequence[torch.Tensor], *, limit: float, same_nonfinite: bool
) -> Difference:
    """Compares the outputs of one call, tensor by tensor.

    With `same_nonfinite` NaN and Inf must sit at the same places; without, `actual` may have none where `expected`
    is finite. Integer and boolean tensors must be equal.
    """
    worst = 0.0
    for index, (a, b) in enumerate(zip(actual, expected, strict=True)):
        if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device:
            return Difference(error=worst, problem=f"output {index} is {_kind(a)}, expected {_kind(b)}")
        if a is b:
            continue
        if not (b.is_floating_point() or b.is_complex()):
            if not torch.equal(a, b):
                return Difference(error=worst, problem=f"output {index} ({b.dtype}) differs")
            continue
        bad, allowed = ~torch.isfinite(a), ~torch.isfinite(b)
        wrong = int(((bad != allowed) if same_nonfinite else (bad & ~allowed)).sum().item())
        if wrong or (same_nonfinite and not torch.equal(torch.isnan(a), torch.isnan(b))):
            return Difference(error=worst, problem=f"{wrong} elements of output {index} are NaN or Inf unlike eager's")
        error = relative_error(a, b)
        worst = max(worst, error)
        if not error <= limit:
            text = f"relative L2 error {error:.2g} on output {index} (limit {limit:.0e})"
            return Difference(error=worst, problem=text, too_large=True)
    return Difference(error=worst, problem=None)


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)} on {tensor.device}"
