"""Rewrites a graph, times every distinct region, and rewrites again without what does not pay."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable

import torch

from rewriter import torch_ir
from rewriter.graph.conditions import Target
from rewriter.graph.engine import Blocked, Rewrite, Rewritten, rewrite
from rewriter.graph.view import Node, View
from rewriter.language.conditions import PHASES
from rewriter.language.rule import RuleSet
from rewriter.measure.cache import TimingCache
from rewriter.measure.region import Pair, Unmeasurable, cut
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


def choose(graph: torch_ir.Graph, rules: RuleSet, *, weights: int, target: Target) -> Choice:
    """Applies the rules that pay on this machine at the recorded shapes.

    `graph` is canonical; its last `weights` inputs are weights. Rules of the canonicalise phase only remove work and
    are kept unmeasured; every other region is kept if its rewritten form is faster.
    """
    free = rewrite(graph, rules, weights=weights, phases=_FREE_PHASES, target=target)
    cache = TimingCache(target.device)
    chooser = _Chooser(free.graph, rules, weights, target, cache)
    result = chooser.run()
    cache.save()
    rewritten = dataclasses.replace(
        result,
        rewrites=free.rewrites + chooser.marked(result),
        nodes_before=free.nodes_before,
        specialised=result.specialised or free.specialised,
    )
    return Choice(
        rewritten,
        tuple(chooser.timings.values()),
        tuple(f"{what} (first at {site})" for what, site in chooser.unmeasurable.items()),
    )


class _Chooser:
    def __init__(self, graph: torch_ir.Graph, rules: RuleSet, weights: int, target: Target, cache: TimingCache) -> None:
        self.graph = graph
        self.rules = rules
        self.weights = weights
        self.target = target
        self.cache = cache
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
            for done in result.rewrites:
                self.seen.setdefault((done.rule, done.origins), done)
            losing = self.losing(result)
            if not losing:
                return result
            blocked |= losing
            _log.info("measuring, round %d: %d rewrites do not pay", round_number + 1, len(losing))
        return rewrite(self.graph, self.rules, weights=self.weights, phases=(), target=self.target)

    def marked(self, result: Rewritten) -> tuple[Rewrite, ...]:
        """Every rewrite that was found, with what is in the final graph marked as kept."""
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
        generator = torch.Generator().manual_seed(0)
        try:
            pair = Pair(
                cut([self.nodes[origin] for origin in origins], generator, shared), cut(after, generator, shared)
            )
            timing = self.cache.get(pair.key)
            if timing is None:
                first, second = pair.before.function(), pair.after.function()
                timing = compare(
                    lambda: first(*pair.before.arguments), lambda: second(*pair.after.arguments), self.target.device
                )
                self.cache.put(pair.key, timing)
        except (Unmeasurable, RuntimeError, NotImplementedError) as error:
            reason = str(error).strip().splitlines()[0]
            self.unmeasurable.setdefault(f"{name}: {reason}", rewrites[0].site)
            return False
        _, count, _ = self.timings.get(pair.key, (name, 0, timing))
        self.timings[pair.key] = (name, count + 1, timing)
        return timing.pays


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
