"""Rewrites a graph, times every distinct region, and rewrites again without what does not pay."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Sequence

import torch

from rewriter import torch_ir
from rewriter.graph.conditions import Target
from rewriter.graph.engine import Rewrite, Rewritten, rewrite
from rewriter.language.conditions import PHASES
from rewriter.language.rule import Rule, RuleSet
from rewriter.measure import whole
from rewriter.measure.cache import TimingCache
from rewriter.measure.layouts import record_layouts
from rewriter.measure.providers import compile_candidates, tuned
from rewriter.measure.regions import Regions
from rewriter.measure.timing import Timing
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
) -> Choice:
    """Applies the rules that pay on this machine at the recorded shapes.

    `graph` is canonical; its last `weights` inputs are weights. Rules of the canonicalise phase only remove work and
    are kept unmeasured; every other region is kept if its rewritten form is faster. With `arguments` for the graph,
    whole graphs are timed too: rules that change the order of a result in memory are felt by all that follows, so they
    are kept or left out together, and at the end the fastest graph is taken.
    """
    cache = TimingCache(target.device)
    with tuned(target.device, cache):
        chooser = _Choice(rules, weights, target, cache)
        choice = chooser.quantised(chooser.choose(graph, arguments), arguments)
    cache.save()
    if target.device == "cuda":
        from rewriter.measure.replay import forget_timings

        forget_timings()
    return choice


class _Choice:
    def __init__(self, rules: RuleSet, weights: int, target: Target, cache: TimingCache) -> None:
        self.rules, self.weights, self.target, self.cache = rules, weights, target, cache

    def choose(self, graph: torch_ir.Graph, arguments: Sequence[torch.Tensor] | None) -> Choice:
        free = self.rewrite(None, self.rules, _FREE, graph=graph)
        base, rules = free, self.rules
        left_out: tuple[Rewrite, ...] = ()
        if arguments is not None:
            base, rules, left_out = self.ordered(free, arguments)
        phases = (_LAYOUT, *_LATER) if base is free else _LATER
        regions = Regions(base.graph, rules, self.weights + len(base.prepared), self.target, self.cache, phases)
        best = regions.run()
        result, found = _joined(base, best), regions.found(best)
        if arguments is not None and regions.first is not None:
            whole_graphs = [result, _joined(base, regions.first), free]
            result = whole.fastest(whole_graphs, self.weights, arguments, self.target.device, self.cache)
            if result is free:
                left_out = tuple(
                    dataclasses.replace(done, kept=False) for done in (*left_out, *base.rewrites[len(free.rewrites) :])
                )
                found = tuple(dataclasses.replace(done, kept=False) for done in found)
            elif result is whole_graphs[1]:
                found = regions.found(regions.first)
        kept = free.rewrites if result is free else base.rewrites
        unmeasurable = tuple(f"{what} (first at {site})" for what, site in regions.unmeasurable.items())
        rewritten = dataclasses.replace(result, rewrites=(*kept, *left_out, *found))
        return Choice(rewritten, tuple(regions.timings.values()), unmeasurable)

    def quantised(self, exact: Choice, arguments: Sequence[torch.Tensor] | None) -> Choice:
        """With the rules that quantise, each region timed against what all the other rules have made of it."""
        before = exact.rewritten
        everything = self.rewrite(before, self.rules, _LAST)
        if len(everything.rewrites) == len(before.rewrites):
            return exact
        if arguments is not None:
            self.compile_ahead(arguments, before, self.rules, _LAST)
        weights = self.weights + len(before.prepared)
        regions = Regions(before.graph, self.rules, weights, self.target, self.cache, (_LAST,))
        best = regions.run()
        rewritten = dataclasses.replace(_joined(before, best), rewrites=(*before.rewrites, *regions.found(best)))
        unmeasurable = (f"{what} (first at {site})" for what, site in regions.unmeasurable.items())
        timings = (*exact.timings, *regions.timings.values())
        return Choice(rewritten, timings, (*exact.unmeasurable, *unmeasurable))

    def ordered(
        self, free: Rewritten, arguments: Sequence[torch.Tensor]
    ) -> tuple[Rewritten, RuleSet, tuple[Rewrite, ...]]:
        """The graph to go on from, with the rules that change memory orders applied or left out; the rules that
        remain, and the rewrites that were left out."""
        orders = frozenset(rule.id for rule in self.rules if _changes_order(rule))
        laid = self.rewrite(free, self.rules, _LAYOUT)
        if not any(done.rule in orders for done in laid.rewrites):
            self.compile_ahead(arguments, free, self.rules, _LAYOUT, *_LATER)
            return free, self.rules, ()
        record_layouts(laid.graph, whole.inputs(laid, self.weights, arguments))
        fewer = RuleSet(tuple(rule for rule in self.rules if rule.id not in orders))
        # Which provider is fastest is not asked yet: the two orders differ by more than that, if what only has kernels
        # for some shapes stays out.
        ways = [self.rewrite(laid, self.rules, *_FUSED), self.rewrite(free, fewer, _LAYOUT, *_FUSED)]
        self.compile_ahead(arguments, laid, self.rules, *_LATER, first=ways[1])
        with dispatch.choosing(dispatch.first_able, remember=False):
            faster = whole.fastest(ways, self.weights, arguments, self.target.device, self.cache)
        if faster is ways[0]:
            return laid, self.rules, ()
        self.compile_ahead(arguments, free, fewer, _LAYOUT, *_LATER)
        left_out = (dataclasses.replace(done, kept=False) for done in laid.rewrites if done.rule in orders)
        return free, fewer, tuple(left_out)

    def compile_ahead(
        self,
        arguments: Sequence[torch.Tensor],
        base: Rewritten,
        rules: RuleSet,
        *phases: str,
        first: Rewritten | None = None,
    ) -> None:
        """Compiles what will be timed when the rules are applied to `base`, and what `first` needs to run at all."""
        if self.target.device != "cuda":
            return
        everything = self.rewrite(base, rules, *phases)
        weights = self.weights + len(base.prepared)
        regions = Regions(base.graph, rules, weights, self.target, self.cache, phases)
        calls = itertools.chain([whole.call(everything, self.weights, arguments)], regions.unknown())
        one = None if first is None else whole.call(first, self.weights, arguments)
        compile_candidates(calls, one, cache=self.cache)

    def rewrite(
        self, before: Rewritten | None, rules: RuleSet, *phases: str, graph: torch_ir.Graph | None = None
    ) -> Rewritten:
        if before is None:
            return rewrite(graph, rules, weights=self.weights, phases=phases, target=self.target)
        weights = self.weights + len(before.prepared)
        return _joined(before, rewrite(before.graph, rules, weights=weights, phases=phases, target=self.target))


def _joined(first: Rewritten, second: Rewritten) -> Rewritten:
    """`second`, made from the graph of `first`, as one rewriting of what `first` was made from."""
    return dataclasses.replace(
        second,
        rewrites=first.rewrites + second.rewrites,
        prepared=first.prepared + second.prepared,
        specialised=first.specialised or second.specialised,
        nodes_before=first.nodes_before,
    )


def _changes_order(rule: Rule) -> bool:
    """Whether the rule gives a weight another memory order, which its result and all that reads it take over."""
    return any("prepare::channels_last" in statement.ops for statement in rule.prepare)
