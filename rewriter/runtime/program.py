"""One captured call in its final form: what to run, with which weights, and where it may be trusted."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from rewriter.capture.outcome import leave
from rewriter.capture.recording import Recording, number_tensor
from rewriter.capture.structure import flatten, unflatten
from rewriter.runtime.hoisting import is_random
from rewriter.runtime.prepared import PreparedWeights
from rewriter.runtime.runner import Runner
from rewriter.runtime.trust import Trust

if TYPE_CHECKING:
    from rewriter import torch_ir
    from rewriter.graph.conditions import Target
    from rewriter.graph.engine import Rewritten
    from rewriter.graph.prepare import Prepared
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
class Summary:
    """What the report says about a rewritten graph, without the graph."""

    rewrites: tuple[tuple[str, bool], ...]
    refusals: tuple[tuple[str, str, str], ...]
    nodes_before: int
    nodes_after: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Applied:
    """What rules have made of a graph. Its inputs are the activations, the weights, and one for each of `prepared`.

    messages: what the report says about the choice of rewrites.
    """

    graph: torch_ir.Graph
    prepared: tuple[Prepared, ...]
    specialised: bool
    summary: Summary
    messages: tuple[str, ...] = ()


def applied(rewritten: Rewritten, messages: Sequence[str] = ()) -> Applied:
    """Rewrites as (rule, kept), refusals as (rule, node, reason)."""
    summary = Summary(
        rewrites=tuple((done.rule, done.kept) for done in rewritten.rewrites),
        refusals=tuple((refusal.rule, refusal.node, refusal.reason) for refusal in rewritten.refusals),
        nodes_before=rewritten.nodes_before,
        nodes_after=rewritten.nodes_after,
    )
    return Applied(
        graph=rewritten.graph,
        prepared=rewritten.prepared,
        specialised=rewritten.specialised,
        summary=summary,
        messages=tuple(messages),
    )


class Program:
    """Runs in place of the module for calls of one key. `draws`: it draws random numbers."""

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
        # What rules with a part in the graph keep of an operand, where that is not all of it.
        self.losses: frozenset[str] = frozenset()
        self.draws = is_random(recording.graph)
        self._layouts: list[torch.memory_format] = []
        self._runner, self._prepared = runner, prepared

    @property
    def replays(self) -> int:
        """For how many sets of extents recorded kernels are replayed now: 0 where they are launched one by one."""
        return int(getattr(self._runner, "replays", 0))

    def copied(self) -> set[int]:
        """The slots of the weights of which something was computed ahead of calls: weights that were prepared, and
        what a replay does not compute at every step."""
        slots = self.recording.weights
        positions = set(self._prepared.copied())
        for position in self._runner.hoisted_from:
            positions |= {position} if position < len(slots) else self._prepared.sources(position - len(slots))
        return {slots[position] for position in positions}

    def live_numbers(self, numbers: Sequence[int | float]) -> list[int | float]:
        """Those of a call's numbers that are inputs of the graph."""
        return [number for number, live in zip(numbers, self.live, strict=True) if live]

    def run(
        self,
        tensors: Sequence[torch.Tensor],
        numbers: Sequence[int | float],
        weights: Sequence[torch.Tensor],
        state: int | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """The output tensors for a call. `weights`: the effective ones, in the order of the snapshot's; `state`: a
        number for what they are."""
        chosen = select(self.recording, weights)
        activations = [*tensors, *map(number_tensor, self.live_numbers(numbers))]
        return self._runner(activations, [*chosen, *self._prepared.refresh(chosen, state)], state)

    def note_layouts(self, tensors: Sequence[torch.Tensor]) -> None:
        """Remembers in which memory order `run` has returned its tensors."""
        self._layouts = [_layout(tensor) for tensor in tensors]

    def laid_out(self, result: Any) -> Any:
        """What the module has returned, with the tensors in the memory order in which `run` returns them.

        What reads the first result is captured for its memory order, and would be captured again for the second's.
        """
        flat = flatten(result, what="output", objects=True)
        if len(flat.tensors) > len(self._layouts):
            return result
        pairs = list(zip(flat.tensors, self._layouts, strict=False))
        if all(_layout(tensor) is layout for tensor, layout in pairs):
            return result
        tensors = [tensor.contiguous(memory_format=layout) for tensor, layout in pairs]
        return unflatten(flat.structure, tensors, flat.numbers)

    def rebuild(
        self, tensors: Sequence[torch.Tensor], arguments: Mapping[str, Any], inputs: Sequence[torch.Tensor]
    ) -> Any:
        """The value that the module would have returned; lists in `arguments` get what it would have left there.

        `tensors`: what `run` returned for the call's tensors `inputs`.
        """
        outcome = self.recording.outcome
        if outcome.left:
            leave(outcome.left, arguments, tensors, inputs)
        return unflatten(outcome.structure, tensors, ())


def select(recording: Recording, weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The graph's weights out of the snapshot's."""
    return [weights[slot] for slot in recording.weights]


def _layout(tensor: torch.Tensor) -> torch.memory_format:
    """Channels-last where the tensor lies so, else contiguous."""
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim())
    last = layout is not None and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=layout)
    return layout if last and layout is not None else torch.contiguous_format
