"""Whether a rule's entry allows its proof: operands can be drawn that its pattern takes and that it fires on."""

from __future__ import annotations

from rewriter.errors import RuleError
from rewriter.language.conditions import LAYOUTS, VALUE_CLASSES
from rewriter.language.rule import Rule
from rewriter.ops.registry import REFERENCE
from rewriter.proof.oracle import InvalidExample
from rewriter.proof.outcome import Example, Failure
from rewriter.proof.sample import ImpossibleSample, dtypes_of
from rewriter.proof.trial import trial_of

# Draws in each dtype, of which one has to run.
_DRAWS = 20
# Kinds of failures that leave nothing to prove, unlike a wrong result: that is what the proof is for.
_SAID = {"does not fire": "does not fire on", "not called": "is not called on", "raises": "raises on"}


def unprovable(rule: Rule) -> RuleError | None:
    """What is in the way of the rule's proof, found by running an example in each dtype on the CPU; None for nothing.

    A pattern of ops without a CPU implementation cannot be judged here and passes.
    """
    dtypes = dtypes_of(rule)
    if not dtypes:
        return _error(rule, "no dtype that both `inputs` and `where` allow", "operands in one floating dtype")
    for dtype in dtypes:
        problem = _problem(rule, dtype)
        if problem is not None:
            return problem
    return None


def _problem(rule: Rule, dtype: str) -> RuleError | None:
    last: RuleError | None = None
    for seed in range(_DRAWS):
        example = Example(seed=seed, dtype=dtype, values=VALUE_CLASSES[0], layout=LAYOUTS[0], choice=0)
        try:
            outcome = trial_of(rule, example, "cpu", REFERENCE).run()
        except ImpossibleSample as error:
            last = _error(rule, str(error).partition(": ")[2], "`dims` that make a shape of every operand")
            continue
        except InvalidExample as error:
            if isinstance(error.__cause__, NotImplementedError):
                return None
            last = _error(rule, f"operands that the pattern refuses in {dtype}: {error}", "`inputs` that it takes")
            continue
        if not isinstance(outcome, Failure) or outcome.kind not in _SAID:
            return None
        found = f"a rule that {_SAID[outcome.kind]} its own `inputs`: {outcome.message}; drawn: {outcome.operands}"
        return _error(rule, found, "`inputs` and `dims` that draw what `match` and `where` ask for")
    return last


def _error(rule: Rule, found: str, expected: str) -> RuleError:
    return RuleError(
        "no proof can be generated from its entry",
        position=rule.position,
        rule=rule.id,
        found=found,
        expected=expected,
    )
