"""One captured call in its final form: what to run, with which weights, and where it may be trusted."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from rewriter.capture.recording import Recording, number_tensor
from rewriter.capture.structure import Structure, unflatten
from rewriter.runtime.prepared import PreparedWeights
from rewriter.runtime.runner import Runner
from rewriter.runtime.trust import Trust

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
        self,
        tensors: Sequence[torch.Tensor],
        numbers: Sequence[int | float],
        weights: Sequence[torch.Tensor],
        state: int | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """The output tensors for a call. `weights` are the current snapshot's, `state` its serial number."""
        chosen = select(self.recording, weights)
        activations = [*tensors, *map(number_tensor, self.live_numbers(numbers))]
        return self._runner(activations, [*chosen, *self._prepared.refresh(chosen, state)], state)

    def rebuild(self, tensors: Sequence[torch.Tensor]) -> Any:
        """The value that the module would have returned."""
        return unflatten(self.outputs, tensors, ())


def select(recording: Recording, weights: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The graph's weights out of the snapshot's."""
    return [weights[slot] for slot in recording.weights]
