"""What regions are timed with."""

from __future__ import annotations

import pytest
import torch

from rewriter.measure import timing
from rewriter.measure.region import TensorPlan
from rewriter.measure.timing import compare


def drawn(dtype: torch.dtype) -> torch.Tensor:
    return TensorPlan((2, 3), (1, 2), dtype, "cpu").draw()


def test_numbers_are_drawn_in_the_recorded_order() -> None:
    assert drawn(torch.float16).stride() == (1, 2)
    assert drawn(torch.float16).std() > 0


def test_whole_numbers_are_zero_and_masks_hide_nothing() -> None:
    """Of a mask that hides all keys the kernels for attention make different things: correct ones were left out."""
    assert not drawn(torch.int64).any()
    assert drawn(torch.bool).all()


def test_two_that_are_timed_differently_are_both_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only one could be recorded: kernels alone would be compared with what the host needs to launch them."""

    class Kernels:
        def __init__(self, function: object) -> None:
            self.function = function

        def seconds(self) -> float:
            raise AssertionError("only one of the two")

    def first() -> None:
        called.append(first)

    def second() -> None:
        called.append(second)

    called: list[object] = []
    plain = timing.stopwatch
    monkeypatch.setattr(
        timing,
        "stopwatch",
        lambda function, device: Kernels(function) if function is first else plain(function, device),
    )
    found = compare(first, second, "cpu")
    assert {first, second} <= set(called)
    assert found.before > 0
    assert found.after > 0


def test_what_is_known_of_a_long_function_is_its_first_sample() -> None:
    called: list[None] = []
    watch = timing.Launched(lambda: called.append(None), "cpu", repeat=True, known=0.5)
    assert watch.seconds() == 0.5
    assert not called
    assert 0 < watch.seconds() < 0.5
    assert len(called) == 1
