"""Compiling several calls ahead in one go."""

from __future__ import annotations

from collections.abc import Iterable

from rewriter.ops.triton.ahead import Compilation, Target


def compile_ahead(tasks: Iterable[str], target: Target, processes: int | None = None) -> int:
    """How many compiled."""
    compilation = Compilation(target, processes)
    for each in tasks:
        compilation.add(each)
    return compilation.wait()
