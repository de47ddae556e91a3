"""Distances between results."""

from __future__ import annotations

import pytest
import torch

from rewriter.capture.compare import REWRITE_LIMITS, TRACE_LIMITS, compare, relative_error, working_dtype

NAN, INF = float("nan"), float("inf")


def problem(a: list[float], b: list[float], *, same_nonfinite: bool = True, limit: float = 1e-5) -> str | None:
    return compare([torch.tensor(a)], [torch.tensor(b)], limit=limit, same_nonfinite=same_nonfinite).problem


def test_relative_error_is_l2() -> None:
    assert relative_error(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 0.0])) == pytest.approx(4 / 3)
    assert relative_error(torch.tensor([2.0]), torch.tensor([0.0])) == 2.0
    assert relative_error(torch.empty(0), torch.empty(0)) == 0.0
    assert relative_error(torch.tensor([3j]), torch.tensor([1j])) == pytest.approx(2)


def test_the_limit_and_the_number_are_named() -> None:
    assert problem([1.0], [1.0 + 1e-6]) is None
    assert problem([1.5], [1.0]) == "relative L2 error 0.5 on output 0 (limit 1e-05)"


@pytest.mark.parametrize(
    ("a", "b", "same", "fine"),
    [
        ([NAN, 1.0], [NAN, 1.0], True, True),
        ([1.0, NAN], [NAN, 1.0], True, False),
        ([NAN, 1.0], [INF, 1.0], True, False),
        ([0.0, 1.0], [NAN, 1.0], True, False),
        ([0.0, 1.0], [NAN, 1.0], False, True),
        ([NAN, 1.0], [0.0, 1.0], False, False),
        ([INF, 1.0], [0.0, 1.0], False, False),
    ],
)
def test_nan_and_inf(a: list[float], b: list[float], same: bool, fine: bool) -> None:
    assert (problem(a, b, same_nonfinite=same) is None) is fine


def test_shape_dtype_and_integers() -> None:
    def found(a: torch.Tensor, b: torch.Tensor) -> str | None:
        return compare([a], [b], limit=1.0, same_nonfinite=True).problem

    assert "float16[2] on cpu, expected float32[2]" in str(found(torch.zeros(2).half(), torch.zeros(2)))
    assert "expected float32[2]" in str(found(torch.zeros(3), torch.zeros(2)))
    assert found(torch.arange(3), torch.arange(3)) is None
    assert found(torch.arange(3), torch.arange(3) + 1) == "output 0 (torch.int64) differs"


def test_the_coarsest_dtype_decides() -> None:
    tensors = [torch.zeros(1), torch.zeros(1).bfloat16(), torch.zeros(1).half(), torch.arange(2)]
    assert working_dtype(tensors) is torch.bfloat16
    assert working_dtype(tensors[3:]) is torch.float32
    assert set(TRACE_LIMITS) == set(REWRITE_LIMITS)
    assert all(TRACE_LIMITS[dtype] <= REWRITE_LIMITS[dtype] for dtype in TRACE_LIMITS)
