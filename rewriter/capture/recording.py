"""Turns one call of a module into a graph of (activations, weights)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch

from rewriter import torch_ir
from rewriter.capture.escapes import Escapes
from rewriter.capture.outcome import Outcome, each, read_outcome
from rewriter.capture.sizes import followed
from rewriter.capture.state import Snapshot
from rewriter.capture.structure import Structure, unflatten
from rewriter.capture.substitutes import Substitutes
from rewriter.causes import described
from rewriter.errors import CaptureError
from rewriter.graph.canonical import canonicalise

# Calls the module with a mapping from parameter name to argument.
Invoke = Callable[[dict[str, Any]], Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recording:
    """One traced call.

    graph: canonical; inputs are the call's tensors, then one 0-dim tensor per live number, then the weights.
    weights: per weight input, the index of the weight in the snapshot.
    outcome: the result and the changed arguments, over the graph's outputs and the call's tensors.
    baked_numbers: indices of live numbers that the trace has turned into constants: (index, place in the code).
    baked_data: place where an activation's or weight's elements steered the code, or None.
    reads_shapes: whether an extent became a Python value, so that other extents could take another path.
    """

    graph: torch_ir.Graph
    weights: tuple[int, ...]
    outcome: Outcome
    baked_numbers: dict[int, str]
    baked_data: str | None
    reads_shapes: bool


class NumbersBaked(CaptureError):
    """The trace has turned live numbers into constants; `indices` says which."""

    def __init__(self, indices: dict[int, str]) -> None:
        super().__init__(f"numbers became constants of the trace: {indices}")
        self.indices = indices


class _Call:
    """The call as a function of tensors only, and what it was found to do."""

    def __init__(
        self,
        module: torch.nn.Module,
        snapshot: Snapshot,
        invoke: Invoke,
        structure: Structure,
        tensors: int,
        numbers: Sequence[Any],
    ) -> None:
        self.module, self.snapshot, self.invoke, self.structure = module, snapshot, invoke, structure
        self.tensors, self.numbers = tensors, numbers
        self.outcome: Outcome | None = None
        self.escapes: Escapes | None = None

    def __call__(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        live = iter(inputs[self.tensors :])
        numbers = [next(live) if number is None else number for number in self.numbers]
        arguments = unflatten(self.structure, inputs[: self.tensors], numbers)
        before = each(arguments)
        self.escapes = Escapes(inputs)
        scales = self.snapshot.scales
        scale_numbers = numbers[len(numbers) - len(scales.values) :]
        with self.escapes, Substitutes(), followed(self.module), scales.given(scale_numbers):
            result = self.invoke(arguments)
        outcome = read_outcome(result, arguments, before)
        if not outcome.tensors:
            raise CaptureError("the call returns no tensor")
        self.outcome = dataclasses.replace(outcome, tensors=())
        return outcome.tensors


def number_tensor(value: int | float) -> torch.Tensor:
    """A live number as a graph input: 0-dim, on the CPU, and of a dtype that promotes like the Python number."""
    return torch.tensor(value, dtype=torch.float64 if isinstance(value, float) else torch.int64, device="cpu")


def record(
    module: torch.nn.Module,
    invoke: Invoke,
    structure: Structure,
    tensors: Sequence[torch.Tensor],
    numbers: Sequence[int | float],
    live: Sequence[bool],
    snapshot: Snapshot,
) -> Recording:
    """Traces `invoke(arguments)`, where `arguments` is what `structure` makes of tensors and numbers.

    `numbers`: those of the call, then the snapshot's scales.
    `tensors` are copies that the module may write to. Attributes that tracing changes are put back. Adapters that the
    snapshot has read into weights do not take part.
    Raises CaptureError where the trace fails, returns no tensor, or changes the module's own state.
    """
    fixed = [None if is_live else number for number, is_live in zip(numbers, live, strict=True)]
    call = _Call(module, snapshot, invoke, structure, len(tensors), fixed)
    example = [*tensors, *(number_tensor(number) for number, is_live in zip(numbers, live, strict=True) if is_live)]
    if not example:
        raise CaptureError("the call has no tensor among its arguments")
    weights, slots = _distinct(snapshot)
    try:
        with snapshot.bare():
            graph = torch_ir.record(call, example, module, weights)
    except (torch.cuda.OutOfMemoryError, CaptureError):
        raise
    except Exception as error:
        raise CaptureError(f"the trace failed: {described(error)}") from error
    finally:
        changed = None if snapshot.unchanged(module) else snapshot.difference(snapshot.again(module))
        if changed:
            snapshot.restore(module)
    assert call.escapes is not None
    assert call.outcome is not None
    canonicalise(graph)
    positions = [index for index, is_live in enumerate(live) if is_live]
    baked = _unused_numbers(graph, len(tensors), positions)
    for position, place in call.escapes.data.items():
        if position >= len(tensors):
            baked[positions[position - len(tensors)]] = place
    if changed and not (positions and baked):
        # A live number may have ended up in an attribute; without live numbers the module itself does this.
        if not positions:
            raise CaptureError(f"the module changes itself on each call: {changed}")
        baked = dict.fromkeys(positions, "an attribute")
    return Recording(
        graph=graph,
        weights=tuple(slots[index] for index in torch_ir.drop_unused(graph, len(example))),
        outcome=call.outcome,
        baked_numbers=baked,
        baked_data=_data_place(call.escapes, len(tensors)),
        reads_shapes=call.escapes.shapes,
    )


def _data_place(escapes: Escapes, tensors: int) -> str | None:
    places = [place for position, place in escapes.data.items() if position < tensors]
    return places[0] if places else escapes.weights


def _unused_numbers(graph: torch_ir.Graph, tensors: int, positions: Sequence[int]) -> dict[int, str]:
    inputs = list(graph.inputs())
    unused = [index for offset, index in enumerate(positions) if not inputs[tensors + offset].uses()]
    return dict.fromkeys(unused, "a constant of the graph")


def _distinct(snapshot: Snapshot) -> tuple[list[torch.Tensor], list[int]]:
    """The weights, tied ones once, and their indices in the snapshot."""
    first = {id(weight): index for index, weight in reversed(list(enumerate(snapshot.weights)))}
    slots = sorted(first.values())
    return [snapshot.weights[slot] for slot in slots], slots
