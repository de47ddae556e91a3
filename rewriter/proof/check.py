"""Proves a rule by examples drawn from its own entry, and shrinks the one that fails."""

from __future__ import annotations

import dataclasses
import math
import random
import time
import zlib
from collections import Counter
from collections.abc import Callable

import hypothesis
from hypothesis import strategies as st

from rewriter.language.conditions import VALUE_CLASSES
from rewriter.language.rule import Rule
from rewriter.ops import providers
from rewriter.ops.registry import OPS, REFERENCE
from rewriter.proof.cause import diagnosed
from rewriter.proof.drawing import Repeated, drawn, empty, simpler
from rewriter.proof.fused import GRAPH, ops_of
from rewriter.proof.oracle import InvalidExample
from rewriter.proof.outcome import Example, Failure, Proof
from rewriter.proof.sample import ImpossibleSample, dtypes_of
from rewriter.proof.trial import Result, trial_of

__all__ = ["Result", "dtypes_of", "prove", "providers_of", "run_example"]

# Further examples that may be tried once one has failed, to find a smaller one.
_SHRINKING = 150
# And for how many seconds.
_SHRINKING_SECONDS = 20.0
# Different extents and layouts among the examples of a proof where kernels are compiled for them.
_SETTINGS = 11
# Elements of an operand where a kernel runs in an interpreter, which takes milliseconds for each block.
_INTERPRETED = 2**12
# How many examples a provider may refuse before it is taken to refuse all.
_REFUSED = 100
# And on a GPU, at first and for each one taken, before it is taken to refuse most. If it took none, it gets large ones.
_SMALL = 20
# Elements of an operand of those.
_LARGE = 2**20
# So many may be refused with those for more than one reason, as long as the search has not taken so many seconds: a
# kernel for attention without a mask, with heads of two sizes, takes one large example in 26. It refuses all of 80 in
# every 23rd proof, and all of 380 in one of three million.
_REFUSED_LARGE, _SEARCHING_SECONDS = 400, 20.0


def providers_of(rule: Rule, device: str) -> tuple[str, ...]:
    """The references first ("torch"), then each other provider of an op of the replacement; "graph" where it has none.

    Empty where the rule is for CPUs and `device` is none: ops that only a CPU has.
    """
    if not device.startswith("cpu") and rule.devices == ("cpu",):
        return ()
    ops = ops_of(rule)
    if not ops:
        return (GRAPH,)
    providers.load()
    return tuple(dict.fromkeys([REFERENCE, *(name for op in ops for name in OPS[op].providers)]))


def run_example(rule: Rule, example: Example, *, device: str = "cpu", provider: str = REFERENCE) -> Result | Failure:
    """One example, all checks.

    Raises InvalidExample where the pattern refuses it, ImpossibleSample where its dims make no tensors.
    """
    trial = trial_of(rule, example, device, provider)
    outcome = trial.run()
    return diagnosed(trial, outcome) if isinstance(outcome, Failure) else outcome


def prove(
    rule: Rule,
    *,
    dtype: str,
    provider: str = REFERENCE,
    device: str = "cpu",
    examples: int = 50,
    seed: int | None = None,
    seconds: float | None = None,
    watch: Callable[[Example], None] = lambda _: None,
) -> Proof:
    """Runs that many examples, or fewer where one fails: that is shrunk and explained.

    Examples that the pattern itself refuses, or the provider, are drawn again, within bounds. A proof with no
    examples and no failure is one of a provider that takes none. `seed`: None draws the same examples each time.
    `seconds`: after which no further example is begun. `watch` is told of each example before it runs.
    """
    end = math.inf if seconds is None else time.monotonic() + seconds
    return _Search(rule, dtype, provider, device, watch, end).run(examples, seed)


