"""A bar for each mode, with the span of the middle 80 % of its samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_WIDTH, _BAR, _GAP, _MARGIN = 960, 34, 16, 24
_TEXT, _SMALL = 18, 15
_INK, _FAINT, _PAPER = (32, 36, 44), (128, 134, 144), (255, 255, 255)
_COLOUR, _BEST = (150, 170, 200), (46, 125, 90)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bar:
    """One bar: its length, the span drawn over its end, what stands beside it. `value` None: `note` says why."""

    label: str
    value: float | None
    low: float = 0.0
    high: float = 0.0
    note: str = ""
    best: bool = False


def bars(title: str, found: Sequence[Bar]) -> Image.Image:
    """A picture of horizontal bars from zero, all to one scale."""
    text, small = ImageFont.load_default(size=_TEXT), ImageFont.load_default(size=_SMALL)
    height = 2 * _MARGIN + _TEXT + _GAP + len(found) * (_BAR + _GAP)
    picture = Image.new("RGB", (_WIDTH, height), _PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((_MARGIN, _MARGIN), title, font=text, fill=_INK)
    left = 2 * _MARGIN + max((int(draw.textlength(bar.label, font=small)) for bar in found), default=0)
    right = 2 * _MARGIN + max((int(draw.textlength(bar.note, font=small)) for bar in found if bar.value), default=0)
    longest = max((max(bar.value, bar.high) for bar in found if bar.value is not None), default=1.0)
    scale = max(_WIDTH - left - right, _BAR) / max(longest, 1e-12)
    for index, bar in enumerate(found):
        top = _MARGIN + _TEXT + _GAP + index * (_BAR + _GAP)
        middle = top + _BAR // 2
        draw.text((_MARGIN, middle), bar.label, font=small, fill=_INK, anchor="lm")
        if bar.value is None:
            draw.text((left, middle), bar.note, font=small, fill=_FAINT, anchor="lm")
            continue
        draw.rectangle((left, top, left + bar.value * scale, top + _BAR), fill=_BEST if bar.best else _COLOUR)
        low, high = left + bar.low * scale, left + bar.high * scale
        draw.line((low, middle, high, middle), fill=_INK, width=2)
        for end in (low, high):
            draw.line((end, middle - 6, end, middle + 6), fill=_INK, width=2)
        after = left + max(bar.value, bar.high) * scale + _MARGIN // 2
        draw.text((after, middle), bar.note, font=small, fill=_INK, anchor="lm")
    return picture
