"""Whether a rule's mutants survive: the rule refuses each, or is right for it; with each as its pattern, it fails."""

from __future__ import annotations

import dataclasses

import torch

from rewriter.language.conditions import VALUE_CLASSES
from rewriter.language.rule import Rule
from rewriter.ops.registry import REFERENCE
from rewriter.proof.mutants import Mutant, mutants
from rewriter.proof.mutants_program import complete
from rewriter.proof.oracle import InvalidExample, Unfused, exact_outputs, unfused
from rewriter.proof.outcome import Example, Failure
from rewriter.proof.program import PatternModule
from rewriter.proof.sample import ImpossibleSample, draw, dtypes_of
from rewriter.proof.trial import Result, Trial

# Of program mutants: two draws, so that a lucky extent hides nothing.
_SEEDS = (1, 2)
# Of rule mutants: as many as it takes until one fails, at most two of each value class.
_EXAMPLES = 2 * len(VALUE_CLASSES)
# How near two results in f64 are that compute the same in another order.
_SAME = 1e-9


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What became of a mutant.

    `outcome`: "refused" or "right" for a mutated program, "rejected" for a mutated rule, "survived" for either,
    "equivalent" for a pattern that computes the same as the rule's own, "impossible" for what does not run at all.
    """

    outcome: str
    reason: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Survivor:
    """A mutant and what it got away with, or why it is none."""

    mutant: Mutant
    reason: str

    def __str__(self) -> str:
        return f"{self.mutant}\n  {self.reason}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """How many of a rule's mutants were killed, of all that run and compute something else; the others by name."""

    rule: str
    dtype: str
    killed: int
    total: int
    survivors: tuple[Survivor, ...]
    equivalent: tuple[Survivor, ...]

    def __str__(self) -> str:
        return f"{self.killed} of {self.total}"


def score(rule: Rule, *, dtype: str | None = None, device: str = "cpu") -> Score:
    """Examines every mutant of a rule, by default in the first dtype in which it is proved.

    The same rule has the same score every time. Raises ValueError for a rule that no dtype fits.
    """
    if dtype is None:
        dtypes = dtypes_of(rule)
        if not dtypes:
            raise ValueError(f"rule {rule.id}: found no dtype that its `where` and `inputs` both allow, expected one")
        dtype = dtypes[0]
    killed = 0
    found: dict[str, list[Survivor]] = {"survived": [], "equivalent": []}
    for mutant in mutants(rule):
        verdict = examine(rule, mutant, dtype=dtype, device=device)
        killed += verdict.outcome in ("refused", "right", "rejected")
        if verdict.outcome in found:
            found[verdict.outcome].append(Survivor(mutant=mutant, reason=verdict.reason))
    return Score(
        rule=rule.id,
        dtype=dtype,
        killed=killed,
        total=killed + len(found["survived"]),
        survivors=tuple(found["survived"]),
        equivalent=tuple(found["equivalent"]),
    )


def examine(rule: Rule, mutant: Mutant, *, dtype: str, device: str = "cpu") -> Verdict:
    """What becomes of one mutant of the rule in one dtype."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if mutant.of == "rule":
            return _examine_rule(rule, mutant, dtype, device)
        return _examine_program(rule, mutant, dtype, device)


def _examine_rule(rule: Rule, mutant: Mutant, dtype: str, device: str) -> Verdict:
    examples = [
        Example(seed=seed, dtype=dtype, values=VALUE_CLASSES[seed % len(VALUE_CLASSES)], layout=None, choice=0)
        for seed in range(_EXAMPLES)
    ]
    ran: list[Example] = []
    refused: list[Example] = []
    for example in examples:
        outcome = _tried(mutant.entry, mutant, example, device)
        if isinstance(outcome, Failure):
            return Verdict(outcome="rejected", reason=f"{outcome.kind}: {outcome.message}")
        (refused if outcome is None else ran).append(example)
    if not ran:
        return Verdict(outcome="impossible", reason="the pattern does not run on any draw")
    if any(_plain(complete(rule), mutant, example) is not None for example in refused):
        return Verdict(outcome="rejected", reason="the pattern does not run on all that its entry draws")
    if all(_computes_the_same(rule, mutant, example) for example in ran):
        return Verdict(outcome="equivalent", reason="it computes what the rule's own pattern computes")
    return Verdict(outcome="survived", reason=f"the rule with this pattern passes its proof in {dtype}")


def _plain(program: Rule, mutant: Mutant, example: Example) -> tuple[PatternModule, Unfused] | None:
    """A pattern run on what the mutated entry draws; None where it refuses that."""
    try:
        sample = draw(mutant.entry, seed=example.seed, dtype=example.dtype, values=example.values)
        module = PatternModule(program, sample)
        return module, unfused(module)
    except (ImpossibleSample, InvalidExample):
        return None


def _computes_the_same(rule: Rule, mutant: Mutant, example: Example) -> bool:
    """Whether the pattern and the mutated one give the same shapes, dtypes and, in f64, numbers."""
    runs = [_plain(program, mutant, example) for program in (complete(rule), mutant.entry)]
    (one, other) = [(plain.outputs, exact_outputs(module, plain)) for module, plain in filter(None, runs)]
    return all(
        (left.shape, left.dtype) == (right.shape, right.dtype) for left, right in zip(one[0], other[0], strict=True)
    ) and all(
        torch.allclose(left, right, rtol=_SAME, atol=0.0, equal_nan=True)
        for left, right in zip(one[1], other[1], strict=True)
    )


def _examine_program(rule: Rule, mutant: Mutant, dtype: str, device: str) -> Verdict:
    verdict = Verdict(outcome="impossible", reason="it does not run on any draw")
    for seed in _SEEDS:
        example = Example(seed=seed, dtype=dtype, values="normal", layout="contiguous", choice=0)
        found = _run(rule, mutant, example, device)
        if found is None:
            continue
        # What refuses a pattern refuses it for all extents; what refuses operands may let others pass.
        if found.outcome == "survived" or (found.outcome == "refused" and mutant.alter is None):
            return found
        if verdict.outcome != "right":
            verdict = found
    return verdict


def _run(rule: Rule, mutant: Mutant, example: Example, device: str) -> Verdict | None:
    """The rule on one draw of a mutated program; None where that does not run."""
    outcome = _tried(rule, mutant, example, device)
    if outcome is None:
        return None
    if not isinstance(outcome, Failure):
        return Verdict(outcome="right", reason="the rule fires and is right")
    if outcome.kind == "does not fire":
        return Verdict(outcome="refused", reason=outcome.message)
    return Verdict(
        outcome="survived", reason=f"the rule fires: {outcome.kind}: {outcome.message}, on {outcome.operands}"
    )


def _tried(rule: Rule, mutant: Mutant, example: Example, device: str) -> Result | Failure | None:
    """The rule on the mutant's program, with the references of all ops; None where the program does not run."""
    try:
        sample = draw(
            mutant.entry,
            seed=example.seed,
            dtype=example.dtype,
            values=example.values,
            layout=example.layout,
            device=device,
        )
        operands = mutant.alter(dict(sample.operands)) if mutant.alter is not None else sample.operands
        if operands is None:
            return None
        sample = dataclasses.replace(sample, operands=operands)
        return Trial(rule, example, sample, device=device, provider=REFERENCE, program=mutant.entry).run()
    except (ImpossibleSample, InvalidExample, AttributeError):
        # The references read attributes of operands that their schemas call optional and a program may leave out.
        return None
