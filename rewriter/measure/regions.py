"""Cuts a rewritten graph into regions, times each distinct one, and leaves out what does not pay."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from rewriter.causes import cause_of
from rewriter.graph.conditions import Target
from rewriter.graph.engine import Blocked, Rewrite, Rewritten, rewrite
from rewriter.graph.view import Node, View
from rewriter.language.rule import RuleSet
from rewriter.measure.cache import TimingCache
from rewriter.measure.grouping import regions
from rewriter.measure.region import Lying, Pair, TensorPlan, Unmeasurable, cut
from rewriter.measure.timing import Timing, compare
from rewriter.measure.whole import Inputs

_log = logging.getLogger("rewriter")
# What is blocked can make room for another rule, which is measured in its turn.
_ROUNDS = 4


class Regions:
    """Finds the regions that pay, one by one, of what the rules make of `base` in the given phases.

    `inputs`: whose weights the regions are timed with; without them weights are drawn as all else is.
    """

    def __init__(
        self,
        base: Rewritten,
        rules: RuleSet,
        weights: int,
        target: Target,
        cache: TimingCache,
        phases: tuple[str, ...],
        inputs: Inputs | None = None,
    ) -> None:
        self.base = base
        self.graph = base.graph
        self.rules = rules
        self.weights = weights + len(base.prepared)
        self.target = target
        self.cache = cache
        self.phases = phases
        self.inputs = inputs
        self.first = self.rewritten(frozenset())
        self.original = View(self.graph, self.weights)
        self.nodes = {origin: node for node in self.original.nodes for origin in node.origins}
        self.seen: dict[tuple[str, frozenset[int]], Rewrite] = {}
        self.timings: dict[str, tuple[str, int, Timing]] = {}
        self._unmeasurable: dict[str, list[str]] = {}
        self.unmeasured = frozenset(rule.id for rule in rules if rule.saves == "memory")

    def run(self, prepare: Callable[[Iterable[Callable[[], Any]]], None]) -> Rewritten:
        """The rewrites that pay. `prepare` is given what will be timed of another form than the first."""
        result = self.first
        blocked: Blocked = frozenset()
        for round_number in range(_ROUNDS):
            for done in result.rewrites:
                self.seen.setdefault((done.rule, done.origins), done)
            losing = self.losing(result)
            if not losing:
                return result
            blocked |= losing
            _log.info("measuring, round %d: %d rewrites do not pay", round_number + 1, len(losing))
            result = self.rewritten(blocked)
            prepare(self.unknown(result))
        return rewrite(self.graph, self.rules, weights=self.weights, phases=(), target=self.target)

    def rewritten(self, blocked: Blocked) -> Rewritten:
        return rewrite(
            self.graph, self.rules, weights=self.weights, phases=self.phases, target=self.target, blocked=blocked
        )

    def unknown(self, result: Rewritten) -> Iterator[Callable[[], Any]]:
        """The rewritten form of each distinct region of `result` that will be timed, as a function of nothing."""
        met: set[str] = set()
        known = self.known(result)
        lying: Lying = {}
        for origins, after, _ in self.sites(result):
            with contextlib.suppress(Unmeasurable, RuntimeError, NotImplementedError):
                pair = self.pair(origins, after, lying)
                if pair.key not in met and self.cache.get(pair.key) is None:
                    met.add(pair.key)
                    yield pair.after.call({}, known)

    def known(self, result: Rewritten) -> Sequence[torch.Tensor]:
        """The weights, and all that is derived from them for `result`, at the positions that plans name."""
        return [] if self.inputs is None else self.inputs.weights(self.base.then(result))

    def found(self, result: Rewritten) -> tuple[Rewrite, ...]:
        """Every rewrite that was seen, kept where it is one of `result`."""
        kept = {(done.rule, done.origins) for done in result.rewrites}
        return tuple(dataclasses.replace(done, kept=key in kept) for key, done in self.seen.items())

    def losing(self, result: Rewritten) -> Blocked:
        blocked: set[tuple[str, int]] = set()
        known = self.known(result)
        lying: Lying = {}
        for origins, after, rewrites in self.sites(result):
            if not self.wanted(rewrites) and not self.pays(origins, after, rewrites, known, lying):
                blocked |= {(done.rule, origin) for done in rewrites for origin in done.origins}
        return frozenset(blocked)

    @staticmethod
    def sites(result: Rewritten) -> Iterator[tuple[frozenset[int], list[Node], list[Rewrite]]]:
        """Each region: the original nodes, those that took their place, and the rewrites."""
        made: dict[int, list[Node]] = {}
        for node in result.view.alive():
            if node.rule is not None:
                for origin in node.origins:
                    made.setdefault(origin, []).append(node)
        for origins, rewrites in regions(result.rewrites):
            yield origins, list({id(n): n for origin in origins for n in made.get(origin, ())}.values()), rewrites

    def pair(self, origins: frozenset[int], after: list[Node], lying: Lying | None = None) -> Pair:
        """`lying`: see `cut`. Raises Unmeasurable."""
        shared: dict[object, object] = {}
        # First, so that both sides get inputs as they lie after the rewrites around the region.
        rewritten = cut(after, shared, self.weights, lying)
        return Pair(cut([self.nodes[origin] for origin in origins], shared, self.weights, lying), rewritten)

    def wanted(self, rewrites: list[Rewrite]) -> bool:
        """Whether speed does not decide: a rule that saves memory has a part in it."""
        return any(done.rule in self.unmeasured for done in rewrites)

    def pays(
        self,
        origins: frozenset[int],
        after: list[Node],
        rewrites: list[Rewrite],
        known: Sequence[torch.Tensor],
        lying: Lying,
    ) -> bool:
        name = " + ".join(dict.fromkeys(done.rule for done in rewrites))
        try:
            return self.timed(self.pair(origins, after, lying), name, known).pays
        except (Unmeasurable, RuntimeError) as error:
            self._unmeasurable.setdefault(f"{name}: {cause_of(error)}", []).append(rewrites[0].site)
            return False

    @property
    def unmeasurable(self) -> tuple[str, ...]:
        """Each reason once, with the first place and how many there are."""
        return tuple(
            f"{reason} (first at {sites[0]}{f', in {len(sites)} places' if len(sites) > 1 else ''})"
            for reason, sites in self._unmeasurable.items()
        )

    def timed(self, pair: Pair, name: str, known: Sequence[torch.Tensor]) -> Timing:
        """Both sides of a pair, timed once for all that are alike. Raises what they raise."""
        timing = self.cache.get(pair.key)
        if timing is None:
            timing = self.time(pair, known)
            self.cache.put(pair.key, timing)
        _, count, _ = self.timings.get(pair.key, (name, 0, timing))
        self.timings[pair.key] = (name, count + 1, timing)
        return timing

    def time(self, pair: Pair, known: Sequence[torch.Tensor]) -> Timing:
        drawn: dict[TensorPlan, torch.Tensor] = {}
        before, after = pair.before.call(drawn, known), pair.after.call(drawn, known)
        return compare(before, after, self.target.device)
