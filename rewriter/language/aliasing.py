"""What a replacement shares memory with: an in-place op may change only what the replacement itself has made."""

from __future__ import annotations

from collections.abc import Iterable

from rewriter.language.rule import Call, Step
from rewriter.language.syntax import Operand, variables


def private_results(steps: Iterable[Step]) -> frozenset[str]:
    """The results of a replacement whose memory no operand of it can share."""
    private: set[str] = set()
    for step in steps:
        # An alias `y = x` is one more name for something outside.
        if step.calls and all(_names(call, call.aliases) <= private for call in step.calls):
            private.update(step.targets)
    return frozenset(private)


def written_names(step: Step) -> set[str]:
    """The operands that a statement of a replacement changes in place."""
    return {name for call in step.calls for name in _names(call, call.written)}


def _names(call: Call, slots: Iterable[int]) -> set[str]:
    operands: list[Operand] = [call.operands[slot] for slot in slots]
    return {var.name for operand in operands for var in variables(operand)}
