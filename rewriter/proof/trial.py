"""One example with all checks: it fires, is called, stays within its memory, and gives the pattern's result."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections import Counter
from collections.abc import Iterator

import torch

from rewriter.causes import described, memory_ran_out
from rewriter.graph.engine import EndlessRules
from rewriter.language.rule import Rule
from rewriter.proof import fences, fused, oracle
from rewriter.proof.comparison import Difference, Output, compared
from rewriter.proof.oracle import InvalidExample
from rewriter.proof.outcome import Example, Failure
from rewriter.proof.program import PatternModule, flat
from rewriter.proof.sample import Sample, draw
from rewriter.proof.tolerance import FLOOR, Verdict

# What memory holds in a second run that tells whether a wrong result comes from there.
_OTHER = 0.5


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One example that passed. The errors are by the measure that comes nearest to what is allowed.

    `floor`: what the dtype of that output allows by itself. `refusal`: why the provider does not take the call; nothing
    was compared then.
    """

    error: float = 0.0
    unfused: float = 0.0
    allowed: float = 0.0
    floor: float = 0.0
    refusal: str | None = None

    @property
    def share(self) -> float:
        return self.error / self.allowed if self.allowed else 0.0

    @property
    def ratio(self) -> float:
        return self.error / max(self.unfused, self.floor) if self.error else 0.0


class Trial:
    """An example to be run. `unfused` and `outputs` are there once it ran, as far as it came.

    `program`: the entry whose pattern is the program that the rule meets, where that is not the rule's own.
    """

    def __init__(
        self,
        rule: Rule,
        example: Example,
        sample: Sample,
        *,
        device: str,
        provider: str,
        program: Rule | None = None,
    ) -> None:
        self.rule = rule
        self.program = program or rule
        self.example = example
        self.sample = sample
        self.device = device
        self.provider = provider
        self.tensors = [x for x in flat(sample.operands.values()) if isinstance(x, torch.Tensor)]
        self.unfused: list[torch.Tensor] = []
        self.outputs: list[torch.Tensor] = []

    def run(self) -> Result | Failure:
        """Raises InvalidExample where the pattern itself does not run on the operands, or there is no memory for it."""
        # What torch warns of is the pattern's or the drawn numbers', which are odd on purpose.
        with warnings.catch_warnings(), _whole_floats():
            warnings.simplefilter("ignore")
            try:
                return self.checked()
            except RuntimeError as error:
                if not memory_ran_out(error):
                    raise
                # That of the proof's share: what is proved is not at fault.
                raise InvalidExample(described(error)) from error

    def checked(self) -> Result | Failure:
        module = PatternModule(self.program, self.sample, choice=self.example.choice)
        before = fences.snapshot(self.tensors)
        plain = oracle.unfused(module)
        self.unfused = [output.clone() for output in plain.outputs]
        expected = fences.snapshot(self.tensors)
        fences.restore(self.tensors, before)
        try:
            program = fused.build(self.rule, module, self.device)
        except RuntimeError as error:
            if memory_ran_out(error):
                raise
            return self.failure("raises", f"capturing the pattern raises {described(error)}")
        except EndlessRules as error:
            return self.failure("does not end", str(error))
        if isinstance(program, str):
            return self.failure("does not fire", program)
        fences.restore(self.tensors, before)
        try:
            calls = self.perform(program)
        except Exception as error:
            if memory_ran_out(error):
                raise
            # Reported at once: after a fault a GPU may run nothing more.
            return self.failure("raises", f"the replacement raises {described(error)}")
        wrong = self.calls(calls.counts) or self.memory(expected, program)
        # The oracle takes longer than all before it, and some providers refuse most examples.
        if wrong is None and calls.refusals:
            return Result(refusal=calls.refusals[0])
        # Outputs may lie in operands that the program writes to, and the oracle needs those as they were.
        self.outputs = [output.clone() for output in self.outputs]
        fences.restore(self.tensors, before)
        random = oracle.random_op(module, plain)
        fences.restore(self.tensors, before)
        if random is not None:
            # No cause is to be read from what another run would give otherwise.
            self.outputs = []
            return self.failure("wrong result", f"{random} draws random numbers: no result is the right one to prove")
        if wrong is not None:
            return self.failure(wrong.kind, wrong.message)
        exact = oracle.exact(module, plain, self.example.seed)
        outcome = self.compare(exact)
        if isinstance(outcome, Difference):
            return self.failure(*self.reread(program, before, outcome))
        return outcome

    def perform(self, program: fused.Fused, fill: float | None = None) -> fused.Calls:
        """Runs the program into `outputs`; fresh memory holds `fill`, by default NaN."""
        with fused.provided(self.rule, self.provider, self.example.seed) as calls, fences.poisoned(self.unfused, fill):
            self.outputs = fused.run(program)
        if self.device != "cpu":
            torch.cuda.synchronize()
        return calls

    def calls(self, calls: Counter[tuple[str, str]]) -> Difference | None:
        for op in fused.ops_of(self.rule):
            if not any(called == op for called, _ in calls):
                return Difference("not called", f"rewriter::{op} stands in the graph and was not called")
        return None

    def memory(self, expected: list[torch.Tensor], program: fused.Fused) -> Difference | None:
        """What the program did to memory that is not its own."""
        for x, wanted, after in zip(self.tensors, expected, fences.snapshot(self.tensors), strict=True):
            positions = fences.changed(wanted, after)
            if positions:
                inside = _inside(x, positions)
                name = self.name(x)
                if inside:
                    return Difference("writes an input", f"operand {name} is changed at {inside[0]}")
                offsets = positions[0] - x.storage_offset()
                return Difference(
                    "out of bounds", f"writes around operand {name}, {offsets} elements from where it begins"
                )
        for position, other, is_operand in fused.undeclared_sharing(program, self.outputs):
            what = "an operand" if is_operand else f"output {self.output(other)}"
            return Difference("aliases", f"output {self.output(position)} shares memory with {what}, undeclared")
        return None

    def compare(self, exact: oracle.Exact) -> Result | Difference:
        worst: tuple[Verdict, torch.dtype] | None = None
        given = zip(self.outputs, self.unfused, exact.outputs, exact.noise, strict=True)
        for position, programs in enumerate(given):
            others = [each[position] for each in exact.others]
            output = Output(self.output(position), *programs, exact.overflows, others)
            verdict = compared(output, self.rule.tolerance)
            if isinstance(verdict, Difference):
                return verdict
            if worst is None or verdict.share >= worst[0].share:
                worst = (verdict, output.fused.dtype)
        assert worst is not None
        verdict, dtype = worst
        floor = FLOOR.get(dtype, 0.0)
        return Result(error=verdict.error, unfused=verdict.unfused, allowed=verdict.allowed, floor=floor)

    def reread(self, program: fused.Fused, before: list[torch.Tensor], wrong: Difference) -> tuple[str, str]:
        """The kind and message of a wrong result, found out by running again on other memory around the operands."""
        first = [output.clone() for output in self.outputs]
        for kind, cause in (
            ("out of bounds", "the result depends on memory around the operands"),
            ("unwritten", "the result depends on what fresh memory holds"),
        ):
            fences.restore(self.tensors, before)
            if kind == "out of bounds":
                fences.refence(self.tensors, _OTHER)
            try:
                self.perform(program, _OTHER if kind == "unwritten" else None)
            except Exception:
                continue
            if outputs_changed(first, self.outputs):
                return kind, f"{cause}: {wrong.message}"
        return wrong.kind, wrong.message

    def failure(self, kind: str, message: str) -> Failure:
        return Failure(kind=kind, message=message, example=self.example, operands=str(self.sample))

    def name(self, x: torch.Tensor) -> str:
        return next(name for name, value in self.sample.operands.items() if any(each is x for each in flat([value])))

    def output(self, position: int) -> str:
        """The name of an output; repeated siblings come with their number."""
        if len(self.unfused) == len(self.program.outputs):
            return self.program.outputs[position]
        return f"{self.program.outputs[0]}[{position}]" if len(self.program.outputs) == 1 else str(position)


