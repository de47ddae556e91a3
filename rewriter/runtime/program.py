"""One captured call in its final form: what to run, with which weights, and where it may be trusted."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from rewriter.capture.compare import REWRITE_LIMITS, TRACE_LIMITS, compare, working_dtype
from rewriter.capture.recording import Invoke, NumbersBaked, Recording, number_tensor, record
from rewriter.capture.state import Snapshot
from rewriter.capture.structure import Flat, Structure, unflatten
from rewriter.errors import CaptureError, VerificationError
from rewriter.runtime.before import Before, clones
from rewriter.runtime.prepared import PreparedStore, PreparedWeights
from rewriter.runtime.runner import FunctionRunner, Runner
from rewriter.runtime.trust import Signature, Trust

if TYPE_CHECKING:
    from rewriter.graph.conditions import Target
    from rewriter.graph.engine import Rewritten
    from rewriter.language import RuleSet

logger = logging.getLogger("rewriter")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """How a target is optimised. `rules` and all flags equal: the same optimisation."""

    rules: RuleSet
    verify: bool = True
    strict: bool = False
    measure: bool = True

    def same(self, other: Options) -> bool:
        """Whether both ask for the same thing; rule sets are compared by content."""
        return (self.rules.digest, self.verify, self.strict, self.measure) == (
            other.rules.digest,
            other.verify,
            other.strict,
            other.measure,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """The call that a program is made from, what was before it, and what eager returned (None: not to be verified)."""

    flat: Flat
    before: Before
    live: tuple[bool, ...]
    invoke: Invoke
    expected: Flat | None

    @property
    def signature(self) -> Signature:
        return tuple(tensor.shape for tensor in self.flat.tensors)

    @property
    def live_numbers(self) -> list[int | float]:
        return [number for number, live in zip(self.flat.numbers, self.live, strict=True) if live]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Summary:
    """What the report says about a rewritten graph, without the graph."""

    rewrites: tuple[tuple[str, bool], ...]
    refusals: tuple[tuple[str, str, str], ...]
    nodes_before: int
    nodes_after: int


def summary(rewritten: Rewritten) -> Summary:
    """Rewrites as (rule, kept), refusals as (rule, node, reason)."""
    return Summary(
        rewrites=tuple((done.rule, done.kept) for done in rewritten.rewrites),
        refusals=tuple((refusal.rule, refusal.node, refusal.reason) for refusal in rewritten.refusals),
        nodes_before=rewritten.nodes_before,
        nodes_after=rewritten.nodes_after,
    )


class Program:
    """Runs in place of the module for calls of one key."""

    def __init__(
        self,
        recording: Recording,
        rewritten: Summary,
        runner: Runner,
        prepared: PreparedWeights,
        trust: Trust,
        live: tuple[bool, ...],
        target: Target,
    ) -> None:
        self.recording, self.rewritten, self.trust, self.live, self.target = recording, rewritten, trust, live, target
        self.error: float | None = None
        self.seconds: dict[str, float] = {}
        self.messages: tuple[str, ...] = ()
        self._runner, self._prepared = runner, prepared

    @property
    def outputs(self) -> Structure:
        return self.recording.outputs

    def live_numbers(self, numbers: Sequence[int | float]) -> list[int | float]:
        """Those of a call's numbers that are inputs of the graph."""
        return [number for number, live in zip(numbers, self.live, strict=True) if live]

    def run(
        self, tensors: Sequence[torch.Tensor], numbers: Sequence[int | float], weights: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        """The output tensors for a call. `weights` are the current snapshot's."""
        chosen = select(self.recording, weights)
        activations = [*tensors, *map(number_tensor, self.live_numbers(numbers))]
        return self._runner(activations, [*chosen, *self._prepared.refresh(chosen)])

    def rebuild(self, tensors: Sequence[torch.Tensor]) -> Any:
        """The value that the module would have returned."""
        return unflatten(self.outputs, tensors, ())


def select(recording: Recording, weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The graph's weights out of the snapshot's."""
    return [weights[slot] for slot in recording.weights]


def build(
    module: torch.nn.Module, example: Example, snapshot: Snapshot, options: Options, store: PreparedStore, name: str
) -> Program:
    """Captures, rewrites and verifies one call.

    Raises CaptureError where no graph can be made and VerificationError where a graph does not reproduce eager;
    NumbersBaked asks for another attempt with fewer live numbers.
    """
    seconds: dict[str, float] = {}
    with _timed(seconds, "trace", name):
        recording = _record(module, example, snapshot)
    weights = select(recording, snapshot.weights)
    activations = [*example.before.copies, *map(number_tensor, example.live_numbers)]
    dtype = working_dtype([*weights, *example.flat.tensors])
    if example.expected is not None:
        with _timed(seconds, "verify", name):
            plain = FunctionRunner(recording.graph)
            check(plain, activations, weights, example, limit=TRACE_LIMITS[dtype], what="trace")
    with _timed(seconds, "measure" if options.measure else "rewrite", name):
        target = rewrite_target([*example.flat.tensors, *weights])
        rewritten, unmeasurable = _rewrite(recording, target, options)
    names = [snapshot.names[slot] for slot in recording.weights]
    prepared = PreparedWeights(rewritten.prepared, names, weights, store)
    runner = FunctionRunner(rewritten.graph)
    trust = Trust(
        example.signature,
        example.live_numbers,
        exact=rewritten.specialised,
        reads_shapes=recording.reads_shapes,
        verify=options.verify,
    )
    program = Program(recording, summary(rewritten), runner, prepared, trust, example.live, target)
    program.messages = tuple(f"not measured, so not kept: {what}" for what in unmeasurable)
    if example.expected is not None:
        with _timed(seconds, "verify", name):
            everything = [*weights, *prepared.refresh(weights)]
            limit = REWRITE_LIMITS[dtype]
            program.error = check(runner, activations, everything, example, limit=limit, what="rewritten graph")
    program.seconds = seconds
    return program


def _record(module: torch.nn.Module, example: Example, snapshot: Snapshot) -> Recording:
    copies = clones(example.before.copies)
    with example.before.random.replayed():
        recording = record(
            module, example.invoke, example.flat.structure, copies, example.flat.numbers, example.live, snapshot
        )
    if recording.baked_numbers:
        raise NumbersBaked(recording.baked_numbers)
    if recording.baked_data is not None:
        raise CaptureError(
            f"the module's code depends on the elements of a tensor at {recording.baked_data}, "
            "which a graph would fix to this call's"
        )
    if example.expected is not None and example.expected.structure != recording.outputs:
        raise CaptureError("the traced call returns another structure than the eager call")
    return recording


def check(
    runner: Runner,
    activations: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    example: Example,
    *,
    limit: float,
    what: str,
) -> float:
    """Runs a graph on copies of the example's inputs and compares it with eager; returns the relative L2 error."""
    assert example.expected is not None
    with example.before.random.replayed():
        actual = runner(clones(activations), weights)
    difference = compare(actual, example.expected.tensors, limit=limit, same_nonfinite=what == "trace")
    if difference.problem:
        raise VerificationError(f"the {what} does not reproduce eager: {difference.problem}")
    return difference.error


def rewrite_target(tensors: Sequence[torch.Tensor]) -> Target:
    """The machine that the call runs on: the device of the first tensor that is not on the CPU, else the CPU."""
    from rewriter.graph.conditions import Target

    for tensor in tensors:
        if tensor.device.type == "cuda":
            major, minor = torch.cuda.get_device_capability(tensor.device)
            return Target(device="cuda", sm=10 * major + minor)
    return Target(device=next((t.device.type for t in tensors if t.device.type != "cpu"), "cpu"))


def _rewrite(recording: Recording, target: Target, options: Options) -> tuple[Rewritten, tuple[str, ...]]:
    """The rewritten graph, and what could not be measured."""
    count = len(recording.weights)
    if options.measure:
        from rewriter import measure

        choice = measure.choose(recording.graph, options.rules, weights=count, target=target)
        return choice.rewritten, choice.unmeasurable
    from rewriter.graph import engine

    return engine.rewrite(recording.graph, options.rules, weights=count, target=target), ()


@contextlib.contextmanager
def _timed(seconds: dict[str, float], phase: str, name: str) -> Iterator[None]:
    logger.debug("%s: %s", name, phase)
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - start
