"""Rewrites a graph, times every distinct region, and rewrites again without what does not pay."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Sequence

import torch

from rewriter import torch_ir
from rewriter.graph.conditions import Target
from rewriter.graph.engine import Blocked, Rewrite, Rewritten, rewrite
from rewriter.graph.view import Node, View
from rewriter.language.conditions import PHASES
from rewriter.language.rule import Rule, RuleSet
from rewriter.measure import whole
from rewriter.measure.cache import TimingCache
from rewriter.measure.layouts import record_layouts
from rewriter.measure.providers import compile_candidates, tuned
from rewriter.measure.region import Pair, TensorPlan, Unmeasurable, cut
from rewriter.measure.timing import Timing, compare

_log = logging.getLogger("rewriter")
# What is blocked can make room for another rule, which is measured in its turn.
_ROUNDS = 4
_FREE, _LAYOUT, *_LATER = PHASES


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
        choice = _Choice(rules, weights, target, cache).choose(graph, arguments)
    cache.save()
    if target.device == "cuda":
        torch.cuda.empty_cache()
    return choice


class _Choice:
    def __init__(self, rules: RuleSet, weights: int, target: Target, cache: TimingCache) -> None:
        self.rules, self.weights, self.target, self.cache = rules, weights, target, cache

    def choose(self, graph: torch_ir.Graph, arguments: Sequence[torch.Tensor] | None) -> Choice:
        free = self.rewrite(None, self.rules, _FREE, graph=graph)
        base, rules = free, self.rules
        left_out: tuple[Rewrite, ...] = ()
        if arguments is not None:
            if self.target.device == "cuda":
                everything = self.rewrite(free, self.rules, _LAYOUT, *_LATER)
                compile_candidates(whole.call(everything, self.weights, arguments), self.cache)
            base, rules, left_out = self.ordered(free, arguments)
        phases = (_LAYOUT, *_LATER) if base is free else tuple(_LATER)
        regions = _Regions(base.graph, rules, self.weights + len(base.prepared), self.target, self.cache, phases)
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

    def ordered(
        self, free: Rewritten, arguments: Sequence[torch.Tensor]
    ) -> tuple[Rewritten, RuleSet, tuple[Rewrite, ...]]:
        """The graph to go on from, with the rules that change memory orders applied or left out; the rules that
        remain, and the rewrites that were left out."""
        orders = frozenset(rule.id for rule in self.rules if _changes_order(rule))
        laid = self.rewrite(free, self.rules, _LAYOUT)
        if not any(done.rule in orders for done in laid.rewrites):
            return free, self.rules, ()
        fewer = RuleSet(tuple(rule for rule in self.rules if rule.id not in orders))
        ways = [self.rewrite(laid, self.rules, *_LATER), self.rewrite(free, fewer, _LAYOUT, *_LATER)]
        if whole.fastest(ways, self.weights, arguments, self.target.device, self.cache) is ways[1]:
            left_out = (dataclasses.replace(done, kept=False) for done in laid.rewrites if done.rule in orders)
            return free, fewer, tuple(left_out)
        record_layouts(laid.graph, whole.inputs(laid, self.weights, arguments))
        return laid, self.rules, ()

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


class _Regions:
    """Finds the regions that pay, one by one."""

    def __init__(
        self,
        graph: torch_ir.Graph,
        rules: RuleSet,
        weights: int,
        target: Target,
        cache: TimingCache,
        phases: tuple[str, ...],
    ) -> None:
        self.graph = graph
        self.rules = rules
        self.weights = weights
        self.target = target
        self.cache = cache
        self.phases = phases
        self.first: Rewritten | None = None
        self.original = View(graph, weights)
        self.nodes = {origin: node for node in self.original.nodes for origin in node.origins}
        self.seen: dict[tuple[str, frozenset[int]], Rewrite] = {}
        self.timings: dict[str, tuple[str, int, Timing]] = {}
        self.unmeasurable: dict[str, str] = {}

    def run(self) -> Rewritten:
        blocked: Blocked = frozenset()
        for round_number in range(_ROUNDS):
            result = rewrite(
                self.graph,
                self.rules,
                weights=self.weights,
                phases=self.phases,
                target=self.target,
                blocked=blocked,
            )
            self.first = self.first or result
            for done in result.rewrites:
                self.seen.setdefault((done.rule, done.origins), done)
            losing = self.losing(result)
            if not losing:
                return result
            blocked |= losing
            _log.info("measuring, round %d: %d rewrites do not pay", round_number + 1, len(losing))
        return rewrite(self.graph, self.rules, weights=self.weights, phases=(), target=self.target)

    def found(self, result: Rewritten) -> tuple[Rewrite, ...]:
        """Every rewrite that was seen, kept where it is one of `result`."""
        kept = {(done.rule, done.origins) for done in result.rewrites}
        return tuple(dataclasses.replace(done, kept=key in kept) for key, done in self.seen.items())

    def losing(self, result: Rewritten) -> Blocked:
        blocked: set[tuple[str, int]] = set()
        made: dict[int, list[Node]] = {}
        for node in result.view.alive():
            if node.rule is not None:
                for origin in node.origins:
                    made.setdefault(origin, []).append(node)
        for origins, rewrites in regions(result.rewrites):
            after = list({id(node): node for origin in origins for node in made.get(origin, ())}.values())
            if not self.pays(origins, after, rewrites):
                blocked |= {(done.rule, origin) for done in rewrites for origin in done.origins}
        return frozenset(blocked)

    def pays(self, origins: frozenset[int], after: list[Node], rewrites: list[Rewrite]) -> bool:
        shared: dict[object, object] = {}
        name = " + ".join(dict.fromkeys(done.rule for done in rewrites))
        try:
            pair = Pair(cut([self.nodes[origin] for origin in origins], shared), cut(after, shared))
            timing = self.cache.get(pair.key)
            if timing is None:
                timing = self.time(pair)
                self.cache.put(pair.key, timing)
        except (Unmeasurable, RuntimeError, NotImplementedError) as error:
            reason = str(error).strip().splitlines()[0]
            self.unmeasurable.setdefault(f"{name}: {reason}", rewrites[0].site)
            return False
        _, count, _ = self.timings.get(pair.key, (name, 0, timing))
        self.timings[pair.key] = (name, count + 1, timing)
        return timing.pays

    def time(self, pair: Pair) -> Timing:
        drawn: dict[TensorPlan, torch.Tensor] = {}
        before, after = pair.before.call(drawn), pair.after.call(drawn)
        return compare(before, after, self.target.device)


def regions(rewrites: Iterable[Rewrite]) -> list[tuple[frozenset[int], list[Rewrite]]]:
    """Rewrites that touch common original nodes, directly or through others, together: they pay or lose as one."""
    parent: dict[int, int] = {}

    def find(origin: int) -> int:
        while parent.setdefault(origin, origin) != origin:
            parent[origin] = parent[parent[origin]]
            origin = parent[origin]
        return origin

    found = list(rewrites)
    for done in found:
        first, *rest = done.origins
        for origin in rest:
            parent[find(origin)] = find(first)
    groups: dict[int, tuple[set[int], list[Rewrite]]] = {}
    for done in found:
        origins, members = groups.setdefault(find(next(iter(done.origins))), (set(), []))
        origins |= done.origins
        members.append(done)
    return [(frozenset(origins), members) for origins, members in groups.values()]
