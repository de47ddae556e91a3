"""Pictures of pictures: grids, and differences made visible."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pictures = NDArray[np.float32]
_TILE = 96  # smaller pictures are enlarged to about this many pixels
_WIDEST = 2048


def grid(pictures: Pictures, *, columns: int, smooth: bool = True) -> Image.Image:
    """One picture of many. `pictures`: [N, H, W, 1 or 3] in 0..1; NaN is drawn black, other values are clipped.

    Small pictures are enlarged by a whole factor, `smooth` or as squares; a grid wider than 2048 pixels is reduced.
    """
    bytes_ = (np.nan_to_num(pictures, nan=0.0).clip(0, 1) * 255).round().astype(np.uint8)
    _, height, width, channels = bytes_.shape
    factor = max(1, round(_TILE / max(height, width)))
    size = (width * factor, height * factor)
    gap = max(2, size[0] // (10 if factor > 1 else 64))
    columns = min(columns, len(bytes_))
    rows = math.ceil(len(bytes_) / columns)
    mode = "L" if channels == 1 else "RGB"
    sheet = Image.new(mode, (columns * (size[0] + gap) + gap, rows * (size[1] + gap) + gap))
    how = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    for index, picture in enumerate(bytes_):
        tile = Image.fromarray(picture[..., 0] if channels == 1 else picture).resize(size, how)
        row, column = divmod(index, columns)
        sheet.paste(tile, (gap + column * (size[0] + gap), gap + row * (size[1] + gap)))
    if sheet.width > _WIDEST:
        sheet = sheet.resize((_WIDEST, round(sheet.height * _WIDEST / sheet.width)), Image.Resampling.LANCZOS)
    return sheet


def amplification(difference: Pictures) -> int:
    """The largest of 1, 2, 5, 10, 20, ... that leaves every finite absolute value of `difference` at or below 1."""
    finite = np.abs(difference[np.isfinite(difference)])
    largest = float(finite.max()) if finite.size else 0.0
    if not 0 < largest < 1:
        return 1
    decade = int(10 ** math.floor(-math.log10(largest)))
    return max(step * decade for step in (1, 2, 5) if step == 1 or step * decade * largest <= 1)


def amplified(difference: Pictures) -> tuple[Pictures, int]:
    """`|difference|` times its amplification, and the factor."""
    factor = amplification(difference)
    return (np.abs(difference) * factor).astype(np.float32), factor