def trial_of(rule: Rule, example: Example, device: str, provider: str) -> Trial:
    """The trial of a drawn example. Raises ImpossibleSample where its dims make no tensors."""
    sample = draw(
        rule,
        seed=example.seed,
        dtype=example.dtype,
        values=example.values,
        layout=example.layout,
        dims=None if example.dims is None else dict(example.dims),
        device=device,
    )
    return Trial(rule, example, sample, device=device, provider=provider)


@contextlib.contextmanager
def _whole_floats() -> Iterator[None]:
    """cuDNN's convolutions take f32 as TF32 by default, whose error of 1e-3 would hide a fault of that size."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _dense(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous().view(-1)


def _inside(x: torch.Tensor, positions: list[int]) -> list[list[int]]:
    """The indices of the elements of x at these positions of its storage."""
    places = torch.arange(fences.storage_of(x).numel(), device=x.device).as_strided(
        x.shape, x.stride(), x.storage_offset()
    )
    return [[int(each) for each in at] for at in torch.isin(places, torch.tensor(positions, device=x.device)).nonzero()]


def outputs_changed(before: list[torch.Tensor], after: list[torch.Tensor]) -> bool:
    """Whether two lists of outputs differ in shape or in their bytes."""
    return any(
        one.shape != other.shape or bool(fences.changed(_dense(one), _dense(other)))
        for one, other in zip(before, after, strict=True)
    )
