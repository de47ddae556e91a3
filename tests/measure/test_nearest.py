"""What is worth timing at another size: what was fastest at the sizes most like it."""

from __future__ import annotations

import math

from rewriter.measure.nearest import distance, worth_timing
from rewriter.ops.dispatch import Choice

CHOICES = [Choice("triton", {"rows": rows}) for rows in (64, 128)] + [Choice("cuda"), Choice("torch")]


def call(width: int, *, dtype: str = "float16") -> str:
    return f"{dtype}[2, 320, 64, {width}][{64 * 320 * width}, 1, {320 * width}, 320];32;None;1e-05"


def test_a_call_is_as_far_as_its_numbers_differ() -> None:
    assert distance(call(64), call(64)) == 0
    assert 0 < distance(call(64), call(72)) < distance(call(64), call(128))


def test_another_dtype_or_constant_is_another_kind_of_call() -> None:
    assert distance(call(64), call(64, dtype="float32")) == math.inf
    assert distance(call(64), call(64).replace("1e-05", "1e-06")) == math.inf
    assert distance(call(64), "float16[2, 320][320, 1]") == math.inf


def test_without_a_call_alike_all_are_timed() -> None:
    assert worth_timing(call(64), CHOICES, []) == CHOICES
    assert worth_timing(call(64), CHOICES, [(call(64, dtype="float32"), Choice("cuda"))]) == CHOICES


def test_winners_of_the_nearest_and_the_first_are_timed() -> None:
    known = [(call(width), CHOICES[1]) for width in (72, 80, 88)] + [(call(256), Choice("torch"))]
    assert worth_timing(call(64), CHOICES, known) == [CHOICES[0], CHOICES[1]]
    assert worth_timing(call(250), CHOICES, known) == [*CHOICES[:2], Choice("torch")]


def test_a_config_that_is_not_offered_stands_for_its_provider() -> None:
    known = [(call(72), Choice("triton", {"rows": 512})), (call(80), Choice("flash"))]
    assert worth_timing(call(64), CHOICES, known) == [CHOICES[0]]
    assert worth_timing(call(64), CHOICES[2:], [(call(72), Choice("cuda", {"splits": 3}))]) == [Choice("cuda")]


def test_where_no_winner_is_offered_all_are_timed() -> None:
    assert worth_timing(call(64), CHOICES, [(call(72), Choice("flash"))]) == CHOICES
