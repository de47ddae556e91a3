"""Compares graphs with eager on a call, before they may stand in for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rewriter.capture.compare import (
    REWRITE_LIMITS,
    TRACE_LIMITS,
    WIDEST_LIMITS,
    Difference,
    compare,
    working_dtype,
)
from rewriter.capture.noise import amplified_rounding
from rewriter.capture.recording import Recording, number_tensor
from rewriter.capture.structure import Flat
from rewriter.errors import VerificationError
from rewriter.runtime.before import Before, clones
from rewriter.runtime.calls import Call, read_result
from rewriter.runtime.program import Program, select
from rewriter.runtime.runner import FunctionRunner
from rewriter.runtime.trust import Signature

# A rewritten graph may be off by so many times what rounding alone does to the result.
_ROUNDINGS = 10.0
_MOST_NOTES = 5


class WrongTrace(VerificationError):
    """The trace itself, before any rule, does not reproduce eager."""


def check_trace(
    recording: Recording,
    activations: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    before: Before,
    expected: Flat,
) -> str | None:
    """What is wrong with the un-rewritten graph's result, or None."""
    with before.random.replayed():
        actual = FunctionRunner(recording.graph)(clones(activations), weights)
    limit = TRACE_LIMITS[working_dtype([*weights, *activations])]
    return compare(actual, expected.tensors, limit=limit, same_nonfinite=True).problem


def check_program(
    program: Program, numbers: Sequence[int | float], weights: Sequence[torch.Tensor], before: Before, expected: Flat
) -> Difference:
    """How far the program is from eager's result `expected` for the call that `before` was made for.

    `weights` are the snapshot's. An error above the limit is accepted where rounding alone has a like effect.
    """
    with before.random.replayed():
        actual = program.run(clones(before.copies), numbers, weights)
    dtype = working_dtype([*weights, *before.copies])
    found = compare(actual, expected.tensors, limit=REWRITE_LIMITS[dtype], same_nonfinite=False)
    if not found.too_large or found.error > WIDEST_LIMITS[dtype]:
        return found
    plain = FunctionRunner(program.recording.graph)
    activations = [*before.copies, *map(number_tensor, program.live_numbers(numbers))]
    with before.random.replayed():
        noise = amplified_rounding(plain, activations, select(program.recording, weights), expected.tensors)
    limit = min(_ROUNDINGS * noise, WIDEST_LIMITS[dtype])
    if limit <= REWRITE_LIMITS[dtype]:
        return found
    wider = compare(actual, expected.tensors, limit=limit, same_nonfinite=False)
    if wider.problem is None:
        note = f"rounding alone changes this network's result by up to {noise:.1g}, so {wider.error:.1g} was accepted"
        program.messages = (*program.messages, note)[-_MOST_NOTES:]
    return wider


def distance(program: Program, call: Call, before: Before, result: Any) -> str | None:
    """What is wrong with the program's result for a call whose eager result is `result`, or None."""
    try:
        expected = read_result(result)
        if expected.structure != program.outputs:
            return "another structure is returned"
        return check_program(program, call.flat.numbers, call.snapshot.weights, before, expected).problem
    except Exception as error:
        return describe(error)


def describe(error: Exception) -> str:
    """An exception in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    # The interpreter of graphs puts a traceback before the message.
    message = lines[-1].removeprefix("RuntimeError: ") if lines else "no message"
    return f"{type(error).__name__}: {message}"


def shapes(signature: Signature) -> str:
    """Extents as they stand in a message: `[2, 4, 16, 16], [2, 7, 32]`."""
    return ", ".join(str(list(shape)) for shape in signature)
