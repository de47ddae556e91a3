"""Makes a program from a call: trace, rewrite, verify."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch

from rewriter import torch_ir
from rewriter.capture.recording import Invoke, NumbersBaked, Recording, number_tensor, record
from rewriter.capture.state import Snapshot
from rewriter.capture.structure import Flat
from rewriter.errors import CaptureError, VerificationError
from rewriter.runtime.before import Before, clones
from rewriter.runtime.cuda_graphs import CudaGraphRunner
from rewriter.runtime.prepared import PreparedStore, PreparedWeights
from rewriter.runtime.program import Options, Program, select, summary
from rewriter.runtime.proof import WrongTrace, check_program, check_trace
from rewriter.runtime.runner import FunctionRunner, Runner
from rewriter.runtime.trust import Signature, Trust
from rewriter.runtime.verdicts import usable

if TYPE_CHECKING:
    from rewriter.graph.conditions import Target
    from rewriter.graph.engine import Rewritten

logger = logging.getLogger("rewriter")


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
    if example.expected is not None:
        with _timed(seconds, "verify", name):
            problem = check_trace(recording, activations, weights, example.before, example.expected)
        if problem:
            raise WrongTrace(f"the trace does not reproduce eager: {problem}")
    with _timed(seconds, "measure" if options.measure else "rewrite", name):
        target = rewrite_target([*example.flat.tensors, *weights])
        rewritten, messages = _rewrite(recording, target, options, [*clones(activations), *weights])
    names = [snapshot.names[slot] for slot in recording.weights]
    prepared = PreparedWeights(rewritten.prepared, names, weights, store)
    runner = _runner(rewritten.graph, target.device)
    trust = Trust(
        example.signature,
        example.live_numbers,
        exact=rewritten.specialised,
        reads_shapes=recording.reads_shapes,
        verify=options.verify,
    )
    program = Program(recording, summary(rewritten), runner, prepared, trust, example.live, target)
    program.messages = messages
    if example.expected is not None:
        with _timed(seconds, "verify", name):
            found = check_program(program, example.flat.numbers, snapshot.weights, example.before, example.expected)
        if found.problem:
            raise VerificationError(f"the rewritten graph does not reproduce eager: {found.problem}")
        program.error = found.error
    prepared.adopt(weights)
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


def _runner(graph: torch_ir.Graph, device: str) -> Runner:
    if device != "cuda":
        return FunctionRunner(graph)
    from rewriter.measure.providers import tuned

    return CudaGraphRunner(graph, tuned=lambda: tuned(device))


def rewrite_target(tensors: Sequence[torch.Tensor]) -> Target:
    """The machine that the call runs on: the device of the first tensor that is not on the CPU, else the CPU."""
    from rewriter.graph.conditions import Target

    for tensor in tensors:
        if tensor.device.type == "cuda":
            major, minor = torch.cuda.get_device_capability(tensor.device)
            return Target(device="cuda", sm=10 * major + minor)
    return Target(device=next((t.device.type for t in tensors if t.device.type != "cpu"), "cpu"))


def _rewrite(
    recording: Recording, target: Target, options: Options, arguments: Sequence[torch.Tensor]
) -> tuple[Rewritten, tuple[str, ...]]:
    """The rewritten graph, and what the report says about it. `arguments`: inputs of the graph, to time it with."""
    count = len(recording.weights)
    rules, left_out = usable(options.rules, target)
    left_out = (*left_out, *_missing(target))
    if options.measure:
        from rewriter import measure

        choice = measure.choose(recording.graph, rules, weights=count, target=target, arguments=arguments)
        unmeasurable = (f"not measured, so not kept: {what}" for what in choice.unmeasurable)
        return choice.rewritten, (*left_out, *unmeasurable)
    from rewriter.graph import engine

    return engine.rewrite(recording.graph, rules, weights=count, target=target), left_out


def _missing(target: Target) -> tuple[str, ...]:
    """Which kernels a GPU has to do without here, and why."""
    if target.device != "cuda":
        return ()
    from rewriter.ops import providers

    return tuple(f"without the kernels of {name}: {reason}" for name, reason in providers.load().items())


@contextlib.contextmanager
def _timed(seconds: dict[str, float], phase: str, name: str) -> Iterator[None]:
    logger.debug("%s: %s", name, phase)
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - start
