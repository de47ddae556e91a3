"""What a capture is believed to hold for."""

from __future__ import annotations

from typing import Any

import pytest

from rewriter.runtime.trust import Standing, Trust, number_kind

HERE, THERE, ELSEWHERE, FAR = ((2, 4),), ((1, 4),), ((3, 4),), ((4, 4),)


def trust(*numbers: float, **options: Any) -> Trust:
    return Trust(HERE, numbers, **{"exact": False, "reads_shapes": True, "verify": True, **options})


def test_each_new_shape_is_compared_where_code_decides_on_extents() -> None:
    it = trust()
    assert it.standing(HERE, ()) is Standing.TRUSTED
    for shape in (THERE, ELSEWHERE, FAR):
        assert it.standing(shape, ()) is Standing.UNPROVED
        it.prove(shape, ())
        assert it.standing(shape, ()) is Standing.TRUSTED


def test_a_few_shapes_suffice_where_it_does_not() -> None:
    it = trust(reads_shapes=False)
    for shape in (THERE, ELSEWHERE):
        assert it.standing(shape, ()) is Standing.UNPROVED
        it.prove(shape, ())
    assert it.standing(FAR, ()) is Standing.TRUSTED


def test_a_refused_shape_stays_refused() -> None:
    it = trust(reads_shapes=False)
    it.refuse(THERE)
    assert it.standing(THERE, ()) is Standing.REFUSED
    assert it.standing(HERE, ()) is Standing.TRUSTED


def test_an_exact_capture_holds_for_its_shape_only() -> None:
    for verify in (True, False):
        it = trust(exact=True, verify=verify)
        assert it.standing(HERE, ()) is Standing.TRUSTED
        assert it.standing(THERE, ()) is Standing.REFUSED


def test_without_verification_everything_is_believed() -> None:
    it = trust(1.0, verify=False)
    assert it.standing(THERE, (0.0,)) is Standing.TRUSTED


def test_numbers_are_compared_a_few_times_and_for_each_kind() -> None:
    it = trust(0.5)
    for value in (0.6, 0.7):
        assert it.standing(HERE, (value,)) is Standing.UNPROVED
        assert it.changed_numbers((value,)) == [0]
        it.prove(HERE, (value,))
    assert it.standing(HERE, (0.8,)) is Standing.TRUSTED
    for value in (0.0, 1.0, -3.0, 5.0):
        assert it.standing(HERE, (value,)) is Standing.UNPROVED


@pytest.mark.parametrize(
    ("value", "kind"),
    [(0, "0.0"), (1.0, "1.0"), (-2, "negative"), (0.3, "fraction"), (9, "large"), (float("inf"), "inf")],
)
def test_kinds_of_numbers(value: float, kind: str) -> None:
    assert number_kind(value) == kind
