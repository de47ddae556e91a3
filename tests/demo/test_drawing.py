"""Grids and amplified differences."""

from __future__ import annotations

import numpy as np
import pytest

from rewriter.demo.drawing import amplified, grid


def pictures(count: int, size: int = 16, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(0).random((count, size, size, channels), dtype=np.float32)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_has_room_for_every_picture(channels: int) -> None:
    sheet = grid(pictures(7, channels=channels), columns=3)
    assert sheet.mode == ("L" if channels == 1 else "RGB")
    assert sheet.width > 3 * 96
    assert sheet.height > 3 * 96


def test_squares_keep_their_values() -> None:
    one = np.zeros((1, 16, 16, 1), dtype=np.float32)
    one[0, 0, 0] = 1
    sheet = np.asarray(grid(one, columns=1, smooth=False))
    assert sorted(set(sheet.flatten().tolist())) == [0, 255]
    assert (sheet == 255).sum() == 36


def test_nan_and_values_out_of_range_are_drawn() -> None:
    strange = pictures(1)
    strange[0, 0, 0], strange[0, 0, 1], strange[0, 0, 2] = np.nan, np.inf, -3
    grid(strange, columns=1)


def test_a_large_grid_is_reduced() -> None:
    assert grid(np.zeros((4, 8, 1000, 1), dtype=np.float32), columns=4).width == 2048


@pytest.mark.parametrize(
    ("largest", "factor"),
    [(0.0, 1), (1.0, 1), (0.6, 1), (0.3, 2), (0.11, 5), (0.04, 20), (3e-7, 2_000_000), (1e-7, 5_000_000), (np.nan, 1)],
)
def test_the_amplification_brings_differences_into_sight(largest: float, factor: int) -> None:
    difference = np.full((1, 4, 4, 3), -largest, dtype=np.float32)
    shown, found = amplified(difference)
    assert found == factor
    if 0 < largest < 1:
        assert 0.4 < shown.max() <= 1
