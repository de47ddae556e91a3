"""Plots of speed as SVG, to stand inside a page that gives the colours."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from rewriter.proof.results import Ceilings, Timed

_WIDTH = 960
_LABELS = 400
_LONGEST = 58
_ROW = 18
_HEIGHT = 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 24, 16, 44


def speedups(timings: Sequence[Timed]) -> str:
    """A bar per rule and shape: how many times as fast as the unfused ops, on a logarithmic scale; 1 is the line."""
    rows = sorted(((timed.speedup, timed) for timed in timings if timed.speedup is not None), key=lambda row: -row[0])
    if not rows:
        return ""
    low = min(0.5, *(speedup for speedup, _ in rows)) / 1.05
    high = max(2.0, *(speedup for speedup, _ in rows)) * 1.15
    across = _Scale(low, high, _LABELS, _WIDTH - 50)
    height = _ROW * len(rows) + 34
    parts = [_open(height, "Speed of each rule at each shape, unfused over fused")]
    for tick in across.ticks():
        at = across(tick)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="4" y2="{height - 24}"/>')
        parts.append(_text(at, height - 8, f"{tick:g}x", "middle"))
    one = across(1.0)
    for index, (speedup, timed) in enumerate(rows):
        top, end = 6 + index * _ROW, across(speedup)
        kind = "good" if speedup >= 1 else "bad"
        label = f"{timed.rule}, {timed.model}, {timed.shapes}"
        shown = label if len(label) <= _LONGEST else label[: _LONGEST - 1] + "…"
        parts += [
            f"<g><title>{escape(f'{label}: {speedup:.2f} times as fast')}</title>",
            _text(_LABELS - 8, top + 11, shown, "end"),
            f'<rect class="{kind}" x="{min(one, end):.1f}" y="{top + 1}" width="{max(abs(end - one), 0.5):.1f}" '
            f'height="{_ROW - 5}" rx="1.5"/>',
            _text(max(one, end) + 5, top + 11, f"{speedup:.2f}", "start"),
            "</g>",
        ]
    parts.append(f'<line class="axis" x1="{one:.1f}" x2="{one:.1f}" y1="4" y2="{height - 24}"/></svg>')
    return "\n".join(parts)


def roofline(timings: Sequence[Timed], ceilings: Ceilings) -> str:
    """Each rule and shape by its operations per byte and the TFLOP/s reached, below the card's roof."""
    points = [
        (
            timed.flops / timed.bytes,
            timed.flops / timed.unfused.median / 1e6,
            timed.flops / best.time.median / 1e6,
            timed,
        )
        for timed in timings
        if timed.flops and timed.bytes and timed.unfused and (best := timed.best) and best.time
    ]
    if not points:
        return ""
    dtypes = [name for name in ceilings.tflops if any(timed.dtype == name for *_, timed in points)]
    peak = max([ceilings.tflops[name] for name in dtypes] or ceilings.tflops.values())
    ridge = peak / ceilings.bandwidth * 1e3
    x = _Scale(
        min(ridge / 4, *(point[0] for point in points)) / 1.5,
        max(ridge * 4, *(p[0] for p in points)) * 1.5,
        _LEFT,
        _WIDTH - _RIGHT,
    )
    lowest = min(min(unfused, fused) for _, unfused, fused, _ in points)
    y = _Scale(lowest / 2, peak * 1.6, _HEIGHT - _BOTTOM, _TOP)
    parts = [_open(_HEIGHT, "Roofline: TFLOP/s over operations per byte"), *_axes(x, y)]
    for index, name in enumerate(dtypes):
        top = ceilings.tflops[name]
        corner = top / ceilings.bandwidth * 1e3
        start = max(x.low, y.low / ceilings.bandwidth * 1e3)
        line = [(start, start * ceilings.bandwidth / 1e3), (corner, top), (x.high, top)]
        parts.append(f'<polyline class="roof" points="{" ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in line)}"/>')
        parts.append(_text(_WIDTH - _RIGHT - 4 - 130 * index, y(top) - 6, f"{name} {top:.0f} TFLOP/s", "end"))
    slope = max(x.low, y.low / ceilings.bandwidth * 1e3) * 1.6
    parts.append(
        _text(x(slope) + 8, y(slope * ceilings.bandwidth / 1e3) + 12, f"{ceilings.bandwidth:.0f} GB/s", "start")
    )
    for intensity, unfused, fused, timed in points:
        at, before, after = x(intensity), y(unfused), y(fused)
        what = f"{timed.rule}, {timed.model}, {timed.shapes}: {unfused:.1f} to {fused:.1f} TFLOP/s"
        kind = "good" if fused >= unfused else "bad"
        parts += [
            f"<g><title>{escape(what)}</title>",
            f'<line class="move" x1="{at:.1f}" x2="{at:.1f}" y1="{before:.1f}" y2="{after:.1f}"/>',
            f'<circle class="was" cx="{at:.1f}" cy="{before:.1f}" r="3.5"/>',
            f'<circle class="{kind}" cx="{at:.1f}" cy="{after:.1f}" r="4"/>',
            "</g>",
        ]
    return "\n".join([*parts, "</svg>"])


