"""Results as rows of a table, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from rewriter.bench.ceilings import Ceilings
from rewriter.bench.modes import EAGER
from rewriter.bench.runs import Result
from rewriter.bench.timing import Memory

Rows = list[tuple[str, ...]]


def mode_rows(results: Sequence[Result], flops: int | None, ceilings: Ceilings | None) -> Rows:
    """A head and a row per mode. Columns that no mode has a figure for are left out."""
    eager = next((result for result in results if result.mode == EAGER), None)
    head = (
        "MODE",
        "MEDIAN",
        "10..90 %",
        "IT/S",
        "SPEED",
        "TFLOP/S",
        "ENERGY",
        "LIMITED",
        "FIRST",
        "READY",
        "PEAK",
        "RESERVED",
        "ON TOP",
        "VS EAGER",
        "VS F32",
    )
    rows = [head, *(_mode_row(result, eager, flops, ceilings) for result in results)]
    used = [index for index in range(len(head)) if index < 2 or any(row[index] for row in rows[1:])]
    return [tuple(row[index] for index in used) for row in rows]


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """The same rows in Markdown, all but the first column aligned to the right."""
    head, *body = rows
    bars = ["---", *("---:" for _ in head[1:])]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in (head, bars, *body))


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """The same rows as text, all but the first column aligned to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def _mode_row(result: Result, eager: Result | None, flops: int | None, ceilings: Ceilings | None) -> tuple[str, ...]:
    times, memory = result.times, result.memory
    if result.failure or times is None:
        return (result.title, "failed", *("" for _ in range(13)))
    base = eager.memory if eager is not None else None
    rate = flops / times.median / 1e12 if flops else None
    return (
        result.title,
        f"{times.median * 1e3:.3f} ms",
        f"{times.low * 1e3:.3f}..{times.high * 1e3:.3f}",
        f"{1 / times.median:.2f}",
        f"{times.speed:.2f}x",
        "" if rate is None else f"{rate:.3g}{f' ({rate / ceilings.tflops:.0%})' if ceilings else ''}",
        "" if times.joules is None else f"{times.joules:.3g} J",
        "" if times.held_back is None else f"{times.held_back:.0%}",
        "" if result.first_seconds is None else f"{result.first_seconds:.1f} s",
        "" if result.ready_seconds is None else f"{result.ready_seconds:.1f} s",
        _size(_peak(memory), _peak(base)),
        _size(_reserved(memory), _reserved(base)),
        "" if memory is None or memory.peak is not None else _size(memory.extra, None),
        _error(result.error_eager, None),
        _error(result.error_f32, eager.error_f32 if eager is not None else None),
    )


def _peak(memory: Memory | None) -> int | None:
    return None if memory is None else memory.peak


def _reserved(memory: Memory | None) -> int | None:
    return None if memory is None else memory.reserved


def _size(count: int | None, base: int | None) -> str:
    if count is None:
        return ""
    text = f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"
    return f"{text} {count / base:.2f}x" if base else text


def _error(error: float | None, base: float | None) -> str:
    if error is None:
        return ""
    return f"{error:.1e} {error / base:.2f}x" if base else f"{error:.1e}"
