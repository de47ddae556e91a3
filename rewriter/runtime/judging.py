"""Compares programs with eager in later calls, and draws the consequences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from rewriter.runtime.before import Before
from rewriter.runtime.calls import Call
from rewriter.runtime.guard import Guard
from rewriter.runtime.guilt import guilty_rule, more_nonfinite
from rewriter.runtime.journal import Journal
from rewriter.runtime.library import Library
from rewriter.runtime.making import Maker
from rewriter.runtime.merging import Merging
from rewriter.runtime.program import Options, Program
from rewriter.runtime.proof import distance, shapes


class Judge:
    """That of one component. guard: looks at what programs return, without a comparison."""

    def __init__(self, options: Options, library: Library, merging: Merging, maker: Maker, journal: Journal) -> None:
        self.guard = Guard()
        self._options, self._library, self._merging = options, library, merging
        self._maker, self._journal = maker, journal

    def holds(self, program: Program, call: Call, before: Before, result: Any) -> bool:
        """Whether the program gives `result` too, which eager has returned for the call since `before`.

        If so it need not be asked again for calls like this one; if not, it is not used for them.
        """
        problem = before.change()
        if not problem:
            declined = self._merging.resolve(call)
            problem = declined.reason if declined is not None else distance(program, call, before, result)
        if not problem:
            program.trust.prove(call.signature, program.live_numbers(call.flat.numbers))
            self._merging.prove(call)
        elif not self._merging.refuse(call, problem):
            self._disprove(program, call, problem)
        return not problem

    def convict(
        self, program: Program, call: Call, tensors: Sequence[torch.Tensor], before: Before, result: Any
    ) -> str | None:
        """What follows from NaN or Inf in `tensors`, which the program has returned, and eager `result` in its place.

        None where eager returns the like. Otherwise the program goes, and with it the rule that is to blame.
        """
        if not more_nonfinite(tensors, before.outcome(result).tensors):
            self.guard.agree(program, call.flat.tensors)
            return None
        rule = guilty_rule(program, self._options.rules, before, call.flat.numbers, call.weights, more_nonfinite)
        self._library.drop(program)
        problem = "the rewritten graph returned NaN or Inf where eager does not"
        if rule is None:
            self._library.fail(call, problem)
            self._journal.reason = problem
            consequence = f"{problem}, and no rule alone is to blame; calls like this one run eagerly from now on"
        else:
            self._maker.leave_out(rule)
            consequence = f"{problem}, due to the rule {rule} (by bisection), which is left out from now on"
        self._journal.note(consequence)
        return consequence

    def _disprove(self, program: Program, call: Call, problem: str) -> None:
        trust = program.trust
        changed = trust.changed_numbers(program.live_numbers(call.flat.numbers))
        if changed and trust.shape_proved(call.signature):
            positions = [index for index, live in enumerate(program.live) if live]
            for position in changed:
                call.plan.live[positions[position]] = False
                self._journal.note(f"{call.plan.paths[positions[position]]} does not stay live: {problem}")
            self._library.drop(program)
        else:
            trust.refuse(call.signature)
            self._journal.note(f"the graph does not hold for the shapes {shapes(call.signature)}: {problem}")
