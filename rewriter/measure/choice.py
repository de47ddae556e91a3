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
from rewriter.measure.providers import tuned
from rewriter.measure.region import Pair, TensorPlan, Unmeasurable, cut
from rewriter.measure.timing import Timing, compare

_log = logging.getLogger("rewriter")
# What is blocked can make room for another rule, which is measured in its turn.
_ROUNDS = 4
_FREE_PHASES = PHASES[:1]
_MEASURED_PHASES = PHASES[1:]


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
    are kept unmeasured; every other region is kept if its rewritten form is faster. Rules that change the order of a
    result in memory are felt by all that follows, so they are kept or left out together. With `arguments` for the
    graph, whole graphs are timed too, and the fastest is taken.
    """
    cache = TimingCache(target.device)
    with tuned(target.device, cache):
        choice = _choose(graph, rules, weights, target, arguments, cache)
    cache.save()
    if target.device == "cuda":
        torch.cuda.empty_cache()
    return choice


def _choose(
    graph: torch_ir.Graph,
    rules: RuleSet,
    weights: int,
    target: Target,
    arguments: Sequence[torch.Tensor] | None,
    cache: TimingCache,
) -> Choice:
    free = rewrite(graph, rules, weights=weights, phases=_FREE_PHASES, target=target)
    orders = frozenset(rule.id for rule in rules if _changes_order(rule))
    choosers = [_Chooser(free.graph, rules, weights, target, cache, orders)]
    candidates = [choosers[0].run()]
    if any(done.rule in orders for done in candidates[0].rewrites):
        fewer = RuleSet(tuple(rule for rule in rules if rule.id not in orders))
        choosers.append(_Chooser(free.graph, fewer, weights, target, cache, frozenset()))
        candidates.append(choosers[1].run())
    if arguments is not None:
        everything = choosers[0].first
        nothing = rewrite(free.graph, rules, weights=weights, phases=(), target=target)
        candidates += [*([everything] if everything is not None else []), nothing]
        result = whole.fastest(candidates, weights, arguments, target.device, cache)
    else:
        result = candidates[0]
    found = {key: done for chooser in reversed(choosers) for key, done in chooser.seen.items()}
    kept = {(done.rule, done.origins) for done in result.rewrites}
    rewritten = dataclasses.replace(
        result,
        rewrites=free.rewrites + tuple(dataclasses.replace(done, kept=key in kept) for key, done in found.items()),
        nodes_before=free.nodes_before,
        specialised=result.specialised or free.specialised,
    )
    unmeasurable = {what: site for chooser in choosers for what, site in chooser.unmeasurable.items()}
    return Choice(
        rewritten,
        tuple(choosers[0].timings.values()),
        tuple(f"{what} (first at {site})" for what, site in unmeasurable.items()),
    )


def _changes_order(rule: Rule) -> bool:
    """Whether the rule gives a weight another memory order, which its result and all that reads it take over."""
    return any("prepare::channels_last" in statement.ops for statement in rule.prepare)


class _Chooser:
    """Finds the regions that pay, one by one. Regions of the rules in `exempt` alone are kept unmeasured."""

    def __init__(
        self,
        graph: torch_ir.Graph,
        rules: RuleSet,
        weights: int,
        target: Target,
        cache: TimingCache,
        exempt: frozenset[str],
    ) -> None:
        self.graph = graph
        self.rules = rules
        self.weights = weights
        self.target = target
        self.cache = cache
        self.exempt = exempt
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
                phases=_MEASURED_PHASES,
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

    def losing(self, result: Rewritten) -> Blocked:
        blocked: set[tuple[str, int]] = set()
        made: dict[int, list[Node]] = {}
        for node in result.view.alive():
            if node.rule is not None:
                for origin in node.origins:
                    made.setdefault(origin, []).append(node)
        for origins, rewrites in regions(result.rewrites):
            if self.exempt.issuperset(done.rule for done in rewrites):
                continue
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