def bandwidths(timings: Sequence[Timed], ceilings: Ceilings) -> str:
    """For what multiplies nothing: GB/s reached, unfused and fused, against that of a large copy."""
    rows = [
        (timed.bytes / best.time.median / 1e3, timed.bytes / timed.unfused.median / 1e3, timed)
        for timed in timings
        if not timed.flops and timed.bytes and timed.unfused and (best := timed.best) and best.time
    ]
    if not rows:
        return ""
    rows.sort(key=lambda row: -row[0])
    right = _WIDTH - 70
    longest = max(ceilings.bandwidth, *(fused for fused, _, _ in rows))
    height = _ROW * len(rows) + 34

    def across(rate: float) -> float:
        return _LABELS + (right - _LABELS) * rate / longest

    parts = [_open(height, "Bandwidth reached, of a copy's")]
    for index, (fused, unfused, timed) in enumerate(rows):
        top, was = 6 + index * _ROW, across(unfused)
        label = f"{timed.rule}, {timed.model}, {timed.shapes}"
        shown = label if len(label) <= _LONGEST else label[: _LONGEST - 1] + "…"
        parts += [
            f"<g><title>{escape(f'{label}: {unfused:.0f} to {fused:.0f} GB/s')}</title>",
            _text(_LABELS - 8, top + 11, shown, "end"),
            f'<rect class="{"good" if fused >= unfused else "bad"}" x="{_LABELS}" y="{top + 1}" '
            f'width="{across(fused) - _LABELS:.1f}" height="{_ROW - 5}" rx="1.5"/>',
            f'<line class="mark" x1="{was:.1f}" x2="{was:.1f}" y1="{top}" y2="{top + _ROW - 3}"/>',
            _text(across(max(fused, unfused)) + 5, top + 11, f"{fused:.0f}", "start"),
            "</g>",
        ]
    at = across(ceilings.bandwidth)
    parts.append(f'<line class="roof" x1="{at:.1f}" x2="{at:.1f}" y1="4" y2="{height - 24}"/>')
    parts.append(_text(at, height - 8, f"copy: {ceilings.bandwidth:.0f} GB/s", "middle"))
    return "\n".join([*parts, "</svg>"])


class _Scale:
    """A logarithmic scale from `low` to `high` onto pixels."""

    def __init__(self, low: float, high: float, first: float, last: float) -> None:
        self.low, self.high, self.first, self.last = low, high, first, last

    def __call__(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.first + (self.last - self.first) * share

    def ticks(self) -> list[float]:
        """1, 2 and 5 times powers of ten; powers of ten alone where these would be many."""
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        steps = (1,) if len(decades) > 4 else (1, 2, 5)
        return [
            step * 10.0**decade for decade in decades for step in steps if self.low <= step * 10.0**decade <= self.high
        ]


def _axes(x: _Scale, y: _Scale) -> list[str]:
    parts = []
    for tick in x.ticks():
        at = x(tick)
        parts.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{_TOP}" y2="{_HEIGHT - _BOTTOM}"/>')
        parts.append(_text(at, _HEIGHT - _BOTTOM + 16, f"{tick:g}", "middle"))
    for tick in y.ticks():
        at = y(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(_text(_LEFT - 8, at + 4, f"{tick:g}", "end"))
    parts.append(_text((_LEFT + _WIDTH) / 2, _HEIGHT - 8, "floating-point operations per byte", "middle"))
    parts.append(
        f'<text x="14" y="{_HEIGHT / 2}" text-anchor="middle" transform="rotate(-90 14 {_HEIGHT / 2})">TFLOP/s</text>'
    )
    return parts


def _open(height: float, title: str) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" width="{_WIDTH}" height="{height:.0f}" role="img" '
        f'aria-label="{escape(title)}" xmlns="http://www.w3.org/2000/svg">'
    )


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