@dataclasses.dataclass(slots=True)
class _Search:
    rule: Rule
    dtype: str
    provider: str
    device: str
    watch: Callable[[Example], None]
    end: float
    attempts: int = 0
    examples: int = 0
    refusals: Counter[str] = dataclasses.field(default_factory=Counter)
    worst: float = 0.0
    ratio: float = 0.0
    invalid: str = ""
    rare: bool = False
    large: bool = False
    patience: float = math.inf

    def run(self, examples: int, seed: int | None) -> Proof:
        failure = None
        names = f"{self.rule.id} {self.dtype} {self.provider}"
        try:
            self.search(examples, zlib.crc32(names.encode()) if seed is None else seed)
            for example in empty(self.rule, self.dtype):
                self.attempt(example, counts=False)
        except _Refuted as refuted:
            failure = self.explained(self.shrunk(refuted.failure))
        except (_Refused, _Late):
            pass
        except _Broken as broken:
            raise broken.error from None
        except hypothesis.errors.Unsatisfiable:
            failure = None if self.refusals else self.without_example()
        return Proof(
            rule=self.rule.id,
            dtype=self.dtype,
            device=self.device,
            provider=self.provider,
            examples=self.examples,
            unsupported=self.refusals.total(),
            refusal=next((reason for reason, _ in self.refusals.most_common(1)), None),
            worst=self.worst,
            ratio=self.ratio,
            failure=failure,
        )

    def search(self, examples: int, seed: int) -> None:
        kernels = self.provider not in (REFERENCE, GRAPH)
        interpreted = _INTERPRETED if kernels and self.device == "cpu" else None
        # On a GPU each new set of extents and strides is compiled for, which takes longer than all else.
        compiled = self.device != "cpu" and self.provider.endswith("triton")
        repeated = Repeated(max(_SETTINGS, examples // len(VALUE_CLASSES)))
        self.patience = time.monotonic() + _SEARCHING_SECONDS

        # One number stands for everything: given many, hypothesis makes new examples of old ones' parts, and most of
        # the extents and classes would come up in few of them.
        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=examples,
            deadline=None,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
            phases=(hypothesis.Phase.generate,),
            verbosity=hypothesis.Verbosity.quiet,
        )
        @hypothesis.given(st.integers(0, 2**63 - 1))
        def run(number: int) -> None:
            if time.monotonic() > self.end:
                raise _Late
            chooser = random.Random(number)
            # Every other one, and each class of values in its turn; all, until a large one is taken.
            searching = self.large and not self.examples
            plain = searching or (kernels and sum(divmod(self.attempts, len(VALUE_CLASSES))) % 2 == 1)
            large = plain and self.large
            most = _LARGE if large else interpreted
            example = drawn(self.rule, self.dtype, chooser, self.attempts, most=most, plain=plain, large=large)
            # What is seldom taken is not looked for anew each time.
            repeating = compiled or self.rare
            if repeating:
                example = repeated.of(example)
            self.attempts += 1
            try:
                ran = self.attempt(example)
            except Exception as error:
                raise _Broken(error) from error
            if repeating:
                repeated.judge(ran)
            if not ran:
                hypothesis.reject()

        run()

    def attempt(self, example: Example, *, counts: bool = True) -> bool:
        """Whether the example ran. Raises _Refuted where it fails, _Refused where the provider takes none of many."""
        outcome = self.outcome(example)
        if isinstance(outcome, Failure):
            if outcome.kind == "does not fire" and not counts:
                # Not an example of the entry's, which begins at 1.
                return False
            raise _Refuted(outcome)
        if outcome is None:
            return False
        if outcome.refusal is not None:
            if not counts:
                return False
            self.refusals[outcome.refusal] += 1
            refused = self.refusals.total()
            patient = self.large and len(self.refusals) > 1 and time.monotonic() < self.patience
            if not self.examples and refused >= (_REFUSED_LARGE if patient else _REFUSED):
                raise _Refused
            self.rare |= self.device != "cpu" and refused >= _SMALL * (1 + self.examples)
            # Some kernels are for many rows only.
            self.large |= self.rare and not self.examples
            return False
        self.examples += counts
        self.worst = max(self.worst, outcome.share)
        self.ratio = max(self.ratio, outcome.ratio)
        return True

    def outcome(self, example: Example) -> Result | Failure | None:
        """None where the pattern does not run."""
        self.watch(example)
        try:
            return trial_of(self.rule, example, self.device, self.provider).run()
        except (InvalidExample, ImpossibleSample) as error:
            self.invalid = f"{error} ({example})"
            return None

    def shrunk(self, failure: Failure) -> Failure:
        """The same kind of failure on the simplest example that is found by taking away one thing after the other."""
        tried: set[Example] = set()
        end = time.monotonic() + _SHRINKING_SECONDS
        again = True
        while again:
            again = False
            assert failure.example is not None
            for example in simpler(self.rule, failure.example):
                if example == failure.example or example in tried or len(tried) >= _SHRINKING or time.monotonic() > end:
                    continue
                tried.add(example)
                outcome = self.outcome(example)
                if isinstance(outcome, Failure) and outcome.kind == failure.kind:
                    failure, again = outcome, True
                    break
        return failure

    def explained(self, failure: Failure) -> Failure:
        """With what the operands tell."""
        assert failure.example is not None
        outcome = run_example(self.rule, failure.example, device=self.device, provider=self.provider)
        return outcome if isinstance(outcome, Failure) else failure

    def without_example(self) -> Failure:
        return Failure(
            kind="no example",
            message=f"no operands that the pattern takes can be drawn from `inputs` and `dims`: {self.invalid}",
            example=None,
            operands="",
        )


# Not exceptions that hypothesis would catch, to run the example again.
class _Refuted(BaseException):
    def __init__(self, failure: Failure) -> None:
        self.failure = failure


class _Refused(BaseException):
    """The provider takes none of many examples."""


class _Broken(BaseException):
    """Something else went wrong: hypothesis would try to have it again, and say no more than that it could not."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class _Late(BaseException):
    """The time is over."""
