"""Rewrites a graph, times every distinct region, and rewrites again without what does not pay."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from rewriter import torch_ir
from rewriter.graph.conditions import Target
from rewriter.graph.engine import Rewrite, Rewritten, rewrite
from rewriter.language.conditions import PHASES
from rewriter.language.rule import Rule, RuleSet
from rewriter.measure.cache import TimingCache
from rewriter.measure.compiling import compiled
from rewriter.measure.layouts import record_layouts
from rewriter.measure.providers import tuned
from rewriter.measure.regions import Regions
from rewriter.measure.timing import Timing
from rewriter.measure.whole import Derive, Inputs, fastest
from rewriter.ops import dispatch

_log = logging.getLogger("rewriter")
_FREE, _LAYOUT, *_FUSED, _LOWER, _LAST = PHASES
_LATER = (*_FUSED, _LOWER)


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """The rewritten graph with what pays, and what each distinct region took before and after."""

    rewritten: Rewritten
    timings: tuple[tuple[str, int, Timing], ...]
    unmeasurable: tuple[str, ...]


def choose(
    graph: torch_ir.Graph,
    rules: RuleSet,
    *,
    weights: int,
    target: Target,
    arguments: Sequence[torch.Tensor] | None = None,
    derive: Derive | None = None,
) -> Choice:
    """Applies the rules that pay on this machine at the recorded shapes.

    `graph` is canonical; its last `weights` inputs are weights. Rules of the canonicalise phase only remove work, or
    keep digits, and are kept unmeasured; every other region is kept if its rewritten form is faster. With `arguments`
    for the graph, whole graphs are timed too: rules that change the order of a result in memory are felt by all that
    follows, so they are kept or left out together, and at the end the fastest graph is taken. `derive` gives what
    recipes make of the weights, for one graph at a time.
    """
    cache = TimingCache(target.device)
    inputs = None if arguments is None else Inputs(arguments, weights, derive)
    with tuned(target.device, cache):
        chooser = _Choice(rules, weights, target, cache, inputs)
        choice = chooser.quantised(chooser.choose(graph))
    cache.save()
    return choice


class _Choice:
    def __init__(self, rules: RuleSet, weights: int, target: Target, cache: TimingCache, inputs: Inputs | None) -> None:
        self.rules, self.weights, self.target, self.cache, self.inputs = rules, weights, target, cache, inputs

    def choose(self, graph: torch_ir.Graph) -> Choice:
        free = rewrite(graph, self.rules, weights=self.weights, phases=(_FREE,), target=self.target)
        regions, left_out = self.ordered(free)
        base, best = regions.base, regions.run(self.compile_rest)
        result, found = base.then(best), regions.found(best)
        if self.inputs is not None:
            whole_graphs = [result, base.then(regions.first), free]
            result = self.fastest(*whole_graphs)
            if result is free:
                left_out = tuple(
                    dataclasses.replace(done, kept=False) for done in (*left_out, *base.rewrites[len(free.rewrites) :])
                )
                found = tuple(dataclasses.replace(done, kept=False) for done in found)
            elif result is whole_graphs[1]:
                found = regions.found(regions.first)
        kept = free.rewrites if result is free else base.rewrites
        rewritten = dataclasses.replace(result, rewrites=(*kept, *left_out, *found))
        return Choice(rewritten, tuple(regions.timings.values()), regions.unmeasurable)

    def quantised(self, exact: Choice) -> Choice:
        """With the rules that quantise, each region timed against what all the other rules have made of it."""
        before = exact.rewritten
        regions = self.regions(before, self.rules, _LAST)
        if not regions.first.rewrites:
            return exact
        with self.compile_ahead(regions):
            pass
        best = regions.run(self.compile_rest)
        rewritten = dataclasses.replace(before.then(best), rewrites=(*before.rewrites, *regions.found(best)))
        timings = (*exact.timings, *regions.timings.values())
        return Choice(rewritten, timings, (*exact.unmeasurable, *regions.unmeasurable))

    def ordered(self, free: Rewritten) -> tuple[Regions, tuple[Rewrite, ...]]:
        """The regions of what comes next, and the rewrites that were left out: the rules that change memory orders are
        all applied before, or none of them is."""
        if self.inputs is None:
            return self.regions(free, self.rules, _LAYOUT, *_LATER), ()
        orders = frozenset(rule.id for rule in self.rules if _changes_order(rule))
        laid = self.rewrite(free, self.rules, _LAYOUT)
        if not any(done.rule in orders for done in laid.rewrites):
            regions = self.regions(free, self.rules, _LAYOUT, *_LATER)
            with self.compile_ahead(regions):
                self.fastest(free)
            return regions, ()
        record_layouts(laid.graph, self.inputs.given(laid))
        fewer = RuleSet(tuple(rule for rule in self.rules if rule.id not in orders))
        # Which provider is fastest is not asked yet: the two orders differ by more than that, if what only has kernels
        # for some shapes stays out.
        ways = [self.rewrite(free, fewer, _LAYOUT, *_FUSED), self.rewrite(laid, self.rules, *_FUSED)]
        regions = self.regions(laid, self.rules, *_LATER)
        # What the second way needs is among what the regions do.
        with self.compile_ahead(regions, ways[0]) as first_compiled:
            self.fastest(free)
            first_compiled()
            with dispatch.choosing(dispatch.first_able, remember=False):
                faster = self.fastest(*ways)
        if faster is ways[1]:
            return regions, ()
        regions = self.regions(free, fewer, _LAYOUT, *_LATER)
        with self.compile_ahead(regions):
            pass
        return regions, tuple(dataclasses.replace(done, kept=False) for done in laid.rewrites if done.rule in orders)

    def fastest(self, *candidates: Rewritten) -> Rewritten:
        assert self.inputs is not None
        return fastest(candidates, self.inputs, self.target.device, self.cache)

    def compile_ahead(
        self, regions: Regions, *first: Rewritten
    ) -> contextlib.AbstractContextManager[Callable[[], object]]:
        """Compiles what the regions and each of `first` need to run at all, and what will be timed of the regions; see
        `compiled`."""
        if self.target.device != "cuda" or self.inputs is None:
            return contextlib.nullcontext(lambda: None)
        # Made when their turn comes: each has the weights in other places.
        whole, *others = [
            functools.partial(_run, self.inputs, one) for one in (regions.base.then(regions.first), *first)
        ]
        return compiled(itertools.chain([whole], regions.unknown(regions.first)), others, cache=self.cache)

    def compile_rest(self, calls: Iterable[Callable[[], Any]]) -> None:
        """Compiles what will be timed once rules that lose are left out: others take their place."""
        if self.target.device == "cuda" and self.inputs is not None:
            with compiled(calls, cache=self.cache):
                pass

    def regions(self, base: Rewritten, rules: RuleSet, *phases: str) -> Regions:
        return Regions(base, rules, self.weights, self.target, self.cache, phases, self.inputs)

    def rewrite(self, before: Rewritten, rules: RuleSet, *phases: str) -> Rewritten:
        weights = self.weights + len(before.prepared)
        return before.then(rewrite(before.graph, rules, weights=weights, phases=phases, target=self.target))


def _run(inputs: Inputs, candidate: Rewritten) -> Any:
    return inputs.call(candidate)()


def _changes_order(rule: Rule) -> bool:
    """Whether the rule gives a weight another memory order, which its result and all that reads it take over."""
    return any("prepare::channels_last" in statement.ops for statement in rule.prepare)
