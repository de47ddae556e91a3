"""Finds the rule to which NaN or Inf in a graph's result is due."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from rewriter.capture.compare import compare
from rewriter.capture.recording import number_tensor
from rewriter.runtime.before import clones
from rewriter.runtime.prepared import PreparedStore, PreparedWeights
from rewriter.runtime.program import Program, select
from rewriter.runtime.runner import FunctionRunner

if TYPE_CHECKING:
    from rewriter.language import RuleSet
    from rewriter.language.rule import Rule


def more_nonfinite(actual: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> bool:
    """Whether `actual` has NaN or Inf where `expected` has none."""
    return compare(actual, expected, limit=math.inf, same_nonfinite=False).problem is not None


def guilty_rule(
    program: Program,
    rules: RuleSet,
    tensors: Sequence[torch.Tensor],
    numbers: Sequence[int | float],
    weights: Sequence[torch.Tensor],
) -> str | None:
    """The rule whose rewrites bring NaN or Inf into the program's result for this call, or None where it is none.

    By bisection: the rules that the program keeps are applied to its recording up to the first that makes the
    difference. Costs some rewrites and calls of the graph. `weights`: as for `program.run`.
    """
    from rewriter.graph import engine
    from rewriter.language import RuleSet

    recording = program.recording
    chosen = select(recording, weights)
    activations = [*tensors, *map(number_tensor, program.live_numbers(numbers))]
    plain = FunctionRunner(recording.graph)(clones(activations), chosen)

    def broken(some: Sequence[Rule]) -> bool:
        rewritten = engine.rewrite(recording.graph, RuleSet(tuple(some)), weights=len(chosen), target=program.target)
        names = [str(index) for index in range(len(chosen))]
        prepared = PreparedWeights(rewritten.prepared, names, chosen, PreparedStore())
        run = FunctionRunner(rewritten.graph)
        return more_nonfinite(run(clones(activations), [*chosen, *prepared.refresh(chosen, None)]), plain)

    kept = {rule for rule, is_kept in program.rewritten.rewrites if is_kept}
    candidates = [rule for rule in rules if rule.id in kept]
    if not candidates or not broken(candidates):
        return None
    clean, bad = 0, len(candidates)
    while bad - clean > 1:
        middle = (clean + bad) // 2
        if broken(candidates[:middle]):
            bad = middle
        else:
            clean = middle
    return candidates[bad - 1].id
