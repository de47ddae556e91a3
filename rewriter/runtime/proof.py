"""Compares graphs with eager on a call, before they may stand in for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from rewriter.capture.compare import (
    LOSSY_LIMITS,
    REWRITE_LIMITS,
    TRACE_LIMITS,
    WIDEST_LIMITS,
    Difference,
    compare,
    working_dtype,
)
from rewriter.capture.noise import amplified_rounding
from rewriter.capture.outcome import Outcome
from rewriter.capture.recording import Recording, number_tensor
from rewriter.causes import described
from rewriter.errors import VerificationError
from rewriter.runtime.before import Before, clones
from rewriter.runtime.calls import Call
from rewriter.runtime.guilt import guilty_rule
from rewriter.runtime.program import Program, select
from rewriter.runtime.runner import FunctionRunner
from rewriter.runtime.trust import Signature

if TYPE_CHECKING:
    from rewriter.language import RuleSet

# A rewritten graph may be off by so many times what rounding alone does to the result.
_ROUNDINGS = 10.0
_MOST_NOTES = 5


class WrongTrace(VerificationError):
    """The trace itself, before any rule, does not reproduce eager."""


class WrongRule(VerificationError):
    """The rewrites of one rule do not reproduce eager."""

    def __init__(self, rule: str, problem: str) -> None:
        super().__init__(f"{problem}, due to the rule {rule} (by bisection)")
        self.rule = rule


def check_trace(
    recording: Recording,
    activations: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    before: Before,
    expected: Outcome,
    *,
    exact: bool,
) -> str | None:
    """What is wrong with the un-rewritten graph's result, or None.

    exact: the graph does what eager does, kernel by kernel; otherwise adapters are in its weights, and an error like
    that of a rewrite is accepted.
    """
    plain = FunctionRunner(recording.graph)
    with before.random.replayed():
        actual = plain(clones(activations), weights)
    dtype = working_dtype([*weights, *activations])
    limit = TRACE_LIMITS[dtype] if exact else REWRITE_LIMITS[dtype]
    found = compare(actual, expected.tensors, limit=limit, same_nonfinite=True)
    if exact or not found.too_large or found.error > WIDEST_LIMITS[dtype]:
        return found.problem
    with before.random.replayed():
        noise = amplified_rounding(plain, activations, weights, expected.tensors)
    wider = min(_ROUNDINGS * noise, WIDEST_LIMITS[dtype])
    return compare(actual, expected.tensors, limit=max(limit, wider), same_nonfinite=True).problem


def check_program(
    program: Program, numbers: Sequence[int | float], weights: Sequence[torch.Tensor], before: Before, expected: Outcome
) -> Difference:
    """How far the program is from eager's result `expected` for the call that `before` was made for.

    `weights` are the effective ones. An error above the limit is accepted where rounding alone has a like effect;
    where rules lose precision on purpose, the limit is that of what they lose.
    """
    with before.random.replayed():
        actual = program.run(clones(before.copies), numbers, weights)
    program.note_layouts(actual)
    dtype = working_dtype([*weights, *before.copies])
    allowed = _allowed(program, dtype)
    found = compare(actual, expected.tensors, limit=allowed, same_nonfinite=False)
    if not found.too_large or found.error > WIDEST_LIMITS[dtype]:
        return found
    plain = FunctionRunner(program.recording.graph)
    activations = [*before.copies, *map(number_tensor, program.live_numbers(numbers))]
    with before.random.replayed():
        noise = amplified_rounding(plain, activations, select(program.recording, weights), expected.tensors)
    limit = min(_ROUNDINGS * noise, WIDEST_LIMITS[dtype])
    if limit <= allowed:
        return found
    wider = compare(actual, expected.tensors, limit=limit, same_nonfinite=False)
    if wider.problem is None:
        note = f"rounding alone changes this network's result by up to {noise:.1g}, so {wider.error:.1g} was accepted"
        program.messages = (*program.messages, note)[-_MOST_NOTES:]
    return wider


def judge(
    program: Program,
    rules: RuleSet,
    numbers: Sequence[int | float],
    weights: Sequence[torch.Tensor],
    before: Before,
    expected: Outcome,
) -> Difference:
    """As `check_program`, of a program that has just been made of `rules`.

    Raises VerificationError where it does not reproduce eager or raises, WrongRule where that is due to one rule.
    """
    try:
        found = check_program(program, numbers, weights, before, expected)
    except torch.OutOfMemoryError:
        raise
    # Of an op that a rule calls, whatever it raises.
    except Exception as error:
        problem: str | None = f"the rewritten graph failed with {described(error)}"
    else:
        problem = found.problem and f"the rewritten graph does not reproduce eager: {found.problem}"
    if not problem:
        return found
    limit = _allowed(program, working_dtype([*weights, *before.copies]))

    def worse(actual: Sequence[torch.Tensor], plain: Sequence[torch.Tensor]) -> bool:
        return compare(actual, plain, limit=limit, same_nonfinite=False).problem is not None

    rule = guilty_rule(program, rules, before, numbers, weights, worse)
    raise VerificationError(problem) if rule is None else WrongRule(rule, problem)


def distance(program: Program, call: Call, before: Before, result: Any) -> str | None:
    """What is wrong with the program's result for a call whose eager result is `result`, or None."""
    try:
        expected = before.outcome(result)
        if expected.form != program.recording.outcome.form:
            return "another structure is returned"
        return check_program(program, call.flat.numbers, call.weights, before, expected).problem
    except Exception as error:
        return described(error)


def _allowed(program: Program, dtype: torch.dtype) -> float:
    """The error that rewriting may bring, or what the program's rules lose on purpose."""
    return max([REWRITE_LIMITS[dtype], *(LOSSY_LIMITS[loss] for loss in program.losses)])


def shapes(signature: Signature) -> str:
    """Extents as they stand in a message: `[2, 4, 16, 16], [2, 7, 32]`."""
    return ", ".join(str(list(shape)) for shape in signature)
