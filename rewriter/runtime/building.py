"""Makes a program from a call: trace, rewrite, verify; or verify what another process has kept of that."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from rewriter import torch_ir
from rewriter.capture.outcome import Outcome
from rewriter.capture.recording import Invoke, NumbersBaked, Recording, number_tensor, record
from rewriter.capture.state import Snapshot
from rewriter.capture.structure import Flat, difference
from rewriter.causes import described
from rewriter.errors import CaptureError
from rewriter.ops import providers
from rewriter.runtime.arrangement import Arrangement
from rewriter.runtime.before import Before, clones
from rewriter.runtime.calls import Call
from rewriter.runtime.cuda_graphs import CudaGraphRunner
from rewriter.runtime.prepared import PreparedStore
from rewriter.runtime.program import Applied, Options, Program, applied, select
from rewriter.runtime.proof import WrongTrace, check_trace, judge
from rewriter.runtime.runner import FunctionRunner, Runner
from rewriter.runtime.second_start import SecondStart
from rewriter.runtime.trust import Signature, Trust
from rewriter.runtime.verdicts import usable

if TYPE_CHECKING:
    from rewriter.graph.conditions import Target
    from rewriter.language import RuleSet
    from rewriter.measure.whole import Derive

logger = logging.getLogger("rewriter")

# A first call that takes longer without a word looks like a hang.
_SILENT_SECONDS = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """The call that a program is made from, what was before it, and what eager returned (None: not to be verified).

    `invoke` calls `forward` with a mapping of arguments.
    """

    flat: Flat
    before: Before
    live: tuple[bool, ...]
    forward: Callable[..., Any]
    invoke: Invoke
    expected: Outcome | None

    @property
    def signature(self) -> Signature:
        return tuple(tensor.shape for tensor in self.flat.tensors)

    @property
    def live_numbers(self) -> list[int | float]:
        return [number for number, live in zip(self.flat.numbers, self.live, strict=True) if live]


def build(
    module: torch.nn.Module, example: Example, call: Call, options: Options, store: PreparedStore, name: str
) -> Program:
    """Captures, rewrites and verifies one call.

    Raises CaptureError where no graph can be made and VerificationError where a graph does not reproduce eager;
    NumbersBaked asks for another attempt with fewer live numbers, WrongRule for one with fewer rules.
    """
    start = SecondStart()
    with _announced(name):
        try:
            return _build(module, example, call, options, store, name, start)
        except NumbersBaked:
            raise
        except Exception as error:
            if not start.taken:
                raise
            # Nothing that was kept may stand between a call and its graph.
            start.discard()
            problem = f"what another process has kept of this call was made anew: {described(error)}"
            logger.info("%s: %s", name, problem)
        program = _build(module, example, call, options, store, name, start)
        program.messages = (*program.messages, problem)
        return program


def _build(
    module: torch.nn.Module,
    example: Example,
    call: Call,
    options: Options,
    store: PreparedStore,
    name: str,
    start: SecondStart,
) -> Program:
    seconds: dict[str, float] = {}
    snapshot = call.snapshot
    verified = example.expected is not None
    with _timed(seconds, "load", name):
        target = rewrite_target([*example.flat.tensors, *call.weights])
        if target.device == "cuda":
            providers.begin()
        start.look_for(module, example.forward, snapshot, example.flat, example.live, example.expected, target)
        recording = start.recording(example.expected)
    traced = recording is None
    if recording is None:
        if target.device == "cuda" and options.measure:
            _begin_compiling()
        with _timed(seconds, "trace", name):
            recording = _record(module, example, snapshot, start)
    weights = select(recording, call.weights)
    activations = [*example.before.copies, *map(number_tensor, example.live_numbers)]
    if example.expected is not None:
        with _timed(seconds, "verify", name):
            exact = not call.kinds
            problem = check_trace(recording, activations, weights, example.before, example.expected, exact=exact)
        if problem:
            raise WrongTrace(f"the trace does not reproduce eager: {problem}")
    rules, left_out = usable(options.rules, target)
    left_out = (*left_out, *_missing(target), *_idle(options.rules, target))
    with _timed(seconds, "load", name):
        done = start.applied(recording, rules, target, left_out, measured=options.measure)
    chosen = done is None
    names = [snapshot.names[slot] for slot in recording.weights]
    # peft reads its own weights in ways that need them contiguous.
    with Arrangement(names, weights, store, untouched=snapshot.branched) as arrangement:
        if done is None:
            with _timed(seconds, "measure" if options.measure else "rewrite", name):
                arguments = [*clones(activations), *weights]
                done = _rewrite(recording, rules, target, options, arguments, arrangement.derive)
        prepared = arrangement.settle(done.prepared, _unread(done, len(weights)))
        trust = Trust(
            example.signature,
            example.live_numbers,
            exact=done.specialised,
            reads_shapes=recording.reads_shapes,
            verify=options.verify,
        )
        runner = _runner(done.graph, target.device)
        program = Program(recording, done.summary, runner, prepared, trust, example.live, target)
        program.messages = (*left_out, *done.messages)
        program.losses = _losses(done, options)
        if example.expected is not None:
            with _timed(seconds, "verify", name):
                numbers, rules = example.flat.numbers, options.rules
                found = judge(program, rules, numbers, call.weights, example.before, example.expected)
            program.error = found.error
    if verified and (traced or chosen):
        with _timed(seconds, "keep", name):
            if traced:
                start.keep_recording(recording)
            if chosen:
                start.keep_applied(done)
    program.seconds = seconds
    return program


def _record(module: torch.nn.Module, example: Example, snapshot: Snapshot, start: SecondStart) -> Recording:
    copies = clones(example.before.copies)
    with example.before.random.replayed():
        recording = record(
            module, example.invoke, example.flat.structure, copies, example.flat.numbers, example.live, snapshot
        )
    if recording.baked_numbers:
        baked = NumbersBaked(recording.baked_numbers)
        start.keep_baked(baked)
        raise baked
    if recording.baked_data is not None:
        raise CaptureError(
            f"the module's code depends on the elements of a tensor at {recording.baked_data}, "
            "which a graph would fix to this call's"
        )
    if example.expected is not None:
        _demand_same_form(recording.outcome, example.expected)
    return recording


def _demand_same_form(traced: Outcome, eager: Outcome) -> None:
    found = difference(traced.structure, eager.structure)
    if found is not None:
        where, one, other = found
        raise CaptureError(f"the traced call returns {one} for {where}, the eager call {other}")
    if traced.left != eager.left:
        raise CaptureError("the traced call leaves something else in its arguments than the eager call")


def _runner(graph: torch_ir.Graph, device: str) -> Runner:
    if device != "cuda":
        return FunctionRunner(graph)
    from rewriter.measure.providers import tuned

    return CudaGraphRunner(graph, tuned=lambda: tuned(device, near=True))


def rewrite_target(tensors: Sequence[torch.Tensor]) -> Target:
    """The machine that the call runs on: the device of the first tensor that is not on the CPU, else the CPU."""
    from rewriter.graph.conditions import Target

    for tensor in tensors:
        if tensor.device.type == "cuda":
            major, minor = torch.cuda.get_device_capability(tensor.device)
            return Target(device="cuda", sm=10 * major + minor)
    return Target(device=next((t.device.type for t in tensors if t.device.type != "cpu"), "cpu"))


def _rewrite(
    recording: Recording,
    rules: RuleSet,
    target: Target,
    options: Options,
    arguments: Sequence[torch.Tensor],
    derive: Derive,
) -> Applied:
    """`arguments`: inputs of the graph, to time it with; `derive`: see `measure.choose`."""
    count = len(recording.weights)
    if options.measure:
        from rewriter import measure

        choice = measure.choose(
            recording.graph, rules, weights=count, target=target, arguments=arguments, derive=derive
        )
        return applied(choice.rewritten, [f"not measured, so not kept: {what}" for what in choice.unmeasurable])
    from rewriter.graph import engine

    return applied(engine.rewrite(recording.graph, rules, weights=count, target=target))


def _unread(done: Applied, weights: int) -> frozenset[int]:
    from rewriter.graph import prepare

    return prepare.unread(done.graph, weights + len(done.prepared))


def _begin_compiling() -> None:
    """Begins beside the caller, while a network is traced, what its kernels take longest for."""
    from rewriter.measure import compiling

    compiling.begin()


def _losses(done: Applied, options: Options) -> frozenset[str]:
    """What the rules that were applied lose, by their entries."""
    kept = {rule for rule, is_kept in done.summary.rewrites if is_kept}
    return frozenset(loss for rule in options.rules if rule.id in kept for loss in rule.loses.values())


def _missing(target: Target) -> tuple[str, ...]:
    """Which kernels a GPU has to do without here, and why."""
    if target.device != "cuda":
        return ()
    return tuple(f"without the kernels of {name}: {reason}" for name, reason in providers.load().items())


def _idle(rules: RuleSet, target: Target) -> tuple[str, ...]:
    """Which packs have no rule for this machine, and why."""
    from rewriter.graph.conditions import elsewhere

    # By pack, each once; None is that of a rule for this machine.
    reasons: dict[str, dict[str | None, None]] = {}
    for rule in rules:
        reasons.setdefault(rule.pack, {})[elsewhere(rule, target)] = None
    return tuple(
        f"the pack {pack} does nothing here, since its rules are for other machines: {'; '.join(filter(None, found))}"
        for pack, found in reasons.items()
        if None not in found
    )


@contextlib.contextmanager
def _announced(name: str) -> Iterator[None]:
    """Says, where it takes long, what is being waited for."""
    words = "%s: recording its graph and choosing what is fastest on this machine, once; that can take a minute"
    timer = threading.Timer(_SILENT_SECONDS, logger.warning, (words, name))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextlib.contextmanager
def _timed(seconds: dict[str, float], phase: str, name: str) -> Iterator[None]:
    logger.debug("%s: %s", name, phase)
    start = time.perf_counter()
    try:
        yield
    finally:
        seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - start
