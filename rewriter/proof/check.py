"""Proves a rule by examples drawn from its own entry, and shrinks the one that fails."""

from __future__ import annotations

import dataclasses
import math
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import hypothesis
from hypothesis import strategies as st

from rewriter.language.conditions import LAYOUTS, VALUE_CLASSES, TensorInput
from rewriter.language.rule import Rule
from rewriter.ops import providers
from rewriter.ops.registry import OPS, REFERENCE
from rewriter.proof.cause import diagnosed
from rewriter.proof.fused import GRAPH, ops_of
from rewriter.proof.oracle import InvalidExample
from rewriter.proof.outcome import Example, Failure, Proof
from rewriter.proof.sample import ImpossibleSample, dtypes_of, layouts_of
from rewriter.proof.trial import Result, trial_of

__all__ = ["Result", "dtypes_of", "prove", "providers_of", "run_example"]

# Further examples that may be tried once one has failed, to find a smaller one.
_SHRINKING = 150
# Elements of an operand where a kernel runs in an interpreter, which takes milliseconds for each block.
_INTERPRETED = 2**13
# How many examples a provider may refuse before it is taken to refuse all.
_REFUSED = 50


def providers_of(rule: Rule, device: str) -> tuple[str, ...]:
    """The references first ("torch"), then each other provider of an op of the replacement; "graph" where it has none.

    None where the rule is for another kind of device than `device`, and its ops run only there.
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
    watch: Callable[[Example], None] = lambda _: None,
) -> Proof:
    """Runs that many examples, or fewer where one fails: that is shrunk and explained.

    Examples that the pattern itself refuses, or the provider, are drawn again, within bounds. A proof with no
    examples and no failure is one of a provider that takes none. `seed`: None draws the same examples each time.
    `watch` is told of each example before it runs.
    """
    return _Search(rule, dtype, provider, device, watch).run(examples, seed)


@dataclasses.dataclass(slots=True)
class _Search:
    rule: Rule
    dtype: str
    provider: str
    device: str
    watch: Callable[[Example], None]
    examples: int = 0
    unsupported: int = 0
    worst: float = 0.0
    ratio: float = 0.0
    invalid: str = ""
    failed: dict[str, Failure] = dataclasses.field(default_factory=dict)
    shrinking: int = 0
    # Examples beside those that count.
    extra: set[str] = dataclasses.field(default_factory=set)

    def run(self, examples: int, seed: int | None) -> Proof:
        failure = None
        names = f"{self.rule.id} {self.dtype} {self.provider}"
        # Warnings and health checks of hypothesis are about tests that people write.
        settings = hypothesis.settings(
            max_examples=examples,
            deadline=None,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
            phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate, hypothesis.Phase.shrink),
            report_multiple_bugs=False,
            verbosity=hypothesis.Verbosity.quiet,
        )
        interpreted = self.device == "cpu" and self.provider not in (REFERENCE, GRAPH)
        drawn = hypothesis.given(_examples(self.rule, self.dtype, _INTERPRETED if interpreted else None))(self.attempt)
        for example in _empty(self.rule, self.dtype):
            self.extra.add(str(example))
            drawn = hypothesis.example(example)(drawn)
        try:
            hypothesis.seed(zlib.crc32(names.encode()) if seed is None else seed)(settings(drawn))()
        except _Refuted as refuted:
            failure = self.explained(refuted.failure)
        except (_Refused, hypothesis.errors.Unsatisfiable):
            if not self.unsupported:
                failure = self.without_example()
        return Proof(
            rule=self.rule.id,
            dtype=self.dtype,
            device=self.device,
            provider=self.provider,
            examples=self.examples,
            unsupported=self.unsupported,
            worst=self.worst,
            ratio=self.ratio,
            failure=failure,
        )

    def attempt(self, example: Example) -> None:
        failure = self.failure(example)
        if failure is not None:
            # From one place only: hypothesis takes failures for different ones that are raised at different lines.
            raise _Refuted(failure)

    def failure(self, example: Example) -> Failure | None:
        text = str(example)
        if text in self.failed:
            return self.failed[text]
        if self.failed:
            self.shrinking += 1
            if self.shrinking > _SHRINKING:
                return None
        self.watch(example)
        try:
            outcome = trial_of(self.rule, example, self.device, self.provider).run()
        except (InvalidExample, ImpossibleSample) as error:
            self.invalid = f"{error} ({example})"
            hypothesis.reject()
        if isinstance(outcome, Failure):
            return self.noted(text, outcome)
        if not self.failed:
            self.count(outcome, text not in self.extra)
        return None

    def noted(self, text: str, failure: Failure) -> Failure | None:
        assert failure.example is not None
        if failure.kind == "does not fire" and any(extent == 0 for _, extent in failure.example.dims or ()):
            # No extents of the entry's, but drawn in addition.
            hypothesis.reject()
        if any(failure.kind != first.kind for first in self.failed.values()):
            # While one failure is shrunk, another kind of it is none.
            return None
        self.failed[text] = failure
        return failure

    def count(self, result: Result, counts: bool) -> None:
        if not result.supported:
            self.unsupported += 1
            if not self.examples and self.unsupported >= _REFUSED:
                raise _Refused
            hypothesis.reject()
        self.examples += counts
        self.worst = max(self.worst, result.share)
        self.ratio = max(self.ratio, result.ratio)

    def explained(self, failure: Failure) -> Failure:
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


class _Refuted(Exception):
    def __init__(self, failure: Failure) -> None:
        self.failure = failure


class _Refused(Exception):
    """The provider takes none of many examples."""


@st.composite
def _examples(draw_from: Any, rule: Rule, dtype: str, most: int | None) -> Example:
    """Shrinks to the least dims, contiguous operands and normal numbers. `most`: elements of an operand."""
    tensors = [name for name, given in rule.inputs.items() if isinstance(given, TensorInput)]
    layouts = [layout for layout in LAYOUTS if any(layout in layouts_of(rule, name) for name in tensors)] or LAYOUTS[:1]
    dims = {
        name: draw_from(st.sampled_from(given.choices) if given.choices else st.integers(given.low, given.high))
        for name, given in rule.dims.items()
    }
    if most is not None:
        _reduce(rule, dims, most)
    return Example(
        dims=tuple(dims.items()) or None,
        layout=draw_from(st.sampled_from([*layouts, *[None] * len(layouts)])),
        values=draw_from(st.sampled_from(VALUE_CLASSES)),
        choice=draw_from(st.integers(0, max(len(step.calls) for step in rule.match) - 1)),
        dtype=dtype,
        seed=draw_from(st.integers(0, 2**16 - 1)),
    )


def _empty(rule: Rule, dtype: str) -> Iterator[Example]:
    """One example for each extent that may be 0: chance would leave most of them out."""
    least = {
        name: given.choices[0] if given.choices else max(given.low, min(2, given.high))
        for name, given in rule.dims.items()
    }
    for name, given in rule.dims.items():
        if not given.choices and given.low <= 1:
            dims = tuple({**least, name: 0}.items())
            yield Example(dims=dims, layout=None, values="normal", choice=0, dtype=dtype, seed=0)


def _reduce(rule: Rule, dims: dict[str, int], most: int) -> None:
    """Halves the widest ranges until every operand has at most so many elements, or all are at their least."""
    ranges = {name: max(given.low, 1) for name, given in rule.dims.items() if not given.choices}
    shapes = [given.shape for given in rule.inputs.values() if isinstance(given, TensorInput)]
    while any(math.prod(each.evaluate(dims) or 0 for each in shape) > most for shape in shapes):
        widest = max(ranges, key=lambda name: dims[name] - ranges[name], default=None)
        if widest is None or dims[widest] <= ranges[widest]:
            return
        dims[widest] = max(dims[widest] // 2, ranges[widest])
