"""Finds the rule to which a wrong result of a graph is due, or that it raises."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from rewriter.capture.compare import compare
from rewriter.capture.recording import number_tensor
from rewriter.runtime.before import Before, clones
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
    before: Before,
    numbers: Sequence[int | float],
    weights: Sequence[torch.Tensor],
    worse: Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor]], bool],
) -> str | None:
    """The rule whose rewrites make the program's result for this call `worse` than the plain graph's, or have it raise.

    None where it is none. By bisection: the rules that the program keeps are applied to its recording up to the first
    that makes the difference. Costs some rewrites and calls of the graph. `weights`: as for `program.run`.
    """
    from rewriter.graph import engine
    from rewriter.language import RuleSet

    recording = program.recording
    chosen = select(recording, weights)
    activations = [*before.copies, *map(number_tensor, program.live_numbers(numbers))]
    with before.random.replayed():
        plain = FunctionRunner(recording.graph)(clones(activations), chosen)

    def broken(some: Sequence[Rule]) -> bool:
        try:
            rewritten = engine.rewrite(
                recording.graph, RuleSet(tuple(some)), weights=len(chosen), target=program.target
            )
            names = [str(index) for index in range(len(chosen))]
            prepared = PreparedWeights(rewritten.prepared, names, chosen, PreparedStore())
            run = FunctionRunner(rewritten.graph)
            with before.random.replayed():
                found = run(clones(activations), [*chosen, *prepared.refresh(chosen, None)])
        except torch.OutOfMemoryError:
            # Nothing is known then: weights are prepared a second time here.
            raise
        # Of an op that the rule calls, whatever it raises.
        except Exception:
            return True
        return worse(found, plain)

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
