"""Compares a program with eager on a call that it was not made from."""

from __future__ import annotations

from typing import Any

from rewriter.capture.compare import REWRITE_LIMITS, compare, working_dtype
from rewriter.runtime.before import Before, clones
from rewriter.runtime.calls import Call, read_result
from rewriter.runtime.program import Program
from rewriter.runtime.trust import Signature


def distance(program: Program, call: Call, before: Before, result: Any) -> str | None:
    """What is wrong with the program's result for a call whose eager result is `result`, or None."""
    weights = call.snapshot.weights
    try:
        expected = read_result(result)
        with before.random.replayed():
            actual = program.run(clones(before.copies), call.flat.numbers, weights)
    except Exception as error:
        return describe(error)
    if expected.structure != program.outputs:
        return "another structure is returned"
    limit = REWRITE_LIMITS[working_dtype([*weights, *before.copies])]
    return compare(actual, expected.tensors, limit=limit, same_nonfinite=False).problem


def describe(error: Exception) -> str:
    """An exception in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # The interpreter of graphs puts a traceback before the message.
    message = lines[-1].removeprefix("RuntimeError: ") if lines else "no message"
    return f"{type(error).__name__}: {message}"


def shapes(signature: Signature) -> str:
    """Extents as they stand in a message: `[2, 4, 16, 16], [2, 7, 32]`."""
    return ", ".join(str(list(shape)) for shape in signature)
